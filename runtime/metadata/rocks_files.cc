#include "metadata/rocks_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <system_error>

#include "base/log.h"

#if defined(__SANITIZE_THREAD__)
// The installed librocksdb is not built for TSan, which so takes what it does inside for races.
extern "C" __attribute__((weak)) const char* __tsan_default_suppressions() {
  return "race:librocksdb.so\n";
}
#endif

namespace troupe {
namespace {

std::string errno_text(int number) {
  return std::generic_category().message(number);
}

Code code_of_errno(int number) {
  switch (number) {
    case ENOENT:
    case ENOTDIR:
      return Code::not_found;
    case EACCES:
    case EPERM:
    case EROFS:
      return Code::denied;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
      return Code::exhausted;
    default:
      return Code::unavailable;
  }
}

std::string holder_of(int file) {
  std::array<char, 32> text{};
  const ssize_t size = ::pread(file, text.data(), text.size(), 0);
  return size > 0 ? " (process " + std::string(text.data(), static_cast<size_t>(size)) + ")" : "";
}

}  // namespace

Error disk_error(std::string_view doing, const std::filesystem::path& path, int number) {
  return error(code_of_errno(number),
               fmt::format("{} {}: {}", doing, path.string(), errno_text(number)));
}

Result<DirectoryLock> DirectoryLock::acquire(const std::filesystem::path& directory) {
  // RocksDB's own LOCK is a POSIX lock: it neither excludes a second store of this process cleanly
  // nor tells a held lock from a failing disk, except by its message's text.
  const std::filesystem::path path = directory / "head.lock";
  DirectoryLock lock{::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  if (lock.file_ < 0) return disk_error("open", path, errno);
  if (::flock(lock.file_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return disk_error("lock", path, errno);
    return error(Code::conflict, fmt::format("another head{} uses the metadata in {}",
                                             holder_of(lock.file_), directory.string()));
  }
  // For the message above only, so failing to write it is no failure.
  const std::string self = std::to_string(::getpid());
  if (::ftruncate(lock.file_, 0) == 0) {
    [[maybe_unused]] const ssize_t written = ::pwrite(lock.file_, self.data(), self.size(), 0);
  }
  return lock;
}

DirectoryLock::~DirectoryLock() {
  if (file_ >= 0) ::close(file_);
}

Status check_room(const std::filesystem::path& directory, uint64_t bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < bytes) {
    return error(Code::exhausted,
                 fmt::format("this process's files may have {} bytes, too few for {}: raise its "
                             "limit (ulimit -f)",
                             limit.rlim_cur, directory.string()));
  }
  struct statvfs disk {};
  if (::statvfs(directory.c_str(), &disk) != 0) return ok();  // Then the write says why.
  const uint64_t free_bytes = uint64_t{disk.f_bavail} * disk.f_frsize;
  if (free_bytes >= bytes) return ok();
  return error(Code::exhausted,
               fmt::format("the disk of {} is full: {} MiB are free, {} MiB are needed; make room",
                           directory.string(), free_bytes >> 20, bytes >> 20));
}

Status make_private_directory(const std::filesystem::path& directory) {
  if (std::filesystem::is_directory(directory)) return ok();
  const std::filesystem::path parent = std::filesystem::absolute(directory).parent_path();
  std::error_code failed;
  std::filesystem::create_directories(parent, failed);
  if (failed) return disk_error("make directory", parent, failed.value());
  if (::mkdir(directory.c_str(), 0700) != 0) return disk_error("make directory", directory, errno);
  const int file = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return disk_error("open", parent, errno);
  const int synced = ::fsync(file) == 0 ? 0 : errno;
  ::close(file);
  if (synced != 0) return disk_error("sync", parent, synced);
  return ok();
}

void DamagedLog::set(std::string text) {
  const std::lock_guard lock{mutex_};
  text_ = std::move(text);
}

std::string DamagedLog::get() const {
  const std::lock_guard lock{mutex_};
  return text_;
}

namespace {

class RocksLogger final : public rocksdb::Logger {
 public:
  explicit RocksLogger(std::shared_ptr<DamagedLog> damaged)
      : rocksdb::Logger(rocksdb::InfoLogLevel::WARN_LEVEL), damaged_(std::move(damaged)) {}

  using rocksdb::Logger::Logv;
  void LogHeader(const char*, va_list) override {}
  void Logv(const rocksdb::InfoLogLevel level, const char* format, va_list arguments) override {
    if (level < rocksdb::InfoLogLevel::WARN_LEVEL || level >= rocksdb::InfoLogLevel::HEADER_LEVEL) {
      return;
    }
    std::array<char, 512> line{};
    std::vsnprintf(line.data(), line.size(), format, arguments);
    const std::string_view text = line.data();
    // Of a table that is opened to verify it alone, outside the database that would know its id;
    // and of checkpoints, which keep files from being deleted twice over.
    if (text.find("opened without unique ID to verify: 0.sst") != text.npos) return;
    if (text.find("] File Deletions ") != text.npos) return;
    log::warning("rocksdb_complained", {{"line", line.data()}});
    if (text.find(": dropping ") == text.npos) return;
    const size_t place = text.find("] ");  // "[db_impl_open.cc:982] /path: dropping ..."
    damaged_->set(std::string(place == text.npos ? text : text.substr(place + 2)));
  }

 private:
  const std::shared_ptr<DamagedLog> damaged_;
};

rocksdb::IOStatus fault_status(int number, const std::string& path) {
  const std::string text = path + ": " + errno_text(number);
  return number == ENOSPC ? rocksdb::IOStatus::NoSpace(text) : rocksdb::IOStatus::IOError(text);
}

class FaultyFile final : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  FaultyFile(std::unique_ptr<rocksdb::FSWritableFile> file, std::string path,
             std::shared_ptr<DiskFaults> faults)
      : FSWritableFileOwnerWrapper(std::move(file)),
        path_(std::move(path)),
        faults_(std::move(faults)) {}

  using Options = rocksdb::IOOptions;
  using Context = rocksdb::IODebugContext;

  rocksdb::IOStatus Append(const rocksdb::Slice& data, const Options& options,
                           Context* context) override {
    if (const int fault = faults_->before_append(path_, data.size())) {
      return fault_status(fault, path_);
    }
    return FSWritableFileOwnerWrapper::Append(data, options, context);
  }
  rocksdb::IOStatus Append(const rocksdb::Slice& data, const Options& options,
                           const rocksdb::DataVerificationInfo& verification,
                           Context* context) override {
    if (const int fault = faults_->before_append(path_, data.size())) {
      return fault_status(fault, path_);
    }
    return FSWritableFileOwnerWrapper::Append(data, options, verification, context);
  }
  rocksdb::IOStatus Sync(const Options& options, Context* context) override {
    if (const int fault = faults_->before_sync(path_)) return fault_status(fault, path_);
    rocksdb::IOStatus status = FSWritableFileOwnerWrapper::Sync(options, context);
    if (status.ok()) faults_->after_sync(path_);
    return status;
  }
  rocksdb::IOStatus Fsync(const Options& options, Context* context) override {
    if (const int fault = faults_->before_sync(path_)) return fault_status(fault, path_);
    rocksdb::IOStatus status = FSWritableFileOwnerWrapper::Fsync(options, context);
    if (status.ok()) faults_->after_sync(path_);
    return status;
  }

 private:
  const std::string path_;
  const std::shared_ptr<DiskFaults> faults_;
};

class FaultyFileSystem final : public rocksdb::FileSystemWrapper {
 public:
  explicit FaultyFileSystem(std::shared_ptr<DiskFaults> faults)
      : FileSystemWrapper(rocksdb::FileSystem::Default()), faults_(std::move(faults)) {}

  const char* Name() const override { return "TroupeFaultyFileSystem"; }
  rocksdb::IOStatus NewWritableFile(const std::string& path, const rocksdb::FileOptions& options,
                                    std::unique_ptr<rocksdb::FSWritableFile>* file,
                                    rocksdb::IODebugContext* context) override {
    rocksdb::IOStatus status = FileSystemWrapper::NewWritableFile(path, options, file, context);
    if (status.ok()) *file = std::make_unique<FaultyFile>(std::move(*file), path, faults_);
    return status;
  }

 private:
  const std::shared_ptr<DiskFaults> faults_;
};

}  // namespace

std::shared_ptr<rocksdb::Logger> make_rocks_logger(std::shared_ptr<DamagedLog> damaged) {
  return std::make_shared<RocksLogger>(std::move(damaged));
}

std::unique_ptr<rocksdb::Env> make_faulty_env(std::shared_ptr<DiskFaults> faults) {
  return rocksdb::NewCompositeEnv(std::make_shared<FaultyFileSystem>(std::move(faults)));
}

}  // namespace troupe
