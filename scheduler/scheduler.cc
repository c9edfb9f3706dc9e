#include "scheduler/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <utility>

#include "scheduler/impl.h"

namespace troupe::scheduler {
namespace {

constexpr uint32_t slots_max = 1U << 20;
constexpr size_t bundles_max = 4096;

template <class T>
bool strictly_ascending(const std::vector<T>& items) {
  return std::adjacent_find(items.begin(), items.end(), std::greater_equal<>()) == items.end();
}

Status check_selectors(const std::vector<LabelSelector>& selectors) {
  if (!strictly_ascending(selectors))
    return error(Code::invalid, "label selectors are not ascending or not distinct");
  for (const LabelSelector& selector : selectors) {
    const bool has_values = selector.test == LabelTest::in || selector.test == LabelTest::not_in;
    if (selector.key.empty() || selector.values.empty() == has_values)
      return error(Code::invalid, "a label selector lacks its key or values, or has too many");
    if (!strictly_ascending(selector.values))
      return error(Code::invalid, "a label selector's values are not ascending or not distinct");
  }
  return ok();
}

Status check_affinity(const Affinity& affinity) {
  TROUPE_CHECK(check_selectors(affinity.selectors));
  TROUPE_CHECK(check_selectors(affinity.preferred));
  const bool elsewhere = affinity.node || !affinity.selectors.empty() || affinity.has_preference();
  if (affinity.within && elsewhere)
    return error(Code::invalid, "what lies within a gang lies where that lies: it names no nodes");
  return ok();
}

RequestId request_id(const LeaseRequested& event) {
  return event.lease;
}
RequestId request_id(const ActorRequested& event) {
  return event.actor;
}
RequestId request_id(const GangRequested& event) {
  return event.gang;
}
SubjectId subject_of(const RequestId& id) {
  return std::visit([](const auto& typed) -> SubjectId { return typed; }, id);
}
RawId raw_of(const RequestId& id) {
  return std::visit([](const auto& typed) -> RawId { return typed; }, id);
}

std::optional<size_t> position_of(const Request& request, uint32_t slot) {
  const auto it = std::lower_bound(
      request.held().begin(), request.held().end(), slot,
      [](const Request::Unit& unit, uint32_t number) { return unit.number < number; });
  if (it == request.held().end() || it->number != slot) return std::nullopt;
  return static_cast<size_t>(it - request.held().begin());
}

// A lease's slots are some numbers, an actor and a gang are held in whole.
Status check_held(const RequestId& id, uint32_t units, const std::vector<Placed>& held) {
  const bool in_parts = !std::holds_alternative<ActorId>(id);
  const bool none = held.empty() && !std::holds_alternative<GangId>(id);
  if (none || held.size() > units || (!in_parts && held.size() != units))
    return error(Code::invalid,
                 fmt::format("{} of {} units cannot be adopted", held.size(), units));
  for (size_t i = 0; i < held.size(); ++i) {
    const bool in_order = in_parts ? i == 0 || held[i - 1].unit < held[i].unit : held[i].unit == i;
    if (!in_order || held[i].unit == UINT32_MAX)
      return error(Code::invalid, "units to adopt are not ascending");
  }
  return ok();
}

}  // namespace

Result<Scheduler::Impl::Application> Scheduler::Impl::read(const LeaseRequested& event) const {
  TROUPE_TRY(const PoolIndex pool, read_pool(event.pool));
  TROUPE_CHECK(check_demand(event.demand));
  TROUPE_CHECK(check_affinity(event.affinity));
  if (event.slots == 0 || event.slots > slots_max)
    return error(Code::invalid, fmt::format("{} slots: 1 to {} possible", event.slots, slots_max));
  return Application{.id = event.lease,
                     .job = event.job,
                     .standing = {.priority = event.priority},
                     .needs = {.pool = pool,
                               .bundles = {event.demand},
                               .affinity = event.affinity,
                               .strategy = event.strategy},
                     .units = event.slots};
}

Result<Scheduler::Impl::Application> Scheduler::Impl::read(const ActorRequested& event) const {
  TROUPE_TRY(const PoolIndex pool, read_pool(event.pool));
  TROUPE_CHECK(check_demand(event.demand));
  TROUPE_CHECK(check_affinity(event.affinity));
  return Application{.id = event.actor,
                     .job = event.job,
                     .standing = {.priority = event.priority, .restart = event.restart},
                     .needs = {.pool = pool,
                               .bundles = {event.demand},
                               .affinity = event.affinity,
                               .strategy = event.strategy}};
}

Result<Scheduler::Impl::Application> Scheduler::Impl::read(const GangRequested& event) const {
  TROUPE_TRY(const PoolIndex pool, read_pool(event.pool));
  TROUPE_CHECK(check_affinity(event.affinity));
  if (event.affinity.within) return error(Code::invalid, "a gang lies within no other");
  if (event.bundles.empty() || event.bundles.size() > bundles_max)
    return error(Code::invalid,
                 fmt::format("{} bundles: 1 to {} possible", event.bundles.size(), bundles_max));
  for (const ResourceVector& bundle : event.bundles) TROUPE_CHECK(check_demand(bundle));
  if (event.run_time && *event.run_time < Duration::zero())
    return error(Code::invalid, "an expected run time is not negative");
  if (event.weight == 0 || event.weight > UINT16_MAX)
    return error(Code::invalid, "a weight is 1 to 65,535");
  return Application{.id = event.gang,
                     .job = event.job,
                     .standing = {.priority = event.priority,
                                  .weight = static_cast<uint16_t>(event.weight),
                                  .restart = event.restart,
                                  .run_time = event.run_time.value_or(Standing::unknown_run_time)},
                     .needs = {.pool = pool,
                               .gang = true,
                               .bundles = event.bundles,
                               .affinity = event.affinity,
                               .gang_strategy = event.strategy},
                     .units = static_cast<uint32_t>(event.bundles.size()),
                     .can_pause = event.can_pause};
}

// ---- Requests ---------------------------------------------------------------------------------

const Request* Scheduler::Impl::find(const RequestId& id) const {
  return requests[id.index()].find(raw_of(id));
}
Request* Scheduler::Impl::find(const RequestId& id) {
  return requests[id.index()].find(raw_of(id));
}

Request* Scheduler::Impl::admit(Application application) {
  Request& request = *requests[application.id.index()].add(raw_of(application.id));
  request.kind = static_cast<Request::Kind>(application.id.index());
  request.standing = application.standing;
  request.standing.since = request.standing.arrived = now;
  for (const ResourceVector& bundle : application.needs.bundles)
    request.standing.gpu_milli += bundle.gpu_milli;
  if (!application.needs.gang) request.standing.gpu_milli *= application.units;
  request.can_pause = application.can_pause;
  request.shape = queue.intern(std::move(application.needs));
  request.standing.joined_at = virtual_times[request.shape->needs->pool];
  request.seniority = {policy_of(request).rank(request.standing, now), next_arrival_number++};
  ++requests_in[request.shape->needs->pool];
  Job& job = jobs[application.job];
  job.id = application.job;
  job.add(&request);
  join(&request);
  return &request;
}

template <class Requested>
void Scheduler::Impl::submit(const Requested& event) {
  const RequestId id = request_id(event);
  if (find(id) != nullptr) return;  // The first one counts.
  auto application = read(event);
  Status known = application ? check_within(application->needs) : application.error();
  if (known && request_count() >= options.requests_max)
    known = error(Code::exhausted, fmt::format("{} requests wait or run, and requests_max is {}",
                                               request_count(), options.requests_max));
  if (!known) {
    decisions.emplace_back(Rejected{subject_of(id), known.error()});
    return;
  }
  const uint32_t units = application->units;
  wait(admit(std::move(*application)), units);
}

void Scheduler::Impl::wait(Request* request, uint32_t units) {
  queue.push(request, units);
  Shape& shape = *request->shape;
  const Instant due = request->standing.arrived + options.patience;
  shape.due_at = std::min(shape.due_at, due);
  if (shape.state == Shape::State::infeasible) tell_infeasible(request);
  if (shape.state == Shape::State::blocked)
    next_claim = std::min(next_claim, std::max(due, claims_rest_until));
}

void Scheduler::Impl::stop_waiting(Request* request) {
  if (request->units_pending == 0) return;
  queue.pop(request, request->units_pending);
  if (keeper != request->shape) return;
  next_claim = now;  // It may have been the one that nodes are kept for.
  if (!claim_of(*keeper).overdue) release_kept();
}

void Scheduler::Impl::finish(Request* request) {
  stop_waiting(request);
  to_tell.erase(request->seniority);
  if (request->is_gang()) return close(request);
  while (!request->held().empty()) unhold(request, request->held().size() - 1);
  leave(request);
  forget(request);
}

void Scheduler::Impl::forget(Request* request) {
  Job& job = *request->job;
  job.remove(request);
  if (job.first == nullptr) jobs.erase(job.id);
  --requests_in[request->shape->needs->pool];
  queue.release(request->shape);
  if (request->review != Instant::max())
    reviews.erase({request->review, request->seniority.arrival_number});
  requests[static_cast<size_t>(request->kind)].remove(request);
}

// The node's ledger has given the devices; the caller reindexes the node.
void Scheduler::Impl::hold(Request* request, uint32_t unit, NodeIndex index, Devices devices) {
  if (!request->holding) {
    request->holding = std::make_unique<Request::Holding>();
    if (request->is_lease()) expire_later(request);
  }
  std::vector<Request::Unit>& units = request->holding->units;
  Request::Unit held{.number = unit, .node = index, .devices = std::move(devices)};
  if (request->is_gang())
    held.bundle = cluster.add_bundle(request->demand_of(unit), held.devices,
                                     {GangId{request->raw}, unit, index});
  const auto place = std::upper_bound(
      units.begin(), units.end(), unit,
      [](uint32_t number, const Request::Unit& other) { return number < other.number; });
  units.insert(place, std::move(held));
  cluster[index].add_unit_of(request);
  take_share(*request, unit);
  if (!request->standing.runs) set_running(request, true);
}

void Scheduler::Impl::unhold(Request* request, size_t position) {
  std::vector<Request::Unit>& units = request->holding->units;
  const Request::Unit unit = std::move(units[position]);
  units.erase(units.begin() + static_cast<ptrdiff_t>(position));
  Node& node = cluster[unit.node];
  if (request->is_gang()) cluster.remove_bundle(unit.bundle);
  if (unit.lends_cpu) node.ledger.reclaim_cpu(request->demand_of(unit.number).cpu_milli);
  node.ledger.give_back(request->demand_of(unit.number), unit.devices);
  node.remove_unit_of(request);
  cluster.reindex(unit.node);
  freed.push_back(unit.node);
  ++claims_version;
  if (!request->is_lease()) ++version;
  give_share_back(*request, unit.number);
  if (units.empty()) {
    if (request->is_lease())
      expiries.erase({request->holding->expires_at, request->seniority.arrival_number});
    set_running(request, false);
    request->holding.reset();
  }
  if (unit.node >= bundle_bit) bundle_emptied(unit.node);
}

Placed Scheduler::Impl::placed(const Request::Unit& unit) const {
  const Node& node = cluster[unit.node];
  return {.unit = unit.number, .node = node.id, .devices = unit.devices, .bundle = node.bundle()};
}

std::vector<Placed> Scheduler::Impl::placed(const Request& request) const {
  std::vector<Placed> units;
  units.reserve(request.held().size());
  for (const Request::Unit& unit : request.held()) units.push_back(placed(unit));
  return units;
}

void Scheduler::Impl::revoke(const Request& request, RevokeReason reason,
                             std::vector<Placed> units) {
  decisions.emplace_back(Revoked{request.id(), reason, std::move(units)});
}

// ---- Events -----------------------------------------------------------------------------------

void Scheduler::Impl::on(const NodeAdded& event) {
  Status checked = check_total(event.total);
  if (checked && !strictly_ascending(event.labels))
    checked = error(Code::invalid, "labels are not ascending or not distinct");
  if (!checked) {
    decisions.emplace_back(Rejected{event.node, checked.error()});
    return;
  }
  auto index = cluster.find(event.node);
  if (index && cluster[*index].ledger.total() == event.total) {
    cluster[*index].labels = event.labels;
    cluster[*index].draining = event.closed;
    cluster.reindex(*index);
    for (const auto& [holder, arrival_number, units] : cluster[*index].holders)
      if (holder->is_gang()) wake_members(*holder);
  } else {
    if (index) remove_node(*index);
    index = cluster.add(event.node, event.total, event.labels);
    cluster[*index].draining = event.closed;
    cluster.reindex(*index);
  }
  freed.push_back(*index);
  caps_freed.insert(Pools::cluster);
  nodes_changed();
}

void Scheduler::Impl::nodes_changed() {
  ++version;
  ++nodes_version;
  pools.set_total(cluster.total());
  recheck_feasibility();
}

void Scheduler::Impl::on(const NodeRemoved& event) {
  const auto index = cluster.find(event.node);
  if (index) remove_node(*index);
}

void Scheduler::Impl::remove_node(NodeIndex index) {
  if (cluster[index].kept_for != nullptr) release_kept();
  lose_holders(index);
  cluster.remove(index);
  nodes_changed();
}

void Scheduler::Impl::lose_holders(NodeIndex index) {
  const auto holders = cluster[index].holders;  // By arrival. Changes as units go.
  for (const auto& [request, arrival_number, units] : holders) {
    // A gang that was released goes with the last that lay in it.
    if (!cluster[index].is_held_by(request)) continue;
    if (request->is_gang()) {
      std::vector<NodeIndex> bundles;
      for (const Request::Unit& unit : request->held())
        if (unit.node == index) bundles.push_back(unit.bundle);
      for (const NodeIndex bundle : bundles) lose_holders(bundle);
      if (!cluster[index].is_held_by(request)) continue;
    }
    std::vector<Placed> lost;
    for (size_t i = request->held().size(); i-- > 0;) {
      if (request->held()[i].node != index) continue;
      lost.push_back(placed(request->held()[i]));
      unhold(request, i);
    }
    std::reverse(lost.begin(), lost.end());
    const auto count = static_cast<uint32_t>(lost.size());
    revoke(*request, RevokeReason::node_lost, std::move(lost));
    if (request->is_lease()) {
      wait(request, count);
    } else if (request->held().empty()) {
      finish(request);
    }
  }
}

void Scheduler::Impl::on(const NodeDraining& event) {
  const auto index = cluster.find(event.node);
  if (!index || cluster[*index].draining) return;
  Node& node = cluster[*index];
  if (node.kept_for != nullptr) release_kept();
  node.draining = true;
  cluster.reindex(*index);
  recall_leases(*index);
  nodes_changed();
}

void Scheduler::Impl::recall_leases(NodeIndex index) {
  for (const auto& [holder, arrival_number, units] : cluster[index].holders) {
    std::vector<Placed> recalled;
    for (const Request::Unit& unit : holder->held()) {
      if (unit.node != index) continue;
      if (holder->is_gang()) recall_leases(unit.bundle);
      if (holder->is_lease()) recalled.push_back(placed(unit));
    }
    if (!recalled.empty()) revoke(*holder, RevokeReason::node_draining, std::move(recalled));
  }
}

void Scheduler::Impl::on(const LeaseRequested& event) {
  submit(event);
}
void Scheduler::Impl::on(const ActorRequested& event) {
  submit(event);
}
void Scheduler::Impl::on(const GangRequested& event) {
  submit(event);
}

void Scheduler::Impl::on(const LeaseReturned& event) {
  Request* request = find(event.lease);
  if (request == nullptr) return;
  if (event.slots.empty()) return finish(request);
  for (const uint32_t slot : event.slots)
    if (const auto position = position_of(*request, slot)) unhold(request, *position);
  if (request->held().empty() && request->units_pending == 0) finish(request);
}

void Scheduler::Impl::on(const SlotLost& event) {
  Request* request = find(event.lease);
  if (request == nullptr) return;
  if (const auto position = position_of(*request, event.slot)) {
    unhold(request, *position);
    wait(request, 1);
  }
}

void Scheduler::Impl::on(const SlotWaits& event) {
  Request* request = find(event.lease);
  if (request == nullptr) return;
  const auto position = position_of(*request, event.slot);
  if (!position) return;
  Request::Unit& unit = request->holding->units[*position];
  if (std::exchange(unit.lends_cpu, event.waiting) == event.waiting) return;
  NodeLedger& ledger = cluster[unit.node].ledger;
  const int64_t cpu_milli = request->demand_of(unit.number).cpu_milli;
  if (event.waiting) {
    ledger.lend_cpu(cpu_milli);
    freed.push_back(unit.node);
  } else {
    ledger.reclaim_cpu(cpu_milli);
  }
  cluster.reindex(unit.node);
}

void Scheduler::Impl::on(const LeaseRenewed& event) {
  Request* request = find(event.lease);
  if (request == nullptr || request->held().empty()) return;
  expiries.erase({request->holding->expires_at, request->seniority.arrival_number});
  expire_later(request);
}

void Scheduler::Impl::expire_later(Request* lease) {
  lease->holding->expires_at = now + options.lease_term;
  // Nearly always after all others.
  expiries.emplace_hint(expiries.end(),
                        std::pair{lease->holding->expires_at, lease->seniority.arrival_number},
                        lease);
}

void Scheduler::Impl::on(const ActorReleased& event) {
  if (Request* request = find(event.actor)) finish(request);
}
void Scheduler::Impl::on(const GangYielded& event) {
  Request* gang = find(event.gang);
  if (gang == nullptr || !gang->is_leaving || !gang->is_open()) return;
  for (const Request::Unit& unit : gang->held()) {
    if (cluster[unit.bundle].holders.empty()) continue;
    decisions.emplace_back(
        Rejected{event.gang, error(Code::conflict, "what lies in its bundles has not ended")});
    return;
  }
  const auto units = static_cast<uint32_t>(gang->held().size());
  if (event.progress) {
    const Duration stint = gang->standing.stint(now);
    gang->standing.progress -= stint - std::clamp(*event.progress, Duration::zero(), stint);
  }
  while (!gang->held().empty()) unhold(gang, gang->held().size() - 1);
  wait(gang, units);
}
void Scheduler::Impl::on(const GangReleased& event) {
  if (Request* request = find(event.gang)) finish(request);
}

void Scheduler::Impl::on(const Adopted& event) {
  const RequestId id =
      std::visit([](const auto& requested) { return request_id(requested); }, event.request);
  if (find(id) != nullptr && std::holds_alternative<ActorId>(id)) return;
  auto application =
      std::visit([this](const auto& requested) { return read(requested); }, event.request);
  const Status adopted =
      application ? adopt(std::move(*application), event.held) : Status{application.error()};
  if (!adopted) decisions.emplace_back(Rejected{subject_of(id), adopted.error()});
}

Status Scheduler::Impl::adopt(Application application, const std::vector<Placed>& held) {
  TROUPE_CHECK(check_held(application.id, application.units, held));
  TROUPE_CHECK(check_within(application.needs));
  if (application.needs.gang) return adopt_gang(std::move(application), held);
  const std::vector<ResourceVector>& bundles = application.needs.bundles;
  Request* request = find(application.id);  // A lease, of which this is a further part.
  if (request != nullptr &&
      (held.front().unit < request->next_slot || request->shape->needs->bundles != bundles))
    return error(Code::invalid, "a further part of a lease has other numbers and the same demand");
  const ResourceVector& demand = bundles.front();
  std::vector<NodeIndex> places;
  for (const Placed& unit : held) {
    const auto index = place_of(application.needs, unit);
    if (index && cluster[*index].ledger.take_exactly(demand, unit.devices)) {
      places.push_back(*index);
      continue;
    }
    for (size_t i = places.size(); i-- > 0;)
      cluster[places[i]].ledger.give_back(demand, held[i].devices);
    return error(Code::conflict,
                 fmt::format("unit {} is not free on node {}", unit.unit, unit.node.to_string()));
  }
  if (request == nullptr) request = admit(std::move(application));
  for (size_t i = 0; i < held.size(); ++i) {
    hold(request, held[i].unit, places[i], held[i].devices);
    cluster.reindex(places[i]);
  }
  request->next_slot = held.back().unit + 1;
  return ok();
}

void Scheduler::Impl::on(const Cancelled& event) {
  Request* request = find(event.id);
  if (request == nullptr) return;
  if (request->held().empty()) return finish(request);
  stop_waiting(request);
}

void Scheduler::Impl::on(const JobRemoved& event) {
  const auto it = jobs.find(event.job);
  if (it == jobs.end()) return;
  std::vector<Request*> all;  // finish() takes the list apart.
  for (Request* request = it->second.first; request != nullptr; request = request->job_after)
    all.push_back(request);
  for (Request* request : all) {
    if (!request->held().empty()) revoke(*request, RevokeReason::job_removed, placed(*request));
    finish(request);
  }
}

void Scheduler::Impl::expire_leases() {
  while (!expiries.empty() && expiries.begin()->first.first <= now) {
    Request* request = expiries.begin()->second;
    revoke(*request, RevokeReason::lease_expired, placed(*request));
    finish(request);
  }
}

// ---- The public face --------------------------------------------------------------------------

Scheduler::Scheduler(SchedulerOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}
Scheduler::Scheduler(Scheduler&&) noexcept = default;
Scheduler& Scheduler::operator=(Scheduler&&) noexcept = default;
Scheduler::~Scheduler() = default;

Decisions Scheduler::apply(const Event& event, Instant now) {
  TROUPE_ASSERT(now >= impl_->now, "time never goes back");
  impl_->now = now;
  impl_->expire_leases();
  impl_->review_due();
  std::visit([this](const auto& typed) { impl_->on(typed); }, event);
  impl_->settle();
  return std::exchange(impl_->decisions, {});
}

std::optional<Instant> Scheduler::next_deadline() const {
  std::optional<Instant> next;
  if (!impl_->expiries.empty()) next = impl_->expiries.begin()->first.first;
  if (!impl_->reviews.empty() && (!next || impl_->reviews.begin()->first.first < *next))
    next = impl_->reviews.begin()->first.first;
  if (impl_->queue.has_blocked() && impl_->next_claim != Instant::max() &&
      (!next || impl_->next_claim < *next))
    next = std::max(impl_->next_claim, impl_->now);
  return next;
}

}  // namespace troupe::scheduler
