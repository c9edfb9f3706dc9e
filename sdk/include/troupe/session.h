// A program's connection to a cluster.
#pragma once

#include <concepts>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "troupe/explain.h"
#include "troupe/module.h"
#include "troupe/placement.h"
#include "troupe/signal.h"

namespace troupe {

struct TaskOptions {
  std::string name = {};  // In errors, logs and lists; empty: the function's.
  Resources resources = {};
  int priority = 0;  // Higher first.
  // How often it may run again (-1: no limit) when its process died, or when it failed with one of
  // `retry_on`. The pause before it is retry_delay, then twice as long each time, at most 10 s.
  // So often, apart from that, it may also run again to make a large result that was lost with its
  // node; its arguments are made again first where they are gone.
  int retries = 0;
  Placement placement = {};
  std::vector<Code> retry_on = {};
  std::chrono::nanoseconds retry_delay = std::chrono::milliseconds(10);
  // Of all of it, from now on: then its ref fails with deadline_exceeded and it is cancelled.
  std::chrono::nanoseconds timeout = no_timeout;
  // Of one run (0: none). At the limit should_stop() turns true in it; if it has not ended
  // time_limit_grace later, its process is ended and its ref fails with deadline_exceeded.
  std::chrono::nanoseconds time_limit{};
  std::chrono::nanoseconds time_limit_grace = std::chrono::seconds(1);
  uint32_t returns = 1;               // Of submit_many of a task that gives a vector: how many.
  uint32_t generator_items_max = 64;  // Of stream(): how many items may be unread; at least 1.
  bool operator==(const TaskOptions&) const = default;
};

// What becomes of a call that finds its actor's mailbox full (see ActorOptions::mailbox_calls_max).
enum class WhenFull : uint8_t {
  fail,  // Its ref fails with exhausted.
  // It is sent again, with pauses, until there is room or its timeout is over: once, and without
  // holding up the caller. This process's later calls to the actor wait behind it; those that were
  // under way already may run before it. To keep the order, and to hold the caller back, see
  // ActorRef::limited.
  wait,
};

// Of one call of an actor's method; see TaskOptions.
struct CallOptions {
  std::string name = {};
  std::optional<int> retries = {};  // Unset: the actor's max_call_retries.
  std::vector<Code> retry_on = {};
  std::chrono::nanoseconds retry_delay = std::chrono::milliseconds(10);
  std::chrono::nanoseconds timeout = no_timeout;
  uint32_t returns = 1;
  uint32_t generator_items_max = 64;
  WhenFull when_full = WhenFull::fail;
};

struct CancelOptions {
  // A task that runs ends at once, with its process (and with it what it has submitted); otherwise
  // it is told to stop (should_stop()), and its process is ended 200 ms later if it does not. Other
  // tasks that were sent to the process run elsewhere. Not of an actor's calls.
  bool force = false;
  bool children = true;  // What it has submitted, and so on, is cancelled, too.
};

enum class ActorProcess : uint8_t {
  own,
  // In one process with others of its job, module, environment and placement group: a light actor,
  // of which one machine holds many thousands. It shares their global variables, memory and fate:
  // when one ends the process, the others restart or die with it. Not for actors with a GPU and not
  // for plugins.
  shared,
};

struct ActorOptions {
  Resources resources{.cpu = 0};
  std::string name;            // Unique in the namespace; empty: none.
  bool get_if_exists = false;  // With a name: the existing actor instead of a conflict.
  bool detached = false;       // Lives on when its job ends.
  int max_restarts = 0;        // -1: no limit.
  int max_call_retries = 0;    // Default of CallOptions::retries, for refs that this one made.
  // Of an actor with coroutine methods: how many calls may be unfinished (0: 1000). Of any other:
  // how many threads run its methods at once (0: 1); with several, calls may overtake each other.
  uint32_t max_concurrency = 0;
  int priority = 0;
  bool spread = false;  // Prefer nodes with few actors.
  std::vector<std::pair<std::string, std::string>> environment;
  Placement placement;
  ActorProcess process = ActorProcess::own;
  // A call may run before an earlier one of the same caller that still waits for its arguments.
  bool out_of_order = false;
  // Calls that wait beyond so many are refused (0: 1,048,576); CallOptions::when_full says what
  // becomes of them. See also ActorRef::limited, which holds the caller back.
  uint32_t mailbox_calls_max = 0;
  // Other limits than TROUPE_CONCURRENCY_GROUP gives: the group's name, the limit.
  std::vector<std::pair<std::string, uint32_t>> concurrency_groups;
  // How long its last call and its on_exit() may take when it is stopped, before its process is
  // killed; 0: the cluster's default.
  std::chrono::microseconds exit_grace{0};
  // How often its state is kept (see checkpoint.h), if something ran since the last time; at least
  // 10 ms. 0: only when somebody asks. With restarts left it goes on from the last one.
  std::chrono::microseconds checkpoint_interval{0};
  // For an actor that must never run twice at once: where no head is heard for so long its process
  // is killed, and it starts elsewhere only after that. At least three heartbeats (1.5 s by
  // default). 0: cut off, it runs on, refused by all who know the newer one. A machine that sleeps,
  // or whose clock stands still, does not count the time.
  std::chrono::microseconds isolation_limit{0};
};

struct WaitOptions {
  size_t count = 1;  // Return once this many are ready, and that many.
  std::chrono::nanoseconds timeout = no_timeout;
};

struct WaitResult {
  std::vector<size_t> ready;    // Positions in the refs given, ascending; at most options.count.
  std::vector<size_t> pending;  // All others, ready or not.
};

// A line that a process of the job has written.
struct LogLine {
  std::string name;  // Of its actor or, of tasks, of its program.
  std::string node;
  uint32_t pid = 0;
  std::string text;
  uint64_t lost = 0;  // Lines before this one that were left out, for they came too fast.
};

struct ConnectOptions {
  std::string state_folder;  // Empty: TROUPE_STATE, or ~/.troupe.
  std::string job_name;      // Empty: the program's name.
  // In which the names of actors, groups and queues of all processes of the job are looked up and
  // given, where no other is named. Empty: that of `troupe submit`, or "default".
  std::string name_space;
  // Of all processes of the job, on every node; an actor's own go first. At most 1000, and 128 KiB
  // together. TROUPE_... and CUDA_VISIBLE_DEVICES are refused; others, also those that the dynamic
  // linker reads (LD_LIBRARY_PATH, LD_PRELOAD), take the place of the worker's.
  std::vector<std::pair<std::string, std::string>> environment = {};
  // A directory that is sent to the nodes as it is now, and in which all processes of the job
  // start; read-only there. At most 512 MiB and 100,000 files, without ".git". Empty: none.
  std::string working_dir = {};
  // What the job's processes write to stdout and stderr goes to this program's stderr, with who
  // wrote it; equal lines of several processes are shown once, and then how often
  // (TROUPE_LOG_DEDUP=0: every one). TROUPE_LOG_TO_DRIVER=0 turns it off.
  bool log_to_driver = true;
  // Takes every line in the place of stderr, on a thread of the session's own, one at a time. The
  // processes' lines wait while it runs, and so does the end of the session.
  std::function<void(const LogLine&)> on_log = {};
};

// What a program learns of an actor.
struct ActorStatus {
  std::string state;  // pending, starting, alive, restarting, dead.
  std::string reason;
  uint32_t incarnation = 0;
  uint32_t pid = 0;
  std::string node;
};

namespace detail {

std::shared_ptr<RefHandle> submit_task(const std::shared_ptr<SessionImpl>& session,
                                       const void* function, uint64_t signature,
                                       std::vector<ArgumentValue> arguments,
                                       const TaskOptions& options);
// The same of `count` results.
std::vector<std::shared_ptr<RefHandle>> submit_task_many(
    const std::shared_ptr<SessionImpl>& session, const void* function, uint64_t signature,
    std::vector<ArgumentValue> arguments, const TaskOptions& options, uint32_t count);
// One actor as this process calls it; found once, and shared by the copies of an ActorRef.
std::shared_ptr<client::ActorTarget> target_of(const std::shared_ptr<SessionImpl>& session,
                                               ActorId actor);
std::shared_ptr<RefHandle> submit_call(const std::shared_ptr<SessionImpl>& session,
                                       const std::shared_ptr<client::ActorTarget>& target,
                                       std::string_view method, uint64_t signature,
                                       std::vector<ArgumentValue> arguments,
                                       const CallOptions& options, int max_call_retries);
std::vector<std::shared_ptr<RefHandle>> submit_call_many(
    const std::shared_ptr<SessionImpl>& session, const std::shared_ptr<client::ActorTarget>& target,
    std::string_view method, uint64_t signature, std::vector<ArgumentValue> arguments,
    const CallOptions& options, int max_call_retries, uint32_t count);
Result<std::shared_ptr<RefHandle>> put(const std::shared_ptr<SessionImpl>& session, Writer value);
Result<ActorId> create_actor(const std::shared_ptr<SessionImpl>& session, std::string module,
                             std::string_view class_name, uint64_t signature,
                             std::vector<ArgumentValue> arguments, const ActorOptions& options);
// One an entry of `arguments`, all or none.
Result<std::vector<ActorId>> create_actors(const std::shared_ptr<SessionImpl>& session,
                                           std::string module, std::string_view class_name,
                                           uint64_t signature,
                                           std::vector<std::vector<ArgumentValue>> arguments,
                                           const ActorOptions& options);
Status kill_actors(const std::shared_ptr<SessionImpl>& session, std::vector<ActorId> actors);
Status wait_all_alive(const std::shared_ptr<SessionImpl>& session, std::vector<ActorId> actors,
                      std::chrono::nanoseconds timeout);
Result<ActorId> find_actor(const std::shared_ptr<SessionImpl>& session, std::string_view name,
                           std::string_view name_space);
Status kill_actor(const std::shared_ptr<SessionImpl>& session, ActorId actor);
Result<CheckpointInfo> checkpoint_actor(const std::shared_ptr<SessionImpl>& session, ActorId actor,
                                        std::chrono::nanoseconds timeout);
// Whether an actor of the class can have such options. Errors: invalid.
template <class A>
Status check_checkpoints(const ActorOptions& options) {
  if (Checkpointable<A> || options.checkpoint_interval.count() == 0) return ok();
  return error(Code::invalid,
               "checkpoint_interval is for classes with save(CheckpointWriter&) and "
               "load(CheckpointReader&)");
}
Result<ActorStatus> actor_status(const std::shared_ptr<SessionImpl>& session, ActorId actor);
Status wait_alive(const std::shared_ptr<SessionImpl>& session, ActorId actor,
                  std::chrono::nanoseconds timeout);
// Refs as they lie in a program's vector: a wait that looks at few of many copies none.
struct RefList {
  const void* data = nullptr;
  size_t size = 0;
  const RefHandle* (*at)(const void* data, size_t index) = nullptr;
  const RefHandle* operator[](size_t index) const { return at(data, index); }
};
Result<WaitResult> wait(const std::shared_ptr<SessionImpl>& session, const RefList& refs,
                        const WaitOptions& options);
Status free_objects(const std::shared_ptr<SessionImpl>& session,
                    std::span<const RefHandle* const> refs);
// Room in the store of this node; goes back unless it is sealed.
struct Room {
  std::span<uint8_t> bytes;
  std::shared_ptr<client::LocalBlock> block;
};
Result<Room> take_room(const std::shared_ptr<SessionImpl>& session, size_t size_bytes);
// What was written there becomes an object.
std::shared_ptr<RefHandle> seal(const std::shared_ptr<SessionImpl>& session, Room room);
// Values above this are written straight into the store.
inline constexpr size_t put_inline_bytes_max = 64 << 10;
Status cancel(const std::shared_ptr<RefHandle>& ref, const CancelOptions& options);
size_t pending_calls(const std::shared_ptr<SessionImpl>& session);
Status drain(const std::shared_ptr<SessionImpl>& session, std::chrono::nanoseconds timeout);
uint64_t unread_failures(const std::shared_ptr<SessionImpl>& session);
// A generator's items, and the object that is ready once all were made.
struct StartedStream {
  std::unique_ptr<ItemStream> items;
  std::shared_ptr<RefHandle> call;
};
StartedStream stream_task(const std::shared_ptr<SessionImpl>& session, const void* function,
                          uint64_t signature, std::vector<ArgumentValue> arguments,
                          const TaskOptions& options);
StartedStream stream_method(const std::shared_ptr<SessionImpl>& session,
                            const std::shared_ptr<client::ActorTarget>& target,
                            std::string_view method, uint64_t signature,
                            std::vector<ArgumentValue> arguments, const CallOptions& options);
// Of a plugin's actor.
Result<std::unique_ptr<ItemStream>> stream_call(const std::shared_ptr<SessionImpl>& session,
                                                ActorId actor, std::string_view method,
                                                std::vector<Bytes> arguments);

}  // namespace detail

namespace detail {
template <class... Args>
constexpr bool starts_with_options = false;
template <class First, class... Rest>
constexpr bool starts_with_options<First, Rest...> =
    std::is_same_v<std::remove_cvref_t<First>, CallOptions>;
}  // namespace detail

template <class A>
class LimitedActor;
template <class A>
class ActorPool;

// A typed handle of an actor. Copies name the same actor; dropping it does not end the actor.
// Thread-safe. Calls from one process are run in the order in which they were made.
template <class A>
class ActorRef {
 public:
  ActorRef() = default;
  ActorRef(std::shared_ptr<detail::SessionImpl> session, ActorId id, int max_call_retries = 0)
      : session_(std::move(session)),
        id_(id),
        target_(detail::target_of(session_, id_)),
        max_call_retries_(max_call_retries) {}

