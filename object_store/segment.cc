#include "object_store/segment.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace troupe::object_store {
namespace {

constexpr int segment_seals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

constexpr uint64_t page_floor(uint64_t bytes) {
  return bytes / page_bytes * page_bytes;
}
constexpr uint64_t page_ceil(uint64_t bytes) {
  return page_floor(bytes + page_bytes - 1);
}

Error system_error(std::string_view doing, int code) {
  const std::string why = std::generic_category().message(code);
  switch (code) {
    case EMFILE:
      return error(Code::exhausted,
                   fmt::format("{}: {}; raise this process's limit (ulimit -n)", doing, why));
    case ENFILE:
      return error(Code::exhausted, fmt::format("{}: {}; raise fs.file-max", doing, why));
    case ENOSPC:
    case ENOMEM:
      return error(Code::exhausted,
                   fmt::format("{}: {}; free memory on this machine, lower the object store's "
                               "capacity, or raise this process's limit (ulimit -v)",
                               doing, why));
    default:
      return error(Code::internal, fmt::format("{}: {}", doing, why));
  }
}

bool inside(uint64_t offset_bytes, uint64_t size_bytes, uint64_t segment_bytes) {
  return offset_bytes <= segment_bytes && size_bytes <= segment_bytes - offset_bytes;
}

Error outside(uint64_t offset_bytes, uint64_t size_bytes, uint64_t segment_bytes) {
  return error(Code::invalid, fmt::format("{} bytes at {} lie outside a segment of {} bytes",
                                          size_bytes, offset_bytes, segment_bytes));
}

Result<Mapping> map_segment(int fd, uint64_t size_bytes, int protection) {
  void* data = ::mmap(nullptr, size_bytes, protection, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (data == MAP_FAILED) return system_error("map a segment", errno);
  return Mapping{static_cast<uint8_t*>(data), size_bytes};
}

// `data` is page-aligned and mapped from `offset_bytes` of `fd`.
Status populate(int fd, uint64_t offset_bytes, uint8_t* data, uint64_t size_bytes, int advice) {
  int code = 0;
  do {
    code = ::madvise(data, size_bytes, advice) == 0 ? 0 : errno;
  } while (code == EINTR || code == EAGAIN);
  // Kernels before 5.14 lack the advice. Allocating is enough there: pages get mapped by faults.
  if (code == EINVAL) {
    do {
      code =
          ::fallocate(fd, 0, static_cast<off_t>(offset_bytes), static_cast<off_t>(size_bytes)) == 0
              ? 0
              : errno;
    } while (code == EINTR);
  }
  if (code == 0) return ok();
  // EFAULT is the SIGBUS that touching the page would have raised.
  return system_error(fmt::format("get memory for {} bytes of objects", size_bytes),
                      code == EFAULT ? ENOSPC : code);
}

}  // namespace

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_bytes_, other.size_bytes_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) ::munmap(data_, size_bytes_);
}

Status populate_for_writing(int fd, uint64_t offset_bytes, std::span<uint8_t> bytes) {
  if (bytes.empty()) return ok();
  const uint64_t begin = page_floor(offset_bytes);
  const uint64_t end = page_ceil(offset_bytes + bytes.size());
  return populate(fd, begin, bytes.data() - (offset_bytes - begin), end - begin,
                  MADV_POPULATE_WRITE);
}

// --- ProducerSegment ---

ProducerSegment::ProducerSegment(FileDescriptor fd, Mapping mapping, uint64_t size_bytes)
    : fd_(std::move(fd)), mapping_(std::move(mapping)), size_bytes_(size_bytes) {}

