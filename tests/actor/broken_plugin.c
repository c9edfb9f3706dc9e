/* A module whose table is broken in the way that TROUPE_TEST_BREAK names. */
#include <stdlib.h>
#include <string.h>
#include <troupe/plugin.h>

static int32_t create(troupe_context* context, uint64_t signature, const troupe_bytes* arguments,
                      size_t count, void** instance, troupe_text* message) {
  (void)context, (void)signature, (void)arguments, (void)count, (void)instance, (void)message;
  return TROUPE_OK;
}
static void call(void* instance, troupe_call* handle, const char* method, uint64_t signature,
                 const troupe_bytes* arguments, size_t count) {
  (void)instance, (void)handle, (void)method, (void)signature, (void)arguments, (void)count;
}
static void destroy(void* instance) {
  (void)instance;
}

static troupe_actor_class class_a;
static troupe_actor_class class_b;
static const troupe_actor_class* classes[2];
static troupe_plugin plugin;

int32_t troupe_plugin_query(const troupe_host* host, const troupe_plugin** out) {
  const char* how = getenv("TROUPE_TEST_BREAK");
  (void)host;
  class_a.size = sizeof class_a;
  class_a.name = "a";
  class_a.create = create;
  class_a.call = call;
  class_a.destroy = destroy;
  class_b = class_a;
  class_b.name = "b";
  classes[0] = &class_a;
  classes[1] = &class_b;
  plugin.size = sizeof plugin;
  plugin.abi_major = TROUPE_ABI_MAJOR;
  plugin.name = "broken";
  plugin.version = "1";
  plugin.classes = classes;
  plugin.class_count = 2;
  *out = &plugin;
  if (how == NULL) return TROUPE_OK;
  if (strcmp(how, "refuse") == 0) return TROUPE_UNAVAILABLE;
  if (strcmp(how, "null_table") == 0) *out = NULL;
  if (strcmp(how, "small_table") == 0) plugin.size = 24;
  if (strcmp(how, "no_name") == 0) plugin.name = NULL;
  if (strcmp(how, "null_classes") == 0) plugin.classes = NULL;
  if (strcmp(how, "null_class") == 0) classes[1] = NULL;
  if (strcmp(how, "small_class") == 0) class_b.size = 40;
  if (strcmp(how, "nameless_class") == 0) class_b.name = "";
  if (strcmp(how, "no_call") == 0) class_b.call = NULL;
  if (strcmp(how, "twins") == 0) class_b.name = "a";
  return TROUPE_OK;
}
