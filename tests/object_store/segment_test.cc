#include "object_store/segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "tests/object_store/leak_check.h"

namespace troupe::object_store {
namespace {

constexpr uint64_t mebibyte = 1 << 20;
constexpr int all_seals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

using SegmentTest = LeakChecked;

FileDescriptor make_memfd(uint64_t size_bytes, int seals) {
  FileDescriptor fd{::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size_bytes)), 0);
  if (seals != 0) {
    EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  }
  return fd;
}

FileDescriptor copy_of(int fd) {
  return FileDescriptor{::fcntl(fd, F_DUPFD_CLOEXEC, 0)};
}

// Lowers a limit of this process for a scope.
class Limit {
 public:
  Limit(__rlimit_resource resource, rlim_t soft) : resource_(resource) {
    EXPECT_EQ(::getrlimit(resource, &before_), 0);
    const rlimit lowered{soft, before_.rlim_max};
    EXPECT_EQ(::setrlimit(resource, &lowered), 0);
  }
  ~Limit() { ::setrlimit(resource_, &before_); }

 private:
  __rlimit_resource resource_;
  rlimit before_{};
};

TEST_F(SegmentTest, WhatIsWrittenIsReadWithoutACopy) {
  auto producer = ProducerSegment::create(4 * mebibyte).value();
  auto reader = ReaderSegment::open(copy_of(producer.fd())).value();
  EXPECT_EQ(reader.size_bytes(), 4 * mebibyte);
  auto block = producer.prepare(1000, 100'000).value();
  std::ranges::fill(block, uint8_t{7});
  const BytesView view = reader.view(1000, 100'000).value();
  EXPECT_TRUE(std::ranges::equal(view, block));
  block[5] = 8;  // The same memory: a later write shows.
  EXPECT_EQ(view[5], 8);
}

TEST_F(SegmentTest, CostsMemoryOnlyForPreparedPages) {
  auto producer = ProducerSegment::create(uint64_t{1} << 38).value();
  const auto reader = ReaderSegment::open(copy_of(producer.fd())).value();
  EXPECT_EQ(reader.memory_bytes().value(), 0U);
  ASSERT_TRUE(producer.prepare(0, 100));
  EXPECT_EQ(reader.memory_bytes().value(), page_bytes);
  ASSERT_TRUE(producer.prepare(64, 2 * page_bytes));
  EXPECT_EQ(reader.memory_bytes().value(), 3 * page_bytes);
  ASSERT_TRUE(producer.prepare(0, 3 * page_bytes));
  EXPECT_EQ(reader.memory_bytes().value(), 3 * page_bytes);
  // Far above what was used so far: only that block, not all that lies below it.
  ASSERT_TRUE(producer.prepare(uint64_t{1} << 37, page_bytes));
  EXPECT_EQ(reader.memory_bytes().value(), 4 * page_bytes);
  // What lies between has no memory yet, so preparing it must get some.
  ASSERT_TRUE(producer.prepare(100 * page_bytes, page_bytes));
  EXPECT_EQ(reader.memory_bytes().value(), 5 * page_bytes);
}

TEST_F(SegmentTest, ReaderMapsOnFirstView) {
  auto producer = ProducerSegment::create(mebibyte).value();
  auto reader = ReaderSegment::open(copy_of(producer.fd())).value();
  EXPECT_FALSE(reader.mapped());
  ASSERT_TRUE(reader.view(0, 0));
  EXPECT_FALSE(reader.mapped());
  ASSERT_TRUE(reader.view(0, 1));
  EXPECT_TRUE(reader.mapped());
}

TEST_F(SegmentTest, ViewOfPagesNeverWrittenIsZeroesWithMemoryBehind) {
  // Without memory behind it, reading a page of a full machine would raise SIGBUS.
  constexpr uint64_t pages = 400;
  auto producer = ProducerSegment::create(pages * page_bytes).value();
  auto reader = ReaderSegment::open(copy_of(producer.fd())).value();
  std::vector<bool> expected(pages);
  // Each span overlaps those before, and meets the 64-page words of the notes differently.
  const std::pair<uint64_t, uint64_t> spans[] = {{0, 64},   {399, 1},  {10, 64},   {64, 64},
                                                 {191, 2},  {130, 80}, {100, 229}, {399, 1},
                                                 {320, 79}, {0, 400},  {63, 1},    {256, 128}};
  for (const auto& [first, count] : spans) {
    const auto view = reader.view(first * page_bytes + 5, count * page_bytes - 10).value();
    std::fill_n(expected.begin() + static_cast<std::ptrdiff_t>(first), count, true);
    const auto touched = static_cast<uint64_t>(std::ranges::count(expected, true));
    EXPECT_EQ(reader.memory_bytes().value(), touched * page_bytes) << first << " " << count;
    // Only now: reading gets memory too.
    EXPECT_TRUE(std::ranges::all_of(view, [](uint8_t byte) { return byte == 0; }));
  }
}

TEST_F(SegmentTest, PlacesOutsideAreInvalid) {
  auto producer = ProducerSegment::create(mebibyte).value();
  auto reader = ReaderSegment::open(copy_of(producer.fd())).value();
  const std::pair<uint64_t, uint64_t> outside[] = {
      {mebibyte + 1, 0}, {0, mebibyte + 1}, {mebibyte, 1}, {1, UINT64_MAX}, {UINT64_MAX, 1}};
  for (const auto& [offset, size] : outside) {
    EXPECT_EQ(producer.prepare(offset, size).error().code(), Code::invalid);
    EXPECT_EQ(reader.view(offset, size).error().code(), Code::invalid);
  }
  EXPECT_TRUE(producer.prepare(mebibyte, 0));
  EXPECT_TRUE(producer.prepare(0, mebibyte));
}

TEST_F(SegmentTest, NobodyElseCanWriteOrResize) {
  auto producer = ProducerSegment::create(mebibyte).value();
  ASSERT_TRUE(producer.prepare(0, page_bytes));
  const int fd = producer.fd();
  EXPECT_EQ(::fcntl(fd, F_GET_SEALS) & all_seals, all_seals);
  EXPECT_EQ(::mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
  EXPECT_EQ(::pwrite(fd, "x", 1, 0), -1);
  EXPECT_EQ(::ftruncate(fd, 0), -1);
  EXPECT_EQ(::ftruncate(fd, 2 * mebibyte), -1);
  EXPECT_EQ(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, page_bytes), -1);
  EXPECT_EQ(::fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
  // Opening the file anew, by name, gives no more.
  const FileDescriptor again{
      ::open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDWR | O_CLOEXEC)};
  EXPECT_EQ(::mmap(nullptr, page_bytes, PROT_WRITE, MAP_SHARED, again.get(), 0), MAP_FAILED);
  // Nor does asking for more rights on a mapping that one has.
  auto reader = ReaderSegment::open(copy_of(fd)).value();
  auto* bytes = const_cast<uint8_t*>(reader.view(0, page_bytes).value().data());
  EXPECT_EQ(::mprotect(bytes, page_bytes, PROT_READ | PROT_WRITE), -1);
  EXPECT_EQ(errno, EACCES);
}

TEST_F(SegmentTest, WritingThroughAViewFaults) {
  auto producer = ProducerSegment::create(mebibyte).value();
  auto reader = ReaderSegment::open(copy_of(producer.fd())).value();
  const BytesView view = reader.view(0, 100).value();
  EXPECT_EXIT(
      {
        ::signal(SIGSEGV, SIG_DFL);  // A sanitizer would turn it into an exit.
        *const_cast<volatile uint8_t*>(view.data()) = 1;
        std::exit(0);
      },
      testing::KilledBySignal(SIGSEGV), "");
}

TEST_F(SegmentTest, ForkedChildrenDoNotInheritTheWritableMapping) {
  auto producer = ProducerSegment::create(mebibyte).value();
  auto block = producer.prepare(0, 100).value();
  block[0] = 1;
  EXPECT_EXIT(
      {
        ::signal(SIGSEGV, SIG_DFL);
        *static_cast<volatile uint8_t*>(block.data()) = 2;
        std::exit(0);
      },
      testing::KilledBySignal(SIGSEGV), "");
  EXPECT_EQ(block[0], 1);
}

TEST_F(SegmentTest, RefusesDescriptorsThatCouldHarmTheReader) {
  const auto refusal = [](FileDescriptor fd) {
    const auto opened = ReaderSegment::open(std::move(fd));
    return opened ? Code::ok : opened.error().code();
  };
  EXPECT_EQ(refusal(FileDescriptor{}), Code::denied);
  EXPECT_EQ(refusal(make_memfd(mebibyte, 0)), Code::denied);
  for (const int missing : {F_SEAL_FUTURE_WRITE, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL}) {
    EXPECT_EQ(refusal(make_memfd(mebibyte, all_seals & ~missing)), Code::denied) << missing;
  }
  EXPECT_EQ(refusal(make_memfd(0, all_seals)), Code::invalid);
  EXPECT_EQ(refusal(make_memfd(page_bytes + 1, all_seals)), Code::invalid);
  EXPECT_EQ(refusal(make_memfd(segment_bytes_max + page_bytes, all_seals)), Code::invalid);
  EXPECT_EQ(refusal(FileDescriptor{::open("/dev/null", O_RDWR | O_CLOEXEC)}), Code::denied);
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  const FileDescriptor write_end{pipe_ends[1]};
  EXPECT_EQ(refusal(FileDescriptor{pipe_ends[0]}), Code::denied);
  EXPECT_EQ(refusal(make_memfd(mebibyte, all_seals)), Code::ok);
}

TEST_F(SegmentTest, ImpossibleSizesAreInvalid) {
  EXPECT_EQ(ProducerSegment::create(0).error().code(), Code::invalid);
  EXPECT_EQ(ProducerSegment::create(segment_bytes_max + 1).error().code(), Code::invalid);
  EXPECT_EQ(ProducerSegment::create(UINT64_MAX).error().code(), Code::invalid);
  EXPECT_EQ(ProducerSegment::create(1).value().size_bytes(), page_bytes);
}

TEST_F(SegmentTest, SaysWhatToDoWhenDescriptorsRunOut) {
  Status made = ok();
  {
    const Limit limit{RLIMIT_NOFILE, 0};
    if (auto result = ProducerSegment::create(mebibyte); !result) made = result.error();
  }
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), Code::exhausted);
  EXPECT_NE(made.error().message().find("ulimit -n"), std::string::npos) << made.error().message();
}

