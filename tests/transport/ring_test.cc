#include "transport/ring.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <random>
#include <thread>

namespace troupe::transport {
namespace {

FileDescriptor copy_of(const FileDescriptor& file) {
  return FileDescriptor{::fcntl(file.get(), F_DUPFD_CLOEXEC, 0)};
}

Bytes pattern(size_t bytes, uint64_t seed) {
  Bytes value(bytes);
  std::minstd_rand random(static_cast<uint32_t>(seed + 1));
  for (uint8_t& byte : value) byte = static_cast<uint8_t>(random());
  return value;
}

// A writer and a reader as two processes have them: each maps the memory by itself.
class RingTest : public testing::Test {
 protected:
  static constexpr size_t ring_bytes = ring_bytes_min;

  bool write(const Bytes& payload, uint64_t call, uint16_t more = 0) {
    uint8_t* room = writer.reserve(payload.size());
    if (room == nullptr) return false;
    if (!payload.empty()) std::memcpy(room, payload.data(), payload.size());
    writer.publish({static_cast<uint32_t>(payload.size()), 7, more, call});
    return true;
  }
  // The next record's payload; it must be there and carry this number.
  Bytes read(uint64_t call) {
    const auto record = reader.next().value();
    EXPECT_TRUE(record);
    if (!record) return {};
    EXPECT_EQ(record->header.call, call);
    EXPECT_EQ(record->header.kind, 7);
    Bytes payload{record->payload.begin(), record->payload.end()};
    reader.consume();
    return payload;
  }
  RingPositions& positions() { return writing.control().ring[0]; }
  // Puts a header where the reader looks next, as no writer of ours would.
  void forge(uint64_t at, uint32_t payload_bytes) {
    const RecordHeader header{payload_bytes, 7, 0, 1};
    std::memcpy(writing.data(0) + at % ring_bytes, &header, sizeof header);
  }
  void expect_refused(const char* why) {
    const auto next = reader.next();
    ASSERT_FALSE(next);
    EXPECT_EQ(next.error().code(), Code::invalid);
    EXPECT_NE(next.error().message().find(why), std::string::npos) << next.error().message();
  }

