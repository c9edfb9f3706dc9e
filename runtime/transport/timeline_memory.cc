#include "transport/timeline_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace troupe::transport {

namespace {

constexpr int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

Error system_error(const char* doing) {
  return error(Code::exhausted, fmt::format("{}: {}", doing, std::strerror(errno)));
}

}  // namespace

TimelineMemory::TimelineMemory(FileDescriptor file, uint8_t* memory, const Clock& clock)
    : file_(std::move(file)), memory_(memory), timeline_({memory, timeline_bytes}, clock) {}

Result<std::unique_ptr<TimelineMemory>> TimelineMemory::create(const Clock& clock) {
  FileDescriptor file{::memfd_create("troupe-timeline", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (!file.is_open()) return system_error("memfd_create");
  if (::ftruncate(file.get(), timeline_bytes) != 0) return system_error("ftruncate");
  if (::fcntl(file.get(), F_ADD_SEALS, seals) != 0) return system_error("seal a memfd");
  void* memory = ::mmap(nullptr, timeline_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (memory == MAP_FAILED) return system_error("map a timeline");
  return std::unique_ptr<TimelineMemory>{
      new TimelineMemory{std::move(file), static_cast<uint8_t*>(memory), clock}};
}

Result<std::unique_ptr<TimelineMemory>> TimelineMemory::create_if_on(const Clock& clock) {
  const char* chosen = std::getenv("TROUPE_TIMELINE");
  if (chosen != nullptr && std::strcmp(chosen, "0") == 0) return nullptr;
  return create(clock);
}

TimelineMemory::~TimelineMemory() {
  ::munmap(memory_, timeline_bytes);
}

Result<FileDescriptor> TimelineMemory::share() const {
  FileDescriptor copy{::fcntl(file_.get(), F_DUPFD_CLOEXEC, 0)};
  if (!copy.is_open()) return error(Code::exhausted, "no file descriptors left");
  return copy;
}

Result<TimelineView> TimelineView::open(FileDescriptor file) {
  const int have = ::fcntl(file.get(), F_GET_SEALS);
  if (have < 0 || (have & F_SEAL_SHRINK) == 0) {
    return error(Code::denied, "a timeline whose memory may shrink was refused: seal it");
  }
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return system_error("fstat");
  if (status.st_size != static_cast<off_t>(timeline_bytes)) {
    return error(Code::invalid, fmt::format("a timeline of {} bytes was refused: it has {}",
                                            status.st_size, timeline_bytes));
  }
  void* memory = ::mmap(nullptr, timeline_bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (memory == MAP_FAILED) return system_error("map a timeline");
  return TimelineView{static_cast<const uint8_t*>(memory)};
}

TimelineView::TimelineView(TimelineView&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)) {}

TimelineView::~TimelineView() {
  if (memory_ != nullptr) ::munmap(const_cast<uint8_t*>(memory_), timeline_bytes);
}

}  // namespace troupe::transport
