// Segments of shared memory (memfd): writable in the process that made one, read-only everywhere
// else, by seals that nobody can take off. An adapter: it makes system calls and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/file_descriptor.h"
#include "base/status.h"

namespace troupe::object_store {

inline constexpr uint64_t page_bytes = 4096;
// Address space is what a segment costs before it is written; 47 bits of it exist.
inline constexpr uint64_t segment_bytes_max = uint64_t{1} << 44;

// Owns a mapping of the whole of a segment.
class Mapping {
 public:
  Mapping() = default;
  Mapping(uint8_t* data, uint64_t size_bytes) : data_(data), size_bytes_(size_bytes) {}
  Mapping(Mapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_bytes_(std::exchange(other.size_bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  uint8_t* data() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  uint8_t* data_ = nullptr;
  uint64_t size_bytes_ = 0;
};

// The producer's side. Not inherited by forked children (they would be second writers), and left
// out of core dumps. Not thread-safe; the spans that it hands out may be written by any thread.
class ProducerSegment {
 public:
  // Takes address space of `size_bytes`, rounded up to pages; memory only as blocks are prepared.
  // Errors: invalid (zero or over segment_bytes_max), exhausted (descriptors, address space,
  // memory).
  static Result<ProducerSegment> create(uint64_t size_bytes);

  uint64_t size_bytes() const { return size_bytes_; }
  // What the worker and readers get. Stays owned here; may be closed by destroying the segment,
  // the memory lives on while anyone holds a descriptor or a mapping.
  int fd() const { return fd_.get(); }

  // The bytes [offset, offset + size) with memory behind each page, so that writing cannot SIGBUS.
  // Valid while the segment lives. First use of a page is slow (the kernel clears it), later ones
  // are free. Errors: invalid (outside the segment), exhausted (the machine has no memory left).
  Result<std::span<uint8_t>> prepare(uint64_t offset_bytes, uint64_t size_bytes);
  // The same bytes as they are, perhaps without memory: see populate_for_writing. Thread-safe.
  // Errors: invalid (outside the segment).
  Result<std::span<uint8_t>> bytes(uint64_t offset_bytes, uint64_t size_bytes) const;

 private:
  ProducerSegment(FileDescriptor fd, Mapping mapping, uint64_t size_bytes);

  FileDescriptor fd_;
  Mapping mapping_;
  uint64_t size_bytes_ = 0;
  // All pages below have memory. Blocks are handed out from the bottom, so one mark is enough.
  uint64_t populated_bytes_ = 0;
};

// Everybody else's side. Maps on first use, read-only; the seals keep any mapping from ever
// becoming writable. Not thread-safe; the views that it hands out may be read by any thread.
class ReaderSegment {
 public:
  // Takes over a descriptor that came from another process, and trusts nothing about it.
  // Errors: denied (not a memfd that is sealed against writing, shrinking, growing and unsealing:
  // its maker could change what was read or kill the reader by SIGBUS), invalid (bad size).
  static Result<ReaderSegment> open(FileDescriptor fd);

  uint64_t size_bytes() const { return size_bytes_; }
  int fd() const { return fd_.get(); }
  bool mapped() const { return static_cast<bool>(mapping_); }
  // What the segment costs now. More than the table's committed_bytes for it betrays a producer
  // that takes memory which it was not given.
  Result<uint64_t> memory_bytes() const;

  // The bytes [offset, offset + size), faulted in so that reading cannot SIGBUS even if the
  // producer never wrote them. Valid while the segment lives.
  // Errors: invalid (outside the segment), exhausted (address space or memory).
  Result<BytesView> view(uint64_t offset_bytes, uint64_t size_bytes);

 private:
  ReaderSegment(FileDescriptor fd, uint64_t size_bytes);
  // Whether all pages of [first, end) are marked.
  bool populated(uint64_t first, uint64_t end) const;
  void mark_populated(uint64_t first, uint64_t end);

  FileDescriptor fd_;
  Mapping mapping_;
  uint64_t size_bytes_ = 0;
  std::vector<uint64_t> populated_pages_;  // A bit a page, up to the highest page seen.
};

// Puts memory behind the whole pages that hold `bytes`, a part of a shared mapping of `fd` at
// `offset_bytes`. Thread-safe. Errors: exhausted.
Status populate_for_writing(int fd, uint64_t offset_bytes, std::span<uint8_t> bytes);

}  // namespace troupe::object_store