  ActorId id() const { return id_; }
  int max_call_retries() const { return max_call_retries_; }

  // counter.call<&Counter::add>(3), or call<&Counter::add>(CallOptions{.retries = 2}, 3). Returns
  // at once; errors appear when the ref is read. A call runs once unless it may be retried.
  template <auto method, class... Args>
    requires(!detail::starts_with_options<Args...>)
  auto call(Args&&... arguments) const {
    static const CallOptions none;
    return call<method>(none, std::forward<Args>(arguments)...);
  }
  template <auto method, class... Args>
  auto call(const CallOptions& options, Args&&... arguments) const {
    using Traits = detail::FunctionTraits<decltype(method)>;
    static_assert(!detail::is_generator<typename Traits::Return>,
                  "a generator is called by stream()");
    auto values = encode<method>(std::forward<Args>(arguments)...);
    return ObjectRef<typename Traits::Value>{
        detail::submit_call(session_, target_, method_name<method>(), Traits::signature(),
                            std::move(values), options, max_call_retries_)};
  }
  // As Session::submit_many.
  template <auto method, class... Args>
  auto call_many(const CallOptions& options, Args&&... arguments) const {
    using Traits = detail::FunctionTraits<decltype(method)>;
    using Results = detail::Several<typename Traits::Value>;
    static_assert(Results::possible, "the method gives neither a tuple nor a vector");
    auto values = encode<method>(std::forward<Args>(arguments)...);
    return Results::refs(detail::submit_call_many(
        session_, target_, method_name<method>(), Traits::signature(), std::move(values), options,
        max_call_retries_, Results::count(options.returns)));
  }
  // Of a method that returns Generator<T>: Stream<T>. Such a call may be overtaken by later ones.
  template <auto method, class... Args>
  auto stream(const CallOptions& options, Args&&... arguments) const {
    using Traits = detail::FunctionTraits<decltype(method)>;
    static_assert(detail::is_generator<typename Traits::Return>, "the method is no generator");
    auto started =
        detail::stream_method(session_, target_, method_name<method>(), Traits::signature(),
                              encode<method>(std::forward<Args>(arguments)...), options);
    return Stream<typename detail::ItemOf<typename Traits::Return>::type>{std::move(started.items),
                                                                          std::move(started.call)};
  }
  // A handle of which at most `calls_max` calls are unfinished: the next one waits. See
  // limited_actor.h.
  LimitedActor<A> limited(uint32_t calls_max) const;
  Status kill() const { return detail::kill_actor(session_, id_); }
  // Takes a checkpoint behind the calls that this process has made, and blocks until it is durable:
  // from then on a restart begins there or later. Not within the actor itself (checkpoint_soon()).
  // Errors: unimplemented (its class has no save and load, or several threads or coroutines), what
  // save threw, invalid (larger than the head takes), exhausted (a full disk), deadline_exceeded
  // (it may still become durable), outcome_unknown (its process died meanwhile).
  Result<CheckpointInfo> checkpoint(std::chrono::nanoseconds timeout = no_timeout) const {
    return detail::checkpoint_actor(session_, id_, timeout);
  }
  Result<ActorStatus> status() const { return detail::actor_status(session_, id_); }
  // Blocks until it is ready to be called. Errors: unavailable (it died: why), deadline_exceeded.
  Status wait_alive(std::chrono::nanoseconds timeout = no_timeout) const {
    return detail::wait_alive(session_, id_, timeout);
  }