  FileDescriptor file = create_ring_file(ring_bytes).value();
  RingMemory writing = RingMemory::open(copy_of(file)).value();
  RingMemory reading = RingMemory::open(copy_of(file)).value();
  RingWriter writer{writing, 0};
  RingReader reader{reading, 0};
};

TEST_F(RingTest, CarriesEverySizeUpToTheLargest) {
  EXPECT_EQ(writer.payload_max(), ring_bytes / 2);
  uint64_t call = 0;
  std::vector<size_t> sizes{ring_bytes / 2, ring_bytes / 2 - 1, ring_bytes / 2 - 15, 4096};
  for (size_t size = 0; size <= 70; ++size) sizes.push_back(size);
  for (const size_t size : sizes) {
    const Bytes payload = pattern(size, ++call);
    ASSERT_TRUE(write(payload, call)) << size;
    EXPECT_EQ(read(call), payload) << size;
    EXPECT_FALSE(reader.next().value());
    reader.release();
  }
}

TEST_F(RingTest, RecordsThatCrossTheEndAreWhole) {
  // No size divides the ring, so that each place of the end comes up.
  for (uint64_t call = 1; call <= 2000; ++call) {
    const Bytes payload = pattern(1000 + call % 313, call);
    ASSERT_TRUE(write(payload, call));
    ASSERT_EQ(read(call), payload);
    reader.release();
  }
  EXPECT_GT(positions().written.load(), 20 * ring_bytes);
}

TEST_F(RingTest, AFullRingRefusesUntilTheReaderReleases) {
  const Bytes payload = pattern(1008, 1);  // A record of 1 KiB.
  uint64_t written = 0;
  while (write(payload, written)) ++written;
  EXPECT_EQ(written, ring_bytes / 1024);
  EXPECT_FALSE(write({}, 99)) << "not even a header fits";
  EXPECT_FALSE(writer.is_broken());
  EXPECT_EQ(read(0), payload);
  EXPECT_FALSE(write(payload, written)) << "what was consumed is not yet released";
  EXPECT_FALSE(reader.release()) << "nobody asked for room";
  EXPECT_TRUE(write(payload, written));
  EXPECT_FALSE(write(payload, 99));
  writer.want_room();
  EXPECT_FALSE(write(payload, 99));
  EXPECT_FALSE(reader.release()) << "nothing new was consumed";
  EXPECT_EQ(read(1), payload);
  EXPECT_TRUE(reader.release());
  EXPECT_EQ(read(2), payload);
  EXPECT_FALSE(reader.release()) << "it was told once";
  for (uint64_t call = 3; call <= written; ++call) EXPECT_EQ(read(call), payload);
  EXPECT_FALSE(reader.next().value());
}

TEST_F(RingTest, TwoThreadsCarryManyRecordsInOrder) {
  constexpr uint64_t count = 200'000;
  std::thread writes([this] {
    for (uint64_t call = 0; call < count;) {
      const size_t bytes = call * 37 % 700;
      uint8_t* room = writer.reserve(bytes);
      if (room == nullptr) {
        std::this_thread::yield();
        continue;
      }
      std::memset(room, static_cast<int>(call & 0xff), bytes);
      writer.publish({static_cast<uint32_t>(bytes), 1, 0, call++});
    }
  });
  uint64_t wrong = 0;
  for (uint64_t call = 0; call < count;) {
    const auto record = reader.next().value();
    if (!record) {
      std::this_thread::yield();
      continue;
    }
    if (record->header.call != call || record->payload.size() != call * 37 % 700) ++wrong;
    for (const uint8_t byte : record->payload) wrong += byte != (call & 0xff) ? 1 : 0;
    reader.consume();
    reader.release();
    ++call;
  }
  writes.join();
  EXPECT_EQ(wrong, 0u);
}

TEST_F(RingTest, TheTwoDirectionsDoNotMeet) {
  RingWriter back{reading, 1};
  RingReader there{writing, 1};
  ASSERT_TRUE(write(pattern(5, 1), 1));
  EXPECT_FALSE(there.next().value());
  std::memset(back.reserve(3), 9, 3);
  back.publish({3, 7, 0, 2});
  EXPECT_EQ(there.next().value()->payload.size(), 3u);
  EXPECT_EQ(read(1), pattern(5, 1));
}

TEST_F(RingTest, APositionThatGoesBackIsRefused) {
  ASSERT_TRUE(write(pattern(100, 1), 1));
  EXPECT_EQ(read(1).size(), 100u);
  positions().written.store(0);
  expect_refused("positions");
}

TEST_F(RingTest, APositionTooFarAheadIsRefused) {
  for (const uint64_t ahead : {uint64_t{ring_bytes} + 1, uint64_t{1} << 63, ~uint64_t{0}}) {
    positions().written.store(ahead);
    expect_refused("positions");
  }
  positions().written.store(ring_bytes);
  forge(0, ring_bytes - 16);
  EXPECT_EQ(reader.next().value()->payload.size(), ring_bytes - 16) << "as far as the mapping goes";
}

TEST_F(RingTest, ARecordLongerThanWhatWasWrittenIsRefused) {
  for (const uint32_t bytes : {17u, 4096u, uint32_t{ring_bytes}, 0x7fffffffu, 0xffffffffu}) {
    forge(0, bytes);
    positions().written.store(32);
    expect_refused("longer");
  }
}

TEST_F(RingTest, AHeaderThatIsCutOffIsRefused) {
  for (const uint64_t written : {uint64_t{1}, uint64_t{15}}) {
    positions().written.store(written);
    RingReader fresh{reading, 0};
    const auto next = fresh.next();
    ASSERT_FALSE(next);
    EXPECT_NE(next.error().message().find("cut off"), std::string::npos);
  }
}

TEST_F(RingTest, AWriterSeesThatTheReadersPositionMakesNoSense) {
  const Bytes payload = pattern(1008, 1);
  while (write(payload, 1)) {
  }
  positions().read.store(uint64_t{1} << 40);
  EXPECT_EQ(writer.reserve(0), nullptr);
  EXPECT_TRUE(writer.is_broken());
  positions().read.store(ring_bytes);
  EXPECT_EQ(writer.reserve(0), nullptr) << "once broken it stays so";
}

TEST_F(RingTest, AWriterSeesAReaderThatGoesBack) {
  const Bytes payload = pattern(1008, 1);
  while (write(payload, 1)) {
  }
  positions().read.store(2048);
  EXPECT_NE(writer.reserve(1008), nullptr);
  while (write(payload, 1)) {
  }
  positions().read.store(1024);
  EXPECT_EQ(writer.reserve(0), nullptr);
  EXPECT_TRUE(writer.is_broken());
}

// --- Whose memory is refused.

Code open_code(FileDescriptor file) {
  const auto opened = RingMemory::open(std::move(file));
  return opened ? Code::ok : opened.error().code();
}

FileDescriptor memfd(size_t bytes, int seals) {
  FileDescriptor file{::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  EXPECT_EQ(::ftruncate(file.get(), static_cast<off_t>(bytes)), 0);
  EXPECT_EQ(::fcntl(file.get(), F_ADD_SEALS, seals), 0);
  return file;
}

constexpr size_t whole = ring_page_bytes + 2 * ring_bytes_min;

TEST(RingMemory, RefusesAFileThatCouldChangeItsSize) {
  EXPECT_EQ(open_code(memfd(whole, 0)), Code::invalid);
  EXPECT_EQ(open_code(memfd(whole, F_SEAL_SHRINK)), Code::invalid);
  EXPECT_EQ(open_code(memfd(whole, F_SEAL_GROW)), Code::invalid);
  EXPECT_EQ(open_code(memfd(whole, F_SEAL_SHRINK | F_SEAL_GROW)), Code::ok);
  EXPECT_EQ(open_code(FileDescriptor{::open("/dev/zero", O_RDWR | O_CLOEXEC)}), Code::invalid);
  EXPECT_EQ(open_code(FileDescriptor{}), Code::invalid);
}

TEST(RingMemory, RefusesAFileOfAnotherSize) {
  constexpr int sealed = F_SEAL_SHRINK | F_SEAL_GROW;
  for (const size_t bytes :
       {size_t{0}, size_t{1}, ring_page_bytes, whole - 1, whole + 1, whole + 4096,
        ring_page_bytes + 2 * 3 * ring_bytes_min, ring_page_bytes + ring_bytes_min,
        ring_page_bytes + 4 * ring_bytes_max}) {
    EXPECT_EQ(open_code(memfd(bytes, sealed)), Code::invalid) << bytes;
  }
  EXPECT_EQ(open_code(memfd(ring_page_bytes + 2 * ring_bytes_max, sealed)), Code::ok);
}

TEST(RingMemory, RefusesAFileThatCannotBeWritten) {
  constexpr int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  EXPECT_NE(open_code(memfd(whole, seals)), Code::ok);
}

TEST(SharedPage, RefusesWhatIsTooShortOrNotSealed) {
  constexpr int sealed = F_SEAL_SHRINK | F_SEAL_GROW;
  EXPECT_EQ(SharedPage::open(memfd(4095, sealed)).error().code(), Code::invalid);
  EXPECT_EQ(SharedPage::open(memfd(4096, 0)).error().code(), Code::invalid);
  EXPECT_TRUE(SharedPage::open(memfd(4096, sealed)));
  auto page = SharedPage::create("test").value();
  page.as<std::atomic<uint32_t>>() = 7;
  auto again = SharedPage::open(copy_of(page.file())).value();
  again.close_file();
  EXPECT_EQ(again.as<std::atomic<uint32_t>>().load(), 7u) << "the memory outlives the descriptor";
}

}  // namespace
}  // namespace troupe::transport
