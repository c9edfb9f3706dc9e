// Files of spilled objects: one file a batch, each object on pages of its own, so that the disk's
// blocks can be given back one object at a time. An adapter: it makes system calls and nothing
// else. Every function blocks on the disk. Thread-safe; which place is in use its caller knows.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace troupe::object_store {

// Where an object lies on disk.
struct SpillPlace {
  uint64_t file = 0;
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;
  uint64_t checksum = 0;
};

class SpillFolder {
 public:
  // Makes the folder (0700), and removes what an earlier worker left in it: objects do not outlive
  // their worker. Only files named as these are touched.
  // Errors: invalid (it cannot be made, or is not ours to write: says why).
  static Result<SpillFolder> open(std::string path);

  const std::string& path() const { return path_; }
  // Writes all of them into a new file, whose number was never used, or leaves nothing behind.
  // Errors: exhausted (the disk is full or a limit is reached), internal (the disk is broken).
  Result<std::vector<SpillPlace>> write(uint64_t file, std::span<const BytesView> objects) const;
  // All of an object. Errors: data_loss (the file is damaged, gone or cannot be read), exhausted
  // (no descriptors: try again).
  Status read(const SpillPlace& place, std::span<uint8_t> out) const;
  // Gives the object's blocks back, the rest of the file stays.
  void erase(const SpillPlace& place) const;
  void remove(uint64_t file) const;
  // At the end, with all files removed.
  void remove_folder() const;

 private:
  explicit SpillFolder(std::string path) : path_(std::move(path)) {}
  std::string path_of(uint64_t file) const;

  std::string path_;
};

}  // namespace troupe::object_store
