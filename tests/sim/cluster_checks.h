// The invariants of a cluster, checked on what its processes do and what they say to each other.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "tests/sim/sim_network.h"
#include "tests/sim/sim_process.h"

namespace troupe::sim {

// Ends the first argument of calls that were declared retriable.
inline constexpr char may_run_again[] = " (may run again)";

//  - An incarnation of an actor never runs in two processes; of one with a limit to its isolation,
//    no two incarnations run at once.
//  - No slot's process is granted to a lease while another lease has it, by the head that leads.
//  - What runs on a node, by demand, never exceeds what the node has.
//  - No call runs twice: a call that may be retried is another one each time.
//  - A slot runs tasks of its own job only.
//  - A placement group is told as placed with a place for each bundle, by its strategy, and a grant
//    is told in one way only.
//  - What runs in a bundle runs where that lies, and never exceeds it.
class ClusterChecks final : public ProcessObserver {
 public:
  ClusterChecks(Simulation& simulation, int64_t cpu_milli);

  // The first of them stop a test: they say what broke, at which virtual time.
  const std::vector<std::string>& violations() const { return violations_; }
  void violation(std::string what);

  // Of several heads: this one leads from now on. Empty: one that is dead already.
  void head_leads(std::string host) { leader_ = std::move(host); }
  // Another one leads by now. What it says of leases and of who lives where may be of the past, as
  // workers obey it only as long as they know no later one.
  bool is_past(const SimHost& head) const;

  // After each instant.
  void check();
  // Alive, in the order of their ids.
  const std::map<ProcessId, std::shared_ptr<SimProcess>>& processes() const { return processes_; }
  size_t leased() const { return leased_.size(); }
  uint64_t calls_run() const { return calls_run_; }
  uint64_t leases_granted() const { return leases_granted_; }
  size_t grants_seen() const { return grants_.size(); }
  uint64_t seen_in_bundles() const { return seen_in_bundles_; }

  void process_began(const std::shared_ptr<SimProcess>& process) override;
  void process_ended(SimProcess& process) override;
  void call_ran(SimProcess& process, const protocol::Invoke& call) override;

 private:
  struct Call {
    uint64_t connection;
    std::string caller;
    uint64_t id;
    auto operator<=>(const Call&) const = default;
  };

  void see(const SentFrame& sent);
  void told(const protocol::PlacementGroupInfo& group);
  void check_bundles();
  int64_t held_by(const SimProcess& process) const;
  void granted(const protocol::LeaseGranted& grant);
  void stopped(const protocol::StopSlots& stop);

  Simulation& simulation_;
  const int64_t cpu_milli_;
  std::vector<std::string> violations_;
  std::map<ProcessId, std::shared_ptr<SimProcess>> processes_;
  std::map<Call, protocol::Method> asked_;
  std::map<LeaseId, int64_t> demand_;    // Of one slot, in milli of a CPU.
  std::optional<std::string> leader_;    // Of several heads: the host that leads.
  std::map<ProcessId, LeaseId> leased_;  // As the head granted and has not yet taken back.
  std::set<TaskId> ran_;
  using Grant = std::pair<PlacementGroupId, uint32_t>;
  std::map<Grant, protocol::PlacementGroupInfo> grants_;  // As the head told of them.
  bool changed_ = false;
  uint64_t calls_run_ = 0;
  uint64_t leases_granted_ = 0;
  uint64_t seen_in_bundles_ = 0;
};

}  // namespace troupe::sim
