/* Classes that do what the tests ask of them, by the name of the method. */
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <troupe/plugin.h>

static const troupe_host* host;

typedef struct echo {
  troupe_context* context;
  uint64_t counter;
  troupe_call* kept;   /* Finished by the next call of "finish_kept". */
  troupe_call* stream; /* Gets `left` items from steps. */
  uint64_t left;
  uint64_t steps_left; /* Of "work". */
  pthread_t late_thread;
  int late_started;
} echo;

static void put_text(troupe_text* out, const char* text) {
  size_t size = strlen(text);
  if (size > out->capacity) size = out->capacity;
  memcpy(out->data, text, size);
  out->size = size;
}

static void reply_number(troupe_call* call, uint64_t number) {
  troupe_bytes bytes = {(const uint8_t*)&number, sizeof number};
  host->call_reply(call, bytes);
}

static int32_t create(troupe_context* context, uint64_t signature, const troupe_bytes* arguments,
                      size_t count, void** instance, troupe_text* message) {
  (void)signature;
  if (count == 1 && arguments[0].size == 4 && memcmp(arguments[0].data, "fail", 4) == 0) {
    put_text(message, "told to fail");
    return TROUPE_CONFLICT;
  }
  echo* self = calloc(1, sizeof *self);
  self->context = context;
  if (count == 1 && arguments[0].size == sizeof self->counter) {
    memcpy(&self->counter, arguments[0].data, sizeof self->counter);
  }
  *instance = self;
  return TROUPE_OK;
}

static void* finish_late(void* call) {
  reply_number(call, 77);
  return NULL;
}

static void call(void* instance, troupe_call* call, const char* method, uint64_t signature,
                 const troupe_bytes* arguments, size_t count) {
  echo* self = instance;
  (void)signature;
  if (strcmp(method, "echo") == 0) {
    troupe_bytes none = {NULL, 0};
    host->call_reply(call, count > 0 ? arguments[0] : none);
  } else if (strcmp(method, "increment") == 0) {
    reply_number(call, ++self->counter);
  } else if (strcmp(method, "append") == 0) {
    /* Order shows in the result: counter = counter * 10 + digit. */
    self->counter = self->counter * 10 + arguments[0].data[0];
    reply_number(call, self->counter);
  } else if (strcmp(method, "keep") == 0) {
    self->kept = call;
  } else if (strcmp(method, "finish_kept") == 0) {
    reply_number(self->kept, 5);
    reply_number(call, 6);
  } else if (strcmp(method, "finish_twice") == 0) {
    reply_number(call, 1);
    reply_number(call, 2);
    host->call_fail(call, TROUPE_INTERNAL, "third");
  } else if (strcmp(method, "late") == 0) {
    self->late_started = pthread_create(&self->late_thread, NULL, finish_late, call) == 0;
  } else if (strcmp(method, "emit") == 0) {
    self->stream = call;
    memcpy(&self->left, arguments[0].data, sizeof self->left);
  } else if (strcmp(method, "emit_until_full") == 0) {
    uint64_t accepted = 0;
    int32_t code;
    while ((code = host->call_emit(call, arguments[0])) == TROUPE_OK) ++accepted;
    if (code == TROUPE_EXHAUSTED) {
      reply_number(call, accepted);
    } else {
      host->call_fail(call, code, "emit");
    }
  } else if (strcmp(method, "slow") == 0) { /* For so many ms. */
    poll(NULL, 0, (int)*(const uint64_t*)arguments[0].data);
    reply_number(call, 0);
  } else if (strcmp(method, "until_stop") == 0) {
    while (!host->stopping(self->context)) {
    }
    host->call_fail(call, TROUPE_CANCELLED, "saw the stop");
  } else if (strcmp(method, "until_cancelled") == 0) {
    while (!host->call_cancelled(call)) {
    }
    host->call_fail(call, TROUPE_CANCELLED, "saw the caller go");
  } else if (strcmp(method, "work") == 0) {
    memcpy(&self->steps_left, arguments[0].data, sizeof self->steps_left);
    reply_number(call, self->steps_left);
  } else if (strcmp(method, "steps_left") == 0) {
    reply_number(call, self->steps_left);
  } else if (strcmp(method, "name") == 0) {
    const troupe_actor_info* info = host->actor_info(self->context);
    troupe_bytes name = {(const uint8_t*)info->name, strlen(info->name)};
    host->metric_set(self->context, "queue_depth", 3.5);
    host->log(self->context, TROUPE_LOG_DEBUG, "asked_for_name", "by=test");
    host->call_reply(call, name);
  } else if (strcmp(method, "put_get") == 0) {
    uint8_t id[16];
    char text[128];
    troupe_text message = {text, sizeof text, 0};
    troupe_bytes value;
    int32_t code = host->object_put(self->context, arguments[0], id, &message);
    if (code == TROUPE_OK) code = host->object_get(self->context, id, &value, &message);
    if (code == TROUPE_OK) {
      host->call_reply(call, value);
      host->object_release(self->context, id);
    } else {
      text[message.size < sizeof text ? message.size : sizeof text - 1] = '\0';
      host->call_fail(call, code, text);
    }
  } else if (strcmp(method, "wish") == 0) {
    reply_number(call, (uint64_t)host->checkpoint_soon(self->context));
  } else if (strcmp(method, "die") == 0) {
    self->kept = call;
    self->steps_left = UINT64_MAX;
  } else {
    host->call_fail(call, TROUPE_NOT_FOUND, "no such method");
  }
}

