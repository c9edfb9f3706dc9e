// What RocksDB is given to stand on: the directory's lock, its logger, faulty files. Private to
// this folder.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "metadata/rocks_store.h"

namespace rocksdb {
class Env;
class Logger;
}  // namespace rocksdb

namespace troupe {

// Held: no other process, nor another store of this one, uses the directory. The kernel lets go of
// it when the process dies, however it dies.
class DirectoryLock {
 public:
  // Errors: conflict (held by another; names its process), not_found, denied, exhausted.
  static Result<DirectoryLock> acquire(const std::filesystem::path& directory);
  DirectoryLock(DirectoryLock&& other) noexcept : file_(std::exchange(other.file_, -1)) {}
  DirectoryLock& operator=(DirectoryLock&&) = delete;
  ~DirectoryLock();

 private:
  explicit DirectoryLock(int file) : file_(file) {}
  int file_;
};

// "open /a/b: No space left on device", with the code that says what the caller may do.
Error disk_error(std::string_view doing, const std::filesystem::path& path, int number);

// Whether `bytes` more can be written there, by the disk's free space and by this process's limit
// of a file's size. Errors: exhausted.
Status check_room(const std::filesystem::path& directory, uint64_t bytes);

// Makes the directory (0700) and its parents, and makes its own name durable.
Status make_private_directory(const std::filesystem::path& directory);

// What RocksDB said of the last log file that it could not read: its Status does not name the file.
// Thread-safe.
class DamagedLog {
 public:
  void set(std::string text);
  std::string get() const;

 private:
  mutable std::mutex mutex_;
  std::string text_;
};

// Sends RocksDB's warnings and errors to our log, so that it keeps no log files of its own.
std::shared_ptr<rocksdb::Logger> make_rocks_logger(std::shared_ptr<DamagedLog> damaged);

// The real files, with faults before their appends and syncs.
std::unique_ptr<rocksdb::Env> make_faulty_env(std::shared_ptr<DiskFaults> faults);

}  // namespace troupe
