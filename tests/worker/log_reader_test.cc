#include "worker/log_reader.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "worker/log_forwarder.h"

namespace troupe::worker {
namespace {

using Lines = std::vector<std::string>;

class LogReaderTest : public testing::Test {
 protected:
  LogReaderTest() {
    char pattern[] = "/tmp/troupe-log-XXXXXX";
    ::close(::mkstemp(pattern));
    path = pattern;
    reader.emplace(path);
  }
  ~LogReaderTest() override { std::filesystem::remove(path); }
  void write(const std::string& text) { std::ofstream{path, std::ios::app} << text; }
  LogReader::Lines read(bool ended = false) { return reader->read(1 << 20, ended); }

  std::string path;
  std::optional<LogReader> reader;
};

TEST_F(LogReaderTest, GivesWholeLinesOnceAndTheLastAtTheEnd) {
  EXPECT_EQ(read().lines, Lines{});
  write("one\ntwo\nthr");
  EXPECT_EQ(read().lines, (Lines{"one", "two"}));
  EXPECT_EQ(read().lines, Lines{});
  write("ee\n\nfour");
  EXPECT_EQ(read().lines, (Lines{"three", ""}));
  EXPECT_EQ(read(true).lines, Lines{"four"});
  EXPECT_EQ(read(true).lines, Lines{});
}

TEST_F(LogReaderTest, ReadsNoMoreThanItMay) {
  write("0123456789\nabc\n");
  const auto first = reader->read(5, true);
  EXPECT_EQ(first.lines, Lines{});
  EXPECT_TRUE(first.more);
  const auto second = reader->read(7, true);
  EXPECT_EQ(second.lines, Lines{"0123456789"});
  EXPECT_TRUE(second.more);
  const auto last = reader->read(100, true);
  EXPECT_EQ(last.lines, Lines{"abc"});
  EXPECT_FALSE(last.more);
}

TEST_F(LogReaderTest, WhatIsTooMuchIsLeftOutAndCounted) {
  const std::string line(99, 'x');
  constexpr uint64_t count = 50'000;  // 5 MB.
  std::string text;
  for (uint64_t i = 0; i < count; ++i) {
    text += line + "\n";
    // Not among those that are missed.
    if (i % 1000 == 0) text += "2026-01-02T03:04:05.678 I troupe actor something_happened\n";
  }
  write("begun ");
  EXPECT_EQ(read().lines, Lines{});
  write(text);
  uint64_t lost = 0;
  uint64_t got = 0;
  for (bool more = true; more;) {
    const auto found = read();
    lost += found.lost;
    got += found.lines.size();
    more = found.more;
    for (const std::string& one : found.lines) ASSERT_EQ(one, line);
  }
  EXPECT_EQ(lost + got, count);
  EXPECT_GE(got * 100, LogReader::unread_bytes_max - 1000);  // But for those of the runtime.
  EXPECT_LE(got * 100, LogReader::unread_bytes_max + 100);
}

TEST_F(LogReaderTest, ALongLineComesInPieces) {
  const std::string piece(LogReader::line_bytes_max, 'x');
  write(piece);
  EXPECT_EQ(read().lines, Lines{});
  write("\n" + piece + "y\n");
  EXPECT_EQ(read().lines, (Lines{piece, piece, "y"}));
}

TEST_F(LogReaderTest, OneLineWithoutEndIsCountedAsOne) {
  write(std::string(3 << 20, 'x') + "\nnext\n");
  const auto found = read();
  EXPECT_EQ(found.lost, 1U);
  ASSERT_EQ(found.lines.size(), 1 + LogReader::unread_bytes_max / LogReader::line_bytes_max);
  EXPECT_EQ(found.lines.back(), "next");
}

TEST_F(LogReaderTest, TheRuntimesOwnLinesAreLeftOut) {
  write(
      "2026-01-02T03:04:05.678 I troupe actor process_ends why=\"its work is done\"\n"
      "2026-01-02T03:04:05.678 W troupe actor task_over_time_limit task=f\n"
      "2026-01-02T03:04:05.678 E troupe actor no_rings why=none\n"
      "2026-01-02T03:04:05.678 I think\n"
      "2026-01-02\n");
  EXPECT_EQ(read().lines, (Lines{"2026-01-02T03:04:05.678 E troupe actor no_rings why=none",
                                 "2026-01-02T03:04:05.678 I think", "2026-01-02"}));
}

TEST_F(LogReaderTest, AFileThatIsGoneHasNoLines) {
  std::filesystem::remove(path);
  EXPECT_EQ(read(true).lines, Lines{});
}

TEST(ProgramOf, NamesPeopleKnow) {
  EXPECT_EQ(program_of("/a/b/libhello_task_module.so"), "hello_task");
  EXPECT_EQ(program_of("inference"), "inference");
  EXPECT_EQ(program_of("/a/mine.so"), "mine");
}

}  // namespace
}  // namespace troupe::worker
