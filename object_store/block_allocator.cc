#include "object_store/block_allocator.h"

#include <algorithm>
#include <bit>

#include "base/status.h"

namespace troupe::object_store {
namespace {

// How many blocks of the wanted size class are looked at before a larger class is split.
constexpr uint32_t probes_max = 32;

}  // namespace

BlockAllocator::BlockAllocator(uint64_t size_bytes)
    : size_bytes_(size_bytes / block_alignment_bytes * block_alignment_bytes) {
  free_lists_.fill(none);
}

std::optional<BlockAllocator::Block> BlockAllocator::allocate(uint64_t size_bytes,
                                                              uint64_t touched_bytes_max) {
  if (size_bytes > size_bytes_) return std::nullopt;
  const uint64_t size = block_bytes(size_bytes);
  uint32_t index = find(size, probes_max);
  if (index == none && may_grow(size, touched_bytes_max)) {
    index = grow(size);
  } else {
    if (index == none) index = find(size, UINT32_MAX);
    if (index == none) return std::nullopt;
    take_free(index);
    if (ranges_[index].size_bytes > size) split(index, size);
  }
  ranges_[index].live = true;
  used_bytes_ += size;
  ++blocks_;
  return Block{index, ranges_[index].offset_bytes, size};
}

bool BlockAllocator::can_fit(uint64_t size_bytes, uint64_t touched_bytes_max) const {
  if (size_bytes > size_bytes_) return false;
  const uint64_t size = block_bytes(size_bytes);
  return may_grow(size, touched_bytes_max) || find(size, UINT32_MAX) != none;
}

void BlockAllocator::free(uint32_t handle) {
  TROUPE_ASSERT(handle < ranges_.size() && ranges_[handle].live, "a block was freed twice");
  uint32_t index = handle;
  ranges_[index].live = false;
  used_bytes_ -= ranges_[index].size_bytes;
  --blocks_;
  if (is_free(ranges_[index].above)) {
    take_free(ranges_[index].above);
    absorb_above(index);
  }
  if (is_free(ranges_[index].below)) {
    index = ranges_[index].below;
    take_free(index);
    absorb_above(index);
  }
  push_free(index);
}

// Sizes below 8 alignments have a class each, larger ones share: an eighth of an octave a class.
uint32_t BlockAllocator::class_of(uint64_t size_bytes) {
  const uint64_t units = size_bytes / block_alignment_bytes;
  if (units < classes_per_octave) return static_cast<uint32_t>(units);
  const auto octave = static_cast<uint32_t>(std::bit_width(units) - 1);
  return octave * classes_per_octave +
         static_cast<uint32_t>(units >> (octave - 3)) % classes_per_octave;
}

// The hottest range of the size's own class that fits, among the first `probes`; else the hottest
// of the next larger class, where every range fits. So the choice is within an eighth of the best.
uint32_t BlockAllocator::find(uint64_t size_bytes, uint32_t probes) const {
  const uint32_t own = class_of(size_bytes);
  uint32_t index = free_lists_[own];
  for (; index != none && probes > 0; index = ranges_[index].colder, --probes) {
    if (ranges_[index].size_bytes >= size_bytes) return index;
  }
  const uint32_t larger = first_class_from(own + 1);
  return larger == none ? none : free_lists_[larger];
}

uint32_t BlockAllocator::first_class_from(uint32_t size_class) const {
  for (uint32_t word = size_class / 64; word < free_bits_.size(); ++word) {
    uint64_t bits = free_bits_[word];
    if (word == size_class / 64) bits &= ~uint64_t{0} << (size_class % 64);
    if (bits != 0) return word * 64 + static_cast<uint32_t>(std::countr_zero(bits));
  }
  return none;
}

// How far the top must move for a block that starts in the free range below it, if there is one.
uint64_t BlockAllocator::growth(uint64_t size_bytes) const {
  const uint64_t below_top = is_free(top_) ? ranges_[top_].size_bytes : 0;
  return size_bytes - std::min(below_top, size_bytes);
}

bool BlockAllocator::may_grow(uint64_t size_bytes, uint64_t touched_bytes_max) const {
  const uint64_t limit = std::min(touched_bytes_max, size_bytes_);
  return touched_bytes_ <= limit && growth(size_bytes) <= limit - touched_bytes_;
}

uint32_t BlockAllocator::grow(uint64_t size_bytes) {
  const uint64_t more = growth(size_bytes);
  uint32_t index = top_;
  if (is_free(top_)) {
    take_free(top_);
    ranges_[top_].size_bytes += more;
  } else {
    index = new_range({.offset_bytes = touched_bytes_, .size_bytes = more, .below = top_});
    if (top_ != none) ranges_[top_].above = index;
    top_ = index;
  }
  touched_bytes_ += more;
  return index;
}

uint32_t BlockAllocator::cut(uint32_t index, uint64_t size_bytes) {
  const Range whole = ranges_[index];
  const uint32_t rest = new_range({.offset_bytes = whole.offset_bytes + size_bytes,
                                   .size_bytes = whole.size_bytes - size_bytes,
                                   .below = index,
                                   .above = whole.above,
                                   .live = whole.live});
  ranges_[index].size_bytes = size_bytes;
  ranges_[index].above = rest;
  if (whole.above == none) {
    top_ = rest;
  } else {
    ranges_[whole.above].below = rest;
  }
  return rest;
}

void BlockAllocator::split(uint32_t index, uint64_t size_bytes) {
  push_free(cut(index, size_bytes));
}

BlockAllocator::Pieces BlockAllocator::carve(uint32_t handle, uint64_t offset_bytes,
                                             uint64_t size_bytes) {
  const auto piece = [this](uint32_t index) {
    return Block{index, ranges_[index].offset_bytes, ranges_[index].size_bytes};
  };
  const Range whole = ranges_[handle];
  TROUPE_ASSERT(whole.live && size_bytes > 0 && offset_bytes >= whole.offset_bytes &&
                    offset_bytes + size_bytes <= whole.offset_bytes + whole.size_bytes,
                "a range to carve lies outside its block");
  Pieces pieces;
  uint32_t index = handle;
  if (offset_bytes > whole.offset_bytes) {
    index = cut(handle, offset_bytes - whole.offset_bytes);
    pieces.before = piece(handle);
    ++blocks_;
  }
  if (ranges_[index].size_bytes > size_bytes) {
    pieces.behind = piece(cut(index, size_bytes));
    ++blocks_;
  }
  pieces.range = piece(index);
  return pieces;
}

void BlockAllocator::absorb_above(uint32_t index) {
  const uint32_t above = ranges_[index].above;
  const Range gone = ranges_[above];
  ranges_[index].size_bytes += gone.size_bytes;
  ranges_[index].above = gone.above;
  if (gone.above == none) {
    top_ = index;
  } else {
    ranges_[gone.above].below = index;
  }
  unused_.push_back(above);
}

uint32_t BlockAllocator::new_range(Range range) {
  if (unused_.empty()) {
    ranges_.push_back(range);
    return static_cast<uint32_t>(ranges_.size() - 1);
  }
  const uint32_t index = unused_.back();
  unused_.pop_back();
  ranges_[index] = range;
  return index;
}

void BlockAllocator::push_free(uint32_t index) {
  const uint32_t size_class = class_of(ranges_[index].size_bytes);
  const uint32_t head = free_lists_[size_class];
  ranges_[index].hotter = none;
  ranges_[index].colder = head;
  if (head != none) ranges_[head].hotter = index;
  free_lists_[size_class] = index;
  free_bits_[size_class / 64] |= uint64_t{1} << (size_class % 64);
}

void BlockAllocator::take_free(uint32_t index) {
  const Range& range = ranges_[index];
  const uint32_t size_class = class_of(range.size_bytes);
  if (range.colder != none) ranges_[range.colder].hotter = range.hotter;
  if (range.hotter != none) {
    ranges_[range.hotter].colder = range.colder;
  } else {
    free_lists_[size_class] = range.colder;
    if (range.colder == none) free_bits_[size_class / 64] &= ~(uint64_t{1} << (size_class % 64));
  }
}

bool BlockAllocator::consistent() const {
  uint64_t end = touched_bytes_, used = 0, live = 0, free_ranges = 0;
  uint32_t above = none;
  for (uint32_t index = top_; index != none; above = index, index = ranges_[index].below) {
    const Range& range = ranges_[index];
    if (range.offset_bytes + range.size_bytes != end || range.above != above) return false;
    if (range.size_bytes == 0 || range.size_bytes % block_alignment_bytes != 0) return false;
    if (!range.live && above != none && !ranges_[above].live) return false;
    end = range.offset_bytes;
    if (range.live) {
      used += range.size_bytes;
      ++live;
    } else {
      ++free_ranges;
    }
  }
  for (uint32_t size_class = 0; size_class < class_count; ++size_class) {
    const bool marked = (free_bits_[size_class / 64] >> (size_class % 64) & 1) != 0;
    if (marked != (free_lists_[size_class] != none)) return false;
    uint32_t hotter = none;
    for (uint32_t i = free_lists_[size_class]; i != none; hotter = i, i = ranges_[i].colder) {
      const Range& range = ranges_[i];
      if (range.live || range.hotter != hotter || class_of(range.size_bytes) != size_class) {
        return false;
      }
      --free_ranges;
    }
  }
  return end == 0 && free_ranges == 0 && used == used_bytes_ && live == blocks_ &&
         touched_bytes_ <= size_bytes_;
}

}  // namespace troupe::object_store
