// A process's part in the cluster: its connections, the objects that it owns, the calls that it
// makes and answers. Drivers, actor processes, the gateway and the CLI each have one.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "packages/shelf.h"
#include "protocol/messages.h"
#include "transport/environment.h"
#include "transport/peer.h"
#include "transport/router.h"
#include "transport/timeline_memory.h"

namespace troupe::client {

using transport::Endpoint;
using transport::Method;
using transport::Peer;

struct ClientOptions {
  std::string kind;  // driver, actor, gateway, cli.
  ProcessId process;
  JobId job;
  Endpoint worker;  // The node's worker; not used when worker_connection is given.
  std::unique_ptr<transport::Connection> worker_connection;  // An inherited one.
  // Where this process notes what it does, which its worker may read; null: nowhere. Outlives the
  // client.
  transport::TimelineMemory* timeline = nullptr;
  // Called with the node's credentials before anything listens on or connects over TLS.
  std::function<Status(const protocol::Attached&)> use_credentials;
  Duration blocked_log_after{};  // A wait that takes so long is logged; zero: none is.
  // How much is kept of how results were made, to make them again if they are lost.
  uint64_t lineage_bytes_max = 256 << 20;
};

// A ref to an object as it travels: which object, and the process that owns it.
struct ObjectName {
  ObjectId id;
  protocol::ProcessAddress owner;
};

// The bytes of an object; `keep_alive` holds them (a view into the object store, or private
// memory).
struct ObjectBytes {
  BytesView bytes;
  std::shared_ptr<const void> keep_alive;
};

// Calls with this budget, or more, have no deadline of their own.
inline constexpr Duration default_budget = std::chrono::hours(24);

// When what failed is tried again.
struct RetryPolicy {
  int32_t retries = 0;   // How often it may run again; -1: no limit.
  std::vector<Code> on;  // Failures of the code itself, beside deaths of its process.
  Duration delay_first = std::chrono::milliseconds(10);  // Then twice as long each time,
  Duration delay_most = std::chrono::seconds(10);        // at most so long.

  // Whether a failure of what ran, or may have run, is worth another run. One with a place is what
  // the code failed with.
  bool covers(const Error& failure) const;
  // Before the next run of what was run again so often.
  Duration delay(int32_t retried) const;
};
// The last failure, which says how often it was tried.
Error after_retries(Error failure, int32_t retried);

// What the tasks of one call site have in common.
struct TaskTraits {
  std::string module;
  std::string function;
  std::string name;  // For people; empty: the function's.
  uint64_t signature = 0;
  std::vector<protocol::ResourceAmount> demand;
  int32_t priority = 0;
  RetryPolicy retry;
  Duration budget = default_budget;
  Duration time_limit{};                     // Of one run; zero: none.
  Duration grace = std::chrono::seconds(1);  // After it, before the process is ended.
  uint32_t results = 0;                      // How many objects it makes; 0: one.
  uint32_t items_max = 0;  // Of a generator: how many may be unread; 0: the default.
  protocol::PlacementSpec placement;
  const std::string& label() const { return name.empty() ? function : name; }
};

class ItemSource;
class CallRoute;

struct TaskSpec {
  std::shared_ptr<const TaskTraits> traits;
  std::vector<protocol::Argument> arguments;
  std::vector<ObjectName> held;            // Refs inside the arguments: kept alive until the reply.
  std::shared_ptr<ItemSource> items = {};  // Set: a generator, whose items go there.
};

// What few calls of actors have.
struct ActorCallExtras {
  RetryPolicy retry;  // By default it must not run twice.
  std::string name;
  uint32_t results = 0;  // As in TaskTraits.
  uint32_t items_max = 0;
  std::shared_ptr<ItemSource> items;  // As in TaskSpec.
  bool waits_for_room = false;        // In a full mailbox, rather than to fail with exhausted.
  std::shared_ptr<CallRoute> route;   // Null: it is for one actor alone.
};

struct ActorCallSpec {
  ActorId actor;
  std::string method;
  uint64_t signature = 0;
  std::vector<protocol::Argument> arguments;
  std::vector<ObjectName> held;  // As in TaskSpec.
  Duration budget = default_budget;
  std::shared_ptr<const ActorCallExtras> extras = {};  // Null: none.
};

// The id of a call's result after the first.
ObjectId result_id(ObjectId first, uint32_t index);

class BlockedWait;
class BlockedWaits;
class Explainer;

// What a process that hosts actors adds to its client: the answering of calls.
class InvocationHandler {
 public:
  virtual ~InvocationHandler() = default;
  virtual Async<Result<protocol::InvokeReply>> invoke(protocol::Invoke call,
                                                      transport::CallContext context) = 0;
  virtual Async<Status> invoke_stream(protocol::Invoke call, transport::CallContext context,
                                      transport::OutgoingStream& out) = 0;
  // What it knows of calls that it has taken, by the ids of their first results: an answer each; or
  // of an actor and its calls.
  virtual protocol::Explanations explain_calls(const protocol::ExplainCalls& asked) = 0;
  // The call whose code waits, for each of the waits; nil if none does, or it has ended.
  virtual std::vector<TaskId> calls_of(std::span<BlockedWait* const> waits) = 0;
};

class ActorTarget;
class Connections;
class Object;
class StoreClient;
class ObjectDirectory;
class ActorCaller;
class LeasePool;
class LentCpu;
class Testimony;

// On the environment's loop but for what says otherwise. Must be stopped before it is destroyed.
class Client {
 public:
  Client(transport::Environment environment, ClientOptions options);
  ~Client();

