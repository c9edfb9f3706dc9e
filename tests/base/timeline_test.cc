// The ring of records in which a process notes what it does.
#include "base/timeline.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "base/random.h"

namespace troupe {
namespace {

using namespace std::chrono_literals;

class TestClock final : public Clock {
 public:
  Instant now() const override { return Instant{Duration{now_ns.load()}}; }
  WallTime wall_now() const override { return {}; }
  std::atomic<int64_t> now_ns = 1'000'000'000;
};

class TimelineTest : public testing::Test {
 protected:
  std::span<uint8_t> bytes() {
    return {reinterpret_cast<uint8_t*>(memory_.data()), timeline_bytes};
  }
  // Of the memory, as another process reads it.
  TimelineCopy read() { return read_timeline(bytes()).value(); }
  static TimelineEvent run_of(uint64_t id, Duration duration = 5us) {
    TimelineEvent event;
    event.kind = TimelineKind::run;
    event.id = id;
    event.start = Instant{1s};
    event.duration = duration;
    return event;
  }
  uint64_t* record(uint64_t place) {
    return &memory_[(timeline_bytes - (timeline_records_max - place) * timeline_record_bytes) / 8];
  }

  TestClock clock;

 private:
  std::vector<uint64_t> memory_ = std::vector<uint64_t>(timeline_bytes / 8);

 protected:
  Timeline timeline{bytes(), clock};
};

TEST_F(TimelineTest, WhatWasNotedIsRead) {
  TimelineEvent event = run_of(0xfedcba9876543210, 134'217'727ns);
  event.has_failed = true;
  event.amount = 123'456'789;
  event.name = timeline.name("work");
  timeline.add(event);
  event.is_open = true;
  event.has_failed = false;
  event.name = timeline.name("other");
  timeline.add(event);
  const TimelineCopy copy = read();
  EXPECT_EQ(copy.lost, 0u);
  const auto events = events_of(copy.records);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].kind, TimelineKind::run);
  EXPECT_EQ(events[0].id, 0xfedcba9876543210);
  EXPECT_EQ(events[0].start, Instant{1s});
  EXPECT_EQ(events[0].duration, 134'217'727ns);
  EXPECT_EQ(events[0].amount, 123'456'789u);
  EXPECT_EQ(events[0].thread, static_cast<uint32_t>(::gettid()));
  EXPECT_TRUE(events[0].has_failed);
  EXPECT_FALSE(events[0].is_open);
  EXPECT_EQ(copy.names.at(events[0].name), "work");
  EXPECT_TRUE(events[1].is_open);
  EXPECT_FALSE(events[1].has_failed);
  EXPECT_EQ(copy.names.at(events[1].name), "other");
}

TEST_F(TimelineTest, LargeNumbersKeepEightDigits) {
  for (const int64_t ns : {0L, 1L, 134'217'728L, 3'600'000'000'123L, 86'400'000'000'000'001L}) {
    TimelineEvent event = run_of(1, Duration{ns});
    event.amount = static_cast<uint64_t>(ns);
    timeline.add(event);
    const auto back = events_of(read().records).back();
    EXPECT_NEAR(static_cast<double>(back.duration.count()), static_cast<double>(ns),
                static_cast<double>(ns) * 1e-8);
    EXPECT_EQ(back.amount, static_cast<uint64_t>(back.duration.count()));
  }
}

TEST_F(TimelineTest, TheNewestRemainWhenTheRingIsFull) {
  const uint64_t count = timeline_records_max * 2 + 7;
  for (uint64_t i = 0; i < count; ++i) timeline.add(run_of(i));
  const TimelineCopy copy = read();
  EXPECT_EQ(copy.lost, count - timeline_records_max);
  const auto events = events_of(copy.records);
  ASSERT_EQ(events.size(), timeline_records_max);
  for (uint64_t i = 0; i < events.size(); ++i) ASSERT_EQ(events[i].id, copy.lost + i);
}

TEST_F(TimelineTest, WhatEndsTakesThePlaceOfItsBeginning) {
  TimelineEvent open = run_of(1, 0ns);
  open.is_open = true;
  const uint64_t place = timeline.add(open);
  timeline.add(run_of(2));
  timeline.finish(place, run_of(1, 7us));
  auto events = events_of(read().records);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].duration, 7us);
  EXPECT_FALSE(events[0].is_open);
  // Not another's place, once that is taken.
  for (uint64_t i = 0; i < timeline_records_max; ++i) timeline.add(run_of(3));
  timeline.finish(place, run_of(1, 9us));
  events = events_of(read().records);
  EXPECT_EQ(events.back().id, 1u);
  EXPECT_EQ(events.back().duration, 9us);
  EXPECT_EQ(events.front().id, 3u);
}

