// A ring of records in shared memory: one process writes, one reads. Two of them, one a direction,
// lie in one memfd that the node's worker makes. The other side may be broken or hostile: every
// number that it wrote is checked before use, and a record is copied before it is decoded.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/file_descriptor.h"
#include "base/status.h"

namespace troupe::transport {

// Positions are bytes since the beginning and only grow.
struct RingPositions {
  alignas(64) std::atomic<uint64_t> written;
  alignas(64) std::atomic<uint64_t> read;
  // The writer found the ring full: the reader rings its doorbell once it has read something.
  alignas(64) std::atomic<uint32_t> room_wanted;
  // How many of the calls in this ring the reader has begun, at most: it outlives the reader.
  std::atomic<uint64_t> begun;
};

// The first page of the pair's memory.
struct RingPairControl {
  RingPositions ring[2];                     // [0] is written by side 0.
  alignas(64) std::atomic<uint32_t> closed;  // By either side, or by the worker for a dead one.
};

inline constexpr size_t ring_page_bytes = 4096;
inline constexpr size_t ring_bytes_min = 64 << 10;
inline constexpr size_t ring_bytes_max = 64 << 20;
static_assert(sizeof(RingPairControl) <= ring_page_bytes);

// A memfd for a pair of rings of `ring_bytes` each (a power of two), sealed against shrinking and
// growing. Errors: exhausted.
Result<FileDescriptor> create_ring_file(size_t ring_bytes);

// One page of shared memory, as T at its beginning. The memory outlives the descriptor.
class SharedPage {
 public:
  // A new memfd of one page, sealed against shrinking and growing. Errors: exhausted.
  static Result<SharedPage> create(const char* name);
  // Maps the first page of a file that somebody else made. Errors: invalid (too short, or it could
  // still shrink), exhausted.
  static Result<SharedPage> open(FileDescriptor file);
  SharedPage(SharedPage&& other) noexcept;
  SharedPage& operator=(SharedPage&& other) noexcept;
  ~SharedPage();

  template <class T>
  T& as() const {
    static_assert(sizeof(T) <= ring_page_bytes);
    return *static_cast<T*>(memory_);
  }
  const FileDescriptor& file() const { return file_; }
  // For who will not hand it on: a process may have very many pages.
  void close_file() { file_.reset(); }

 private:
  SharedPage(FileDescriptor file, void* memory) : file_(std::move(file)), memory_(memory) {}
  FileDescriptor file_;
  void* memory_ = nullptr;
};

// A pair as one of its two processes maps it. Each ring is mapped twice in a row, so that no record
// is ever cut by the end.
class RingMemory {
 public:
  // Errors: invalid (not a pair of rings), exhausted.
  static Result<RingMemory> open(FileDescriptor file);
  RingMemory(RingMemory&& other) noexcept;
  RingMemory& operator=(RingMemory&&) = delete;
  ~RingMemory();

  RingPairControl& control() const { return *reinterpret_cast<RingPairControl*>(memory_); }
  uint8_t* data(int ring) const {
    return memory_ + ring_page_bytes + static_cast<size_t>(ring) * 2 * ring_bytes_;
  }
  size_t ring_bytes() const { return ring_bytes_; }

 private:
  RingMemory(uint8_t* memory, size_t ring_bytes) : memory_(memory), ring_bytes_(ring_bytes) {}
  uint8_t* memory_;
  size_t ring_bytes_;
};

// What stands before each payload.
struct RecordHeader {
  uint32_t payload_bytes = 0;
  uint16_t kind = 0;
  uint16_t more = 0;  // 1: the next record of the ring continues this one's payload.
  uint64_t call = 0;
};
static_assert(sizeof(RecordHeader) == 16);

// The writing end. One thread at a time.
class RingWriter {
 public:
  RingWriter(const RingMemory& memory, int ring);

  // Room for a payload, or null: the ring is full (or broken, see below). At most payload_max().
  uint8_t* reserve(size_t payload_bytes);
  // Publishes what was reserved. A full barrier: what is read next is read after the publication.
  void publish(RecordHeader header);
  // A payload that always fits an empty ring.
  size_t payload_max() const { return ring_bytes_ / 2; }
  // Asks for a doorbell once there is room. Call it after reserve() failed, then try again once.
  void want_room() { positions_.room_wanted.exchange(1); }
  // The reader's position makes no sense: nothing can be written any more.
  bool is_broken() const { return broken_; }

 private:
  RingPositions& positions_;
  uint8_t* const data_;
  const size_t ring_bytes_;
  uint64_t written_ = 0;
  uint64_t read_ = 0;  // As last seen.
  bool broken_ = false;
};

struct Record {
  RecordHeader header;
  BytesView payload;  // In shared memory: copy it before looking at it twice.
};

// The reading end. One thread at a time.
class RingReader {
 public:
  RingReader(const RingMemory& memory, int ring);

  // The oldest record. nullopt: there is none. Errors: invalid (the writer broke the rules).
  Result<std::optional<Record>> next();
  // Done with the record that next() gave.
  void consume();
  // Lets the writer have the room of what was consumed. True: it waits for that.
  bool release();

 private:
  RingPositions& positions_;
  const uint8_t* const data_;
  const size_t ring_bytes_;
  uint64_t read_ = 0;
  uint64_t written_ = 0;  // As last seen.
  size_t current_bytes_ = 0;
  uint64_t released_ = 0;
};

}  // namespace troupe::transport
