#include "worker/actor_host.h"

#include <fmt/format.h>

#include <algorithm>

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
constexpr Duration start_budget = std::chrono::minutes(10);  // A large model loads meanwhile.

}  // namespace

ActorHost::ActorHost(transport::Environment environment, ProcessTable& processes, Logs& logs)
    : environment_(environment), processes_(processes), logs_(logs) {}

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

Async<Result<ProcessStarted>> ActorHost::start(protocol::StartActor request, Instant deadline) {
  const ActorId id = request.spec.actor;
  if (id.is_nil()) co_return error(Code::invalid, "start_actor needs an actor");
  for (;;) {
    if (auto refused = refusal(request)) co_return std::move(*refused);
    const Pointer present = find(id);
    if (!present) co_return co_await begin(std::move(request));
    if (present->incarnation == request.incarnation) co_return co_await join(present, deadline);
    auto older = present->process;
    log::info("actor_superseded", {{"actor", id}, {"incarnation", present->incarnation}});
    co_await HostedProcess::end(older, superseded_grace);
    // A start that fails now settles and leaves the map by itself.
    if (!present->settled.is_set()) co_await present->settled.wait();
    if (find(id) == present) actors_.erase(id);
  }
}

Async<Result<ProcessStarted>> ActorHost::join(Pointer actor, Instant deadline) {
  const bool settled = co_await wait_until(environment_.clock, deadline, actor->settled);
  Result<ProcessStarted> outcome = error(Code::deadline_exceeded, "the actor still starts");
  if (settled) outcome = *actor->outcome;  // Copied first: GCC 12 traps on returning it from there.
  co_return outcome;
}

Async<Result<ProcessStarted>> ActorHost::begin(protocol::StartActor request) {
  const protocol::ActorSpec& spec = request.spec;
  const ActorId id = spec.actor;
  const Instant began = environment_.clock.now();
  // Of its own: the head asks again while this goes on.
  const Instant deadline = began + start_budget;
  ProcessTable::Request launch{spec.job, request.devices, spec.environment};
  TROUPE_CO_TRY(auto process, processes_.launch(launch));
  auto actor = std::make_shared<Actor>(environment_.loop);
  actor->incarnation = request.incarnation;
  actor->process = process;
  actors_[id] = actor;
  logs_.process_started(process->id(), id, process->log_path());

  protocol::AssignActor assignment;
  assignment.incarnation = request.incarnation;
  assignment.spec = std::move(request.spec);
  Bytes body = protocol::encode(assignment);
  auto started =
      co_await HostedProcess::greet_and_assign(process, processes_.service(), processes_.hello,
                                               Method::assign_actor, std::move(body), deadline);
  if (started && !process->is_usable()) {
    started = error(Code::cancelled,
                    fmt::format("actor {} was stopped while it started", id.to_string()));
  }
  if (started) {
    process->work = Work{id, actor->incarnation, {}};
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
  actor->outcome = started;
  actor->settled.set();
  if (!started) co_await HostedProcess::end(process, failed_grace);
  co_return started;
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
  const Duration grace = std::chrono::microseconds(request.grace_us);
  auto process = actor->process;
  log::info("actor_stopping", {{"actor", request.actor}, {"incarnation", actor->incarnation}});
  using namespace boost::asio::experimental::awaitable_operators;
  // The escalation is owned by the process: it goes on when this wait ends early.
  const auto raced =
      co_await (HostedProcess::end(process, grace) || sleep_until(environment_.clock, deadline));
  if (raced.index() == 0) co_return protocol::Empty{};
  co_return error(Code::deadline_exceeded, "the actor's process still ends");
}

void ActorHost::process_exited(HostedProcess& process) {
  if (process.work.actor.is_nil()) return;  // It never started: begin() has told.
  const ActorId id = process.work.actor;
  remember_end(
      id, process.work.incarnation,
      error(Code::conflict, fmt::format("actor {} incarnation {} ended: {}", id.to_string(),
                                        process.work.incarnation, process.exit_reason())));
  const Pointer actor = find(id);
  if (actor && actor->process.get() == &process) actors_.erase(id);
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

}  // namespace troupe::worker
