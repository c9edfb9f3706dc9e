// Where tasks and actors run: resources, labels of nodes, and placement groups.
#pragma once

#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/status.h"

namespace troupe {

namespace detail {
class SessionImpl;
}

// Amounts that a task or actor holds while it runs. A task that waits (for a ref, an actor, or its
// own arguments) lends its cpu to others until it goes on, so it may wait for tasks that it
// submitted; its gpu and memory it keeps, and an actor keeps all.
struct Resources {
  double cpu = 1;
  double gpu = 0;         // A fraction shares one device; whole numbers get whole devices.
  double memory_mib = 0;  // 0: not accounted.
  // What nodes were given with --resource NAME=AMOUNT; fractions down to a thousandth.
  std::map<std::string, double> custom = {};
  bool operator==(const Resources&) const = default;
};

// A test of a node's labels (--label KEY=VALUE); see namespace label.
struct LabelSelector {
  std::string key;
  std::string test;
  std::vector<std::string> values = {};
  bool preferred = false;
  bool operator==(const LabelSelector&) const = default;

  // Preferred, not demanded: other nodes will do while no such node has room.
  LabelSelector soft() const {
    LabelSelector softer = *this;
    softer.preferred = true;
    return softer;
  }
};

namespace label {
inline LabelSelector in(std::string key, std::vector<std::string> values) {
  return {std::move(key), "in", std::move(values)};
}
inline LabelSelector equals(std::string key, std::string value) {
  return in(std::move(key), {std::move(value)});
}
inline LabelSelector exists(std::string key) {
  return {std::move(key), "exists"};
}
// The negations hold of nodes without the label, too.
inline LabelSelector not_in(std::string key, std::vector<std::string> values) {
  return {std::move(key), "not_in", std::move(values)};
}
inline LabelSelector not_equals(std::string key, std::string value) {
  return not_in(std::move(key), {std::move(value)});
}
inline LabelSelector absent(std::string key) {
  return {std::move(key), "absent"};
}
}  // namespace label

// Where a task or actor may run. Empty: anywhere, or, if what submits it was captured by its
// placement group, in that.
struct Placement {
  std::vector<LabelSelector> labels = {};
  NodeId node = {};  // Set: only there; with node_preferred, there if there is room.
  bool node_preferred = false;
  PlacementGroupId group = {};  // Then neither labels nor node.
  std::optional<uint32_t> bundle = {};
  bool outside = false;  // Anywhere, also for what a group has captured.
  bool operator==(const Placement&) const = default;

  static Placement on(NodeId node) { return {.node = node}; }
  static Placement near(NodeId node) { return {.node = node, .node_preferred = true}; }
  static Placement anywhere() { return {.outside = true}; }
};

enum class GroupStrategy : uint8_t {
  pack,           // On as few nodes as the bundles allow.
  spread,         // On different nodes where possible.
  strict_pack,    // On one node.
  strict_spread,  // Each bundle on a node of its own.
};

struct PlacementGroupOptions {
  std::vector<Resources> bundles;
  GroupStrategy strategy = GroupStrategy::pack;
  std::string name = {};  // Unique in the namespace; empty: none.
  bool detached = false;  // Lives on when its job ends.
  bool capture = false;   // What runs in it submits its tasks and actors into it.
  int priority = 0;
  std::vector<LabelSelector> labels = {};  // Of every bundle's node.
};

// Where one bundle lies.
struct BundlePlace {
  NodeId node;
  std::vector<uint32_t> devices;  // The node's numbers of its GPUs.
};

struct PlacementGroupStatus {
  std::string state;   // pending, placed, rescheduling (a node under it died).
  std::string reason;  // Why it waits.
  std::vector<BundlePlace> places;
  uint32_t grant = 0;  // How often it was granted anew.
};

// A handle of a placement group: bundles of resources that are granted whole or not at all. Copies
// name the same group; dropping it does not remove the group. Thread-safe.
class PlacementGroup {
 public:
  PlacementGroup() = default;
  PlacementGroup(std::shared_ptr<detail::SessionImpl> session, PlacementGroupId id)
      : session_(std::move(session)), id_(id) {}

  PlacementGroupId id() const { return id_; }
  // For TaskOptions and ActorOptions: into one bundle, or into any that has room.
  Placement bundle(uint32_t index) const { return {.group = id_, .bundle = index}; }
  Placement any_bundle() const { return {.group = id_}; }

  // Errors: not_found (it was removed).
  Result<PlacementGroupStatus> status() const;
  Result<bool> ready() const;
  // Blocks until it is placed. Errors: deadline_exceeded (with what it waits for), not_found.
  Result<PlacementGroupStatus> wait(
      std::chrono::nanoseconds timeout = std::chrono::hours(24 * 365)) const;
  // Its bundles' places. Errors: unavailable (it is not placed now), not_found.
  Result<std::vector<BundlePlace>> places() const;
  // Durable on return. What runs in it ends, and its resources are free once that has.
  Status remove() const { return remove_async().get(); }
  std::future<Status> remove_async() const;

 private:
  std::shared_ptr<detail::SessionImpl> session_;
  PlacementGroupId id_;
};

namespace detail {
std::future<Result<PlacementGroup>> create_group(const std::shared_ptr<SessionImpl>& session,
                                                 PlacementGroupOptions options);
Result<PlacementGroup> find_group(const std::shared_ptr<SessionImpl>& session,
                                  std::string_view name, std::string_view name_space);
NodeId node_of(const std::shared_ptr<SessionImpl>& session);
}  // namespace detail

}  // namespace troupe
