#include "transport/ring.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>

namespace troupe::transport {

namespace {

constexpr int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

Error system_error(const char* doing) {
  return error(Code::exhausted, fmt::format("{}: {}", doing, std::strerror(errno)));
}

Result<FileDescriptor> sealed_file(const char* name, size_t bytes) {
  FileDescriptor file{::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  if (!file.is_open()) return system_error("memfd_create");
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) return system_error("ftruncate");
  if (::fcntl(file.get(), F_ADD_SEALS, seals) != 0) return system_error("seal a memfd");
  return file;
}

// The size of a file that can neither shrink (which would be a SIGBUS here) nor grow.
Result<size_t> sealed_size(const FileDescriptor& file) {
  const int have = ::fcntl(file.get(), F_GET_SEALS);
  if (have < 0 || (have & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW)) {
    return error(Code::invalid, "shared memory that is not sealed was refused");
  }
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return system_error("fstat");
  return static_cast<size_t>(status.st_size);
}

// A writer may change it at any time: each byte is read once, whatever the compiler would like.
RecordHeader look_at_header(const uint8_t* at) {
  uint64_t words[sizeof(RecordHeader) / sizeof(uint64_t)];
  for (size_t i = 0; i < std::size(words); ++i) {
    words[i] = __atomic_load_n(reinterpret_cast<const uint64_t*>(at) + i, __ATOMIC_RELAXED);
  }
  return std::bit_cast<RecordHeader>(words);
}

size_t stride_of(size_t payload_bytes) {
  return sizeof(RecordHeader) + (payload_bytes + 15) / 16 * 16;
}

}  // namespace

Result<FileDescriptor> create_ring_file(size_t ring_bytes) {
  TROUPE_ASSERT(std::has_single_bit(ring_bytes) && ring_bytes >= ring_bytes_min &&
                    ring_bytes <= ring_bytes_max,
                "a ring's size");
  return sealed_file("troupe-ring", ring_page_bytes + 2 * ring_bytes);
}

Result<SharedPage> SharedPage::create(const char* name) {
  TROUPE_TRY(auto file, sealed_file(name, ring_page_bytes));
  return open(std::move(file));
}

Result<SharedPage> SharedPage::open(FileDescriptor file) {
  TROUPE_TRY(const size_t bytes, sealed_size(file));
  if (bytes < ring_page_bytes) return error(Code::invalid, "a shared page is too short");
  void* memory =
      ::mmap(nullptr, ring_page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
  if (memory == MAP_FAILED) return system_error("map a shared page");
  return SharedPage{std::move(file), memory};
}

SharedPage::SharedPage(SharedPage&& other) noexcept
    : file_(std::move(other.file_)), memory_(std::exchange(other.memory_, nullptr)) {}

SharedPage& SharedPage::operator=(SharedPage&& other) noexcept {
  if (this != &other) {
    if (memory_ != nullptr) ::munmap(memory_, ring_page_bytes);
    file_ = std::move(other.file_);
    memory_ = std::exchange(other.memory_, nullptr);
  }
  return *this;
}

SharedPage::~SharedPage() {
  if (memory_ != nullptr) ::munmap(memory_, ring_page_bytes);
}

Result<RingMemory> RingMemory::open(FileDescriptor file) {
  TROUPE_TRY(const size_t bytes, sealed_size(file));
  const size_t ring_bytes = bytes > ring_page_bytes ? (bytes - ring_page_bytes) / 2 : 0;
  if (ring_bytes < ring_bytes_min || ring_bytes > ring_bytes_max ||
      !std::has_single_bit(ring_bytes) || bytes != ring_page_bytes + 2 * ring_bytes) {
    return error(Code::invalid, fmt::format("{} bytes are no pair of rings", bytes));
  }
  const size_t whole = ring_page_bytes + 4 * ring_bytes;
  void* reserved = ::mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (reserved == MAP_FAILED) return system_error("reserve room for a ring");
  RingMemory memory{static_cast<uint8_t*>(reserved), ring_bytes};  // Unmaps all on failure.
  const auto map = [&](size_t at, size_t size, size_t from) {
    return ::mmap(memory.memory_ + at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                  file.get(), static_cast<off_t>(from)) != MAP_FAILED;
  };
  bool mapped = map(0, ring_page_bytes, 0);
  for (size_t copy = 0; copy < 4; ++copy) {
    mapped = mapped && map(ring_page_bytes + copy * ring_bytes, ring_bytes,
                           ring_page_bytes + copy / 2 * ring_bytes);
  }
  if (!mapped) return system_error("map a ring");
  return memory;
}

RingMemory::RingMemory(RingMemory&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)), ring_bytes_(other.ring_bytes_) {}

RingMemory::~RingMemory() {
  if (memory_ != nullptr) ::munmap(memory_, ring_page_bytes + 4 * ring_bytes_);
}

RingWriter::RingWriter(const RingMemory& memory, int ring)
    : positions_(memory.control().ring[ring]),
      data_(memory.data(ring)),
      ring_bytes_(memory.ring_bytes()) {}

uint8_t* RingWriter::reserve(size_t payload_bytes) {
  const size_t stride = stride_of(payload_bytes);
  if (written_ - read_ + stride > ring_bytes_) {
    const uint64_t read = positions_.read.load();
    if (read < read_ || read > written_) broken_ = true;
    if (broken_) return nullptr;
    read_ = read;
    if (written_ - read_ + stride > ring_bytes_) return nullptr;
  }
  return data_ + (written_ & (ring_bytes_ - 1)) + sizeof(RecordHeader);
}

void RingWriter::publish(RecordHeader header) {
  std::memcpy(data_ + (written_ & (ring_bytes_ - 1)), &header, sizeof header);
  written_ += stride_of(header.payload_bytes);
  positions_.written.exchange(written_);
}

RingReader::RingReader(const RingMemory& memory, int ring)
    : positions_(memory.control().ring[ring]),
      data_(memory.data(ring)),
      ring_bytes_(memory.ring_bytes()) {}

Result<std::optional<Record>> RingReader::next() {
  if (read_ == written_) {
    const uint64_t written = positions_.written.load(std::memory_order_acquire);
    if (written < read_ || written - read_ > ring_bytes_) {
      return error(Code::invalid, "a ring's positions make no sense");
    }
    written_ = written;
    if (read_ == written_) return std::optional<Record>{};
  }
  Record record;
  const uint8_t* at = data_ + (read_ & (ring_bytes_ - 1));
  if (written_ - read_ < sizeof record.header) {
    return error(Code::invalid, "a ring's record is cut off");
  }
  record.header = look_at_header(at);
  current_bytes_ = stride_of(record.header.payload_bytes);
  if (current_bytes_ > written_ - read_) {
    return error(Code::invalid, "a ring's record is longer than what was written");
  }
  record.payload = {at + sizeof record.header, record.header.payload_bytes};
  return std::optional<Record>{record};
}

void RingReader::consume() {
  read_ += current_bytes_;
}

bool RingReader::release() {
  if (released_ == read_) return false;
  released_ = read_;
  positions_.read.exchange(read_);
  return positions_.room_wanted.load() != 0 && positions_.room_wanted.exchange(0) != 0;
}

}  // namespace troupe::transport
