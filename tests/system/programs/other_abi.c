/* A plugin of another ABI major, and one whose actors cannot be made. */
#include "troupe/plugin.h"

static const troupe_actor_class* const no_classes[1];
static const troupe_plugin table = {
    sizeof(troupe_plugin), TROUPE_ABI_MAJOR + 1, 0, "other_abi", "1", no_classes, 0};

__attribute__((visibility("default"))) int32_t troupe_plugin_query(const troupe_host* host,
                                                                   const troupe_plugin** plugin) {
  (void)host;
  *plugin = &table;
  return TROUPE_OK;
}
