// The merges of a BPE vocabulary: which pairs of tokens become which token, and in what order.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace troupe::llm {

struct Merge {
  static constexpr int32_t no_rank = INT32_MAX;
  int32_t rank = no_rank;  // Lower goes first.
  int32_t id = -1;
};

// An open-addressing hash map, at most half full. Thread-safe when const.
class MergeTable {
 public:
  explicit MergeTable(size_t merges)
      : slots_(std::bit_ceil(merges * 2 + 2)), shift_(64 - std::countr_zero(slots_.size())) {}

  // Of two merges of one pair, the later one counts.
  void set(int32_t left, int32_t right, Merge merge) {
    find_slot(left, right) = {left, right, merge};
  }

  // rank == no_rank if the pair does not merge.
  Merge find(int32_t left, int32_t right) const {
    return const_cast<MergeTable*>(this)->find_slot(left, right).merge;
  }

 private:
  struct Slot {
    int32_t left = -1;
    int32_t right = -1;
    Merge merge;
  };

  Slot& find_slot(int32_t left, int32_t right) {
    const uint64_t key = static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
    size_t i = static_cast<size_t>(key * 0x9e3779b97f4a7c15U >> shift_);
    while (slots_[i].left >= 0 && (slots_[i].left != left || slots_[i].right != right)) {
      i = (i + 1) & (slots_.size() - 1);
    }
    return slots_[i];
  }

  std::vector<Slot> slots_;
  int shift_;
};

// Positions in a word take 32 bits.
constexpr size_t word_bytes_max = size_t{1} << 30;

// Replaces the byte tokens of one word by what their merges make of them: again and again the pair
// of lowest rank, the leftmost among equals. `ids` shrinks. At most word_bytes_max of them.
void merge_word(const MergeTable& merges, std::vector<int32_t>& ids);

}  // namespace troupe::llm
