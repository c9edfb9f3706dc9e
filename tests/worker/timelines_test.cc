#include "worker/timelines.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "tests/worker/fixture.h"

namespace troupe::worker {
namespace {

using protocol::ProcessTimeline;
using transport::TimelineMemory;

class TimelinesTest : public WorkerTest {
 protected:
  struct Process {
    std::shared_ptr<Peer> peer;
    std::unique_ptr<TimelineMemory> memory;
    ProcessId id;
    Timeline& timeline() const { return memory->timeline(); }
    void note(const std::string& name) const {
      TimelineEvent event;
      event.kind = TimelineKind::run;
      event.name = timeline().name(name);
      event.start = timeline().now();
      timeline().add(event);
    }
  };

  Async<Result<Message>> attach(std::shared_ptr<Peer> peer, FileDescriptor file) {
    Message request;
    if (file.is_open()) request.descriptors.push_back(std::move(file));
    co_return co_await peer->call(Method::attach_timeline, std::move(request), 5s);
  }
  Async<Process> start_process(JobId of) {
    Process process;
    process.id = ProcessId::random(random);
    process.peer = co_await connect(process.id, of);
    process.memory = TimelineMemory::create(real.environment().clock).value();
    auto attached = co_await attach(process.peer, process.memory->share().value());
    EXPECT_TRUE(attached) << attached.error().to_string();
    co_return process;
  }
  // As the head asks.
  Async<Result<std::vector<ProcessTimeline>>> ask(std::shared_ptr<Peer> peer, JobId of = {}) {
    Message request{protocol::encode(protocol::GetTimelines{of}), {}};
    TROUPE_CO_TRY(auto stream, peer->open_stream(Method::get_timelines, std::move(request), 10s));
    std::vector<ProcessTimeline> parts;
    for (;;) {
      TROUPE_CO_TRY(auto item, co_await stream->next());
      if (!item) co_return parts;
      parts.push_back(protocol::decode<ProcessTimeline>(*item).value());
    }
  }
  Async<std::vector<ProcessTimeline>> ask() {
    auto head_peer = head->worker;
    auto parts = co_await ask(head_peer);
    EXPECT_TRUE(parts);
    co_return parts.value();
  }
  // The parts of one process.
  static std::vector<ProcessTimeline> of(const std::vector<ProcessTimeline>& all, ProcessId id) {
    std::vector<ProcessTimeline> found;
    for (const auto& part : all) {
      if (part.process.process == id) found.push_back(part);
    }
    return found;
  }
  static std::string last_name(const ProcessTimeline& part) {
    const auto events = events_of(part.records);
    return events.empty() ? "" : part.names.at(events.back().name);
  }
  // Asks again until the process counts as ended.
  Async<std::vector<ProcessTimeline>> ask_until_ended(ProcessId id) {
    const Instant deadline = environment().clock.now() + 20s;
    for (;;) {
      auto all = co_await ask();
      const auto found = of(all, id);
      const bool is_late = environment().clock.now() > deadline;
      EXPECT_FALSE(is_late);
      if (is_late || found.empty() || found[0].ended) co_return all;
    }
  }
};

TEST_F(TimelinesTest, WhatProcessesNoteIsReadWithoutAskingThem) {
  with_worker([&]() -> Async<void> {
    auto process = co_await start_process(job);
    process.note("work");
    const Instant before = environment().clock.now();
    const auto all = co_await ask();
    EXPECT_EQ(all.at(0).kind, "clock");
    const auto clock = events_of(all[0].records).at(0);
    EXPECT_GE(clock.start, before);
    EXPECT_LE(clock.start, environment().clock.now());
    const auto found = of(all, process.id);
    EXPECT_EQ(found.size(), 1u);
    EXPECT_EQ(found.at(0).kind, "driver");
    EXPECT_EQ(found[0].pid, static_cast<uint32_t>(::getpid()));
    EXPECT_EQ(found[0].job, job);
    EXPECT_EQ(found[0].node_name, "worker-1");
    EXPECT_EQ(found[0].process.node, options.node);
    EXPECT_FALSE(found[0].ended);
    EXPECT_EQ(last_name(found[0]), "work");
  });
}

TEST_F(TimelinesTest, WhatAProcessNotedOutlivesIt) {
  with_worker([&]() -> Async<void> {
    auto process = co_await start_process(job);
    process.note("last words");
    process.memory.reset();
    process.peer->close();
    const auto found = of(co_await ask_until_ended(process.id), process.id);
    EXPECT_EQ(found.size(), 1u);
    EXPECT_TRUE(found.at(0).ended);
    EXPECT_EQ(last_name(found[0]), "last words");
  });
}

TEST_F(TimelinesTest, OfEndedProcessesTheNewestAreKept) {
  options.timeline_limits.ended_max = 3;
  with_worker([&]() -> Async<void> {
    std::vector<ProcessId> ids;
    for (int i = 0; i < 5; ++i) {
      auto process = co_await start_process(job);
      process.note("n" + std::to_string(i));
      ids.push_back(process.id);
      process.peer->close();
      (void)co_await ask_until_ended(process.id);
    }
    const auto all = co_await ask();
    for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(of(all, ids[i]).empty(), i < 2) << i;
  });
}

TEST_F(TimelinesTest, OfEndedProcessesSoMuchIsKept) {
  options.timeline_limits.ended_bytes_max = 100 << 10;
  with_worker([&]() -> Async<void> {
    std::vector<ProcessId> ids;
    for (int i = 0; i < 3; ++i) {
      auto process = co_await start_process(job);
      for (int n = 0; n < 1500; ++n) process.note("work");
      ids.push_back(process.id);
      process.peer->close();
      (void)co_await ask_until_ended(process.id);
    }
    const auto all = co_await ask();
    EXPECT_TRUE(of(all, ids[0]).empty());
    EXPECT_EQ(of(all, ids[1]).size(), 1u);
    EXPECT_EQ(of(all, ids[2]).size(), 1u);
  });
}

TEST_F(TimelinesTest, AFullRingTravelsInSeveralMessages) {
  with_worker([&]() -> Async<void> {
    auto process = co_await start_process(job);
    for (size_t i = 0; i < timeline_records_max + 5; ++i) process.note("work");
    const auto parts = of(co_await ask(), process.id);
    EXPECT_GT(parts.size(), 4u);
    size_t records = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      EXPECT_EQ(parts[i].names.empty(), i > 0);
      EXPECT_EQ(parts[i].lost, i == 0 ? 5u : 0u);
      records += events_of(parts[i].records).size();
    }
    EXPECT_EQ(records, timeline_records_max);
  });
}

TEST_F(TimelinesTest, OneJobIsToldApart) {
  with_worker([&]() -> Async<void> {
    auto mine = co_await start_process(job);
    auto other = co_await start_process(JobId::random(random));
    auto head_peer = head->worker;
    auto all = co_await ask(head_peer, job);
    EXPECT_EQ(of(all.value(), mine.id).size(), 1u);
    EXPECT_TRUE(of(*all, other.id).empty());
  });
}

TEST_F(TimelinesTest, TheWorkerNotesWhatItDoesItself) {
  auto memory = TimelineMemory::create(real.environment().clock).value();
  options.timeline = memory.get();
  with_worker([&]() -> Async<void> {
    auto request = start_request(actor, 3, "idle");
    EXPECT_TRUE(co_await start_actor(std::move(request)));
    const auto parts = of(co_await ask(), worker->address().process);
    EXPECT_EQ(parts.size(), 2u) << "its clock, and what it noted";
    EXPECT_EQ(parts.at(1).kind, "worker");
    EXPECT_EQ(last_name(parts[1]), "idle");
    const auto noted = events_of(parts[1].records).back();
    EXPECT_EQ(noted.kind, TimelineKind::actor_started);
    EXPECT_EQ(noted.id, timeline_id(actor));
    EXPECT_EQ(noted.amount, 3u);
    EXPECT_GT(noted.duration, 0ns);
  });
}

TEST_F(TimelinesTest, WhatItCouldNotTrustIsRefused) {
  options.timeline_limits.living_max = 1;
  with_worker([&]() -> Async<void> {
    auto peer = co_await connect(ProcessId::random(random), job);
    FileDescriptor none;
    EXPECT_EQ((co_await attach(peer, std::move(none))).error().code(), Code::invalid);
    FileDescriptor loose{::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    EXPECT_EQ(::ftruncate(loose.get(), timeline_bytes), 0);
    EXPECT_EQ((co_await attach(peer, std::move(loose))).error().code(), Code::denied);
    FileDescriptor small{::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
    EXPECT_EQ(::ftruncate(small.get(), 4096), 0);
    EXPECT_EQ(::fcntl(small.get(), F_ADD_SEALS, F_SEAL_SHRINK), 0);
    EXPECT_EQ((co_await attach(peer, std::move(small))).error().code(), Code::invalid);
    auto process = co_await start_process(job);
    auto again = process.memory->share().value();
    EXPECT_EQ((co_await attach(process.peer, std::move(again))).error().code(), Code::conflict);
    auto one_more = process.memory->share().value();
    EXPECT_EQ((co_await attach(peer, std::move(one_more))).error().code(), Code::exhausted);
    // Sealed and of the right size, and nothing in it: it is left out.
    auto* words = static_cast<uint64_t*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
                                                process.memory->share().value().get(), 0));
    words[0] = 0;
    ::munmap(words, 4096);
    EXPECT_TRUE(of(co_await ask(), process.id).empty());
  });
}

TEST_F(TimelinesTest, OnlyTheHeadMayAsk) {
  with_worker([&]() -> Async<void> {
    auto process = co_await start_process(job);
    auto answer = co_await ask(process.peer);
    EXPECT_FALSE(answer);
    if (!answer) {
      EXPECT_EQ(answer.error().code(), Code::denied) << answer.error().to_string();
    }
  });
}

}  // namespace
}  // namespace troupe::worker
