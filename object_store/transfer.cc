#include "object_store/transfer.h"

#include <fmt/format.h>
#include <lz4.h>
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

// --- What travels

namespace {

// Compression pays where it leaves less than this of a chunk, judged by a sample from its middle.
constexpr double pays_below = 0.7;
constexpr size_t sample_bytes = 64 << 10;

// The compressed bytes; empty if they are no fewer than `most`.
Bytes compress_below(BytesView raw, size_t most) {
  Bytes out(most);
  const int size = LZ4_compress_default(reinterpret_cast<const char*>(raw.data()),
                                        reinterpret_cast<char*>(out.data()),
                                        static_cast<int>(raw.size()), static_cast<int>(most));
  out.resize(size > 0 ? static_cast<size_t>(size) : 0);
  return out;
}

size_t share_of(size_t size) {
  return static_cast<size_t>(static_cast<double>(size) * pays_below);
}

}  // namespace

Result<PackedChunk> pack_chunk(const std::function<Result<BytesView>()>& view, bool compress) {
  PackedChunk packed;
  TROUPE_TRY(packed.raw, view());
  packed.checksum = chunk_checksum(packed.raw);
  if (!compress || packed.raw.empty()) return packed;
  const size_t sample = std::min(sample_bytes, packed.raw.size());
  const BytesView middle = packed.raw.subspan((packed.raw.size() - sample) / 2, sample);
  if (compress_below(middle, share_of(sample)).empty()) return packed;
  Bytes out = compress_below(packed.raw, share_of(packed.raw.size()));
  if (!out.empty()) packed.compressed = std::make_shared<const Bytes>(std::move(out));
  return packed;
}

Status unpack_chunk(std::string_view codec, uint64_t checksum, BytesView came,
                    std::span<uint8_t> target) {
  if (codec == chunk_codec) {
    const int size = LZ4_decompress_safe(
        reinterpret_cast<const char*>(came.data()), reinterpret_cast<char*>(target.data()),
        static_cast<int>(came.size()), static_cast<int>(target.size()));
    if (size < 0 || static_cast<size_t>(size) != target.size()) {
      return error(Code::data_loss, "a compressed chunk was damaged on its way");
    }
  } else if (!codec.empty()) {
    return error(Code::invalid, fmt::format("a chunk in the unknown codec '{}'", codec));
  } else if (came.size() != target.size()) {
    return error(Code::invalid,
                 fmt::format("a chunk came with {} bytes; it has {}", came.size(), target.size()));
  } else if (came.data() != target.data()) {
    std::memcpy(target.data(), came.data(), came.size());
  }
  if (chunk_checksum(target) != checksum) {
    return error(Code::data_loss, "a chunk was damaged on its way");
  }
  return ok();
}

// --- ChunkLedger

std::optional<Chunk> ChunkLedger::take() {
  if (!again_.empty()) {
    const uint64_t index = again_.back();
    again_.pop_back();
    return plan_.at(index).value();
  }
  if (next_ >= plan_.count()) return std::nullopt;
  return plan_.at(next_++).value();
}

void ChunkLedger::give_back(const Chunk& chunk) {
  if (!arrived_[chunk.index]) again_.push_back(chunk.index);
}

bool ChunkLedger::arrived(const Chunk& chunk) {
  if (arrived_[chunk.index]) return false;
  arrived_[chunk.index] = true;
  ++arrived_count_;
  arrived_bytes_ += chunk.size_bytes;
  return true;
}

bool ChunkLedger::has(uint64_t offset_bytes, uint64_t length_bytes) const {
  if (length_bytes == 0) return true;
  const uint64_t last = (offset_bytes + length_bytes - 1) / plan_.chunk_bytes();
  for (uint64_t index = offset_bytes / plan_.chunk_bytes(); index <= last; ++index) {
    if (index >= arrived_.size() || !arrived_[index]) return false;
  }
  return true;
}

}  // namespace troupe::object_store
