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
#include <numeric>
#include <unordered_map>

#include "base/log.h"
#include "call_scope.h"
#include "client/actor_caller.h"
#include "client/item_source.h"
#include "client/object_directory.h"
#include "client/result_refs.h"
#include "client/store_client.h"
#include "client/timeline_notes.h"
#include "job_files.h"
#include "placement_lowering.h"
#include "session_impl.h"
#include "signature_names.h"
#include "submitting.h"
#include "transport/ring_port.h"
#include "waiting.h"

namespace troupe {
namespace detail {

using client::ObjectName;
using Needs = client::WaitFacts::Needs;
using transport::Method;

namespace {

constexpr Duration control_budget = std::chrono::seconds(30);
constexpr size_t told_max = 1000;  // Of what a wait waits for.

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

}  // namespace

std::shared_ptr<RefHandle> own(const std::shared_ptr<SessionImpl>& session,
                               std::shared_ptr<client::Object> object) {
  return std::make_shared<RefHandle>(session, std::move(object));
}

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

std::shared_ptr<RefHandle> make_failed(const std::shared_ptr<SessionImpl>& session, Error failure) {
  auto& objects = session->client().objects();
  auto object = objects.make();
  objects.set_error(object, std::move(failure));
  return own(session, std::move(object));
}

RefHandle::RefHandle(std::shared_ptr<SessionImpl> session, ObjectId id,
                     std::shared_ptr<const protocol::ProcessAddress> owner)
    : session_(std::move(session)), borrowed_(new Borrowed{id, std::move(owner)}) {}

RefHandle::RefHandle(std::shared_ptr<SessionImpl> session, std::shared_ptr<client::Object> object)
    : session_(std::move(session)), object_(std::move(object)) {}

RefHandle::~RefHandle() {
  auto& objects = session_->client().objects();
  if (object_) {
    objects.drop_reference(object_);
  } else {
    objects.borrows().drop(borrowed_->id);
  }
}

ObjectId RefHandle::id() const {
  return object_ ? object_->id() : borrowed_->id;
}

const protocol::ProcessAddress& RefHandle::owner() const {
  return object_ ? session_->client().address() : *borrowed_->owner;
}

bool RefHandle::is_ready() const {
  return object_ ? object_->is_ready() : borrowed_->known_ready.load(std::memory_order_relaxed);
}

void RefHandle::note_ready() const {
  if (borrowed_) borrowed_->known_ready.store(true, std::memory_order_relaxed);
}

std::shared_ptr<RefHandle> borrow(std::shared_ptr<SessionImpl> session, ObjectId id,
                                  std::shared_ptr<const protocol::ProcessAddress> owner) {
  client::Client& client = session->client();
  if (owner->process == client.address().process) {
    // One of our own came back. If it was freed meanwhile, get says so.
    if (auto object = client.objects().find_and_hold(id)) {
      return std::make_shared<RefHandle>(std::move(session), std::move(object));
    }
  }
  client.objects().borrows().add(id, owner);
  return std::make_shared<RefHandle>(std::move(session), id, std::move(owner));
}

// A ref is the number of its owner among those written so far (0: an empty ref; one above the last:
// a new owner, whose address follows) and its id.
void write_ref(Writer& out, const std::shared_ptr<RefHandle>& handle) {
  if (out.to == Writer::To::nowhere) {
    out.holds_refs = true;
    return;
  }
  if (!handle) {
    write<uint32_t>(out, 0);
    return;
  }
  if (handle->object()) handle->session()->client().objects().publish(handle->object());
  const protocol::ProcessAddress& owner = handle->owner();
  const auto known = std::ranges::find(out.owners, owner.process,
                                       [](const auto& address) { return address->process; });
  write(out, static_cast<uint32_t>(known - out.owners.begin()) + 1);
  uint8_t bytes[32];
  if (known == out.owners.end()) {
    out.owners.push_back(std::make_shared<const protocol::ProcessAddress>(owner));
    owner.process.to_bytes(bytes);
    owner.node.to_bytes(bytes + 16);
    out.raw(bytes, 32);
    write(out, owner.unix_path);
    write(out, owner.host);
    write(out, owner.port);
  }
  handle->id().to_bytes(bytes);
  out.raw(bytes, 16);
  out.refs.push_back(handle);
}

std::shared_ptr<RefHandle> read_ref(Reader& in) {
  uint32_t number = 0;
  read(in, number);
  if (number == 0) return nullptr;
  if (number > in.owners.size() + 1) {
    in.failed = true;
    return nullptr;
  }
  uint8_t bytes[32];
  if (number == in.owners.size() + 1) {
    protocol::ProcessAddress owner;
    in.raw(bytes, 32);
    owner.process = ProcessId::from_bytes({bytes, 16});
    owner.node = NodeId::from_bytes({bytes + 16, 16});
    read(in, owner.unix_path);
    read(in, owner.host);
    read(in, owner.port);
    in.owners.push_back(std::make_shared<const protocol::ProcessAddress>(std::move(owner)));
  }
  in.raw(bytes, 16);
  const auto id = ObjectId::from_bytes({bytes, 16});
  if (id.is_nil() || in.failed || !in.session) return nullptr;
  return borrow(in.session, id, in.owners[number - 1]);
}

void note_child(const std::shared_ptr<SessionImpl>& session,
                const std::shared_ptr<client::Object>& object) {
  if (current_call().call == nullptr) return;
  if (const auto scope = CallScope::current()) scope->add_child(session, object);
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

void note_if_long(SessionImpl& session, Duration waited, const RawId& object, const char* name) {
  Timeline* const timeline = session.client().timeline();
  if (waited < timeline_long_wait || timeline == nullptr) return;
  client::note_wait(*timeline, object, name, waited);
}

// Errors: deadline_exceeded, and those of wait_in_rings.
Status wait_ready(SessionImpl& session, const std::shared_ptr<client::Object>& object,
                  Instant deadline) {
  if (object->is_ready()) return ok();
  transport::RingPort::Waiter waiter{*session.client().environment().rings};
  const auto facts = [&] {
    const ObjectName name = session.client().objects().publish(object);
    return client::WaitFacts{"get", {client::as_subject(name)}, Needs::all, deadline};
  };
  const auto ready = wait_in_rings(
      session, waiter, deadline, [&] { return object->is_ready(); },
      [&] { object->add_waiter(waiter); }, facts);
  object->remove_waiter(waiter);
  note_if_long(session, waiter.waited(), object->id(), "get");
  if (!ready) return ready.error();
  if (*ready) return ok();
  return error(Code::deadline_exceeded,
               fmt::format("object {} is not ready", object->id().to_string()));
}

Result<Fetched> to_fetched(Result<client::ObjectBytes> bytes) {
  if (!bytes) return with_signatures(std::move(bytes).error());
  return Fetched{bytes->bytes, std::move(bytes->keep_alive)};
}

}  // namespace

Result<Fetched> fetch(const RefHandle& ref, std::chrono::nanoseconds timeout) {
  SessionImpl& session = *ref.session();
  client::Client& client = session.client();
  const auto& object = ref.object();
  if (object) {
    const Instant deadline = client.environment().clock.now() + timeout;
    TROUPE_CHECK(wait_ready(session, object, deadline));
    if (auto there = client.objects().read(object)) return to_fetched(std::move(*there));
    return to_fetched(session.run<client::ObjectBytes>(
        [&] { return client.objects().get_owned(object, deadline); }));
  }
  if (auto view = client.store().find(ref.id())) return to_fetched(std::move(*view));
  const Instant deadline = client.environment().clock.now() + timeout;
  const auto facts = [&] {
    return client::WaitFacts{"get", {client::as_subject(name_of(ref))}, Needs::all, deadline};
  };
  const Instant began = client.environment().clock.now();
  auto bytes = run_blocked<client::ObjectBytes>(session, facts,
                                                [&client, name = name_of(ref), timeout]() mutable {
                                                  return client.get(std::move(name), timeout);
                                                });
  note_if_long(session, client.environment().clock.now() - began, ref.id(), "get");
  return to_fetched(std::move(bytes));
}

namespace {

Async<Result<std::vector<Result<client::ObjectBytes>>>> get_many(client::Client& client,
                                                                 std::vector<ObjectName> names,
                                                                 Instant deadline) {
  co_return co_await client.objects().get_many(std::move(names), deadline);
}

}  // namespace

Result<std::vector<Fetched>> fetch_all(const std::shared_ptr<SessionImpl>& session,
                                       std::span<const RefHandle* const> refs,
                                       std::chrono::nanoseconds timeout) {
  client::Client& client = session->client();
  const Instant deadline = client.environment().clock.now() + timeout;
  std::vector<Fetched> values(refs.size());
  // What makes those behind the first failure may never end.
  std::optional<Error> failure;
  std::vector<ObjectName> missing;
  std::vector<size_t> places;
  for (size_t i = 0; i < refs.size() && !failure; ++i) {
    std::optional<Result<client::ObjectBytes>> there;
    if (const auto& object = refs[i]->object()) {
      if (const Status waited = wait_ready(*session, object, deadline); !waited) {
        failure = waited.error();
        break;
      }
      there = client.objects().read(object);
    } else if (auto view = client.store().find(refs[i]->id())) {
      there.emplace(std::move(*view));
    }
    if (!there) {
      missing.push_back(name_of(*refs[i]));
      places.push_back(i);
    } else if (*there) {
      values[i] = {(*there)->bytes, std::move((*there)->keep_alive)};
    } else {
      failure = with_signatures(there->error());
    }
  }
  if (!missing.empty()) {
    using Values = std::vector<Result<client::ObjectBytes>>;
    const auto facts = [&] {
      client::WaitFacts told{"get", {}, Needs::all, deadline};
      for (const size_t place : std::span{places}.first(std::min(places.size(), told_max))) {
        told.subjects.push_back(client::as_subject(name_of(*refs[place])));
      }
      return told;
    };
    auto ask = [&client, names = std::move(missing), deadline]() mutable {
      return get_many(client, std::move(names), deadline);
    };
    const Instant began = client.environment().clock.now();
    auto outcome = run_blocked<Values>(*session, facts, std::move(ask));
    note_if_long(*session, client.environment().clock.now() - began, {}, "get of several");
    TROUPE_TRY(auto got, std::move(outcome));
    for (size_t i = 0; i < got.size(); ++i) {
      TROUPE_TRY(values[places[i]], to_fetched(std::move(got[i])));
    }
  }
  if (failure) return std::move(*failure);
  return values;
}

namespace {

// See call_back. Never joined, for what a program blocks in may have no end.
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

// A coroutine's wait for an object, on the loop until it is called back: once, with the first
// outcome.
class FetchWait final : public client::BlockedWait {
 public:
  using Callback = std::shared_ptr<std::function<void(Result<Fetched>)>>;

