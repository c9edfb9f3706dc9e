// Ranks that change with time and service, and room made by those of a lower rank. One claim at a
// time: its nodes are kept (keep.cc) until all its victims have left.
#include <algorithm>
#include <map>
#include <optional>

#include "scheduler/impl.h"

namespace troupe::scheduler {
namespace {

// Of one claim.
constexpr size_t victims_max = 4096;

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
  if (standing.runs) {
    Duration& virtual_time = virtual_times[request->shape->needs->pool];
    virtual_time = std::max(virtual_time, policy.virtual_time(standing, now));
  }
  const Rank rank = policy.rank(standing, now);
  if (rank != request->seniority.rank) {
    const bool is_told = to_tell.erase(request->seniority) > 0;
    queue.rerank(request, rank);
    if (is_told) to_tell.emplace(request->seniority, request);
    ++claims_version;
  }
  schedule_review(request);
}

void Scheduler::Impl::restand(Request* request) {
  if (request->is_leaving) return;  // Its rank counts again once it has left.
  const bool is_victim = request->is_victim;
  if (is_victim) remove_victim(request);
  rank_anew(request);
  if (is_victim) add_victim(request);
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
    restand(request);
  }
}

void Scheduler::Impl::add_victim(Request* request) {
  const Policy& policy = policy_of(*request);
  if (!request->can_pause || !(policy.preempts() || pools.has_quotas())) return;
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
    if (!victims[pool].empty() && policies[pool]->preempts() && preempt_in(pool)) return;
  if (pools.has_quotas() && reclaim()) return;
}

// Those behind one that has no higher rank than any victim have none either.
bool Scheduler::Impl::preempt_in(PoolIndex pool) {
  const auto claim = [&](Shape* shape) {
    const Rank rank = shape->head()->seniority.rank;
    auto next = victims[pool].rbegin();
    return claim_room(shape, shape->unclaimable_at, [&](const Pools&) -> Request* {
      if (next == victims[pool].rend() || !(rank < rank_of_victim(*next->second))) return nullptr;
      return (next++)->second;
    });
  };
  const auto try_line = [&](const Line<Shape>& line) {
    for (const auto& [seniority, shape] : line) {
      if (!(seniority.rank < rank_of_victim(*victims[pool].rbegin()->second))) return false;
      if (claim(shape)) return true;
    }
    return false;
  };
  return try_line(queue.blocked(pool)) ||
         std::ranges::any_of(queue.capped(pool), [&](const auto* line) { return try_line(*line); });
}

// Who stays within its quota gets it from those that borrow, those with the largest share first.
// What is used beyond quotas becomes less each time, so no two take from each other for ever.
bool Scheduler::Impl::reclaim() {
  std::vector<PoolIndex> borrowers;
  for (PoolIndex pool = 1; pool < victims.size(); ++pool)
    if (!victims[pool].empty()) borrowers.push_back(pool);
  if (borrowers.empty()) return false;
  std::ranges::stable_sort(borrowers, [&](PoolIndex a, PoolIndex b) { return pools.before(b, a); });
  const auto claim = [&](Shape* shape) {
    const PoolIndex own = shape->needs->pool;
    const Amounts wanted = amounts_of(*shape->needs);
    if (!is_shared_out(*shape->needs) || !pools.has_quota_left(own, wanted)) return false;
    auto pool = borrowers.begin();
    std::optional<Victims::const_reverse_iterator> next;
    return claim_room(shape, shape->unreclaimable_at, [&](const Pools& rest) -> Request* {
      for (; pool != borrowers.end(); ++pool, next.reset()) {
        if (!rest.owes(*pool, own, wanted)) continue;
        if (!next) next = victims[*pool].rbegin();
        if (*next != victims[*pool].rend()) return ((*next)++)->second;
      }
      return nullptr;
    });
  };
  for (PoolIndex pool = 1; pool < pools.size(); ++pool) {
    std::vector<const Line<Shape>*> lines = queue.capped(pool);
    lines.push_back(&queue.blocked(pool));
    for (const Line<Shape>* line : lines)
      for (const auto& [seniority, shape] : *line)
        if (claim(shape)) return true;
  }
  return false;
}

// Those that next(Pools) names, given what pools would use without the ones before; as few of them
// as will do. Whole numbers say first when it is worth while to plan: how many of the largest
// bundles the nodes could hold, by the resource that is scarcest. `failed_at` is when it was tried
// in vain.
template <class Next>
bool Scheduler::Impl::claim_room(Shape* shape, Shape::Attempt& failed_at, Next&& next) {
  const Needs& needs = *shape->needs;
  if (needs.affinity.within) return false;
  const std::pair attempt{claims_version, shape->head()->seniority.arrival_number};
  if (failed_at == attempt) return false;
  failed_at = attempt;
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
  const Amounts wanted = amounts_of(needs);
  // Accounts only where they matter: there may be many pools.
  const bool has_shares = pools.has_caps() || pools.has_quotas();
  Pools rest = has_shares ? pools : Pools();
  const auto leaves = [&](const Request& victim) {
    const Needs& its = *victim.shape->needs;
    if (has_shares) rest.remove(its.pool, amounts_of(its));
  };
  const auto stays = [&](const Request& victim) {
    const Needs& its = *victim.shape->needs;
    if (has_shares) rest.add(its.pool, amounts_of(its));
  };
  const auto has_share = [&] {
    return !has_shares || !is_shared_out(needs) || !rest.obstacle(needs.pool, wanted);
  };
  std::map<NodeIndex, int64_t> room;
  std::vector<Request*> chosen;
  GangPlan plan;
  while (Request* victim = chosen.size() < victims_max ? next(std::as_const(rest)) : nullptr) {
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
    const bool had_share = has_share();
    leaves(*victim);
    if (slots < of_largest || !has_share() || (gained == 0 && had_share)) continue;
    plan = plan_without(*shape, chosen);
    if (plan.outcome == GangPlan::Outcome::found) break;
  }
  if (plan.outcome != GangPlan::Outcome::found) return false;
  // The more senior ones stay where it is possible.
  for (size_t i = chosen.size(); i-- > 0 && chosen.size() > 1;) {
    Request* const spared = chosen[i];
    chosen.erase(chosen.begin() + static_cast<ptrdiff_t>(i));
    stays(*spared);
    GangPlan without;
    const bool is_elsewhere = std::ranges::none_of(spared->held(), [&](const Request::Unit& unit) {
      return std::ranges::find(plan.places, unit.node, &GangPlan::Place::node) != plan.places.end();
    });
    if (has_share() && is_elsewhere) continue;
    if (has_share()) without = plan_without(*shape, chosen);
    if (without.outcome == GangPlan::Outcome::found) {
      plan = std::move(without);
    } else {
      chosen.insert(chosen.begin() + static_cast<ptrdiff_t>(i), spared);
      leaves(*spared);
    }
  }
  keep_nodes_of(plan, shape);
  if (has_shares && is_shared_out(needs)) {
    kept_share = wanted;
    pools.add(needs.pool, wanted);
  }
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
