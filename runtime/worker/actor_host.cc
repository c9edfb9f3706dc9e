#include "worker/actor_host.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>

#include "base/log.h"

namespace troupe::worker {

using protocol::ProcessStarted;
using transport::Method;

namespace {

constexpr size_t ended_max = 16384;
constexpr size_t gauges_max = 256;
constexpr size_t gauge_name_bytes_max = 64;
constexpr Duration superseded_grace = std::chrono::seconds(2);
constexpr Duration failed_grace = Duration::zero();
constexpr Duration answer_grace = std::chrono::seconds(1);
constexpr Duration unused_process_life = std::chrono::seconds(1);  // Of light actors, without any.
constexpr Duration start_budget = std::chrono::minutes(10);        // A large model loads meanwhile.

}  // namespace

ActorHost::ActorHost(transport::Environment environment, Scope& scope, ProcessTable& processes,
                     Logs& logs, const WorkerOptions& options)
    : environment_(environment),
      scope_(scope),
      processes_(processes),
      logs_(logs),
      options_(options) {}

ActorHost::Pointer ActorHost::find(ActorId id) const {
  const auto found = actors_.find(id);
  return found == actors_.end() ? nullptr : found->second;
}

std::optional<Error> ActorHost::refusal(const protocol::StartActor& request) const {
  const ActorId id = request.spec.actor;
  const auto ended = ended_.find(id);
  if (ended != ended_.end() && ended->second.incarnation == request.incarnation) {
    return ended->second.why;
  }
  if (ended != ended_.end() && ended->second.incarnation > request.incarnation) {
    return error(Code::conflict,
                 fmt::format("actor {} incarnation {} is past: {} was here", id.to_string(),
                             request.incarnation, ended->second.incarnation));
  }
  const Pointer present = find(id);
  if (present && present->incarnation > request.incarnation) {
    return error(Code::conflict,
                 fmt::format("actor {} incarnation {} is past: {} is here", id.to_string(),
                             request.incarnation, present->incarnation));
  }
  return std::nullopt;
}

Async<Result<ProcessStarted>> ActorHost::start(protocol::StartActor request,
                                               Surroundings surroundings,
                                               CheckpointFolder checkpoint, Instant deadline) {
  const ActorId id = request.spec.actor;
  if (id.is_nil()) co_return error(Code::invalid, "start_actor needs an actor");
  for (;;) {
    if (auto refused = refusal(request)) co_return std::move(*refused);
    const Pointer present = find(id);
    if (!present) {
      co_return co_await begin(std::move(request), std::move(surroundings), std::move(checkpoint));
    }
    if (present->incarnation == request.incarnation) co_return co_await join(present, deadline);
    const uint64_t drops = drops_;
    co_await supersede(id);
    if (drops != drops_) co_return dropped();
  }
}

Error ActorHost::dropped() {
  return error(Code::cancelled, "the node registered anew meanwhile: the head asks again");
}

Async<void> ActorHost::supersede(ActorId id) {
  const Pointer older = find(id);
  if (!older) co_return;
  log::info("actor_superseded", {{"actor", id}, {"incarnation", older->incarnation}});
  auto process = older->process;
  if (older->light) {
    protocol::StopActor stop;
    stop.actor = id;
    stop.incarnation = older->incarnation;
    stop.grace_us = static_cast<uint64_t>(superseded_grace / std::chrono::microseconds(1));
    std::vector<protocol::StopActor> items{stop};
    (void)co_await stop_light(process, std::move(items), Instant::max());
  } else {
    co_await HostedProcess::end(process, superseded_grace);
  }
  // A start that fails now settles and leaves the map by itself.
  if (!older->settled.is_set()) co_await older->settled.wait();
  if (find(id) == older) actors_.erase(id);
}

Async<Result<ProcessStarted>> ActorHost::join(Pointer actor, Instant deadline) {
  const bool settled = co_await wait_until(environment_.clock, deadline, actor->settled);
  Result<ProcessStarted> outcome = error(Code::deadline_exceeded, "the actor still starts");
  if (settled) outcome = *actor->outcome;  // Copied first: GCC 12 traps on returning it from there.
  co_return outcome;
}

Async<Result<ProcessStarted>> ActorHost::begin(protocol::StartActor request,
                                               Surroundings surroundings,
                                               CheckpointFolder checkpoint) {
  const protocol::ActorSpec& spec = request.spec;
  const ActorId id = spec.actor;
  const Instant began = environment_.clock.now();
  // Of its own: the head asks again while this goes on.
  const Instant deadline = began + start_budget;
  const auto driver = surroundings.driver;
  const std::string name = spec.name.empty() ? spec.class_name : spec.name;
  const bool is_replaceable = spec.max_restarts != 0;
  ProcessTable::Request launch{spec.job, request.devices, spec.environment, spec.module,
                               std::move(surroundings)};
  TROUPE_CO_TRY(auto process, processes_.launch(launch));
  auto actor = std::make_shared<Actor>(environment_.loop);
  actor->incarnation = request.incarnation;
  actor->process = process;
  actor->isolation_limit = std::chrono::microseconds(spec.isolation_limit_us);
  actors_[id] = actor;
  logs_.process_started(process, id, name, driver);

  const auto assignment = assignment_of(std::move(request), checkpoint, process->id());
  const std::string class_name = assignment.spec.class_name;
  Bytes body = protocol::encode(assignment);
  Status greeted =
      co_await HostedProcess::greet(process, processes_.service(), processes_.hello, deadline);
  const bool is_limited = greeted && actor->isolation_limit > Duration::zero();
  if (is_limited) greeted = co_await extend(process, actor->isolation_limit);
  Result<ProcessStarted> started = error(Code::unavailable, "");
  if (greeted) {
    started =
        co_await HostedProcess::assign(process, Method::assign_actor, std::move(body), deadline);
  } else {
    started = std::move(greeted).error();
  }
  if (started && !process->is_usable()) {
    started = error(Code::cancelled,
                    fmt::format("actor {} was stopped while it started", id.to_string()));
  }
  if (started) {
    process->work = Work{id, actor->incarnation, {}, is_replaceable};
    const auto took = environment_.clock.now() - began;
    log::info("actor_started", {{"actor", id},
                                {"incarnation", actor->incarnation},
                                {"process", process->id()},
                                {"pid", process->pid()},
                                {"ms", took / std::chrono::milliseconds(1)}});
  } else {
    log::warning("actor_start_failed",
                 {{"actor", id}, {"incarnation", actor->incarnation}, {"why", started.error()}});
    remember_end(id, actor->incarnation, started.error());
    if (find(id) == actor) actors_.erase(id);
  }
  processes_.note_actor(id, class_name, actor->incarnation, began, !started);
  actor->outcome = started;
  actor->settled.set();
  if (!started) co_await HostedProcess::end(process, failed_grace);
  co_return started;
}

void ActorHost::extend_isolated(Instant heard) {
  heard_ = heard;
  for (const auto& [id, actor] : actors_) {
    const bool is_limited = actor->isolation_limit > Duration::zero();
    if (is_limited && actor->process->is_usable()) {
      spawn(scope_, extend_later(actor->process, actor->isolation_limit));
    }
  }
}

Async<Status> ActorHost::extend(HostedProcess::Pointer process, Duration isolation_limit) {
  const Instant until = heard_ + isolation_limit;
  const protocol::StayUntil request{until.time_since_epoch().count()};
  auto extended = co_await transport::call<protocol::Empty>(process->peer(), Method::stay_until,
                                                            request, isolation_limit);
  if (!extended) co_return std::move(extended).error().context("limit its isolation");
  co_return ok();
}

Async<void> ActorHost::extend_later(HostedProcess::Pointer process, Duration isolation_limit) {
  const Status extended = co_await extend(process, isolation_limit);
  if (!extended) {
    log::info("isolation_not_extended", {{"process", process->id()}, {"why", extended.error()}});
  }
}

protocol::AssignActor ActorHost::assignment_of(protocol::StartActor request,
                                               const CheckpointFolder& checkpoint,
                                               ProcessId process) const {
  protocol::AssignActor assignment;
  assignment.incarnation = request.incarnation;
  assignment.spec = std::move(request.spec);
  assignment.checkpoint = std::move(request.checkpoint);
  if (checkpoint) assignment.restore_from = *checkpoint;
  assignment.checkpoint_folder = checkpoint_folder_of(options_, process);
  return assignment;
}

// --- Light actors

Async<Status> ActorHost::start_light(protocol::StartActors request,
                                     std::shared_ptr<const Prepared> prepared,
                                     transport::OutgoingStream& out) {
  const auto outcomes = std::make_shared<Outcomes>(environment_.loop);
  outcomes->left = request.items.size();
  std::map<ProcessId, std::vector<protocol::StartActor>> groups;
  for (protocol::StartActor& item : request.items) {
    const ActorId id = item.spec.actor;
    const uint32_t incarnation = item.incarnation;
    const auto fail = [&](const Error& why) {
      outcomes->add({id, incarnation, {}, protocol::to_info(why)});
    };
    if (id.is_nil()) {
      fail(error(Code::invalid, "start_actors needs actors"));
      continue;
    }
    if (const auto refused = refusal(item)) {
      fail(*refused);
      continue;
    }
    const auto checkpoint = prepared->checkpoints.find(id);
    if (checkpoint != prepared->checkpoints.end() && !checkpoint->second) {
      fail(checkpoint->second.error());
      continue;
    }
    if (const Pointer present = find(id)) {
      if (present->incarnation == incarnation) {
        spawn(scope_, join_light(id, incarnation, present, outcomes));
      } else {
        spawn(scope_, start_light_later(std::move(item), prepared, outcomes));
      }
      continue;
    }
    auto light = light_process(item, *prepared);
    if (!light) {
      fail(light.error());
      continue;
    }
    const auto actor = std::make_shared<Actor>(environment_.loop);
    actor->incarnation = incarnation;
    actor->process = (*light)->process;
    actor->light = *light;
    actors_[id] = actor;
    (*light)->actors.insert(id);
    groups[(*light)->process->id()].push_back(std::move(item));
  }
  for (auto& [process, items] : groups) {
    spawn(scope_, assign_light(light_processes_.at(process), std::move(items), prepared, outcomes));
  }
  groups.clear();
  while (outcomes->left > 0 || !outcomes->told_next.empty()) {
    if (outcomes->told_next.empty()) {
      co_await outcomes->changed.wait();
      continue;
    }
    protocol::ActorsStarted report{std::exchange(outcomes->told_next, {})};
    TROUPE_CO_CHECK(co_await out.send(protocol::encode(report)));
  }
  co_return ok();
}

// An older incarnation is still here.
Async<void> ActorHost::start_light_later(protocol::StartActor request,
                                         std::shared_ptr<const Prepared> prepared,
                                         OutcomesPointer outcomes) {
  const ActorId id = request.spec.actor;
  const uint64_t drops = drops_;
  co_await supersede(id);
  std::optional<Error> refused = refusal(request);
  if (drops != drops_) refused = dropped();
  Result<LightPointer> light = error(Code::conflict, "another incarnation starts");
  if (!refused && !find(id)) light = light_process(request, *prepared);
  if (!refused && !light) refused = light.error();
  if (refused) {
    protocol::StartedActor outcome{id, request.incarnation, {}, protocol::to_info(*refused)};
    outcomes->add(std::move(outcome));
    co_return;
  }
  const auto actor = std::make_shared<Actor>(environment_.loop);
  actor->incarnation = request.incarnation;
  actor->process = (*light)->process;
  actor->light = *light;
  actors_[id] = actor;
  (*light)->actors.insert(id);
  std::vector<protocol::StartActor> items;
  items.push_back(std::move(request));
  co_await assign_light(*light, std::move(items), std::move(prepared), outcomes);
}

Async<void> ActorHost::join_light(ActorId id, uint32_t incarnation, Pointer actor,
                                  OutcomesPointer outcomes) {
  if (!actor->settled.is_set()) co_await actor->settled.wait();
  protocol::StartedActor outcome{id, incarnation, {}, {}};
  if (*actor->outcome) {
    outcome.process = **actor->outcome;
  } else {
    outcome.error = protocol::to_info(actor->outcome->error());
  }
  outcomes->add(std::move(outcome));
}

Result<ActorHost::LightPointer> ActorHost::light_process(const protocol::StartActor& request,
                                                         const Prepared& prepared) {
  protocol::ActorSpec kind;
  kind.job = request.spec.job;
  kind.module = request.spec.module;
  kind.environment = request.spec.environment;
  kind.placement = request.spec.placement;
  const Bytes encoded = protocol::encode(kind);
  const std::string key{encoded.begin(), encoded.end()};
  if (const auto found = light_.find(key); found != light_.end()) {
    const LightPointer light = found->second;
    if (!light->greeted.is_set() || light->process->is_usable()) {
      ++light->uses;
      return light;
    }
  }
  TROUPE_TRY(auto surroundings, prepared.surroundings.at({kind.job, kind.module}));
  const auto driver = surroundings.driver;
  TROUPE_TRY(
      auto process,
      processes_.launch({kind.job, {}, kind.environment, kind.module, std::move(surroundings)}));
  const auto light = std::make_shared<LightProcess>(environment_.loop);
  light->key = key;
  light->process = process;
  light_[key] = light;
  light_processes_[process->id()] = light;
  logs_.process_started(process, {}, program_of(kind.module), driver);
  spawn(scope_, greet(light));
  return light;
}

Async<void> ActorHost::greet(LightPointer light) {
  const Instant began = environment_.clock.now();
  auto process = light->process;
  light->outcome = co_await HostedProcess::greet(process, processes_.service(), processes_.hello,
                                                 began + start_budget);
  processes_.note_started("process of light actors", began, !light->outcome);
  if (light->outcome) {
    log::info("light_process_started", {{"process", process->id()}, {"pid", process->pid()}});
  } else {
    retire(light);
    if (!process->exited().is_set()) spawn(scope_, HostedProcess::end(process, failed_grace));
  }
  light->greeted.set();
}

void ActorHost::retire(const LightPointer& light) {
  const auto newest = light_.find(light->key);
  if (newest != light_.end() && newest->second == light) light_.erase(newest);
}

Async<void> ActorHost::assign_light(LightPointer light, std::vector<protocol::StartActor> items,
                                    std::shared_ptr<const Prepared> prepared,
                                    OutcomesPointer outcomes) {
  protocol::AssignActors request;
  std::map<ActorId, Pointer> unsettled;
  for (protocol::StartActor& item : items) {
    const ActorId id = item.spec.actor;
    unsettled[id] = find(id);
    const auto checkpoint = prepared->checkpoints.find(id);
    request.items.push_back(assignment_of(
        std::move(item),
        checkpoint == prepared->checkpoints.end() ? CheckpointFolder{} : *checkpoint->second,
        light->process->id()));
  }
  auto streamed = co_await stream_light(light, std::move(request), outcomes, unsettled);
  if (unsettled.empty()) co_return;
  Error why = streamed ? error(Code::internal, "the process did not say what came of the actor")
                       : streamed.error();
  auto process = light->process;
  if (!process->is_usable()) why = co_await HostedProcess::explain(process, std::move(why));
  log::warning("light_actors_not_started", {{"count", unsettled.size()}, {"why", why}});
  for (const auto& [id, actor] : unsettled) {
    settle(id, actor, why);
    outcomes->add({id, actor->incarnation, {}, protocol::to_info(why)});
  }
}

Async<Status> ActorHost::stream_light(LightPointer light, protocol::AssignActors request,
                                      OutcomesPointer outcomes,
                                      std::map<ActorId, Pointer>& unsettled) {
  if (!light->greeted.is_set()) co_await light->greeted.wait();
  TROUPE_CO_CHECK(light->outcome);
  const auto peer = light->process->peer();
  transport::Message message{protocol::encode(request), {}};
  if (!peer) co_return error(Code::unavailable, "the process of light actors has ended");
  auto stream = peer->open_stream(Method::assign_actors, std::move(message), start_budget);
  if (!stream) co_return std::move(stream).error();
  for (;;) {
    auto next = co_await (*stream)->next();
    if (!next) co_return std::move(next).error();
    if (!*next) co_return ok();
    auto report = protocol::decode<protocol::ActorsStarted>(**next);
    if (!report) co_return std::move(report).error();
    for (protocol::StartedActor& outcome : report->items) {
      const auto found = unsettled.find(outcome.actor);
      if (found == unsettled.end()) continue;
      const auto actor = found->second;
      unsettled.erase(found);
      if (outcome.error.code == 0) {
        outcome.process.pid = light->process->pid();
        settle(outcome.actor, actor, outcome.process);
        logs_.hosts(light->process->id(), outcome.actor);
      } else {
        settle(outcome.actor, actor, protocol::from_info(outcome.error));
      }
      outcomes->add(std::move(outcome));
    }
  }
}

void ActorHost::settle(ActorId id, const Pointer& actor, Result<ProcessStarted> outcome) {
  // Of first starts there may be very many.
  if (actor->incarnation > 1) {
    processes_.note_actor(id, "light actor", actor->incarnation, environment_.clock.now(),
                          !outcome);
  }
  if (!outcome) {
    remember_end(id, actor->incarnation, outcome.error());
    leave_light(id, actor);
  }
  actor->outcome = std::move(outcome);
  actor->settled.set();
}

// The last to leave lets the process go, unless others come soon.
void ActorHost::leave_light(ActorId id, const Pointer& actor) {
  if (find(id) == actor) actors_.erase(id);
  const LightPointer light = actor->light;
  light->actors.erase(id);
  if (light->actors.empty()) spawn(scope_, end_unused(light, light->uses));
}

Async<void> ActorHost::end_unused(LightPointer light, uint64_t uses) {
  co_await sleep_for(environment_.clock, unused_process_life);
  if (!light->actors.empty() || light->uses != uses) co_return;
  retire(light);
  auto process = light->process;
  co_await HostedProcess::end(process, superseded_grace);
}

Async<Status> ActorHost::stop_light(HostedProcess::Pointer process,
                                    std::vector<protocol::StopActor> items, Instant deadline) {
  using namespace boost::asio::experimental::awaitable_operators;
  protocol::EndActors request;
  Duration grace{};
  std::map<ActorId, Pointer> ending;
  for (const protocol::StopActor& item : items) {
    const Pointer actor = find(item.actor);
    if (!actor || actor->process != process) continue;
    ending[item.actor] = actor;
    request.items.push_back({item.actor, actor->incarnation, item.grace_us, item.save});
    grace = std::max<Duration>(grace, std::chrono::microseconds(item.grace_us));
  }
  if (ending.empty()) co_return ok();
  // Others start in it, too: one that still starts is not one that has ended.
  const LightPointer light = ending.begin()->second->light;
  const bool greeted = co_await wait_until(environment_.clock, deadline, light->greeted);
  if (!greeted) co_return error(Code::deadline_exceeded, "the actor's process still starts");
  auto peer = process->peer();
  Status ended = error(Code::unavailable, "its process has ended");
  if (peer && peer->is_open()) {
    // The process keeps the grace; this is for one that does not.
    auto told = co_await transport::call<protocol::Empty>(peer, Method::end_actors,
                                                          std::move(request), grace + answer_grace);
    ended = told ? ok() : Status{told.error()};
  }
  if (ended) {
    for (const auto& [id, actor] : ending) {
      remember_end(id, actor->incarnation,
                   error(Code::conflict, fmt::format("actor {} incarnation {} was stopped",
                                                     id.to_string(), actor->incarnation)));
      leave_light(id, actor);
    }
    co_return ok();
  }
  // User code that does not return cannot be unwound: its process goes, with all that live in it.
  log::warning("light_process_killed", {{"process", process->id()}, {"why", ended.error()}});
  const auto raced = co_await (HostedProcess::end(process, Duration::zero()) ||
                               sleep_until(environment_.clock, deadline));
  if (raced.index() == 0) co_return ok();
  co_return error(Code::deadline_exceeded, "the actor's process still ends");
}

Async<Result<protocol::Empty>> ActorHost::stop_many(protocol::StopActors request,
                                                    Instant deadline) {
  std::map<ProcessId, std::pair<HostedProcess::Pointer, std::vector<protocol::StopActor>>> light;
  std::vector<protocol::StopActor> others;
  for (const protocol::StopActor& item : request.items) {
    const Pointer actor = find(item.actor);
    const bool is_light =
        actor && actor->light && (item.incarnation == 0 || item.incarnation == actor->incarnation);
    if (is_light) {
      auto& [process, items] = light[actor->process->id()];
      process = actor->process;
      items.push_back(item);
    } else {
      others.push_back(item);
    }
  }
  for (auto& [id, of] : light) {
    TROUPE_CO_CHECK(co_await stop_light(of.first, std::move(of.second), deadline));
  }
  for (const protocol::StopActor& item : others) {
    auto stopped = co_await stop(item, deadline);
    if (!stopped) co_return std::move(stopped).error();
  }
  co_return protocol::Empty{};
}

Async<Result<protocol::Empty>> ActorHost::stop(protocol::StopActor request, Instant deadline) {
  const Pointer actor = find(request.actor);
  if (!actor) {
    remember_end(request.actor, request.incarnation,
                 error(Code::cancelled, "the actor was stopped before it started"));
    co_return protocol::Empty{};
  }
  // Incarnation 0: whichever runs. A request for an older one was fulfilled when it went.
  if (request.incarnation != 0 && actor->incarnation > request.incarnation) {
    co_return protocol::Empty{};
  }
  if (request.incarnation > actor->incarnation) {
    // Its start may wait for this older one to go: then it must not go on.
    remember_end(request.actor, request.incarnation,
                 error(Code::cancelled, "the actor was stopped before it started"));
  }
  const Duration grace = std::chrono::microseconds(request.grace_us);
  auto process = actor->process;
  if (actor->light) {
    std::vector<protocol::StopActor> items{request};
    TROUPE_CO_CHECK(co_await stop_light(process, std::move(items), deadline));
    co_return protocol::Empty{};
  }
  log::info("actor_stopping", {{"actor", request.actor}, {"incarnation", actor->incarnation}});
  using namespace boost::asio::experimental::awaitable_operators;
  // The escalation is owned by the process: it goes on when this wait ends early.
  const auto raced = co_await (HostedProcess::end(process, grace, request.save) ||
                               sleep_until(environment_.clock, deadline));
  if (raced.index() == 0) co_return protocol::Empty{};
  co_return error(Code::deadline_exceeded, "the actor's process still ends");
}

std::vector<Work> ActorHost::process_exited(HostedProcess& process) {
  std::vector<Work> ended;
  const auto end = [&](ActorId id, uint32_t incarnation) {
    ended.push_back({id, incarnation, {}});
    remember_end(
        id, incarnation,
        error(Code::conflict, fmt::format("actor {} incarnation {} ended: {}", id.to_string(),
                                          incarnation, process.exit_reason())));
    const Pointer actor = find(id);
    if (actor && actor->process.get() == &process) actors_.erase(id);
  };
  // One that never started: begin() has told.
  if (!process.work.actor.is_nil()) end(process.work.actor, process.work.incarnation);
  const auto found = light_processes_.find(process.id());
  if (found == light_processes_.end()) return ended;
  const LightPointer light = found->second;
  light_processes_.erase(found);
  retire(light);
  const auto actors = std::exchange(light->actors, {});
  for (const ActorId id : actors) {
    const Pointer actor = find(id);
    // Those that still start are told by assign_light().
    if (actor && actor->settled.is_set()) end(id, actor->incarnation);
  }
  return ended;
}

void ActorHost::remember_end(ActorId id, uint32_t incarnation, Error why) {
  const auto [found, fresh] = ended_.try_emplace(id);
  if (fresh) {
    ended_order_.push_back(id);
    if (ended_order_.size() > ended_max) {
      ended_.erase(ended_order_.front());
      ended_order_.pop_front();
    }
  }
  if (!fresh && found->second.incarnation > incarnation) return;
  found->second = Ended{incarnation, std::move(why)};
}

Status ActorHost::set_gauges(protocol::ActorGauges report, ProcessId process) {
  const auto too_long = [](const protocol::Gauge& gauge) {
    return gauge.name.size() > gauge_name_bytes_max;
  };
  if (report.gauges.size() > gauges_max || std::ranges::any_of(report.gauges, too_long)) {
    return error(Code::invalid,
                 fmt::format("an actor has at most {} gauges, with names of {} bytes", gauges_max,
                             gauge_name_bytes_max));
  }
  const Pointer actor = find(report.actor);
  if (!actor || !actor->process || actor->process->id() != process ||
      actor->incarnation != report.incarnation) {
    return error(Code::not_found, "this process hosts no such actor");
  }
  actor->gauges = std::move(report.gauges);
  actor->gauges_changed = true;
  return ok();
}

std::vector<protocol::ActorGauges> ActorHost::changed_gauges() {
  std::vector<protocol::ActorGauges> changed;
  for (const auto& [id, actor] : actors_) {
    if (!std::exchange(actor->gauges_changed, false)) continue;
    changed.push_back({id, actor->incarnation, actor->gauges});
  }
  return changed;
}

void ActorHost::tell_gauges_again() {
  for (const auto& [id, actor] : actors_) actor->gauges_changed = !actor->gauges.empty();
}

bool ActorHost::hosts(ActorId id, uint32_t incarnation, ProcessId process) const {
  const Pointer actor = find(id);
  return actor && actor->incarnation == incarnation && actor->process &&
         actor->process->id() == process;
}

std::vector<protocol::RunningActor> ActorHost::running() const {
  std::vector<protocol::RunningActor> running;
  for (const auto& [id, actor] : actors_) {
    if (!actor->outcome || !*actor->outcome) continue;
    protocol::RunningActor entry;
    entry.actor = id;
    entry.incarnation = actor->incarnation;
    entry.address = (*actor->outcome)->address;
    entry.pid = (*actor->outcome)->pid;
    running.push_back(std::move(entry));
  }
  return running;
}

std::vector<protocol::RunningActor> ActorHost::starting() const {
  std::vector<protocol::RunningActor> starting;
  for (const auto& [id, actor] : actors_) {
    if (!actor->outcome) starting.push_back({id, actor->incarnation, {}, 0});
  }
  return starting;
}

}  // namespace troupe::worker