 private:
  friend class LimitedActor<A>;
  friend class ActorPool<A>;
  template <auto method>
  static const char* method_name() {
    return troupe_method_name(static_cast<A*>(nullptr), detail::MethodTag<method>{});
  }
  template <auto method, class... Args>
  static auto encode(Args&&... arguments) {
    using Traits = detail::FunctionTraits<decltype(method)>;
    static_assert(sizeof...(Args) == Traits::arity, "the method takes another number of arguments");
    return detail::encode_arguments<typename Traits::Arguments>(std::index_sequence_for<Args...>{},
                                                                std::forward<Args>(arguments)...);
  }

  std::shared_ptr<detail::SessionImpl> session_;
  ActorId id_;
  std::shared_ptr<client::ActorTarget> target_;
  int max_call_retries_ = 0;
};

namespace detail {
template <class A>
std::vector<ActorId> ids_of(const std::vector<ActorRef<A>>& actors) {
  std::vector<ActorId> ids;
  ids.reserve(actors.size());
  for (const auto& actor : actors) ids.push_back(actor.id());
  return ids;
}
}  // namespace detail

// An array that is built in place, in the store of this node: nothing is copied when it is sealed.
// Dropped unsealed it gives its memory back. For one thread at a time.
template <detail::Dense T>
class Building {
 public:
  Building(std::shared_ptr<detail::SessionImpl> session, detail::Room room, size_t count)
      : session_(std::move(session)),
        room_(std::move(room)),
        elements_(reinterpret_cast<T*>(room_.bytes.data() + sizeof(uint64_t)), count) {
    const uint64_t written = count;
    std::memcpy(room_.bytes.data(), &written, sizeof written);
  }
  Building(Building&&) noexcept = default;
  Building& operator=(Building&&) noexcept = default;

