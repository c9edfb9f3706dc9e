// A thin C++ layer over plugin.h, for authors of plugins: a class becomes an actor class.
//
//   class Engine {
//    public:
//     static Result<std::unique_ptr<Engine>> create(plugin::Context context,
//                                                   std::span<const BytesView> arguments);
//     void call(plugin::Call call, std::string_view method, std::span<const BytesView> arguments);
//     Result<bool> step(std::chrono::microseconds budget);   // Optional. true: more work waits.
//     Status pause(); Status resume();                        // Optional, both.
//     Status checkpoint(const std::string& path); Status restore(const std::string& path);  //
//     Optional.
//   };
//   TROUPE_PLUGIN("inference", "0.1.0", troupe::plugin::class_table<Engine>("engine"))
//
// Exceptions are caught at the border; a std::bad_alloc becomes `exhausted`.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"
#include "troupe/plugin.h"

namespace troupe::plugin {

namespace detail {

inline const troupe_host* host = nullptr;  // Set by the query; one host a process.

struct Message {
  char text[2048];
  troupe_text out{text, sizeof text, 0};
  Error error(int32_t code) const {
    return Error{code_from_number(static_cast<uint32_t>(code)), std::string(text, out.size)};
  }
};

inline int32_t put(const Error& failure, troupe_text* message) {
  if (message != nullptr) {
    message->size = std::min(message->capacity, failure.message().size());
    std::memcpy(message->data, failure.message().data(), message->size);
  }
  return static_cast<int32_t>(failure.code());
}

// Runs what returns a Status and lets nothing escape.
template <class Function>
int32_t guarded(troupe_text* message, Function function) noexcept {
  try {
    const Status outcome = function();
    return outcome ? TROUPE_OK : put(outcome.error(), message);
  } catch (const Error& thrown) {
    return put(thrown, message);
  } catch (const std::bad_alloc&) {
    return put(Error{Code::exhausted, "out of memory"}, message);
  } catch (const std::exception& thrown) {
    return put(Error{Code::internal, thrown.what()}, message);
  } catch (...) {
    return put(Error{Code::internal, "an exception of unknown type"}, message);
  }
}

}  // namespace detail

// A member of a collective group. Leaves it when destroyed. Actor thread only; each operation
// blocks.
class Group {
 public:
  Group() = default;
  explicit Group(troupe_group* group) : group_(group) {}
  Group(Group&& other) noexcept : group_(std::exchange(other.group_, nullptr)) {}
  Group& operator=(Group&& other) noexcept {
    std::swap(group_, other.group_);
    return *this;
  }
  ~Group() {
    if (group_ != nullptr) detail::host->group_leave(group_);
  }

  // data[i] becomes the sum over all ranks, the same bits on each.
  // Errors: unavailable (a member died), deadline_exceeded, cancelled. The group is useless after
  // one.
  Status all_reduce(std::span<float> data) {
    detail::Message message;
    const int32_t code =
        detail::host->group_all_reduce_f32(group_, data.data(), data.size(), &message.out);
    if (code != TROUPE_OK) return message.error(code);
    return ok();
  }
  Status broadcast(uint32_t root, void* data, size_t size_bytes) {
    detail::Message message;
    const int32_t code =
        detail::host->group_broadcast(group_, root, data, size_bytes, &message.out);
    if (code != TROUPE_OK) return message.error(code);
    return ok();
  }
  Status barrier() {
    detail::Message message;
    const int32_t code = detail::host->group_barrier(group_, &message.out);
    if (code != TROUPE_OK) return message.error(code);
    return ok();
  }

 private:
  troupe_group* group_ = nullptr;
};

struct GroupSpec {
  std::string name;
  uint64_t generation = 1;
  uint32_t rank = 0;
  std::vector<std::string> members;  // Actor ids, in the order of ranks.
  std::chrono::microseconds timeout = std::chrono::minutes(2);
};

// What an instance knows of itself and may ask of its host. Copies are the same context.
class Context {
 public:
  explicit Context(troupe_context* context) : context_(context) {}

  const troupe_actor_info& info() const { return *detail::host->actor_info(context_); }
  void log(int32_t level, const char* event, const std::string& fields = {}) const {
    detail::host->log(context_, level, event, fields.empty() ? nullptr : fields.c_str());
  }
  void metric(const char* name, double value) const {
    detail::host->metric_set(context_, name, value);
  }
  // The actor was asked to stop: return soon.
  bool stopping() const { return detail::host->stopping(context_) != 0; }

  // Blocks until all members have joined. Errors: unavailable, deadline_exceeded, conflict (an
  // older generation), cancelled.
  Result<Group> join(const GroupSpec& spec) const {
    std::vector<const char*> members;
    for (const std::string& id : spec.members) members.push_back(id.c_str());
    troupe_group_spec raw{};
    raw.size = sizeof raw;
    raw.name = spec.name.c_str();
    raw.generation = spec.generation;
    raw.rank = spec.rank;
    raw.world = static_cast<uint32_t>(members.size());
    raw.member_ids = members.data();
    raw.timeout_us = static_cast<uint64_t>(spec.timeout.count());
    troupe_group* group = nullptr;
    detail::Message message;
    const int32_t code = detail::host->group_join(context_, &raw, &group, &message.out);
    if (code != TROUPE_OK) return message.error(code);
    return Group{group};
  }

 private:
  troupe_context* context_;
};

// A call to be finished exactly once, now or later, by reply() or fail(). Moving it moves that
// duty; one that is dropped unfinished fails as internal.
class Call {
 public:
  explicit Call(troupe_call* call) : call_(call) {}
  Call(Call&& other) noexcept : call_(std::exchange(other.call_, nullptr)) {}
  Call& operator=(Call&& other) noexcept {
    std::swap(call_, other.call_);
    return *this;
  }
  ~Call() {
    if (call_ != nullptr) fail(Error{Code::internal, "the plugin dropped the call"});
  }

