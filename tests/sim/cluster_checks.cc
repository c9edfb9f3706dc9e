#include "tests/sim/cluster_checks.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace troupe::sim {

using protocol::FrameKind;
using protocol::Method;

namespace {

int64_t cpu_of(const std::vector<protocol::ResourceAmount>& demand) {
  for (const auto& [name, milli] : demand) {
    if (name == "cpu") return milli;
  }
  return 0;
}

}  // namespace

ClusterChecks::ClusterChecks(Simulation& simulation, int64_t cpu_milli)
    : simulation_(simulation), cpu_milli_(cpu_milli) {
  simulation.network().add_tap([this](const SentFrame& sent) { see(sent); });
}

void ClusterChecks::violation(std::string what) {
  const double seconds =
      std::chrono::duration<double>(simulation_.clock().now().time_since_epoch()).count();
  violations_.push_back(fmt::format("at {:.6f} s: {}", seconds, what));
  simulation_.record("violation: " + what);
  if (std::getenv("TROUPE_HISTORY") != nullptr)
    std::fprintf(stderr, "%s\n", violations_.back().c_str());
}

bool ClusterChecks::is_past(const SimHost& head) const {
  return leader_ && *leader_ != head.name();
}

void ClusterChecks::process_began(const std::shared_ptr<SimProcess>& process) {
  processes_[process->id()] = process;
}

void ClusterChecks::process_ended(SimProcess& process) {
  simulation_.record(
      fmt::format("ended {} {}", process.id().short_string(), process.exit_reason()));
  leased_.erase(process.id());
  processes_.erase(process.id());
  changed_ = true;
}

void ClusterChecks::call_ran(SimProcess& process, const protocol::Invoke& call) {
  ++calls_run_;
  changed_ = true;
  simulation_.record(fmt::format("ran {} in {} incarnation {}", call.method,
                                 process.id().short_string(), call.incarnation));
  const bool may_run_again = !call.arguments.empty() &&
                             as_text(call.arguments[0].inline_value).ends_with(sim::may_run_again);
  if (!ran_.insert(call.task).second && !may_run_again) {
    violation(fmt::format("call {} of {} ran twice", call.task.short_string(), call.method));
  }
  if (call.actor.is_nil() && call.job != process.job()) {
    violation("a slot runs a task of another job");
  }
}

void ClusterChecks::see(const SentFrame& sent) {
  const protocol::FrameHeader& header = sent.frame.header;
  const bool from_head = sent.from.identity().role == transport::Role::head;
  const bool to_head = sent.to.identity().role == transport::Role::head;
  if (header.kind == FrameKind::request && to_head) {
    if (header.method != Method::request_lease && header.method != Method::renew_lease &&
        header.method != Method::get_placement_group) {
      return;
    }
    asked_[{sent.connection, sent.from.name(), header.call}] = header.method;
    if (header.method != Method::request_lease) return;
    if (auto request = protocol::decode<protocol::RequestLease>(sent.frame.body)) {
      demand_[request->lease] = cpu_of(request->demand);
    }
  } else if (header.kind == FrameKind::request && from_head) {
    changed_ = true;
    if (header.method != Method::stop_slots) return;
    if (auto stop = protocol::decode<protocol::StopSlots>(sent.frame.body)) stopped(*stop);
  } else if (header.kind == FrameKind::reply && from_head) {
    const auto asked = asked_.find({sent.connection, sent.to.name(), header.call});
    if (asked == asked_.end()) return;
    const Method method = asked->second;
    asked_.erase(asked);
    if (header.error.code != 0) return;
    if (method == Method::get_placement_group) {
      if (auto group = protocol::decode<protocol::PlacementGroupInfo>(sent.frame.body))
        told(*group);
      return;
    }
    if (is_past(sent.from)) return;
    if (auto grant = protocol::decode<protocol::LeaseGranted>(sent.frame.body)) granted(*grant);
  } else {
    changed_ = true;
  }
}

void ClusterChecks::granted(const protocol::LeaseGranted& grant) {
  ++leases_granted_;
  changed_ = true;
  for (const protocol::Slot& slot : grant.slots) {
    const ProcessId process = slot.address.process;
    simulation_.record(
        fmt::format("lease {} has slot {}", grant.lease.short_string(), process.short_string()));
    if (!processes_.contains(process)) continue;  // It died, and the head does not know yet.
    const auto [entry, fresh] = leased_.try_emplace(process, grant.lease);
    if (fresh || entry->second == grant.lease) continue;
    violation(fmt::format("slot {} is granted to lease {} while lease {} has it",
                          process.short_string(), grant.lease.short_string(),
                          entry->second.short_string()));
    entry->second = grant.lease;
  }
}