  // Writable until seal(). Not cleared: it holds what lay there before, of this process.
  std::span<T> span() const { return elements_; }
  T* data() const { return elements_.data(); }
  size_t size() const { return elements_.size(); }
  // Publishes what was written; the span must not be used any more. Errors: invalid (sealed).
  Result<ObjectRef<std::vector<T>>> seal() {
    if (!room_.block) return error(Code::invalid, "this array was sealed already");
    elements_ = {};
    return ObjectRef<std::vector<T>>{detail::seal(session_, std::exchange(room_, {}))};
  }

 private:
  std::shared_ptr<detail::SessionImpl> session_;
  detail::Room room_;
  std::span<T> elements_;
};

// A connection to a cluster and the owner of every ref made through it. Thread-safe. When the last
// Session and ref of a driver is gone, its job ends: unfinished tasks are cancelled, its actors
// end; detached actors live on. The programs that one `troupe submit` runs are one job, which ends
// with the submitted command. A program that a task starts is a job of its own.
class Session {
 public:
  explicit Session(std::shared_ptr<detail::SessionImpl> impl) : impl_(std::move(impl)) {}

  // Runs function(arguments...) somewhere in the cluster. `function` was given to TROUPE_TASK. An
  // argument may be an ObjectRef to the parameter's type. Returns at once.
  //
  // Tasks of one session with the same module, resources, priority and placement are a scheduling
  // class: they share processes, and those whose arguments are there start in the order of their
  // submission, whatever function they run. Classes do not wait for each other. Where resources are
  // short, the cluster serves the higher priority first and then whoever asked first; a class that
  // keeps its slots busy gives them up after a turn of 200 ms when one of at least its priority
  // waits. Nothing that runs is interrupted.
  template <class... P, class R, class... Args>
  auto submit(R (*function)(P...), Args&&... arguments) const {
    return submit(TaskOptions{}, function, std::forward<Args>(arguments)...);
  }
  template <class... P, class R, class... Args>
  auto submit(const TaskOptions& options, R (*function)(P...), Args&&... arguments) const {
    using Traits = detail::FunctionTraits<R (*)(P...)>;
    static_assert(!detail::is_generator<R>, "a generator is called by stream()");
    static_assert(sizeof...(Args) == sizeof...(P),
                  "the function takes another number of arguments");
    auto values = detail::encode_arguments<typename Traits::Arguments>(
        std::index_sequence_for<Args...>{}, std::forward<Args>(arguments)...);
    return ObjectRef<typename Traits::Value>{
        detail::submit_task(impl_, reinterpret_cast<const void*>(function), Traits::signature(),
                            std::move(values), options)};
  }

