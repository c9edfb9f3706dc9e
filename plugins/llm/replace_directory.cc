#include "llm/replace_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdio.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <system_error>
#include <utility>

#include "llm/atomic_file.h"

namespace troupe::llm {
namespace {

namespace fs = std::filesystem;

Status check(const fs::path& path, const char* doing, const std::error_code& failed) {
  if (!failed) return ok();
  return file_error(path, doing, failed.value());
}

// Beside the target, hidden, and a name that only this class gives: what lies there is ours.
fs::path beside(const fs::path& target, std::string_view purpose) {
  return target.parent_path() / fmt::format(".{}.troupe-{}", target.filename().string(), purpose);
}

// Anything but plain files and links is not ours to move.
Status check_replaceable(const fs::path& target) {
  std::error_code failed;
  const fs::file_status status = fs::status(target, failed);
  if (status.type() == fs::file_type::not_found) return ok();
  TROUPE_CHECK(check(target, "look at", failed));
  if (!fs::is_directory(status)) {
    return error(Code::conflict, fmt::format("{} is not a directory", target.string()));
  }
  fs::directory_iterator entries(target, failed);
  TROUPE_CHECK(check(target, "list", failed));
  for (; entries != fs::directory_iterator(); entries.increment(failed)) {
    if (!entries->is_symlink(failed) && !entries->is_regular_file(failed)) {
      return error(Code::conflict,
                   fmt::format("{} is not a file, so its directory is left alone; save elsewhere",
                               entries->path().string()));
    }
  }
  return check(target, "list", failed);
}

Status sync_directory(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return file_error(path, "open", errno);
  const int failed = ::fsync(descriptor) == 0 ? 0 : errno;
  ::close(descriptor);
  // Some file systems (FUSE, network) cannot sync a folder; the rename stands nevertheless.
  if (failed != 0 && failed != EINVAL && failed != ENOTSUP) return file_error(path, "sync", failed);
  return ok();
}

// A second name for the same file; a copy where the file system has no hard links.
Status bring_along(const fs::path& from, const fs::path& to) {
  std::error_code failed;
  if (fs::is_symlink(from, failed)) {
    fs::copy_symlink(from, to, failed);
    return check(from, "copy", failed);
  }
  fs::create_hard_link(from, to, failed);
  if (failed) fs::copy_file(from, to, failed);
  return check(from, "copy", failed);
}

// Afterwards the new directory lies at `target`, and the old one, if any, at `staging`.
Status change_places(const fs::path& staging, const fs::path& target) {
  if (::renameat2(AT_FDCWD, staging.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
    return ok();
  }
  if (errno == ENOENT) {
    if (::rename(staging.c_str(), target.c_str()) == 0) return ok();
    return file_error(target, "rename to", errno);
  }
  if (errno != EINVAL && errno != ENOSYS) return file_error(target, "replace", errno);
  // A file system that cannot exchange names, such as NFS: between the first two renames the old
  // checkpoint is found under the name `old` only.
  const fs::path old = beside(target, "old");
  if (::rename(target.c_str(), old.c_str()) != 0) return file_error(target, "rename", errno);
  if (::rename(staging.c_str(), target.c_str()) != 0) {
    const int failed = errno;
    if (::rename(old.c_str(), target.c_str()) != 0) return file_error(old, "rename back", errno);
    return file_error(target, "rename to", failed);
  }
  if (::rename(old.c_str(), staging.c_str()) != 0) return file_error(old, "rename", errno);
  return ok();
}

}  // namespace

DirectoryReplacement::DirectoryReplacement(fs::path target, fs::path staging)
    : target_(std::move(target)), staging_(std::move(staging)) {}

DirectoryReplacement::DirectoryReplacement(DirectoryReplacement&& other) noexcept
    : target_(std::move(other.target_)), staging_(std::exchange(other.staging_, {})) {}

DirectoryReplacement::~DirectoryReplacement() {
  std::error_code ignored;  // What is left over, the next writer removes.
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
}

Result<DirectoryReplacement> DirectoryReplacement::create(const fs::path& path) {
  std::error_code failed;
  // Through links, so that a link to a checkpoint stays one; and without a slash at the end.
  fs::path target = fs::weakly_canonical(fs::absolute(path), failed);
  TROUPE_CHECK(check(path, "find", failed));
  if (!target.has_filename()) target = target.parent_path();
  TROUPE_CHECK(check_replaceable(target));
  fs::path staging = beside(target, "staging");
  TROUPE_CHECK(check_replaceable(staging));
  fs::remove_all(staging, failed);  // Of a writer that crashed.
  TROUPE_CHECK(check(staging, "remove", failed));
  fs::create_directories(staging, failed);
  TROUPE_CHECK(check(staging, "create", failed));
  return DirectoryReplacement(std::move(target), std::move(staging));
}

Status DirectoryReplacement::commit(const std::set<std::string>& dropped) {
  std::error_code failed;
  if (fs::exists(target_, failed)) {
    fs::directory_iterator entries(target_, failed);
    TROUPE_CHECK(check(target_, "list", failed));
    for (; entries != fs::directory_iterator(); entries.increment(failed)) {
      const fs::path name = entries->path().filename();
      const fs::path to = staging_ / name;
      if (dropped.contains(name.string()) || fs::exists(fs::symlink_status(to, failed))) continue;
      TROUPE_CHECK(bring_along(entries->path(), to));
    }
    TROUPE_CHECK(check(target_, "list", failed));
  }
  TROUPE_CHECK(sync_directory(staging_));
  TROUPE_CHECK(change_places(staging_, target_));
  TROUPE_CHECK(sync_directory(target_.parent_path()));
  fs::remove_all(std::exchange(staging_, {}), failed);
  return ok();
}

}  // namespace troupe::llm
