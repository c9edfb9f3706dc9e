#include "object_store/transfer.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>

namespace troupe::object_store {

uint64_t chunk_checksum(BytesView data) {
  return XXH3_64bits(data.data(), data.size());
}

// --- ChunkPlan ---

ChunkPlan::ChunkPlan(uint64_t object_bytes, uint64_t chunk_bytes)
    : object_bytes_(object_bytes),
      chunk_bytes_(chunk_bytes),
      count_(object_bytes / chunk_bytes + (object_bytes % chunk_bytes != 0 ? 1 : 0)) {}

Result<ChunkPlan> ChunkPlan::make(uint64_t object_bytes, uint64_t chunk_bytes) {
  if (chunk_bytes == 0) return error(Code::invalid, "chunks of 0 bytes");
  return ChunkPlan{object_bytes, chunk_bytes};
}

Result<Chunk> ChunkPlan::at(uint64_t index) const {
  if (index >= count_) {
    return error(Code::invalid, fmt::format("chunk {} of {}", index, count_));
  }
  const uint64_t offset = index * chunk_bytes_;
  return Chunk{index, offset, std::min(chunk_bytes_, object_bytes_ - offset)};
}

Result<OutgoingChunk> cut_chunk(const ChunkPlan& plan, BytesView object, uint64_t index) {
  if (object.size() != plan.object_bytes()) {
    return error(Code::invalid, fmt::format("an object of {} bytes under a plan for {}",
                                            object.size(), plan.object_bytes()));
  }
  TROUPE_TRY(const Chunk chunk, plan.at(index));
  const BytesView data = object.subspan(chunk.offset_bytes, chunk.size_bytes);
  return OutgoingChunk{chunk, chunk_checksum(data), data};
}

// --- ChunkAssembler ---

ChunkAssembler::ChunkAssembler(ChunkPlan plan, std::span<uint8_t> target)
    : plan_(plan), target_(target), arrived_(plan.count()) {}

Result<ChunkAssembler> ChunkAssembler::make(ChunkPlan plan, std::span<uint8_t> target) {
  if (target.size() != plan.object_bytes()) {
    return error(Code::invalid, fmt::format("a block of {} bytes under a plan for {}",
                                            target.size(), plan.object_bytes()));
  }
  return ChunkAssembler{plan, target};
}

Result<Arrival> ChunkAssembler::accept(uint64_t index, uint64_t checksum, BytesView data) {
  TROUPE_TRY(const Chunk chunk, plan_.at(index));
  if (data.size() != chunk.size_bytes) {
    return error(Code::invalid, fmt::format("chunk {} came with {} bytes; it has {}", index,
                                            data.size(), chunk.size_bytes));
  }
  if (arrived_[index]) return Arrival::duplicate;
  if (chunk_checksum(data) != checksum) {
    return error(Code::data_loss, fmt::format("chunk {} was damaged on its way", index));
  }
  std::memcpy(target_.data() + chunk.offset_bytes, data.data(), data.size());
  arrived_[index] = true;
  ++arrived_count_;
  arrived_bytes_ += chunk.size_bytes;
  return Arrival::fresh;
}

std::optional<Chunk> ChunkAssembler::next_missing(uint64_t from) const {
  if (from >= arrived_.size()) return std::nullopt;
  const auto begin = arrived_.begin() + static_cast<std::ptrdiff_t>(from);
  const auto found = std::find(begin, arrived_.end(), false);
  if (found == arrived_.end()) return std::nullopt;
  return plan_.at(static_cast<uint64_t>(found - arrived_.begin())).value();
}

}  // namespace troupe::object_store
