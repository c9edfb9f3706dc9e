#include "client/client.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>

#include "base/log.h"
#include "client/actor_caller.h"
#include "client/blocked_waits.h"
#include "client/connections.h"
#include "client/lease_pool.h"
#include "client/lent_cpu.h"
#include "client/object_directory.h"
#include "client/placement.h"
#include "client/store_client.h"
#include "client/testimony.h"
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
constexpr Duration retry_most = std::chrono::milliseconds(250);
constexpr Duration takeover_retry = std::chrono::milliseconds(100);  // Another head leads soon.
constexpr Duration nodes_budget = std::chrono::seconds(30);
constexpr Duration hold_budget = std::chrono::hours(1);  // Of one question whether it is dead.
constexpr size_t inline_results_bytes_max = 4 << 20;     // Of one call with several.

}  // namespace

bool RetryPolicy::covers(const Error& failure) const {
  if (retries == 0) return false;
  if (failure.where().empty()) return failure.code() == Code::outcome_unknown;
  return std::ranges::find(on, failure.code()) != on.end();
}

Duration RetryPolicy::delay(int32_t retried) const {
  return std::min(delay_first * (int64_t{1} << std::min(retried, 20)), delay_most);
}

Error after_retries(Error failure, int32_t retried) {
  if (retried == 0) return failure;
  Error told =
      error(failure.code(), fmt::format("{} (tried {} times)", failure.message(), retried + 1));
  if (failure.retry_after()) told = std::move(told).after(*failure.retry_after());
  return failure.where().empty() ? told : std::move(told).at(failure.where());
}

Client::Client(transport::Environment environment, ClientOptions options)
    : environment_(environment),
      options_(std::move(options)),
      started_(environment.loop),
      scope_(environment.loop),
      timeline_(options_.timeline != nullptr ? &options_.timeline->timeline() : nullptr) {
  if (options_.process.is_nil()) options_.process = ProcessId::random(environment_.random);
  connections_ = std::make_unique<Connections>(environment_, scope_, router_);
  store_ = std::make_unique<StoreClient>(environment_, scope_, *connections_);
  ObjectDirectory::Needs needs;
  needs.run = [this](TaskSpec spec, const std::shared_ptr<Object>& result) {
    leases_->run(std::move(spec), result);
  };
  needs.nodes = [this] {
    return ask_head<protocol::NodeList>(Method::list_nodes, protocol::Empty{}, nodes_budget);
  };
  needs.job = options_.job;
  objects_ = std::make_unique<ObjectDirectory>(environment_, scope_, *connections_, *store_,
                                               std::move(needs), options_.lineage_bytes_max);
  actors_ = std::make_unique<ActorCaller>(*this);
  leases_ = std::make_unique<LeasePool>(*this);
  lent_cpu_ = std::make_unique<LentCpu>(*this);
  testimony_ = std::make_unique<Testimony>(*this);
  explainer_ = std::make_unique<Explainer>(environment_, scope_, *testimony_);
  waits_ = std::make_unique<BlockedWaits>(*this, options_.blocked_log_after);
  router_.on(Method::resolve_objects, *objects_, &ObjectDirectory::resolve_objects);
  router_.on(Method::list_objects, *this, &Client::list_objects);
  router_.on(Method::free_objects, *objects_, &ObjectDirectory::free_objects);
  router_.on(Method::evacuate, *objects_, &ObjectDirectory::evacuate);
  router_.on(Method::object_copied, *objects_, &ObjectDirectory::object_copied);
  router_.on_stream(Method::wait_objects,
                    [this](Message message, CallContext context, OutgoingStream& out) {
                      return objects_->wait_objects(std::move(message), std::move(context), out);
                    });
  router_.on(Method::add_borrow, *objects_, &ObjectDirectory::add_borrow);
  router_.on(Method::remove_borrow, *objects_, &ObjectDirectory::remove_borrow);
  router_.on(Method::list_held, *objects_, &ObjectDirectory::list_held);
  router_.on(Method::yield_slots, *leases_, &LeasePool::yield_slots);
  router_.on(Method::drop_segments, *store_, &StoreClient::drop_segments);
  connections_->on_item_dropped([this](const Peer& producer, uint32_t number) {
    objects_->release_item(producer.remote().address, number);
  });
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
  store_->set_node(connections_->worker()->remote().address);
  auto attached = co_await transport::call<protocol::Attached>(
      connections_->worker(), Method::attach_process, request, attach_budget);
  if (!attached) co_return std::move(attached).error().context("attach to the worker");
  attached_ = std::move(*attached);
  if (options_.use_credentials) TROUPE_CO_CHECK(options_.use_credentials(attached_));
  self.address.node = attached_.node;
  self.cluster = attached_.cluster;
  connections_->set_self(self);
  TROUPE_CO_CHECK(co_await connections_->attach_rings(deadline));
  if (timeline_ != nullptr) co_await attach_timeline();
  std::vector<Endpoint> heads;
  for (const std::string& text : attached_.heads) {
    TROUPE_CO_TRY(auto head, Endpoint::parse(text));
    heads.push_back(std::move(head));
  }
  connections_->set_heads(std::move(heads));
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

// A process works without it, too.
Async<void> Client::attach_timeline() {
  timeline_->on_busy([this, loop = environment_.loop] {
    boost::asio::post(loop, [this] { spawn(scope_, relax_timeline()); });
  });
  Message request;
  Status attached;
  if (auto file = options_.timeline->share()) {
    request.descriptors.push_back(std::move(*file));
    auto answer = co_await connections_->worker()->call(Method::attach_timeline, std::move(request),
                                                        attach_budget);
    if (!answer) attached = std::move(answer).error();
  } else {
    attached = std::move(file).error();
  }
  if (!attached) log::warning("timeline_not_attached", {{"why", attached.error()}});
}

Async<void> Client::relax_timeline() {
  do {
    co_await sleep_for(environment_.clock, Timeline::relax_period);
  } while (!timeline_->relax());
}

void Client::set_packages(std::shared_ptr<const packages::Shelf> shelf) {
  router_.on_stream(Method::get_package, [this, shelf = std::move(shelf)](
                                             Message message, CallContext, OutgoingStream& out) {
    return shelf->give(environment_, std::move(message), out);
  });
}

void Client::fail_all() {
  const Error why = error(Code::cancelled, "the session was closed");
  leases_->fail_all(why);
  actors_->fail_all(why);
}

Async<void> Client::stop() {
  objects_->stop();
  fail_all();
  co_await leases_->stop();
  co_await connections_->stop();
  if (environment_.rings != nullptr) environment_.rings->stop();
  co_await scope_.stop();
  fail_all();
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
      if (failure.code() == Code::deadline_exceeded) connections_->distrust(**peer);
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
    // By half, not twice: a head that is back is found late by a third of its absence at most.
    const Duration most = connections_->has_several_heads() ? takeover_retry : retry_most;
    delay = std::min(delay * 3 / 2, most);
  }
}

