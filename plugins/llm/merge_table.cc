#include "llm/merge_table.h"

#include <algorithm>
#include <array>
#include <functional>
#include <queue>
#include <utility>

namespace troupe::llm {
namespace {

// Up to here scanning an array beats a heap; nearly all words are shorter.
constexpr size_t short_word_max = 64;

void merge_short_word(const MergeTable& merges, std::vector<int32_t>& ids) {
  std::array<Merge, short_word_max> pairs;  // pairs[i]: what ids[i] and ids[i + 1] become.
  size_t size = ids.size();
  for (size_t i = 0; i + 1 < size; ++i) pairs[i] = merges.find(ids[i], ids[i + 1]);
  while (size > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < size; ++i) {
      if (pairs[i].rank < pairs[best].rank) best = i;
    }
    if (pairs[best].rank == Merge::no_rank) break;
    ids[best] = pairs[best].id;
    std::move(ids.begin() + static_cast<long>(best) + 2, ids.begin() + static_cast<long>(size),
              ids.begin() + static_cast<long>(best) + 1);
    std::move(pairs.begin() + best + 1, pairs.begin() + size - 1, pairs.begin() + best);
    --size;
    if (best > 0) pairs[best - 1] = merges.find(ids[best - 1], ids[best]);
    if (best + 1 < size) pairs[best] = merges.find(ids[best], ids[best + 1]);
  }
  ids.resize(size);
}

// A doubly linked list of tokens and a heap of the merges that they offer: rank in the upper half,
// position in the lower, so that one comparison of integers orders them. An offer is stale when the
// pair at its position has another rank by now; no two pairs share one.
void merge_long_word(const MergeTable& merges, std::vector<int32_t>& ids) {
  struct Node {
    int32_t id;  // -1 once merged into the one before.
    uint32_t previous;
    uint32_t next;
  };
  constexpr uint32_t none = UINT32_MAX;
  std::vector<Node> nodes(ids.size());
  for (uint32_t i = 0; i < nodes.size(); ++i) nodes[i] = {ids[i], i - 1, i + 1};
  nodes.back().next = none;  // nodes[0].previous is none already.

  const auto merge_at = [&](uint32_t left) {
    const Node& node = nodes[left];
    return node.id < 0 || node.next == none ? Merge{} : merges.find(node.id, nodes[node.next].id);
  };
  std::vector<uint64_t> first_offers;
  const auto offer_of = [](Merge merge, uint32_t left) {
    return static_cast<uint64_t>(merge.rank) << 32 | left;
  };
  for (uint32_t i = 0; i < nodes.size(); ++i) {
    const Merge merge = merge_at(i);
    if (merge.rank != Merge::no_rank) first_offers.push_back(offer_of(merge, i));
  }
  std::priority_queue offers(std::greater<uint64_t>(), std::move(first_offers));
  const auto offer = [&](uint32_t left) {
    if (left == none) return;
    const Merge merge = merge_at(left);
    if (merge.rank != Merge::no_rank) offers.push(offer_of(merge, left));
  };
  while (!offers.empty()) {
    const auto left = static_cast<uint32_t>(offers.top());
    const auto rank = static_cast<int32_t>(offers.top() >> 32);
    offers.pop();
    const Merge merge = merge_at(left);
    if (merge.rank != rank) continue;
    Node& node = nodes[left];
    Node& right = nodes[node.next];
    node.id = merge.id;
    right.id = -1;
    node.next = right.next;
    if (node.next != none) nodes[node.next].previous = left;
    offer(node.previous);
    offer(left);
  }

  ids.clear();
  for (const Node& node : nodes) {
    if (node.id >= 0) ids.push_back(node.id);
  }
}

}  // namespace

void merge_word(const MergeTable& merges, std::vector<int32_t>& ids) {
  if (ids.size() <= short_word_max) return merge_short_word(merges, ids);
  merge_long_word(merges, ids);
}

}  // namespace troupe::llm