  // Attaches to the worker, opens this process's own listeners. Errors: unavailable (no worker),
  // denied (another user's cluster).
  Async<Status> start();
  // Fails what waits, gives leases back, closes every connection.
  Async<void> stop();

  // Set once start() succeeded. Requests can come before that, as soon as the worker is joined.
  Event& started() { return started_; }
  // Set before start(): what this process has to give of its job's files.
  void set_packages(std::shared_ptr<const packages::Shelf> shelf);
  // Where others reach this process; complete once started.
  const protocol::ProcessAddress& address() const { return address_; }
  const protocol::Attached& attached() const { return attached_; }
  JobId job() const { return options_.job; }
  // Null: nothing is noted.
  Timeline* timeline() const { return timeline_; }
  Scope& scope() { return scope_; }
  const transport::Environment& environment() const { return environment_; }
  // For methods of the process's own (assign_actor, collective, ...). Before start().
  transport::Router& router() { return router_; }
  void set_invocation_handler(InvocationHandler* handler) { invocations_ = handler; }
  // The connection to the node's worker; set by start().
  const std::shared_ptr<Peer>& worker() const;

  // A connection to a process, made or reused. Errors: unavailable, denied, deadline_exceeded.
  Async<Result<std::shared_ptr<Peer>>> peer_of(protocol::ProcessAddress address, Instant deadline);
  // A connection to the head, made or reused.
  Async<Result<std::shared_ptr<Peer>>> head(Instant deadline);

  // An idempotent request to the head, retried with back-off while the head is unavailable.
  template <class Reply, class Request>
  Async<Result<Reply>> ask_head(Method method, Request request, Duration budget) {
    auto answer = co_await ask_head_raw(method, protocol::encode(request), budget);
    if (!answer) co_return std::move(answer).error();
    co_return protocol::decode<Reply>(answer->body);
  }
  Async<Result<transport::Message>> ask_head_raw(Method method, Bytes body, Duration budget);

  // --- Actors. create_actor answers once the head has promised it. `held`: refs inside the
  // constructor's arguments, kept alive until the actor is dead, for each restart reads them anew.
  Async<Result<protocol::ActorInfo>> create_actor(protocol::ActorSpec spec, Duration budget,
                                                  std::vector<ObjectName> held = {});
  // The same of many in one request; an outcome each, in their order.
  Async<Result<protocol::ActorResults>> create_actors(std::vector<protocol::ActorSpec> specs,
                                                      Duration budget,
                                                      std::vector<std::vector<ObjectName>> held);
  // Waits until all are alive. Errors: those of locate_actor, of the first that is not.
  Async<Status> locate_actors(std::vector<ActorId> actors, Duration budget);
  // Waits until it is alive in an incarnation above `after`.
  // Errors: not_found, unavailable (dead: why), deadline_exceeded.
  Async<Result<protocol::ActorInfo>> locate_actor(ActorId actor, uint32_t after, Duration budget);
  // One call; the result's bytes. Calls of one process to one actor are sent in order.
  Async<Result<ObjectBytes>> call_actor(ActorCallSpec spec);
  // A streaming call.
  Async<Result<std::shared_ptr<transport::IncomingStream>>> stream_actor(ActorCallSpec spec);

  // --- Objects and tasks. Each gives an object that this process owns, with one reference held.
  // Thread-safe; whoever has the object gives its reference back by objects().drop_reference.
  // Of several results the first is given, and the others go to `more`, in their order.
  using Objects = std::vector<std::shared_ptr<Object>>;
  std::shared_ptr<ActorTarget> target_of(ActorId actor);
  std::shared_ptr<Object> start_call(const std::shared_ptr<ActorTarget>& target, ActorCallSpec spec,
                                     Objects* more = nullptr);
  std::shared_ptr<Object> start_task(TaskSpec spec, Objects* more = nullptr);
  ObjectDirectory& objects() { return *objects_; }
  ActorCaller& actors() { return *actors_; }
  StoreClient& store() { return *store_; }
  // The same with a name for others, and on the loop.
  ObjectName submit_task(TaskSpec spec);
  ObjectName submit_call(ActorCallSpec spec);
  Async<Result<std::shared_ptr<Object>>> put(std::shared_ptr<const Bytes> value,
                                             std::vector<ObjectName> held);
  void add_reference(const ObjectName& object);
  void drop_reference(const ObjectName& object);

