#include "packages/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "security/digest.h"

namespace troupe::packages {
namespace {

struct Opened {
  FileDescriptor file;
  uint64_t size_bytes = 0;
};

Result<Opened> check_regular(FileDescriptor file, const std::string& path) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return file_error("look at " + path, errno);
  if (!S_ISREG(status.st_mode)) {
    return error(Code::invalid, path + " is no regular file: it cannot be a package");
  }
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size > package_bytes_max) {
    return error(Code::invalid, fmt::format("{} has {} MiB; a package has at most {} MiB", path,
                                            size >> 20, package_bytes_max >> 20));
  }
  return Opened{std::move(file), size};
}

Result<Opened> open_regular(const std::string& path) {
  FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (!file.is_open()) return file_error("open " + path, errno);
  return check_regular(std::move(file), path);
}

}  // namespace

Error file_error(const std::string& doing, int number) {
  const std::string why = std::generic_category().message(number);
  switch (number) {
    case ENOENT:
    case ENOTDIR:
      return error(Code::not_found, fmt::format("{}: {}", doing, why));
    case EACCES:
    case EPERM:
    case EROFS:
      return error(Code::denied, fmt::format("{}: {}", doing, why));
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return error(Code::exhausted, fmt::format("{}: {}; free space on that disk", doing, why));
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return error(Code::exhausted, fmt::format("{}: {}", doing, why));
    default:
      return error(Code::internal, fmt::format("{}: {}", doing, why));
  }
}

Result<PackageFilePointer> open_package(const std::string& path) {
  TROUPE_TRY(auto opened, open_regular(path));
  PackageFile made{std::move(opened.file), {}, opened.size_bytes};
  security::Hasher hasher;
  for (uint64_t at = 0; at < made.size_bytes;) {
    TROUPE_TRY(const Bytes chunk, read_chunk(made, at));
    hasher.add(chunk);
    at += chunk.size();
  }
  made.hash = security::to_hex(hasher.finish());
  return std::make_shared<const PackageFile>(std::move(made));
}

Result<PackageFilePointer> open_hashed(const std::string& path, std::string hash) {
  TROUPE_TRY(auto opened, open_regular(path));
  return std::make_shared<const PackageFile>(
      PackageFile{std::move(opened.file), std::move(hash), opened.size_bytes});
}

Result<PackageFilePointer> adopt(FileDescriptor file, std::string hash) {
  TROUPE_TRY(auto opened, check_regular(std::move(file), "what came"));
  return std::make_shared<const PackageFile>(
      PackageFile{std::move(opened.file), std::move(hash), opened.size_bytes});
}

Result<Bytes> read_chunk(const PackageFile& file, uint64_t offset_bytes) {
  if (offset_bytes >= file.size_bytes) return Bytes{};
  Bytes data(std::min<uint64_t>(chunk_bytes, file.size_bytes - offset_bytes));
  size_t have = 0;
  while (have < data.size()) {
    const ssize_t count = ::pread(file.file.get(), data.data() + have, data.size() - have,
                                  static_cast<off_t>(offset_bytes + have));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return file_error("read a package", errno);
    if (count == 0) {
      return error(Code::data_loss, "a package's file became shorter while it was read");
    }
    have += static_cast<size_t>(count);
  }
  return data;
}

Status write_all(int fd, BytesView bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return file_error("write " + path, errno);
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
  return ok();
}

Result<FileMark> mark_of(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) return file_error("look at " + path, errno);
  if (!S_ISREG(status.st_mode)) return error(Code::not_found, path + " is no regular file");
  constexpr int64_t ns_per_s = 1'000'000'000;
  return FileMark{status.st_dev, status.st_ino,
                  status.st_mtim.tv_sec * ns_per_s + status.st_mtim.tv_nsec,
                  static_cast<uint64_t>(status.st_size)};
}

}  // namespace troupe::packages
