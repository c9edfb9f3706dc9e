// The nodes, and an index that finds one with room without looking at all of them.
#pragma once

#include <absl/container/btree_set.h>

#include <cstdint>
#include <deque>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "scheduler/events.h"
#include "scheduler/pools.h"
#include "scheduler/resources.h"

namespace troupe::scheduler {

struct Request;
struct Shape;
// A node's place in the cluster's table, given out in the order of arrival: ties go by it. Bundles
// of placed gangs have places of their own, above bundle_bit.
using NodeIndex = uint32_t;
constexpr NodeIndex bundle_bit = NodeIndex{1} << 31;

// Look-ups by id only; nothing ever walks such a table, so the seed changes no decision.
struct SeededIdHash {
  uint64_t seed = 0;
  size_t operator()(const RawId& id) const noexcept {
    uint64_t x = (id.high ^ seed) * 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 32) ^ id.low) * 0xd6e8feb86659fd93;
    return x ^ (x >> 29);
  }
};

// A node, or a bundle of a gang, which is to what lies in it what a node is to others.
struct Node {
  struct BundleOf {
    GangId gang;
    uint32_t bundle = 0;
    NodeIndex host = 0;
  };

  Node(NodeId node, ResourceVector total, std::vector<Label> node_labels)
      : id(node), ledger(std::move(total)), labels(std::move(node_labels)) {}
  Node(NodeId node, ResourceVector total, const Devices& devices, BundleOf of)
      : id(node), ledger(std::move(total), devices), bundle_of(of) {}

  NodeId id;
  NodeLedger ledger;
  std::vector<Label> labels;
  std::optional<BundleOf> bundle_of;
  bool alive = true;
  bool draining = false;
  // Only this shape may come here, for it waited too long.
  const Shape* kept_for = nullptr;
  struct Holder {
    Request* request = nullptr;
    uint64_t arrival_number = 0;  // The request's: to look at that would be slow.
    uint32_t units = 0;
  };
  std::vector<Holder> holders;  // By arrival.
  uint32_t units = 0;

  bool is_held_by(const Request* request) const;
  void add_unit_of(Request* request);
  void remove_unit_of(const Request* request);

  bool eligible(const Affinity& affinity) const;
  // An eligible one: whether what the request prefers holds here.
  bool preferred_by(const Affinity& affinity) const;
  std::optional<uint32_t> bundle() const {
    return bundle_of ? std::optional(bundle_of->bundle) : std::nullopt;
  }
  bool open_to(const Shape* shape) const { return kept_for == nullptr || kept_for == shape; }

 private:
  friend class Cluster;
  // What the index holds.
  mutable bool indexed_ = false;
  mutable bool is_stale_ = false;
  mutable int64_t gpu_class_ = 0;
  mutable int64_t cpu_milli_ = 0;
  mutable int64_t partial_milli_ = 0;
  mutable uint32_t load_ = 0;
};

class Cluster {
 public:
  explicit Cluster(uint64_t hash_seed) : by_id_(16, SeededIdHash{hash_seed}) {}

  NodeIndex add(NodeId id, const ResourceVector& total, const std::vector<Label>& labels);
  // The node holds nothing any more.
  void remove(NodeIndex index);
  std::optional<NodeIndex> find(const NodeId& id) const;
  // The walks and searches below see nodes alone, never bundles.
  NodeIndex add_bundle(const ResourceVector& demand, const Devices& devices, Node::BundleOf of);
  void remove_bundle(NodeIndex index);
  Node& operator[](NodeIndex index) {
    return index < bundle_bit ? nodes_[index] : bundles_[index - bundle_bit];
  }
  const Node& operator[](NodeIndex index) const {
    return index < bundle_bit ? nodes_[index] : bundles_[index - bundle_bit];
  }
  // Call after every change of a node's ledger, units or draining. The index follows when it is
  // read: what comes right after another has gone often takes its place.
  void reindex(NodeIndex index) {
    if (index >= bundle_bit || nodes_[index].is_stale_) return;
    nodes_[index].is_stale_ = true;
    stale_.push_back(index);
  }

  size_t size() const { return by_id_.size(); }
  // Of all living nodes, draining or not.
  const Amounts& total() const { return total_; }
  // fn(NodeIndex, const Node&) for each living node by index; stops when it returns false.
  template <class Fn>
  void for_each(Fn&& fn) const {
    for (NodeIndex i = 0; i < nodes_.size(); ++i)
      if (nodes_[i].alive && !fn(i, nodes_[i])) return;
  }

