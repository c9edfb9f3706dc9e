// Finds a place for every bundle of a gang at once, on copies of the nodes' ledgers.
#pragma once

#include <optional>
#include <vector>

#include "scheduler/cluster.h"
#include "scheduler/events.h"

namespace troupe::scheduler {

struct GangNode {
  NodeIndex node = 0;
  NodeLedger ledger;
};

struct GangPlan {
  // `unsure`: the search for an unequal gang ran out of its budget.
  enum class Outcome : uint8_t { found, impossible, unsure };
  Outcome outcome = Outcome::impossible;
  struct Place {
    NodeIndex node = 0;
    Devices devices;
  };
  std::vector<Place> places;  // One a bundle, in the order of the request.
};

// `nodes` in the order of preference; they come back as they were. Equal bundles are planned
// exactly; unequal ones largest first, with bounded backtracking.
GangPlan plan_gang(const std::vector<ResourceVector>& bundles, GangStrategy strategy,
                   std::vector<GangNode>& nodes);

// What every node must have that one of the bundles could go to.
Cluster::Floor floor_of(const std::vector<ResourceVector>& bundles);

// A demand that no node can do without if it is to hold all the bundles.
ResourceVector sum_floor(const std::vector<ResourceVector>& bundles);

// Collects nodes for plan_gang. With k bundles, k nodes that fit a bundle are always enough for
// it: the others can spoil at most k-1. So offers beyond that are not needed.
class GangNodes {
 public:
  explicit GangNodes(const std::vector<ResourceVector>& bundles);
  // Takes the node if a bundle may need it.
  void offer(NodeIndex index, const NodeLedger& ledger);
  bool enough() const { return wanting_ == 0; }
  std::vector<GangNode>& nodes() { return nodes_; }

 private:
  struct Kind {
    const ResourceVector* demand = nullptr;
    size_t missing = 0;
  };
  std::vector<Kind> kinds_;
  size_t wanting_ = 0;
  std::vector<GangNode> nodes_;
};

}  // namespace troupe::scheduler
