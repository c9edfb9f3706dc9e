/* A plugin without any SDK whose class keeps some bytes, and writes them into a checkpoint. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <troupe/plugin.h>

static const troupe_host* host;

typedef struct shelf {
  char bytes[64];
  size_t size;
} shelf;

static int32_t create(troupe_context* context, uint64_t signature, const troupe_bytes* arguments,
                      size_t argument_count, void** instance, troupe_text* message) {
  (void)context, (void)signature, (void)arguments, (void)argument_count, (void)message;
  *instance = calloc(1, sizeof(shelf));
  return *instance != NULL ? TROUPE_OK : TROUPE_EXHAUSTED;
}

static void call(void* instance, troupe_call* call, const char* method, uint64_t signature,
                 const troupe_bytes* arguments, size_t argument_count) {
  shelf* self = instance;
  (void)signature;
  if (strcmp(method, "die") == 0) abort();
  if (strcmp(method, "put") == 0 && argument_count == 1 &&
      arguments[0].size <= sizeof self->bytes) {
    memcpy(self->bytes, arguments[0].data, arguments[0].size);
    self->size = arguments[0].size;
  }
  troupe_bytes reply = {(const uint8_t*)self->bytes, self->size};
  host->call_reply(call, reply);
}

static FILE* open_in(const char* path, const char* mode) {
  char name[4096];
  snprintf(name, sizeof name, "%s/bytes", path);
  return fopen(name, mode);
}

static int32_t checkpoint(void* instance, const char* path, troupe_text* message) {
  const shelf* self = instance;
  (void)message;
  FILE* file = open_in(path, "wb");
  if (file == NULL) return TROUPE_INTERNAL;
  const size_t written = fwrite(self->bytes, 1, self->size, file);
  return fclose(file) == 0 && written == self->size ? TROUPE_OK : TROUPE_EXHAUSTED;
}

static int32_t restore(void* instance, const char* path, troupe_text* message) {
  shelf* self = instance;
  (void)message;
  FILE* file = open_in(path, "rb");
  if (file == NULL) return TROUPE_NOT_FOUND;
  self->size = fread(self->bytes, 1, sizeof self->bytes, file);
  fclose(file);
  return TROUPE_OK;
}

static void destroy(void* instance) {
  free(instance);
}

static const troupe_actor_class shelf_class = {
    .size = sizeof(troupe_actor_class),
    .name = "shelf",
    .create = create,
    .call = call,
    .checkpoint = checkpoint,
    .restore = restore,
    .destroy = destroy,
};
static const troupe_actor_class* const classes[] = {&shelf_class};
static const troupe_plugin plugin = {
    .size = sizeof(troupe_plugin),
    .abi_major = TROUPE_ABI_MAJOR,
    .abi_minor = TROUPE_ABI_MINOR,
    .name = "shelf",
    .version = "1.0",
    .classes = classes,
    .class_count = 1,
};

__attribute__((visibility("default"))) int32_t troupe_plugin_query(const troupe_host* given,
                                                                   const troupe_plugin** out) {
  host = given;
  *out = &plugin;
  return TROUPE_OK;
}