  // The same of a task that gives a std::tuple<A, B, ...>: std::tuple<ObjectRef<A>, ObjectRef<B>,
  // ...>; or of one that gives a std::vector<T> of options.returns: that many ObjectRef<T>. Each is
  // an object of its own, with one outcome of the call for all: cancelling one cancels it.
  template <class... P, class R, class... Args>
  auto submit_many(const TaskOptions& options, R (*function)(P...), Args&&... arguments) const {
    using Traits = detail::FunctionTraits<R (*)(P...)>;
    using Results = detail::Several<typename Traits::Value>;
    static_assert(sizeof...(Args) == sizeof...(P),
                  "the function takes another number of arguments");
    static_assert(Results::possible, "the function gives neither a tuple nor a vector");
    auto values = detail::encode_arguments<typename Traits::Arguments>(
        std::index_sequence_for<Args...>{}, std::forward<Args>(arguments)...);
    return Results::refs(detail::submit_task_many(impl_, reinterpret_cast<const void*>(function),
                                                  Traits::signature(), std::move(values), options,
                                                  Results::count(options.returns)));
  }

  // Of a task that returns Generator<T>: Stream<T>, whose items arrive as they are made.
  template <class... P, class R, class... Args>
  auto stream(const TaskOptions& options, R (*function)(P...), Args&&... arguments) const {
    using Traits = detail::FunctionTraits<R (*)(P...)>;
    static_assert(detail::is_generator<R>, "the function is no generator");
    static_assert(sizeof...(Args) == sizeof...(P),
                  "the function takes another number of arguments");
    auto values = detail::encode_arguments<typename Traits::Arguments>(
        std::index_sequence_for<Args...>{}, std::forward<Args>(arguments)...);
    auto started = detail::stream_task(impl_, reinterpret_cast<const void*>(function),
                                       Traits::signature(), std::move(values), options);
    return Stream<typename detail::ItemOf<R>::type>{std::move(started.items),
                                                    std::move(started.call)};
  }
  template <class... P, class R, class... Args>
  auto stream(R (*function)(P...), Args&&... arguments) const {
    return stream(TaskOptions{}, function, std::forward<Args>(arguments)...);
  }

