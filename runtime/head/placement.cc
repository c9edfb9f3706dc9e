#include "head/placement.h"

#include <algorithm>
#include <type_traits>

#include "base/log.h"

namespace troupe::head {

using scheduler::ResourceVector;

namespace {
// The head ends leases by itself (Leases::expire): what a lease held is free only once its
// processes have stopped, which the scheduler does not see.
constexpr Duration lease_term = std::chrono::hours(24 * 365);
}  // namespace

Result<ResourceVector> to_resources(const std::vector<protocol::ResourceAmount>& amounts) {
  std::vector<protocol::ResourceAmount> sorted = amounts;
  std::sort(sorted.begin(), sorted.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  ResourceVector out;
  for (size_t i = 0; i < sorted.size(); ++i) {
    const auto& [name, milli] = sorted[i];
    if (name.empty() || name.size() > 256) {
      return error(Code::invalid, "a resource's name has 1 to 256 bytes");
    }
    if (i > 0 && sorted[i - 1].name == name) {
      return error(Code::invalid, "resource " + name + " is named twice");
    }
    if (milli < 0) return error(Code::invalid, "an amount of " + name + " is negative");
    if (name == "cpu") {
      out.cpu_milli = milli;
    } else if (name == "memory") {
      out.memory_mib = milli / 1000 + (milli % 1000 != 0 ? 1 : 0);
    } else if (name == "gpu") {
      out.gpu_milli = milli;
    } else if (milli > 0) {
      out.custom.push_back({name, milli});
    }
  }
  return out;
}

std::vector<protocol::ResourceAmount> to_amounts(const ResourceVector& resources) {
  std::vector<protocol::ResourceAmount> out{{"cpu", resources.cpu_milli},
                                            {"memory", resources.memory_mib * 1000},
                                            {"gpu", resources.gpu_milli}};
  for (const auto& [name, milli] : resources.custom) out.push_back({name, milli});
  return out;
}

scheduler::Devices shares_of(const std::vector<uint32_t>& devices,
                             const scheduler::ResourceVector& demand) {
  const int64_t each = std::min(demand.gpu_milli, scheduler::whole_gpu_milli);
  scheduler::Devices shares;
  for (const uint32_t device : devices) shares.push_back({device, each});
  return shares;
}

Placement::Placement(transport::Environment environment)
    : environment_(environment),
      scheduler_(scheduler::SchedulerOptions{
          .policy = nullptr, .lease_term = lease_term, .hash_seed = environment.random.next()}) {}

Placement::~Placement() {
  stop();
}

void Placement::stop() {
  stopped_ = true;
  environment_.clock.cancel(std::exchange(timer_, 0));
}

// A decision's listener may bring up further events: they are taken in once it is done.
void Placement::apply(const scheduler::Event& event) {
  queue_.push_back(event);
  if (applying_) return;
  applying_ = true;
  while (!queue_.empty()) {
    const auto events = std::exchange(queue_, {});
    for (const scheduler::Event& next : events) {
      const auto decisions = scheduler_.apply(next, environment_.clock.now());
      for (const scheduler::Decision& decision : decisions) dispatch(decision);
    }
  }
  applying_ = false;
  arm();
}

bool Placement::adopt(scheduler::Adopted adopted) {
  bool taken = true;
  const auto decisions =
      scheduler_.apply(scheduler::Event{std::move(adopted)}, environment_.clock.now());
  for (const scheduler::Decision& decision : decisions) {
    if (std::holds_alternative<scheduler::Rejected>(decision)) taken = false;
    dispatch(decision);
  }
  arm();
  return taken;
}

std::string Placement::why(const scheduler::RequestId& request) const {
  return scheduler_.explain(request).text;
}

void Placement::dispatch(const scheduler::Decision& decision) {
  if (const auto* placed = std::get_if<scheduler::ActorPlaced>(&decision)) {
    actors_->actor_placed(*placed);
  } else if (const auto* granted = std::get_if<scheduler::LeaseGranted>(&decision)) {
    leases_->lease_granted(*granted);
  } else if (const auto* gang = std::get_if<scheduler::GangPlaced>(&decision)) {
    gangs_->gang_placed(*gang);
  } else if (const auto* revoked = std::get_if<scheduler::Revoked>(&decision)) {
    if (const auto* lease = std::get_if<LeaseId>(&revoked->id)) {
      leases_->lease_revoked(*lease, *revoked);
    } else if (const auto* gang = std::get_if<scheduler::GangId>(&revoked->id)) {
      gangs_->gang_revoked(*gang, *revoked);
    }  // An actor's end with its node comes through membership.
  } else if (const auto* rejected = std::get_if<scheduler::Rejected>(&decision)) {
    log::warning("schedule_rejected",
                 {{"id", scheduler::to_string(rejected->id)}, {"why", rejected->error}});
  }
}

void Placement::arm() {
  if (stopped_) return;
  environment_.clock.cancel(std::exchange(timer_, 0));
  const auto deadline = scheduler_.next_deadline();
  if (!deadline) return;
  timer_ = environment_.clock.call_at(*deadline, [this] {
    timer_ = 0;
    apply(scheduler::TimePassed{});
  });
}

void Placement::node_registered(const protocol::RegisterNode& node) {
  add_node(node, true);
}

void Placement::add_node(const protocol::RegisterNode& node, bool closed) {
  auto total = to_resources(node.total);
  if (!total) {
    log::error("node_resources_invalid", {{"node", node.address.node}, {"why", total.error()}});
    return;
  }
  scheduler::NodeAdded added{node.address.node, std::move(*total), {}};
  for (const auto& [name, value] : node.labels) added.labels.push_back({name, value});
  std::sort(added.labels.begin(), added.labels.end());
  added.closed = closed;
  apply(added);
}

void Placement::node_draining(const protocol::NodeInfo& node) {
  const NodeId id = node.address.node;
  if (node.draining) {
    if (draining_.insert(id).second) apply(scheduler::NodeDraining{id});
  } else if (draining_.erase(id) > 0) {
    protocol::RegisterNode again;
    again.address = node.address;
    again.total = node.total;
    again.labels = node.labels;
    add_node(again, false);
  }
}

void Placement::node_lost(NodeId node, const std::string&) {
  draining_.erase(node);
  apply(scheduler::NodeRemoved{node});
}

}  // namespace troupe::head
