#include "client/log_repeats.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace troupe::client {
namespace {

using namespace std::chrono_literals;
using Lines = std::vector<std::string>;

class LogRepeatsTest : public testing::Test {
 protected:
  Lines take(Instant now, int process, const std::string& line) {
    while (static_cast<size_t>(process) >= processes_.size()) {
      processes_.push_back(ProcessId::random(random_));
    }
    return repeats.take(now, processes_[static_cast<size_t>(process)],
                        "(p" + std::to_string(process) + ")", line);
  }
  LogRepeats repeats;
  const Instant start{1h};

 private:
  SeededRandom random_{1};
  std::vector<ProcessId> processes_;
};

TEST_F(LogRepeatsTest, EqualLinesOfSeveralProcessesAreShownOnceAndThenCounted) {
  EXPECT_EQ(take(start, 0, "hello"), Lines{"(p0) hello"});
  EXPECT_FALSE(repeats.next());
  for (int process = 1; process <= 31; ++process) {
    EXPECT_EQ(take(start + 1s, process, "hello"), Lines{});
  }
  ASSERT_TRUE(repeats.next());
  EXPECT_EQ(*repeats.next(), start + LogRepeats::window);
  EXPECT_EQ(repeats.due(start + 4s), Lines{});
  EXPECT_EQ(repeats.due(start + 5s), Lines{"(p31) hello [repeated 31x across the cluster]"});
  EXPECT_FALSE(repeats.next());
  EXPECT_EQ(take(start + 6s, 1, "hello"), Lines{"(p1) hello"});
}

TEST_F(LogRepeatsTest, OneProcessMayRepeatItself) {
  for (int i = 0; i < 3; ++i) EXPECT_EQ(take(start, 0, "tick"), Lines{"(p0) tick"});
  EXPECT_EQ(take(start, 1, "tick"), Lines{});
  EXPECT_EQ(take(start, 0, "tick"), Lines{});
  EXPECT_EQ(repeats.finish(), Lines{"(p0) tick [repeated 2x across the cluster]"});
}

TEST_F(LogRepeatsTest, OtherTextIsAnotherLine) {
  EXPECT_EQ(take(start, 0, "step 1"), Lines{"(p0) step 1"});
  EXPECT_EQ(take(start, 1, "step 2"), Lines{"(p1) step 2"});
  EXPECT_EQ(take(start, 1, "step 1 "), Lines{"(p1) step 1 "});
}

TEST_F(LogRepeatsTest, WhatBecameDueIsShownBeforeTheNextLine) {
  take(start, 0, "a");
  take(start, 1, "a");
  take(start + 1s, 0, "b");
  EXPECT_EQ(take(start + 5s, 2, "a"), (Lines{"(p1) a [repeated 1x across the cluster]", "(p2) a"}));
}

TEST_F(LogRepeatsTest, MemoryIsBounded) {
  take(start, 0, "first");
  take(start, 1, "first");
  Lines shown;
  for (size_t i = 0; i < LogRepeats::lines_max; ++i) {
    for (std::string& line : take(start, 0, std::to_string(i))) shown.push_back(std::move(line));
  }
  EXPECT_EQ(shown.size(), LogRepeats::lines_max + 1);
  EXPECT_EQ(shown[LogRepeats::lines_max - 1], "(p1) first [repeated 1x across the cluster]");
}

}  // namespace
}  // namespace troupe::client