Result<ProducerSegment> ProducerSegment::create(uint64_t size_bytes) {
  if (size_bytes == 0 || size_bytes > segment_bytes_max) {
    return error(Code::invalid, fmt::format("a segment of {} bytes; 1 to {} are possible",
                                            size_bytes, segment_bytes_max));
  }
  size_bytes = page_ceil(size_bytes);
  // Beyond this limit ftruncate raises SIGXFSZ, which would end the process.
  rlimit file_limit{};
  if (::getrlimit(RLIMIT_FSIZE, &file_limit) == 0 && file_limit.rlim_cur < size_bytes) {
    return error(Code::exhausted,
                 fmt::format("a segment of {} bytes passes this process's limit on file sizes of "
                             "{}; raise it (ulimit -f)",
                             size_bytes, file_limit.rlim_cur));
  }
  FileDescriptor fd{::memfd_create("troupe-objects", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (!fd.is_open()) return system_error("make a segment", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
    return system_error(fmt::format("size a segment to {} bytes", size_bytes), errno);
  }
  // Map first: the seal spares this mapping and refuses every later writable one.
  TROUPE_TRY(auto mapping, map_segment(fd.get(), size_bytes, PROT_READ | PROT_WRITE));
  if (::fcntl(fd.get(), F_ADD_SEALS, segment_seals) != 0) {
    return system_error("seal a segment", errno);
  }
  // A forked child would be a second writer; a core file would hold all objects.
  for (const int advice : {MADV_DONTFORK, MADV_DONTDUMP}) {
    if (::madvise(mapping.data(), size_bytes, advice) != 0) {
      return system_error("advise on a segment", errno);
    }
  }
  return ProducerSegment{std::move(fd), std::move(mapping), size_bytes};
}

Result<std::span<uint8_t>> ProducerSegment::bytes(uint64_t offset_bytes,
                                                  uint64_t size_bytes) const {
  if (!inside(offset_bytes, size_bytes, size_bytes_)) {
    return outside(offset_bytes, size_bytes, size_bytes_);
  }
  return std::span<uint8_t>{mapping_.data() + offset_bytes, size_bytes};
}

Result<std::span<uint8_t>> ProducerSegment::prepare(uint64_t offset_bytes, uint64_t size_bytes) {
  TROUPE_TRY(const auto bytes, this->bytes(offset_bytes, size_bytes));
  const uint64_t end = offset_bytes + size_bytes;
  if (end <= populated_bytes_) return bytes;
  const uint64_t begin = std::max(offset_bytes, populated_bytes_);
  TROUPE_CHECK(populate_for_writing(fd_.get(), begin, {mapping_.data() + begin, end - begin}));
  if (offset_bytes <= populated_bytes_) populated_bytes_ = page_ceil(end);
  return bytes;
}

// --- ReaderSegment ---

ReaderSegment::ReaderSegment(FileDescriptor fd, uint64_t size_bytes)
    : fd_(std::move(fd)), size_bytes_(size_bytes) {}

Result<ReaderSegment> ReaderSegment::open(FileDescriptor fd) {
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  struct statfs file_system {};
  // Huge pages would make "a page" mean something else here.
  if (seals < 0 || ::fstatfs(fd.get(), &file_system) != 0 || file_system.f_type != TMPFS_MAGIC) {
    return error(Code::denied, "the descriptor is no segment of shared memory");
  }
  if ((seals & segment_seals) != segment_seals) {
    return error(Code::denied, fmt::format("a segment with seals {:#x}; {:#x} are required", seals,
                                           segment_seals));
  }
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return system_error("look at a segment", errno);
  const auto size_bytes = static_cast<uint64_t>(status.st_size);
  if (size_bytes == 0 || size_bytes > segment_bytes_max || size_bytes % page_bytes != 0) {
    return error(Code::invalid, fmt::format("a segment of {} bytes; whole pages up to {} bytes "
                                            "are possible",
                                            size_bytes, segment_bytes_max));
  }
  return ReaderSegment{std::move(fd), size_bytes};
}

Result<uint64_t> ReaderSegment::memory_bytes() const {
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) return system_error("look at a segment", errno);
  return static_cast<uint64_t>(status.st_blocks) * 512;
}

Result<BytesView> ReaderSegment::view(uint64_t offset_bytes, uint64_t size_bytes) {
  if (!inside(offset_bytes, size_bytes, size_bytes_)) {
    return outside(offset_bytes, size_bytes, size_bytes_);
  }
  if (size_bytes == 0) return BytesView{};
  if (!mapping_) {
    TROUPE_TRY(mapping_, map_segment(fd_.get(), size_bytes_, PROT_READ));
  }
  const uint64_t first = offset_bytes / page_bytes;
  const uint64_t end = (offset_bytes + size_bytes - 1) / page_bytes + 1;
  if (!populated(first, end)) {
    TROUPE_CHECK(populate(fd_.get(), first * page_bytes, mapping_.data() + first * page_bytes,
                          (end - first) * page_bytes, MADV_POPULATE_READ));
    mark_populated(first, end);
  }
  return BytesView{mapping_.data() + offset_bytes, size_bytes};
}

namespace {

// The bits of [first, end) that lie in the word of `first`.
uint64_t word_mask(uint64_t first, uint64_t end) {
  const uint64_t low = first % 64;
  const uint64_t count = std::min(end - first, 64 - low);
  return (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << low;
}

}  // namespace

bool ReaderSegment::populated(uint64_t first, uint64_t end) const {
  if ((end - 1) / 64 >= populated_pages_.size()) return false;
  for (; first < end; first = (first / 64 + 1) * 64) {
    const uint64_t mask = word_mask(first, end);
    if ((populated_pages_[first / 64] & mask) != mask) return false;
  }
  return true;
}

void ReaderSegment::mark_populated(uint64_t first, uint64_t end) {
  if ((end - 1) / 64 >= populated_pages_.size()) populated_pages_.resize((end - 1) / 64 + 1);
  for (; first < end; first = (first / 64 + 1) * 64) {
    populated_pages_[first / 64] |= word_mask(first, end);
  }
}

}  // namespace troupe::object_store
