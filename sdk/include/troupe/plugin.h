/* The C ABI between troupe-actor (the host) and a module: a plugin, or user code built with the
 * SDK.
 *
 * A module is a shared object that exports one symbol, troupe_plugin_query. It offers actor
 * classes. Every process hosts one module; every function of one instance is called on one thread
 * (the actor thread), never two at a time.
 *
 * Rules for both sides:
 *   - C types only; no exception and no C++ object crosses. Who allocates frees.
 *   - Every struct starts with its size; new fields go last. A field beyond the other side's size,
 * or a null function, means that the other side does not have the feature.
 *   - The major version must match; the lower minor wins.
 *   - Codes are those of troupe::Code: 0 is success. Messages go into the caller's buffer.
 */
#ifndef TROUPE_PLUGIN_H
#define TROUPE_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TROUPE_ABI_MAJOR 1u
#define TROUPE_ABI_MINOR 3u
#define TROUPE_QUERY_SYMBOL "troupe_plugin_query"

/* Bytes that the giver keeps; valid only as long as the function that passes them says. */
typedef struct troupe_bytes {
  const uint8_t* data;
  size_t size;
} troupe_bytes;

/* The caller's room for a message: at most `capacity` bytes are written, `size` says how many were.
 * Not terminated. A longer message is cut. */
typedef struct troupe_text {
  char* data;
  size_t capacity;
  size_t size;
} troupe_text;

enum {
  TROUPE_OK = 0,
  TROUPE_UNAVAILABLE = 1,
  TROUPE_DEADLINE_EXCEEDED = 2,
  TROUPE_EXHAUSTED = 3,
  TROUPE_INVALID = 4,
  TROUPE_NOT_FOUND = 5,
  TROUPE_CONFLICT = 6,
  TROUPE_DENIED = 7,
  TROUPE_UNIMPLEMENTED = 8,
  TROUPE_CANCELLED = 9,
  TROUPE_OUTCOME_UNKNOWN = 10,
  TROUPE_DATA_LOSS = 11,
  TROUPE_INTERNAL = 12
};

enum { TROUPE_LOG_DEBUG = 0, TROUPE_LOG_INFO = 1, TROUPE_LOG_WARNING = 2, TROUPE_LOG_ERROR = 3 };

/* Opaque to the module. */
typedef struct troupe_context
    troupe_context;                       /* The actor that an instance is; lives until destroy. */
typedef struct troupe_call troupe_call;   /* A call that must be finished exactly once. */
typedef struct troupe_group troupe_group; /* A member of a collective group. */

/* Who an instance is. Valid until destroy. */
typedef struct troupe_actor_info {
  size_t size;
  const char* actor_id; /* 32 hexadecimal digits; empty for a task slot. */
  const char* job_id;   /* 32 hexadecimal digits. */
  const char* name;     /* Empty if it has none. */
  const char* node_name;
  uint32_t incarnation; /* From 1; grows by one with each restart. */
} troupe_actor_info;

/* A collective group: `world` actors that all join under the same name and generation. */
typedef struct troupe_group_spec {
  size_t size;
  const char* name;
  uint64_t generation; /* Grows when the group is formed anew; older members are refused. */
  uint32_t rank;       /* 0 .. world - 1. */
  uint32_t world;
  const char* const* member_ids; /* world actor ids in the order of ranks. */
  uint64_t timeout_us;           /* Bounds joining and each operation. */
} troupe_group_spec;