namespace {

Error dead_actor(const protocol::ActorInfo& info) {
  return error(Code::unavailable,
               fmt::format("actor {}{} is dead: {}", info.actor.short_string(),
                           info.name.empty() ? "" : " (" + info.name + ")", info.reason));
}

}  // namespace

Async<Result<protocol::ActorInfo>> Client::create_actor(protocol::ActorSpec spec, Duration budget,
                                                        std::vector<ObjectName> held) {
  complete(spec);
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

void Client::complete(protocol::ActorSpec& spec) {
  if (spec.actor.is_nil()) spec.actor = ActorId::random(environment_.random);
  spec.job = options_.job;
  if (spec.node.is_nil()) capture(spec.placement, captured_in());
}

Async<Result<protocol::ActorResults>> Client::create_actors(
    std::vector<protocol::ActorSpec> specs, Duration budget,
    std::vector<std::vector<ObjectName>> held) {
  std::vector<ActorId> actors;
  for (size_t i = 0; i < specs.size(); ++i) {
    complete(specs[i]);
    actors.push_back(specs[i].actor);
    for (const ObjectName& ref : held[i]) objects_->add_reference(ref);
  }
  protocol::ActorSpecs request{std::move(specs)};
  auto results =
      co_await ask_head<protocol::ActorResults>(Method::create_actors, std::move(request), budget);
  if (results && results->items.size() != actors.size()) {
    results = error(Code::internal, "the head answered for another number of actors");
  }
  for (size_t i = 0; i < actors.size(); ++i) {
    if (held[i].empty()) continue;
    const bool made =
        results && results->items[i].error.code == 0 && results->items[i].info.actor == actors[i];
    if (made) {
      spawn(scope_, hold_until_dead(actors[i], std::move(held[i])));
    } else {
      drop_references(held[i]);
    }
  }
  co_return results;
}

Async<Status> Client::locate_actors(std::vector<ActorId> actors, Duration budget) {
  protocol::ActorIds request{std::move(actors), {}};
  auto results =
      co_await ask_head<protocol::ActorResults>(Method::get_actors, std::move(request), budget);
  if (!results) co_return std::move(results).error();
  for (protocol::ActorResult& result : results->items) {
    if (result.error.code != 0) co_return protocol::from_info(result.error);
    if (result.info.state == "dead") co_return dead_actor(result.info);
    actors_->learn(std::move(result.info));
  }
  co_return ok();
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
  if (info->state == "dead") co_return dead_actor(*info);
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
                                           ActorCallSpec spec, Objects* more) {
  return actors_->submit(target, std::move(spec), more);
}

std::shared_ptr<Object> Client::start_task(TaskSpec spec, Objects* more) {
  if (const PlacementGroupId group = captured_in(); !group.is_nil()) {
    auto traits = std::make_shared<TaskTraits>(*spec.traits);
    capture(traits->placement, group);
    spec.traits = std::move(traits);
  }
  return leases_->submit(std::move(spec), more);
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

Async<Result<protocol::ObjectList>> Client::list_objects(protocol::ListObjects request,
                                                         CallContext context) {
  if (context.peer != connections_->worker()) {
    co_return error(Code::denied, "only the node's worker may ask what a process owns");
  }
  auto list = objects_->list(request);
  for (protocol::ObjectEntry& entry : list.items) {
    entry.job = options_.job;
    entry.owner_kind = options_.kind;
  }
  co_return list;
}

Async<Result<ObjectBytes>> Client::get(ObjectName object, Duration budget) {
  return objects_->get(std::move(object), environment_.clock.now() + budget);
}

std::vector<TaskId> Client::calls_of(std::span<BlockedWait* const> waits) const {
  return invocations_ != nullptr ? invocations_->calls_of(waits)
                                 : std::vector<TaskId>(waits.size());
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
  std::vector<ObjectBytes> values(arguments.size());
  std::vector<ObjectName> refs;
  std::vector<size_t> places;
  for (size_t i = 0; i < arguments.size(); ++i) {
    protocol::Argument& argument = arguments[i];
    if (argument.object.is_nil()) {
      auto bytes = std::make_shared<const Bytes>(std::move(argument.inline_value));
      values[i] = {*bytes, bytes};
    } else {
      refs.push_back({argument.object, std::move(argument.owner)});
      places.push_back(i);
    }
  }
  if (refs.empty()) co_return values;
  auto got = co_await objects_->get_many(std::move(refs), environment_.clock.now() + budget);
  for (size_t i = 0; i < got.size(); ++i) {
    if (!got[i]) co_return std::move(got[i]).error().context("fetch an argument");
    values[places[i]] = std::move(*got[i]);
  }
  co_return values;
}

Async<Result<protocol::InvokeReply>> Client::make_reply(Bytes value, ObjectId result,
                                                        ProcessId caller,
                                                        std::vector<ObjectName> held) {
  protocol::InvokeReply reply;
  if (!held.empty()) {
    reply.borrowed.push_back(result);
    objects_->hold_for_result(result, caller, std::move(held));
  }
  // The caller lets go of the arguments when it has the reply: their owners must know by then.
  co_await objects_->borrows().settle();
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

Async<Result<protocol::InvokeReply>> Client::make_reply(std::vector<Bytes> values, ObjectId first,
                                                        ProcessId caller,
                                                        std::vector<std::vector<ObjectName>> held) {
  protocol::InvokeReply reply;
  for (uint32_t i = 0; i < held.size(); ++i) {
    if (held[i].empty()) continue;
    reply.borrowed.push_back(result_id(first, i));
    objects_->hold_for_result(result_id(first, i), caller, std::move(held[i]));
  }
  co_await objects_->borrows().settle();
  size_t inline_bytes = 0;
  for (uint32_t i = 0; i < values.size(); ++i) {
    protocol::ObjectValue one;
    const bool fits = values[i].size() <= inline_bytes_max &&
                      inline_bytes + values[i].size() <= inline_results_bytes_max;
    if (fits || values[i].empty()) {
      inline_bytes += values[i].size();
      one.inline_value = std::move(values[i]);
    } else {
      auto shared = std::make_shared<const Bytes>(std::move(values[i]));
      const Instant deadline = environment_.clock.now() + store_budget;
      auto stored = co_await store_->put(result_id(first, i), caller, shared, deadline);
      if (!stored) {
        // Nobody would take back what is kept for a call that failed.
        for (uint32_t made = 0; made < i; ++made) {
          const auto& earlier = made == 0 ? reply.node : reply.more[made - 1].node;
          if (!earlier.process.is_nil()) store_->release_owned(result_id(first, made), earlier);
        }
        for (const ObjectId id : reply.borrowed) objects_->let_go_for_result(id);
        co_return std::move(stored).error().context(fmt::format("store result {}", i));
      }
      one.in_store = true;
      one.node = connections_->worker()->remote().address;
      one.size_bytes = shared->size();
    }
    if (i == 0) {
      reply.inline_value = std::move(one.inline_value);
      reply.node = std::move(one.node);
      reply.size_bytes = one.size_bytes;
    } else {
      reply.more.push_back(std::move(one));
    }
  }
  co_return reply;
}

}  // namespace troupe::client
