// Collective operations between the members of a group, over any channel that delivers in order.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"

namespace troupe::actor {

struct GroupSpec {
  std::string name;
  uint64_t generation = 0;
  uint32_t rank = 0;
  std::vector<ActorId> members;  // In the order of ranks.
  Duration timeout{};

  uint32_t world() const { return static_cast<uint32_t>(members.size()); }
};

// What a chunk is for: both sides compute the same tag. Tags from one rank to another grow.
struct ChunkTag {
  enum class Kind : uint8_t { barrier = 1, all_reduce = 2, broadcast = 3 };
  uint32_t operation = 0;  // Counts the group's operations, from 0.
  Kind kind = Kind::barrier;
  uint32_t piece = 0;  // Below 2^24.

  uint64_t to_number() const {
    return uint64_t{operation} << 32 | uint64_t{static_cast<uint8_t>(kind)} << 24 | piece;
  }
};
inline constexpr uint32_t pieces_max = 1u << 24;

// The bytes of a chunk, after `offset` bytes of the message that it came in.
struct ReceivedChunk {
  Bytes message;
  size_t offset = 0;

  BytesView bytes() const { return BytesView{message}.subspan(offset); }
};

// A member's way to the others. Used by one thread.
class Channel {
 public:
  virtual ~Channel() = default;
  // From now on sends and receives fail after `timeout`.
  virtual void begin_operation() = 0;
  // Takes `bytes` (copied) on their way; waits while too much is under way. Errors: unavailable (a
  // member is gone), deadline_exceeded, cancelled, conflict (the group was formed anew).
  virtual Status send(uint32_t rank, uint64_t tag, BytesView bytes) = 0;
  // Waits for the chunk. Errors: as send, and invalid (the members do different operations).
  virtual Result<ReceivedChunk> receive(uint32_t rank, uint64_t tag) = 0;
  // Waits until all that was sent has arrived.
  virtual Status flush() = 0;
};

// One member. Blocks its thread in each operation. After an error the group is useless.
class Group {
 public:
  Group(uint32_t rank, uint32_t world, std::unique_ptr<Channel> channel)
      : rank_(rank), world_(world), channel_(std::move(channel)) {}

  // Every member has called it when it returns.
  Status barrier();
  // values[i] becomes the sum of all members' values[i]: the same bits on every rank, for each
  // segment is added up along the ring in one order and then copied. Errors: invalid (sizes
  // differ).
  Status all_reduce(std::span<float> values);
  // `data` becomes root's `data`.
  Status broadcast(uint32_t root, std::span<uint8_t> data);

 private:
  Status enter();
  Status leave(Status outcome);
  Status run_barrier();
  Status run_all_reduce(std::span<float> values);
  Status run_broadcast(uint32_t root, std::span<uint8_t> data);
  uint64_t tag(ChunkTag::Kind kind, uint32_t piece) const {
    return ChunkTag{operation_, kind, piece}.to_number();
  }

  const uint32_t rank_;
  const uint32_t world_;
  std::unique_ptr<Channel> channel_;
  uint32_t operation_ = 0;
  std::optional<Error> broken_;
};

}  // namespace troupe::actor