/* What the host offers. Lives as long as the process. Thread-safe unless said otherwise. */
typedef struct troupe_host {
  size_t size;
  uint32_t abi_major;
  uint32_t abi_minor;

  /* event: a snake_case name. fields: "key=value key=value", or null. */
  void (*log)(troupe_context* context, int32_t level, const char* event, const char* fields);
  /* Sets a gauge of this actor, which `troupe describe` shows a moment later; at most 256 names of
   * up to 64 bytes. name: [a-z_]+ with its unit, e.g. queue_depth. */
  void (*metric_set)(troupe_context* context, const char* name, double value);
  const troupe_actor_info* (*actor_info)(troupe_context* context);

  /* Finish a call. The bytes are copied before return. Afterwards `call` is invalid. A call to an
   * actor class's `call` that was not finished when the instance is destroyed fails with cancelled.
   */
  void (*call_reply)(troupe_call* call, troupe_bytes value);
  void (*call_fail)(troupe_call* call, int32_t code, const char* message);
  /* Sends one item of a streaming call; copied. TROUPE_CANCELLED: the caller is gone, finish soon.
   * TROUPE_DEADLINE_EXCEEDED: the call is past its time limit.
   * TROUPE_INVALID: the caller asked for a single reply. Never blocks: items queue up to a bound,
   * then TROUPE_EXHAUSTED (retry in a later step). */
  int32_t (*call_emit)(troupe_call* call, troupe_bytes item);
  /* 1 once the caller gave up or is gone, or (since 1.2) the call is past its time limit: it should
   * end soon, and must still be finished. */
  int32_t (*call_cancelled)(const troupe_call* call);
  /* 1 if the caller takes a stream of items. */
  int32_t (*call_streams)(const troupe_call* call);

  /* Object store. Actor thread only; may block. id: 16 bytes. put copies; the object lives until
   * the process ends. get gives a view that lives until object_release with the same id. */
  int32_t (*object_put)(troupe_context* context, troupe_bytes value, uint8_t* id,
                        troupe_text* message);
  int32_t (*object_get)(troupe_context* context, const uint8_t* id, troupe_bytes* value,
                        troupe_text* message);
  void (*object_release)(troupe_context* context, const uint8_t* id);

  /* Calls a method of another actor and waits for the reply, at most timeout_us. Actor thread only.
   * The reply's bytes live until the next actor_call of this instance. */
  int32_t (*actor_call)(troupe_context* context, const char* actor_id, const char* method,
                        const troupe_bytes* arguments, size_t argument_count, uint64_t timeout_us,
                        troupe_bytes* reply, troupe_text* message);

  /* Collectives between the members of a group, over the cluster's authenticated channels. Each
   * blocks the actor thread until all members have called it in the same order, or the group's
   * timeout, or a member's death (TROUPE_UNAVAILABLE), or the actor is asked to stop
   * (TROUPE_CANCELLED). After a failure the group is useless: leave it and join a new generation.
   * all_reduce_f32: data[i] becomes the sum over ranks; the same bits on every rank. */
  int32_t (*group_join)(troupe_context* context, const troupe_group_spec* spec,
                        troupe_group** group, troupe_text* message);
  int32_t (*group_all_reduce_f32)(troupe_group* group, float* data, size_t count,
                                  troupe_text* message);
  int32_t (*group_broadcast)(troupe_group* group, uint32_t root, void* data, size_t size_bytes,
                             troupe_text* message);
  int32_t (*group_barrier)(troupe_group* group, troupe_text* message);
  void (*group_leave)(troupe_group* group);

  /* 1 once the actor was asked to stop: long work in call() or step() should return. */
  int32_t (*stopping)(troupe_context* context);

  /* --- Since 1.1. */
  /* The actor whose code this thread runs (create, call, step, destroy, or what defer was given);
   * null on any other thread. */
  troupe_context* (*current)(void);
  /* Has an actor thread call run(argument), once, between its calls and before those that wait. Any
   * thread. TROUPE_UNAVAILABLE: the actor stops, and run will not be called. */
  int32_t (*defer)(troupe_context* context, void (*run)(void* argument), void* argument);

  /* --- Since 1.2. */
  /* Has run(argument, why) called whenever the call is told to end, at once if it was (why: bits of
   * TROUPE_STOP_...), and last, once, when it was finished (why: 0). On any thread, which it must
   * not block. Once a call. */
  void (*call_on_stop)(troupe_call* call, void (*run)(void* argument, uint32_t why),
                       void* argument);
  /* How many results the caller wants, each an object of its own; 0: one, by call_reply. */
  uint32_t (*call_results)(const troupe_call* call);
  /* As call_reply, with so many. TROUPE_INVALID: `count` is not what the caller wants; the call has
   * failed with that. */
  int32_t (*call_reply_many)(troupe_call* call, const troupe_bytes* values, size_t count);
  /* TROUPE_OK: call_emit has room for an item of this size, or the call should end.
   * TROUPE_EXHAUSTED: run(argument) is called once that is so, on any thread, which it must not
   * block. One at a time. */
  int32_t (*call_on_room)(troupe_call* call, size_t item_size, void (*run)(void* argument),
                          void* argument);
  /* Any thread. Keeps `context` valid for defer beyond the end of its actor, until as many
   * releases. */
  void (*context_retain)(troupe_context* context);
  void (*context_release)(troupe_context* context);

  /* --- Since 1.3. */
  /* Asks for a checkpoint behind the calls that wait, and does not wait for it; several wishes
   * before one begins are one. Any thread, while the instance lives. TROUPE_UNIMPLEMENTED: of this
   * actor none can be taken. */
  int32_t (*checkpoint_soon)(troupe_context* context);
} troupe_host;

enum {
  TROUPE_STOP_CANCELLED = 1,  /* The caller gave up or is gone. */
  TROUPE_STOP_TIME_LIMIT = 2, /* It ran past its time limit; its process is ended soon. */
  TROUPE_STOP_CHILDREN = 4    /* What it has submitted should end, too. */
};

enum {
  TROUPE_STEP_IDLE = 0, /* Nothing to do until the next call. */
  TROUPE_STEP_AGAIN = 1 /* More work waits: step again after the mailbox was looked at. */
};

