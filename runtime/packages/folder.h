// A folder of packages, each under its hash: files, and directories that were unpacked from one.
// What is under a hash is whole and was verified; what comes has a temporary name until then, and
// what a process that died left of that goes when the folder is opened. An adapter; every function
// blocks on the disk. Thread-safe for different packages.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "packages/archive.h"
#include "packages/file.h"

namespace troupe::security {
class Hasher;
}

namespace troupe::packages {

// What a crash of the machine may take: a cached file can be had again, a durable one cannot.
enum class Keep : uint8_t { cached, durable };

class Folder {
 public:
  // One that comes. Destroying it before finish() leaves nothing behind.
  class Incoming {
   public:
    Incoming(std::string path, std::string temporary, std::string hash, FileDescriptor file,
             Keep keep);
    ~Incoming();
    Incoming(const Incoming&) = delete;
    Incoming& operator=(const Incoming&) = delete;

    // Errors: exhausted (the disk is full), internal.
    Status append(BytesView bytes);
    uint64_t size_bytes() const { return size_bytes_; }
    // The file under its hash, on the disk if it is to be durable. Errors: data_loss (it has
    // another hash), exhausted, internal.
    Result<PackageFilePointer> finish();

   private:
    const std::string path_;
    std::string temporary_;  // Empty: it has its name.
    const std::string hash_;
    FileDescriptor file_;
    const Keep keep_;
    const std::unique_ptr<security::Hasher> hasher_;
    uint64_t size_bytes_ = 0;
  };

  struct Entry {
    std::string hash;
    bool is_unpacked = false;
    uint64_t size_bytes = 0;
    int64_t used_ns = 0;  // When it was made or touched last.
  };

  // Makes it (0700), with its parents. Errors: denied, invalid (no folder of this user), exhausted.
  static Result<Folder> open(std::string path);

  const std::string& path() const { return path_; }
  std::string file_of(const std::string& hash) const { return path_ + "/" + hash; }
  std::string unpacked_of(const std::string& hash) const { return path_ + "/" + hash + ".d"; }
  bool has_file(const std::string& hash) const;
  bool has_unpacked(const std::string& hash) const;
  // Notes that it was used now.
  void touch(const std::string& hash, bool is_unpacked) const;
  std::vector<Entry> list() const;

  // Errors: exhausted, denied, internal (the folder is gone).
  Result<std::unique_ptr<Incoming>> receive(const std::string& hash,
                                            Keep keep = Keep::cached) const;
  // Unpacks the archive of this hash, which goes. Errors: those of unpack().
  Status unpack_file(const PackageFile& archive, const ArchiveOptions& options = {}) const;
  void remove(const Entry& entry) const;

 private:
  explicit Folder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace troupe::packages
