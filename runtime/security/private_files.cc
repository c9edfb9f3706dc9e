#include "security/private_files.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "base/file_descriptor.h"

namespace troupe::security {
namespace {

namespace fs = std::filesystem;
constexpr size_t file_bytes_max = size_t{1} << 20;

Error file_error(std::string_view doing, const fs::path& path, int number) {
  Code code = Code::unavailable;
  if (number == ENOENT || number == ENOTDIR) code = Code::not_found;
  if (number == EACCES || number == EPERM || number == EROFS) code = Code::denied;
  const bool full = number == ENOSPC || number == EDQUOT;
  if (full || number == EFBIG || number == EMFILE) code = Code::exhausted;
  const char* advice = full              ? "; free some space and try again"
                       : number == EFBIG ? "; raise this process's limit (ulimit -f)"
                                         : "";
  return error(code, fmt::format("{} {}: {}{}", doing, path.string(),
                                 std::generic_category().message(number), advice));
}

Status write_all(int file, std::string_view text, const fs::path& path) {
  while (!text.empty()) {
    const ssize_t written = ::write(file, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return file_error("write", path, errno);
    text.remove_prefix(static_cast<size_t>(written));
  }
  return ok();
}

Status sync_directory(const fs::path& directory) {
  const FileDescriptor file{::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  if (file.get() < 0) return file_error("open", directory, errno);
  if (::fsync(file.get()) != 0) return file_error("sync", directory, errno);
  return ok();
}

Status write_new_file(const fs::path& path, std::string_view text) {
  ::unlink(path.c_str());  // What a crash left.
  const FileDescriptor file{
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)};
  if (file.get() < 0) return file_error("make", path, errno);
  TROUPE_CHECK(write_all(file.get(), text, path));
  if (::fsync(file.get()) != 0) return file_error("sync", path, errno);
  return ok();
}

// `forbidden` are the permissions that nobody but the owner may have.
Result<std::string> read_file(const fs::path& path, mode_t forbidden) {
  const FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.get() < 0) return file_error("open", path, errno);
  struct stat facts {};
  if (::fstat(file.get(), &facts) != 0) return file_error("look at", path, errno);
  if (!S_ISREG(facts.st_mode)) {
    return error(Code::invalid, fmt::format("{} is no plain file", path.string()));
  }
  if (facts.st_uid != ::geteuid() && facts.st_uid != 0) {
    return error(Code::denied, fmt::format("{} belongs to another user", path.string()));
  }
  if ((facts.st_mode & forbidden) != 0) {
    return error(Code::denied, fmt::format("{} is open to others (mode {:o}); chmod it to {:o}",
                                           path.string(), facts.st_mode & 0777, 0666 & ~forbidden));
  }
  std::string text(file_bytes_max + 1, '\0');
  size_t size = 0;
  while (size < text.size()) {
    const ssize_t got = ::read(file.get(), text.data() + size, text.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return file_error("read", path, errno);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > file_bytes_max) {
    return error(Code::invalid, fmt::format("{} is larger than 1 MiB", path.string()));
  }
  text.resize(size);
  return text;
}

}  // namespace

Status make_private_directory(const fs::path& directory) {
  std::error_code failed;
  fs::create_directories(fs::absolute(directory).parent_path(), failed);
  if (failed) return file_error("make the parents of", directory, failed.value());
  if (::mkdir(directory.c_str(), 0700) == 0) {
    return sync_directory(fs::absolute(directory).parent_path());
  }
  if (errno != EEXIST) return file_error("make", directory, errno);
  struct stat facts {};
  if (::stat(directory.c_str(), &facts) != 0) return file_error("look at", directory, errno);
  if (!S_ISDIR(facts.st_mode)) {
    return error(Code::invalid, fmt::format("{} is no directory", directory.string()));
  }
  if ((facts.st_mode & 0077) != 0) {
    return error(Code::denied, fmt::format("{} is open to others (mode {:o}); chmod it to 700",
                                           directory.string(), facts.st_mode & 0777));
  }
  return ok();
}

Status write_private_file(const fs::path& path, std::string_view text) {
  fs::path fresh = path;
  fresh += ".new";
  Status written = write_new_file(fresh, text);
  if (written && ::rename(fresh.c_str(), path.c_str()) != 0) {
    written = file_error("replace", path, errno);
  }
  if (!written) {
    ::unlink(fresh.c_str());
    return written;
  }
  return sync_directory(fs::absolute(path).parent_path());
}

Result<std::string> read_private_file(const fs::path& path) {
  return read_file(path, 0077);
}

Result<std::string> read_public_file(const fs::path& path) {
  return read_file(path, 0022);
}

}  // namespace troupe::security