TEST_F(SegmentTest, SaysWhatToDoWhenAddressSpaceRunsOut) {
  auto producer = ProducerSegment::create(mebibyte).value();
  auto reader = ReaderSegment::open(copy_of(producer.fd())).value();
  Status made = ok(), viewed = ok();
  {
    const Limit limit{RLIMIT_AS, 1 << 20};
    if (auto result = ProducerSegment::create(mebibyte); !result) made = result.error();
    if (auto result = reader.view(0, 1); !result) viewed = result.error();
  }
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), Code::exhausted);
  EXPECT_NE(made.error().message().find("ulimit -v"), std::string::npos) << made.error().message();
  ASSERT_FALSE(viewed);
  EXPECT_EQ(viewed.error().code(), Code::exhausted);
  EXPECT_TRUE(reader.view(0, 1));  // Nothing is broken by the failure.
}

TEST_F(SegmentTest, LimitOnFileSizesIsAnErrorAndNotASignal) {
  Status made = ok();
  {
    const Limit limit{RLIMIT_FSIZE, mebibyte};
    if (auto result = ProducerSegment::create(2 * mebibyte); !result) made = result.error();
  }
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), Code::exhausted);
  EXPECT_NE(made.error().message().find("ulimit -f"), std::string::npos) << made.error().message();
}

