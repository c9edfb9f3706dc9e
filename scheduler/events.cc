#include "scheduler/events.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

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

std::string bundle_text(const std::optional<uint32_t>& bundle) {
  return bundle ? fmt::format("/bundle {}", *bundle) : "";
}

std::string placed_text(const std::vector<Placed>& units) {
  std::string text;
  for (const Placed& unit : units)
    text += fmt::format(" {}@{}{}{}", unit.unit, unit.node.to_string(), bundle_text(unit.bundle),
                        devices_text(unit.devices));
  return text;
}

struct DecisionText {
  std::string operator()(const LeaseGranted& granted) const {
    std::string text = fmt::format(
        "granted lease {} on {}{} until {}ns:", granted.lease.to_string(), granted.node.to_string(),
        bundle_text(granted.bundle), granted.expires_at.time_since_epoch().count());
    for (const Slot& slot : granted.slots)
      text += fmt::format(" {}{}", slot.slot, devices_text(slot.devices));
    return text;
  }
  std::string operator()(const ActorPlaced& placed) const {
    return fmt::format("placed actor {} on {}{}{}", placed.actor.to_string(),
                       placed.node.to_string(), bundle_text(placed.bundle),
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

bool matches(const LabelSelector& selector, const std::vector<Label>& labels) {
  const auto found =
      std::lower_bound(labels.begin(), labels.end(), selector.key,
                       [](const Label& label, const std::string& key) { return label.key < key; });
  const bool set = found != labels.end() && found->key == selector.key;
  const bool listed =
      set && std::binary_search(selector.values.begin(), selector.values.end(), found->value);
  switch (selector.test) {
    case LabelTest::in:
      return listed;
    case LabelTest::not_in:
      return !listed;
    case LabelTest::exists:
      return set;
    case LabelTest::absent:
      return !set;
  }
  return false;
}

std::string to_string(const LabelSelector& selector) {
  switch (selector.test) {
    case LabelTest::in:
      return fmt::format("{} in ({})", selector.key, fmt::join(selector.values, ", "));
    case LabelTest::not_in:
      return fmt::format("{} not in ({})", selector.key, fmt::join(selector.values, ", "));
    case LabelTest::exists:
      return selector.key;
    case LabelTest::absent:
      return "!" + selector.key;
  }
  return "unknown";
}

std::string to_string(const RequestId& id) {
  return std::visit(IdText{}, id);
}

std::string to_string(const SubjectId& id) {
  return std::visit(IdText{}, id);
}

std::string_view gang_strategy_name(GangStrategy strategy) {
  switch (strategy) {
    case GangStrategy::pack:
      return "pack";
    case GangStrategy::spread:
      return "spread";
    case GangStrategy::strict_pack:
      return "strict_pack";
    case GangStrategy::strict_spread:
      return "strict_spread";
  }
  return "unknown";
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
    case RevokeReason::preempted:
      return "preempted";
  }
  return "unknown";
}

std::string to_string(const Decision& decision) {
  return std::visit(DecisionText{}, decision);
}

}  // namespace troupe::scheduler
