// What goes wrong in a run, when, and for how long: all of it drawn from the run's seed.
#pragma once

#include <functional>
#include <vector>

#include "tests/sim/sim_cluster.h"

namespace troupe::sim {

// Each plan draws which kinds of fault it has at all ("swarm testing", Groce et al., 2012): a run
// of a few kinds reaches deeper than one in which everything fails at once.
class FaultPlan {
 public:
  FaultPlan(Simulation& simulation, SimCluster& cluster);

  void begin();
  // From here on nothing goes wrong: all links and disks are well, and who is paused, or was killed
  // and is not abandoned, goes on.
  void end();

  using Cut = std::pair<std::string, std::string>;  // From one machine to another.

 private:
  using Strike = Async<void> (FaultPlan::*)();

  Async<void> strike_on();
  Async<void> change_weather();
  Async<void> pause_for(uint64_t ms_max);
  bool flip() { return random_.chance(0.5); }
  size_t any_worker() { return random_.below(cluster_.workers()); }
  // Of several each second time the one that leads.
  SimHead& any_head();
  // Which of two kinds of fault it is, by what the head does.
  static Fault by_role(const SimHead& head, Fault of_leader, Fault of_standby);
  std::string any_machine();
  std::vector<std::string> other_machines(const std::string& machine) const;

  Async<void> partition();
  Async<void> partition_one_way();
  Async<void> isolate_machine();
  Async<void> slow_link();
  Async<void> crash_head();
  Async<void> crash_head_again();
  Async<void> restart_head();
  Async<void> pause_head();
  Async<void> lose_head();
  Async<void> crash_worker();
  Async<void> restart_worker();
  Async<void> pause_worker();
  Async<void> lose_machine();
  Async<void> pause_machine();
  Async<void> crash_process();
  Async<void> pause_process();
  Async<void> break_launches();
  Async<void> crash_driver();
  Async<void> pause_driver();
  Async<void> slow_disk();
  Async<void> stall_disk();
  Async<void> fill_disk();
  Async<void> break_disk();
  Async<void> crash_in_commit();
  Async<void> garble_disk();
  Async<void> jump_clock();
  // Of several heads.
  Async<void> crash_heads();
  Async<void> cut_head_from_head();
  Async<void> cut_head_from_workers();
  Async<void> cut_head_from_coordinator();
  Async<void> unhear_coordinator();
  Async<void> slow_coordinator();
  Async<void> lose_coordinator();
  Async<void> hand_over();
  Async<void> wake_old_leader();

  Async<void> revive_head(SimHead& head, uint64_t ms_max);
  Async<void> await_taking_over(Duration limit);
  SimHead* taking_over();
  Async<void> cut_for(std::vector<Cut> cuts, Fault why, uint64_t ms_max);
  Async<void> revive_worker(size_t index, uint64_t ms_max);
  Async<void> hold(std::vector<SimHost*> hosts, Fault fault, uint64_t ms_max);
  std::shared_ptr<SimProcess> any_process();
  void die_in_commit(SimHead& head);

  Simulation& simulation_;
  SimCluster& cluster_;
  Random& random_;
  FaultCounts& counts_;
  std::vector<Strike> strikes_;  // Of this plan.
  NetworkFaults worst_;
  uint64_t gap_ms_ = 0;
  bool ended_ = false;
  std::vector<SimHost*> paused_;
};

}  // namespace troupe::sim
