// Places blocks in a range of bytes: pure arithmetic, it never touches the memory.
//
// A segregated fit (as TLSF: Masmano et al., "TLSF: a new dynamic memory allocator for real-time
// systems", 2004) with eight size classes a power of two. In a class the block freed last goes out
// first, because its pages are mapped and its lines still in the cache. Neighbours coalesce at
// once. The part that was never handed out lies above touched_bytes() and is used last, because a
// page's first touch costs many times its copy.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

namespace troupe::object_store {

inline constexpr uint64_t block_alignment_bytes = 64;

// A block's share of a segment, at least one alignment. `size_bytes` must be at most 2^62.
constexpr uint64_t block_bytes(uint64_t size_bytes) {
  const uint64_t size = size_bytes == 0 ? 1 : size_bytes;
  return (size + block_alignment_bytes - 1) / block_alignment_bytes * block_alignment_bytes;
}

class BlockAllocator {
 public:
  struct Block {
    uint32_t handle = 0;  // For free().
    uint64_t offset_bytes = 0;
    uint64_t size_bytes = 0;  // block_bytes(what was asked).
  };

  explicit BlockAllocator(uint64_t size_bytes);

  // Nothing if no free range is large enough, or touched_bytes() would pass `touched_bytes_max`.
  std::optional<Block> allocate(uint64_t size_bytes, uint64_t touched_bytes_max = UINT64_MAX);
  // Whether allocate() would succeed.
  bool can_fit(uint64_t size_bytes, uint64_t touched_bytes_max = UINT64_MAX) const;
  void free(uint32_t handle);
  // Cuts a live block into live ones: the range, which lies in it and is given in whole alignments,
  // and what is before and behind it, if anything.
  struct Pieces {
    std::optional<Block> before, behind;
    Block range;
  };
  Pieces carve(uint32_t handle, uint64_t offset_bytes, uint64_t size_bytes);

  uint64_t size_bytes() const { return size_bytes_; }
  // Exactly the sum of the live blocks.
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t blocks() const { return blocks_; }
  // One past the highest byte ever handed out: what the segment costs in memory.
  uint64_t touched_bytes() const { return touched_bytes_; }
  bool empty() const { return blocks_ == 0; }
  // Checks every invariant, for tests: ranges tile [0, touched), no two free neighbours, each free
  // range in its class's list.
  bool consistent() const;

 private:
  static constexpr uint32_t none = UINT32_MAX;
  static constexpr uint32_t classes_per_octave = 8;
  static constexpr uint32_t class_count = 64 * classes_per_octave;

  // A range of bytes, free or live. All lie in one list by address; the free ones also in their
  // class's list, the hottest in front.
  struct Range {
    uint64_t offset_bytes = 0;
    uint64_t size_bytes = 0;
    uint32_t below = none, above = none;
    uint32_t hotter = none, colder = none;
    bool live = false;
  };

  static uint32_t class_of(uint64_t size_bytes);
  bool is_free(uint32_t index) const { return index != none && !ranges_[index].live; }
  uint32_t find(uint64_t size_bytes, uint32_t probes) const;
  uint32_t first_class_from(uint32_t size_class) const;
  uint64_t growth(uint64_t size_bytes) const;
  bool may_grow(uint64_t size_bytes, uint64_t touched_bytes_max) const;
  uint32_t grow(uint64_t size_bytes);
  // What is above `size_bytes` becomes a range of its own, as live as the first, in no list.
  uint32_t cut(uint32_t index, uint64_t size_bytes);
  void split(uint32_t index, uint64_t size_bytes);
  void absorb_above(uint32_t index);
  uint32_t new_range(Range range);
  void push_free(uint32_t index);
  void take_free(uint32_t index);

  uint64_t size_bytes_;
  uint64_t used_bytes_ = 0;
  uint64_t blocks_ = 0;
  uint64_t touched_bytes_ = 0;
  uint32_t top_ = none;  // The range with the highest address.
  std::vector<Range> ranges_;
  std::vector<uint32_t> unused_;  // Slots of ranges_.
  std::array<uint32_t, class_count> free_lists_;
  std::array<uint64_t, class_count / 64> free_bits_{};  // Which lists hold something.
};

}  // namespace troupe::object_store