  // Waits for the value. Errors: what the task or call failed with, data_loss (owner gone),
  // deadline_exceeded.
  Async<Result<ObjectBytes>> get(ObjectName object, Duration budget);
  // Cancels the task or call that makes an object of this process; its get gives cancelled.
  void cancel(ObjectId object);

  // --- Why something waits. Thread-safe: what waits in this process.
  BlockedWaits& waits() { return *waits_; }
  Explainer& explainer() { return *explainer_; }
  // As InvocationHandler's; nil in a process that hosts none.
  std::vector<TaskId> calls_of(std::span<BlockedWait* const> waits) const;

  // --- For processes that run tasks. While a task waits, its slot's cpu is lent to others.
  void set_lease(LeaseId lease);
  void begin_wait();
  void end_wait();

  // --- Placement groups. Where this process runs: if that captures, so do its tasks and actors
  // that choose no place themselves.
  void set_placement(const protocol::PlacementSpec& placement);

  // --- For processes that host actors.
  // The bytes of arguments, refs resolved through their owners.
  Async<Result<std::vector<ObjectBytes>>> resolve(std::vector<protocol::Argument> arguments,
                                                  Duration budget);
  // A reply that carries `value` inline or, when it is large, through the store under `result`,
  // whose owner is `caller`. `held`: refs inside the value, kept for as long as `caller` keeps the
  // result.
  Async<Result<protocol::InvokeReply>> make_reply(Bytes value, ObjectId result, ProcessId caller,
                                                  std::vector<ObjectName> held);
  // The same of several results, each an object of its own: small ones ride inline, up to 4 MiB
  // together. held[i]: refs inside values[i].
  Async<Result<protocol::InvokeReply>> make_reply(std::vector<Bytes> values, ObjectId first,
                                                  ProcessId caller,
                                                  std::vector<std::vector<ObjectName>> held);

 private:
  PlacementGroupId captured_in() const;
  friend class ObjectDirectory;
  friend class ActorCaller;
  friend class LeasePool;
  friend class RingCall;
  friend class Testimony;

  Async<Result<transport::Message>> answer_invoke(transport::Message message,
                                                  transport::CallContext context);
  Async<Status> answer_stream(transport::Message message, transport::CallContext context,
                              transport::OutgoingStream& out);
  // Of all calls and tasks of this process.
  void fail_all();
  // Completes what the program left open.
  void complete(protocol::ActorSpec& spec);
  Async<Result<protocol::ObjectList>> list_objects(protocol::ListObjects request,
                                                   transport::CallContext context);
  // Hands the worker the memory of this process's timeline.
  Async<void> attach_timeline();
  // While only some of the calls are noted.
  Async<void> relax_timeline();
  Async<void> hold_until_dead(ActorId actor, std::vector<ObjectName> held);
  void drop_references(const std::vector<ObjectName>& held);

  transport::Environment environment_;
  ClientOptions options_;
  mutable std::mutex captured_mutex_;
  PlacementGroupId captured_in_;
  transport::Router router_;
  InvocationHandler* invocations_ = nullptr;
  protocol::ProcessAddress address_;
  protocol::Attached attached_;
  Event started_;
  Scope scope_;
  Timeline* const timeline_;
  std::unique_ptr<Connections> connections_;
  std::unique_ptr<StoreClient> store_;
  std::unique_ptr<ObjectDirectory> objects_;
  std::unique_ptr<ActorCaller> actors_;
  std::unique_ptr<LeasePool> leases_;
  std::unique_ptr<LentCpu> lent_cpu_;
  std::unique_ptr<Testimony> testimony_;
  std::unique_ptr<Explainer> explainer_;
  std::unique_ptr<BlockedWaits> waits_;
};

// A wait for other tasks, for as long as it lives. On the loop.
class TaskWait {
 public:
  explicit TaskWait(Client& client) : client_(client) { client_.begin_wait(); }
  TaskWait(const TaskWait&) = delete;
  TaskWait& operator=(const TaskWait&) = delete;
  ~TaskWait() { client_.end_wait(); }

 private:
  Client& client_;
};

// How long whoever stores something waits while the store is full.
inline constexpr Duration store_budget = std::chrono::seconds(60);

// Values up to this size ride in messages; larger ones go through the object store.
inline constexpr size_t inline_bytes_max = 64 << 10;

}  // namespace troupe::client
