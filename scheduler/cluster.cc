#include "scheduler/cluster.h"

#include <algorithm>

namespace troupe::scheduler {
namespace {

// Moves a key of an ordered set without a fresh allocation.
template <class Set>
void move_key(Set& set, const typename Set::key_type& from, typename Set::key_type to) {
  auto node = set.extract(from);
  node.value() = std::move(to);
  set.insert(std::move(node));
}

}  // namespace

bool Node::eligible(const Affinity& affinity) const {
  if (!alive || draining) return false;
  if (affinity.within || bundle_of) {
    const bool same = affinity.within && bundle_of && affinity.within->gang == bundle_of->gang;
    return same && affinity.within->bundle.value_or(bundle_of->bundle) == bundle_of->bundle;
  }
  if (affinity.node && *affinity.node != id) return false;
  return std::all_of(affinity.selectors.begin(), affinity.selectors.end(),
                     [&](const LabelSelector& selector) { return matches(selector, labels); });
}

bool Node::preferred_by(const Affinity& affinity) const {
  if (affinity.preferred_node && *affinity.preferred_node != id) return false;
  return std::all_of(affinity.preferred.begin(), affinity.preferred.end(),
                     [&](const LabelSelector& selector) { return matches(selector, labels); });
}

NodeIndex Cluster::add(NodeId id, const ResourceVector& total, const std::vector<Label>& labels) {
  NodeIndex index = 0;
  if (vacant_.empty()) {
    index = static_cast<NodeIndex>(nodes_.size());
    nodes_.emplace_back(id, total, labels);
  } else {
    index = vacant_.back();
    vacant_.pop_back();
    nodes_[index] = Node(id, total, labels);
  }
  by_id_.emplace(id, index);
  reindex(index);
  return index;
}

void Cluster::remove(NodeIndex index) {
  Node& node = nodes_[index];
  TROUPE_ASSERT(node.holders.empty(), "a node is removed after what it held");
  node.alive = false;
  reindex(index);
  by_id_.erase(node.id);
  vacant_.push_back(index);
}

std::optional<NodeIndex> Cluster::find(const NodeId& id) const {
  const auto it = by_id_.find(id);
  if (it == by_id_.end()) return std::nullopt;
  return it->second;
}

NodeIndex Cluster::add_bundle(const ResourceVector& demand, const Devices& devices,
                              Node::BundleOf of) {
  Node bundle(nodes_[of.host].id, demand, devices, of);
  if (vacant_bundles_.empty()) {
    bundles_.push_back(std::move(bundle));
    return bundle_bit + static_cast<NodeIndex>(bundles_.size() - 1);
  }
  const NodeIndex index = vacant_bundles_.back();
  vacant_bundles_.pop_back();
  bundles_[index - bundle_bit] = std::move(bundle);
  return index;
}

void Cluster::remove_bundle(NodeIndex index) {
  Node& bundle = (*this)[index];
  TROUPE_ASSERT(bundle.holders.empty(), "a bundle is removed after what it held");
  bundle.alive = false;
  vacant_bundles_.push_back(index);
}

void Cluster::reindex(NodeIndex index) {
  if (index >= bundle_bit) return;
  Node& node = nodes_[index];
  const NodeLedger& ledger = node.ledger;
  const bool wanted = node.alive && !node.draining;
  const int64_t gpu_class = ledger.total().gpu_milli == 0 ? no_gpus : ledger.whole_gpus_free();
  const int64_t cpu_milli = ledger.available().cpu_milli;
  const int64_t partial_milli = ledger.largest_partial_milli();
  const PackKey old_room{node.gpu_class_, node.cpu_milli_, index};
  const PackKey new_room{gpu_class, cpu_milli, index};

  if (node.indexed_ && wanted) {
    if (old_room != new_room) move_key(by_room_, old_room, new_room);
    if (node.load_ != node.units) move_key(by_load_, {node.load_, index}, {node.units, index});
  } else if (node.indexed_) {
    by_room_.erase(old_room);
    by_load_.erase({node.load_, index});
  } else if (wanted) {
    by_room_.insert(new_room);
    by_load_.insert({node.units, index});
  }
  if (node.indexed_ && node.partial_milli_ > 0 && (!wanted || node.partial_milli_ != partial_milli))
    by_partial_.erase({node.partial_milli_, index});
  if (wanted && partial_milli > 0) by_partial_.insert({partial_milli, index});

  node.indexed_ = wanted;
  node.gpu_class_ = gpu_class;
  node.cpu_milli_ = cpu_milli;
  node.partial_milli_ = partial_milli;
  node.load_ = node.units;
}

}  // namespace troupe::scheduler