  // Copies `value`, once: into the local store when it is large. Blocks while the store is full, at
  // most a minute. Errors: exhausted (still full), invalid (larger than the store).
  template <Serializable T>
  Result<ObjectRef<T>> put(const T& value) const {
    auto counted = detail::Writer::counting();
    detail::write<T>(counted, value);
    if (!counted.holds_refs && counted.written > detail::put_inline_bytes_max) {
      TROUPE_TRY(auto room, detail::take_room(impl_, counted.written));
      auto in_place = detail::Writer::in_place(room.bytes.data());
      detail::write<T>(in_place, value);
      return ObjectRef<T>{detail::seal(impl_, std::move(room))};
    }
    detail::Writer writer;
    writer.bytes.reserve(counted.written);
    detail::write<T>(writer, value);
    TROUPE_TRY(auto handle, detail::put(impl_, std::move(writer)));
    return ObjectRef<T>{std::move(handle)};
  }

  template <class T>
  Result<T> get(const ObjectRef<T>& ref, std::chrono::nanoseconds timeout = no_timeout) const {
    return ref.get(timeout);
  }
  // All values in the order of the refs, or the first error in that order.
  template <class T>
  Result<std::vector<T>> get(const std::vector<ObjectRef<T>>& refs,
                             std::chrono::nanoseconds timeout = no_timeout) const {
    TROUPE_TRY(const auto handles, handles_of(refs));
    TROUPE_TRY(const auto fetched, detail::fetch_all(impl_, handles, timeout));
    std::vector<T> values;
    values.reserve(refs.size());
    for (const detail::Fetched& one : fetched) {
      TROUPE_TRY(auto value, detail::decode_value<T>(one, impl_));
      values.push_back(std::move(value));
    }
    return values;
  }
  // The same without copies.
  template <Viewable T>
  Result<std::vector<View<T>>> view(const std::vector<ObjectRef<T>>& refs,
                                    std::chrono::nanoseconds timeout = no_timeout) const {
    TROUPE_TRY(const auto handles, handles_of(refs));
    TROUPE_TRY(auto fetched, detail::fetch_all(impl_, handles, timeout));
    std::vector<View<T>> views;
    views.reserve(refs.size());
    for (detail::Fetched& one : fetched) {
      TROUPE_TRY(auto view, View<T>::of(std::move(one)));
      views.push_back(std::move(view));
    }
    return views;
  }
  // Blocks until options.count of the refs are ready (a value or an error), or the timeout. Fetches
  // nothing. Errors: invalid (an empty ref among those that had to be looked at), conflict (a
  // deadlock; see ObjectRef::get).
  template <class T>
  Result<WaitResult> wait(const std::vector<ObjectRef<T>>& refs,
                          const WaitOptions& options = {}) const {
    const auto at = [](const void* data, size_t index) -> const detail::RefHandle* {
      return static_cast<const ObjectRef<T>*>(data)[index].handle().get();
    };
    return detail::wait(impl_, {refs.data(), refs.size(), at}, options);
  }
  // An array of `count` elements to be written in place: see Building. Blocks as put does, and asks
  // nobody while this process has room of its own. Errors: as put, and invalid (a negative count).
  template <class T, std::integral Count>
    requires detail::Dense<T>
  Result<Building<T>> create(Count count) const {
    constexpr auto count_max = (std::numeric_limits<size_t>::max() / 2) / sizeof(T);
    if (std::cmp_less(count, 0) || std::cmp_greater(count, count_max)) {
      return error(Code::invalid, "an array cannot have so many elements");
    }
    const auto length = static_cast<size_t>(count);
    TROUPE_TRY(auto room, detail::take_room(impl_, sizeof(uint64_t) + length * sizeof(T)));
    return Building<T>{impl_, std::move(room), length};
  }
  // Frees objects though there are refs: reading one fails from now on with not_found, here and in
  // processes that have not read it yet. What was viewed stays as long as its views. A task that
  // is to make one goes on, and its result is dropped.
  // Errors: invalid (an empty ref), data_loss (the owner of one is gone, and the object with it).
  template <class T>
  Status free(const std::vector<ObjectRef<T>>& refs) const {
    TROUPE_TRY(const auto handles, handles_of(refs));
    return detail::free_objects(impl_, handles);
  }
  // Ends the task or call that makes the object; its ref fails with cancelled, at once. Of one that
  // is done nothing happens. Dropping a ref cancels nothing. Errors: invalid (an empty ref; force
  // of an actor's call), denied (another process owns it).
  template <class T>
  Status cancel(const ObjectRef<T>& ref, const CancelOptions& options = {}) const {
    return detail::cancel(ref.handle(), options);
  }

  // Why the object is not ready; see explain.h.
  template <class T>
  Result<Explanation> explain(const ObjectRef<T>& ref) const {
    return troupe::explain(ref);
  }

