// Ranks that change with time and service, and room made by those of a lower rank. One claim at a
// time: its nodes are kept (keep.cc) until all its victims have left.
#include <algorithm>
#include <map>
#include <ranges>

#include "scheduler/impl.h"

namespace troupe::scheduler {
namespace {

// Of one claim.
constexpr size_t victims_max = 4096;

void subtract_from(Amounts& amounts, const Amounts& less) {
  for (size_t r = 0; r < amounts.size(); ++r) amounts[r] -= less[r];
}

int64_t nanoseconds(Instant instant) {
  return instant.time_since_epoch().count();
}

// Its rank as of time zero.
std::pair<Rank, uint64_t> victim_key(const Request& victim) {
  Rank rank = victim.seniority.rank;
  rank.major -= victim.holding->victim_shift;
  return {rank, victim.seniority.arrival_number};
}

}  // namespace

void Scheduler::Impl::set_running(Request* request, bool runs) {
  Standing& standing = request->standing;
  standing.progress += standing.stint(now);
  standing.ran = standing.ran_until(now);
  standing.since = now;
  standing.runs = runs;
  if (!runs) remove_victim(request);
  rank_anew(request);
  if (runs) add_victim(request);
}

void Scheduler::Impl::rank_anew(Request* request) {
  Standing& standing = request->standing;
  const Policy& policy = policy_of(*request);
  if (policy.promotes(standing, now)) standing.promoted_at = standing.ran;
  const Rank rank = policy.rank(standing, now);
  if (rank != request->seniority.rank) {
    const bool is_told = to_tell.erase(request->seniority) > 0;
    queue.rerank(request, rank);
    if (is_told) to_tell.emplace(request->seniority, request);
    ++claims_version;
  }
  schedule_review(request);
}

void Scheduler::Impl::schedule_review(Request* request) {
  const Instant next = policy_of(*request).changes_at(request->standing, now);
  if (next == request->review) return;
  const uint64_t arrival_number = request->seniority.arrival_number;
  if (request->review != Instant::max()) reviews.erase({request->review, arrival_number});
  request->review = next;
  if (next != Instant::max()) reviews.emplace(std::pair{next, arrival_number}, request);
}

void Scheduler::Impl::review_due() {
  while (!reviews.empty() && reviews.begin()->first.first <= now) {
    Request* request = reviews.begin()->second;
    reviews.erase(reviews.begin());
    request->review = Instant::max();
    const bool is_victim = request->is_victim;
    if (is_victim) remove_victim(request);
    rank_anew(request);
    if (is_victim) add_victim(request);
  }
}

void Scheduler::Impl::add_victim(Request* request) {
  const Policy& policy = policy_of(*request);
  if (!request->can_pause || !policy.preempts()) return;
  request->is_victim = true;
  request->holding->victim_shift = policy.running_slope() * nanoseconds(now);
  victims[request->shape->needs->pool].emplace(victim_key(*request), request);
  ++claims_version;
}

void Scheduler::Impl::remove_victim(Request* request) {
  if (std::exchange(request->is_leaving, false)) --leaving;
  if (!request->is_victim) return;
  victims[request->shape->needs->pool].erase(victim_key(*request));
  request->is_victim = false;
  ++claims_version;
}

Rank Scheduler::Impl::rank_of_victim(const Request& victim) const {
  Rank rank = victim_key(victim).first;
  rank.major += policy_of(victim).running_slope() * nanoseconds(now);
  return rank;
}

void Scheduler::Impl::preempt() {
  if (leaving > 0) return;
  for (PoolIndex pool = 1; pool < victims.size(); ++pool)
    if (!victims[pool].empty() && preempt_in(pool)) return;
}

bool Scheduler::Impl::preempt_in(PoolIndex pool) {
  const auto try_line = [&](const Line<Shape>& line) {
    for (const auto& [seniority, shape] : line) {
      // Those behind it are of no higher rank.
      const Request& worst = *victims[pool].rbegin()->second;
      if (!(shape->head()->seniority.rank < rank_of_victim(worst))) return false;
      const std::pair attempt{claims_version, shape->head()->seniority.arrival_number};
      if (shape->unclaimable_at == attempt) continue;
      if (claim_room(shape)) return true;
      shape->unclaimable_at = attempt;
    }
    return false;
  };
  return try_line(queue.blocked(pool)) ||
         std::ranges::any_of(queue.capped(pool), [&](const auto* line) { return try_line(*line); });
}

// The least senior ones that will do, and of those as few as possible. Whole numbers say first when
// it is worth while to plan: how many of the largest bundles the nodes could hold, by the resource
// that is scarcest.
bool Scheduler::Impl::claim_room(Shape* shape) {
  const Needs& needs = *shape->needs;
  if (needs.affinity.within) return false;
  const Rank rank = shape->head()->seniority.rank;
  const bool of_gpus = floor_of(needs.bundles).gpu;
  const auto measure = [&](const ResourceVector& amounts) {
    return of_gpus ? amounts.gpu_milli : amounts.cpu_milli;
  };
  int64_t largest = 1;
  for (const ResourceVector& bundle : needs.bundles) largest = std::max(largest, measure(bundle));
  const auto of_largest = std::ranges::count_if(
      needs.bundles, [&](const ResourceVector& bundle) { return measure(bundle) == largest; });
  int64_t slots = 0;
  cluster.for_each_roomiest(floor_of(needs.bundles), [&](NodeIndex, const Node& node) {
    slots += measure(node.ledger.available()) / largest;
    return slots < of_largest;
  });
  Amounts more = amounts_of(needs);  // Than the pool would use without them.
  std::map<NodeIndex, int64_t> room;
  std::vector<Request*> chosen;
  GangPlan plan;
  for (const auto& [place, victim] : std::views::reverse(victims[needs.pool])) {
    if (!(rank < rank_of_victim(*victim)) || chosen.size() == victims_max) return false;
    if (!victim->is_open()) continue;  // Broken, released, or not all of it adopted yet.
    chosen.push_back(victim);
    int64_t gained = 0;
    for (const Request::Unit& unit : victim->held()) {
      const auto [entry, is_new] =
          room.try_emplace(unit.node, measure(cluster[unit.node].ledger.available()));
      const int64_t before = entry->second / largest;
      entry->second += measure(victim->demand_of(unit.number));
      gained += entry->second / largest - before;
    }
    slots += gained;
    const bool had_share = has_share(needs.pool, more);
    subtract_from(more, amounts_of(*victim->shape->needs));
    if (slots < of_largest || !has_share(needs.pool, more) || (gained == 0 && had_share)) continue;
    plan = plan_without(*shape, chosen);
    if (plan.outcome == GangPlan::Outcome::found) break;
  }
  if (plan.outcome != GangPlan::Outcome::found) return false;
  // Those elsewhere stay, and of the others the more senior ones where it is possible.
  const auto is_elsewhere = [&](const Request* victim) {
    return std::ranges::none_of(victim->held(), [&](const Request::Unit& unit) {
      return std::ranges::find(plan.places, unit.node, &GangPlan::Place::node) != plan.places.end();
    });
  };
  if (has_share(needs.pool, amounts_of(needs))) std::erase_if(chosen, is_elsewhere);
  for (size_t i = chosen.size(); i-- > 0 && chosen.size() > 1;) {
    Request* const spared = chosen[i];
    chosen.erase(chosen.begin() + static_cast<ptrdiff_t>(i));
    more = amounts_of(needs);
    for (const Request* victim : chosen) subtract_from(more, amounts_of(*victim->shape->needs));
    GangPlan without;
    if (has_share(needs.pool, more)) without = plan_without(*shape, chosen);
    if (without.outcome == GangPlan::Outcome::found) {
      plan = std::move(without);
    } else {
      chosen.insert(chosen.begin() + static_cast<ptrdiff_t>(i), spared);
    }
  }
  keep_nodes_of(plan, shape);
  for (Request* victim : chosen) {
    victim->is_leaving = true;
    ++leaving;
    revoke(*victim, RevokeReason::preempted, placed(*victim));
  }
  return true;
}

// Where it could go if these were gone.
GangPlan Scheduler::Impl::plan_without(const Shape& shape,
                                       const std::vector<Request*>& gone) const {
  const Needs& needs = *shape.needs;
  std::map<NodeIndex, NodeLedger> ledgers;
  for (const Request* victim : gone) {
    for (const Request::Unit& unit : victim->held()) {
      NodeLedger& ledger = ledgers.try_emplace(unit.node, cluster[unit.node].ledger).first->second;
      ledger.give_back(victim->demand_of(unit.number), unit.devices);
    }
  }
  const auto may = [&](const Node& node) {
    return node.open_to(&shape) && node.eligible(needs.affinity);
  };
  GangNodes candidates(needs.bundles);
  for (const auto& [index, ledger] : ledgers)
    if (may(cluster[index])) candidates.offer(index, ledger);
  cluster.for_each_roomiest(floor_of(needs.bundles), [&](NodeIndex index, const Node& node) {
    if (!ledgers.contains(index) && may(node)) candidates.offer(index, node.ledger);
    return !candidates.enough();
  });
  return plan_gang(needs.bundles, needs.gang ? needs.gang_strategy : GangStrategy::pack,
                   candidates.nodes());
}

}  // namespace troupe::scheduler
