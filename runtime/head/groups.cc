#include "head/groups.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "head/selectors.h"
#include "head/waiting.h"

namespace troupe::head {

using protocol::PlacementGroupInfo;
using protocol::PlacementGroupSpec;
using scheduler::GangId;

namespace {

constexpr size_t name_bytes_max = 256;
constexpr size_t bundles_max = 4096;
constexpr size_t entries_max = 256;
constexpr size_t batch_max = 10'000;
constexpr size_t removed_max = 16'384;

// Each grant is a gang of its own: what the one before still holds is free once it has ended.
GangId gang_of(const PlacementGroupInfo& info) {
  const PlacementGroupId& id = info.spec.group;
  return GangId{RawId{id.high, id.low + 2 * uint64_t{info.grant}}};
}

std::optional<scheduler::GangStrategy> strategy_of(const std::string& name) {
  using scheduler::GangStrategy;
  if (name.empty()) return GangStrategy::pack;
  for (const auto strategy : {GangStrategy::pack, GangStrategy::spread, GangStrategy::strict_pack,
                              GangStrategy::strict_spread}) {
    if (name == scheduler::gang_strategy_name(strategy)) return strategy;
  }
  return std::nullopt;
}

scheduler::GangRequested request_of(const PlacementGroupInfo& info) {
  const PlacementGroupSpec& spec = info.spec;
  scheduler::GangRequested request;
  request.gang = gang_of(info);
  request.job = spec.job;
  for (const protocol::BundleSpec& bundle : spec.bundles) {
    if (auto demand = to_resources(bundle.demand)) request.bundles.push_back(std::move(*demand));
  }
  request.strategy = strategy_of(spec.strategy).value_or(scheduler::GangStrategy::pack);
  request.priority = spec.priority;
  request.restart = info.grant > 0;
  if (auto affinity = to_affinity(spec.selectors)) request.affinity = std::move(*affinity);
  return request;
}

bool same(const PlacementGroupSpec& a, const PlacementGroupSpec& b) {
  return a.bundles.size() == b.bundles.size() && a.strategy == b.strategy && a.name == b.name;
}

}  // namespace

Groups::Groups(transport::Environment environment, const HeadOptions& options, Journal& journal,
               Membership& membership, Placement& placement)
    : environment_(environment),
      options_(options),
      journal_(journal),
      membership_(membership),
      placement_(placement) {}

// Those that are placed wait for their nodes, which say what runs there (node_registered).
void Groups::restore(std::vector<PlacementGroupInfo> stored) {
  for (PlacementGroupInfo& info : stored) {
    const PlacementGroupId id = info.spec.group;
    Group& group = groups_[id];
    group.info = std::move(info);
    group.written = 1;  // Durable long ago.
    gangs_[gang_of(group.info)] = id;
    const PlacementGroupSpec& spec = group.info.spec;
    if (!spec.name.empty()) names_[{spec.name_space, spec.name}] = id;
    if (group.info.state == "placed") {
      placement_.adopt({request_of(group.info), {}});
    } else {
      placement_.apply(request_of(group.info));
    }
  }
}

void Groups::check_nodes() {
  std::vector<PlacementGroupId> broken;
  for (const auto& [id, group] : groups_) {
    const auto& places = group.info.places;
    const bool lost = std::any_of(places.begin(), places.end(), [&](const auto& place) {
      return membership_.is_dead(place.node);
    });
    if (lost) broken.push_back(id);
  }
  for (const PlacementGroupId id : broken) break_group(id, "its node is gone");
}

Groups::Group* Groups::look_up(PlacementGroupId id) {
  const auto found = groups_.find(id);
  return found == groups_.end() ? nullptr : &found->second;
}
const Groups::Group* Groups::look_up(PlacementGroupId id) const {
  const auto found = groups_.find(id);
  return found == groups_.end() ? nullptr : &found->second;
}

Status Groups::check(const PlacementGroupSpec& spec) const {
  if (spec.group.is_nil()) return error(Code::invalid, "a placement group needs an id");
  if (spec.name.size() > name_bytes_max || spec.name_space.size() > name_bytes_max) {
    return error(Code::invalid, "names of a placement group have at most 256 bytes");
  }
  if (spec.bundles.empty() || spec.bundles.size() > bundles_max) {
    return error(Code::invalid, fmt::format("a placement group has 1 to {} bundles, not {}",
                                            bundles_max, spec.bundles.size()));
  }
  if (!strategy_of(spec.strategy)) {
    return error(Code::invalid,
                 "strategy is pack, spread, strict_pack or strict_spread, not " + spec.strategy);
  }
  for (const protocol::BundleSpec& bundle : spec.bundles) {
    if (bundle.demand.size() > entries_max) {
      return error(Code::invalid, "a bundle has at most 256 resources");
    }
    TROUPE_TRY(const auto demand, to_resources(bundle.demand));
    if (demand == scheduler::ResourceVector{}) return error(Code::invalid, "a bundle is empty");
    TROUPE_CHECK(scheduler::check_demand(demand));
  }
  return to_affinity(spec.selectors) ? ok() : Status{to_affinity(spec.selectors).error()};
}

// Takes it in; the caller writes. `same`: of one that is known already, what to wait for.
Status Groups::begin(PlacementGroupSpec spec, Journal::Ticket& same_written) {
  TROUPE_CHECK(check(spec));
  const PlacementGroupId id = spec.group;
  if (const Group* known = look_up(id)) {  // A retry.
    if (!same(known->info.spec, spec)) {
      return error(Code::conflict, "placement group " + id.to_string() + " is another one");
    }
    same_written = std::max(same_written, known->written);
    return ok();
  }
  if (removed_.contains(id)) {
    return error(Code::conflict, "placement group " + id.to_string() + " was removed");
  }
  const Name name{spec.name_space, spec.name};
  if (!spec.name.empty()) {
    if (const auto taken = names_.find(name); taken != names_.end()) {
      return error(Code::conflict,
                   fmt::format("the name {} in namespace \"{}\" is taken by "
                               "placement group {}",
                               spec.name, spec.name_space, taken->second.to_string()));
    }
  }
  if (groups_.size() >= options_.groups_max) {
    return error(Code::exhausted,
                 fmt::format("the cluster has {} placement groups", groups_.size()));
  }
  Group& group = groups_[id];
  PlacementGroupInfo& info = group.info;
  info.spec = std::move(spec);
  info.state = "pending";
  info.created_unix_us = static_cast<uint64_t>(environment_.clock.wall_now().time_since_epoch() /
                                               std::chrono::microseconds(1));
  if (!info.spec.name.empty()) names_[name] = id;
  gangs_[gang_of(info)] = id;
  placement_.apply(request_of(info));  // Often places it at once, and the write then says so.
  return ok();
}

Async<Result<protocol::PlacementGroupResults>> Groups::create(protocol::PlacementGroupSpecs specs) {
  if (specs.items.size() > batch_max) {
    co_return error(Code::invalid, fmt::format("at most {} placement groups at once", batch_max));
  }
  TROUPE_CO_CHECK(journal_.admits());
  protocol::PlacementGroupResults results;
  Journal::Ticket ticket = 0;
  Batch batch;
  std::vector<PlacementGroupId> made;
  for (PlacementGroupSpec& spec : specs.items) {
    const PlacementGroupId id = spec.group;
    const Status begun = begin(std::move(spec), ticket);
    results.items.push_back(begun ? protocol::ErrorInfo{} : protocol::to_info(begun.error()));
    if (!begun) ticket = std::max(ticket, journal_.latest());
    const Group* group = begun ? look_up(id) : nullptr;
    if (group == nullptr || group->written != 0) continue;
    put_group(batch, group->info);
    made.push_back(id);
  }
  if (!made.empty()) {
    ticket = journal_.write(std::move(batch));
    for (const PlacementGroupId id : made) look_up(id)->written = ticket;
    log::info("placement_groups_created", {{"count", made.size()}, {"first", made.front()}});
  }
  TROUPE_CO_CHECK(co_await journal_.settled(ticket));
  co_return results;
}

void Groups::drop(PlacementGroupId id, const std::string& reason, Batch& batch) {
  const auto found = groups_.find(id);
  if (found == groups_.end()) return;
  Group group = std::move(found->second);
  const PlacementGroupSpec& spec = group.info.spec;
  if (!spec.name.empty()) names_.erase({spec.name_space, spec.name});
  const GangId gang = gang_of(group.info);
  gangs_.erase(gang);
  groups_.erase(found);
  if (removed_.insert(id).second) removed_order_.push_back(id);
  if (removed_order_.size() > removed_max) {
    removed_.erase(removed_order_.front());
    removed_order_.pop_front();
  }
  erase_group(batch, id);
  placement_.apply(scheduler::GangReleased{gang});
  for (GroupListener* listener : listeners_) listener->group_removed(id, gang, reason);
  if (group.changed) group.changed->pulse();
}

Async<Status> Groups::remove(protocol::RemovePlacementGroups request) {
  TROUPE_CO_CHECK(journal_.admits());
  Batch batch;
  for (const PlacementGroupId id : request.groups) {
    drop(id, "placement group " + id.to_string() + " was removed", batch);
  }
  // Also if it is gone already: whoever removed it may still wait for that to be durable.
  const Journal::Ticket written = journal_.write(std::move(batch));
  log::info("placement_groups_removed", {{"count", request.groups.size()}});
  co_return co_await journal_.settled(written);
}

Async<Status> Groups::settled() const {
  co_return co_await journal_.settled(journal_.latest());
}

void Groups::end_job(JobId job) {
  if (job.is_nil()) return;
  std::vector<PlacementGroupId> ending;
  for (const auto& [id, group] : groups_) {
    if (group.info.spec.job == job && !group.info.spec.detached) ending.push_back(id);
  }
  if (ending.empty()) return;
  Batch batch;
  for (const PlacementGroupId id : ending) {
    drop(id, "placement group " + id.to_string() + " ended with its job", batch);
  }
  journal_.write(std::move(batch));
}

Async<Result<PlacementGroupInfo>> Groups::get(protocol::GetPlacementGroup request,
                                              transport::CallContext context) {
  context.deadline = answer_by(environment_.clock, context.deadline);
  if (request.group.is_nil()) {
    const auto named = names_.find({request.name_space, request.name});
    if (named == names_.end()) {
      TROUPE_CO_CHECK(co_await journal_.settled(journal_.latest()));
      co_return error(Code::not_found,
                      fmt::format("no placement group is named {} in namespace \"{}\"",
                                  request.name, request.name_space));
    }
    request.group = named->second;
  }
  for (;;) {
    Group* group = look_up(request.group);
    if (group == nullptr) {
      TROUPE_CO_CHECK(co_await journal_.settled(journal_.latest()));
      co_return error(Code::not_found,
                      fmt::format("there is no placement group {}{}", request.group.to_string(),
                                  removed_.contains(request.group) ? ": it was removed" : ""));
    }
    if (!request.wait || group->info.state == "placed") {
      PlacementGroupInfo info = describe(*group);
      TROUPE_CO_CHECK(co_await journal_.settled(group->written));
      co_return info;
    }
    if (!group->changed) group->changed = std::make_shared<Event>(environment_.loop);
    const Status waited = co_await wait_for_caller(environment_.clock, group->changed, context);
    if (waited) continue;
    const Group* late = look_up(request.group);
    const std::string why = late != nullptr ? describe(*late).reason : "it was removed";
    co_return error(waited.error().code(), fmt::format("placement group {} is not placed: {}",
                                                       request.group.short_string(), why));
  }
}

PlacementGroupInfo Groups::describe(const Group& group) const {
  PlacementGroupInfo info = group.info;
  if (info.state == "placed") return info;
  const auto why = placement_.why(gang_of(info));
  info.reason += (info.reason.empty() ? "" : "; ") + why;
  return info;
}

std::vector<PlacementGroupInfo> Groups::list() const {
  std::vector<PlacementGroupInfo> infos;
  for (const auto& [id, group] : groups_) infos.push_back(describe(group));
  return infos;
}

std::vector<protocol::PendingInfo> Groups::pending(size_t items_max) const {
  std::vector<protocol::PendingInfo> out;
  for (const auto& [id, group] : groups_) {
    if (out.size() >= items_max) break;
    if (group.info.state == "placed") continue;
    out.push_back({id, "placement group", describe(group).reason});
  }
  return out;
}

Result<scheduler::Affinity> Groups::affinity_of(const protocol::PlacementSpec& placement) const {
  TROUPE_TRY(auto affinity, to_affinity(placement.selectors));
  if (!placement.node.is_nil()) {
    (placement.node_soft ? affinity.preferred_node : affinity.node) = placement.node;
  }
  if (placement.group.is_nil()) return affinity;
  if (affinity != scheduler::Affinity{}) {
    return error(Code::invalid, "what runs in a placement group chooses no node or labels itself");
  }
  const Group* group = look_up(placement.group);
  if (group == nullptr) {
    return error(Code::not_found,
                 "there is no placement group " + placement.group.to_string() + " (any more)");
  }
  const size_t bundles = group->info.spec.bundles.size();
  if (placement.bundle > bundles) {
    return error(Code::invalid,
                 fmt::format("placement group {} has bundles 0 to {}, not {}",
                             placement.group.to_string(), bundles - 1, placement.bundle - 1));
  }
  affinity.within = scheduler::WithinGang{gang_of(group->info), {}};
  if (placement.bundle > 0) affinity.within->bundle = placement.bundle - 1;
  return affinity;
}

protocol::PlacementSpec Groups::for_worker(protocol::PlacementSpec placement,
                                           uint32_t bundle) const {
  const Group* group = look_up(placement.group);
  placement.bundle = bundle;
  placement.grant = group != nullptr ? group->info.grant : 0;
  placement.capture = group != nullptr && group->info.spec.capture;
  return placement;
}

bool Groups::is_current(PlacementGroupId id, uint32_t grant) const {
  const Group* group = look_up(id);
  return group != nullptr && group->info.state == "placed" && group->info.grant == grant;
}

uint32_t Groups::grant_of(PlacementGroupId id) const {
  const Group* group = look_up(id);
  return group != nullptr ? group->info.grant : 0;
}

void Groups::write(Group& group) {
  if (group.changed) group.changed->pulse();
  if (group.written == 0) return;  // Whoever makes it writes.
  Batch batch;
  put_group(batch, group.info);
  group.written = journal_.write(std::move(batch));
}

void Groups::gang_placed(const scheduler::GangPlaced& placed) {
  const auto found = gangs_.find(placed.gang);
  if (found == gangs_.end()) return placement_.apply(scheduler::GangReleased{placed.gang});
  Group& group = groups_.at(found->second);
  group.info.state = "placed";
  group.info.reason.clear();
  group.info.places.clear();
  for (const scheduler::Placed& bundle : placed.bundles) {
    protocol::BundlePlace& place = group.info.places.emplace_back();
    place.node = bundle.node;
    for (const auto& share : bundle.devices) place.devices.push_back(share.device);
  }
  write(group);
}

void Groups::gang_revoked(GangId gang, const scheduler::Revoked& revoked) {
  const auto found = gangs_.find(gang);
  if (found == gangs_.end() || revoked.reason != scheduler::RevokeReason::node_lost) return;
  const std::string node =
      revoked.units.empty() ? "a node" : "node " + revoked.units.front().node.short_string();
  break_group(found->second, "it lost " + node);
}

void Groups::break_group(PlacementGroupId id, const std::string& reason) {
  Group* group = look_up(id);
  if (group == nullptr || group->info.state != "placed") return;
  const GangId old_gang = gang_of(group->info);
  log::warning("placement_group_broken", {{"group", id}, {"why", reason}});
  gangs_.erase(old_gang);
  ++group->info.grant;
  gangs_[gang_of(group->info)] = id;
  group->info.state = "rescheduling";
  group->info.reason = reason;
  group->info.places.clear();
  write(*group);
  placement_.apply(request_of(group->info));
  placement_.apply(scheduler::GangReleased{old_gang});
  for (GroupListener* listener : listeners_) listener->group_broken(id, old_gang, reason);
}

// Takes over the bundles that lie there. A group is whole again once all of its nodes are back.
void Groups::node_registered(const protocol::RegisterNode& node) {
  const NodeId here = node.address.node;
  std::vector<PlacementGroupId> broken;
  for (const auto& [id, group] : groups_) {
    std::vector<scheduler::Placed> missing;
    const auto request = request_of(group.info);
    for (uint32_t i = 0; i < group.info.places.size(); ++i) {
      if (group.info.places[i].node != here) continue;
      missing.push_back({i, here, shares_of(group.info.places[i].devices, request.bundles[i]), {}});
    }
    if (missing.empty()) continue;
    for (const scheduler::Placed& held : placement_.view().held(request.gang)) {
      std::erase_if(missing, [&](const auto& place) { return place.unit == held.unit; });
    }
    if (missing.empty()) continue;
    if (!placement_.adopt({request, std::move(missing)})) broken.push_back(id);
  }
  for (const PlacementGroupId id : broken) {
    break_group(id, fmt::format("node {} came back without room for it", here.short_string()));
  }
}

// Those that a new head has not taken over yet; of the others the scheduler has told already.
void Groups::node_lost(NodeId node, const std::string& reason) {
  std::vector<PlacementGroupId> broken;
  for (const auto& [id, group] : groups_) {
    const auto& places = group.info.places;
    if (std::any_of(places.begin(), places.end(), [&](const auto& p) { return p.node == node; })) {
      broken.push_back(id);
    }
  }
  for (const PlacementGroupId id : broken) break_group(id, reason);
}

}  // namespace troupe::head
