#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <csignal>
#include <filesystem>

#include "tests/worker/fixture.h"

namespace troupe::worker {
namespace {

size_t open_descriptors() {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    (void)entry;
    ++count;
  }
  return count;
}

TEST_F(WorkerTest, StartsAnActorOnce) {
  with_worker([this]() -> Async<void> {
    auto request = start_request(actor, 1, "run");
    const auto first = co_await start_actor(request);
    const auto second = co_await start_actor(request);
    EXPECT_GT(first.value().pid, 0u);
    EXPECT_EQ(first.value().address.process, second.value().address.process);
    EXPECT_EQ(worker->processes(), 1u);
    request.incarnation = 2;
    const auto newer = co_await start_actor(request);
    EXPECT_NE(newer.value().pid, first.value().pid);
    EXPECT_EQ(worker->processes(), 1u);
    request.incarnation = 1;
    const auto older = co_await start_actor(request);
    EXPECT_EQ(older.error().code(), Code::conflict);
  });
}

TEST_F(WorkerTest, AFailedStartKeepsItsErrorAndItsProcessEnds) {
  with_worker([this]() -> Async<void> {
    const auto refused = co_await start_actor(start_request(actor, 1, "fail"));
    EXPECT_EQ(refused.error().code(), Code::not_found);
    EXPECT_EQ(refused.error().message(), "no class of this name");
    const auto again = co_await start_actor(start_request(actor, 1, "run"));
    EXPECT_EQ(again.error().code(), Code::not_found);
    const auto died = co_await start_actor(start_request(actor, 2, "exit"));
    EXPECT_EQ(died.error().code(), Code::unavailable);
    EXPECT_NE(died.error().message().find("exited with status 3"), std::string::npos);
    EXPECT_NE(died.error().message().find("assigned exit"), std::string::npos);
    EXPECT_EQ(worker->processes(), 0u);
    EXPECT_TRUE(head->exits.empty());
  });
}

TEST_F(WorkerTest, ReportsACrashUntilTheHeadHasHeard) {
  with_worker([this]() -> Async<void> {
    const auto started = co_await start_actor(start_request(actor, 4, "run"));
    head->exits_to_refuse = 2;
    ::kill(static_cast<pid_t>(started.value().pid), SIGKILL);
    co_await head->until([this] { return !head->exits.empty(); });
    EXPECT_EQ(head->exits[0].actor, actor);
    EXPECT_EQ(head->exits[0].incarnation, 4u);
    EXPECT_TRUE(head->exits[0].reason.starts_with("killed by signal 9 (Killed)"));
    const auto again = co_await start_actor(start_request(actor, 4, "run"));
    EXPECT_EQ(again.error().code(), Code::conflict);
  });
}

TEST_F(WorkerTest, StopEscalatesToSigkill) {
  with_worker([this]() -> Async<void> {
    EXPECT_TRUE(co_await start_actor(start_request(actor, 1, "stubborn")));
    EXPECT_TRUE(co_await stop_actor(actor, 1, 1ms));
    co_await head->until([this] { return !head->exits.empty(); });
    EXPECT_TRUE(head->exits[0].reason.starts_with("killed by signal 9"));
  });
}

TEST_F(WorkerTest, AWillingActorExitsByItselfAndALateStartIsRefused) {
  with_worker([this]() -> Async<void> {
    EXPECT_TRUE(co_await start_actor(start_request(actor, 1, "run")));
    EXPECT_TRUE(co_await stop_actor(actor, 1, 10s));
    co_await head->until([this] { return !head->exits.empty(); });
    EXPECT_EQ(head->exits[0].reason, "exited with status 0");
    const ActorId other = ActorId::random(random);
    EXPECT_TRUE(co_await stop_actor(other, 1, 1s));
    const auto late = co_await start_actor(start_request(other, 1, "run"));
    EXPECT_EQ(late.error().code(), Code::cancelled);
  });
}

TEST_F(WorkerTest, KeepsActorsWhileTheHeadIsAwayAndListsThem) {
  with_worker([this]() -> Async<void> {
    const auto started = co_await start_actor(start_request(actor, 1, "run"));
    const size_t before = head->registered.size();
    co_await head->stop();
    head->start();
    co_await head->until([&] { return head->registered.size() > before; });
    const auto& actors = head->registered.back().actors;
    EXPECT_EQ(actors.size(), 1u);
    EXPECT_EQ(actors[0].pid, started.value().pid);
    head->register_again = true;
    const size_t then = head->registered.size();
    co_await head->until([&] { return head->registered.size() > then; });
  });
}

TEST_F(WorkerTest, ListsActorsThatStillStartToANewHeadWhichMayStopThem) {
  with_worker([this]() -> Async<void> {
    std::optional<Error> failed;
    const auto start = [&]() -> Async<void> {
      auto late = co_await start_actor(start_request(actor, 3, "hang"));
      failed = std::move(late).error();
      head->changed.pulse();
    };
    spawn(scope, start());
    co_await head->until([this] { return worker->processes() == 1; });
    head->register_again = true;
    co_await head->until([this] { return head->registered.size() > 1; });
    EXPECT_TRUE(head->registered.back().actors.empty());
    const auto starting = head->registered.back().starting;
    EXPECT_EQ(starting.size(), 1u);
    EXPECT_EQ(starting.at(0).actor, actor);
    EXPECT_EQ(starting.at(0).incarnation, 3u);
    EXPECT_TRUE(co_await stop_actor(actor, 3, 0s));
    co_await head->until([&] { return failed.has_value(); });
    EXPECT_EQ(worker->processes(), 0u);
  });
}

TEST_F(WorkerTest, AStartThatWaitsForAnOlderIncarnationIsAskedForAgainByANewHead) {
  with_worker([this]() -> Async<void> {
    const auto older = co_await start_actor(start_request(actor, 1, "stubborn"));
    std::optional<Error> failed;
    const auto start = [&]() -> Async<void> {
      auto late = co_await start_actor(start_request(actor, 2, "run"));
      failed = std::move(late).error();
      head->changed.pulse();
    };
    spawn(scope, start());
    // Once another one runs, that one waits: both needed the same of their job.
    EXPECT_TRUE(co_await start_actor(start_request(ActorId::random(random), 1, "run")));
    head->register_again = true;
    co_await head->until([this] { return head->registered.size() > 1; });
    ::kill(static_cast<pid_t>(older.value().pid), SIGKILL);
    co_await head->until([&] { return failed.has_value(); });
    EXPECT_EQ(failed->code(), Code::cancelled);
    EXPECT_TRUE(co_await start_actor(start_request(actor, 2, "run")));
  });
}

TEST_F(WorkerTest, PassesGaugesOnAndAgainToANewHead) {
  with_worker([this]() -> Async<void> {
    EXPECT_TRUE(co_await start_actor(start_request(actor, 1, "gauges")));
    co_await head->until([this] { return head->gauges.size() == 1; });
    EXPECT_EQ(head->gauges[0].actor, actor);
    EXPECT_EQ(head->gauges[0].gauges.at(0).name, "depth");
    EXPECT_EQ(head->gauges[0].gauges.at(0).value, 2.5);
    const int before = head->beats;
    co_await head->until([&] { return head->beats > before + 2; });
    EXPECT_EQ(head->gauges.size(), 1u) << "they did not change";
    head->register_again = true;
    co_await head->until([this] { return head->gauges.size() == 2; });
    auto stranger = co_await connect(ProcessId::random(random), job);
    protocol::ActorGauges report{actor, 1, {{"depth", 3}}};
    auto refused =
        co_await transport::call<protocol::Empty>(stranger, Method::report_gauges, report, 5s);
    EXPECT_EQ(refused.error().code(), Code::not_found);
  });
}

// Heads may die one after the other before the first heartbeat.
TEST_F(WorkerTest, ComesBackAtOnceToAHeadThatTookItIn) {
  options.reconnect_longest = 1h;  // After twenty doublings.
  head->heartbeat_us = 3'600'000'000;
  with_worker([this]() -> Async<void> {
    for (size_t times = 1; times <= 20; ++times) {
      co_await head->until([this, times] { return head->registered.size() == times; });
      // Behind the answer to its registration.
      auto answered = co_await stop_slots(LeaseId::random(random));
      EXPECT_TRUE(answered);
      head->worker->close();
    }
    co_await head->until([this] { return head->registered.size() == 21; });
  });
}

TEST_F(WorkerTest, RefusesOldEpochsAndStrangers) {
  with_worker([this]() -> Async<void> {
    auto request = start_request(actor, 1, "run");
    request.epoch = 5;
    head->epoch = 5;
    EXPECT_TRUE(co_await start_actor(request));
    const ActorId other = ActorId::random(random);
    auto old = start_request(other, 1, "run");
    old.epoch = 4;
    const auto refused = co_await start_actor(old);
    EXPECT_EQ(refused.error().code(), Code::denied);
    auto stranger = co_await connect(ProcessId::random(random), job);
    old.epoch = 6;
    const auto denied =
        co_await transport::call<protocol::ProcessStarted>(stranger, Method::start_actor, old, 5s);
    EXPECT_EQ(denied.error().code(), Code::denied);
    EXPECT_EQ(worker->head().epoch(), 5u);
  });
}

TEST_F(WorkerTest, SlotsAreStartedOnceAndReused) {
  with_worker([this]() -> Async<void> {
    auto request = slots_request(1);
    auto one = co_await start_slots(request);
    request.count = 2;
    auto two = co_await start_slots(request);
    EXPECT_EQ(one.value().processes.size(), 1u);
    EXPECT_EQ(two.value().processes.size(), 2u);
    EXPECT_EQ(two.value().processes[0].pid, one.value().processes[0].pid);

    EXPECT_TRUE(co_await stop_slots(request.lease));
    auto late = co_await start_slots(request);
    EXPECT_EQ(late.error().code(), Code::conflict);
    request.lease = LeaseId::random(random);
    auto reused = co_await start_slots(request);
    EXPECT_EQ(reused.value().processes.size(), 2u);
    EXPECT_EQ(worker->processes(), 2u);
    ::kill(static_cast<pid_t>(reused.value().processes[0].pid), SIGTERM);
    co_await head->until([this] { return !head->exits.empty(); });
    EXPECT_EQ(head->exits[0].lease, request.lease);
  });
}

TEST_F(WorkerTest, ASlotThatWasTakenOutOfItsLeaseServesOthersAlone) {
  with_worker([this]() -> Async<void> {
    auto request = slots_request(1);
    request.slots = {{0, {}, 0}};
    auto one = co_await start_slots(request);
    const ProcessId process = one.value().processes.at(0).address.process;
    std::vector<ProcessId> gone{process};
    EXPECT_TRUE(co_await stop_slots(request.lease, std::move(gone)));
    // The head may ask for the stop once more: it must not hit a slot that was given meanwhile.
    request.slots = {{1, {}, 0}};
    auto next = co_await start_slots(request);
    EXPECT_EQ(next.value().processes.size(), 1u);
    EXPECT_NE(next.value().processes[0].address.process, process);
    request.lease = LeaseId::random(random);
    auto other = co_await start_slots(request);
    EXPECT_EQ(other.value().processes.at(0).address.process, process);
  });
}

TEST_F(WorkerTest, OfTooManyThatIdleTheOneThatIdledLongestEnds) {
  options.idle_slots_max = 2;
  options.idle_slot_life = 1h;
  with_worker([this]() -> Async<void> {
    std::vector<pid_t> pids;
    for (const char* module : {"a", "b", "c"}) {
      const auto request = slots_request(1, module);
      const auto one = co_await start_slots(request);
      pids.push_back(static_cast<pid_t>(one.value().processes.at(0).pid));
      EXPECT_TRUE(co_await stop_slots(request.lease));
    }
    co_await head->until([this] { return worker->processes() == 2; });
    EXPECT_NE(::kill(pids[0], 0), 0);
    EXPECT_EQ(::kill(pids[1], 0), 0);
    EXPECT_EQ(::kill(pids[2], 0), 0);
  });
}

TEST_F(WorkerTest, WhatIdlesStaysWhileOthersNeedWhatItOwns) {
  options.idle_slots_max = 1;
  options.idle_slot_life = 1h;
  with_worker([this]() -> Async<void> {
    std::vector<pid_t> pids;
    for (const char* module : {"needed", "b", "c"}) {
      const auto request = slots_request(1, module);
      const auto one = co_await start_slots(request);
      pids.push_back(static_cast<pid_t>(one.value().processes.at(0).pid));
      EXPECT_TRUE(co_await stop_slots(request.lease));
    }
    co_await head->until([this] { return worker->processes() == 2; });
    EXPECT_EQ(::kill(pids[0], 0), 0);
    EXPECT_NE(::kill(pids[1], 0), 0);
    // It is used again, and ends with its job for all that.
    const auto request = slots_request(1, "needed");
    const auto again = co_await start_slots(request);
    EXPECT_EQ(static_cast<pid_t>(again.value().processes.at(0).pid), pids[0]);
    EXPECT_TRUE(co_await stop_slots(request.lease));
    protocol::EndJob news{job, true, {}};
    auto peer = head->worker;
    auto told = co_await transport::call<protocol::Empty>(peer, Method::job_ended, news, 5s);
    EXPECT_TRUE(told);
    co_await head->until([this] { return worker->processes() == 0; });
  });
}

TEST_F(WorkerTest, AnActorThatMustNotOverlapEndsOnceNoHeadIsHeard) {
  with_worker([this]() -> Async<void> {
    const ActorId actor = ActorId::random(random);
    auto request = start_request(actor, 1, "isolated");
    request.spec.isolation_limit_us = 200'000;
    const auto started = co_await start_actor(std::move(request));
    const Instant lives_past = environment().clock.now() + 400ms;
    co_await head->until([&] { return environment().clock.now() > lives_past; });
    EXPECT_EQ(::kill(static_cast<pid_t>(started.value().pid), 0), 0) << "beats are answered";
    head->leads = false;
    co_await head->until([this] { return worker->processes() == 0; });
    EXPECT_TRUE(head->exits.empty());
    head->leads = true;
    co_await head->until([this] { return !head->exits.empty(); });
    EXPECT_EQ(head->exits[0].reason, "exited with status 7");
  });
}

TEST_F(WorkerTest, WhatIdlesForAJobEndsWithIt) {
  options.idle_slot_life = 1h;
  with_worker([this]() -> Async<void> {
    for (const char* module : {"a", "b"}) {
      const auto request = slots_request(1, module);
      EXPECT_TRUE(co_await start_slots(request));
      EXPECT_TRUE(co_await stop_slots(request.lease));
    }
    auto other = slots_request(1);
    other.job = JobId::random(random);
    EXPECT_TRUE(co_await start_slots(other));
    EXPECT_TRUE(co_await stop_slots(other.lease));
    EXPECT_EQ(worker->processes(), 3u);
    protocol::EndJob news{job, true, {}};
    auto peer = head->worker;
    auto told = co_await transport::call<protocol::Empty>(peer, Method::job_ended, news, 5s);
    EXPECT_TRUE(told);
    co_await head->until([this] { return worker->processes() == 1; });
  });
}

TEST_F(WorkerTest, AnOldRequestForSlotsThatComesOnceMoreStartsNothing) {
  with_worker([this]() -> Async<void> {
    auto request = slots_request(2);
    request.slots = {{0, {}, 0}, {1, {}, 0}};
    auto two = co_await start_slots(request);
    EXPECT_EQ(two.value().processes.size(), 2u);
    std::vector<ProcessId> gone{two.value().processes[0].address.process};
    EXPECT_TRUE(co_await stop_slots(request.lease, std::move(gone)));
    auto again = co_await start_slots(request);
    EXPECT_EQ(again.value().processes.size(), 1u);
    EXPECT_EQ(again.value().processes[0].pid, two.value().processes[1].pid);
    ::kill(static_cast<pid_t>(again.value().processes[0].pid), SIGKILL);
    co_await head->until([this] { return !head->exits.empty(); });
    auto late = co_await start_slots(request);
    EXPECT_EQ(late.error().code(), Code::unavailable);
    EXPECT_EQ(worker->processes(), 1u) << "the one that idles";
    // A new head numbers anew.
    request.epoch = head->epoch = 2;
    auto anew = co_await start_slots(request);
    EXPECT_EQ(anew.value().processes.size(), 2u);
  });
}

TEST_F(WorkerTest, ListsSlotsToANewHeadAndEndsThoseThatStillStart) {
  with_worker([this]() -> Async<void> {
    auto request = slots_request(2);
    request.demand = {{"cpu", 500}, {"gpu", 1000}};
    request.devices = {4, 6};
    EXPECT_TRUE(co_await start_slots(request));
    protocol::StartSlots hanging = request;
    hanging.lease = LeaseId::random(random);
    hanging.module = "hang";
    hanging.count = 1;
    hanging.devices = {};
    std::optional<Error> failed;
    const auto start = [&]() -> Async<void> {
      auto late = co_await start_slots(hanging);
      failed = std::move(late).error();
      head->changed.pulse();
    };
    spawn(scope, start());
    co_await head->until([this] { return worker->processes() == 3; });
    head->register_again = true;
    co_await head->until([&] { return failed && worker->processes() == 2; });
    EXPECT_EQ(failed->code(), Code::deadline_exceeded);

    auto slots = head->registered.back().slots;
    // The one that was still starting stops, and is counted until it has.
    EXPECT_EQ(slots.back().lease, hanging.lease);
    EXPECT_TRUE(slots.back().stopping);
    slots.pop_back();
    EXPECT_EQ(slots.size(), 2u);
    for (size_t i = 0; i < slots.size(); ++i) {
      EXPECT_FALSE(slots[i].stopping);
      EXPECT_EQ(slots[i].lease, request.lease);
      EXPECT_EQ(slots[i].job, job);
      EXPECT_EQ(slots[i].demand.size(), 2u);
      EXPECT_EQ(slots[i].devices, std::vector{request.devices[i]});
    }
  });
}

TEST_F(WorkerTest, ListsSlotsThatAreStoppingToANewHead) {
  with_worker([this]() -> Async<void> {
    auto request = slots_request(2, "stubborn");  // They ignore what they are asked.
    request.demand = {{"cpu", 500}};
    request.slots = {{0, {2}, 0}, {1, {3}, 0}};
    auto two = co_await start_slots(request);
    const auto& processes = two.value().processes;
    std::vector<ProcessId> named{processes[0].address.process};
    auto early = co_await stop_slots(request.lease, std::move(named), 100ms);
    EXPECT_EQ(early.error().code(), Code::deadline_exceeded);
    head->register_again = true;
    co_await head->until([this] { return head->registered.size() > 1; });
    const auto slots = head->registered.back().slots;
    EXPECT_EQ(slots.size(), 2u);
    const auto stops = std::ranges::find(slots, true, &protocol::RunningSlot::stopping);
    if (stops == slots.end()) {
      ADD_FAILURE() << "none stops";
      co_return;
    }
    EXPECT_EQ(stops->address.process, processes[0].address.process);
    EXPECT_EQ(stops->lease, request.lease);
    EXPECT_EQ(stops->demand.size(), 1u);
    EXPECT_EQ(stops->devices, std::vector<uint32_t>{2});
    EXPECT_EQ(stops->pid, processes[0].pid);
    auto stopped = co_await stop_slots(request.lease);
    EXPECT_TRUE(stopped);
    head->register_again = true;
    co_await head->until([this] { return head->registered.size() > 2; });
    EXPECT_TRUE(head->registered.back().slots.empty());
  });
}

TEST_F(WorkerTest, EachSlotGetsTheDevicesMeantForItAlsoWhenOthersWentBefore) {
  with_worker([this]() -> Async<void> {
    auto request = slots_request(2);
    request.slots = {{3, {0}, 1}, {4, {1}, 2}};
    request.placement.group = PlacementGroupId::random(random);
    request.placement.grant = 7;
    auto two = co_await start_slots(request);
    EXPECT_EQ(two.value().processes.size(), 2u);
    EXPECT_EQ(two.value().processes[1].slot, 5u);
    ::kill(static_cast<pid_t>(two.value().processes[0].pid), SIGKILL);
    co_await head->until([this] { return !head->exits.empty(); });
    // Slot 3 is gone; its device goes to the next.
    request.slots = {{4, {1}, 2}, {5, {0}, 1}};
    auto again = co_await start_slots(request);
    EXPECT_EQ(again.value().processes.size(), 2u);
    EXPECT_EQ(again.value().processes[0].pid, two.value().processes[1].pid);
    EXPECT_EQ(again.value().processes[1].slot, 6u);
    const std::string process = again.value().processes[1].address.process.to_string();
    // The worker's first GPU is the machine's number 4.
    EXPECT_EQ(read_log_tail(folder + "/" + process + ".log", 1000), "slot of m, devices [4]");
    head->register_again = true;
    co_await head->until([this] { return head->registered.size() > 1; });
    const auto slots = head->registered.back().slots;
    EXPECT_EQ(slots.size(), 2u);
    EXPECT_EQ(slots.back().devices, std::vector<uint32_t>{0});
    EXPECT_EQ(slots.back().placement.group, request.placement.group);
    EXPECT_EQ(slots.back().placement.bundle, 1u);
    EXPECT_EQ(slots.back().placement.grant, 7u);
  });
}

TEST_F(WorkerTest, ASlotWithADeviceIsGivenBackOnceItsProcessHasEnded) {
  with_worker([this]() -> Async<void> {
    auto request = slots_request(1, "stubborn");
    request.slots = {{0, {2}, 0}};
    auto one = co_await start_slots(request);
    const auto pid = static_cast<pid_t>(one.value().processes.at(0).pid);
    // It ignores what it is asked: the answer comes when it was killed, and not before.
    auto early = co_await stop_slots(request.lease, std::vector<ProcessId>(), 500ms);
    EXPECT_EQ(early.error().code(), Code::deadline_exceeded);
    EXPECT_EQ(::kill(pid, 0), 0);
    auto stopped = co_await stop_slots(request.lease);
    EXPECT_TRUE(stopped);
    EXPECT_EQ(::kill(pid, 0), -1);
  });
}

TEST_F(WorkerTest, GivesEnvironmentAndCredentials) {
  with_worker([this]() -> Async<void> {
    auto request = start_request(actor, 1, "run");
    request.devices = {1, 3};
    request.spec.environment = {{"EXTRA", "yes"}, {"CUDA_VISIBLE_DEVICES", "7"}};
    const auto started = co_await start_actor(request);
    const std::string log =
        read_log_tail(folder + "/" + started.value().address.process.to_string() + ".log", 1000);
    EXPECT_EQ(log, "assigned run, devices [5,7], extra [yes]");
    auto client = co_await connect(ProcessId::random(random), job);
    protocol::AttachProcess attach;
    auto attached =
        co_await transport::call<protocol::Attached>(client, Method::attach_process, attach, 5s);
    EXPECT_EQ(attached.value().key_pem, "the key");
    EXPECT_EQ(attached.value().node, options.node);
  });
}

TEST_F(WorkerTest, FollowsALogToTheDeathOfItsProcess) {
  with_worker([this]() -> Async<void> {
    EXPECT_TRUE(co_await start_actor(start_request(actor, 1, "run")));
    auto client = co_await connect(ProcessId::random(random), job);
    protocol::ReadLog request;
    request.actor = actor;
    request.follow = true;
    Message message{protocol::encode(request), {}};
    auto stream = client->open_stream(Method::read_log, std::move(message), {}).value();
    auto first = (co_await stream->next()).value();
    const auto chunk = protocol::decode<protocol::LogChunk>(*first).value();
    EXPECT_TRUE(as_text(chunk.data).starts_with("assigned run"));
    EXPECT_TRUE(co_await stop_actor(actor, 1, 5s));
    EXPECT_FALSE((co_await stream->next()).value());
    request.actor = ActorId::random(random);
    Message unknown{protocol::encode(request), {}};
    auto nothing = client->open_stream(Method::read_log, std::move(unknown), {}).value();
    EXPECT_EQ((co_await nothing->next()).error().code(), Code::not_found);
  });
}

TEST_F(WorkerTest, LogsOfTheOldestThatEndedAreRemoved) {
  options.ended_logs_bytes_max = 1;
  options.ended_logs_kept = 2;
  with_worker([this]() -> Async<void> {
    std::vector<std::string> logs;
    for (uint32_t round = 1; round <= 5; ++round) {
      auto started = co_await start_actor(start_request(actor, round, "run"));
      logs.push_back(folder + "/" + started.value().address.process.to_string() + ".log");
      EXPECT_TRUE(std::filesystem::exists(logs.back())) << logs.back();
      EXPECT_TRUE(co_await stop_actor(actor, round, 5s));
    }
    const auto is_there = [](const std::string& path) { return std::filesystem::exists(path); };
    const Instant deadline = environment().clock.now() + 20s;
    while (std::ranges::count_if(logs, is_there) > 2 && environment().clock.now() < deadline) {
      co_await sleep_for(environment().clock, 1ms);
    }
    EXPECT_EQ(std::ranges::count_if(logs, is_there), 2);
    EXPECT_TRUE(is_there(logs[3]) && is_there(logs[4]));
  });
}

TEST_F(WorkerTest, LeavesNoDescriptorBehind) {
  with_worker([this]() -> Async<void> {
    size_t before = 0;
    for (uint32_t round = 1; round <= 6; ++round) {
      EXPECT_TRUE(co_await start_actor(start_request(actor, round, "run")));
      EXPECT_TRUE(co_await stop_actor(actor, round, 5s));
      co_await head->until([&] { return head->exits.size() == round; });
      if (round == 2) before = open_descriptors();
    }
    EXPECT_LE(open_descriptors(), before);
  });
}

TEST(PosixLauncher, SaysThatTheProgramIsMissing) {
  transport::RealEnvironment real;
  Scope scope{real.io().get_executor()};
  PosixLauncher launcher{real.io(), scope, "/nonexistent/troupe-actor"};
  LaunchSpec spec;
  spec.log_path = "/dev/null";
  EXPECT_EQ(launcher.launch(spec).error().code(), Code::not_found);
}

TEST(DeadSockets, GoButNotThoseThatAnswerAreYoungOrAreNoProcesses) {
  std::string folder = "/tmp/troupe-test-XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  const auto make = [&folder](const std::string& name, bool listens) {
    const std::string path = folder + "/" + name;
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::copy(path.begin(), path.end(), address.sun_path);
    FileDescriptor socket{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
    EXPECT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(listens ? ::listen(socket.get(), 1) : 0, 0);
    return socket;
  };
  const FileDescriptor lives = make("01234567.sock", true);
  const FileDescriptor begins = make("00112233.sock", false);
  make("89abcdef.sock", false);
  make("worker-1.sock", false);
  EXPECT_EQ(remove_dead_sockets(folder, std::chrono::hours(1)), 0u);
  EXPECT_EQ(remove_dead_sockets(folder, Duration::zero()), 1u);
  EXPECT_TRUE(std::filesystem::exists(folder + "/01234567.sock"));
  EXPECT_TRUE(std::filesystem::exists(folder + "/00112233.sock"));
  EXPECT_EQ(::accept4(lives.get(), nullptr, nullptr, SOCK_NONBLOCK), -1) << "it was disturbed";
  EXPECT_FALSE(std::filesystem::exists(folder + "/89abcdef.sock"));
  EXPECT_TRUE(std::filesystem::exists(folder + "/worker-1.sock"));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace troupe::worker