// From here on the head takes it back; its resources are free once the worker has answered.
void ClusterChecks::stopped(const protocol::StopSlots& stop) {
  simulation_.record(fmt::format("lease {} stops {} slots", stop.lease.short_string(),
                                 stop.processes.empty() ? "its" : "some"));
  std::erase_if(leased_, [&](const auto& entry) {
    if (entry.second != stop.lease) return false;
    const auto& named = stop.processes;
    return named.empty() || std::find(named.begin(), named.end(), entry.first) != named.end();
  });
}

void ClusterChecks::told(const protocol::PlacementGroupInfo& group) {
  if (group.state != "placed") {
    if (!group.places.empty()) violation("a group that is not placed has places");
    return;
  }
  changed_ = true;
  const std::string name = "placement group " + group.spec.group.short_string();
  std::set<NodeId> nodes;
  for (const auto& place : group.places) nodes.insert(place.node);
  if (group.places.size() != group.spec.bundles.size() || nodes.contains(NodeId{})) {
    violation(name + " is granted in part");
  }
  const bool spread = group.spec.strategy == "strict_spread";
  if ((spread && nodes.size() != group.places.size()) ||
      (group.spec.strategy == "strict_pack" && nodes.size() != 1)) {
    violation(name + " does not lie as " + group.spec.strategy + " demands");
  }
  const auto [known, fresh] = grants_.try_emplace({group.spec.group, group.grant}, group);
  if (fresh) return;
  for (size_t i = 0; i < group.places.size(); ++i) {
    if (known->second.places.at(i).node == group.places[i].node) continue;
    violation(name + " was told of in two ways under one grant");
  }
}

// Of its bundle: nothing if its lease was taken back.
int64_t ClusterChecks::held_by(const SimProcess& process) const {
  if (process.actor().incarnation != 0) return cpu_of(process.actor().spec.demand);
  const auto lease = leased_.find(process.id());
  return lease == leased_.end() ? 0 : demand_.at(lease->second);
}

void ClusterChecks::check_bundles() {
  std::map<std::pair<Grant, uint32_t>, int64_t> used;
  for (const auto& [id, process] : processes_) {
    const protocol::PlacementSpec& placement = process->placement();
    const int64_t held = placement.group.is_nil() ? 0 : held_by(*process);
    if (held == 0) continue;
    const Grant grant{placement.group, placement.grant};
    const auto known = grants_.find(grant);
    if (known == grants_.end()) continue;  // It starts before its user was told.
    const protocol::PlacementGroupInfo& group = known->second;
    if (placement.bundle == 0 || placement.bundle > group.places.size()) {
      violation("process " + id.short_string() + " is in no bundle of its group");
      continue;
    }
    ++seen_in_bundles_;
    const uint32_t bundle = placement.bundle - 1;
    if (group.places[bundle].node != process->node()) {
      violation("process " + id.short_string() + " runs beside its bundle");
    }
    const int64_t sum = used[{grant, bundle}] += held;
    if (sum <= cpu_of(group.spec.bundles[bundle].demand)) continue;
    violation(fmt::format("bundle {} of placement group {} is over-allocated: {} milli", bundle,
                          placement.group.short_string(), sum));
  }
}

void ClusterChecks::check() {
  if (!std::exchange(changed_, false)) return;
  check_bundles();
  std::map<std::pair<ActorId, uint32_t>, ProcessId> incarnations;
  std::map<ActorId, uint32_t> alone;
  std::map<NodeId, int64_t> used;
  for (const auto& [id, process] : processes_) {
    const protocol::AssignActor& actor = process->actor();
    if (actor.incarnation != 0) {
      used[process->node()] += cpu_of(actor.spec.demand);
      const auto [entry, fresh] =
          incarnations.try_emplace({actor.spec.actor, actor.incarnation}, id);
      if (!fresh) {
        violation(fmt::format("actor {} incarnation {} runs twice", actor.spec.actor.short_string(),
                              actor.incarnation));
      }
      if (actor.spec.isolation_limit_us != 0) {
        const auto [other, first] = alone.try_emplace(actor.spec.actor, actor.incarnation);
        if (!first) {
          violation(fmt::format("actor {} runs in incarnations {} and {} at once",
                                actor.spec.actor.short_string(), other->second, actor.incarnation));
        }
      }
    } else if (const auto lease = leased_.find(id); lease != leased_.end()) {
      used[process->node()] += demand_[lease->second];
    }
  }
  for (const auto& [node, milli] : used) {
    if (milli <= cpu_milli_) continue;
    violation(
        fmt::format("node {} runs {} milli of its {}", node.short_string(), milli, cpu_milli_));
  }
}

}  // namespace troupe::sim
