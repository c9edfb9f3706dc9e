// What becomes of records in a trace.
#include "troupe/trace_writer.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "base/random.h"

namespace troupe::tools {
namespace {

using namespace std::chrono_literals;
namespace json = boost::json;

class TraceWriterTest : public testing::Test {
 protected:
  TraceWriterTest() {
    about.process.process = ProcessId::random(random);
    about.process.node = node;
    about.kind = "actor";
    about.pid = 1234;
    about.node_name = "worker-0";
    about.names = {"", "work"};
  }
  ~TraceWriterTest() override { std::fclose(file); }

  static TimelineEvent event(TimelineKind kind, uint64_t id, Instant start, Duration duration) {
    TimelineEvent made;
    made.kind = kind;
    made.id = id;
    made.name = 1;
    made.thread = 1234;
    made.start = start;
    made.duration = duration;
    return made;
  }
  protocol::ProcessTimeline with(std::vector<TimelineEvent> events) {
    protocol::ProcessTimeline timeline = about;
    for (const TimelineEvent& one : events) append_record(timeline.records, one);
    return timeline;
  }
  // The worker's clock said 5 s when the head's said 7 s.
  protocol::ProcessTimeline clock(Duration doubt = {}) {
    protocol::ProcessTimeline timeline;
    timeline.process.node = node;
    timeline.process.process = ProcessId::random(random);
    timeline.kind = "clock";
    append_record(timeline.records, event(TimelineKind::clock, 7'000'000'000, Instant{5s}, doubt));
    return timeline;
  }
  json::array finish() {
    EXPECT_TRUE(trace.finish());
    std::string text;
    std::rewind(file);
    char buffer[4096];
    for (size_t count; (count = std::fread(buffer, 1, sizeof buffer, file)) > 0;) {
      text.append(buffer, count);
    }
    json::error_code failed;
    whole = json::parse(text, failed);
    EXPECT_FALSE(failed) << failed.message() << "\n" << text;
    return whole.at("traceEvents").as_array();
  }
  // Those of a phase.
  static std::vector<json::value> of(const json::array& events, std::string_view phase) {
    std::vector<json::value> found;
    for (const json::value& one : events) {
      if (one.at("ph").as_string() == phase) found.push_back(one);
    }
    return found;
  }

  SeededRandom random{3};
  const NodeId node = NodeId::random(random);
  protocol::ProcessTimeline about;
  std::FILE* const file = std::tmpfile();
  TraceWriter trace{file};
  json::value whole;
};

TEST_F(TraceWriterTest, AnEmptyTraceIsValid) {
  EXPECT_TRUE(finish().empty());
  EXPECT_EQ(trace.events(), 0u);
}

TEST_F(TraceWriterTest, AnArrowLeadsFromTheSubmissionToTheRun) {
  auto run = event(TimelineKind::run, 42, Instant{2s}, 30us);
  run.amount = 2'500;
  run.sampled_log2 = 4;
  run.has_failed = true;
  trace.add(with({event(TimelineKind::submitted, 42, Instant{1s}, 0ns), run}));
  const json::array events = finish();
  EXPECT_EQ(trace.processes(), 1u);
  EXPECT_EQ(trace.events(), 2u);
  const auto spans = of(events, "X");
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_EQ(spans[0].at("name").as_string(), "submit work");
  EXPECT_EQ(spans[1].at("name").as_string(), "work");
  EXPECT_EQ(spans[1].at("cat").as_string(), "run");
  EXPECT_EQ(spans[1].at("ts").to_number<double>(), 2e6);
  EXPECT_EQ(spans[1].at("dur").to_number<double>(), 30);
  EXPECT_EQ(spans[1].at("args").at("sampled").as_string(), "1 of 16");
  EXPECT_EQ(spans[1].at("args").at("failed").as_bool(), true);
  ASSERT_EQ(of(events, "s").size(), 1u);
  ASSERT_EQ(of(events, "f").size(), 1u);
  const auto begin = of(events, "s")[0], end = of(events, "f")[0];
  EXPECT_EQ(begin.at("id"), end.at("id"));
  EXPECT_EQ(begin.at("ts"), spans[0].at("ts"));
  EXPECT_EQ(end.at("ts"), spans[1].at("ts"));
  EXPECT_EQ(end.at("tid"), spans[1].at("tid"));
  EXPECT_EQ(end.at("bp").as_string(), "e");
  // In the mailbox for the 2.5 us before.
  EXPECT_EQ(of(events, "b")[0].at("ts").to_number<double>(), 1'999'997.5);
  EXPECT_EQ(of(events, "e")[0].at("ts").to_number<double>(), 2e6);
}

TEST_F(TraceWriterTest, ProcessesAndThreadsHaveNames) {
  about.ended = true;
  about.lost = 17;
  auto other = event(TimelineKind::run, 1, Instant{1s}, 1us);
  other.thread = 99;
  trace.add(with({event(TimelineKind::run, 2, Instant{1s}, 1us), other}));
  std::vector<std::string> told;
  for (const auto& one : of(finish(), "M")) {
    for (const auto& [key, value] : one.at("args").as_object()) {
      told.emplace_back(value.as_string());
    }
  }
  const std::vector<std::string> expected{"actor 1234 worker-0 (ended)", "17 older records lost",
                                          "main", "thread 99"};
  EXPECT_EQ(told, expected);
}

TEST_F(TraceWriterTest, TimesAreTheHeads) {
  trace.add(clock(3us));
  trace.add(with({event(TimelineKind::run, 1, Instant{4s}, 1us)}));
  const json::array events = finish();
  EXPECT_EQ(of(events, "X")[0].at("ts").to_number<double>(), 6e6);
  const std::string doubt = "node " + node.short_string() + " is wrong by at most us";
  EXPECT_EQ(whole.at("otherData").at(doubt).to_number<double>(), 3);
}

TEST_F(TraceWriterTest, MessagesOfOneProcessAreOneProcess) {
  trace.add(with({event(TimelineKind::run, 1, Instant{1s}, 10us)}));
  auto more = with({event(TimelineKind::run, 2, Instant{1s + 2us}, 1us)});
  more.names.clear();
  trace.add(more);
  about.process.process = ProcessId::random(random);
  trace.add(with({event(TimelineKind::run, 3, Instant{1s}, 1us)}));
  trace.add(clock());
  const json::array events = finish();
  EXPECT_EQ(trace.processes(), 2u);
  ASSERT_EQ(of(events, "X").size(), 3u);
  EXPECT_EQ(of(events, "X")[1].at("name").as_string(), "work");
  EXPECT_EQ(of(events, "X")[0].at("pid"), of(events, "X")[1].at("pid"));
  EXPECT_NE(of(events, "X")[0].at("pid"), of(events, "X")[2].at("pid"));
}

TEST_F(TraceWriterTest, SpansOfARowLieInOneAnotherOrApart) {
  std::vector<TimelineEvent> spans;
  for (int i = 0; i < 200; ++i) {
    const auto start = std::chrono::microseconds(random.below(1000));
    const auto length = std::chrono::microseconds(1 + random.below(100));
    spans.push_back(event(TimelineKind::run, 0, Instant{1s + start}, length));
  }
  trace.add(with(spans));
  std::map<int64_t, std::vector<std::pair<double, double>>> rows;
  double before = 0;
  for (const auto& span : of(finish(), "X")) {
    const auto start = span.at("ts").to_number<double>();
    EXPECT_LE(before, start) << "not sorted";
    before = start;
    auto& row = rows[span.at("tid").to_number<int64_t>()];
    const double end = start + span.at("dur").to_number<double>();
    for (const auto& [other_start, other_end] : row) {
      EXPECT_TRUE(start >= other_end || end <= other_end) << start << " to " << end;
    }
    row.emplace_back(start, end);
  }
  EXPECT_GT(rows.size(), 1u);
}

TEST_F(TraceWriterTest, WhatHasNotEndedLastsUntilNowOrTheEndOfItsProcess) {
  auto open = event(TimelineKind::run, 1, Instant{3s}, 0ns);
  open.is_open = true;
  trace.add(clock());
  trace.add(with({open}));
  about.process.process = ProcessId::random(random);
  about.ended = true;
  trace.add(with({open, event(TimelineKind::submitted, 2, Instant{3s + 8us}, 0ns)}));
  const auto spans = of(finish(), "X");
  EXPECT_EQ(spans[0].at("dur").to_number<double>(), 2e6) << "when it was asked";
  EXPECT_EQ(spans[0].at("args").at("unfinished").as_string(), "it still runs");
  EXPECT_EQ(spans[1].at("dur").to_number<double>(), 8) << "what it noted last";
  EXPECT_EQ(spans[1].at("args").at("unfinished").as_string(), "its process ended");
}

TEST_F(TraceWriterTest, QueueingStandsBesideTheThreads) {
  trace.add(with({event(TimelineKind::queued, 5, Instant{1s}, 20us),
                  event(TimelineKind::pulled, 6, Instant{2s}, 5us)}));
  const json::array events = finish();
  ASSERT_EQ(of(events, "b").size(), 1u);
  EXPECT_EQ(of(events, "b")[0].at("name").as_string(), "queued work");
  EXPECT_EQ(of(events, "e")[0].at("ts").to_number<double>(), 1'000'020);
  EXPECT_EQ(of(events, "X")[0].at("cat").as_string(), "transfer");
}

TEST_F(TraceWriterTest, StrangeNamesAndRecordsKeepItValid) {
  about.names = {
      "",
      "a\"b\\c\n\x01\x7f\xff\xc0\x80 \xed\xa0\x80 \xf4\x90\x80\x80 \xe2\x82 gr\xc3\xbc\xc3\x9f"};
  about.node_name = std::string("nul\0in it", 9);
  about.kind = "\xf0\x9f\x98";
  auto nameless = event(TimelineKind::run, 1, Instant{0s}, 1us);
  nameless.name = 900;
  nameless.amount = UINT64_MAX / 4;  // It waited since before time began.
  auto timeline = with({event(TimelineKind::run, 1, Instant{1s}, 1us), nameless});
  timeline.records.resize(timeline.records.size() + 40, 0xff);
  trace.add(timeline);
  const auto spans = of(finish(), "X");
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_EQ(spans[0].at("name").as_string(), "(other)");
  const std::string name{spans[1].at("name").as_string()};
  EXPECT_TRUE(name.starts_with("a\"b\\c\n\x01\x7f\xef\xbf\xbd")) << name;
  EXPECT_TRUE(name.ends_with("gr\xc3\xbc\xc3\x9f")) << name;
}

TEST_F(TraceWriterTest, NodesThatAreMissingAreTold) {
  protocol::ProcessTimeline missing;
  missing.kind = "missing";
  missing.node_name = "worker-7";
  missing.names = {"it sleeps"};
  trace.add(missing);
  EXPECT_TRUE(finish().empty());
  ASSERT_EQ(trace.missing().size(), 1u);
  EXPECT_EQ(trace.missing()[0].first, "worker-7");
  EXPECT_EQ(trace.missing()[0].second, "it sleeps");
}

TEST_F(TraceWriterTest, AFullDiskIsAnError) {
  std::FILE* const full = std::fopen("/dev/full", "w");
  ASSERT_NE(full, nullptr);
  TraceWriter lost{full};
  std::vector<TimelineEvent> many(timeline_records_max,
                                  event(TimelineKind::run, 1, Instant{1s}, 1us));
  lost.add(with(many));
  const Status finished = lost.finish();
  ASSERT_FALSE(finished);
  EXPECT_EQ(finished.error().code(), Code::exhausted);
  std::fclose(full);
}

}  // namespace
}  // namespace troupe::tools