TEST_F(SegmentTest, PageWithoutMemoryIsAnErrorAndNotSigbus) {
  // Touching the second page of this mapping raises SIGBUS: it lies behind the end of the file.
  const FileDescriptor fd = make_memfd(page_bytes, F_SEAL_GROW);
  void* data = ::mmap(nullptr, 2 * page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(data, MAP_FAILED);
  auto* bytes = static_cast<uint8_t*>(data);
  EXPECT_TRUE(populate_for_writing(fd.get(), 10, {bytes + 10, 20}));
  const Status status =
      populate_for_writing(fd.get(), page_bytes + 10, {bytes + page_bytes + 10, 20});
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::exhausted);
  ::munmap(data, 2 * page_bytes);
}

bool write_file(const char* path, const std::string& text) {
  const FileDescriptor fd{::open(path, O_WRONLY | O_CLOEXEC)};
  return ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

bool enter_own_mount_namespace() {
  const uid_t user = ::getuid();
  if (::unshare(CLONE_NEWNS) != 0) {
    // Not root: become root of a user namespace.
    if (::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0 ||
        !write_file("/proc/self/uid_map", "0 " + std::to_string(user) + " 1")) {
      return false;
    }
  }
  return ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0;
}

// A file system of 1 MiB in namespaces of a child's own. Exit codes: 0 as it should be, 77 not
// permitted here, else what went wrong.
int fill_a_small_file_system() {
  if (!enter_own_mount_namespace()) return 77;
  char folder[] = "/tmp/troupe-segment-XXXXXX";
  if (::mkdtemp(folder) == nullptr) return 77;
  const bool mounted = ::mount("none", folder, "tmpfs", 0, "size=1m") == 0;
  int code = 77;
  if (mounted) {
    const FileDescriptor fd{
        ::open((std::string(folder) + "/full").c_str(), O_RDWR | O_CREAT, 0600)};
    if (::ftruncate(fd.get(), 4 * mebibyte) != 0) return 2;
    void* data = ::mmap(nullptr, 4 * mebibyte, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (data == MAP_FAILED) return 3;
    auto* bytes = static_cast<uint8_t*>(data);
    const Status fits = populate_for_writing(fd.get(), 0, {bytes, mebibyte / 2});
    const Status full = populate_for_writing(fd.get(), 0, {bytes, 4 * mebibyte});
    code = !fits ? 4 : full ? 5 : full.error().code() != Code::exhausted ? 6 : 0;
    ::umount2(folder, MNT_DETACH);
  }
  ::rmdir(folder);
  return code;
}

TEST_F(SegmentTest, FullMemoryIsAnErrorAndNotSigbus) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(fill_a_small_file_system());
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status)) << "killed by signal " << WTERMSIG(status);
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "mounting is not permitted here";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST_F(SegmentTest, MovesAndDescriptorOutlivesTheProducerSegment) {
  FileDescriptor fd;
  {
    auto first = ProducerSegment::create(mebibyte).value();
    ProducerSegment second = std::move(first);
    first = ProducerSegment::create(mebibyte).value();
    second.prepare(0, 4).value()[3] = 9;
    fd = copy_of(second.fd());
    EXPECT_EQ(mapped_segments(), 2);
  }
  EXPECT_EQ(mapped_segments(), 0);
  auto reader = ReaderSegment::open(std::move(fd)).value();
  EXPECT_EQ(reader.view(0, 4).value()[3], 9);
}

}  // namespace
}  // namespace troupe::object_store
