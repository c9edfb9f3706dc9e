// An object's way between nodes, in chunks: what to ask for, and how to put together what comes.
// No sockets and no waiting: the worker's transfer loop calls these. Not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace troupe::object_store {

inline constexpr uint64_t transfer_chunk_bytes = uint64_t{1} << 20;

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
  // Errors: invalid (no such chunk).
  Result<Chunk> at(uint64_t index) const;

 private:
  ChunkPlan(uint64_t object_bytes, uint64_t chunk_bytes);

  uint64_t object_bytes_;
  uint64_t chunk_bytes_;
  uint64_t count_;
};

// Sender's side: a chunk of a sealed object with its checksum.
struct OutgoingChunk {
  Chunk chunk;
  uint64_t checksum = 0;
  BytesView data;
};
// Errors: invalid (no such chunk, or `object` is not of the plan's size).
Result<OutgoingChunk> cut_chunk(const ChunkPlan& plan, BytesView object, uint64_t index);

enum class Arrival { fresh, duplicate };

// Receiver's side: writes chunks into a created block in any order, each once.
class ChunkAssembler {
 public:
  // `target` is the block of the object to build; it outlives the assembler.
  // Errors: invalid (not of the plan's size).
  static Result<ChunkAssembler> make(ChunkPlan plan, std::span<uint8_t> target);

  // Checks and copies one chunk. `data` is private memory of the caller. Nothing is written unless
  // all is well; a chunk that was refused is still missing and may be asked for again.
  // Errors: invalid (no such chunk, wrong size), data_loss (checksum).
  Result<Arrival> accept(uint64_t index, uint64_t checksum, BytesView data);

  bool complete() const { return arrived_count_ == plan_.count(); }
  uint64_t arrived_bytes() const { return arrived_bytes_; }
  // The first chunk at or after `from` that has not arrived.
  std::optional<Chunk> next_missing(uint64_t from = 0) const;

 private:
  ChunkAssembler(ChunkPlan plan, std::span<uint8_t> target);

  ChunkPlan plan_;
  std::span<uint8_t> target_;
  std::vector<bool> arrived_;
  uint64_t arrived_count_ = 0;
  uint64_t arrived_bytes_ = 0;
};

}  // namespace troupe::object_store
