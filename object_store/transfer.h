// An object's way between nodes, in chunks: what to ask for, and how to check what comes. No
// sockets and no waiting. Functions are thread-safe, classes are not.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace troupe::object_store {

// Measured, as the number of connections: bench/objects/README.md.
inline constexpr uint64_t transfer_chunk_bytes = uint64_t{4} << 20;

// XXH3, 64 bits: guards against damage on the way, not against an enemy (TLS does that).
uint64_t chunk_checksum(BytesView data);

struct Chunk {
  uint64_t index = 0;
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;
  bool operator==(const Chunk&) const = default;
};

// How an object is cut: whole chunks and a shorter last one. An empty object has none.
class ChunkPlan {
 public:
  // Errors: invalid (chunk_bytes is 0).
  static Result<ChunkPlan> make(uint64_t object_bytes, uint64_t chunk_bytes = transfer_chunk_bytes);

  uint64_t object_bytes() const { return object_bytes_; }
  uint64_t count() const { return count_; }
  uint64_t chunk_bytes() const { return chunk_bytes_; }
  // Errors: invalid (no such chunk).
  Result<Chunk> at(uint64_t index) const;

 private:
  ChunkPlan(uint64_t object_bytes, uint64_t chunk_bytes);

  uint64_t object_bytes_;
  uint64_t chunk_bytes_;
  uint64_t count_;
};

// Sender's side: what travels of a chunk.
inline constexpr const char* chunk_codec = "lz4";
struct PackedChunk {
  uint64_t checksum = 0;  // Of the raw bytes.
  BytesView raw;
  std::shared_ptr<const Bytes> compressed;  // Null: the raw bytes travel.
};
// Reads the chunk through `view`, and compresses it if that is wanted and a sample of it says that
// it pays. Takes milliseconds. Errors: those of `view`.
Result<PackedChunk> pack_chunk(const std::function<Result<BytesView>()>& view, bool compress);
// Receiver's side: puts what came into `target`, unless it lies there already, and checks it. Takes
// milliseconds. Errors: invalid (a codec or a size that is not the chunk's), data_loss (damaged).
Status unpack_chunk(std::string_view codec, uint64_t checksum, BytesView came,
                    std::span<uint8_t> target);

// Receiver's side: which chunks have come, and which are to be asked for next. Several may be asked
// for at once, in any order.
class ChunkLedger {
 public:
  explicit ChunkLedger(ChunkPlan plan) : plan_(plan), arrived_(plan.count()) {}

  const ChunkPlan& plan() const { return plan_; }
  // The next chunk that nobody was asked for; nothing when all are asked for.
  std::optional<Chunk> take();
  // It did not come: it is to be asked for again.
  void give_back(const Chunk& chunk);
  // False: it had come before.
  bool arrived(const Chunk& chunk);
  bool complete() const { return arrived_count_ == plan_.count(); }
  uint64_t arrived_bytes() const { return arrived_bytes_; }
  // Whether all bytes of a range have come.
  bool has(uint64_t offset_bytes, uint64_t length_bytes) const;

 private:
  ChunkPlan plan_;
  std::vector<bool> arrived_;
  std::vector<uint64_t> again_;
  uint64_t next_ = 0;
  uint64_t arrived_count_ = 0;
  uint64_t arrived_bytes_ = 0;
};

}  // namespace troupe::object_store
