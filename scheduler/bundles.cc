// The bundles of placed gangs, and what lies in them. A bundle deals its resources out by a ledger
// of its own, so nothing in it ever touches the node's free room. A gang that was released takes
// nothing in, and gives each bundle back once it is empty.
#include <fmt/format.h>

#include <algorithm>

#include "scheduler/impl.h"

namespace troupe::scheduler {

const Request* Scheduler::Impl::gang_of(const Needs& needs) const {
  return needs.affinity.within ? find(RequestId{needs.affinity.within->gang}) : nullptr;
}

Request* Scheduler::Impl::gang_of(const Request& request) {
  return const_cast<Request*>(gang_of(*request.shape->needs));
}

Status Scheduler::Impl::check_within(const Needs& needs) const {
  if (!needs.affinity.within) return ok();
  const auto& [id, bundle] = *needs.affinity.within;
  const Request* gang = gang_of(needs);
  if (gang == nullptr || gang->closing)
    return error(Code::not_found, "there is no " + to_string(RequestId{id}));
  const size_t bundles = gang->shape->needs->bundles.size();
  if (bundle && *bundle >= bundles)
    return error(Code::invalid, fmt::format("{} has bundles 0 to {}, not {}",
                                            to_string(RequestId{id}), bundles - 1, *bundle));
  return ok();
}

const Scheduler::Impl::Members& Scheduler::Impl::members_of(const Request& gang) const {
  static const Members none;
  const auto found = inside.find(GangId{gang.raw});
  return found == inside.end() ? none : found->second.members;
}

void Scheduler::Impl::join(Request* request) {
  Request* gang = gang_of(*request);
  if (gang == nullptr) return;
  Inside& of_gang = inside[GangId{gang->raw}];
  if (of_gang.members.empty()) of_gang.priorities = {{gang->standing.priority, 1}};
  of_gang.members.emplace(request->seniority.arrival_number, request);
  ++of_gang.priorities[request->standing.priority];
  inherit(gang, of_gang);
}

void Scheduler::Impl::leave(Request* request) {
  Request* gang = gang_of(*request);
  if (gang == nullptr) return;
  const auto of_gang = inside.find(GangId{gang->raw});
  Inside& all = of_gang->second;
  all.members.erase(request->seniority.arrival_number);
  const auto priority = all.priorities.find(request->standing.priority);
  if (--priority->second == 0) all.priorities.erase(priority);
  inherit(gang, all);
  if (all.members.empty()) inside.erase(of_gang);
  end_closed(gang);
}

void Scheduler::Impl::inherit(Request* gang, const Inside& from) {
  const int32_t highest = from.priorities.rbegin()->first;
  if (std::exchange(gang->standing.priority, highest) != highest) restand(gang);
}

void Scheduler::Impl::close(Request* gang) {
  gang->closing = true;
  ++version;
  for (size_t i = gang->held().size(); i-- > 0;)
    if (cluster[gang->held()[i].bundle].units == 0) unhold(gang, i);
  recheck_members(*gang);
  end_closed(gang);
}

void Scheduler::Impl::end_closed(Request* gang) {
  if (gang->closing && gang->held().empty() && members_of(*gang).empty()) forget(gang);
}

void Scheduler::Impl::bundle_emptied(NodeIndex index) {
  const Node& bundle = cluster[index];
  if (bundle.units > 0) return;
  Request* gang = find(RequestId{bundle.bundle_of->gang});
  if (!gang->closing) return;
  const auto unit = std::find_if(gang->held().begin(), gang->held().end(),
                                 [&](const Request::Unit& held) { return held.bundle == index; });
  unhold(gang, static_cast<size_t>(unit - gang->held().begin()));
}

void Scheduler::Impl::wake_members(const Request& gang) {
  if (members_of(gang).empty()) return;
  for (const Request::Unit& unit : gang.held()) freed.push_back(unit.bundle);
}

// Those that wait for it wait in vain.
void Scheduler::Impl::recheck_members(const Request& gang) {
  for (const auto& [arrival_number, member] : members_of(gang)) {
    if (member->units_pending == 0) continue;
    if (member->shape->state == Shape::State::blocked) set_aside(member->shape);
  }
}

std::optional<NodeIndex> Scheduler::Impl::room_within(const Shape& shape) const {
  const Needs& needs = *shape.needs;
  const Request* gang = gang_of(needs);
  if (gang == nullptr || !gang->is_open()) return std::nullopt;
  std::optional<NodeIndex> best;
  const auto consider = [&](const Request::Unit& unit) {
    const Node& bundle = cluster[unit.bundle];
    if (cluster[unit.node].draining || !bundle.ledger.fits(shape.demand())) return;
    if (!best || bundle.units < cluster[*best].units) best = unit.bundle;
  };
  if (const auto& wanted = needs.affinity.within->bundle) {
    consider(gang->held()[*wanted]);
    return best;
  }
  for (const Request::Unit& unit : gang->held()) {
    consider(unit);
    if (best && needs.strategy == Strategy::pack) break;
  }
  return best;
}

bool Scheduler::Impl::feasible_within(const Needs& needs) const {
  const Request* gang = gang_of(needs);
  if (gang == nullptr || gang->closing) return false;
  const auto& bundles = gang->shape->needs->bundles;
  const ResourceVector& demand = needs.bundles.front();
  if (const auto& wanted = needs.affinity.within->bundle)
    return could_fit(bundles[*wanted], demand);
  return std::any_of(bundles.begin(), bundles.end(),
                     [&](const ResourceVector& bundle) { return could_fit(bundle, demand); });
}

std::optional<NodeIndex> Scheduler::Impl::place_of(const Needs& needs, const Placed& unit) const {
  if (!needs.affinity.within) return cluster.find(unit.node);
  for (const Request::Unit& held : gang_of(needs)->held())
    if (unit.bundle == held.number && cluster[held.node].id == unit.node) return held.bundle;
  return std::nullopt;
}

Status Scheduler::Impl::adopt_gang(Application application, const std::vector<Placed>& held) {
  Request* gang = find(application.id);
  if (gang != nullptr && (gang->closing || gang->units_pending > 0 ||
                          gang->shape->needs->bundles != application.needs.bundles))
    return error(Code::conflict, "a further part of a gang that is another one, or waits");
  const std::vector<ResourceVector> bundles = application.needs.bundles;
  std::vector<NodeIndex> places;
  for (const Placed& unit : held) {
    const bool known = gang != nullptr && std::any_of(gang->held().begin(), gang->held().end(),
                                                      [&](const Request::Unit& present) {
                                                        return present.number == unit.unit;
                                                      });
    const auto index = cluster.find(unit.node);
    const bool taken = !known && unit.unit < bundles.size() && index &&
                       cluster[*index].ledger.take_exactly(bundles[unit.unit], unit.devices);
    if (taken) {
      places.push_back(*index);
      continue;
    }
    for (size_t i = places.size(); i-- > 0;)
      cluster[places[i]].ledger.give_back(bundles[held[i].unit], held[i].devices);
    return error(Code::conflict,
                 fmt::format("bundle {} is not free on node {}", unit.unit, unit.node.to_string()));
  }
  if (gang == nullptr) gang = admit(std::move(application));
  for (size_t i = 0; i < held.size(); ++i) {
    hold(gang, held[i].unit, places[i], held[i].devices);
    cluster.reindex(places[i]);
  }
  if (gang->is_open()) wake_members(*gang);
  return ok();
}

std::string Scheduler::Impl::why_not_within(const Shape& shape) const {
  const Needs& needs = *shape.needs;
  const auto& [id, wanted] = *needs.affinity.within;
  const Request* gang = gang_of(needs);
  const std::string name = to_string(RequestId{id});
  if (gang == nullptr || gang->closing) return name + " is no more";
  const std::string which = wanted ? fmt::format("bundle {}", *wanted) : "any bundle";
  if (!feasible_within(needs))
    return fmt::format("{} is larger than {} of {}", shape.demand().to_string(), which, name);
  if (gang->units_pending > 0) return name + " is not placed yet";
  if (!gang->is_open()) return name + " is not whole";
  return fmt::format("no room in {} of {} for {}", which, name, shape.demand().to_string());
}

}  // namespace troupe::scheduler
