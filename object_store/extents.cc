// The part of the object table that knows of extents.
#include <fmt/format.h>

#include <algorithm>

#include "object_store/object_table.h"

namespace troupe::object_store {

uint64_t ObjectTable::Segment::reserved_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [offset, block] : reserved) bytes += block.size_bytes;
  return bytes;
}

Result<ObjectTable::Segment*> ObjectTable::own_segment(Caller caller, SegmentId id) {
  TROUPE_CHECK(check_attached(caller));
  const auto found = segments_.find(id);
  if (found == segments_.end() || found->second.producer != caller) {
    return error(Code::denied, fmt::format("segment {} is not process {}'s", id.number,
                                           caller.process.to_string()));
  }
  return &found->second;
}

uint64_t ObjectTable::segment_used_bytes(Caller caller) const {
  const auto id = segment_of(caller);
  return id ? segments_.at(*id).allocator.used_bytes() : 0;
}

Result<Block> ObjectTable::reserve(Caller caller, uint64_t size_bytes) {
  TROUPE_CHECK(check_attached(caller));
  uint32_t handle = 0;
  TROUPE_TRY(Block extent, place(caller, {.size_bytes = size_bytes}, handle));
  extent.size_bytes = block_bytes(size_bytes);
  segments_.at(extent.segment)
      .reserved.emplace(extent.offset_bytes,
                        BlockAllocator::Block{handle, extent.offset_bytes, extent.size_bytes});
  return extent;
}

Status ObjectTable::seal_reserved(Caller caller, SegmentId segment_id, const SealedObject& sealed,
                                  Instant now) {
  TROUPE_TRY(Segment* const segment, own_segment(caller, segment_id));
  if (sealed.object.is_nil() || sealed.owner.is_nil() ||
      sealed.offset_bytes % block_alignment_bytes != 0 || sealed.size_bytes > capacity_bytes_) {
    return error(Code::invalid, "a sealed object needs an id, an owner and a place");
  }
  const auto earlier = objects_.find(sealed.object);
  if (earlier != objects_.end() &&
      (!earlier->second.sealed || earlier->second.owner != sealed.owner ||
       earlier->second.producer.job != caller.job)) {
    return error(Code::conflict,
                 fmt::format("object {} exists already", sealed.object.to_string()));
  }
  auto extent = segment->reserved.upper_bound(sealed.offset_bytes);
  const uint64_t size_bytes = block_bytes(sealed.size_bytes);
  const auto holds = [&](const BlockAllocator::Block& block) {
    return size_bytes <= block.size_bytes &&
           sealed.offset_bytes - block.offset_bytes <= block.size_bytes - size_bytes;
  };
  if (extent == segment->reserved.begin() || !holds((--extent)->second)) {
    return error(Code::denied, fmt::format("object {} does not lie in an extent of process {}",
                                           sealed.object.to_string(), caller.process.to_string()));
  }
  const auto pieces =
      segment->allocator.carve(extent->second.handle, sealed.offset_bytes, size_bytes);
  segment->reserved.erase(extent);
  for (const auto& rest : {pieces.before, pieces.behind}) {
    if (rest) segment->reserved.emplace(rest->offset_bytes, *rest);
  }
  if (earlier != objects_.end()) {
    used_bytes_ -= pieces.range.size_bytes;
    segment->allocator.free(pieces.range.handle);
    TROUPE_CHECK(adopt(sealed.owner, sealed.object));
    if (sealed.pinned) TROUPE_CHECK(pin(caller, sealed.object));
    if (on_freed_) on_freed_();
    return ok();
  }
  const auto made = objects_.emplace(
      sealed.object, Object{.producer = caller,
                            .owner = sealed.owner,
                            .block = {segment_id, sealed.offset_bytes, sealed.size_bytes},
                            .handle = pieces.range.handle,
                            .sealed = true,
                            .created = now});
  record_of(sealed.owner).owned.insert(sealed.object);
  if (sealed.pinned) return pin(caller, sealed.object);
  update_idle(*made.first);
  return ok();
}

Status ObjectTable::give_back(Caller caller, SegmentId segment_id, uint64_t offset_bytes,
                              uint64_t size_bytes) {
  TROUPE_TRY(Segment* const segment, own_segment(caller, segment_id));
  const uint64_t end = segment->allocator.size_bytes();
  free_reserved(*segment, offset_bytes, size_bytes > end ? end : offset_bytes + size_bytes);
  if (std::exchange(freed_, false) && on_freed_) on_freed_();
  return ok();
}

void ObjectTable::free_reserved(Segment& segment, uint64_t first, uint64_t end) {
  const auto begin = segment.reserved.lower_bound(first);
  auto extent = begin;
  for (; extent != segment.reserved.end() && extent->first < end; ++extent) {
    used_bytes_ -= extent->second.size_bytes;
    segment.allocator.free(extent->second.handle);
    freed_ = true;
  }
  segment.reserved.erase(begin, extent);
}

}  // namespace troupe::object_store
