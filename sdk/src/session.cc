#include "troupe/session.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <unordered_map>

#include "base/log.h"
#include "call_scope.h"
#include "client/actor_caller.h"
#include "client/item_source.h"
#include "client/object_directory.h"
#include "client/result_refs.h"
#include "placement_lowering.h"
#include "session_impl.h"
#include "transport/ring_port.h"

namespace troupe {
namespace detail {

using client::ObjectName;
using transport::Method;

namespace {

constexpr Duration control_budget = std::chrono::seconds(30);

// A name that other processes can use.
ObjectName name_of(const RefHandle& ref) {
  if (ref.object()) return ref.session()->client().objects().publish(ref.object());
  return {ref.id(), ref.owner()};
}

struct Lowered {
  std::vector<protocol::Argument> arguments;
  std::vector<ObjectName> held;
};

Lowered lower(std::vector<ArgumentValue>& values) {
  Lowered out;
  for (ArgumentValue& value : values) {
    protocol::Argument argument;
    argument.inline_value = std::move(value.bytes);
    const auto own = value.by_ref ? value.by_ref->object() : nullptr;
    if (own && own->is_ready() && !own->failure() && own->is_plain()) {
      // A small value of this process goes along, so that the callee need not ask for it.
      argument.inline_value.assign(own->value().begin(), own->value().end());
    } else if (value.by_ref) {
      ObjectName name = name_of(*value.by_ref);
      argument.object = name.id;
      argument.owner = name.owner;
      out.held.push_back(std::move(name));
    }
    for (const auto& ref : value.refs_inside) out.held.push_back(name_of(*ref));
    out.arguments.push_back(std::move(argument));
  }
  return out;
}

std::shared_ptr<RefHandle> own(const std::shared_ptr<SessionImpl>& session,
                               std::shared_ptr<client::Object> object) {
  return std::make_shared<RefHandle>(session, std::move(object));
}

// Large inline arguments go through the store, so that every message stays small.
Status store_large_arguments(const std::shared_ptr<SessionImpl>& session,
                             std::vector<ArgumentValue>& values) {
  for (ArgumentValue& value : values) {
    if (value.by_ref || value.bytes.size() <= client::inline_bytes_max) continue;
    Writer writer{std::move(value.bytes), std::move(value.refs_inside)};
    TROUPE_TRY(value.by_ref, put(session, std::move(writer)));
    value.bytes.clear();
    value.refs_inside.clear();
  }
  return ok();
}

// An object that failed before it began.
std::shared_ptr<RefHandle> make_failed(const std::shared_ptr<SessionImpl>& session, Error failure) {
  auto& objects = session->client().objects();
  auto object = objects.make();
  objects.set_error(object, std::move(failure));
  return own(session, std::move(object));
}

}  // namespace

RefHandle::RefHandle(std::shared_ptr<SessionImpl> session, ObjectId id,
                     protocol::ProcessAddress owner)
    : session_(std::move(session)),
      id_(id),
      owner_(std::make_unique<const protocol::ProcessAddress>(std::move(owner))) {}

RefHandle::RefHandle(std::shared_ptr<SessionImpl> session, std::shared_ptr<client::Object> object)
    : session_(std::move(session)), id_(object->id()), object_(std::move(object)) {}

RefHandle::~RefHandle() {
  if (object_) {
    session_->client().objects().drop_reference(object_);
    return;
  }
  client::Client* client = &session_->client();
  session_->post([client, name = ObjectName{id_, *owner_}] { client->drop_reference(name); });
}

const protocol::ProcessAddress& RefHandle::owner() const {
  return object_ ? session_->client().address() : *owner_;
}

std::shared_ptr<RefHandle> borrow(std::shared_ptr<SessionImpl> session, ObjectId id,
                                  protocol::ProcessAddress owner) {
  client::Client& client = session->client();
  if (owner.process == client.address().process) {
    // One of our own came back. If it was freed meanwhile, get says so.
    if (auto object = client.objects().find_and_hold(id)) {
      return std::make_shared<RefHandle>(std::move(session), std::move(object));
    }
  }
  // A reply must not overtake this.
  client.objects().announce_borrow();
  session->post([&client, name = ObjectName{id, owner}] { client.objects().add_announced(name); });
  return std::make_shared<RefHandle>(std::move(session), id, std::move(owner));
}

void write_ref(Writer& out, const std::shared_ptr<RefHandle>& handle) {
  uint8_t bytes[48] = {};
  if (handle) {
    if (handle->object()) handle->session()->client().objects().publish(handle->object());
    handle->id().to_bytes(bytes);
    handle->owner().process.to_bytes(bytes + 16);
    handle->owner().node.to_bytes(bytes + 32);
    out.refs.push_back(handle);
  }
  out.raw(bytes, sizeof bytes);
  write<std::string>(out, handle ? handle->owner().unix_path : "");
  write<std::string>(out, handle ? handle->owner().host : "");
  write<uint16_t>(out, handle ? handle->owner().port : uint16_t{0});
}

std::shared_ptr<RefHandle> read_ref(Reader& in) {
  uint8_t bytes[48];
  in.raw(bytes, sizeof bytes);
  protocol::ProcessAddress owner;
  read(in, owner.unix_path);
  read(in, owner.host);
  read(in, owner.port);
  const auto id = ObjectId::from_bytes({bytes, 16});
  if (id.is_nil() || in.failed || !in.session) return nullptr;
  owner.process = ProcessId::from_bytes({bytes + 16, 16});
  owner.node = NodeId::from_bytes({bytes + 32, 16});
  return borrow(in.session, id, std::move(owner));
}

void keep_result_refs(std::vector<std::shared_ptr<RefHandle>> refs) {
  std::vector<client::HeldRef> held;
  for (auto& ref : refs) held.push_back({name_of(*ref), 0, ref});
  client::put_result_refs(std::move(held));
}

void keep_result_refs(std::vector<std::vector<std::shared_ptr<RefHandle>>> refs) {
  std::vector<client::HeldRef> held;
  for (uint32_t result = 0; result < refs.size(); ++result) {
    for (auto& ref : refs[result]) held.push_back({name_of(*ref), result, ref});
  }
  client::put_result_refs(std::move(held));
}

namespace {

// Most waits of a task are over before the head could make use of its cpu.
constexpr Duration lend_cpu_after = std::chrono::milliseconds(10);

// Blocks this thread until the object is ready; false at the deadline. The thread reads the
// process's rings meanwhile.
bool wait_ready(SessionImpl& session, client::Object& object, Instant deadline) {
  if (object.is_ready()) return true;
  auto* rings = session.client().environment().rings;
  transport::RingPort::Waiter waiter{*rings};
  const auto done = [&] { return object.is_ready(); };
  const auto arm = [&] { object.add_waiter(waiter); };
  const Instant soon = session.client().environment().clock.now() + lend_cpu_after;
  bool ready = rings->wait(waiter, std::min(soon, deadline), done, arm);
  if (!ready && soon < deadline) {
    const ThreadWait lends;
    ready = rings->wait(waiter, deadline, done, arm);
  }
  object.remove_waiter(waiter);
  return ready;
}

}  // namespace

Result<Fetched> fetch(const RefHandle& ref, std::chrono::nanoseconds timeout) {
  SessionImpl& session = *ref.session();
  const auto& object = ref.object();
  if (object) {
    const Instant deadline = session.client().environment().clock.now() + timeout;
    if (!wait_ready(session, *object, deadline)) {
      return error(Code::deadline_exceeded,
                   fmt::format("object {} is not ready", object->id().to_string()));
    }
    if (object->failure()) return *object->failure();
    if (!object->in_store()) return Fetched{object->value(), object};
    TROUPE_TRY(auto stored, session.run<client::ObjectBytes>([&] {
      return session.client().objects().get_owned(object, deadline);
    }));
    return Fetched{stored.bytes, std::move(stored.keep_alive)};
  }
  TROUPE_TRY(auto bytes, session.run_waiting<client::ObjectBytes>(
                             [&] { return session.client().get(name_of(ref), timeout); }));
  return Fetched{bytes.bytes, std::move(bytes.keep_alive)};
}

namespace {

// Where waiting coroutines go on. Theirs alone: they may block in put() or get(), which need the
// environment's threads. Never joined, for what a program blocks in may have no end.
boost::asio::thread_pool& callbacks() {
  static auto* pool = new boost::asio::thread_pool{2};
  return *pool;
}

Async<Result<client::ObjectBytes>> get_any(client::Client& client,
                                           std::shared_ptr<client::Object> object,
                                           ObjectName name) {
  if (object) return client.objects().get_owned(std::move(object), Instant::max());
  return client.get(std::move(name), no_timeout);
}

Async<void> fetch_and_call(client::Client& client, std::shared_ptr<client::Object> object,
                           ObjectName name,
                           std::shared_ptr<std::function<void(Result<Fetched>)>> done) {
  Result<Fetched> fetched = error(Code::cancelled, "the session was closed");
  struct Guard {
    std::shared_ptr<std::function<void(Result<Fetched>)>> done;
    Result<Fetched>& fetched;
    ~Guard() {
      boost::asio::post(callbacks(),
                        [callback = std::move(done), value = std::move(fetched)]() mutable {
                          (*callback)(std::move(value));
                        });
    }
  } guard{std::move(done), fetched};
  auto bytes = co_await get_any(client, std::move(object), std::move(name));
  if (bytes) {
    fetched = Fetched{bytes->bytes, std::move(bytes->keep_alive)};
  } else {
    fetched = std::move(bytes).error();
  }
}

}  // namespace

void fetch_later(std::shared_ptr<RefHandle> ref, std::function<void(Result<Fetched>)> done) {
  client::Client& client = ref->session()->client();
  // The ref lives until the callback has run, and goes on the pool's thread, not on the loop's.
  auto shared = std::make_shared<std::function<void(Result<Fetched>)>>(
      [ref, call = std::move(done)](Result<Fetched> value) { call(std::move(value)); });
  ObjectName name;
  if (!ref->object()) name = name_of(*ref);
  ref->session()->post([&client, object = ref->object(), name = std::move(name), shared]() mutable {
    spawn(client.scope(),
          fetch_and_call(client, std::move(object), std::move(name), std::move(shared)));
  });
}

namespace {

struct TaskFunction {
  std::string module;
  std::string name;
};

// Found once a function: it takes a walk through the file system.
Result<const TaskFunction*> find_task_function(const void* function) {
  static std::mutex mutex;
  static std::unordered_map<const void*, TaskFunction> known;  // Its nodes do not move.
  thread_local std::pair<const void*, const TaskFunction*> last{};
  if (last.first == function && function != nullptr) return last.second;
  const std::lock_guard lock{mutex};
  auto found = known.find(function);
  if (found == known.end()) {
    TROUPE_TRY(auto name, task_name(function));
    found = known.emplace(function, TaskFunction{module_of(function), std::move(name)}).first;
  }
  last = {function, &found->second};
  return &found->second;
}

}  // namespace

namespace {

constexpr uint32_t results_max = 100'000;  // Of one call.

client::RetryPolicy to_policy(int retries, const std::vector<Code>& on,
                              std::chrono::nanoseconds delay) {
  client::RetryPolicy policy;
  policy.retries = retries;
  policy.on = on;
  policy.delay_first = std::max<Duration>(delay, std::chrono::milliseconds(1));
  return policy;
}

// Tasks of one call site follow each other: what they have in common is made once.
Result<std::shared_ptr<const client::TaskTraits>> traits_of(const void* function,
                                                            uint64_t signature,
                                                            const TaskOptions& options,
                                                            uint32_t results) {
  struct Last {
    const void* function = nullptr;
    uint64_t signature = 0;
    uint32_t results = 0;
    TaskOptions options;
    std::shared_ptr<const client::TaskTraits> traits;
  };
  thread_local Last last;
  if (last.traits && last.function == function && last.signature == signature &&
      last.results == results && last.options == options) {
    return last.traits;
  }
  TROUPE_TRY(const TaskFunction* task, find_task_function(function));
  if (results > results_max) {
    return error(Code::invalid, fmt::format("a call has at most {} results", results_max));
  }
  auto traits = std::make_shared<client::TaskTraits>();
  traits->module = task->module;
  traits->function = task->name;
  traits->name = options.name;
  traits->signature = signature;
  traits->demand = to_demand(options.resources);
  traits->priority = options.priority;
  traits->retry = to_policy(options.retries, options.retry_on, options.retry_delay);
  traits->budget = options.timeout;
  traits->time_limit = options.time_limit;
  traits->grace = options.time_limit_grace;
  traits->results = results;
  traits->items_max = std::max(options.generator_items_max, 1u);
  traits->placement = to_spec(options.placement);
  last = {function, signature, results, options, std::move(traits)};
  return last.traits;
}

// What a call of this thread's submits ends with it.
void note_child(const std::shared_ptr<SessionImpl>& session,
                const std::shared_ptr<client::Object>& object) {
  if (current_call().call == nullptr) return;
  if (const auto scope = CallScope::current()) scope->add_child(session, object);
}

std::shared_ptr<client::Object> start_task(const std::shared_ptr<SessionImpl>& session,
                                           std::shared_ptr<const client::TaskTraits> traits,
                                           std::vector<ArgumentValue>& arguments,
                                           client::Client::Objects* more,
                                           std::shared_ptr<client::ItemSource> items = nullptr) {
  client::TaskSpec spec;
  spec.items = std::move(items);
  spec.traits = std::move(traits);
  auto lowered = lower(arguments);
  spec.arguments = std::move(lowered.arguments);
  spec.held = std::move(lowered.held);
  auto object = session->client().start_task(std::move(spec), more);
  note_child(session, object);
  return object;
}

std::vector<std::shared_ptr<RefHandle>> own_all(const std::shared_ptr<SessionImpl>& session,
                                                std::shared_ptr<client::Object> first,
                                                client::Client::Objects more) {
  std::vector<std::shared_ptr<RefHandle>> handles;
  handles.reserve(more.size() + 1);
  handles.push_back(own(session, std::move(first)));
  for (auto& object : more) handles.push_back(own(session, std::move(object)));
  return handles;
}

std::vector<std::shared_ptr<RefHandle>> all_failed(const std::shared_ptr<SessionImpl>& session,
                                                   Error failure, uint32_t count) {
  return {std::clamp(count, 1u, results_max), make_failed(session, std::move(failure))};
}

}  // namespace

std::shared_ptr<RefHandle> submit_task(const std::shared_ptr<SessionImpl>& session,
                                       const void* function, uint64_t signature,
                                       std::vector<ArgumentValue> arguments,
                                       const TaskOptions& options) {
  auto traits = traits_of(function, signature, options, 0);
  if (!traits) return make_failed(session, std::move(traits).error());
  if (auto stored = store_large_arguments(session, arguments); !stored) {
    return make_failed(session, std::move(stored).error());
  }
  return own(session, start_task(session, std::move(*traits), arguments, nullptr));
}

std::vector<std::shared_ptr<RefHandle>> submit_task_many(
    const std::shared_ptr<SessionImpl>& session, const void* function, uint64_t signature,
    std::vector<ArgumentValue> arguments, const TaskOptions& options, uint32_t count) {
  auto traits = traits_of(function, signature, options, std::max(count, 1u));
  if (!traits) return all_failed(session, std::move(traits).error(), count);
  if (auto stored = store_large_arguments(session, arguments); !stored) {
    return all_failed(session, std::move(stored).error(), count);
  }
  client::Client::Objects more;
  auto first = start_task(session, std::move(*traits), arguments, &more);
  return own_all(session, std::move(first), std::move(more));
}

std::shared_ptr<client::ActorTarget> target_of(const std::shared_ptr<SessionImpl>& session,
                                               ActorId actor) {
  return session ? session->client().target_of(actor) : nullptr;
}

namespace {

std::shared_ptr<client::Object> start_call(const std::shared_ptr<SessionImpl>& session,
                                           const std::shared_ptr<client::ActorTarget>& target,
                                           std::string_view method, uint64_t signature,
                                           std::vector<ArgumentValue>& arguments,
                                           const CallOptions& options, int max_call_retries,
                                           uint32_t results, client::Client::Objects* more,
                                           std::shared_ptr<client::ItemSource> items = nullptr) {
  client::ActorCallSpec spec;
  spec.actor = target->actor();
  spec.method = method;
  spec.signature = signature;
  spec.budget = options.timeout;
  const int retries = options.retries.value_or(max_call_retries);
  if (retries != 0 || !options.name.empty() || results > 0 || items) {
    auto extras = std::make_shared<client::ActorCallExtras>();
    if (retries != 0) extras->retry = to_policy(retries, options.retry_on, options.retry_delay);
    extras->name = options.name;
    extras->results = results;
    extras->items_max = std::max(options.generator_items_max, 1u);
    extras->items = std::move(items);
    spec.extras = std::move(extras);
  }
  auto lowered = lower(arguments);
  spec.arguments = std::move(lowered.arguments);
  spec.held = std::move(lowered.held);
  auto object = session->client().start_call(target, std::move(spec), more);
  note_child(session, object);
  return object;
}

}  // namespace

std::shared_ptr<RefHandle> submit_call(const std::shared_ptr<SessionImpl>& session,
                                       const std::shared_ptr<client::ActorTarget>& target,
                                       std::string_view method, uint64_t signature,
                                       std::vector<ArgumentValue> arguments,
                                       const CallOptions& options, int max_call_retries) {
  if (auto stored = store_large_arguments(session, arguments); !stored) {
    return make_failed(session, std::move(stored).error());
  }
  return own(session, start_call(session, target, method, signature, arguments, options,
                                 max_call_retries, 0, nullptr));
}

std::vector<std::shared_ptr<RefHandle>> submit_call_many(
    const std::shared_ptr<SessionImpl>& session, const std::shared_ptr<client::ActorTarget>& target,
    std::string_view method, uint64_t signature, std::vector<ArgumentValue> arguments,
    const CallOptions& options, int max_call_retries, uint32_t count) {
  if (count > results_max) {
    return all_failed(
        session, error(Code::invalid, fmt::format("a call has at most {} results", results_max)),
        count);
  }
  if (auto stored = store_large_arguments(session, arguments); !stored) {
    return all_failed(session, std::move(stored).error(), count);
  }
  client::Client::Objects more;
  auto first = start_call(session, target, method, signature, arguments, options, max_call_retries,
                          std::max(count, 1u), &more);
  return own_all(session, std::move(first), std::move(more));
}

Result<std::shared_ptr<RefHandle>> put(const std::shared_ptr<SessionImpl>& session, Writer value) {
  auto& objects = session->client().objects();
  if (value.bytes.size() <= client::inline_bytes_max && value.refs.empty()) {
    auto object = objects.make();
    objects.set_value(object, value.bytes);
    return own(session, std::move(object));
  }
  auto bytes = std::make_shared<const Bytes>(std::move(value.bytes));
  std::vector<ObjectName> held;
  for (const auto& ref : value.refs) held.push_back(name_of(*ref));
  TROUPE_TRY(auto object, session->run<std::shared_ptr<client::Object>>(
                              [&] { return session->client().put(bytes, std::move(held)); }));
  return own(session, std::move(object));
}

Result<ActorId> create_actor(const std::shared_ptr<SessionImpl>& session, std::string module,
                             std::string_view class_name, uint64_t signature,
                             std::vector<ArgumentValue> arguments, const ActorOptions& options) {
  // A detached actor outlives what this process holds: its arguments stay with the head.
  if (!options.detached) TROUPE_CHECK(store_large_arguments(session, arguments));
  protocol::ActorSpec spec;
  spec.name = options.name;
  spec.name_space = session->name_space();
  spec.module = std::move(module);
  spec.class_name = class_name;
  spec.signature = signature;
  spec.demand = to_demand(options.resources);
  spec.priority = options.priority;
  spec.max_restarts = options.max_restarts;
  spec.concurrency = options.max_concurrency;
  spec.detached = options.detached;
  spec.get_if_exists = options.get_if_exists;
  spec.strategy = options.spread ? "spread" : "";
  spec.placement = to_spec(options.placement);
  for (const auto& [name, value] : options.environment) spec.environment.push_back({name, value});
  auto lowered = lower(arguments);
  spec.arguments = std::move(lowered.arguments);
  TROUPE_TRY(const auto info, session->run<protocol::ActorInfo>([&] {
    return session->client().create_actor(std::move(spec), control_budget, std::move(lowered.held));
  }));
  return info.actor;
}

Result<ActorId> find_actor(const std::shared_ptr<SessionImpl>& session, std::string_view name,
                           std::string_view name_space) {
  protocol::GetActor request;
  request.name = name;
  request.name_space = name_space.empty() ? session->name_space() : std::string(name_space);
  TROUPE_TRY(const auto info, session->run<protocol::ActorInfo>([&] {
    return session->client().ask_head<protocol::ActorInfo>(Method::get_actor, request,
                                                           control_budget);
  }));
  if (info.state == "dead") {
    return error(Code::not_found, fmt::format("actor {} is dead: {}", name, info.reason));
  }
  return info.actor;
}

Status kill_actor(const std::shared_ptr<SessionImpl>& session, ActorId actor) {
  protocol::KillActor request{actor, "killed by its user"};
  TROUPE_CHECK(session->run<protocol::Empty>([&] {
    return session->client().ask_head<protocol::Empty>(Method::kill_actor, request, control_budget);
  }));
  return ok();
}

Result<ActorStatus> actor_status(const std::shared_ptr<SessionImpl>& session, ActorId actor) {
  TROUPE_TRY(const auto list, session->run<protocol::ActorList>([&] {
    return session->client().ask_head<protocol::ActorList>(Method::list_actors, protocol::Empty{},
                                                           control_budget);
  }));
  for (const auto& info : list.items) {
    if (info.actor != actor) continue;
    return ActorStatus{info.state, info.reason, info.incarnation, info.pid,
                       info.address.node.to_string()};
  }
  return error(Code::not_found, "no actor " + actor.to_string());
}

Status wait_alive(const std::shared_ptr<SessionImpl>& session, ActorId actor,
                  std::chrono::nanoseconds timeout) {
  TROUPE_CHECK(session->run_waiting<protocol::ActorInfo>(
      [&] { return session->client().locate_actor(actor, 0, timeout); }));
  return ok();
}

namespace {
thread_local void* coroutine_actor = nullptr;
}

CoroutineMethod::CoroutineMethod() {
  coroutine_actor = host().current();
}
CoroutineMethod::~CoroutineMethod() {
  coroutine_actor = nullptr;
}

Continuation::Continuation() : actor_(coroutine_actor), call_(current_call()) {}

void Continuation::resume(std::coroutine_handle<> waiting) const {
  if (actor_ == nullptr) {
    const RunningCall running{call_};
    waiting.resume();
    return;
  }
  struct Next {
    std::coroutine_handle<> waiting;
    CurrentCall call;
  };
  const auto run = [](void* argument) {
    const std::unique_ptr<Next> next{static_cast<Next*>(argument)};
    const CoroutineMethod runs;
    const RunningCall running{std::move(next->call)};
    next->waiting.resume();
  };
  auto* next = new Next{waiting, call_};
  if (host().defer(static_cast<troupe_context*>(actor_), run, next) != TROUPE_OK) {
    delete next;  // An actor that stops leaves the coroutine where it is: its process ends.
  }
}

ThreadWait::ThreadWait() : session_(process_session()) {
  if (session_) session_->post([client = &session_->client()] { client->begin_wait(); });
}
ThreadWait::~ThreadWait() {
  if (session_) session_->post([client = &session_->client()] { client->end_wait(); });
}

namespace {

struct Waiting {
  explicit Waiting(const Executor& executor) : changed(executor) {}
  std::vector<bool> ready;
  size_t ready_count = 0;
  Event changed;
};

Async<void> watch(client::Client& client, ObjectName name, Instant deadline, size_t index,
                  std::shared_ptr<Waiting> waiting) {
  const bool ready = co_await client.wait_ready(std::move(name), deadline);
  if (!ready) co_return;
  waiting->ready[index] = true;
  ++waiting->ready_count;
  waiting->changed.pulse();
}

Async<Result<std::vector<bool>>> wait_for(client::Client& client, std::vector<ObjectName> names,
                                          size_t count, Duration timeout) {
  const auto& environment = client.environment();
  const Instant deadline = environment.clock.now() + timeout;
  auto waiting = std::make_shared<Waiting>(environment.loop);
  waiting->ready.resize(names.size());
  Scope watchers{environment.loop};
  for (size_t i = 0; i < names.size(); ++i) {
    spawn(watchers, watch(client, std::move(names[i]), deadline, i, waiting));
  }
  while (waiting->ready_count < count) {
    const bool changed = co_await wait_until(environment.clock, deadline, waiting->changed);
    if (!changed) break;
  }
  co_await watchers.stop();
  co_return waiting->ready;
}

}  // namespace

Result<WaitResult> wait(const std::shared_ptr<SessionImpl>& session,
                        const std::vector<std::shared_ptr<RefHandle>>& refs,
                        const WaitOptions& options) {
  std::vector<ObjectName> names;
  for (const auto& ref : refs) {
    if (!ref) return error(Code::invalid, "an empty ref cannot be waited for");
    names.push_back(name_of(*ref));
  }
  const size_t count = std::min(options.count, refs.size());
  TROUPE_TRY(const auto ready, session->run_waiting<std::vector<bool>>([&] {
    return wait_for(session->client(), std::move(names), count, options.timeout);
  }));
  WaitResult result;
  for (size_t i = 0; i < ready.size(); ++i) {
    (ready[i] ? result.ready : result.pending).push_back(i);
  }
  return result;
}

Status cancel(const std::shared_ptr<RefHandle>& ref, const CancelOptions& options) {
  if (!ref) return error(Code::invalid, "an empty ref makes nothing that could be cancelled");
  const auto& object = ref->object();
  if (!object) {
    return error(Code::denied, fmt::format("object {} belongs to another process, which alone can "
                                           "cancel what makes it",
                                           ref->id().to_string()));
  }
  if (options.force && object->maker() == client::Object::Maker::actor) {
    return error(Code::invalid,
                 "a call of an actor cannot be cancelled by force, for its process has other "
                 "callers: cancel it without, or kill() the actor");
  }
  const int how = (options.force ? protocol::cancel_by_force : 0) |
                  (options.children ? 0 : protocol::cancel_spares_children);
  ref->session()->client().objects().cancel(
      object, error(Code::cancelled, "the task or call was cancelled"), static_cast<uint8_t>(how));
  return ok();
}

size_t pending_calls(const std::shared_ptr<SessionImpl>& session) {
  return session->client().objects().calls().unfinished();
}

Status drain(const std::shared_ptr<SessionImpl>& session, std::chrono::nanoseconds timeout) {
  auto& calls = session->client().objects().calls();
  const auto& environment = session->client().environment();
  const Instant deadline = environment.clock.now() + timeout;
  transport::RingPort::Waiter waiter{*environment.rings};
  const ThreadWait lends;
  const bool done = environment.rings->wait(
      waiter, deadline, [&] { return calls.unfinished() == 0; }, [&] { calls.add_waiter(waiter); });
  calls.remove_waiter(waiter);
  if (done) return ok();
  return error(Code::deadline_exceeded,
               fmt::format("{} tasks and calls are unfinished", calls.unfinished()));
}

uint64_t unread_failures(const std::shared_ptr<SessionImpl>& session) {
  return session->client().objects().unread_failures();
}

namespace {

// `Source` (an ItemSource, an IncomingStream) belongs to the loop, so it is dropped there.
template <class Source>
class ClientItemStream final : public ItemStream {
 public:
  // `call`: cancelled when this goes; null: the source itself is.
  ClientItemStream(std::shared_ptr<SessionImpl> session, std::shared_ptr<Source> source,
                   std::shared_ptr<RefHandle> call)
      : session_(std::move(session)), source_(std::move(source)), call_(std::move(call)) {}
  ~ClientItemStream() override {
    if (call_) (void)cancel(call_, {});
    session_->post([moved = std::move(source_)]() mutable { moved.reset(); });
  }
  Result<std::optional<Bytes>> next(std::chrono::nanoseconds timeout) override {
    auto& clock = session_->client().environment().clock;
    const Instant deadline = clock.now() + timeout;
    return session_->run_waiting<std::optional<Bytes>>(
        [&] { return with_deadline(clock, deadline, source_->next()); });
  }
  void next_later(std::function<void(Result<std::optional<Bytes>>)> done) override {
    auto shared =
        std::make_shared<std::function<void(Result<std::optional<Bytes>>)>>(std::move(done));
    client::Client* client = &session_->client();
    session_->post([client, source = source_, shared]() mutable {
      spawn(client->scope(), next_and_call(std::move(source), std::move(shared)));
    });
  }
  const std::shared_ptr<SessionImpl>& session() const override { return session_; }

