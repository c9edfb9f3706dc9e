// Finds places for what waits: from the most senior request on, past those that do not fit.
#include <algorithm>

#include "scheduler/impl.h"

namespace troupe::scheduler {

Cluster::Floor floor_of(const std::vector<ResourceVector>& bundles) {
  Cluster::Floor floor{.gpu = true, .whole_gpus = gpus_per_node_max, .cpu_milli = amount_max};
  for (const ResourceVector& bundle : bundles) {
    floor.gpu = floor.gpu && bundle.gpu_milli > 0;
    floor.whole_gpus = std::min(floor.whole_gpus, bundle.gpu_milli / whole_gpu_milli);
    floor.cpu_milli = std::min(floor.cpu_milli, bundle.cpu_milli);
  }
  return floor;
}

namespace {

const auto any_node = [](NodeIndex, const Node&) { return true; };

GangPlan plan_on(NodeIndex index, const Node& node, const Needs& needs) {
  std::vector<GangNode> one{{index, node.ledger}};
  return plan_gang(needs.bundles, GangStrategy::strict_pack, one);
}

}  // namespace

void Scheduler::Impl::settle() {
  do {
    wake();
    place_ready();
    refill_pools();
  } while (update_kept() || !freed.empty() || (leaving == 0 && !caps_freed.empty()));
  preempt();
  announce_infeasible();
}

bool Scheduler::Impl::helps(const Node& node, const Shape& shape) const {
  if (!node.open_to(&shape) || !node.eligible(shape.needs->affinity)) return false;
  return std::any_of(shape.needs->bundles.begin(), shape.needs->bundles.end(),
                     [&](const ResourceVector& bundle) { return node.ledger.fits(bundle); });
}

// A shape that did not fit is tried again only when a node with more room could hold a part of it.
void Scheduler::Impl::wake() {
  std::sort(freed.begin(), freed.end());
  freed.erase(std::unique(freed.begin(), freed.end()), freed.end());
  const auto more_room = std::exchange(freed, {});
  if (more_room.size() == 1 && more_room.front() < bundle_bit && queue.next_ready() == nullptr)
    return refill(more_room.front());
  for (const NodeIndex index : more_room) wake_for(index);
}

void Scheduler::Impl::wake_for(NodeIndex index) {
  const Node& node = cluster[index];
  if (!node.alive) return;
  const auto helped = [&](const Shape& shape) { return helps(node, shape); };
  std::vector<Shape*> woken;
  if (node.bundle_of) {
    for (Shape* shape : queue.asleep_within(node.bundle_of->gang))
      if (helped(*shape)) woken.push_back(shape);
  } else {
    queue.for_each_asleep(SizeClass::of(node.ledger), helped, [&](Shape& shape) {
      woken.push_back(&shape);
      return false;
    });
  }
  for (Shape* shape : woken) queue.set_state(shape, Shape::State::ready);
}

// What did not fit fits nowhere but here, so there is nothing to search for.
void Scheduler::Impl::refill(NodeIndex index) {
  const Node& node = cluster[index];
  if (!node.alive) return;
  std::vector<Shape*> capped;
  const auto helped = [&](const Shape& shape) { return freed.empty() && helps(node, shape); };
  queue.for_each_asleep(SizeClass::of(node.ledger), helped, [&](Shape& shape) {
    if (obstacle(shape)) {
      capped.push_back(&shape);
      return false;
    }
    Request* request = shape.head();
    if (shape.needs->gang) return place_gang(request);
    const uint32_t before = request->units_pending;
    while (freed.empty() && request->units_pending > 0 && !obstacle(shape) &&
           node.ledger.fits(shape.demand()))
      grant(request, index);
    return request->units_pending < before;
  });
  for (Shape* shape : capped) set_aside(shape);
  // Nodes that were kept are open now, this one perhaps among them: the rest looks at all of them.
  if (!freed.empty()) wake_for(index);
}

// Until nodes that were kept are open: they are the next one's to keep, or all may try them.
void Scheduler::Impl::place_ready() {
  while (Shape* shape = freed.empty() ? queue.next_ready() : nullptr) {
    Request* request = shape->head();
    const bool done = shape->needs->gang ? place_gang(request) : place_units(request);
    if (!done) set_aside(shape);
  }
}

// Grants what fits; true if nothing more of it waits.
bool Scheduler::Impl::place_units(Request* request) {
  Shape* shape = request->shape;
  while (request->units_pending > 0) {
    const auto index = obstacle(*shape) ? std::nullopt : room_for(*shape);
    if (!index) return false;
    grant(request, *index);
  }
  return true;
}

// As many units as fit there; one if they are to be spread.
void Scheduler::Impl::grant(Request* request, NodeIndex index) {
  Shape* shape = request->shape;
  Node& node = cluster[index];
  const bool spread = shape->needs->strategy == Strategy::spread;
  const uint32_t wanted = spread ? 1 : request->units_pending;
  const size_t first = request->held().size();
  for (uint32_t n = 0; n < wanted && (n == 0 || !obstacle(*shape)); ++n) {
    auto devices = node.ledger.take(shape->demand());
    if (!devices) break;
    hold(request, request->next_slot++, index, std::move(*devices));
  }
  cluster.reindex(index);
  queue.pop(request, static_cast<uint32_t>(request->held().size() - first));
  if (keeper == shape) release_kept();

  if (request->is_lease()) {
    LeaseGranted granted{
        LeaseId{request->raw}, node.id, {}, request->holding->expires_at, node.bundle()};
    for (size_t i = first; i < request->held().size(); ++i)
      granted.slots.push_back({request->held()[i].number, request->held()[i].devices});
    decisions.emplace_back(std::move(granted));
  } else {
    decisions.emplace_back(
        ActorPlaced{ActorId{request->raw}, node.id, request->held().back().devices, node.bundle()});
  }
}

std::optional<NodeIndex> Scheduler::Impl::room_for(Shape& shape) {
  const Needs& needs = *shape.needs;
  if (needs.affinity.within) return room_within(shape);
  if (needs.affinity.has_preference() && shape.unpreferable_at != nodes_version) {
    Affinity preferred = needs.affinity;
    if (preferred.preferred_node) preferred.node = preferred.preferred_node;
    const auto place = cluster.search(
        shape.demand(), preferred, needs.strategy, &shape, [&](NodeIndex, const Node& node) {
          return node.eligible(needs.affinity) && node.preferred_by(needs.affinity);
        });
    if (place) return place;
    bool some = false;
    cluster.for_each([&](NodeIndex, const Node& node) {
      some = node.eligible(needs.affinity) && node.preferred_by(needs.affinity);
      return !some;
    });
    if (!some) shape.unpreferable_at = nodes_version;
  }
  return cluster.search(shape.demand(), needs.affinity, needs.strategy, &shape, any_node);
}

bool Scheduler::Impl::place_gang(Request* request) {
  Shape& shape = *request->shape;
  if (obstacle(shape)) return false;
  GangPlan plan = plan_now(shape);
  if (plan.outcome != GangPlan::Outcome::found) return false;
  for (uint32_t i = 0; i < plan.places.size(); ++i) {
    GangPlan::Place& place = plan.places[i];
    Node& node = cluster[place.node];
    TROUPE_ASSERT(node.ledger.take_exactly(shape.needs->bundles[i], place.devices),
                  "a plan holds while nothing changes");
    hold(request, i, place.node, std::move(place.devices));
    cluster.reindex(place.node);
  }
  queue.pop(request, request->units_pending);
  if (keeper == request->shape) release_kept();
  decisions.emplace_back(GangPlaced{GangId{request->raw}, placed(*request)});
  wake_members(*request);
  return true;
}

GangPlan Scheduler::Impl::plan_now(Shape& shape) {
  if (shape.needs->affinity.has_preference()) {
    GangPlan plan = plan_among(Among::preferred, shape);
    if (plan.outcome == GangPlan::Outcome::found) return plan;
  }
  return plan_among(Among::all, shape);
}

GangPlan Scheduler::Impl::plan_among(Among nodes, const Shape& shape) {
  const Needs& needs = *shape.needs;
  const auto accepted = [&](const Node& node) {
    return nodes == Among::all || node.preferred_by(needs.affinity);
  };
  GangPlan plan;
  const bool pack = needs.gang_strategy == GangStrategy::pack;
  if (pack || needs.gang_strategy == GangStrategy::strict_pack) {
    // On one node if one has room for all.
    bool unsure = false;
    cluster.search(sum_floor(needs.bundles), needs.affinity, Strategy::pack, &shape,
                   [&](NodeIndex index, const Node& node) {
                     if (!accepted(node)) return false;
                     plan = plan_on(index, node, needs);
                     unsure = unsure || plan.outcome == GangPlan::Outcome::unsure;
                     return plan.outcome == GangPlan::Outcome::found;
                   });
    if (plan.outcome == GangPlan::Outcome::found) return plan;
    if (!pack) {
      if (unsure) plan.outcome = GangPlan::Outcome::unsure;
      return plan;
    }
  }
  GangNodes candidates(needs.bundles);
  const auto offer = [&](NodeIndex index, const Node& node) {
    if (node.open_to(&shape) && node.eligible(needs.affinity) && accepted(node))
      candidates.offer(index, node.ledger);
    return !candidates.enough();
  };
  if (pack) {
    cluster.for_each_roomiest(floor_of(needs.bundles), offer);
  } else {
    cluster.for_each_least_loaded(offer);
  }
  return plan_gang(needs.bundles, needs.gang_strategy, candidates.nodes());
}

void Scheduler::Impl::set_aside(Shape* shape) {
  if (feasible(shape)) {
    if (const auto by = obstacle(*shape)) {
      if (keeper == shape && leaving == 0) release_kept();
      queue.set_capped(shape, *by);
      return;
    }
    queue.set_state(shape, Shape::State::blocked);
    next_claim = std::min(next_claim, std::max(shape->due_at, claims_rest_until));
    return;
  }
  queue.set_state(shape, Shape::State::infeasible);
  if (keeper == shape) release_kept();
  for (const auto& [seniority, request] : shape->waiting) tell_infeasible(request);
}

// Would it fit if nothing else were there?
bool Scheduler::Impl::feasible(Shape* shape) {
  if (shape->feasible_at == version) return true;
  const Needs& needs = *shape->needs;
  if (pools.has_caps() && is_shared_out(needs) && !pools.feasible(needs.pool, amounts_of(needs)))
    return false;
  if (needs.affinity.within) return feasible_within(needs);
  bool fits = false;
  if (!needs.gang) {
    cluster.for_each([&](NodeIndex, const Node& node) {
      fits = node.eligible(needs.affinity) && node.ledger.could_fit(shape->demand());
      return !fits;
    });
  } else {
    GangNodes candidates(needs.bundles);
    const bool one_node = needs.gang_strategy == GangStrategy::strict_pack;
    const ResourceVector floor = sum_floor(needs.bundles);
    cluster.for_each([&](NodeIndex index, const Node& node) {
      if (!node.eligible(needs.affinity)) return true;
      if (!one_node || node.ledger.could_fit(floor))
        candidates.offer(index, NodeLedger(node.ledger.total()));
      return !candidates.enough();
    });
    fits = plan_gang(needs.bundles, needs.gang_strategy, candidates.nodes()).outcome !=
           GangPlan::Outcome::impossible;
  }
  if (fits) shape->feasible_at = version;
  return fits;
}

// After a change of the nodes.
void Scheduler::Impl::recheck_feasibility() {
  for (Shape* shape : queue.unplaced()) set_aside(shape);
}

void Scheduler::Impl::tell_infeasible(Request* request) {
  if (!request->told_infeasible) to_tell.emplace(request->seniority, request);
}

// By seniority, so that the order of shapes, which a late comer can change, does not show.
void Scheduler::Impl::announce_infeasible() {
  for (const auto& [seniority, request] : to_tell) {
    if (request->shape->state != Shape::State::infeasible) continue;
    request->told_infeasible = true;
    decisions.emplace_back(Infeasible{request->id(), infeasible_text(*request->shape)});
  }
  to_tell.clear();
}

}  // namespace troupe::scheduler
