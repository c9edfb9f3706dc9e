/* A module of another ABI major: nothing but the first three fields may be read. */
#include <troupe/plugin.h>

static const troupe_plugin plugin = {.size = 16, .abi_major = 9, .abi_minor = 4};

int32_t troupe_plugin_query(const troupe_host* host, const troupe_plugin** out) {
  (void)host;
  *out = &plugin;
  return TROUPE_OK;
}
