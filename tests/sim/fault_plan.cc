#include "tests/sim/fault_plan.h"

#include <algorithm>

namespace troupe::sim {

using namespace std::chrono_literals;
using protocol::Method;

namespace {

using Cut = FaultPlan::Cut;

// Those that their senders repeat, and that therefore must be taken twice with one effect.
bool is_idempotent(const protocol::FrameHeader& header) {
  switch (header.method) {
    case Method::register_node:
    case Method::heartbeat:
    case Method::process_exited:
    case Method::begin_job:
    case Method::end_job:
    case Method::create_actor:
    case Method::get_actor:
    case Method::kill_actor:
    case Method::request_lease:
    case Method::renew_lease:
    case Method::return_lease:
    case Method::create_placement_groups:
    case Method::remove_placement_groups:
    case Method::get_placement_group:
    case Method::start_actor:
    case Method::stop_actor:
    case Method::start_slots:
    case Method::stop_slots:
      return true;
    default:
      return false;
  }
}

// Built outside coroutines: GCC 12 miscompiles initializer lists inside them.
std::vector<Cut> one_way(const std::string& from, const std::string& to) {
  return {{from, to}};
}
std::vector<Cut> both_ways(const std::string& a, const std::string& b) {
  return {{a, b}, {b, a}};
}

}  // namespace

FaultPlan::FaultPlan(Simulation& simulation, SimCluster& cluster)
    : simulation_(simulation),
      cluster_(cluster),
      random_(simulation.random()),
      counts_(simulation.network().fault_counts()) {
  static constexpr Strike all[] = {
      &FaultPlan::partition,     &FaultPlan::partition_one_way, &FaultPlan::isolate_machine,
      &FaultPlan::slow_link,     &FaultPlan::crash_head,        &FaultPlan::crash_head_again,
      &FaultPlan::restart_head,  &FaultPlan::pause_head,        &FaultPlan::lose_head,
      &FaultPlan::crash_worker,  &FaultPlan::restart_worker,    &FaultPlan::pause_worker,
      &FaultPlan::lose_machine,  &FaultPlan::pause_machine,     &FaultPlan::crash_process,
      &FaultPlan::pause_process, &FaultPlan::break_launches,    &FaultPlan::crash_driver,
      &FaultPlan::pause_driver,  &FaultPlan::slow_disk,         &FaultPlan::stall_disk,
      &FaultPlan::fill_disk,     &FaultPlan::break_disk,        &FaultPlan::crash_in_commit,
      &FaultPlan::garble_disk,   &FaultPlan::jump_clock};
  static constexpr Strike of_several_heads[] = {
      &FaultPlan::crash_heads,           &FaultPlan::cut_head_from_head,
      &FaultPlan::cut_head_from_workers, &FaultPlan::cut_head_from_coordinator,
      &FaultPlan::unhear_coordinator,    &FaultPlan::slow_coordinator,
      &FaultPlan::lose_coordinator,      &FaultPlan::hand_over,
      &FaultPlan::wake_old_leader};
  const double share = 0.1 + 0.5 * random_.uniform();
  for (const Strike strike : all) {
    if (random_.chance(share)) strikes_.push_back(strike);
  }
  for (const Strike strike : of_several_heads) {
    if (cluster_.heads() > 1 && random_.chance(share)) strikes_.push_back(strike);
  }
  const auto at_most = [this](double most) { return flip() ? most * random_.uniform() : 0; };
  worst_.delay_max = std::chrono::microseconds(200 + random_.below(flip() ? 2'000 : 20'000));
  worst_.drop = at_most(0.04);
  worst_.duplicate = at_most(0.1);
  worst_.reorder = at_most(0.1);
  worst_.late = at_most(0.02);
  worst_.late_max = std::chrono::milliseconds(100 + random_.below(3'000));
  worst_.reset = at_most(0.005);
  worst_.refuse = at_most(0.2);
  worst_.spare_local = true;
  worst_.may_duplicate = is_idempotent;
  gap_ms_ = 500 + random_.below(8'000);
}

void FaultPlan::begin() {
  spawn(simulation_.scope(), change_weather());
  if (!strikes_.empty()) spawn(simulation_.scope(), strike_on());
}

void FaultPlan::end() {
  ended_ = true;
  simulation_.record("the faults end");
  NetworkFaults calm;
  simulation_.network().set_faults(calm);
  simulation_.network().heal();
  cluster_.launch_faults() = {};
  for (SimHost* host : std::exchange(paused_, {})) host->resume();
  for (size_t i = 0; i < cluster_.heads(); ++i) {
    SimHead& head = cluster_.head(i);
    head.disk().heal();
    head.set_coordinator_latency(SimCoordinator::usual_latency);
    if (head.may_start()) head.start();
  }
  for (size_t i = 0; i < cluster_.workers(); ++i) {
    if (cluster_.may_start_worker(i)) cluster_.start_worker(i);
  }
}

Async<void> FaultPlan::pause_for(uint64_t ms_max) {
  const auto ms = std::chrono::milliseconds(random_.below(ms_max + 1));
  co_await sleep_for(simulation_.clock(), ms);
}

Async<void> FaultPlan::strike_on() {
  while (!ended_) {
    co_await pause_for(2 * gap_ms_);
    if (ended_) co_return;
    const Strike strike = strikes_[random_.below(strikes_.size())];
    spawn(simulation_.scope(), (this->*strike)());
  }
}

// The network's own faults come and go.
Async<void> FaultPlan::change_weather() {
  while (!ended_) {
    NetworkFaults now = worst_;
    if (random_.chance(0.3)) {
      now = {};
      now.delay_max = worst_.delay_max;
    }
    simulation_.network().set_faults(now);
    co_await pause_for(20'000);
  }
}

// --- Links

std::string FaultPlan::any_machine() {
  const size_t index = random_.below(cluster_.heads() + cluster_.workers());
  if (index < cluster_.heads()) return SimHead::machine_of(index);
  return SimCluster::machine_of(index - cluster_.heads());
}

std::vector<std::string> FaultPlan::other_machines(const std::string& machine) const {
  std::vector<std::string> others{coordinator_machine};
  for (size_t i = 0; i < cluster_.heads(); ++i) others.push_back(SimHead::machine_of(i));
  for (size_t i = 0; i < cluster_.workers(); ++i) others.push_back(SimCluster::machine_of(i));
  std::erase(others, machine);
  return others;
}

Async<void> FaultPlan::cut_for(std::vector<Cut> cuts, Fault why, uint64_t ms_max) {
  SimNetwork& network = simulation_.network();
  for (const auto& [from, to] : cuts) network.cut(from, to, why);
  co_await pause_for(ms_max);
  for (const auto& [from, to] : cuts) network.mend(from, to);
}

Async<void> FaultPlan::partition() {
  const std::string a = flip() ? any_head().machine() : any_machine();
  const std::string b = any_machine();
  if (a == b) co_return;
  co_await cut_for(both_ways(a, b), Fault::partition, 12'000);
}

Async<void> FaultPlan::partition_one_way() {
  std::string a = any_head().machine();
  std::string b = SimCluster::machine_of(any_worker());
  if (flip()) std::swap(a, b);
  co_await cut_for(one_way(a, b), Fault::partition_one_way, 12'000);
}

Async<void> FaultPlan::isolate_machine() {
  const std::string alone = any_machine();
  std::vector<Cut> cuts;
  for (const std::string& other : other_machines(alone)) {
    cuts.emplace_back(alone, other);
    cuts.emplace_back(other, alone);
  }
  co_await cut_for(std::move(cuts), Fault::machine_isolated, 12'000);
}

Async<void> FaultPlan::slow_link() {
  const std::string machine = any_machine();
  const auto by = std::chrono::milliseconds(10 + random_.below(1'000));
  simulation_.network().slow_down(machine, by);
  co_await pause_for(10'000);
  simulation_.network().slow_down(machine, {});
}

// --- Heads

SimHead& FaultPlan::any_head() {
  if (cluster_.heads() > 1 && flip()) {
    if (SimHead* const leader = cluster_.leader()) return *leader;
  }
  return cluster_.head(random_.below(cluster_.heads()));
}

Fault FaultPlan::by_role(const SimHead& head, Fault of_leader, Fault of_standby) {
  return head.stands_by() ? of_standby : of_leader;
}

Async<void> FaultPlan::revive_head(SimHead& head, uint64_t ms_max) {
  co_await pause_for(ms_max);
  if (head.may_start()) head.start();
}

Async<void> FaultPlan::crash_head() {
  SimHead& head = any_head();
  if (!head.is_up()) co_return;
  counts_.note(by_role(head, Fault::head_crash, Fault::standby_crash));
  head.kill();
  co_await revive_head(head, flip() ? 500 : 8'000);
}

Async<void> FaultPlan::lose_head() {
  SimHead& head = any_head();
  if (!head.is_up()) co_return;
  counts_.note(Fault::head_lost);
  head.kill(true);
  co_await revive_head(head, flip() ? 3'000 : 15'000);
}

// The one that starts; of several the one that has the lead and does not serve yet.
SimHead* FaultPlan::taking_over() {
  if (cluster_.heads() == 1) {
    SimHead& head = cluster_.head();
    return head.is_up() && !head.serves() ? &head : nullptr;
  }
  const std::string name = cluster_.coordinator().read().leader;
  for (size_t i = 0; i < cluster_.heads(); ++i) {
    SimHead& head = cluster_.head(i);
    if (head.name() == name && head.stands_by()) return &head;
  }
  return nullptr;
}

Async<void> FaultPlan::await_taking_over(Duration limit) {
  const Instant end = simulation_.clock().now() + limit;
  while (simulation_.clock().now() < end && !ended_ && taking_over() == nullptr) {
    co_await sleep_for(simulation_.clock(), 1ms);
  }
}

Async<void> FaultPlan::crash_head_again() {
  const uint64_t times = 1 + random_.below(4);
  for (uint64_t i = 0; i < times && !ended_; ++i) {
    SimHead& first = any_head();
    if (first.is_up()) first.kill();
    if (cluster_.heads() == 1) {
      co_await revive_head(first, 300);
    } else {
      spawn(simulation_.scope(), revive_head(first, 3'000));
      co_await await_taking_over(4s);
    }
    co_await pause_for(cluster_.heads() == 1 ? 10 : 2);
    if (ended_) co_return;
    SimHead* const second = taking_over();
    if (second != nullptr) counts_.note(Fault::head_crash_again);
    SimHead& target = second != nullptr ? *second : any_head();
    if (!target.is_up()) co_return;
    if (second != nullptr || flip()) target.kill();
    co_await revive_head(target, 300);
    co_await pause_for(2'000);
  }
}

Async<void> FaultPlan::restart_head() {
  SimHead& head = any_head();
  const Fault fault = by_role(head, Fault::head_restart, Fault::standby_restart);
  const bool stopped = co_await head.stop();
  if (!stopped) co_return;
  counts_.note(fault);
  co_await revive_head(head, ended_ ? 0 : 2'000);
}

Async<void> FaultPlan::hold(std::vector<SimHost*> hosts, Fault fault, uint64_t ms_max) {
  uint64_t before = 0;
  for (SimHost* host : hosts) {
    before += host->held_back();
    host->pause();
    paused_.push_back(host);
  }
  co_await pause_for(ms_max);
  uint64_t after = 0;
  for (SimHost* host : hosts) {
    after += host->held_back();
    host->resume();
    std::erase(paused_, host);
  }
  if (after > before) counts_.note(fault);
}

Async<void> FaultPlan::pause_head() {
  SimHead& head = any_head();
  if (!head.is_up()) co_return;
  const Fault fault = by_role(head, Fault::head_pause, Fault::standby_pause);
  std::vector<SimHost*> hosts{&head.host()};
  co_await hold(std::move(hosts), fault, flip() ? 2'000 : 12'000);
}

// --- Workers and what runs there

Async<void> FaultPlan::revive_worker(size_t index, uint64_t ms_max) {
  co_await pause_for(ms_max);
  if (cluster_.may_start_worker(index)) cluster_.start_worker(index);
}

Async<void> FaultPlan::crash_worker() {
  const size_t index = any_worker();
  if (!cluster_.is_worker_up(index)) co_return;
  counts_.note(Fault::worker_crash);
  cluster_.kill_worker(index);
  co_await revive_worker(index, flip() ? 1'000 : 12'000);
}

Async<void> FaultPlan::restart_worker() {
  const size_t index = any_worker();
  const bool stopped = co_await cluster_.stop_worker(index);
  if (!stopped) co_return;
  counts_.note(Fault::worker_restart);
  co_await revive_worker(index, ended_ ? 0 : 5'000);
}

Async<void> FaultPlan::pause_worker() {
  const size_t index = any_worker();
  if (!cluster_.is_worker_up(index)) co_return;
  std::vector<SimHost*> hosts{&cluster_.worker_host(index)};
  co_await hold(std::move(hosts), Fault::worker_pause, 10'000);
}

Async<void> FaultPlan::lose_machine() {
  const size_t index = any_worker();
  if (!cluster_.is_worker_up(index)) co_return;
  counts_.note(Fault::machine_lost);
  cluster_.kill_worker(index, true);
  co_await revive_worker(index, flip() ? 3'000 : 15'000);
}

Async<void> FaultPlan::pause_machine() {
  const size_t index = any_worker();
  if (!cluster_.is_worker_up(index)) co_return;
  std::vector<SimHost*> hosts{&cluster_.worker_host(index)};
  for (const auto& [id, process] : cluster_.checks().processes()) {
    if (process->host().machine() == SimCluster::machine_of(index)) {
      hosts.push_back(&process->host());
    }
  }
  for (const auto& driver : cluster_.drivers()) {
    if (driver->machine == index) hosts.push_back(driver->host);
  }
  co_await hold(std::move(hosts), Fault::machine_pause, 10'000);
}

std::shared_ptr<SimProcess> FaultPlan::any_process() {
  const auto& processes = cluster_.checks().processes();
  if (processes.empty()) return nullptr;
  return std::next(processes.begin(), static_cast<std::ptrdiff_t>(random_.below(processes.size())))
      ->second;
}

Async<void> FaultPlan::crash_process() {
  const auto process = any_process();
  if (!process) co_return;
  counts_.note(Fault::process_crash);
  process->end("killed by signal 9 (Killed)");
}

Async<void> FaultPlan::pause_process() {
  const auto process = any_process();
  if (!process) co_return;
  std::vector<SimHost*> hosts{&process->host()};
  co_await hold(std::move(hosts), Fault::process_pause, 6'000);
}

Async<void> FaultPlan::break_launches() {
  LaunchFaults& faults = cluster_.launch_faults();
  faults.fail = flip() ? 0.5 * random_.uniform() : 0;
  faults.slow = flip() ? random_.uniform() : 0;
  co_await pause_for(10'000);
  cluster_.launch_faults() = {};
}

Async<void> FaultPlan::crash_driver() {
  const auto drivers = cluster_.drivers();
  if (drivers.empty()) co_return;
  counts_.note(Fault::driver_crash);
  cluster_.kill_driver(drivers[random_.below(drivers.size())]);
}

Async<void> FaultPlan::pause_driver() {
  const auto drivers = cluster_.drivers();
  if (drivers.empty()) co_return;
  std::vector<SimHost*> hosts{drivers[random_.below(drivers.size())]->host};
  co_await hold(std::move(hosts), Fault::driver_pause, 8'000);
}

// --- Disks

Async<void> FaultPlan::slow_disk() {
  SimDisk& disk = any_head().disk();
  disk.set_latency(std::chrono::microseconds(100 + random_.below(100'000)), Fault::disk_slow);
  co_await pause_for(15'000);
  disk.set_latency({}, std::nullopt);
}

Async<void> FaultPlan::stall_disk() {
  SimDisk& disk = any_head().disk();
  disk.set_latency(std::chrono::milliseconds(500 + random_.below(4'000)), Fault::disk_stall);
  co_await pause_for(3'000);
  disk.set_latency({}, std::nullopt);
}

Async<void> FaultPlan::fill_disk() {
  SimDisk& disk = any_head().disk();
  disk.set_full(true);
  co_await pause_for(6'000);
  disk.set_full(false);
}

Async<void> FaultPlan::break_disk() {
  any_head().disk().fail_next_commit();
  co_return;
}

// Within the commit nothing may leave the head any more; the rest of its end waits for the turn's.
void FaultPlan::die_in_commit(SimHead& head) {
  SimHost* const host = &head.host();
  simulation_.network().kill(*host);
  simulation_.clock().call_at(simulation_.clock().now(), [this, host, &head] {
    if (head.is_up() && &head.host() == host) head.kill();
    spawn(simulation_.scope(), revive_head(head, 2'000));
  });
}

Async<void> FaultPlan::crash_in_commit() {
  SimHead& head = any_head();
  if (!head.is_up()) co_return;
  static constexpr Fault ways[] = {Fault::unsynced_lost, Fault::unsynced_kept, Fault::wal_torn};
  head.disk().crash_in_next_commit(ways[random_.below(3)], [this, &head] {
    if (head.is_up()) die_in_commit(head);
  });
  co_return;
}

Async<void> FaultPlan::garble_disk() {
  SimHead& head = any_head();
  if (!head.is_up()) co_return;
  head.disk().fail_next_read();
  head.kill();
  co_await revive_head(head, 1'000);
}

// --- Clocks

Async<void> FaultPlan::jump_clock() {
  std::vector<SimHost*> hosts;
  for (size_t i = 0; i < cluster_.heads(); ++i) {
    if (cluster_.head(i).is_up()) hosts.push_back(&cluster_.head(i).host());
  }
  for (size_t i = 0; i < cluster_.workers(); ++i) {
    if (cluster_.is_worker_up(i)) hosts.push_back(&cluster_.worker_host(i));
  }
  for (const auto& driver : cluster_.drivers()) hosts.push_back(driver->host);
  if (hosts.empty()) co_return;
  SimHost& host = *hosts[random_.below(hosts.size())];
  const auto by = std::chrono::milliseconds(1 + random_.below(86'400'000));
  const bool forward = flip();
  counts_.note(forward ? Fault::clock_forward : Fault::clock_back);
  simulation_.record((forward ? "clock forward of " : "clock back of ") + host.name());
  host.clock().jump(forward ? Duration(by) : -Duration(by));
}

// --- Several heads

// As a power cut does; they come back one by one.
Async<void> FaultPlan::crash_heads() {
  counts_.note(Fault::heads_crash);
  const uint64_t ms_max = flip() ? 500 : 5'000;
  for (size_t i = 0; i < cluster_.heads(); ++i) {
    SimHead& head = cluster_.head(i);
    if (head.is_up()) head.kill();
    spawn(simulation_.scope(), revive_head(head, ms_max));
  }
  co_return;
}

Async<void> FaultPlan::cut_head_from_head() {
  SimHead& head = any_head();
  const size_t steps = 1 + random_.below(cluster_.heads() - 1);
  const std::string other = SimHead::machine_of((head.index() + steps) % cluster_.heads());
  std::vector<Cut> cuts = both_ways(head.machine(), other);
  if (random_.chance(0.3)) cuts.erase(cuts.begin() + (flip() ? 1 : 0));
  co_await cut_for(std::move(cuts), Fault::head_cut_from_head, 12'000);
}

Async<void> FaultPlan::cut_head_from_workers() {
  const std::string machine = any_head().machine();
  std::vector<Cut> cuts;
  for (size_t i = 0; i < cluster_.workers(); ++i) {
    cuts.emplace_back(machine, SimCluster::machine_of(i));
    cuts.emplace_back(SimCluster::machine_of(i), machine);
  }
  co_await cut_for(std::move(cuts), Fault::head_cut_from_workers, 12'000);
}

Async<void> FaultPlan::cut_head_from_coordinator() {
  std::vector<Cut> cuts = one_way(any_head().machine(), coordinator_machine);
  co_await cut_for(std::move(cuts), Fault::head_cut_from_coordinator, 8'000);
}

Async<void> FaultPlan::unhear_coordinator() {
  std::vector<Cut> cuts = one_way(coordinator_machine, any_head().machine());
  co_await cut_for(std::move(cuts), Fault::coordinator_unheard, 8'000);
}

Async<void> FaultPlan::slow_coordinator() {
  SimHead& head = any_head();
  head.set_coordinator_latency(std::chrono::milliseconds(20 + random_.below(3'000)));
  co_await pause_for(8'000);
  head.set_coordinator_latency(SimCoordinator::usual_latency);
}

Async<void> FaultPlan::lose_coordinator() {
  std::vector<Cut> cuts;
  for (size_t i = 0; i < cluster_.heads(); ++i) {
    cuts.emplace_back(SimHead::machine_of(i), coordinator_machine);
  }
  co_await cut_for(std::move(cuts), Fault::coordinator_away, 8'000);
}

// It stood still while another one took over and did things, and comes to as that one dies: whoever
// looks for a head may find it, before it has noticed.
Async<void> FaultPlan::wake_old_leader() {
  SimHead* const old = cluster_.leader();
  if (old == nullptr) co_return;
  SimHost* const host = &old->host();
  host->pause();
  paused_.push_back(host);
  const Instant end = simulation_.clock().now() + 8s;
  SimHead* next = nullptr;
  while (simulation_.clock().now() < end && !ended_ && (next == nullptr || next == old)) {
    co_await sleep_for(simulation_.clock(), 20ms);
    next = cluster_.leader();
  }
  co_await pause_for(5'000);
  next = cluster_.leader();
  const bool dies = !ended_ && next != nullptr && next != old;
  if (dies) {
    counts_.note(Fault::head_pause);
    counts_.note(Fault::head_crash);
    next->kill();
    spawn(simulation_.scope(), revive_head(*next, 2'000));
    co_await pause_for(300);
  }
  host->resume();
  std::erase(paused_, host);
}

Async<void> FaultPlan::hand_over() {
  SimHead* const leader = cluster_.leader();
  if (leader == nullptr) co_return;
  const bool done = co_await leader->hand_over();
  if (done) counts_.note(Fault::lead_handed_over);
}

}  // namespace troupe::sim
