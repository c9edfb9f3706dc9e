// Who gets what, where and when. A state machine without clock, threads or I/O: the head drives
// it, and so do the simulator and trace replays. The same events give the same decisions.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "scheduler/events.h"
#include "scheduler/policy.h"
#include "scheduler/resources.h"

namespace troupe::scheduler {

struct SchedulerOptions {
  std::unique_ptr<Policy> policy;  // Null: make_priority_policy().
  // A lease ends this long after its first grant or last renewal.
  Duration lease_term = std::chrono::seconds(30);
  // Smaller requests may overtake one that does not fit for this long; then nodes are kept for it.
  Duration patience = std::chrono::seconds(10);
  // What would be more at once, waiting or placed, is rejected.
  uint64_t requests_max = 4'000'000;
  // Protects look-ups against crafted ids. Never changes a decision.
  uint64_t hash_seed = 0;
};

// One resource that keeps a request waiting.
struct Shortage {
  std::string resource;        // "cpu", "memory", "gpu" or a custom name.
  uint32_t nodes = 0;          // Eligible nodes that lack it now.
  int64_t needed = 0;          // In the resource's unit: milli, memory MiB.
  int64_t most_available = 0;  // On any one eligible node; for a GPU fraction, on any one device.
};

enum class RequestState : uint8_t { unknown, placed, pending, infeasible };

// Why a request waits.
struct Explanation {
  RequestState state = RequestState::unknown;
  uint32_t units_held = 0;
  uint32_t units_pending = 0;
  uint32_t nodes_eligible = 0;      // Right labels, not draining.
  uint32_t nodes_feasible = 0;      // Of those, could hold it if empty.
  uint32_t nodes_kept = 0;          // Of those, kept free for another request that waited too long.
  std::vector<Shortage> shortages;  // Most nodes first. Of the first bundle that finds no room.
  uint64_t ahead = 0;               // Requests of the same needs that go first.
  std::optional<RequestId> behind;  // The next of them.
  std::string text;                 // All of it as one stable line.
};

struct NodeView {
  NodeId node;
  bool draining = false;
  bool kept = false;  // For a request that waited too long.
  ResourceVector total;
  ResourceVector available;
  std::vector<int64_t> device_free_milli;
  std::vector<Label> labels;
};

struct PoolView {
  PoolSpec spec;
  Amounts used{};         // With what is reserved in the pools within it.
  uint64_t requests = 0;  // Waiting and placed, in itself.
  std::string policy;     // By name.
};

struct PendingView {
  ResourceVector demand;  // Of one unit; of the whole gang for gangs.
  uint32_t bundles = 0;   // 0: leases or actors.
  uint64_t requests = 0;
  uint64_t units = 0;
  bool infeasible = false;
};

class Scheduler {
 public:
  explicit Scheduler(SchedulerOptions options = {});
  Scheduler(Scheduler&&) noexcept;
  Scheduler& operator=(Scheduler&&) noexcept;
  ~Scheduler();

  // Takes in one event and decides all that follows. `now` never goes back. Leases that ran out by
  // `now` go first. Events about things unknown (late duplicates) change nothing.
  Decisions apply(const Event& event, Instant now);

  // When to call apply(TimePassed{}) at the latest; empty if only events matter.
  std::optional<Instant> next_deadline() const;

  Explanation explain(const RequestId& id) const;
  // Ascending by node id.
  std::vector<NodeView> nodes() const;
  // What a request holds: slots, the actor's place, bundles.
  std::vector<Placed> held(const RequestId& id) const;
  // What lies on a node, by arrival; behind each gang what lies in its bundles there.
  std::vector<RequestId> holders(const NodeId& id) const;
  // What lies in a gang's bundles or waits for them, by arrival.
  std::vector<RequestId> members(const GangId& id) const;
  // By shape, in the order of first arrival of the shape.
  std::vector<PendingView> pending() const;
  uint64_t pending_units() const;
  // All but the cluster itself, by name.
  std::vector<PoolView> pools() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::scheduler
