// Bounds how long a request may be overtaken. The most senior one that has waited longer than
// options.patience gets nodes kept for it: what is freed there is not given to others.
#include <algorithm>
#include <tuple>
#include <utility>

#include "scheduler/impl.h"

namespace troupe::scheduler {
namespace {

constexpr int looks_within_patience = 8;

}  // namespace

Scheduler::Impl::Claim Scheduler::Impl::claim_of(Shape& shape) const {
  Claim claim{.shape = &shape, .next_due = shape.due_at};
  if (shape.due_at > now) return claim;
  claim.next_due = Instant::max();
  // Of equal rank the first is the oldest: one look at each rank.
  for (auto it = shape.waiting.begin(); it != shape.waiting.end() && !claim.overdue;) {
    const Request& oldest = *it->second;
    const Instant due = oldest.standing.arrived + options.patience;
    if (due <= now) claim.overdue = oldest.seniority;
    if (due > now) claim.next_due = std::min(claim.next_due, due);
    it = shape.waiting.upper_bound(Seniority{oldest.seniority.rank, UINT64_MAX});
  }
  if (!claim.overdue) shape.due_at = claim.next_due;
  return claim;
}

// The most senior overdue request for which nodes can be kept has them. What comes and goes may
// change who that is; it is looked at again a few times within the patience, not at each event.
bool Scheduler::Impl::update_kept() {
  if (leaving > 0) return false;  // Nodes are kept for whom the victims make room.
  if (claims_open && claims_seen_at != version)
    next_claim = std::min(next_claim, claims_rest_until);
  if (now < next_claim) return false;
  next_claim = Instant::max();
  claims_rest_until = now + options.patience / looks_within_patience;
  claims_seen_at = version;
  claims_open = false;
  std::vector<Claim> claims;
  queue.for_each_blocked([&](Shape& shape) {
    const Claim claim = claim_of(shape);
    next_claim = std::min(next_claim, claim.next_due);
    if (claim.overdue) claims.push_back(claim);
    return true;
  });
  std::sort(claims.begin(), claims.end(),
            [](const Claim& a, const Claim& b) { return *a.overdue < *b.overdue; });
  const bool had_nodes = keeper != nullptr;
  for (const Claim& claim : claims) {
    if (claim.shape == keeper) return false;
    claims_open = true;
    if (claim.shape->unkeepable_at == version) continue;
    if (keep_nodes(claim.shape)) return had_nodes;
    claim.shape->unkeepable_at = version;
  }
  release_kept();
  return had_nodes;
}

// Nodes that will do for it once what is expected to end has ended: leases; if that is not enough,
// gangs too. Actors may stay for ever, so nothing is kept idle beside them.
bool Scheduler::Impl::keep_nodes(Shape* shape) {
  GangPlan plan = plan_keep(*shape, /*beside_gangs=*/true);
  if (plan.outcome != GangPlan::Outcome::found) plan = plan_keep(*shape, /*beside_gangs=*/false);
  if (plan.outcome != GangPlan::Outcome::found) return false;
  keep_nodes_of(plan, shape);
  return true;
}

void Scheduler::Impl::keep_nodes_of(const GangPlan& plan, Shape* shape) {
  release_kept();
  keeper = shape;
  for (const GangPlan::Place& place : plan.places) {
    if (cluster[place.node].kept_for == shape) continue;
    cluster[place.node].kept_for = shape;
    kept.push_back(place.node);
  }
}

void Scheduler::Impl::release_kept() {
  if (keeper == nullptr) return;
  if (kept_share) {
    pools.remove(keeper->needs->pool, *std::exchange(kept_share, {}));
    share_freed(keeper->needs->pool);
  }
  next_claim = now;
  for (const NodeIndex index : kept) {
    cluster[index].kept_for = nullptr;
    freed.push_back(index);
  }
  kept.clear();
  keeper = nullptr;
}

GangPlan Scheduler::Impl::plan_keep(const Shape& shape, bool beside_gangs) const {
  const Needs& needs = *shape.needs;
  using Room = std::tuple<int64_t, int64_t, NodeIndex>;  // Negative, so the roomiest come first.
  std::vector<Room> eligible;
  cluster.for_each([&](NodeIndex index, const Node& node) {
    if (node.eligible(needs.affinity))
      eligible.emplace_back(-node.ledger.available().gpu_milli, -node.ledger.available().cpu_milli,
                            index);
    return true;
  });
  std::sort(eligible.begin(), eligible.end());
  GangNodes candidates(needs.bundles);
  const bool one_node = needs.gang && needs.gang_strategy == GangStrategy::strict_pack;
  const ResourceVector floor = sum_floor(needs.bundles);
  for (const auto& [gpu, cpu, index] : eligible) {
    if (candidates.enough()) break;
    const NodeLedger ledger = without_transient(cluster[index], beside_gangs);
    if (!one_node || ledger.fits(floor)) candidates.offer(index, ledger);
  }
  return plan_gang(needs.bundles, needs.gang ? needs.gang_strategy : GangStrategy::pack,
                   candidates.nodes());
}

// The node as it will be when only actors, or only actors and gangs, are left.
NodeLedger Scheduler::Impl::without_transient(const Node& node, bool beside_gangs) const {
  NodeLedger ledger(node.ledger.total());
  for (const auto& [holder, arrival_number, units] : node.holders) {
    const Request& request = *holder;
    if (request.is_lease() || (request.is_gang() && !beside_gangs)) continue;
    for (const Request::Unit& unit : request.held()) {
      if (cluster[unit.node].id != node.id) continue;
      const bool taken = ledger.take_exactly(request.demand_of(unit.number), unit.devices);
      TROUPE_ASSERT(taken, "what is held fits the empty node");
    }
  }
  return ledger;
}

}  // namespace troupe::scheduler