  void reply(BytesView value) {
    detail::host->call_reply(std::exchange(call_, nullptr), {value.data(), value.size()});
  }
  void reply(std::string_view value) { reply(as_bytes(value)); }
  void fail(const Error& failure) {
    detail::host->call_fail(std::exchange(call_, nullptr), static_cast<int32_t>(failure.code()),
                            failure.message().c_str());
  }
  // One item of a stream. cancelled: the caller is gone. exhausted: it does not keep up, retry in a
  // later step. invalid: it wants a single reply.
  Code emit(std::string_view item) {
    const BytesView bytes = as_bytes(item);
    return code_from_number(
        static_cast<uint32_t>(detail::host->call_emit(call_, {bytes.data(), bytes.size()})));
  }
  bool cancelled() const { return detail::host->call_cancelled(call_) != 0; }
  bool streams() const { return detail::host->call_streams(call_) != 0; }

 private:
  troupe_call* call_;
};

template <class A>
struct ClassThunks {
  static std::vector<BytesView> views(const troupe_bytes* arguments, size_t count) {
    std::vector<BytesView> out;
    out.reserve(count);
    for (size_t i = 0; i < count; ++i) out.emplace_back(arguments[i].data, arguments[i].size);
    return out;
  }

  static int32_t create(troupe_context* context, uint64_t, const troupe_bytes* arguments,
                        size_t count, void** instance, troupe_text* message) {
    return detail::guarded(message, [&]() -> Status {
      const auto values = views(arguments, count);
      TROUPE_TRY(auto made, A::create(Context{context}, std::span<const BytesView>{values}));
      *instance = made.release();
      return ok();
    });
  }
  static void call(void* instance, troupe_call* raw, const char* method, uint64_t,
                   const troupe_bytes* arguments, size_t count) {
    // What throws while it owns the call fails it by the destructor.
    (void)detail::guarded(nullptr, [&]() -> Status {
      const auto values = views(arguments, count);
      static_cast<A*>(instance)->call(Call{raw}, method, std::span<const BytesView>{values});
      return ok();
    });
  }
  static int32_t step(void* instance, const troupe_step_budget* budget, troupe_text* message) {
    bool again = false;
    const int32_t code = detail::guarded(message, [&]() -> Status {
      TROUPE_TRY(again,
                 static_cast<A*>(instance)->step(std::chrono::microseconds(budget->time_us)));
      return ok();
    });
    if (code != TROUPE_OK) return -code;
    return again ? TROUPE_STEP_AGAIN : TROUPE_STEP_IDLE;
  }
  static int32_t pause(void* instance, troupe_text* message) {
    return detail::guarded(message, [&] { return static_cast<A*>(instance)->pause(); });
  }
  static int32_t resume(void* instance, troupe_text* message) {
    return detail::guarded(message, [&] { return static_cast<A*>(instance)->resume(); });
  }
  static int32_t checkpoint(void* instance, const char* path, troupe_text* message) {
    return detail::guarded(message, [&] { return static_cast<A*>(instance)->checkpoint(path); });
  }
  static int32_t restore(void* instance, const char* path, troupe_text* message) {
    return detail::guarded(message, [&] { return static_cast<A*>(instance)->restore(path); });
  }
  static void exiting(void* instance) {
    (void)detail::guarded(nullptr, [&]() -> Status {
      static_cast<A*>(instance)->on_exit();
      return ok();
    });
  }
  static void destroy(void* instance) { delete static_cast<A*>(instance); }
};

// The table of a class; lives as long as the process.
template <class A>
const troupe_actor_class* class_table(const char* name) {
  using Thunks = ClassThunks<A>;
  static const troupe_actor_class table = [name] {
    troupe_actor_class made{};
    made.size = sizeof made;
    made.name = name;
    made.create = &Thunks::create;
    made.call = &Thunks::call;
    made.destroy = &Thunks::destroy;
    if constexpr (requires(A& a) { a.step(std::chrono::microseconds{}); })
      made.step = &Thunks::step;
    if constexpr (requires(A& a) { a.pause(), a.resume(); }) {
      made.pause = &Thunks::pause;
      made.resume = &Thunks::resume;
    }
    if constexpr (requires(A& a) { a.checkpoint(std::string{}); }) {
      made.checkpoint = &Thunks::checkpoint;
    }
    if constexpr (requires(A& a) { a.restore(std::string{}); }) made.restore = &Thunks::restore;
    if constexpr (requires(A& a) { a.on_exit(); }) made.exiting = &Thunks::exiting;
    return made;
  }();
  return &table;
}

}  // namespace troupe::plugin

// Defines the module's one exported symbol. The further arguments are its class tables.
#define TROUPE_PLUGIN(plugin_name, plugin_version, ...)                          \
  extern "C" __attribute__((visibility("default"))) int32_t troupe_plugin_query( \
      const troupe_host* host, const troupe_plugin** plugin) {                   \
    if (host == nullptr || plugin == nullptr) return TROUPE_INVALID;             \
    ::troupe::plugin::detail::host = host;                                       \
    static const troupe_actor_class* const classes[] = {__VA_ARGS__};            \
    static const troupe_plugin table = {sizeof(troupe_plugin),                   \
                                        TROUPE_ABI_MAJOR,                        \
                                        TROUPE_ABI_MINOR,                        \
                                        plugin_name,                             \
                                        plugin_version,                          \
                                        classes,                                 \
                                        sizeof classes / sizeof *classes};       \
    *plugin = &table;                                                            \
    return TROUPE_OK;                                                            \
  }