TEST_F(TimelineTest, ARecordThatIsBeingWrittenIsLeftOut) {
  for (uint64_t i = 0; i < 3; ++i) timeline.add(run_of(i + 1));
  record(1)[3] &= ~uint64_t{0xffff};  // As a writer that died in the middle left it.
  const TimelineCopy copy = read();
  EXPECT_EQ(copy.lost, 1u);
  const auto events = events_of(copy.records);
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].id, 1u);
  EXPECT_EQ(events[1].id, 3u);
}

TEST_F(TimelineTest, WhatMakesNoSenseIsLeftOut) {
  for (uint64_t i = 0; i < 5; ++i) timeline.add(run_of(i + 1));
  record(0)[0] = UINT64_MAX;             // Before time began.
  record(1)[0] = INT64_MAX;              // So late that sums overflow.
  record(2)[3] |= uint64_t{31} << 16;    // Of no known kind.
  record(3)[3] |= uint64_t{4095} << 28;  // A name beyond the table.
  EXPECT_EQ(events_of(read().records).size(), 1u);
  EXPECT_EQ(read().lost, 4u);
  // A count that was overwritten: nothing is where it says.
  std::memset(bytes().data() + 8, 0xee, 8);
  EXPECT_TRUE(read().records.empty());
}

TEST_F(TimelineTest, AnyBytesCanBeRead) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    SeededRandom random{seed};
    const auto memory = bytes();
    for (size_t at = 8; at < memory.size(); at += 8) {
      const uint64_t word = random.next();
      std::memcpy(memory.data() + at, &word, sizeof word);
    }
    const TimelineCopy copy = read();
    EXPECT_EQ(copy.names.size(), timeline_names_max);
    for (const std::string& name : copy.names) EXPECT_LE(name.size(), timeline_name_bytes);
    for (const TimelineEvent& event : events_of(copy.records)) {
      EXPECT_GE(event.start + event.duration, event.start);
    }
  }
}

TEST_F(TimelineTest, MemoryOfSomethingElseIsRefused) {
  EXPECT_EQ(read_timeline(bytes().first(timeline_bytes - 8)).error().code(), Code::invalid);
  EXPECT_EQ(read_timeline({}).error().code(), Code::invalid);
  bytes()[0] ^= 1;
  EXPECT_EQ(read_timeline(bytes()).error().code(), Code::invalid);
}

TEST_F(TimelineTest, NamesBeyondTheTableAreOneName) {
  const uint16_t first = timeline.name("first");
  for (size_t i = 0; i < 2 * timeline_names_max; ++i) timeline.name("n" + std::to_string(i));
  EXPECT_EQ(timeline.name("first"), first);
  EXPECT_EQ(timeline.name("one more"), 0);
  const TimelineCopy copy = read();
  EXPECT_EQ(copy.names.size(), timeline_names_max);
  EXPECT_EQ(copy.names[first], "first");
  EXPECT_EQ(copy.names.back(), "n" + std::to_string(timeline_names_max - 3));
}

TEST_F(TimelineTest, OfLongNamesTheEndIsKept) {
  const std::string exact(timeline_name_bytes - 1, 'x');
  const std::string longer = "name::of::something" + exact;
  const uint16_t one = timeline.name(exact);
  const uint16_t two = timeline.name(longer);
  const TimelineCopy copy = read();
  EXPECT_EQ(copy.names[one], exact);
  EXPECT_EQ(copy.names[two], "..." + exact.substr(3));
}

TEST_F(TimelineTest, RecordsOutsideTheRingAreCheckedToo) {
  Bytes records;
  append_record(records, run_of(1));
  append_record(records, run_of(2));
  records.resize(records.size() + 5, 0xff);  // Cut off.
  EXPECT_EQ(events_of(records).size(), 2u);
  std::memset(records.data(), 0xff, timeline_record_bytes);
  EXPECT_EQ(events_of(records).size(), 1u);
}