/* What a step may use before it returns: a hint, not a limit that is enforced. */
typedef struct troupe_step_budget {
  size_t size;
  uint64_t time_us;
} troupe_step_budget;

/* A concurrency group: at most `limit` calls of these methods at once, beside those of others. */
typedef struct troupe_method_group {
  const char* name;
  uint32_t limit;
  const char* const* methods;
  size_t method_count;
} troupe_method_group;

typedef struct troupe_actor_class {
  size_t size;
  const char* name; /* Unique within the module. */

  /* Makes an instance from the arguments of the actor's creation (valid during the call). signature
   * is the hash of their types, 0 for opaque bytes. May block. On failure nothing is left behind.
   */
  int32_t (*create)(troupe_context* context, uint64_t signature, const troupe_bytes* arguments,
                    size_t argument_count, void** instance, troupe_text* message);
  /* Handles one call: finishes it now, or keeps `call` and finishes it in a later call or step. The
   * arguments and the method's name are valid only during the call. */
  void (*call)(void* instance, troupe_call* call, const char* method, uint64_t signature,
               const troupe_bytes* arguments, size_t argument_count);
  /* One piece of paced work (an engine's iteration, a trainer's micro-batch), run after calls until
   * it says TROUPE_STEP_IDLE. Null: the class has none. A negative value is a code with its sign
   * turned: the actor dies of it. */
  int32_t (*step)(void* instance, const troupe_step_budget* budget, troupe_text* message);

  /* Optional. pause: give back what others could use (GPU memory) at a safe point; resume: take it
   * again. The runtime does not call these two yet. */
  int32_t (*pause)(void* instance, troupe_text* message);
  int32_t (*resume)(void* instance, troupe_text* message);
  /* Optional, both or none; since 1.3 the runtime calls them. checkpoint: write the state into
   * `path`, an empty directory; what is in it goes to the head, and it is removed. Called on the
   * actor thread between two calls (or steps), when a caller asks (see TROUPE_CHECKPOINT_METHOD),
   * the actor itself (checkpoint_soon), its interval is over and something ran since the last, or
   * it moves because its node is drained: then nothing runs after it but exiting and destroy.
   * Calls that the instance keeps unfinished are not waited for; one that cannot save now returns
   * TROUPE_UNAVAILABLE. Not of an actor with several threads or with TROUPE_CLASS_COROUTINES.
   * restore: read it from `path`, which is read-only and removed some time later; called once,
   * right after create, when an actor that has a checkpoint is started again. If it fails the start
   * has failed, and destroy follows. At most 2 GiB and 100,000 files, directories and symbolic
   * links that stay inside. */
  int32_t (*checkpoint)(void* instance, const char* path, troupe_text* message);
  int32_t (*restore)(void* instance, const char* path, troupe_text* message);

  /* Never fails, called exactly once. */
  void (*destroy)(void* instance);

  /* --- Since 1.1. */
  uint32_t flags; /* TROUPE_CLASS_... */

  /* --- Since 1.2. Both may be null. */
  /* Methods with threads, or unfinished calls, of their own. Valid as long as the process. */
  const troupe_method_group* (*groups)(size_t* count);
  /* The actor was asked to stop: runs once, after its last call and before destroy. If it takes
   * longer than the actor's exit grace its process is killed. */
  void (*exiting)(void* instance);
} troupe_actor_class;

enum {
  /* Calls are kept and finished later by what defer was given (coroutines): the actor's concurrency
   * is how many may be unfinished, 1000 by default. Without it, it is how many threads may be in
   * `call` at once, 1 by default. */
  TROUPE_CLASS_COROUTINES = 1
};

typedef struct troupe_plugin {
  size_t size;
  uint32_t abi_major; /* TROUPE_ABI_MAJOR of the build. */
  uint32_t abi_minor;
  const char* name;
  const char* version;
  const troupe_actor_class* const* classes;
  size_t class_count;
} troupe_plugin;

/* The one exported symbol. The host looks at the first three fields of *plugin before any other.
 * Both tables live as long as the process. */
int32_t troupe_plugin_query(const troupe_host* host, const troupe_plugin** plugin);
typedef int32_t (*troupe_plugin_query_function)(const troupe_host* host,
                                                const troupe_plugin** plugin);

/* The method that takes a checkpoint, of every actor: without arguments, answered once the state is
 * durable. */
#define TROUPE_CHECKPOINT_METHOD "troupe.checkpoint"

/* The class whose methods are a module's tasks. */
#define TROUPE_TASKS_CLASS "troupe.tasks"

/* The module of the SDK's own actor classes, which every host has in it. */
#define TROUPE_SDK_MODULE "troupe.sdk"

#ifdef __cplusplus
}
#endif
#endif
