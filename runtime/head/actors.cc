#include "head/actors.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/log.h"
#include "head/waiting.h"

namespace troupe::head {

using namespace std::chrono_literals;

namespace {

constexpr size_t name_bytes_max = 256;
constexpr size_t path_bytes_max = 4096;
constexpr size_t arguments_bytes_max = size_t{1} << 20;
constexpr size_t entries_max = 256;
constexpr size_t batch_max = 100'000;     // Actors in one request.
constexpr size_t slice = 500;             // So many of them in a turn of the loop.
constexpr size_t start_batch_max = 1000;  // Light actors in one request to a worker.
constexpr uint64_t exit_grace_max_us = 3'600'000'000;
constexpr uint64_t checkpoint_interval_min_us = 10'000;  // Each costs two syncs of a disk.
constexpr Duration restart_stream_after = std::chrono::milliseconds(50);
constexpr int heartbeats_in_isolation_min = 3;
constexpr Duration isolation_max = std::chrono::hours(1);
constexpr Duration ask_again_after = std::chrono::seconds(1);
constexpr Duration save_grace = std::chrono::minutes(1);  // For a last checkpoint.
constexpr Duration stop_budget = std::chrono::hours(1);   // Or until the node is dead.

constexpr const char* names[] = {"pending", "starting", "alive", "restarting", "dead"};
const char* name_of(ActorState state) {
  return names[static_cast<size_t>(state)];
}
ActorState state_from(const std::string& name) {
  for (size_t i = 0; i < std::size(names); ++i) {
    if (name == names[i]) return static_cast<ActorState>(i);
  }
  return ActorState::pending;
}

bool is_permanent(Code code) {
  return code == Code::invalid || code == Code::not_found || code == Code::unimplemented ||
         code == Code::denied;
}

}  // namespace

Actors::Actors(transport::Environment environment, const HeadOptions& options, Scope& scope,
               Journal& journal, Membership& membership, Placement& placement, const Groups& groups)
    : environment_(environment),
      options_(options),
      scope_(scope),
      journal_(journal),
      membership_(membership),
      placement_(placement),
      groups_(groups),
      stale_stopped_(environment.loop),
      registered_(environment.loop) {}

void Actors::restore(StoredActors stored_actors) {
  std::vector<ActorId> to_settle;
  for (std::vector<StoredActor>& page : stored_actors) {
    for (StoredActor& stored : page) {
      const ActorId id = stored.record.info.actor;
      Actor& actor = actors_.try_emplace(actors_.end(), id)->second;
      actor.stored = std::move(stored);
      actor.state = state_from(actor.info().state);
      actor.changed = std::make_shared<Event>(environment_.loop);
      actor.alive_since = environment_.clock.now();
      if (actor.state == ActorState::dead) {
        dead_.push_back(id);
        continue;
      }
      if (!actor.spec().name.empty()) names_[{actor.spec().name_space, actor.spec().name}] = id;
      const auto group = actor.spec().placement.group;
      if (!group.is_nil()) in_groups_[group].insert(id);
      // Of the others, most of many, the worker has a window to come back and tell.
      const bool is_placed =
          actor.state == ActorState::starting || actor.state == ActorState::alive;
      if (!is_placed || !group.is_nil() || membership_.is_dead(actor.info().address.node)) {
        to_settle.push_back(id);
      }
    }
    page = {};
  }
  for (const ActorId id : to_settle) {
    Actor& actor = actors_.at(id);
    if (!groups_.affinity_of(actor.spec().placement)) {
      die(actor, "its placement group is no more");
    } else if (actor.state == ActorState::restarting && actor.must_not_overlap()) {
      actor.stopping = true;
      spawn(scope_, restart_after_silence(id, actor.info().incarnation));
    } else if (actor.state == ActorState::pending || actor.state == ActorState::restarting) {
      request_placement(actor, actor.state == ActorState::restarting);
    } else if (membership_.is_dead(actor.info().address.node)) {
      fail(actor, {.reason = "its node is gone", .blameless = true});
    }
  }
}

namespace {

Status check_shared(const protocol::ActorSpec& spec) {
  const auto wants_gpu = [](const protocol::ResourceAmount& amount) {
    return amount.name == "gpu" && amount.milli > 0;
  };
  if (std::ranges::any_of(spec.demand, wants_gpu)) {
    return error(Code::invalid, "an actor with a GPU needs a process of its own");
  }
  if (spec.isolation_limit_us != 0) {
    return error(Code::invalid, "an actor that ends in isolation needs a process of its own");
  }
  if (spec.module.find('/') == std::string::npos && !spec.module.ends_with(".so")) {
    return error(Code::invalid, "an actor of a plugin needs a process of its own");
  }
  return ok();
}

}  // namespace

Status Actors::check(const protocol::ActorSpec& spec) const {
  if (spec.actor.is_nil()) return error(Code::invalid, "an actor needs an id");
  if (spec.module.empty()) return error(Code::invalid, "an actor needs a module");
  if (spec.name.size() > name_bytes_max || spec.name_space.size() > name_bytes_max ||
      spec.class_name.size() > name_bytes_max || spec.deployment.size() > name_bytes_max) {
    return error(Code::invalid, "names of an actor have at most 256 bytes");
  }
  if ((spec.name + spec.name_space).find('\0') != std::string::npos) {
    return error(Code::invalid, "names of an actor hold no zero byte");
  }
  if (spec.module.size() > path_bytes_max) {
    return error(Code::invalid, "a module's path has at most 4096 bytes");
  }
  if (spec.arguments.size() > entries_max || spec.environment.size() > entries_max ||
      spec.demand.size() > entries_max) {
    return error(Code::invalid, "an actor has at most 256 arguments, variables and resources");
  }
  size_t bytes = 0;
  for (const protocol::Argument& argument : spec.arguments) bytes += argument.inline_value.size();
  for (const auto& [name, value] : spec.environment) bytes += name.size() + value.size();
  if (bytes > arguments_bytes_max) {
    return error(Code::invalid, fmt::format("an actor's arguments have {} bytes, at most {} are "
                                            "allowed: put large ones in the object store",
                                            bytes, arguments_bytes_max));
  }
  if (spec.shared) TROUPE_CHECK(check_shared(spec));
  if (spec.exit_grace_us > exit_grace_max_us) {
    return error(Code::invalid, "an actor's exit grace is at most an hour");
  }
  if (spec.checkpoint_interval_us != 0 &&
      spec.checkpoint_interval_us < checkpoint_interval_min_us) {
    return error(Code::invalid, fmt::format("an actor's checkpoint interval is at least {} ms",
                                            checkpoint_interval_min_us / 1000));
  }
  const auto isolation_min = options_.heartbeat * heartbeats_in_isolation_min;
  const auto isolation_limit_max = static_cast<uint64_t>(isolation_max / 1us);
  if (spec.isolation_limit_us != 0 && (spec.isolation_limit_us > isolation_limit_max ||
                                       spec.isolation_limit_us * 1us < isolation_min)) {
    return error(Code::invalid,
                 fmt::format("an actor's isolation limit is {} ms, {} heartbeats, to an hour",
                             isolation_min / 1ms, heartbeats_in_isolation_min));
  }
  if (spec.max_restarts < -1) return error(Code::invalid, "max_restarts is -1 or more");
  if (!spec.strategy.empty() && spec.strategy != "pack" && spec.strategy != "spread") {
    return error(Code::invalid, "strategy is pack or spread, not " + spec.strategy);
  }
  TROUPE_TRY(const auto demand, to_resources(spec.demand));
  TROUPE_CHECK(scheduler::check_demand(demand));
  const auto affinity = groups_.affinity_of(spec.placement);
  if (!affinity) return affinity.error();
  if (!spec.node.is_nil() && (affinity->within || affinity->node)) {
    return error(Code::invalid, "an actor's node is chosen twice");
  }
  return ok();
}

Result<Actors::Promised> Actors::promise(protocol::ActorSpec spec) {
  const ActorId id = spec.actor;
  if (const Actor* same = find(id)) {  // A retry.
    if (same->spec().module != spec.module || same->spec().class_name != spec.class_name) {
      return error(Code::conflict, fmt::format("actor {} is another one", id.to_string()));
    }
    protocol::ActorInfo info = describe(*same);
    return Promised{std::move(info), same->written};
  }
  if (const Actor* namesake = spec.name.empty() ? nullptr : find(spec.name_space, spec.name)) {
    if (!spec.get_if_exists) {
      return error(Code::conflict,
                   fmt::format("the name {} in namespace \"{}\" is taken by "
                               "actor {}",
                               spec.name, spec.name_space, namesake->info().actor.to_string()));
    }
    protocol::ActorInfo info = describe(*namesake);
    return Promised{std::move(info), namesake->written};
  }
  TROUPE_CHECK(check(spec));
  if (living() >= options_.actors_max) {
    return error(Code::exhausted, fmt::format("the cluster has {} actors", living()));
  }
  TROUPE_CHECK(journal_.admits());

  Actor& actor = actors_[id];
  actor.changed = std::make_shared<Event>(environment_.loop);
  protocol::ActorInfo& info = actor.info();
  info.actor = id;
  info.job = spec.job;
  info.name = spec.name;
  info.name_space = spec.name_space;
  info.module = spec.module;
  info.class_name = spec.class_name;
  info.incarnation = 1;
  info.deployment = spec.deployment;
  info.created_unix_us = static_cast<uint64_t>(environment_.clock.wall_now().time_since_epoch() /
                                               std::chrono::microseconds(1));
  if (!spec.name.empty()) names_[{spec.name_space, spec.name}] = id;
  if (!spec.placement.group.is_nil()) in_groups_[spec.placement.group].insert(id);
  actor.stored.record.spec = std::move(spec);
  log::info("actor_created", {{"actor", id}, {"job", info.job}, {"name", info.name}});
  info.state = name_of(ActorState::pending);
  request_placement(actor, false);
  // Often it was placed at once, and the write says so already.
  if (actor.written == 0) set_state(actor, ActorState::pending);
  protocol::ActorInfo reply = describe(actor);
  return Promised{std::move(reply), actor.written};
}

Async<Result<protocol::ActorInfo>> Actors::create(protocol::ActorSpec spec) {
  auto promised = promise(std::move(spec));
  const bool says_nothing = !promised && promised.error().code() != Code::conflict;
  if (says_nothing) co_return std::move(promised).error();
  TROUPE_CO_CHECK(co_await journal_.settled(promised ? promised->written : journal_.latest()));
  if (!promised) co_return std::move(promised).error();
  co_return std::move(promised->info);
}

Async<Result<protocol::ActorResults>> Actors::create_many(protocol::ActorSpecs specs) {
  if (specs.items.size() > batch_max) {
    co_return error(Code::invalid, fmt::format("at most {} actors in one request", batch_max));
  }
  protocol::ActorResults results;
  Journal::Ticket last = 0;
  for (protocol::ActorSpec& spec : specs.items) {
    // The first are on their way while the last are taken in.
    if (results.items.size() % slice == slice - 1)
      co_await boost::asio::post(environment_.loop, boost::asio::use_awaitable);
    protocol::ActorResult& result = results.items.emplace_back();
    auto promised = promise(std::move(spec));
    if (promised) {
      last = std::max(last, promised->written);
      result.info = std::move(promised->info);
    } else {
      last = std::max(last, journal_.latest());
      result.error = protocol::to_info(promised.error());
    }
  }
  TROUPE_CO_CHECK(co_await journal_.settled(last));
  co_return results;
}

Async<Result<protocol::ActorResults>> Actors::get_many(protocol::ActorIds request,
                                                       transport::CallContext context) {
  if (request.actors.size() > batch_max) {
    co_return error(Code::invalid, fmt::format("at most {} actors in one request", batch_max));
  }
  protocol::ActorResults results;
  for (const ActorId id : request.actors) {
    protocol::GetActor one;
    one.actor = id;
    auto info = co_await get(std::move(one), context);
    // Whoever asked asks again; an outcome in time is worth nothing without the others.
    const bool late = !info && info.error().code() != Code::not_found;
    if (late) co_return std::move(info).error();
    protocol::ActorResult& result = results.items.emplace_back();
    if (info) {
      result.info = std::move(*info);
    } else {
      result.error = protocol::to_info(info.error());
    }
  }
  co_return results;
}

Async<Status> Actors::kill_many(protocol::ActorIds request) {
  TROUPE_CO_CHECK(journal_.admits());
  Journal::Ticket last = 0;
  for (const ActorId id : request.actors) {
    Actor* actor = look_up(id);
    if (actor == nullptr) last = std::max(last, journal_.latest());
    if (actor == nullptr) continue;
    if (actor->state != ActorState::dead) {
      die(*actor, request.reason.empty() ? "it was killed" : request.reason);
    }
    if (const Actor* dead = find(id)) last = std::max(last, dead->written);
  }
  co_return co_await journal_.settled(last);
}

Async<Result<protocol::ActorInfo>> Actors::get(protocol::GetActor request,
                                               transport::CallContext context) {
  context.deadline = answer_by(environment_.clock, context.deadline);
  for (;;) {
    const Actor* actor =
        request.actor.is_nil() ? find(request.name_space, request.name) : find(request.actor);
    if (actor == nullptr) {
      TROUPE_CO_CHECK(co_await journal_.settled(journal_.latest()));
      co_return error(Code::not_found, request.actor.is_nil()
                                           ? fmt::format("no actor is named {} in namespace \"{}\"",
                                                         request.name, request.name_space)
                                           : "there is no actor " + request.actor.to_string());
    }
    request.actor = actor->info().actor;  // The one it was when it was asked for.
    const bool runs =
        actor->state == ActorState::alive && actor->info().incarnation > request.after;
    if (runs || actor->state == ActorState::dead) {
      protocol::ActorInfo info = describe(*actor);
      TROUPE_CO_CHECK(co_await journal_.settled(actor->written));
      co_return info;
    }
    const Status waited = co_await wait_for_caller(environment_.clock, actor->changed, context);
    if (waited) continue;
    const Actor* late = find(request.actor);
    const std::string why = late ? describe(*late).reason : "";
    co_return error(waited.error().code(),
                    fmt::format("actor {} is {}{}{}", request.actor.short_string(),
                                late ? late->info().state : "gone", why.empty() ? "" : ": ", why));
  }
}

Async<Status> Actors::kill(ActorId id, std::string reason) {
  Actor* actor = look_up(id);
  if (actor == nullptr) {
    TROUPE_CO_CHECK(co_await journal_.settled(journal_.latest()));
    co_return error(Code::not_found, "there is no actor " + id.to_string());
  }
  if (actor->state != ActorState::dead) {
    TROUPE_CO_CHECK(journal_.admits());
    die(*actor, reason.empty() ? "it was killed" : std::move(reason));
  }
  co_return co_await journal_.settled(actor->written);
}

void Actors::end_job(JobId job) {
  if (job.is_nil()) return;
  std::vector<ActorId> ending;
  for (const auto& [id, actor] : actors_) {
    if (actor.spec().job == job && !actor.spec().detached && actor.state != ActorState::dead) {
      ending.push_back(id);
    }
  }
  for (const ActorId id : ending) {
    if (Actor* actor = look_up(id)) die(*actor, "its job ended");
  }
}

void Actors::end_deployment(const std::string& deployment, const std::string& reason) {
  std::vector<ActorId> ending;
  for (const auto& [id, actor] : actors_) {
    if (actor.spec().deployment == deployment && actor.state != ActorState::dead) {
      ending.push_back(id);
    }
  }
  for (const ActorId id : ending) {
    if (Actor* actor = look_up(id)) die(*actor, reason);
  }
}

void Actors::set_gauges(NodeId node, protocol::ActorGauges report) {
  Actor* actor = look_up(report.actor);
  if (actor == nullptr || actor->state != ActorState::alive) return;
  if (actor->info().incarnation != report.incarnation || actor->info().address.node != node) return;
  actor->gauges = std::move(report.gauges);
}

Async<Status> Actors::process_exited(protocol::ProcessExited news) {
  Actor* actor = look_up(news.actor);
  if (actor == nullptr) co_return ok();
  const bool current = actor->info().incarnation == news.incarnation &&
                       actor->info().address.node == news.node &&
                       (actor->state == ActorState::starting || actor->state == ActorState::alive);
  if (current) {
    TROUPE_CO_CHECK(journal_.keeps_up());  // No promise: it restarts on a full disk, too.
    fail(*actor,
         {.reason = news.reason.empty() ? "its process ended" : news.reason, .ended = true});
  }
  actor = look_up(news.actor);
  if (actor == nullptr) co_return ok();
  co_return co_await journal_.settled(actor->written);
}

Status Actors::may_checkpoint(const protocol::StoreCheckpoint& request,
                              const std::shared_ptr<transport::Peer>& worker) const {
  if (request.epoch != membership_.epoch()) {
    return error(Code::conflict, fmt::format("a checkpoint of leadership term {}, and this is {}",
                                             request.epoch, membership_.epoch()));
  }
  if (!membership_.registered_over(request.node, worker)) {
    return error(Code::unavailable, "the node is not registered over this connection");
  }
  const Actor* actor = find(request.actor);
  if (actor == nullptr) {
    return error(Code::not_found, "there is no actor " + request.actor.to_string());
  }
  // It may call itself alive before its worker's answer is here.
  const bool runs = actor->state == ActorState::starting || actor->state == ActorState::alive;
  if (runs && actor->info().incarnation == request.incarnation &&
      actor->info().address.node == request.node) {
    return ok();
  }
  const bool moves = actor->state == ActorState::restarting && actor->stopping && actor->moves;
  if (moves && actor->info().incarnation == request.incarnation + 1 &&
      actor->stopping_on == request.node) {
    return ok();
  }
  return error(Code::conflict,
               fmt::format("a checkpoint of incarnation {} of actor {}, which is {} in "
                           "incarnation {}",
                           request.incarnation, request.actor.short_string(), actor->info().state,
                           actor->info().incarnation));
}

Actors::Noted Actors::set_checkpoint(const protocol::StoreCheckpoint& request) {
  Actor& actor = *look_up(request.actor);
  protocol::Checkpoint& checkpoint = actor.info().checkpoint;
  ++checkpoint.number;
  checkpoint.hash = request.hash;
  checkpoint.size_bytes = request.size_bytes;
  checkpoint.incarnation = request.incarnation;
  checkpoint.taken_unix_us = static_cast<uint64_t>(
      environment_.clock.wall_now().time_since_epoch() / std::chrono::microseconds(1));
  Batch batch;
  put_actor(batch, actor.stored);
  actor.written = journal_.write(std::move(batch));
  return {checkpoint, actor.written};
}

Actor* Actors::look_up(ActorId id) {
  const auto found = actors_.find(id);
  return found == actors_.end() ? nullptr : &found->second;
}

const Actor* Actors::find(ActorId id) const {
  const auto found = actors_.find(id);
  return found == actors_.end() ? nullptr : &found->second;
}

const Actor* Actors::find(const std::string& name_space, const std::string& name) const {
  const auto found = names_.find({name_space, name});
  return found == names_.end() ? nullptr : find(found->second);
}

protocol::ActorInfo Actors::describe(const Actor& actor) const {
  protocol::ActorInfo info = actor.info();
  info.gauges = actor.gauges;
  if (actor.state != ActorState::pending && actor.state != ActorState::restarting) return info;
  const scheduler::RequestId request = info.actor;
  const auto explained = placement_.view().explain(request);
  if (explained.state == scheduler::RequestState::unknown) return info;
  info.reason += (info.reason.empty() ? "" : "; ") + explained.text;
  return info;
}

bool Actors::waits_for_room(const Actor& actor) const {
  return actor.state == ActorState::pending &&
         placement_.view().explain(actor.info().actor).state == scheduler::RequestState::pending;
}

scheduler::ActorRequested Actors::request_of(const protocol::ActorSpec& spec, bool restart) const {
  scheduler::ActorRequested request;
  request.actor = spec.actor;
  request.job = spec.job;
  // Demand and affinity were checked before; its group ends together with the actor.
  if (auto demand = to_resources(spec.demand)) request.demand = std::move(*demand);
  if (auto affinity = groups_.affinity_of(spec.placement)) request.affinity = std::move(*affinity);
  request.priority = spec.priority;
  request.restart = restart;
  if (!spec.node.is_nil()) request.affinity.node = spec.node;
  if (spec.strategy == "spread") request.strategy = scheduler::Strategy::spread;
  return request;
}

void Actors::request_placement(const Actor& actor, bool restart) {
  placement_.apply(request_of(actor.spec(), restart));
}

void Actors::release(ActorId id) {
  placement_.apply(scheduler::Cancelled{id});
  placement_.apply(scheduler::ActorReleased{id});
}

// After a restart of the head its scheduler knows nothing of what runs.
void Actors::adopt_resources(const Actor& actor) {
  if (!placement_.view().held(actor.info().actor).empty()) return;
  auto request = request_of(actor.spec(), false);
  scheduler::Placed place{
      0, actor.info().address.node, shares_of(actor.stored.devices, request.demand), {}};
  if (request.affinity.within && actor.stored.bundle > 0 &&
      groups_.is_current(actor.spec().placement.group, actor.stored.grant)) {
    place.bundle = actor.stored.bundle - 1;
  } else {
    request.affinity.within.reset();  // Its bundle is no more: accounted beside it until it ends.
  }
  scheduler::Adopted adopted{std::move(request), {place}};
  if (placement_.adopt(std::move(adopted))) return;
  log::warning("actor_overcommitted", {{"actor", actor.info().actor}, {"node", place.node}});
}

void Actors::set_state(Actor& actor, ActorState state) {
  actor.state = state;
  actor.due = {};
  actor.gauges.clear();
  actor.info().state = name_of(state);
  Batch batch;
  put_actor(batch, actor.stored);
  actor.written = journal_.write(std::move(batch));
  actor.changed->pulse();
  if (listener_ != nullptr) listener_->actor_changed(actor);
}

void Actors::actor_placed(const scheduler::ActorPlaced& placed) {
  Actor* actor = look_up(placed.actor);
  const bool waits = actor != nullptr && (actor->state == ActorState::pending ||
                                          actor->state == ActorState::restarting);
  if (!waits) return release(placed.actor);
  actor->info().address = {};
  actor->info().address.node = placed.node;
  actor->stored.devices.clear();
  for (const auto& share : placed.devices) actor->stored.devices.push_back(share.device);
  actor->stored.bundle = placed.bundle ? *placed.bundle + 1 : 0;
  actor->stored.grant = groups_.grant_of(actor->spec().placement.group);
  set_state(*actor, ActorState::starting);
  actor->start_runs = true;
  begin_start(*actor);
}

void Actors::begin_start(Actor& actor) {
  actor.due = environment_.clock.now() + options_.actor_start_budget;
  const protocol::ActorInfo& info = actor.info();
  if (actor.spec().shared) {
    start_light_soon(info.address.node, info.actor, info.incarnation);
  } else {
    spawn(scope_, start(info.actor, info.incarnation));
  }
}

bool Actors::still_starts(ActorId id, uint32_t incarnation) const {
  const Actor* actor = find(id);
  return actor != nullptr && actor->state == ActorState::starting &&
         actor->info().incarnation == incarnation;
}

protocol::StartActor Actors::start_request(const Actor& actor) const {
  protocol::StartActor request;
  request.epoch = membership_.epoch();
  request.incarnation = actor.info().incarnation;
  request.spec = actor.spec();
  request.devices = actor.stored.devices;
  request.checkpoint = actor.info().checkpoint;
  request.spec.placement = groups_.for_worker(request.spec.placement, actor.stored.bundle);
  return request;
}

Async<void> Actors::start(ActorId id, uint32_t incarnation) {
  // The incarnation is on disk before any process may call itself so.
  const Actor* begun = find(id);
  if (begun == nullptr) co_return;
  const Status durable = co_await journal_.durable(begun->written);
  if (!durable || !still_starts(id, incarnation)) co_return;
  const NodeId node = find(id)->info().address.node;
  const auto request = start_request(*find(id));
  auto outcome = co_await membership_.call<protocol::ProcessStarted>(
      node, transport::Method::start_actor, request, options_.actor_start_budget,
      [this, id, incarnation] { return still_starts(id, incarnation); });
  if (still_starts(id, incarnation)) started(id, node, outcome);
}

// What the worker said of an actor that still starts.
void Actors::started(ActorId id, NodeId node, const Result<protocol::ProcessStarted>& outcome) {
  Actor& current = *look_up(id);
  current.start_runs = false;
  if (outcome) {
    set_alive(current, outcome->address, outcome->pid);
  } else if (membership_.is_dead(node)) {
    fail(current, {.reason = outcome.error().message(), .blameless = true});
  } else {
    const bool permanent = is_permanent(outcome.error().code());
    fail(current, {.reason = "it did not start: " + outcome.error().message(),
                   .permanent = permanent,
                   .may_still_run = true});
  }
}

void Actors::start_light_soon(NodeId node, ActorId id, uint32_t incarnation) {
  auto& waiting = to_start_[node];
  waiting[id] = incarnation;
  if (waiting.size() == 1) spawn(scope_, start_light(node));
}

Async<void> Actors::start_light(NodeId node) {
  std::map<ActorId, uint32_t> batch;
  for (const auto& [id, incarnation] : std::exchange(to_start_[node], {})) {
    batch[id] = incarnation;
    if (batch.size() == start_batch_max) {
      spawn(scope_, start_batch(node, std::exchange(batch, {})));
    }
  }
  if (!batch.empty()) spawn(scope_, start_batch(node, std::move(batch)));
  co_return;
}

Async<void> Actors::start_batch(NodeId node, std::map<ActorId, uint32_t> batch) {
  const auto wanted = [&] {
    std::erase_if(batch, [&](const auto& one) { return !still_starts(one.first, one.second); });
    return !batch.empty();
  };
  while (wanted()) {
    auto streamed = co_await stream_batch(node, batch);
    if (!wanted()) co_return;
    const Code code = streamed ? Code::ok : streamed.error().code();
    const bool broken =
        code == Code::outcome_unknown || (code == Code::unavailable && !membership_.is_dead(node));
    if (streamed || broken) {
      // The connection broke: what it did not tell is asked again.
      co_await sleep_for(environment_.clock, restart_stream_after);
      continue;
    }
    for (const auto& [id, incarnation] : batch) {
      if (still_starts(id, incarnation)) started(id, node, streamed.error());
    }
    co_return;
  }
}

Async<Status> Actors::stream_batch(NodeId node, std::map<ActorId, uint32_t>& unsettled) {
  Journal::Ticket last = 0;
  for (const auto& [id, incarnation] : unsettled) last = std::max(last, find(id)->written);
  TROUPE_CO_CHECK(co_await journal_.settled(last));
  protocol::StartActors request;
  for (const auto& [id, incarnation] : unsettled) {
    if (still_starts(id, incarnation)) request.items.push_back(start_request(*find(id)));
  }
  const auto wanted = [&unsettled] { return !unsettled.empty(); };
  auto stream = co_await membership_.open_stream(node, transport::Method::start_actors,
                                                 protocol::encode(request),
                                                 options_.actor_start_budget, wanted);
  if (!stream) co_return std::move(stream).error();
  for (;;) {
    auto next = co_await (*stream)->next();
    if (!next) co_return std::move(next).error();
    if (!*next) co_return ok();
    auto report = protocol::decode<protocol::ActorsStarted>(**next);
    if (!report) co_return std::move(report).error();
    for (const protocol::StartedActor& outcome : report->items) {
      const auto found = unsettled.find(outcome.actor);
      if (found == unsettled.end() || found->second != outcome.incarnation) continue;
      unsettled.erase(found);
      if (!still_starts(outcome.actor, outcome.incarnation)) continue;
      if (outcome.error.code == 0) {
        started(outcome.actor, node, outcome.process);
      } else {
        started(outcome.actor, node, protocol::from_info(outcome.error));
      }
    }
  }
}

void Actors::set_alive(Actor& actor, const protocol::ProcessAddress& address, uint32_t pid) {
  const NodeId node = actor.info().address.node;
  actor.info().address = address;
  actor.info().address.node = node;
  actor.info().pid = pid;
  actor.info().reason.clear();
  actor.alive_since = environment_.clock.now();
  set_state(actor, ActorState::alive);
  log::info(
      "actor_alive",
      {{"actor", actor.info().actor}, {"incarnation", actor.info().incarnation}, {"node", node}});
}

void Actors::fail(Actor& actor, Failure failure) {
  protocol::ActorInfo& info = actor.info();
  const ActorId id = info.actor;
  log::warning("actor_failed",
               {{"actor", id}, {"incarnation", info.incarnation}, {"why", failure.reason}});
  const bool lived = actor.state == ActorState::alive &&
                     environment_.clock.now() - actor.alive_since >= options_.quick_failure;
  if (lived || failure.blameless) actor.quick_failures = 0;
  if (!failure.blameless) ++actor.quick_failures;
  actor.start_runs = false;
  const int32_t allowed = actor.spec().max_restarts;
  const bool bounded_out = allowed >= 0 && info.incarnation > static_cast<uint32_t>(allowed);
  // A deployment decides by itself when to give up.
  const bool hopeless = failure.permanent && actor.spec().deployment.empty();
  if (bounded_out || hopeless) {
    const std::string spent =
        bounded_out && allowed > 0 ? fmt::format(" (after {} restarts)", allowed) : std::string();
    return die(actor, failure.reason + spent);
  }
  const uint32_t failed_incarnation = info.incarnation;
  const NodeId failed_node = info.address.node;
  ++info.incarnation;
  info.reason = std::move(failure.reason);
  info.address = {};
  info.pid = 0;
  actor.stored.devices.clear();
  actor.stored.bundle = 0;
  const uint32_t incarnation = info.incarnation;
  set_state(actor, ActorState::restarting);
  const bool may_overlap = !failure.ended && actor.must_not_overlap();
  if (failure.may_still_run || may_overlap) {
    actor.stopping = true;
    actor.stopping_on = failed_node;
    actor.moves = failure.moves;
    actor.due = stops_until(id, failed_incarnation);
    spawn(scope_, restart_once_stopped(id, failed_incarnation, failed_node));
    return;
  }
  release(id);
  const Actor* now = find(id);
  if (now == nullptr || now->state != ActorState::restarting) return;
  const Duration delay = backoff(*now);
  if (delay > Duration::zero()) {
    spawn(scope_, restart_later(id, incarnation, delay));
  } else {
    request_placement(*now, true);
  }
}

// The first failure costs no wait; then it doubles.
Duration Actors::backoff(const Actor& actor) const {
  if (actor.quick_failures <= 1) return Duration::zero();
  const uint32_t doublings = std::min<uint32_t>(actor.quick_failures - 2, 20);
  return std::min(options_.backoff_min * (int64_t{1} << doublings), options_.backoff_max);
}

// Its process may still run: what it holds is free, and its next incarnation starts, once it is
// gone.
Async<void> Actors::restart_once_stopped(ActorId id, uint32_t failed, NodeId node) {
  const Actor* failing = find(id);
  if (failing == nullptr) co_return;
  if (failing->must_not_overlap()) {
    co_await stop_surely(id, failed, node, failing->isolation_limit());
    released_once_stopped(id);
  } else {
    co_await stop(id, failed, node, 0);
  }
  if (Actor* stopped = look_up(id)) stopped->stopping = stopped->moves = false;
  const Actor* actor = find(id);
  if (actor == nullptr || actor->state != ActorState::restarting ||
      actor->info().incarnation != failed + 1) {
    co_return;
  }
  release(id);
  actor = find(id);
  if (actor == nullptr || actor->state != ActorState::restarting) co_return;
  co_await restart_later(id, failed + 1, backoff(*actor));
}

// The head before this one waited for the process to end, nobody knows where. It lives on where its
// node is registered here, and ends by itself elsewhere.
Async<void> Actors::restart_after_silence(ActorId id, uint32_t incarnation) {
  const Instant until =
      environment_.clock.now() + std::max<Duration>(find(id)->isolation_limit(), options_.window);
  look_up(id)->due = until;
  co_await sleep_until(environment_.clock, until);
  while (stale_.contains(id)) co_await stale_stopped_.wait();
  Actor* actor = look_up(id);
  if (actor == nullptr) co_return;
  actor->stopping = false;
  released_once_stopped(id);
  const bool waits =
      actor->state == ActorState::restarting && actor->info().incarnation == incarnation;
  if (waits) request_placement(*actor, true);
}

Async<void> Actors::restart_later(ActorId id, uint32_t incarnation, Duration delay) {
  if (Actor* actor = look_up(id)) actor->due = environment_.clock.now() + delay;
  co_await sleep_for(environment_.clock, delay);
  const Actor* actor = find(id);
  if (actor == nullptr || actor->state != ActorState::restarting ||
      actor->info().incarnation != incarnation) {
    co_return;
  }
  request_placement(*actor, true);
}

void Actors::die(Actor& actor, std::string reason) {
  protocol::ActorInfo& info = actor.info();
  const ActorId id = info.actor;
  const NodeId node = info.address.node;
  const bool had_process = actor.state == ActorState::starting || actor.state == ActorState::alive;
  if (!actor.spec().name.empty()) names_.erase({actor.spec().name_space, actor.spec().name});
  if (const auto in = in_groups_.find(actor.spec().placement.group); in != in_groups_.end()) {
    in->second.erase(id);
    if (in->second.empty()) in_groups_.erase(in);
  }
  info.reason = std::move(reason);
  info.pid = 0;
  info.checkpoint = {};
  set_state(actor, ActorState::dead);
  log::info("actor_dead", {{"actor", id}, {"name", info.name}, {"why", info.reason}});
  dead_.push_back(id);
  if (had_process && !node.is_nil()) actor.due = stops_until(id, info.incarnation);
  if (had_process && !node.is_nil() && actor.spec().shared) {
    stop_light_soon(node, id, info.incarnation, actor.written);
  } else if (had_process && !node.is_nil()) {
    spawn(scope_, stop(id, info.incarnation, node, actor.written));
  } else if (!actor.stopping) {  // Else it is released once that has ended.
    release(id);
  }
  forget_oldest();
}

void Actors::forget_oldest() {
  while (dead_.size() > options_.history_max) {
    const ActorId id = dead_.front();
    dead_.pop_front();
    actors_.erase(id);
    Batch batch;
    erase_actor(batch, id);
    journal_.write(std::move(batch));
  }
}

protocol::StopActor Actors::stop_request(ActorId id, uint32_t incarnation) const {
  const Actor* actor = find(id);
  const uint64_t own_grace = actor != nullptr ? actor->spec().exit_grace_us : 0;
  const auto usual = static_cast<uint64_t>(options_.stop_grace / std::chrono::microseconds(1));
  const bool moves = actor != nullptr && actor->moves && actor->info().incarnation > incarnation;
  const uint64_t grace = own_grace != 0 ? own_grace : usual;
  const auto to_save = static_cast<uint64_t>(save_grace / std::chrono::microseconds(1));
  const bool saves =
      moves && (actor->spec().checkpoint_interval_us != 0 || actor->info().checkpoint.number != 0);
  return {membership_.epoch(), id, incarnation, saves ? std::max(grace, to_save) : grace, moves};
}

Instant Actors::stops_until(ActorId id, uint32_t incarnation) const {
  const auto grace = std::chrono::microseconds(stop_request(id, incarnation).grace_us);
  return environment_.clock.now() + grace;
}

Async<void> Actors::stop(ActorId id, uint32_t incarnation, NodeId node, Journal::Ticket after) {
  const Status durable = co_await journal_.durable(after);
  if (!durable) co_return;
  co_await ask_to_stop(id, incarnation, node);
  released_once_stopped(id);
}

Async<void> Actors::stop_surely(ActorId id, uint32_t incarnation, NodeId node, Duration limit) {
  for (;;) {
    const bool stopped = co_await ask_to_stop(id, incarnation, node);
    if (stopped) co_return;
    if (!membership_.is_dead(node)) {
      co_await sleep_for(environment_.clock, ask_again_after);
      continue;
    }
    const Instant until = environment_.clock.now() + limit;
    if (Actor* actor = look_up(id)) actor->due = until;
    while (membership_.is_dead(node) && environment_.clock.now() < until) {
      co_await wait_until(environment_.clock, until, registered_);
    }
    if (membership_.is_dead(node)) co_return;
  }
}

Async<bool> Actors::ask_to_stop(ActorId id, uint32_t incarnation, NodeId node) {
  const auto request = stop_request(id, incarnation);
  auto stopped = co_await membership_.call<protocol::Empty>(
      node, transport::Method::stop_actor, request, stop_budget, [] { return true; });
  if (!stopped && !membership_.is_dead(node)) {
    log::warning("actor_stop_failed", {{"actor", id}, {"why", stopped.error()}});
  }
  co_return stopped.has_value();
}

// Its node was given up and comes back: what the process holds there is not free yet, while the
// actor itself may hold something elsewhere. So it is accounted under an id of its own. Its devices
// are not known any more.
void Actors::stop_stale(const protocol::RunningActor& running, NodeId node) {
  const ActorId id = running.actor;
  const ActorId held_as{RawId{id.high, id.low + 2 * uint64_t{running.incarnation} + 1}};
  const Actor* actor = find(id);
  if (actor != nullptr && placement_.view().held(held_as).empty()) {
    auto request = request_of(actor->spec(), false);
    request.actor = held_as;
    request.affinity = {};
    request.demand.gpu_milli = 0;
    scheduler::Adopted adopted{std::move(request), {scheduler::Placed{0, node, {}, {}}}};
    if (!placement_.adopt(std::move(adopted))) {
      log::warning("actor_overcommitted", {{"actor", id}, {"node", node}});
    }
  }
  stale_.insert(id);
  spawn(scope_, release_once_stopped(id, running.incarnation, node, held_as));
}

Async<void> Actors::release_once_stopped(ActorId id, uint32_t incarnation, NodeId node,
                                         ActorId held_as) {
  const Actor* actor = find(id);
  if (actor != nullptr && actor->must_not_overlap()) {
    co_await stop_surely(id, incarnation, node, actor->isolation_limit());
  } else {
    co_await ask_to_stop(id, incarnation, node);
  }
  stale_.erase(stale_.find(id));
  stale_stopped_.pulse();
  release(held_as);
}

void Actors::released_once_stopped(ActorId id) {
  Actor* actor = look_up(id);
  if (actor != nullptr && actor->state != ActorState::dead) return;
  if (actor != nullptr) actor->due = {};
  release(id);
}

void Actors::stop_light_soon(NodeId node, ActorId id, uint32_t incarnation, Journal::Ticket after) {
  Stopping& stopping = to_stop_[node];
  stopping.actors[id] = incarnation;
  stopping.after = std::max(stopping.after, after);
  if (stopping.actors.size() == 1) spawn(scope_, stop_light(node));
}

Async<void> Actors::stop_light(NodeId node) {
  const Stopping stopping = std::exchange(to_stop_[node], {});
  const Status durable = co_await journal_.durable(stopping.after);
  if (!durable) co_return;
  protocol::StopActors request;
  for (const auto& [id, incarnation] : stopping.actors) {
    request.items.push_back(stop_request(id, incarnation));
  }
  auto stopped = co_await membership_.call<protocol::Empty>(
      node, transport::Method::stop_actors, request, stop_budget, [] { return true; });
  if (!stopped && !membership_.is_dead(node)) {
    log::warning("actors_stop_failed",
                 {{"count", stopping.actors.size()}, {"why", stopped.error()}});
  }
  for (const auto& [id, incarnation] : stopping.actors) released_once_stopped(id);
}

void Actors::node_registered(const protocol::RegisterNode& node) {
  const NodeId here = node.address.node;
  std::map<ActorId, const protocol::RunningActor*> listed;
  for (const protocol::RunningActor& running : node.actors) listed[running.actor] = &running;
  std::vector<ActorId> ours;
  for (const auto& [id, actor] : actors_) {
    const bool placed = actor.state == ActorState::starting || actor.state == ActorState::alive;
    if (placed && actor.info().address.node == here) ours.push_back(id);
  }
  for (const ActorId id : ours) {
    Actor& actor = actors_.at(id);
    const auto found = listed.find(id);
    const bool runs =
        found != listed.end() && found->second->incarnation == actor.info().incarnation;
    if (runs || actor.state == ActorState::starting) adopt_resources(actor);
    if (runs) {
      const protocol::RunningActor& running = *found->second;
      const bool known = actor.state == ActorState::alive &&
                         actor.info().address.process == running.address.process;
      if (!known) set_alive(actor, running.address, running.pid);
      listed.erase(found);
    } else if (actor.state == ActorState::alive) {
      fail(actor,
           {.reason = "its process was gone when its node came back", .may_still_run = true});
    } else if (!actor.start_runs) {
      actor.start_runs = true;
      begin_start(actor);
    }
  }
  registered_.pulse();
  for (const auto& [id, running] : listed) stop_unwanted(*running, here);
  for (const protocol::RunningActor& starting : node.starting) {
    const Actor* actor = find(starting.actor);
    const bool wanted =
        still_starts(starting.actor, starting.incarnation) && actor->info().address.node == here;
    if (!wanted) stop_unwanted(starting, here);
  }
}

void Actors::stop_unwanted(const protocol::RunningActor& running, NodeId here) {
  const ActorId id = running.actor;
  log::info("stale_actor_stopped", {{"actor", id}, {"incarnation", running.incarnation}});
  // What a dead one holds is free once its process has stopped, under a new head as well.
  const Actor* actor = find(id);
  const bool dead_here = actor != nullptr && actor->state == ActorState::dead &&
                         actor->info().address.node == here &&
                         actor->info().incarnation == running.incarnation;
  if (!dead_here) {
    stop_stale(running, here);
    return;
  }
  adopt_resources(*actor);
  spawn(scope_, stop(id, running.incarnation, here, 0));
}

void Actors::group_removed(PlacementGroupId group, scheduler::GangId, const std::string& reason) {
  const auto found = in_groups_.find(group);
  if (found == in_groups_.end()) return;
  const auto members = found->second;
  for (const ActorId id : members) {
    if (Actor* actor = look_up(id)) die(*actor, reason);
  }
}

void Actors::group_broken(PlacementGroupId group, scheduler::GangId, const std::string& reason) {
  const auto found = in_groups_.find(group);
  if (found == in_groups_.end()) return;
  const auto members = found->second;
  for (const ActorId id : members) {
    Actor* actor = look_up(id);
    if (actor == nullptr) continue;
    if (actor->state == ActorState::starting || actor->state == ActorState::alive) {
      fail(*actor, {.reason = "its placement group is granted anew: " + reason,
                    .blameless = true,
                    .may_still_run = !membership_.is_dead(actor->info().address.node)});
    } else if (actor->state != ActorState::dead && !actor->stopping) {
      release(id);  // Out of the old grant's line, into the new one's.
      request_placement(*actor, actor->state == ActorState::restarting);
    }
  }
}

void Actors::node_lost(NodeId node, const std::string& reason) {
  std::vector<ActorId> lost;
  for (const auto& [id, actor] : actors_) {
    const bool placed = actor.state == ActorState::starting || actor.state == ActorState::alive;
    if (placed && actor.info().address.node == node) lost.push_back(id);
  }
  for (const ActorId id : lost) {
    if (Actor* actor = look_up(id)) fail(*actor, {.reason = reason, .blameless = true});
  }
}

void Actors::node_draining(const protocol::NodeInfo& node) {
  if (!node.draining) return;
  std::vector<ActorId> movable;
  for (const auto& [id, actor] : actors_) {
    const bool placed = actor.state == ActorState::starting || actor.state == ActorState::alive;
    if (!placed || actor.info().address.node != node.address.node) continue;
    const int32_t allowed = actor.spec().max_restarts;
    const bool may_restart =
        allowed < 0 || actor.info().incarnation <= static_cast<uint32_t>(allowed);
    if (may_restart && actor.spec().placement.group.is_nil()) movable.push_back(id);
  }
  for (const ActorId id : movable) {
    if (Actor* actor = look_up(id)) {
      fail(*actor, {.reason = fmt::format("node {} is drained", node.name),
                    .blameless = true,
                    .may_still_run = true,
                    .moves = true});
    }
  }
}

}  // namespace troupe::head