  // The first node, in the order of the strategy, that is eligible, open to the shape, has room
  // for `demand` now, and that accept(NodeIndex, const Node&) agrees to.
  template <class Accept>
  std::optional<NodeIndex> search(const ResourceVector& demand, const Affinity& affinity,
                                  Strategy strategy, const Shape* shape, Accept&& accept) const {
    refresh();
    const auto agrees = [&](NodeIndex index) {
      const Node& node = nodes_[index];
      return node.ledger.fits(demand) && node.open_to(shape) && node.eligible(affinity) &&
             accept(index, node);
    };
    if (affinity.node) {
      const auto index = find(*affinity.node);
      if (index && agrees(*index)) return index;
      return std::nullopt;
    }
    return strategy == Strategy::spread ? search_spread(agrees) : search_pack(demand, agrees);
  }

  // fn(NodeIndex, const Node&) -> go on: nodes that take new work, for demands of at least this
  // many whole GPUs and this much CPU, those with most room first. GPU nodes come last for 0 GPUs.
  struct Floor {
    bool gpu = false;
    int64_t whole_gpus = 0;
    int64_t cpu_milli = 0;
  };
  template <class Fn>
  void for_each_roomiest(const Floor& floor, Fn&& fn) const {
    refresh();
    if (!floor.gpu && !walk_down(no_gpus, no_gpus, floor.cpu_milli, fn)) return;
    walk_down(floor.whole_gpus, gpus_per_node_max, floor.cpu_milli, fn);
  }
  // The same, those that hold least first.
  template <class Fn>
  void for_each_least_loaded(Fn&& fn) const {
    refresh();
    for (const auto& [load, index] : by_load_)
      if (!fn(index, nodes_[index])) return;
  }

 private:
  // Nodes without GPUs come first, then those with the fewest whole ones free.
  static constexpr int64_t no_gpus = -1;
  using PackKey = std::tuple<int64_t, int64_t, NodeIndex>;  // GPU class, free CPU, node.

  void refresh() const {
    for (const NodeIndex index : stale_) index_anew(index);
    stale_.clear();
  }
  void index_anew(NodeIndex index) const;

  template <class Agrees>
  std::optional<NodeIndex> search_spread(Agrees& agrees) const {
    for (const auto& [load, index] : by_load_)
      if (agrees(index)) return index;
    return std::nullopt;
  }

  template <class Agrees>
  std::optional<NodeIndex> search_pack(const ResourceVector& demand, Agrees& agrees) const {
    int64_t gpu_class = no_gpus;
    if (demand.gpu_milli > 0) {
      gpu_class = (demand.gpu_milli + whole_gpu_milli - 1) / whole_gpu_milli;
      // A fraction goes beside another one where it can.
      if (demand.gpu_milli < whole_gpu_milli)
        for (auto it = by_partial_.lower_bound({demand.gpu_milli, 0}); it != by_partial_.end();
             ++it)
          if (agrees(it->second)) return it->second;
    }
    auto it = by_room_.lower_bound({gpu_class, demand.cpu_milli, 0});
    while (it != by_room_.end()) {
      const auto& [found_class, cpu_milli, index] = *it;
      if (cpu_milli < demand.cpu_milli) {  // A further class: skip its nodes that are too full.
        it = by_room_.lower_bound({found_class, demand.cpu_milli, 0});
        continue;
      }
      if (agrees(index)) return index;
      ++it;
    }
    return std::nullopt;
  }

  // From the highest class to the lowest, in each from the most CPU down to the least wanted.
  template <class Fn>
  bool walk_down(int64_t class_min, int64_t class_max, int64_t cpu_min, Fn& fn) const {
    auto it = by_room_.lower_bound({class_max + 1, 0, 0});
    while (it != by_room_.begin()) {
      --it;
      const auto& [gpu_class, cpu_milli, index] = *it;
      if (gpu_class < class_min) break;
      if (cpu_milli < cpu_min) {
        it = by_room_.lower_bound({gpu_class, 0, 0});
        continue;
      }
      if (!fn(index, nodes_[index])) return false;
    }
    return true;
  }

  std::deque<Node> nodes_;
  std::vector<NodeIndex> vacant_;
  Amounts total_{};
  std::deque<Node> bundles_;
  std::vector<NodeIndex> vacant_bundles_;
  std::unordered_map<RawId, NodeIndex, SeededIdHash> by_id_;
  // The index, which reading brings up to date.
  mutable std::vector<NodeIndex> stale_;
  mutable absl::btree_set<PackKey> by_room_;
  mutable absl::btree_set<std::pair<int64_t, NodeIndex>> by_partial_;
  mutable absl::btree_set<std::pair<uint32_t, NodeIndex>> by_load_;
};

}  // namespace troupe::scheduler