 private:
  using Done = std::function<void(Result<std::optional<Bytes>>)>;
  static Async<void> next_and_call(std::shared_ptr<Source> source, std::shared_ptr<Done> done) {
    struct Guard {
      std::shared_ptr<Done> done;
      Result<std::optional<Bytes>> item = error(Code::cancelled, "the session was closed");
      ~Guard() {
        boost::asio::post(callbacks(), [call = std::move(done), value = std::move(item)]() mutable {
          (*call)(std::move(value));
        });
      }
    } guard{std::move(done)};
    guard.item = co_await source->next();
  }

  std::shared_ptr<SessionImpl> session_;
  std::shared_ptr<Source> source_;
  std::shared_ptr<RefHandle> call_;
};

StartedStream started(const std::shared_ptr<SessionImpl>& session,
                      std::shared_ptr<client::ItemSource> items, std::shared_ptr<RefHandle> call) {
  return {std::make_unique<ClientItemStream<client::ItemSource>>(session, std::move(items), call),
          call};
}

// One that failed before it began.
StartedStream failed_stream(const std::shared_ptr<SessionImpl>& session,
                            std::shared_ptr<client::ItemSource> items, Error failure) {
  session->post([items, failure] { items->settle(failure); });
  return started(session, std::move(items), make_failed(session, std::move(failure)));
}

std::vector<protocol::Argument> opaque(std::vector<Bytes> values) {
  std::vector<protocol::Argument> arguments;
  for (Bytes& value : values) arguments.push_back({std::move(value), {}, {}});
  return arguments;
}

}  // namespace

Result<std::unique_ptr<ItemStream>> stream_call(const std::shared_ptr<SessionImpl>& session,
                                                ActorId actor, std::string_view method,
                                                std::vector<Bytes> arguments) {
  client::ActorCallSpec spec;
  spec.actor = actor;
  spec.method = method;
  spec.arguments = opaque(std::move(arguments));
  TROUPE_TRY(auto stream, session->run<std::shared_ptr<transport::IncomingStream>>(
                              [&] { return session->client().stream_actor(std::move(spec)); }));
  return std::make_unique<ClientItemStream<transport::IncomingStream>>(session, std::move(stream),
                                                                       nullptr);
}

StartedStream stream_task(const std::shared_ptr<SessionImpl>& session, const void* function,
                          uint64_t signature, std::vector<ArgumentValue> arguments,
                          const TaskOptions& options) {
  auto items = std::make_shared<client::ItemSource>(session->client().environment().loop);
  auto traits = traits_of(function, signature, options, 0);
  if (!traits) return failed_stream(session, std::move(items), std::move(traits).error());
  if (auto stored = store_large_arguments(session, arguments); !stored) {
    return failed_stream(session, std::move(items), std::move(stored).error());
  }
  auto call = start_task(session, std::move(*traits), arguments, nullptr, items);
  return started(session, std::move(items), own(session, std::move(call)));
}

StartedStream stream_method(const std::shared_ptr<SessionImpl>& session,
                            const std::shared_ptr<client::ActorTarget>& target,
                            std::string_view method, uint64_t signature,
                            std::vector<ArgumentValue> arguments, const CallOptions& options) {
  auto items = std::make_shared<client::ItemSource>(session->client().environment().loop);
  if (auto stored = store_large_arguments(session, arguments); !stored) {
    return failed_stream(session, std::move(items), std::move(stored).error());
  }
  auto call =
      start_call(session, target, method, signature, arguments, options, 0, 0, nullptr, items);
  return started(session, std::move(items), own(session, std::move(call)));
}

// --- The callee's end.

bool ItemWriter::offer(const Writer& item) {
  if (!item.refs.empty()) throw error(Code::invalid, "an item of a stream cannot hold refs");
  const auto code =
      static_cast<Code>(host().call_emit(call_, {item.bytes.data(), item.bytes.size()}));
  if (code == Code::ok) return true;
  if (code == Code::exhausted) return false;
  throw error(code, code == Code::cancelled ? "nobody reads the stream any more"
                                            : "the stream is past its time limit, or was ended");
}

bool ItemWriter::on_room(const Writer& item, std::function<void()> ready) {
  auto kept = std::make_unique<std::function<void()>>(std::move(ready));
  const auto run = [](void* argument) {
    const std::unique_ptr<std::function<void()>> call{
        static_cast<std::function<void()>*>(argument)};
    (*call)();
  };
  const bool waits =
      host().call_on_room(call_, item.bytes.size(), run, kept.get()) == TROUPE_EXHAUSTED;
  if (waits) (void)kept.release();
  return waits;
}

void ItemWriter::wait_for_room(const Writer& item) {
  const auto room = std::make_shared<std::binary_semaphore>(0);
  if (!on_room(item, [room] { room->release(); })) return;
  const ThreadWait lends;
  room->acquire();
}

void ItemWriter::finish(const std::exception_ptr& thrown) noexcept {
  finish_with<void>(call_, [&] {
    if (thrown) std::rethrow_exception(thrown);
  });
}

bool runs_coroutine_method() {
  return coroutine_actor != nullptr;
}

// --- The life of a driver's session.

namespace {

// For the coroutines that start and stop the client, which no scope of the client's can own.
template <class Function>
void spawn_detached(boost::asio::io_context& loop, Function function) {
  boost::asio::co_spawn(loop, std::move(function), boost::asio::detached);
}

Async<void> end_job(DriverCore& core) {
  protocol::EndJob end;
  end.job = core.client->job();
  end.succeeded = core.failure.empty();
  end.message = core.failure;
  auto ended = co_await core.client->ask_head<protocol::Empty>(Method::end_job, end,
                                                               std::chrono::seconds(2));
  if (!ended) log::debug("job_not_ended", {{"why", ended.error().message()}});
}

void shut_down(std::unique_ptr<DriverCore> core) {
  if (core->thread.joinable()) {
    DriverCore* raw = core.get();
    boost::asio::post(raw->real.io(), [raw] {
      spawn_detached(raw->real.io(), [raw]() -> Async<void> {
        if (raw->ends_job) co_await end_job(*raw);
        co_await raw->client->stop();
        raw->real.io().stop();
      });
    });
    core->thread.join();
  }
  core.reset();
}

}  // namespace

SessionImpl::~SessionImpl() {
  if (!core_) return;
  if (core_->failure.empty() && std::uncaught_exceptions() > 0) {
    core_->failure = "the driver ended by an exception";
  }
  // The last ref may go on a thread of the session's own, which cannot join itself.
  const bool own_thread = core_->thread.get_id() == std::this_thread::get_id() ||
                          callbacks().get_executor().running_in_this_thread();
  if (own_thread) {
    std::thread([core = std::move(core_)]() mutable { shut_down(std::move(core)); }).detach();
  } else {
    shut_down(std::move(core_));
  }
}

namespace {

std::shared_ptr<SessionImpl>& process_session_slot() {
  static std::shared_ptr<SessionImpl> session;
  return session;
}

std::filesystem::path state_folder(const std::string& given) {
  if (!given.empty()) return given;
  if (const char* from_environment = std::getenv("TROUPE_STATE")) return from_environment;
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home != nullptr ? home : "/tmp") / ".troupe";
}

// The sockets of the workers on this machine, in the order in which they should be tried.
std::vector<std::string> worker_sockets(const std::filesystem::path& state) {
  if (const char* chosen = std::getenv("TROUPE_WORKER_SOCKET")) return {chosen};
  std::vector<std::string> sockets;
  std::error_code failed;
  for (const auto& entry : std::filesystem::directory_iterator(state / "sockets", failed)) {
    const auto name = entry.path().filename().string();
    if (name.starts_with("worker-") && name.ends_with(".sock")) sockets.push_back(entry.path());
  }
  std::sort(sockets.begin(), sockets.end());
  return sockets;
}

std::string command_line() {
  std::ifstream file{"/proc/self/cmdline"};
  std::string line{std::istreambuf_iterator<char>(file), {}};
  std::replace(line.begin(), line.end(), '\0', ' ');
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line.substr(0, 4096);
}

Result<std::unique_ptr<DriverCore>> start_driver(const std::string& socket, JobId job) {
  auto core = std::make_unique<DriverCore>();
  DriverCore* raw = core.get();
  TROUPE_CHECK(core->real.enable_rings());
  client::ClientOptions options;
  options.kind = "driver";
  options.job = job;
  options.worker.unix_path = socket;
  options.use_credentials = [raw](const protocol::Attached& attached) -> Status {
    TROUPE_TRY(raw->credentials,
               security::Credentials::load(
                   {attached.authority_pem, attached.certificate_pem, attached.key_pem}));
    raw->real.set_credentials(raw->credentials.get());
    return ok();
  };
  core->client = std::make_unique<client::Client>(core->real.environment(), std::move(options));
  std::promise<Status> started;
  core->thread = std::thread([raw, &started] {
    spawn_detached(raw->real.io(), [raw, &started]() -> Async<void> {
      auto outcome = co_await raw->client->start();
      if (!outcome) {
        co_await raw->client->stop();
        raw->real.io().stop();
      }
      started.set_value(std::move(outcome));
    });
    auto keep_running = boost::asio::make_work_guard(raw->real.io());
    raw->real.io().run();
  });
  auto outcome = started.get_future().get();
  if (!outcome) {
    core->thread.join();
    return std::move(outcome).error();
  }
  return core;
}

}  // namespace

void set_process_session(std::shared_ptr<SessionImpl> session) {
  process_session_slot() = std::move(session);
}
std::shared_ptr<SessionImpl> process_session() {
  return process_session_slot();
}

}  // namespace detail

