#include "base/timeline.h"

#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

using protocol::ProcessTimeline;
using transport::Message;
using transport::OutgoingStream;

class TimelinesTest : public HeadTest {
 protected:
  // What the worker streams: its clock, which is `ahead` of the head's, and a process.
  void answer(FakeWorker& worker, Duration ahead) {
    worker.on_stream(Method::get_timelines,
                     [this, &worker, ahead](Message message, CallContext, OutgoingStream& out) {
                       return stream(std::move(message), &worker, ahead, out);
                     });
  }
  Async<Status> stream(Message message, FakeWorker* worker, Duration ahead, OutgoingStream& out) {
    asked_for = protocol::decode<protocol::GetTimelines>(message.body).value().job;
    ProcessTimeline part;
    part.kind = "clock";
    part.process.node = worker->node;
    TimelineEvent clock;
    clock.kind = TimelineKind::clock;
    clock.start = now() + ahead;
    append_record(part.records, clock);
    TROUPE_CO_CHECK(co_await out.send(protocol::encode(part)));
    part.kind = "driver";
    part.names = {"", "work"};
    TROUPE_CO_CHECK(co_await out.send(protocol::encode(part)));
    while (is_stuck) co_await worker->changed.wait();
    co_return ok();
  }
  Instant now() { return simulation.environment(*head_host).clock.now(); }

  struct Answer {
    std::vector<ProcessTimeline> parts;
    std::optional<Status> ended;
  };
  Async<void> read(std::shared_ptr<Peer> peer, JobId job, std::shared_ptr<Answer> answer) {
    Message message{protocol::encode(protocol::GetTimelines{job}), {}};
    auto opened = peer->open_stream(Method::get_timelines, std::move(message), 1min);
    for (;;) {
      auto item = co_await (*opened)->next();
      if (!item) {
        answer->ended = Status{std::move(item).error()};
        co_return;
      }
      if (!*item) break;
      answer->parts.push_back(protocol::decode<ProcessTimeline>(**item).value());
    }
    answer->ended = ok();
  }
  std::vector<ProcessTimeline> ask(JobId job = {}) {
    auto answer = std::make_shared<Answer>();
    spawn(scope, read(driver(), job, answer));
    simulation.run_until([&] { return answer->ended.has_value(); }, 1min);
    EXPECT_TRUE(answer->ended && *answer->ended);
    return answer->parts;
  }

  bool is_stuck = false;
  JobId asked_for;
};

TEST_F(TimelinesTest, AreGatheredFromAllNodesWithTheirClocks) {
  start_head();
  FakeWorker& here = add_worker(1);
  FakeWorker& elsewhere = add_worker(1);
  answer(here, Duration::zero());
  answer(elsewhere, 10h);
  const JobId job = JobId::random(simulation.random());
  const auto parts = ask(job);
  EXPECT_EQ(asked_for, job);
  ASSERT_EQ(parts.size(), 4u);
  for (const size_t i : {0u, 2u}) {
    EXPECT_EQ(parts[i].kind, "clock");
    EXPECT_EQ(parts[i + 1].kind, "driver");
    EXPECT_EQ(parts[i + 1].names.at(1), "work");
    const auto clock = events_of(parts[i].records).at(0);
    const Duration behind =
        Duration{static_cast<int64_t>(clock.id)} - clock.start.time_since_epoch();
    if (parts[i].process.node == here.node) {
      // They agree as far as can be seen, so they are one machine's.
      EXPECT_EQ(behind, Duration::zero());
      EXPECT_EQ(clock.duration, Duration::zero());
    } else {
      EXPECT_GT(clock.duration, Duration::zero());
      EXPECT_LE(behind, -10h + clock.duration);
      EXPECT_GE(behind, -10h - clock.duration);
    }
  }
}

TEST_F(TimelinesTest, ANodeThatDoesNotAnswerIsNamed) {
  start_head();
  FakeWorker& silent = add_worker(1);  // It knows no such stream.
  FakeWorker& stuck = add_worker(1);
  answer(stuck, Duration::zero());
  is_stuck = true;
  const auto parts = ask();
  std::map<std::string, std::vector<std::string>> kinds;
  std::string why;
  for (const auto& part : parts) {
    if (part.kind == "missing") {
      kinds[part.node_name].push_back(part.kind);
      why += part.names.at(0);
    }
  }
  EXPECT_EQ(kinds[silent.registration.name].size(), 1u);
  EXPECT_EQ(kinds[stuck.registration.name].size(), 1u);
  EXPECT_NE(why.find("get_timelines"), std::string::npos) << why;
  EXPECT_EQ(parts.size(), 4u) << "what it told before is passed on";
  is_stuck = false;
  stuck.changed.pulse();
}

TEST_F(TimelinesTest, AnAnswerWithoutAClockIsNotTrusted) {
  start_head();
  FakeWorker& worker = add_worker(1);
  worker.on_stream(Method::get_timelines, [](Message, CallContext, OutgoingStream& out) {
    return [](OutgoingStream& to) -> Async<Status> {
      ProcessTimeline part;
      part.kind = "driver";
      co_return co_await to.send(protocol::encode(part));
    }(out);
  });
  const auto parts = ask();
  ASSERT_EQ(parts.size(), 1u);
  EXPECT_EQ(parts[0].kind, "missing");
}

}  // namespace
}  // namespace troupe::head
