#include "scheduler/events.h"

#include <fmt/format.h>

namespace troupe::scheduler {
namespace {

struct IdText {
  std::string operator()(const LeaseId& id) const { return "lease " + id.to_string(); }
  std::string operator()(const ActorId& id) const { return "actor " + id.to_string(); }
  std::string operator()(const GangId& id) const { return "gang " + id.to_string(); }
  std::string operator()(const NodeId& id) const { return "node " + id.to_string(); }
};

std::string devices_text(const Devices& devices) {
  if (devices.empty()) return "";
  std::string text = "[";
  for (const DeviceShare& share : devices) {
    if (text.size() > 1) text += ' ';
    text += fmt::format("{}", share.device);
    if (share.milli != whole_gpu_milli) text += ":" + milli_to_string(share.milli);
  }
  return text + "]";
}

std::string placed_text(const std::vector<Placed>& units) {
  std::string text;
  for (const Placed& unit : units)
    text += fmt::format(" {}@{}{}", unit.unit, unit.node.to_string(), devices_text(unit.devices));
  return text;
}

struct DecisionText {
  std::string operator()(const LeaseGranted& granted) const {
    std::string text =
        fmt::format("granted lease {} on {} until {}ns:", granted.lease.to_string(),
                    granted.node.to_string(), granted.expires_at.time_since_epoch().count());
    for (const Slot& slot : granted.slots)
      text += fmt::format(" {}{}", slot.slot, devices_text(slot.devices));
    return text;
  }
  std::string operator()(const ActorPlaced& placed) const {
    return fmt::format("placed actor {} on {}{}", placed.actor.to_string(), placed.node.to_string(),
                       devices_text(placed.devices));
  }
  std::string operator()(const GangPlaced& placed) const {
    return fmt::format("placed gang {}:{}", placed.gang.to_string(), placed_text(placed.bundles));
  }
  std::string operator()(const Revoked& revoked) const {
    return fmt::format("revoked {} ({}):{}", to_string(revoked.id), reason_name(revoked.reason),
                       placed_text(revoked.units));
  }
  std::string operator()(const Infeasible& infeasible) const {
    return fmt::format("infeasible {}: {}", to_string(infeasible.id), infeasible.why);
  }
  std::string operator()(const Rejected& rejected) const {
    return fmt::format("rejected {}: {}", to_string(rejected.id), rejected.error.to_string());
  }
};

}  // namespace

std::string to_string(const RequestId& id) {
  return std::visit(IdText{}, id);
}

std::string to_string(const SubjectId& id) {
  return std::visit(IdText{}, id);
}

std::string_view reason_name(RevokeReason reason) {
  switch (reason) {
    case RevokeReason::node_lost:
      return "node_lost";
    case RevokeReason::node_draining:
      return "node_draining";
    case RevokeReason::lease_expired:
      return "lease_expired";
    case RevokeReason::job_removed:
      return "job_removed";
  }
  return "unknown";
}

std::string to_string(const Decision& decision) {
  return std::visit(DecisionText{}, decision);
}

}  // namespace troupe::scheduler