  // How many tasks and calls of this process have no outcome yet, also those whose refs are
  // dropped.
  size_t pending() const { return detail::pending_calls(impl_); }
  // Blocks until there are none. Errors: deadline_exceeded (how many there are).
  Status drain(std::chrono::nanoseconds timeout = no_timeout) const {
    return detail::drain(impl_, timeout);
  }
  // How many failed when nobody held their refs any more; each was logged with its name.
  uint64_t unread_failures() const { return detail::unread_failures(impl_); }

  // Makes an actor: session.create<Counter>({.name = "c"}, 5). Returns once the head has promised
  // it. Refs among the arguments, and arguments above 64 KiB, live in this session until the actor
  // is dead: restarts read them again. Of a detached actor, which may outlive the session, such
  // refs are lost with it, and plain arguments have at most 1 MiB together. Errors: conflict (the
  // name is taken), invalid, unavailable, exhausted (the store is full).
  template <class A, class... Args>
  Result<ActorRef<A>> create(const ActorOptions& options, Args&&... arguments) const {
    using Traits = decltype(troupe_constructor(static_cast<A*>(nullptr)));
    static_assert(sizeof...(Args) == Traits::arity,
                  "the constructor takes another number of arguments");
    TROUPE_CHECK(detail::check_checkpoints<A>(options));
    auto values = detail::encode_arguments<typename Traits::Arguments>(
        std::index_sequence_for<Args...>{}, std::forward<Args>(arguments)...);
    const char* name = troupe_class_name(static_cast<A*>(nullptr));
    const void* anchor = troupe_class_anchor(static_cast<A*>(nullptr));
    TROUPE_TRY(const ActorId id,
               detail::create_actor(impl_, detail::module_of(anchor), name, Traits::signature(),
                                    std::move(values), options));
    return ActorRef<A>{impl_, id, options.max_call_retries};
  }
  // Many actors in one request to the head, all or none; with a name, each is called NAME-0, NAME-1
  // and so on. create_many<Cell>({.process = ActorProcess::shared}, 10'000, 5). Errors: as create.
  template <class A, class... Args>
  Result<std::vector<ActorRef<A>>> create_many(const ActorOptions& options, size_t count,
                                               const Args&... arguments) const {
    return create_each<A>(options, count, [&](size_t) { return std::tie(arguments...); });
  }
  // The same with arguments of each: make(i) gives the i-th one's as a tuple.
  template <class A, class Make>
  Result<std::vector<ActorRef<A>>> create_each(const ActorOptions& options, size_t count,
                                               Make make) const {
    using Traits = decltype(troupe_constructor(static_cast<A*>(nullptr)));
    TROUPE_CHECK(detail::check_checkpoints<A>(options));
    std::vector<std::vector<detail::ArgumentValue>> values;
    values.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      values.push_back(std::apply(
          [](const auto&... parts) {
            static_assert(sizeof...(parts) == Traits::arity,
                          "the constructor takes another number of arguments");
            return detail::encode_arguments<typename Traits::Arguments>(
                std::index_sequence_for<decltype(parts)...>{}, parts...);
          },
          make(i)));
    }
    const void* anchor = troupe_class_anchor(static_cast<A*>(nullptr));
    TROUPE_TRY(const auto ids,
               detail::create_actors(impl_, detail::module_of(anchor),
                                     troupe_class_name(static_cast<A*>(nullptr)),
                                     Traits::signature(), std::move(values), options));
    std::vector<ActorRef<A>> refs;
    refs.reserve(ids.size());
    for (const ActorId id : ids) refs.emplace_back(impl_, id, options.max_call_retries);
    return refs;
  }
  // Blocks until all are ready to be called. Errors: unavailable (one died: why),
  // deadline_exceeded.
  template <class A>
  Status wait_alive(const std::vector<ActorRef<A>>& actors,
                    std::chrono::nanoseconds timeout = no_timeout) const {
    return detail::wait_all_alive(impl_, detail::ids_of(actors), timeout);
  }
  template <class A>
  Status kill(const std::vector<ActorRef<A>>& actors) const {
    return detail::kill_actors(impl_, detail::ids_of(actors));
  }
  // A named actor of this job's namespace, or of another. Errors: not_found.
  template <class A>
  Result<ActorRef<A>> find(std::string_view name, std::string_view name_space = {}) const {
    TROUPE_TRY(const ActorId id, detail::find_actor(impl_, name, name_space));
    return ActorRef<A>{impl_, id};
  }

