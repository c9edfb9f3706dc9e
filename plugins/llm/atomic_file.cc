#include "llm/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace troupe::llm {
namespace {

// Enough for every process that may write beside us; a crash leaves one name taken.
constexpr int temporary_names_max = 1000;
// Linux writes no more than this at a time.
constexpr size_t write_bytes_max = size_t{1} << 30;

Status sync_folder(const std::filesystem::path& path) {
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return file_error(folder, "open", errno);
  const int failed = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  // Some file systems (FUSE, network) cannot sync a folder; the rename stands nevertheless.
  if (failed != 0 && failed != EINVAL && failed != ENOTSUP) {
    return file_error(folder, "sync", failed);
  }
  return ok();
}

}  // namespace

Error file_error(const std::filesystem::path& path, const char* doing, int error_number) {
  const auto describe = [&](std::string_view advice) {
    return fmt::format("{}: cannot {}: {}; {}", path.string(), doing, std::strerror(error_number),
                       advice);
  };
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
      return error(Code::not_found, describe("check the path"));
    case EACCES:
    case EPERM:
    case EROFS:
      return error(Code::denied, describe("check the permissions of the file and its folder"));
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return error(Code::exhausted, describe("free disk space or raise the limit, then retry"));
    default:
      return error(Code::unavailable, describe("retry, and check the disk if it happens again"));
  }
}

AtomicFile::AtomicFile(std::filesystem::path path, std::filesystem::path temporary, int descriptor)
    : path_(std::move(path)), temporary_(std::move(temporary)), descriptor_(descriptor) {}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      descriptor_(std::exchange(other.descriptor_, -1)) {}

AtomicFile::~AtomicFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

Result<AtomicFile> AtomicFile::create(const std::filesystem::path& path) {
  for (int attempt = 0; attempt < temporary_names_max; ++attempt) {
    std::filesystem::path temporary = path;
    temporary += fmt::format(".tmp-{}-{}", ::getpid(), attempt);
    const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor >= 0) return AtomicFile(path, std::move(temporary), descriptor);
    if (errno != EEXIST) return file_error(path, "create", errno);
  }
  return error(Code::unavailable,
               fmt::format("{}: too many unfinished temporary files; remove {}.tmp-*",
                           path.string(), path.string()));
}

Status AtomicFile::append(std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t written =
        ::write(descriptor_, bytes.data(), std::min(bytes.size(), write_bytes_max));
    if (written < 0) {
      if (errno == EINTR) continue;
      return file_error(path_, "write", errno);
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return ok();
}

Status AtomicFile::commit() {
  if (::fsync(descriptor_) != 0) return file_error(path_, "sync", errno);
  // close() reports what a network file system could not write.
  if (::close(std::exchange(descriptor_, -1)) != 0) return file_error(path_, "close", errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) return file_error(path_, "rename", errno);
  temporary_.clear();
  return sync_folder(path_);
}

}  // namespace troupe::llm
