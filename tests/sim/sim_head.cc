#include "tests/sim/sim_head.h"

#include <fmt/format.h>

namespace troupe::sim {

using namespace std::chrono_literals;

namespace {

constexpr uint16_t head_port = 7000;
constexpr Duration restart_delay = 300ms;  // Of a supervisor.

// Short budgets: a frame that the network drops is lost for good here, where a real connection
// would send it again.
head::HeadOptions head_options(const SimHeadOptions& options) {
  head::HeadOptions made;
  made.cluster = options.cluster;
  made.version = "sim";
  made.listen = {SimHead::endpoint_of(options.index)};
  made.actor_start_budget = 3s;
  made.slot_start_budget = 3s;
  made.stop_grace = 500ms;
  made.backoff_max = 2s;
  return made;
}

}  // namespace

transport::Endpoint SimHead::endpoint_of(size_t index) {
  return {"", fmt::format("10.0.0.{}", index + 1), head_port};
}
std::string SimHead::machine_of(size_t index) {
  return fmt::format("machine-head-{}", index);
}
std::string SimHead::name() const {
  return fmt::format("head-{}", options_.index);
}

SimHead::SimHead(Simulation& simulation, HeadObserver& observer, const SimHeadOptions& options)
    : simulation_(simulation),
      observer_(observer),
      options_(options),
      disk_({options.cluster, options.lazy_sync}, simulation.clock(), simulation.history(),
            simulation.network().fault_counts(), simulation.random().next()) {
  disk_.on_fault([this] {
    if (stands_by()) simulation_.network().fault_counts().note(Fault::standby_disk);
  });
}

bool SimHead::serves() const {
  if (!process_) return false;
  head::Candidate* const candidate = process_->candidate.get();
  if (candidate == nullptr) return process_->started;
  return candidate->leads() && !candidate->replicator()->lost().is_set();
}

void SimHead::start() {
  transport::PeerIdentity identity;
  identity.role = transport::Role::head;
  identity.name = name();
  process_ = std::make_shared<Process>(simulation_.executor());
  process_->host = &simulation_.network().add_host(
      {fmt::format("{}.{}", name(), ++started_), machine(), identity});
  process_->store = disk_.open();
  transport::Environment environment = simulation_.environment(*process_->host);
  environment.blocking = disk_.executor(environment.loop, environment.clock);
  if (options_.coordinator == nullptr) {
    process_->head =
        std::make_unique<head::Head>(environment, *process_->store, head_options(options_));
  } else {
    process_->coordinator = std::make_unique<SimCoordinator>(
        *options_.coordinator, environment.clock, simulation_.random().next());
    process_->coordinator->reach_from(*process_->host, simulation_.network());
    process_->coordinator->set_patience(options_.coordinator_patience);
    set_coordinator_latency(coordinator_latency_);
    head::StandbyOptions standby;
    standby.cluster = options_.cluster;
    standby.name = name();
    standby.is_first = options_.index == 0;
    process_->candidate =
        std::make_unique<head::Candidate>(environment, *process_->store, *process_->coordinator,
                                          head_options(options_), std::move(standby));
    const Status listens = process_->candidate->listen();
    if (!listens) observer_.head_violates("a head does not listen: " + listens.error().to_string());
  }
  spawn(simulation_.scope(), run(process_));
}

Async<void> SimHead::live(Process* process) {
  if (process->candidate) {
    const Error why = co_await process->candidate->live();
    process->why = why.to_string();
    process->ended.set();
    co_return;
  }
  const Status started = co_await process->head->start();
  process->started = started.has_value();
  if (!started) process->why = "it does not start: " + started.error().to_string();
  process->start_ended.set();
}

Async<void> SimHead::run(ProcessPointer process) {
  spawn(process->life, live(process.get()));
  bool ends_itself = true;
  if (process->head) {
    co_await process->start_ended.wait();
    if (process->started && !process->over.is_set()) {
      observer_.head_began(process->head->epoch());
      ends_itself = co_await wait_either(process->head->broken(), process->over);
      process->why = "it is broken";
    }
  } else {
    ends_itself = co_await wait_either(process->ended, process->over);
  }
  if (!ends_itself || process->over.is_set()) co_return;
  // Until its process is gone it must tell nobody what it could not write, or what it may not
  // promise any more.
  const bool is_slow = options_.coordinator != nullptr && simulation_.random().chance(0.1);
  co_await sleep_for(simulation_.clock(),
                     std::chrono::milliseconds(simulation_.random().below(is_slow ? 1'000 : 100)));
  simulation_.record(fmt::format("{} ends: {}", process->host->name(), process->why));
  if (process_ != process || process->over.is_set()) co_return;
  kill();
  co_await start_again();
}

Async<void> SimHead::start_again() {
  co_await sleep_for(simulation_.clock(), restart_delay);
  if (may_start() && !shuts_down_) start();
}

Async<void> SimHead::end(ProcessPointer process, bool resigns) {
  if (process->candidate) {
    co_await process->life.stop();
    co_await process->candidate->stop(resigns);
    co_return;
  }
  // A start that is under way looks at its parts until it has failed.
  if (!process->start_ended.is_set()) co_await process->start_ended.wait();
  co_await process->head->stop();
  co_await process->life.stop();
}

void SimHead::kill(bool silently) {
  const ProcessPointer process = std::exchange(process_, nullptr);
  SimNetwork& network = simulation_.network();
  silently ? network.lose(*process->host) : network.kill(*process->host);
  disk_.crash();
  process->over.set();
  spawn(simulation_.scope(), end(process, false));
}

Async<bool> SimHead::stop() {
  const ProcessPointer process = process_;
  const bool may_stop = process && (process->candidate || process->started);
  if (!may_stop) co_return false;
  process->over.set();
  process_ = nullptr;
  stopping_ = true;
  co_await end(process, true);
  simulation_.network().kill(*process->host);
  disk_.crash();
  stopping_ = false;
  co_return true;
}

Async<void> SimHead::shut_down() {
  shuts_down_ = true;
  const ProcessPointer process = process_;
  if (!process) co_return;
  process->over.set();
  co_await end(process, true);
}

Async<void> SimHead::ask_for_hand_over(Process* process, std::shared_ptr<bool> done,
                                       std::shared_ptr<Event> answered) {
  protocol::TransferLead to_any;
  auto handed_over = co_await process->candidate->replicator()->hand_over(std::move(to_any));
  *done = handed_over.has_value();
  answered->set();
}

Async<bool> SimHead::hand_over() {
  const ProcessPointer process = process_;
  const bool may = process && process->candidate && process->candidate->leads();
  if (!may) co_return false;
  const auto done = std::make_shared<bool>(false);
  const auto answered = std::make_shared<Event>(simulation_.executor());
  // It ends with the process, answered or not.
  spawn(process->life, ask_for_hand_over(process.get(), done, answered));
  (void)co_await wait_either(*answered, process->over);
  co_return *done;
}

void SimHead::set_coordinator_latency(Duration most) {
  coordinator_latency_ = most;
  if (process_ && process_->coordinator) process_->coordinator->set_latency(most);
}

}  // namespace troupe::sim