JobId Session::job() const {
  return impl_->client().job();
}

void Session::fail_job(std::string_view reason) const {
  if (impl_->core() != nullptr) impl_->core()->failure = reason;
}

Result<ActorId> Session::create_plugin_actor(const std::string& plugin,
                                             const std::string& class_name,
                                             std::vector<Bytes> arguments,
                                             const ActorOptions& options) const {
  std::vector<detail::ArgumentValue> values;
  for (Bytes& bytes : arguments) values.push_back({std::move(bytes), nullptr, {}});
  return detail::create_actor(impl_, plugin, class_name, 0, std::move(values), options);
}

Result<Bytes> Session::ask_plugin_actor(ActorId actor, std::string_view method,
                                        std::vector<Bytes> arguments,
                                        std::chrono::nanoseconds timeout) const {
  client::ActorCallSpec spec;
  spec.actor = actor;
  spec.method = method;
  spec.arguments = detail::opaque(std::move(arguments));
  spec.budget = timeout;
  TROUPE_TRY(const auto reply, impl_->run_waiting<client::ObjectBytes>(
                                   [&] { return impl_->client().call_actor(std::move(spec)); }));
  return Bytes(reply.bytes.begin(), reply.bytes.end());
}

Result<Session> connect(const ConnectOptions& options) {
  if (auto existing = detail::process_session()) return Session{std::move(existing)};
  const auto state = detail::state_folder(options.state_folder);
  const auto sockets = detail::worker_sockets(state);
  Error failure =
      error(Code::unavailable,
            fmt::format("no cluster runs in {}: start one with 'troupe up', or name its "
                        "state folder in TROUPE_STATE",
                        state.string()));
  SystemRandom random;
  JobId job = JobId::random(random);
  const char* submitted = std::getenv("TROUPE_JOB_ID");  // By `troupe submit`.
  if (submitted != nullptr) {
    TROUPE_TRY(job, JobId::parse(submitted));
  }
  for (const std::string& socket : sockets) {
    auto core = detail::start_driver(socket, job);
    if (!core) {
      failure = std::move(core).error();
      continue;
    }
    (*core)->ends_job = submitted == nullptr;
    auto impl = std::make_shared<detail::SessionImpl>(std::move(*core));
    if (!options.name_space.empty()) impl->set_name_space(options.name_space);
    protocol::BeginJob begin;
    begin.job = job;
    begin.entrypoint = detail::command_line();
    begin.name = options.job_name.empty() ? ::program_invocation_short_name : options.job_name;
    begin.name_space = impl->name_space();
    TROUPE_CHECK(impl->run<protocol::Empty>([&] {
      return impl->client().ask_head<protocol::Empty>(transport::Method::begin_job, begin,
                                                      detail::control_budget);
    }));
    return Session{std::move(impl)};
  }
  return failure;
}

}  // namespace troupe
