#include "llm/merge_table.h"

#include <algorithm>
#include <array>
#include <queue>
#include <tuple>

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

// A doubly linked list of tokens and a heap of the merges that they offer. A merge in the heap is
// stale when one of its tokens is not what it was.
void merge_long_word(const MergeTable& merges, std::vector<int32_t>& ids) {
  struct Node {
    int32_t id;  // -1 once merged into the one before.
    ptrdiff_t previous;
    ptrdiff_t next;
  };
  struct Offer {
    int32_t rank;
    ptrdiff_t left;
    int32_t left_id, right_id, id;
    bool operator<(const Offer& o) const { return std::tie(rank, left) > std::tie(o.rank, o.left); }
  };
  const auto size = std::ssize(ids);
  std::vector<Node> nodes;
  for (ptrdiff_t i = 0; i < size; ++i) nodes.push_back({ids[static_cast<size_t>(i)], i - 1, i + 1});
  const auto node = [&](ptrdiff_t i) -> Node& { return nodes[static_cast<size_t>(i)]; };

  std::priority_queue<Offer> offers;
  const auto offer = [&](ptrdiff_t left) {
    if (left < 0 || node(left).next == size) return;
    const int32_t left_id = node(left).id;
    const int32_t right_id = node(node(left).next).id;
    const Merge merge = merges.find(left_id, right_id);
    if (merge.rank != Merge::no_rank) offers.push({merge.rank, left, left_id, right_id, merge.id});
  };
  for (ptrdiff_t i = 0; i + 1 < size; ++i) offer(i);
  while (!offers.empty()) {
    const Offer top = offers.top();
    offers.pop();
    Node& left = node(top.left);
    if (left.id != top.left_id || left.next == size || node(left.next).id != top.right_id) continue;
    Node& right = node(left.next);
    left.id = top.id;
    right.id = -1;
    left.next = right.next;
    if (left.next != size) node(left.next).previous = top.left;
    offer(left.previous);
    offer(top.left);
  }

  ids.clear();
  for (const Node& each : nodes) {
    if (each.id >= 0) ids.push_back(each.id);
  }
}

}  // namespace

void merge_word(const MergeTable& merges, std::vector<int32_t>& ids) {
  if (ids.size() <= short_word_max) return merge_short_word(merges, ids);
  merge_long_word(merges, ids);
}

}  // namespace troupe::llm