// Ids as object_directory.cc makes them.
RawId result(uint64_t number) {
  return {77, number * 0x9e3779b97f4a7c15ull};
}

TEST_F(TimelineTest, ABusyProcessNotesOneCallOfSoMany) {
  bool is_busy = false;
  timeline.on_busy([&] { is_busy = true; });
  // A million calls a second for two seconds.
  uint64_t noted = 0;
  uint64_t noted_at_last = 0;
  for (uint64_t i = 1; i <= 2'000'000; ++i) {
    clock.now_ns += 1000;
    if (i == 1'000'000) noted_at_last = noted;
    if (!timeline.wants(result(i))) continue;
    ++noted;
    TimelineEvent event = run_of(i);
    event.start = clock.now();
    timeline.add_sampled(event);
  }
  EXPECT_TRUE(is_busy);
  const uint64_t a_second = noted - noted_at_last;
  EXPECT_LE(a_second, timeline_rate * 11 / 10);
  EXPECT_GE(a_second, timeline_rate / 4);
  EXPECT_EQ(events_of(read().records).back().sampled_log2, 7);
  TimelineEvent open = run_of(1);
  open.start = clock.now();
  timeline.finish(timeline.add_sampled(open), run_of(1));
  EXPECT_EQ(events_of(read().records).back().sampled_log2, 7);
  // Callee and caller choose alike: what one of 128 chooses is among what one of 64 does.
  for (uint64_t i = 1; i < 10'000; ++i) {
    if (timeline.wants(result(i))) {
      EXPECT_LE(result(i).low, UINT64_MAX / 64);
    }
  }
}

TEST_F(TimelineTest, AQuietProcessSoonNotesAllAgain) {
  EXPECT_TRUE(timeline.relax());
  while (timeline.wants({1, UINT64_MAX})) timeline.add_sampled(run_of(1));
  int rounds = 1;
  while (!timeline.relax()) ++rounds;
  EXPECT_LE(rounds, 2);
  EXPECT_TRUE(timeline.wants({1, UINT64_MAX}));
  // While it stays busy it does not.
  while (timeline.wants({1, UINT64_MAX})) timeline.add_sampled(run_of(1));
  for (int i = 0; i < 5; ++i) {
    for (uint64_t n = 0; n < timeline_rate / 10; ++n) {
      TimelineEvent event = run_of(n);
      event.start += 2h * (i + 1) + n * 130us;
      timeline.add_sampled(event);
    }
    EXPECT_FALSE(timeline.relax());
  }
}

class ConcurrentTimelineTest : public TimelineTest {
 protected:
  void note(uint64_t first, uint64_t count) {
    for (uint64_t id = first; id < first + count; ++id) {
      TimelineEvent event = run_of(id, Duration{static_cast<int64_t>(id)});
      event.amount = id;
      event.name = timeline.name("n" + std::to_string(id % 50));
      const uint64_t place = timeline.add(event);
      if (id % 3 == 0) timeline.finish(place, event);
    }
  }
  // Until `done`: all of a record, or none of it.
  void read_until(const std::atomic<bool>& done) {
    while (!done) {
      const TimelineCopy copy = read();
      for (const TimelineEvent& event : events_of(copy.records)) {
        ASSERT_EQ(event.amount, event.id);
        ASSERT_EQ(static_cast<uint64_t>(event.duration.count()), event.id);
        ASSERT_EQ(copy.names.at(event.name), "n" + std::to_string(event.id % 50));
      }
    }
  }
};

TEST_F(ConcurrentTimelineTest, ThreadsNoteWhileAnotherReads) {
  std::atomic<bool> done = false;
  constexpr uint64_t each = timeline_records_max / 2;
  std::thread one{[&] { note(0, each); }};
  std::thread two{[&] { note(1 << 20, each); }};
  std::thread reader{[&] { read_until(done); }};
  one.join();
  two.join();
  done = true;
  reader.join();
  EXPECT_EQ(events_of(read().records).size(), timeline_records_max);
}

TEST_F(ConcurrentTimelineTest, WhatIsOverwrittenWhileItIsReadIsLeftOut) {
  std::atomic<bool> done = false;
  std::thread reader{[&] { read_until(done); }};
  note(0, 6 * timeline_records_max);
  done = true;
  reader.join();
  EXPECT_EQ(events_of(read().records).size(), timeline_records_max);
}

}  // namespace
}  // namespace troupe
