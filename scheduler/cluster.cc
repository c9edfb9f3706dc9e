#include "scheduler/cluster.h"

#include <algorithm>

#include "scheduler/queue.h"

namespace troupe::scheduler {

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

namespace {

auto holder_place(auto& holders, uint64_t arrival_number) {
  return std::ranges::lower_bound(holders, arrival_number, {}, &Node::Holder::arrival_number);
}

}  // namespace

bool Node::is_held_by(const Request* request) const {
  return std::ranges::find(holders, request, &Holder::request) != holders.end();
}

void Node::add_unit_of(Request* request) {
  const uint64_t arrival_number = request->seniority.arrival_number;
  auto place = holder_place(holders, arrival_number);
  if (place == holders.end() || place->request != request)
    place = holders.insert(place, {request, arrival_number, 0});
  ++place->units;
  ++units;
}

void Node::remove_unit_of(const Request* request) {
  const auto place = holder_place(holders, request->seniority.arrival_number);
  if (--place->units == 0) holders.erase(place);
  --units;
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
  for (size_t r = 0; r < total_.size(); ++r) total_[r] += amounts_of(total)[r];
  reindex(index);
  return index;
}

void Cluster::remove(NodeIndex index) {
  Node& node = nodes_[index];
  TROUPE_ASSERT(node.holders.empty(), "a node is removed after what it held");
  for (size_t r = 0; r < total_.size(); ++r) total_[r] -= amounts_of(node.ledger.total())[r];
  node.alive = false;
  index_anew(index);  // At once: its place may be another's next.
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

void Cluster::index_anew(NodeIndex index) const {
  const Node& node = nodes_[index];
  const NodeLedger& ledger = node.ledger;
  const bool wanted = node.alive && !node.draining;
  const int64_t gpu_class = ledger.total().gpu_milli == 0 ? no_gpus : ledger.whole_gpus_free();
  const int64_t cpu_milli = ledger.available().cpu_milli;
  const int64_t partial_milli = ledger.largest_partial_milli();
  const PackKey old_room{node.gpu_class_, node.cpu_milli_, index};
  const PackKey new_room{gpu_class, cpu_milli, index};

  const bool same = node.indexed_ && wanted;
  if (node.indexed_ && !(same && old_room == new_room)) by_room_.erase(old_room);
  if (wanted && !(same && old_room == new_room)) by_room_.insert(new_room);
  if (node.indexed_ && !(same && node.load_ == node.units)) by_load_.erase({node.load_, index});
  if (wanted && !(same && node.load_ == node.units)) by_load_.insert({node.units, index});
  const bool same_part = same && node.partial_milli_ == partial_milli;
  if (node.indexed_ && node.partial_milli_ > 0 && !same_part)
    by_partial_.erase({node.partial_milli_, index});
  if (wanted && partial_milli > 0 && !same_part) by_partial_.insert({partial_milli, index});

  node.is_stale_ = false;
  node.indexed_ = wanted;
  node.gpu_class_ = gpu_class;
  node.cpu_milli_ = cpu_milli;
  node.partial_milli_ = partial_milli;
  node.load_ = node.units;
}

}  // namespace troupe::scheduler
