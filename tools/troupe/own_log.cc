#include "troupe/own_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/file_descriptor.h"

namespace troupe::tools {
namespace {

bool is_same(const struct stat& one, const struct stat& other) {
  return one.st_dev == other.st_dev && one.st_ino == other.st_ino;
}

Error log_error(const std::string& doing, int number) {
  return error(number == ENOSPC ? Code::exhausted : Code::unavailable,
               fmt::format("{}: {}", doing, std::strerror(number)));
}

}  // namespace

Status bound_log(const std::string& path, std::initializer_list<int> descriptors,
                 uint64_t bytes_max) {
  struct stat file {};
  if (::stat(path.c_str(), &file) != 0) return ok();  // Nothing is there to be bounded.
  if (static_cast<uint64_t>(file.st_size) <= bytes_max) return ok();
  const auto writes_to_it = [&](int descriptor) {
    struct stat open {};
    return ::fstat(descriptor, &open) == 0 && is_same(open, file);
  };
  if (descriptors.size() > 0 && !writes_to_it(*descriptors.begin())) return ok();
  // The new one is there before the old one goes, so that whatever fails leaves a log.
  const std::string fresh_path = path + ".new";
  const FileDescriptor fresh{
      ::open(fresh_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600)};
  if (!fresh.is_open()) return log_error("make " + fresh_path, errno);
  const std::string before = path + ".1";
  if (::rename(path.c_str(), before.c_str()) != 0 ||
      ::rename(fresh_path.c_str(), path.c_str()) != 0) {
    return log_error("rename " + path, errno);
  }
  for (const int descriptor : descriptors) {
    if (writes_to_it(descriptor) && ::dup2(fresh.get(), descriptor) < 0) {
      return log_error("write to " + path, errno);
    }
  }
  return ok();
}

}  // namespace troupe::tools
