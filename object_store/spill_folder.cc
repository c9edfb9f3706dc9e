#include "object_store/spill_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <system_error>

#include "base/file_descriptor.h"
#include "object_store/segment.h"

namespace troupe::object_store {
namespace {

constexpr const char* extension = ".spill";
// Hashed piece by piece, while the piece is in the cache.
constexpr size_t piece_bytes = 256 << 10;

std::string why(int code) {
  return std::generic_category().message(code);
}

Error write_error(const std::string& path, int code) {
  if (code == ENOSPC || code == EDQUOT || code == EFBIG) {
    return error(
        Code::exhausted,
        fmt::format("spill objects to {}: {}; free space there, choose another --spill-dir, "
                    "or give the object store more memory",
                    path, why(code)));
  }
  const bool scarce = code == EMFILE || code == ENFILE || code == ENOMEM;
  return error(scarce ? Code::exhausted : Code::internal,
               fmt::format("spill objects to {}: {}", path, why(code)));
}

// Zero, or errno.
int write_all(int fd, BytesView bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count == 0 ? EIO : errno;
    bytes = bytes.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return 0;
}

int read_all(int fd, std::span<uint8_t> out, uint64_t offset) {
  while (!out.empty()) {
    const ssize_t count = ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno;
    if (count == 0) return ENODATA;
    out = out.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return 0;
}

// Hashes an object in pieces, after `each` has done something with the piece. Zero, or errno.
template <class Byte, class Each>
int hash_pieces(std::span<Byte> bytes, uint64_t& checksum, Each each) {
  struct Free {
    void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
  };
  const std::unique_ptr<XXH3_state_t, Free> state{XXH3_createState()};
  XXH3_64bits_reset(state.get());
  for (size_t from = 0; from < bytes.size(); from += piece_bytes) {
    const auto piece = bytes.subspan(from, std::min(piece_bytes, bytes.size() - from));
    if (const int failed = each(piece, from); failed != 0) return failed;
    XXH3_64bits_update(state.get(), piece.data(), piece.size());
  }
  checksum = XXH3_64bits_digest(state.get());
  return 0;
}

}  // namespace

Result<SpillFolder> SpillFolder::open(std::string path) {
  std::error_code failed;
  std::filesystem::create_directories(std::filesystem::path{path}.parent_path(), failed);
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return error(Code::invalid, fmt::format("make the folder {} for spilled objects: {}; choose "
                                            "another --spill-dir, or turn spilling off "
                                            "(--spill-mib 0)",
                                            path, why(errno)));
  }
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0 || !S_ISDIR(status.st_mode) ||
      status.st_uid != ::geteuid()) {
    return error(Code::invalid,
                 fmt::format("{} is no folder of this user: objects are not spilled to it", path));
  }
  // Whoever may read it may read every job's objects.
  if (::chmod(path.c_str(), 0700) != 0 || ::access(path.c_str(), W_OK | X_OK) != 0) {
    return error(Code::invalid, fmt::format("{} cannot be written: {}", path, why(errno)));
  }
  for (const auto& entry : std::filesystem::directory_iterator(path, failed)) {
    if (entry.path().extension() == extension) ::unlink(entry.path().c_str());
  }
  return SpillFolder{std::move(path)};
}

std::string SpillFolder::path_of(uint64_t file) const {
  return fmt::format("{}/{}{}", path_, file, extension);
}

Result<std::vector<SpillPlace>> SpillFolder::write(uint64_t file,
                                                   std::span<const BytesView> objects) const {
  const std::string path = path_of(file);
  const FileDescriptor fd{::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)};
  if (!fd.is_open()) return write_error(path, errno);
  std::vector<SpillPlace> places;
  uint64_t offset = 0;
  for (const BytesView object : objects) {
    SpillPlace place{file, offset, object.size(), 0};
    const int failed = hash_pieces(object, place.checksum, [&](BytesView piece, size_t from) {
      return write_all(fd.get(), piece, offset + from);
    });
    if (failed != 0) {
      ::unlink(path.c_str());
      return write_error(path, failed);
    }
    places.push_back(place);
    offset = (offset + object.size() + page_bytes - 1) / page_bytes * page_bytes;
  }
  return places;
}

Status SpillFolder::read(const SpillPlace& place, std::span<uint8_t> out) const {
  const std::string path = path_of(place.file);
  const FileDescriptor fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (!fd.is_open()) {
    const Code code = errno == EMFILE || errno == ENFILE ? Code::exhausted : Code::data_loss;
    return error(code, fmt::format("read a spilled object from {}: {}", path, why(errno)));
  }
  uint64_t checksum = 0;
  const int failed = hash_pieces(out, checksum, [&](std::span<uint8_t> piece, size_t from) {
    return read_all(fd.get(), piece, place.offset_bytes + from);
  });
  if (failed != 0) {
    return error(Code::data_loss, fmt::format("read a spilled object from {}: {}", path,
                                              failed == ENODATA ? "it is cut off" : why(failed)));
  }
  if (checksum != place.checksum) {
    return error(Code::data_loss, fmt::format("the spilled object in {} at {} is damaged", path,
                                              place.offset_bytes));
  }
  return ok();
}

void SpillFolder::erase(const SpillPlace& place) const {
  const FileDescriptor fd{::open(path_of(place.file).c_str(), O_WRONLY | O_CLOEXEC)};
  if (!fd.is_open()) return;
  const uint64_t pages = (place.size_bytes + page_bytes - 1) / page_bytes * page_bytes;
  // Where the file system knows no holes, the blocks go with the file.
  (void)::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(place.offset_bytes), static_cast<off_t>(pages));
}

void SpillFolder::remove(uint64_t file) const {
  ::unlink(path_of(file).c_str());
}

void SpillFolder::remove_folder() const {
  ::rmdir(path_.c_str());
}

}  // namespace troupe::object_store