static int32_t step(void* instance, const troupe_step_budget* budget, troupe_text* message) {
  echo* self = instance;
  (void)budget;
  if (self->steps_left == UINT64_MAX) {
    put_text(message, "told to die");
    return -TROUPE_DATA_LOSS;
  }
  if (self->steps_left > 0) --self->steps_left;
  if (self->stream != NULL) {
    while (self->left > 0) {
      troupe_bytes item = {(const uint8_t*)&self->left, sizeof self->left};
      int32_t code = host->call_emit(self->stream, item);
      if (code == TROUPE_EXHAUSTED) return TROUPE_STEP_AGAIN;
      if (code != TROUPE_OK) {
        host->call_fail(self->stream, code, "the stream ended early");
        self->stream = NULL;
        return TROUPE_STEP_IDLE;
      }
      --self->left;
    }
    troupe_bytes none = {NULL, 0};
    host->call_reply(self->stream, none);
    self->stream = NULL;
  }
  return self->steps_left > 0 ? TROUPE_STEP_AGAIN : TROUPE_STEP_IDLE;
}

/* The counter is the state; of some it cannot be kept, or brought back. */
static const uint64_t not_kept = 666;
static const uint64_t not_restored = 667;

static FILE* open_state(const char* path, const char* mode) {
  char name[1024];
  snprintf(name, sizeof name, "%s/counter", path);
  return fopen(name, mode);
}

static int32_t checkpoint(void* instance, const char* path, troupe_text* message) {
  const echo* self = instance;
  FILE* file = open_state(path, "wb");
  const size_t written = fwrite(&self->counter, sizeof self->counter, 1, file);
  fclose(file);
  if (written == 1 && self->counter != not_kept) return TROUPE_OK;
  put_text(message, "told not to keep it");
  return TROUPE_CONFLICT;
}

static int32_t restore(void* instance, const char* path, troupe_text* message) {
  echo* self = instance;
  FILE* file = open_state(path, "rb");
  const size_t read = fread(&self->counter, sizeof self->counter, 1, file);
  fclose(file);
  if (read == 1 && self->counter != not_restored) return TROUPE_OK;
  put_text(message, "told not to restore it");
  return TROUPE_INVALID;
}

static void destroy(void* instance) {
  echo* self = instance;
  if (self->late_started) pthread_join(self->late_thread, NULL);
  free(self);
}

static const troupe_actor_class echo_class = {
    .size = sizeof(troupe_actor_class),
    .name = "echo",
    .create = create,
    .call = call,
    .step = step,
    .checkpoint = checkpoint,
    .restore = restore,
    .destroy = destroy,
};
/* Without steps. */
static const troupe_actor_class quiet_class = {
    .size = sizeof(troupe_actor_class),
    .name = "quiet",
    .create = create,
    .call = call,
    .checkpoint = checkpoint,
    .restore = restore,
    .destroy = destroy,
};
static const troupe_actor_class tasks_class = {
    .size = sizeof(troupe_actor_class),
    .name = TROUPE_TASKS_CLASS,
    .create = create,
    .call = call,
    .destroy = destroy,
};
static const troupe_actor_class* const classes[] = {&echo_class, &tasks_class, &quiet_class};
static const troupe_plugin plugin = {
    .size = sizeof(troupe_plugin),
    .abi_major = TROUPE_ABI_MAJOR,
    .abi_minor = TROUPE_ABI_MINOR,
    .name = "echo",
    .version = "1.0",
    .classes = classes,
    .class_count = 3,
};

int32_t troupe_plugin_query(const troupe_host* given, const troupe_plugin** out) {
  host = given;
  *out = &plugin;
  return TROUPE_OK;
}