  FetchWait(client::Client& client, const void* call, std::shared_ptr<client::Object> own,
            ObjectName name, Callback done)
      : BlockedWait(call, false),
        client_(client),
        object_(std::move(own)),
        name_(std::move(name)),
        done_(std::move(done)) {}
  ~FetchWait() override { give(error(Code::cancelled, "the session was closed")); }

  client::WaitFacts facts() override {
    const ObjectName known = object_ ? client_.objects().publish(object_) : name_;
    return {"co_await", {client::as_subject(known)}};
  }
  void fail(const Error& why) override { give(why); }
  void give(Result<Fetched> outcome) {
    if (!done_) return;
    boost::asio::post(callbacks(),
                      [callback = std::exchange(done_, nullptr),
                       value = std::move(outcome)]() mutable { (*callback)(std::move(value)); });
  }

  bool is_ready() const { return object_ && object_->is_ready(); }
  Async<Result<client::ObjectBytes>> fetch() const { return get_any(client_, object_, name_); }

 private:
  client::Client& client_;
  const std::shared_ptr<client::Object> object_;  // Null: another process's.
  const ObjectName name_;
  Callback done_;
};

Async<void> fetch_and_call(client::Client& client, const void* call,
                           std::shared_ptr<client::Object> object, ObjectName name,
                           FetchWait::Callback done) {
  FetchWait wait{client, call, std::move(object), std::move(name), std::move(done)};
  std::optional<client::InBlockedWaits> listed;
  if (!wait.is_ready()) listed.emplace(client.waits(), wait);
  auto bytes = co_await wait.fetch();
  listed.reset();
  wait.give(to_fetched(std::move(bytes)));
}

}  // namespace

void call_back(std::function<void()> call) {
  boost::asio::post(callbacks(), std::move(call));
}

void fetch_later(std::shared_ptr<RefHandle> ref, std::function<void(Result<Fetched>)> done) {
  client::Client& client = ref->session()->client();
  // The ref lives until the callback has run, and goes on the pool's thread, not on the loop's.
  auto shared = std::make_shared<std::function<void(Result<Fetched>)>>(
      [ref, call = std::move(done)](Result<Fetched> value) { call(std::move(value)); });
  ObjectName name;
  if (!ref->object()) name = name_of(*ref);
  ref->session()->post([&client, call = current_call().call, object = ref->object(),
                        name = std::move(name), shared]() mutable {
    spawn(client.scope(),
          fetch_and_call(client, call, std::move(object), std::move(name), std::move(shared)));
  });
}

namespace {

struct TaskFunction {
  std::string module;
  std::string name;
};

// Found once a function: it takes a walk through the file system.
Result<const TaskFunction*> find_task_function(SessionImpl& session, const void* function) {
  static std::mutex mutex;
  static std::unordered_map<const void*, TaskFunction> known;  // Its nodes do not move.
  thread_local std::pair<const void*, const TaskFunction*> last{};
  if (last.first == function && function != nullptr) return last.second;
  const std::lock_guard lock{mutex};
  auto found = known.find(function);
  if (found == known.end()) {
    TROUPE_TRY(auto name, task_name(function));
    const std::string module = module_of(function);
    TROUPE_CHECK(ship_module(session, module));
    found = known.emplace(function, TaskFunction{module, std::move(name)}).first;
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
Result<std::shared_ptr<const client::TaskTraits>> traits_of(SessionImpl& session,
                                                            const void* function,
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
  TROUPE_TRY(const TaskFunction* task, find_task_function(session, function));
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
  auto traits = traits_of(*session, function, signature, options, 0);
  if (!traits) return make_failed(session, std::move(traits).error());
  if (auto stored = store_large_arguments(session, arguments); !stored) {
    return make_failed(session, std::move(stored).error());
  }
  return own(session, start_task(session, std::move(*traits), arguments, nullptr));
}

std::vector<std::shared_ptr<RefHandle>> submit_task_many(
    const std::shared_ptr<SessionImpl>& session, const void* function, uint64_t signature,
    std::vector<ArgumentValue> arguments, const TaskOptions& options, uint32_t count) {
  auto traits = traits_of(*session, function, signature, options, std::max(count, 1u));
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

client::ActorCallSpec to_call_spec(std::string_view method, uint64_t signature,
                                   std::vector<ArgumentValue>& arguments,
                                   const CallOptions& options, CallExtras more) {
  client::ActorCallSpec spec;
  spec.method = method;
  spec.signature = signature;
  spec.budget = options.timeout;
  const int retries = options.retries.value_or(more.max_call_retries);
  const bool waits_for_room = options.when_full == WhenFull::wait;
  if (retries != 0 || !options.name.empty() || more.results > 0 || more.items || more.route ||
      waits_for_room) {
    auto extras = std::make_shared<client::ActorCallExtras>();
    if (retries != 0) extras->retry = to_policy(retries, options.retry_on, options.retry_delay);
    extras->name = options.name;
    extras->results = more.results;
    extras->items_max = std::max(options.generator_items_max, 1u);
    extras->items = std::move(more.items);
    extras->waits_for_room = waits_for_room;
    extras->route = std::move(more.route);
    spec.extras = std::move(extras);
  }
  auto lowered = lower(arguments);
  spec.arguments = std::move(lowered.arguments);
  spec.held = std::move(lowered.held);
  return spec;
}

namespace {

std::shared_ptr<client::Object> start_call(const std::shared_ptr<SessionImpl>& session,
                                           const std::shared_ptr<client::ActorTarget>& target,
                                           std::string_view method, uint64_t signature,
                                           std::vector<ArgumentValue>& arguments,
                                           const CallOptions& options, CallExtras extras,
                                           client::Client::Objects* more) {
  auto spec = to_call_spec(method, signature, arguments, options, std::move(extras));
  spec.actor = target->actor();
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
  CallExtras extras;
  extras.max_call_retries = max_call_retries;
  return own(session, start_call(session, target, method, signature, arguments, options,
                                 std::move(extras), nullptr));
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
  CallExtras extras;
  extras.max_call_retries = max_call_retries;
  extras.results = std::max(count, 1u);
  auto first =
      start_call(session, target, method, signature, arguments, options, std::move(extras), &more);
  return own_all(session, std::move(first), std::move(more));
}

Result<std::shared_ptr<RefHandle>> put(const std::shared_ptr<SessionImpl>& session, Writer value) {
  auto& objects = session->client().objects();
  if (value.refs.empty()) {
    if (value.bytes.size() <= client::inline_bytes_max) {
      auto object = objects.make();
      objects.set_value(object, value.bytes);
      return own(session, std::move(object));
    }
    TROUPE_TRY(auto room, take_room(session, value.bytes.size()));
    std::memcpy(room.bytes.data(), value.bytes.data(), value.bytes.size());
    return seal(session, std::move(room));
  }
  auto bytes = std::make_shared<const Bytes>(std::move(value.bytes));
  std::vector<ObjectName> held;
  for (const auto& ref : value.refs) held.push_back(name_of(*ref));
  TROUPE_TRY(auto object, session->run<std::shared_ptr<client::Object>>(
                              [&] { return session->client().put(bytes, std::move(held)); }));
  return own(session, std::move(object));
}

namespace {

Async<Result<protocol::Empty>> reserve(client::Client& client, size_t size_bytes,
                                       Instant deadline) {
  TROUPE_CO_CHECK(co_await client.store().reserve(size_bytes, deadline));
  co_return protocol::Empty{};
}

}  // namespace

Result<Room> take_room(const std::shared_ptr<SessionImpl>& session, size_t size_bytes) {
  client::Client& client = session->client();
  std::optional<Instant> deadline;
  for (;;) {
    TROUPE_TRY(auto block, client.store().allocate(size_bytes));
    if (block) {
      const auto bytes = block->bytes();
      return Room{bytes, std::move(block)};
    }
    // Others of this process may take what comes; so again.
    if (!deadline) deadline = client.environment().clock.now() + client::store_budget;
    TROUPE_CHECK(
        session->run<protocol::Empty>([&] { return reserve(client, size_bytes, *deadline); }));
  }
}

std::shared_ptr<RefHandle> seal(const std::shared_ptr<SessionImpl>& session, Room room) {
  client::Client& client = session->client();
  auto object = client.objects().make();
  const size_t size_bytes = room.bytes.size();
  Timeline* const timeline = client.timeline();
  if (timeline != nullptr && timeline->wants(object->id())) {
    client::note_stored(*timeline, object->id(), timeline->now(), size_bytes);
  }
  client.store().keep_private(object->id(), std::move(room.block));
  object->set_stored(client.store().node(), size_bytes);
  return own(session, std::move(object));
}

namespace {

protocol::ActorSpec actor_spec(const SessionImpl& session, std::string module,
                               std::string_view class_name, uint64_t signature,
                               const ActorOptions& options) {
  protocol::ActorSpec spec;
  spec.name = options.name;
  spec.name_space = session.name_space();
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
  spec.shared = options.process == ActorProcess::shared;
  spec.out_of_order = options.out_of_order;
  spec.mailbox_calls_max = options.mailbox_calls_max;
  for (const auto& [name, limit] : options.concurrency_groups) spec.groups.push_back({name, limit});
  spec.exit_grace_us = static_cast<uint64_t>(std::max<int64_t>(options.exit_grace.count(), 0));
  spec.checkpoint_interval_us =
      static_cast<uint64_t>(std::max<int64_t>(options.checkpoint_interval.count(), 0));
  spec.isolation_limit_us =
      static_cast<uint64_t>(std::max<int64_t>(options.isolation_limit.count(), 0));
  return spec;
}

}  // namespace

Result<ActorId> create_actor(const std::shared_ptr<SessionImpl>& session, std::string module,
                             std::string_view class_name, uint64_t signature,
                             std::vector<ArgumentValue> arguments, const ActorOptions& options) {
  // A detached actor outlives what this process holds: its arguments stay with the head.
  if (!options.detached) TROUPE_CHECK(store_large_arguments(session, arguments));
  TROUPE_CHECK(ship_module(*session, module));
  auto spec = actor_spec(*session, std::move(module), class_name, signature, options);
  auto lowered = lower(arguments);
  spec.arguments = std::move(lowered.arguments);
  TROUPE_TRY(const auto info, session->run<protocol::ActorInfo>([&] {
    return session->client().create_actor(std::move(spec), control_budget, std::move(lowered.held));
  }));
  return info.actor;
}

namespace {

Async<Result<protocol::Empty>> located(client::Client& client, std::vector<ActorId> actors,
                                       Duration budget) {
  TROUPE_CO_CHECK(co_await client.locate_actors(std::move(actors), budget));
  co_return protocol::Empty{};
}

}  // namespace

Result<std::vector<ActorId>> create_actors(const std::shared_ptr<SessionImpl>& session,
                                           std::string module, std::string_view class_name,
                                           uint64_t signature,
                                           std::vector<std::vector<ArgumentValue>> arguments,
                                           const ActorOptions& options) {
  TROUPE_CHECK(ship_module(*session, module));
  std::vector<protocol::ActorSpec> specs;
  std::vector<std::vector<ObjectName>> held;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!options.detached) TROUPE_CHECK(store_large_arguments(session, arguments[i]));
    auto& spec = specs.emplace_back(actor_spec(*session, module, class_name, signature, options));
    if (!spec.name.empty()) spec.name += "-" + std::to_string(i);
    auto lowered = lower(arguments[i]);
    spec.arguments = std::move(lowered.arguments);
    held.push_back(std::move(lowered.held));
  }
  TROUPE_TRY(const auto results, session->run<protocol::ActorResults>([&] {
    return session->client().create_actors(std::move(specs), control_budget, std::move(held));
  }));
  std::vector<ActorId> made;
  std::optional<Error> failure;
  for (const auto& result : results.items) {
    if (result.error.code == 0) {
      made.push_back(result.info.actor);
    } else if (!failure) {
      failure = protocol::from_info(result.error);
    }
  }
  if (!failure) return made;
  // All or none.
  if (!options.get_if_exists) (void)kill_actors(session, std::move(made));
  return std::move(*failure);
}

Status kill_actors(const std::shared_ptr<SessionImpl>& session, std::vector<ActorId> actors) {
  protocol::ActorIds request{std::move(actors), "killed by its user"};
  TROUPE_CHECK(session->run<protocol::Empty>([&] {
    return session->client().ask_head<protocol::Empty>(Method::kill_actors, std::move(request),
                                                       control_budget);
  }));
  return ok();
}

Status wait_all_alive(const std::shared_ptr<SessionImpl>& session, std::vector<ActorId> actors,
                      std::chrono::nanoseconds timeout) {
  auto alive = session->run_waiting<protocol::Empty>(
      [&] { return located(session->client(), std::move(actors), timeout); });
  if (!alive) return with_signatures(std::move(alive).error());
  return ok();
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
    return with_signatures(
        error(Code::not_found, fmt::format("actor {} is dead: {}", name, info.reason)));
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
  client::Client& client = session->client();
  const Instant deadline = client.environment().clock.now() + timeout;
  const auto facts = [&] {
    return client::WaitFacts{"wait_alive", {{"actor", actor, {}, {}}}, Needs::all, deadline};
  };
  TROUPE_CHECK(run_blocked<protocol::ActorInfo>(*session, facts, [&client, actor, timeout] {
    return client.locate_actor(actor, 0, timeout);
  }));
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

Continuation::Continuation() : actor_(coroutine_actor), call_(current_call()) {
  if (actor_ != nullptr) host().context_retain(static_cast<troupe_context*>(actor_));
}
Continuation::Continuation(const Continuation& other) : actor_(other.actor_), call_(other.call_) {
  if (actor_ != nullptr) host().context_retain(static_cast<troupe_context*>(actor_));
}
Continuation::~Continuation() {
  if (actor_ != nullptr) host().context_release(static_cast<troupe_context*>(actor_));
}

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
    delete next;  // An actor that has ended leaves the coroutine where it is: what it uses is gone.
  }
}

void Continuation::resume_later(std::coroutine_handle<> waiting) const {
  if (actor_ != nullptr) {
    resume(waiting);  // Which is later.
  } else {
    call_back([next = *this, waiting] { next.resume(waiting); });
  }
}

ThreadWait::ThreadWait() : session_(process_session()) {
  if (session_) session_->post([client = &session_->client()] { client->begin_wait(); });
}
ThreadWait::~ThreadWait() {
  if (session_) session_->post([client = &session_->client()] { client->end_wait(); });
}

namespace {

// How many of the objects of one wait are ready. Outlives the wait, for their owners may still
// answer.
class ReadyCount final : public client::ReadyHook {
 public:
  ReadyCount(size_t size, size_t wanted, transport::RingPort::Waiter& waiter)
      : wanted_(wanted), waiter_(&waiter), ready_(size) {}

  void ready(uint32_t index) override {
    const std::lock_guard lock{mutex_};
    if (ready_[index]) return;
    ready_[index] = true;
    if (++count_ < wanted_) return;
    enough_.store(true, std::memory_order_release);
    if (waiter_ != nullptr) waiter_->signal();
  }
  bool is_enough() const { return enough_.load(std::memory_order_acquire); }
  // The waiter goes.
  std::vector<bool> close() {
    const std::lock_guard lock{mutex_};
    waiter_ = nullptr;
    return ready_;
  }

 private:
  const size_t wanted_;
  std::mutex mutex_;
  transport::RingPort::Waiter* waiter_;
  std::vector<bool> ready_;
  size_t count_ = 0;
  std::atomic<bool> enough_ = false;
};

// While this thread spins it looks at some of the objects of this process at a time, in turn; they
// are told to say so themselves once it is about to sleep.
class OwnObjects {
 public:
  OwnObjects(client::ReadyWatches& watches, std::shared_ptr<ReadyCount> count)
      : watches_(watches), count_(std::move(count)) {}
  ~OwnObjects() {
    if (name_ == 0) return;
    watches_.close(name_);
    for (const auto& [object, index] : objects_) object->unwatch(name_ | index);
    for (client::Object* object : hooked_) object->remove_hook(*count_);
  }
  OwnObjects(const OwnObjects&) = delete;
  OwnObjects& operator=(const OwnObjects&) = delete;

  void add(client::Object* object, uint32_t index) { objects_.emplace_back(object, index); }
  void look() {
    if (name_ != 0) return;
    constexpr size_t looks = 64;
    for (size_t n = std::min(looks, objects_.size()); n > 0; --n) {
      if (next_ == objects_.size()) next_ = 0;
      const auto& [object, index] = objects_[next_++];
      if (object->is_ready()) count_->ready(index);
    }
  }
  void arm() {
    using Watch = client::Object::Watch;
    if (name_ != 0) return;
    name_ = watches_.open(*count_);
    for (const auto& [object, index] : objects_) {
      const Watch outcome = object->watch(name_ | index);
      if (outcome == Watch::watched) continue;
      // Another wait watches it, or this one does already.
      if (outcome == Watch::taken && object->add_hook(count_, index)) {
        hooked_.push_back(object);
      } else {
        count_->ready(index);
      }
    }
  }

 private:
  client::ReadyWatches& watches_;
  const std::shared_ptr<ReadyCount> count_;
  std::vector<std::pair<client::Object*, uint32_t>> objects_;
  std::vector<client::Object*> hooked_;
  size_t next_ = 0;
  uint64_t name_ = 0;  // 0: not armed.
};

// Has the owners say when their objects are ready, until it goes.
class BorrowedObjects {
 public:
  explicit BorrowedObjects(SessionImpl& session) : session_(session) {}
  ~BorrowedObjects() {
    if (enough_) session_.post([enough = std::move(enough_)] { enough->set(); });
  }
  BorrowedObjects(const BorrowedObjects&) = delete;
  BorrowedObjects& operator=(const BorrowedObjects&) = delete;

  void add(ObjectName name, uint32_t index) {
    names_.push_back(std::move(name));
    indexes_.push_back(index);
  }
  void watch(std::shared_ptr<client::ReadyHook> hook) {
    if (names_.empty()) return;
    enough_ = std::make_shared<Event>(session_.client().environment().loop);
    session_.post([client = &session_.client(), names = std::move(names_),
                   indexes = std::move(indexes_), hook = std::move(hook),
                   enough = enough_]() mutable {
      client->objects().watch(std::move(names), std::move(indexes), std::move(hook),
                              std::move(enough));
    });
  }

 private:
  SessionImpl& session_;
  std::vector<ObjectName> names_;
  std::vector<uint32_t> indexes_;
  std::shared_ptr<Event> enough_;
};

// The first `count` that `is_ready`, and all others.
template <class IsReady>
WaitResult sort_out(size_t size, size_t count, IsReady is_ready) {
  WaitResult result;
  result.pending.resize(size);
  size_t kept = 0;
  size_t next = 0;
  for (; next < size && result.ready.size() < count; ++next) {
    if (is_ready(next)) {
      result.ready.push_back(next);
    } else {
      result.pending[kept++] = next;
    }
  }
  result.pending.resize(kept + size - next);
  std::iota(result.pending.begin() + static_cast<std::ptrdiff_t>(kept), result.pending.end(), next);
  return result;
}

// Which are ready once `count` are, or at the deadline.
Result<std::vector<bool>> block_until_ready(SessionImpl& session, const RefList& refs, size_t count,
                                            Instant deadline) {
  transport::RingPort::Waiter waiter{*session.client().environment().rings};
  const auto ready = std::make_shared<ReadyCount>(refs.size, count, waiter);
  OwnObjects own_objects{session.client().objects().watches(), ready};
  BorrowedObjects borrowed{session};
  for (uint32_t i = 0; i < refs.size; ++i) {
    if (refs[i]->is_ready()) {
      ready->ready(i);
    } else if (refs[i]->object()) {
      own_objects.add(refs[i]->object().get(), i);
    } else {
      borrowed.add(name_of(*refs[i]), i);
    }
  }
  borrowed.watch(ready);
  const auto done = [&] {
    own_objects.look();
    return ready->is_enough();
  };
  const auto facts = [&] {
    client::WaitFacts told{"wait", {}, Needs::all, deadline};
    if (count < refs.size) told.needs = Needs::any;
    if (refs.size > told_max) told.needs = Needs::unknown;
    for (size_t i = 0; i < std::min(refs.size, told_max); ++i) {
      told.subjects.push_back(client::as_subject(name_of(*refs[i])));
    }
    return told;
  };
  const auto waited = wait_in_rings(
      session, waiter, deadline, done, [&] { own_objects.arm(); }, facts);
  note_if_long(session, waiter.waited(), {}, "wait");
  auto flags = ready->close();
  if (!waited) return waited.error();
  for (size_t i = 0; i < refs.size; ++i) {
    if (flags[i] && !refs[i]->object()) refs[i]->note_ready();
  }
  return flags;
}

}  // namespace

Result<WaitResult> wait(const std::shared_ptr<SessionImpl>& session, const RefList& refs,
                        const WaitOptions& options) {
  const size_t count = std::min(options.count, refs.size);
  bool any_empty = false;
  auto there = sort_out(refs.size, count, [&](size_t i) {
    any_empty = any_empty || refs[i] == nullptr;
    return !any_empty && refs[i]->is_ready();
  });
  if (any_empty) return error(Code::invalid, "an empty ref cannot be waited for");
  if (there.ready.size() == count) return there;
  const Instant deadline = session->client().environment().clock.now() + options.timeout;
  TROUPE_TRY(const auto ready, block_until_ready(*session, refs, count, deadline));
  return sort_out(refs.size, count, [&](size_t i) { return ready[i]; });
}

namespace {

// Calls a program's function on a thread where it may block.
class CallWhenReady final : public client::ReadyHook {
 public:
  explicit CallWhenReady(std::function<void()> call) : call_(std::move(call)) {}
  void ready(uint32_t) override { boost::asio::post(callbacks(), std::move(call_)); }

 private:
  std::function<void()> call_;
};

}  // namespace

void call_when_ready(const RefHandle& ref, std::function<void()> done) {
  auto hook = std::make_shared<CallWhenReady>(std::move(done));
  if (const auto& object = ref.object()) {
    if (!object->add_hook(hook, 0)) hook->ready(0);
    return;
  }
  ref.session()->post(
      [client = &ref.session()->client(), name = name_of(ref), hook = std::move(hook)]() mutable {
        const auto never = std::make_shared<Event>(client->environment().loop);
        std::vector<ObjectName> names{std::move(name)};
        client->objects().watch(std::move(names), {0}, std::move(hook), never);
      });
}

Status call_when_freed(const RefHandle& ref, std::function<void()> done) {
  if (!ref.object()) {
    return error(Code::invalid,
                 fmt::format("object {} is another process's: only its owner learns when it is "
                             "freed",
                             ref.id().to_string()));
  }
  ref.object()->on_freed([call = std::move(done)] { boost::asio::post(callbacks(), call); });
  return ok();
}

namespace {

Async<Result<protocol::Empty>> free_named(client::Client& client, std::vector<ObjectName> names) {
  TROUPE_CO_CHECK(co_await client.objects().free(std::move(names)));
  co_return protocol::Empty{};
}

}  // namespace

Status free_objects(const std::shared_ptr<SessionImpl>& session,
                    std::span<const RefHandle* const> refs) {
  std::vector<ObjectName> names;
  names.reserve(refs.size());
  for (const RefHandle* ref : refs) names.push_back(name_of(*ref));
  TROUPE_CHECK(session->run<protocol::Empty>(
      [&] { return free_named(session->client(), std::move(names)); }));
  return ok();
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

Item to_item(client::Item item) {
  return {std::move(item.bytes), std::move(item.keep_alive)};
}
Item to_item(Bytes bytes) {
  return {std::move(bytes), nullptr};
}

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
  Result<std::optional<Item>> next(std::chrono::nanoseconds timeout) override {
    auto& clock = session_->client().environment().clock;
    const Instant deadline = clock.now() + timeout;
    const auto facts = [&] {
      client::WaitFacts told{"next", {}, Needs::item, deadline};
      if (call_) told.subjects.push_back(client::as_subject(name_of(*call_)));
      return told;
    };
    return run_blocked<std::optional<Item>>(*session_, facts, [&clock, deadline, source = source_] {
      return with_deadline(clock, deadline, next_of(source));
    });
  }
  void next_later(std::function<void(Result<std::optional<Item>>)> done) override {
    auto shared =
        std::make_shared<std::function<void(Result<std::optional<Item>>)>>(std::move(done));
    client::Client* client = &session_->client();
    session_->post([client, source = source_, shared]() mutable {
      spawn(client->scope(), next_and_call(std::move(source), std::move(shared)));
    });
  }
  const std::shared_ptr<SessionImpl>& session() const override { return session_; }

 private:
  static Async<Result<std::optional<Item>>> next_of(std::shared_ptr<Source> source) {
    auto item = co_await source->next();
    if (!item) co_return with_signatures(std::move(item).error());
    if (!*item) co_return std::optional<Item>{};
    co_return std::optional<Item>{to_item(std::move(**item))};
  }
  using Done = std::function<void(Result<std::optional<Item>>)>;
  static Async<void> next_and_call(std::shared_ptr<Source> source, std::shared_ptr<Done> done) {
    struct Guard {
      std::shared_ptr<Done> done;
      Result<std::optional<Item>> item = error(Code::cancelled, "the session was closed");
      ~Guard() {
        boost::asio::post(callbacks(), [call = std::move(done), value = std::move(item)]() mutable {
          (*call)(std::move(value));
        });
      }
    } guard{std::move(done)};
    guard.item = co_await next_of(std::move(source));
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

std::shared_ptr<client::ItemSource> make_source(SessionImpl& session) {
  client::Client& client = session.client();
  return std::make_shared<client::ItemSource>(client.environment().loop, client.objects());
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
  auto items = make_source(*session);
  auto traits = traits_of(*session, function, signature, options, 0);
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
  auto items = make_source(*session);
  if (auto stored = store_large_arguments(session, arguments); !stored) {
    return failed_stream(session, std::move(items), std::move(stored).error());
  }
  CallExtras extras;
  extras.items = items;
  auto call = start_call(session, target, method, signature, arguments, options, std::move(extras),
                         nullptr);
  return started(session, std::move(items), own(session, std::move(call)));
}

// --- The callee's end.

bool ItemWriter::offer(const Writer& item) {
  if (!item.refs.empty()) keep_result_refs(item.refs);
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

// That what the job's processes have written may take to be here when its session ends.
constexpr Duration logs_budget = std::chrono::seconds(1);

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
        if (raw->logs) co_await raw->logs->stop(logs_budget);
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

bool is_off(const char* variable) {
  const char* given = std::getenv(variable);
  return given != nullptr && std::string_view(given) == "0";
}

// That of the job which the program begins, or joins; empty: the default.
Result<std::string> name_space_of(const ConnectOptions& options) {
  const bool joins = std::getenv("TROUPE_JOB_ID") != nullptr;
  const char* const of_job = joins ? std::getenv("TROUPE_NAMESPACE") : nullptr;
  if (of_job == nullptr) return options.name_space;
  if (options.name_space.empty() || options.name_space == of_job) return std::string(of_job);
  return error(
      Code::conflict,
      fmt::format("the program asks for namespace '{}', but its job was submitted to '{}': "
                  "use 'troupe submit --namespace {}'",
                  options.name_space, of_job, options.name_space));
}

client::LogSink to_sink(std::function<void(const LogLine&)> on_log) {
  if (!on_log) return {};
  return [on_log = std::move(on_log)](const protocol::JobLogs& batch) {
    for (const protocol::ProcessLines& item : batch.items) {
      uint64_t lost = item.lost;
      for (const std::string& line : item.lines) {
        on_log({item.name, batch.node_name, item.pid, line, std::exchange(lost, 0)});
      }
      if (lost > 0) on_log({item.name, batch.node_name, item.pid, {}, lost});
    }
  };
}

Result<std::unique_ptr<DriverCore>> start_driver(const std::string& socket, JobId job,
                                                 const ConnectOptions& connect_options) {
  auto core = std::make_unique<DriverCore>();
  DriverCore* raw = core.get();
  TROUPE_CHECK(core->real.enable_rings());
  client::ClientOptions options;
  options.kind = "driver";
  options.job = job;
  options.worker.unix_path = socket;
  options.blocked_log_after = client::blocked_log_after(std::getenv("TROUPE_BLOCKED_LOG_S"));
  options.use_credentials = [raw](const protocol::Attached& attached) -> Status {
    raw->credentials = std::make_unique<security::DeferredCredentials>(security::CredentialsPem{
        attached.authority_pem, attached.certificate_pem, attached.key_pem});
    raw->real.set_credentials(raw->credentials.get());
    return ok();
  };
  TROUPE_TRY(core->timeline,
             transport::TimelineMemory::create_if_on(core->real.environment().clock));
  options.timeline = core->timeline.get();
  core->client = std::make_unique<client::Client>(core->real.environment(), std::move(options));
  if (connect_options.log_to_driver && !is_off("TROUPE_LOG_TO_DRIVER")) {
    client::DriverLogs::Options logs;
    logs.sink = to_sink(connect_options.on_log);
    logs.shows_repeats = is_off("TROUPE_LOG_DEDUP");
    core->logs = std::make_unique<client::DriverLogs>(*core->client, std::move(logs));
  }
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

Result<CheckpointInfo> checkpoint_actor(const std::shared_ptr<SessionImpl>& session, ActorId actor,
                                        std::chrono::nanoseconds timeout) {
  TROUPE_TRY(const Bytes reply,
             Session{session}.ask_plugin_actor(actor, TROUPE_CHECKPOINT_METHOD, {}, timeout));
  TROUPE_TRY(const auto kept, protocol::decode<protocol::Checkpoint>(reply));
  return CheckpointInfo{kept.number, kept.size_bytes, kept.incarnation};
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
  auto& client = impl_->client();
  const auto target = client.target_of(actor);
  const detail::RefHandle result{impl_, client.start_call(target, std::move(spec))};
  TROUPE_TRY(const auto reply, detail::fetch(result, no_timeout));
  return Bytes(reply.bytes.begin(), reply.bytes.end());
}

std::optional<ThisActor> this_actor() {
  if (!detail::process_session()) return std::nullopt;
  troupe_context* const context = detail::host().current();
  if (context == nullptr) return std::nullopt;
  const troupe_actor_info* const info = detail::host().actor_info(context);
  const auto id = ActorId::parse(info->actor_id);
  if (!id) return std::nullopt;
  return ThisActor{*id, info->name, info->node_name, info->incarnation};
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
  TROUPE_TRY(const std::string name_space, detail::name_space_of(options));
  // Hashed while the connection is made.
  auto collecting = std::async(std::launch::async, detail::collect_job_files, options);
  for (const std::string& socket : sockets) {
    auto core = detail::start_driver(socket, job, options);
    if (!core) {
      failure = std::move(core).error();
      continue;
    }
    (*core)->ends_job = submitted == nullptr;
    auto impl = std::make_shared<detail::SessionImpl>(std::move(*core));
    impl->set_name_space(name_space);
    protocol::BeginJob begin;
    begin.job = job;
    begin.entrypoint = detail::command_line();
    begin.name = options.job_name.empty() ? ::program_invocation_short_name : options.job_name;
    begin.name_space = impl->name_space();
    TROUPE_TRY(auto files, collecting.get());
    for (const auto& [name, value] : options.environment) {
      begin.environment.variables.push_back({name, value});
    }
    begin.environment.packages = files.shelf->packages();
    begin.environment.log_to_driver = impl->core()->logs != nullptr;
    impl->core()->modules = std::move(files.modules);
    TROUPE_CHECK(impl->run<protocol::Empty>([&] {
      impl->core()->shelf = files.shelf;
      impl->client().set_packages(files.shelf);
      return impl->client().ask_head<protocol::Empty>(transport::Method::begin_job, begin,
                                                      detail::control_budget);
    }));
    return Session{std::move(impl)};
  }
  return failure;
}

}  // namespace troupe