  // Promised on return; see PlacementGroup::wait for when it is placed. Errors: invalid, conflict
  // (the name is taken), exhausted.
  Result<PlacementGroup> create_placement_group(PlacementGroupOptions options) const {
    return create_placement_group_async(std::move(options)).get();
  }
  // Returns at once. Those that wait together are promised together, in one write of the head's.
  std::future<Result<PlacementGroup>> create_placement_group_async(
      PlacementGroupOptions options) const {
    return detail::create_group(impl_, std::move(options));
  }
  // One result each, in the same order.
  std::vector<Result<PlacementGroup>> create_placement_groups(
      std::vector<PlacementGroupOptions> options) const {
    std::vector<std::future<Result<PlacementGroup>>> made;
    for (auto& one : options) made.push_back(create_placement_group_async(std::move(one)));
    std::vector<Result<PlacementGroup>> groups;
    for (auto& one : made) groups.push_back(one.get());
    return groups;
  }
  // A named one of this job's namespace, or of another. Errors: not_found.
  Result<PlacementGroup> find_placement_group(std::string_view name,
                                              std::string_view name_space = {}) const {
    return detail::find_group(impl_, name, name_space);
  }
  // Where this process runs, for Placement::on().
  NodeId node() const { return detail::node_of(impl_); }

  // Actors of plugins, whose methods take and give opaque bytes.
  Result<ActorId> create_plugin_actor(const std::string& plugin, const std::string& class_name,
                                      std::vector<Bytes> arguments,
                                      const ActorOptions& options = {}) const;
  // Blocks for the reply.
  Result<Bytes> ask_plugin_actor(ActorId actor, std::string_view method,
                                 std::vector<Bytes> arguments,
                                 std::chrono::nanoseconds timeout = no_timeout) const;
  Result<std::unique_ptr<detail::ItemStream>> stream_plugin_actor(
      ActorId actor, std::string_view method, std::vector<Bytes> arguments) const {
    return detail::stream_call(impl_, actor, method, std::move(arguments));
  }
  // As ActorRef::checkpoint, of a class with both functions in its table.
  Result<CheckpointInfo> checkpoint(ActorId actor,
                                    std::chrono::nanoseconds timeout = no_timeout) const {
    return detail::checkpoint_actor(impl_, actor, timeout);
  }
  Status kill(ActorId actor) const { return detail::kill_actor(impl_, actor); }
  Status wait_alive(ActorId actor, std::chrono::nanoseconds timeout = no_timeout) const {
    return detail::wait_alive(impl_, actor, timeout);
  }

  // co_await session.sleep_for(duration): as troupe::sleep_for, in any coroutine.
  detail::Slept sleep_for(std::chrono::nanoseconds duration) const {
    return {{detail::Suspension::make(impl_), duration}};
  }

  JobId job() const;
  // Ends the job as failed with this reason, rather than as succeeded, when the session closes.
  // Under `troupe submit` the exit status of the command decides instead.
  void fail_job(std::string_view reason) const;

  const std::shared_ptr<detail::SessionImpl>& impl() const { return impl_; }

 private:
  template <class T>
  static Result<std::vector<const detail::RefHandle*>> handles_of(
      const std::vector<ObjectRef<T>>& refs) {
    std::vector<const detail::RefHandle*> handles;
    handles.reserve(refs.size());
    for (const auto& ref : refs) {
      if (!ref.is_valid()) return error(Code::invalid, "an empty ref");
      handles.push_back(ref.handle().get());
    }
    return handles;
  }

  std::shared_ptr<detail::SessionImpl> impl_;
};

// What code that an actor runs may know of it.
struct ThisActor {
  ActorId id;
  std::string name;
  std::string node_name;
  uint32_t incarnation = 0;  // 1, and one more by each restart.
};
// The actor whose method, constructor or destructor this thread runs; nothing on other threads, and
// in tasks.
std::optional<ThisActor> this_actor();

// Joins the cluster of a state folder as a new job. Inside a task or actor it gives the session of
// this process instead. Errors: unavailable (no cluster runs there), denied (another user's).
Result<Session> connect(const ConnectOptions& options = {});

namespace detail {
template <>
struct Codec<PlacementGroup> {
  static uint64_t hash() { return 23; }
  static void write(Writer& out, const PlacementGroup& group) {
    uint8_t bytes[16];
    group.id().to_bytes(bytes);
    out.raw(bytes, sizeof bytes);
  }
  static void read(Reader& in, PlacementGroup& group) {
    uint8_t bytes[16];
    in.raw(bytes, sizeof bytes);
    group = PlacementGroup{in.session, PlacementGroupId::from_bytes(bytes)};
  }
};
template <class A>
struct Codec<ActorRef<A>> {
  static uint64_t hash() { return 25; }
  static void write(Writer& out, const ActorRef<A>& ref) {
    uint8_t bytes[16];
    ref.id().to_bytes(bytes);
    out.raw(bytes, sizeof bytes);
    detail::write<int>(out, ref.max_call_retries());
  }
  static void read(Reader& in, ActorRef<A>& ref) {
    uint8_t bytes[16];
    in.raw(bytes, sizeof bytes);
    int retries = 0;
    detail::read(in, retries);
    ref = ActorRef<A>{in.session, ActorId::from_bytes(bytes), retries};
  }
};
}  // namespace detail

}  // namespace troupe
