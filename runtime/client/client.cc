#include "client/client.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "client/actor_caller.h"
#include "client/connections.h"
#include "client/lease_pool.h"
#include "client/lent_cpu.h"
#include "client/object_directory.h"
#include "client/placement.h"
#include "client/store_client.h"
#include "transport/ring_port.h"

namespace troupe::client {

using transport::CallContext;
using transport::Message;
using transport::OutgoingStream;

namespace {

constexpr Duration attach_budget = std::chrono::seconds(10);
constexpr Duration attempt_budget =
    std::chrono::seconds(5);  // Of one try of an idempotent request.
// Less is not worth another try, and would replace what the head said by a time-out.
constexpr Duration attempt_least = std::chrono::milliseconds(100);
constexpr Duration retry_first = std::chrono::milliseconds(10);
constexpr Duration retry_most = std::chrono::seconds(1);
constexpr Duration hold_budget = std::chrono::hours(1);  // Of one question whether it is dead.
constexpr Duration store_budget = std::chrono::seconds(60);

}  // namespace

Client::Client(transport::Environment environment, ClientOptions options)
    : environment_(environment),
      options_(std::move(options)),
      started_(environment.loop),
      scope_(environment.loop) {
  if (options_.process.is_nil()) options_.process = ProcessId::random(environment_.random);
  connections_ = std::make_unique<Connections>(environment_, scope_, router_);
  store_ = std::make_unique<StoreClient>(environment_, scope_, *connections_);
  objects_ = std::make_unique<ObjectDirectory>(environment_, scope_, *connections_, *store_);
  actors_ = std::make_unique<ActorCaller>(*this);
  leases_ = std::make_unique<LeasePool>(*this);
  lent_cpu_ = std::make_unique<LentCpu>(*this);
  router_.on(Method::resolve_object, *objects_, &ObjectDirectory::resolve_object);
  router_.on(Method::object_copied, *objects_, &ObjectDirectory::object_copied);
  router_.on(Method::add_borrow, *objects_, &ObjectDirectory::add_borrow);
  router_.on(Method::remove_borrow, *objects_, &ObjectDirectory::remove_borrow);
  router_.on(Method::yield_slots, *leases_, &LeasePool::yield_slots);
  router_.on(Method::drop_segments, *store_, &StoreClient::drop_segments);
  connections_->on_closed([this](const protocol::Hello& gone) {
    objects_->process_gone(gone.address.process);
    actors_->process_gone(gone.address.process);
  });
}

Client::~Client() = default;

const std::shared_ptr<Peer>& Client::worker() const {
  return connections_->worker();
}

Async<Status> Client::start() {
  const Instant deadline = environment_.clock.now() + attach_budget;
  protocol::Hello self;
  self.kind = options_.kind;
  self.address.process = options_.process;
  self.job = options_.job;
  self.pid = static_cast<uint32_t>(::getpid());
  connections_->set_self(self);
  TROUPE_CO_CHECK(co_await connections_->join_worker(std::move(options_.worker_connection),
                                                     options_.worker, deadline));
  protocol::AttachProcess request;
  request.kind = options_.kind;
  request.pid = self.pid;
  request.address = self.address;
  auto attached = co_await transport::call<protocol::Attached>(
      connections_->worker(), Method::attach_process, request, attach_budget);
  if (!attached) co_return std::move(attached).error().context("attach to the worker");
  attached_ = std::move(*attached);
  if (options_.use_credentials) TROUPE_CO_CHECK(options_.use_credentials(attached_));
  self.address.node = attached_.node;
  self.cluster = attached_.cluster;
  connections_->set_self(self);
  TROUPE_CO_CHECK(co_await connections_->attach_rings(deadline));
  Endpoint head;
  head.host = attached_.head_host;
  head.port = attached_.head_port;
  connections_->set_head(std::move(head));
  if (invocations_ != nullptr) {
    router_.on_message(Method::invoke, [this](Message message, CallContext context) {
      return answer_invoke(std::move(message), std::move(context));
    });
    router_.on_stream(Method::invoke_stream,
                      [this](Message message, CallContext context, OutgoingStream& out) {
                        return answer_stream(std::move(message), std::move(context), out);
                      });
  }
  TROUPE_CO_CHECK(connections_->listen(attached_.socket_path, attached_.host));
  address_ = connections_->address();
  started_.set();
  co_return ok();
}

Async<void> Client::stop() {
  objects_->stop();
  co_await leases_->stop();
  co_await connections_->stop();
  if (environment_.rings != nullptr) environment_.rings->stop();
  co_await scope_.stop();
}

Async<Result<Message>> Client::answer_invoke(Message message, CallContext context) {
  TROUPE_CO_TRY(auto call, protocol::decode<protocol::Invoke>(message.body));
  auto reply = co_await invocations_->invoke(std::move(call), std::move(context));
  if (!reply) co_return std::move(reply).error();
  Message answer{protocol::encode(*reply), {}};
  co_return answer;
}

Async<Status> Client::answer_stream(Message message, CallContext context, OutgoingStream& out) {
  TROUPE_CO_TRY(auto call, protocol::decode<protocol::Invoke>(message.body));
  co_return co_await invocations_->invoke_stream(std::move(call), std::move(context), out);
}

Async<Result<std::shared_ptr<Peer>>> Client::peer_of(protocol::ProcessAddress address,
                                                     Instant deadline) {
  return connections_->peer_of(std::move(address), deadline);
}

Async<Result<std::shared_ptr<Peer>>> Client::head(Instant deadline) {
  return connections_->head(deadline);
}

Async<Result<Message>> Client::ask_head_raw(Method method, Bytes body, Duration budget) {
  auto& clock = environment_.clock;
  const Instant deadline = clock.now() + budget;
  Duration delay = retry_first;
  for (;;) {
    Error failure;
    auto peer = co_await connections_->head(deadline);
    if (peer) {
      Message request{body, {}};
      const Duration attempt = std::min<Duration>(deadline - clock.now(), attempt_budget);
      auto answer = co_await (*peer)->call(method, std::move(request), attempt);
      if (answer) co_return answer;
      failure = std::move(answer).error();
    } else {
      failure = std::move(peer).error();
    }
    const Code code = failure.code();
    const bool again = code == Code::unavailable || code == Code::deadline_exceeded ||
                       code == Code::outcome_unknown;
    if (!again) co_return failure;
    if (clock.now() + delay + attempt_least >= deadline) {
      co_return error(code == Code::outcome_unknown ? Code::deadline_exceeded : code,
                      fmt::format("{}: {}", method_name(method), failure.message()));
    }
    co_await sleep_for(clock, delay);
    delay = std::min(delay * 2, retry_most);
  }
}

Async<Result<protocol::ActorInfo>> Client::create_actor(protocol::ActorSpec spec, Duration budget,
                                                        std::vector<ObjectName> held) {
  if (spec.actor.is_nil()) spec.actor = ActorId::random(environment_.random);
  spec.job = options_.job;
  if (spec.node.is_nil()) capture(spec.placement, captured_in());
  const ActorId actor = spec.actor;
  for (const ObjectName& ref : held) objects_->add_reference(ref);
  auto info = co_await ask_head<protocol::ActorInfo>(Method::create_actor, std::move(spec), budget);
  const bool made = info && info->actor == actor;  // Not one that had the name already.
  if (made && !held.empty()) {
    spawn(scope_, hold_until_dead(actor, std::move(held)));
  } else {
    drop_references(held);
  }
  co_return info;
}

Async<void> Client::hold_until_dead(ActorId actor, std::vector<ObjectName> held) {
  protocol::GetActor request;
  request.actor = actor;
  request.after = UINT32_MAX;  // No incarnation is above this: answered when it is dead.
  for (;;) {
    auto info = co_await ask_head<protocol::ActorInfo>(Method::get_actor, request, hold_budget);
    if (info ? info->state == "dead" : !info.error().retriable()) break;
  }
  drop_references(held);
}

void Client::drop_references(const std::vector<ObjectName>& held) {
  for (const ObjectName& ref : held) objects_->drop_reference(ref);
}

Async<Result<protocol::ActorInfo>> Client::locate_actor(ActorId actor, uint32_t after,
                                                        Duration budget) {
  protocol::GetActor request;
  request.actor = actor;
  request.after = after;
  auto info = co_await ask_head<protocol::ActorInfo>(Method::get_actor, request, budget);
  if (!info) co_return std::move(info).error();
  if (info->state == "dead") {
    co_return error(Code::unavailable,
                    fmt::format("actor {}{} is dead: {}", actor.short_string(),
                                info->name.empty() ? "" : " (" + info->name + ")", info->reason));
  }
  co_return info;
}

Async<Result<ObjectBytes>> Client::call_actor(ActorCallSpec spec) {
  const auto target = target_of(spec.actor);
  const auto result = start_call(target, std::move(spec));
  auto value = co_await objects_->get_owned(result, Instant::max());
  objects_->drop_reference(result);
  co_return value;
}

Async<Result<std::shared_ptr<transport::IncomingStream>>> Client::stream_actor(ActorCallSpec spec) {
  return actors_->stream(std::move(spec));
}

std::shared_ptr<ActorTarget> Client::target_of(ActorId actor) {
  return actors_->target(actor);
}

std::shared_ptr<Object> Client::start_call(const std::shared_ptr<ActorTarget>& target,
                                           ActorCallSpec spec) {
  return actors_->submit(target, std::move(spec));
}

std::shared_ptr<Object> Client::start_task(TaskSpec spec) {
  capture(spec.placement, captured_in());
  return leases_->submit(std::move(spec));
}

void Client::set_placement(const protocol::PlacementSpec& placement) {
  const std::lock_guard lock{captured_mutex_};
  captured_in_ = placement.capture ? placement.group : PlacementGroupId{};
}

PlacementGroupId Client::captured_in() const {
  const std::lock_guard lock{captured_mutex_};
  return captured_in_;
}

ObjectName Client::submit_task(TaskSpec spec) {
  return objects_->publish(start_task(std::move(spec)));
}

ObjectName Client::submit_call(ActorCallSpec spec) {
  const auto target = target_of(spec.actor);
  return objects_->publish(start_call(target, std::move(spec)));
}

Async<Result<std::shared_ptr<Object>>> Client::put(std::shared_ptr<const Bytes> value,
                                                   std::vector<ObjectName> held) {
  auto object = objects_->make();
  objects_->set_held(object, std::move(held));
  if (value->size() <= inline_bytes_max) {
    objects_->set_value(object, *value);
    co_return object;
  }
  const Instant deadline = environment_.clock.now() + store_budget;
  auto stored = co_await store_->put(object->id(), address_.process, value, deadline);
  if (!stored) {
    objects_->set_error(object, stored.error());
    objects_->drop_reference(object);
    co_return std::move(stored).error();
  }
  objects_->set_stored(object, connections_->worker()->remote().address, value->size());
  co_return object;
}

void Client::add_reference(const ObjectName& object) {
  objects_->add_reference(object);
}
void Client::drop_reference(const ObjectName& object) {
  objects_->drop_reference(object);
}
void Client::cancel(ObjectId object) {
  const auto found = objects_->find(object);
  if (found) {
    objects_->cancel(found, error(Code::cancelled, "the task or call was cancelled"));
  }
}

Async<Result<ObjectBytes>> Client::get(ObjectName object, Duration budget) {
  return objects_->get(std::move(object), environment_.clock.now() + budget);
}

Async<bool> Client::wait_ready(ObjectName object, Instant deadline) {
  return objects_->wait_ready(std::move(object), deadline);
}

void Client::set_lease(LeaseId lease) {
  lent_cpu_->set_lease(lease);
}
void Client::begin_wait() {
  lent_cpu_->begin_wait();
}
void Client::end_wait() {
  lent_cpu_->end_wait();
}

Async<Result<std::vector<ObjectBytes>>> Client::resolve(std::vector<protocol::Argument> arguments,
                                                        Duration budget) {
  const Instant deadline = environment_.clock.now() + budget;
  std::vector<ObjectBytes> values;
  values.reserve(arguments.size());
  for (protocol::Argument& argument : arguments) {
    if (argument.object.is_nil()) {
      auto bytes = std::make_shared<const Bytes>(std::move(argument.inline_value));
      values.push_back({*bytes, bytes});
      continue;
    }
    ObjectName object{argument.object, std::move(argument.owner)};
    auto value = co_await objects_->get(std::move(object), deadline);
    if (!value) co_return std::move(value).error().context("fetch an argument");
    values.push_back(std::move(*value));
  }
  co_return values;
}

Async<Result<protocol::InvokeReply>> Client::make_reply(Bytes value, ObjectId result,
                                                        ProcessId caller,
                                                        std::vector<ObjectName> held) {
  protocol::InvokeReply reply;
  for (const ObjectName& ref : held) reply.borrowed.push_back(ref.id);
  if (!held.empty()) objects_->hold_for_result(result, caller, std::move(held));
  // The caller lets go of the arguments when it has the reply: their owners must know by then.
  co_await objects_->flush_borrows();
  if (value.size() <= inline_bytes_max || result.is_nil()) {
    reply.inline_value = std::move(value);
    co_return reply;
  }
  auto shared = std::make_shared<const Bytes>(std::move(value));
  const Instant deadline = environment_.clock.now() + store_budget;
  auto stored = co_await store_->put(result, caller, shared, deadline);
  if (!stored) co_return std::move(stored).error().context("store the result");
  reply.node = connections_->worker()->remote().address;
  reply.size_bytes = shared->size();
  co_return reply;
}

}  // namespace troupe::client
