// This process's own segment of its node's store: extents that the worker gave it, in which it
// places blocks by itself, so that building an object asks nobody.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "object_store/block_allocator.h"
#include "object_store/segment.h"
#include "protocol/messages.h"
#include "transport/async.h"

namespace troupe::client {

// Pins of the node's store that dropped views give back, many in a message. Thread-safe; outlives
// the client, for views do.
class PinReturns : public std::enable_shared_from_this<PinReturns> {
 public:
  // `send` is called on the loop until close(), which is called there, too.
  PinReturns(Executor loop, std::function<void(std::vector<ObjectId>)> send)
      : loop_(std::move(loop)), send_(std::move(send)) {}
  void add(ObjectId object);
  void close();

 private:
  void flush();

  const Executor loop_;
  std::mutex mutex_;
  std::function<void(std::vector<ObjectId>)> send_;  // Null once closed.
  std::vector<ObjectId> pins_;
};

class LocalSegment;

// A block to build an object in. Whoever drops it last gives back what it then is: room of this
// process, or a pin of an object that the worker knows. Its bytes may be written by one thread.
class LocalBlock {
 public:
  LocalBlock(std::shared_ptr<LocalSegment> home, uint64_t extent, uint32_t handle,
             uint64_t offset_bytes, std::span<uint8_t> bytes)
      : home_(std::move(home)),
        extent_(extent),
        handle_(handle),
        offset_bytes_(offset_bytes),
        bytes_(bytes) {}
  LocalBlock(const LocalBlock&) = delete;
  LocalBlock& operator=(const LocalBlock&) = delete;
  ~LocalBlock();

  std::span<uint8_t> bytes() const { return bytes_; }
  uint64_t offset_bytes() const { return offset_bytes_; }
  const std::shared_ptr<LocalSegment>& home() const { return home_; }
  // Nobody but this process knows of it.
  bool is_private() const { return state_.load(std::memory_order_acquire) == State::room; }
  // The worker is about to be told that it is this object. `pinned`: with a pin of this process.
  void give_away(ObjectId object, bool pinned);

 private:
  enum class State : uint8_t { room, pinned, given };
  const std::shared_ptr<LocalSegment> home_;
  const uint64_t extent_;
  const uint32_t handle_;
  const uint64_t offset_bytes_;
  const std::span<uint8_t> bytes_;
  std::atomic<State> state_ = State::room;
  ObjectId object_;
};

// Thread-safe. Lives as long as any block of it.
class LocalSegment : public std::enable_shared_from_this<LocalSegment> {
 public:
  // `on_empty` is called when the first extent holds nothing any more, on whichever thread, and
  // again after a take_empty that left none such. It must not block.
  LocalSegment(object_store::ProducerSegment segment, uint64_t number,
               std::shared_ptr<PinReturns> pins, std::function<void()> on_empty)
      : segment_(std::move(segment)),
        number_(number),
        pins_(std::move(pins)),
        on_empty_(std::move(on_empty)) {}

  uint64_t number() const { return number_; }  // As the worker counts segments.
  void add_extent(uint64_t offset_bytes, uint64_t size_bytes);
  // With memory behind every page; the first use of a page takes long. Null: no extent has room.
  // Errors: exhausted (the machine has no memory left).
  Result<std::shared_ptr<LocalBlock>> allocate(uint64_t size_bytes);
  // What lies there, of an object that this process wrote. Errors: invalid (outside).
  Result<BytesView> view(uint64_t offset_bytes, uint64_t size_bytes) const;
  enum class Which { all, idle };  // idle: nothing was placed there since it was asked last.
  // Takes the extents off that hold nothing of this process's, for the worker: what of them was not
  // given away.
  std::vector<protocol::Extent> take_empty(Which which);
  bool has_empty() const;
  // Its owner is going: nothing is called any more.
  void close();

 private:
  friend class LocalBlock;
  struct Extent {
    uint64_t offset_bytes = 0;
    object_store::BlockAllocator allocator;
    uint64_t populated_bytes = 0;         // From its start.
    uint64_t live = 0;                    // Blocks, without those that were given away.
    bool used = true;                     // Since take_empty looked.
    std::vector<protocol::Extent> given;  // Away.
  };
  void free(uint64_t extent, uint32_t handle);
  // It is the worker's now: no block of this extent will lie there again. But one of a later extent
  // may, which the worker makes of it when the object has been freed or has left memory.
  void give_away(uint64_t extent, uint64_t offset_bytes, uint64_t size_bytes);
  // With the lock held.
  void one_less(Extent& extent);
  Status populate(uint64_t extent, uint64_t begin, uint64_t end);  // Of the segment.

  const object_store::ProducerSegment segment_;
  const uint64_t number_;
  const std::shared_ptr<PinReturns> pins_;
  mutable std::mutex mutex_;
  std::function<void()> on_empty_;
  bool told_empty_ = false;
  std::map<uint64_t, Extent> extents_;  // By number, in the order in which they came.
  uint64_t count_ = 0;                  // Of all that ever came.
  uint64_t last_ = 0;                   // Where there was room last.
};

}  // namespace troupe::client
