// Tasks on leased slots: what runs where, what runs again, and what happens to the leases.
#include <algorithm>

#include "tests/client/client_fixture.h"

namespace troupe::client {
namespace {

using TaskTest = ClientTest;

TEST_F(TaskTest, RunsOnALeasedSlot) {
  start_client();
  FakeProcess& slot = add_slot();
  const auto answer = get(client->submit_task(task_of("hello")));
  ASSERT_TRUE(answer);
  EXPECT_EQ(*answer, "hello");
  ASSERT_EQ(slot.calls.size(), 1u);
  EXPECT_TRUE(slot.calls[0].actor.is_nil());
  EXPECT_EQ(slot.calls[0].method, "echo");
}

TEST_F(TaskTest, AsksForAsManySlotsAsTasksWait) {
  start_client();
  for (int i = 0; i < 3; ++i) add_slot();
  std::vector<ObjectName> results;
  for (int i = 0; i < 3; ++i) results.push_back(client->submit_task(task_of("hello")));
  for (const ObjectName& result : results) ASSERT_TRUE(get(result));
  ASSERT_FALSE(head.leases.empty());
  EXPECT_EQ(head.leases[0].slots, 3u);
  EXPECT_EQ(head.leases[0].job, job);
  EXPECT_EQ(head.leases[0].module, "module");
}

TEST_F(TaskTest, SlotRunsOneTaskAtATime) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  const ObjectName first = client->submit_task(task_of("first"));
  simulation.run_for(1s);
  const ObjectName second = client->submit_task(task_of("second"));
  simulation.run_for(1s);
  EXPECT_EQ(slot.calls.size(), 1u);
  slot.hold = false;
  slot.changed.pulse();
  ASSERT_TRUE(get(first));
  ASSERT_TRUE(get(second));
  EXPECT_EQ(slot.calls.size(), 2u);
}

TEST_F(TaskTest, TasksOfAnotherDemandHaveALeaseOfTheirOwn) {
  start_client();
  add_slot();
  add_slot();
  auto large = task_of("hello");
  large.demand = {{"cpu", 2000}};
  const ObjectName first = client->submit_task(task_of("hello"));
  const ObjectName second = client->submit_task(large);
  ASSERT_TRUE(get(first));
  ASSERT_TRUE(get(second));
  EXPECT_EQ(head.leases.size(), 2u);
}

TEST_F(TaskTest, NextTaskUsesTheSlotThatLingers) {
  start_client();
  add_slot();
  ASSERT_TRUE(get(client->submit_task(task_of("hello"))));
  simulation.run_for(300ms);
  ASSERT_TRUE(get(client->submit_task(task_of("hello"))));
  EXPECT_EQ(head.leases.size(), 1u);
}

TEST_F(TaskTest, IdleSlotGoesBack) {
  start_client();
  FakeProcess& slot = add_slot();
  ASSERT_TRUE(get(client->submit_task(task_of("hello"))));
  simulation.run_for(400ms);
  EXPECT_TRUE(head.returned.empty());
  simulation.run_for(200ms);
  ASSERT_EQ(head.returned.size(), 1u);
  EXPECT_EQ(head.returned[0].lease, head.leases[0].lease);
  EXPECT_EQ(head.returned[0].processes, std::vector<ProcessId>{slot.address.process});
}

TEST_F(TaskTest, LeaseIsRenewedWhileATaskRuns) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  const ObjectName result = client->submit_task(task_of("hello"));
  simulation.run_for(10s);  // More than three quanta.
  EXPECT_GE(head.renewed.size(), 9u);
  EXPECT_EQ(head.renewed.at(0).lease, head.leases.at(0).lease);
  client->cancel(result.id);
}

TEST_F(TaskTest, LeaseThatTheHeadTookBackIsReplaced) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  const ObjectName running = client->submit_task(task_of("first"));
  simulation.run_for(500ms);
  const ObjectName waiting = client->submit_task(task_of("second"));
  head.renew_failure = error(Code::not_found, "the lease is over");
  simulation.run_for(2s);
  head.renew_failure.reset();
  add_slot();
  EXPECT_EQ(code_of(get(waiting, 40s)), Code::ok);
  client->cancel(running.id);
}

// --- What runs again.

TEST_F(TaskTest, UnreachableSlotIsReplaced) {
  start_client();
  FakeProcess& dead = add_slot();
  dead.die();
  FakeProcess& slot = add_slot();
  EXPECT_EQ(code_of(get(client->submit_task(task_of("hello")))), Code::ok);
  EXPECT_EQ(slot.calls.size(), 1u);
  bool returned = false;
  for (const auto& request : head.returned) {
    returned |= request.processes == std::vector<ProcessId>{dead.address.process};
  }
  EXPECT_TRUE(returned);
}

TEST_F(TaskTest, TaskRefusedBeforeItRanRunsElsewhere) {
  start_client();
  FakeProcess& first = add_slot();
  first.failures = {error(Code::unavailable, "this process hosts nothing yet")};
  FakeProcess& second = add_slot();
  EXPECT_EQ(code_of(get(client->submit_task(task_of("hello")))), Code::ok);
  EXPECT_EQ(first.calls.size(), 1u);
  EXPECT_EQ(second.calls.size(), 1u);
}

TEST_F(TaskTest, TaskThatMayHaveRunIsOutcomeUnknown) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  const ObjectName result = client->submit_task(task_of("hello"));
  simulation.run_for(1s);
  slot.die();
  FakeProcess& other = add_slot();
  EXPECT_EQ(code_of(get(result)), Code::outcome_unknown);
  simulation.run_for(10s);
  EXPECT_TRUE(other.calls.empty());
}

TEST_F(TaskTest, TaskRunsAgainAsOftenAsItMay) {
  start_client();
  auto spec = task_of("hello");
  spec.retry.retries = 1;
  FakeProcess& first = add_slot();
  first.hold = true;
  const ObjectName result = client->submit_task(spec);
  simulation.run_for(1s);
  first.die();
  FakeProcess& second = add_slot();
  second.hold = true;
  simulation.run_for(1s);
  ASSERT_EQ(second.calls.size(), 1u);
  second.die();
  FakeProcess& third = add_slot();
  EXPECT_EQ(code_of(get(result)), Code::outcome_unknown);
  EXPECT_TRUE(third.calls.empty());
}

TEST_F(TaskTest, FailureOfWhatRanIsNeverRunAgain) {
  start_client();
  FakeProcess& slot = add_slot();
  for (const Code code : {Code::unavailable, Code::outcome_unknown, Code::conflict}) {
    slot.calls.clear();
    slot.failures = {error(code, "the function says so").at("task on node worker-1")};
    auto spec = task_of("hello");
    spec.retry.retries = 5;
    const ObjectName result = client->submit_task(spec);
    EXPECT_EQ(code_of(get(result)), code);
    EXPECT_EQ(slot.calls.size(), 1u) << code_name(code);
  }
  EXPECT_EQ(head.leases.size(), 1u) << "the slot is as good as before";
}

TEST_F(TaskTest, ListedFailuresRunAgainWithBackOffAndTheLastSaysHowOften) {
  start_client();
  FakeProcess& slot = add_slot();
  const Error conflict = error(Code::conflict, "not yet").at("task on node worker-1");
  slot.failures = {conflict, conflict, conflict};
  auto spec = task_of("hello");
  spec.retry = {.retries = 2, .on = {Code::conflict}, .delay_first = 100ms};
  const Instant before = simulation.clock().now();
  const auto answer = get(client->submit_task(spec));
  ASSERT_EQ(code_of(answer), Code::conflict);
  EXPECT_EQ(answer.error().message(), "not yet (tried 3 times)");
  EXPECT_EQ(answer.error().where(), "task on node worker-1");
  EXPECT_EQ(since(before) / 100ms, 3) << "100 ms, then 200 ms";
  EXPECT_EQ(slot.calls.size(), 3u);
  EXPECT_EQ(head.leases.size(), 1u) << "the slot is as good as before";
}

TEST_F(TaskTest, TaskThatIsCancelledBetweenItsRunsRunsNoMore) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.failures = {error(Code::conflict, "not yet").at("task on node worker-1")};
  auto spec = task_of("hello");
  spec.retry = {.retries = -1, .on = {Code::conflict}, .delay_first = 10s};
  const ObjectName result = client->submit_task(spec);
  simulation.run_for(1s);
  client->cancel(result.id);
  EXPECT_EQ(code_of(get(result)), Code::cancelled);
  simulation.run_for(30s);
  EXPECT_EQ(slot.calls.size(), 1u);
}

TEST_F(TaskTest, SeveralResultsHaveOneOutcome) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.failures = {error(Code::conflict, "no").at("task on node worker-1")};
  auto spec = task_of("hello");
  spec.results = 3;
  Client::Objects more;
  const auto first = client->start_task(spec, &more);
  ASSERT_EQ(more.size(), 2u);
  simulation.run_for(1s);
  EXPECT_EQ(slot.calls.at(0).results, 3u);
  EXPECT_EQ(slot.calls.at(0).result, first->id());
  for (uint32_t i = 0; i < 2; ++i) {
    EXPECT_EQ(more[i]->id(), result_id(first->id(), i + 1));
    ASSERT_NE(more[i]->failure(), nullptr);
    EXPECT_EQ(more[i]->failure()->code(), Code::conflict);
  }
}

TEST_F(TaskTest, ReplyWithTooFewResultsFailsThoseThatAreMissing) {
  start_client();
  add_slot();  // Answers with one value.
  auto spec = task_of("hello");
  spec.results = 2;
  Client::Objects more;
  const auto first = client->start_task(spec, &more);
  simulation.run_for(1s);
  EXPECT_EQ(as_text(first->value()), "hello");
  ASSERT_NE(more.at(0)->failure(), nullptr);
  EXPECT_EQ(more[0]->failure()->code(), Code::internal);
}

TEST_F(TaskTest, CancellingOneOfSeveralResultsCancelsTheTask) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  auto spec = task_of("hello");
  spec.results = 3;
  Client::Objects more;
  const auto first = client->start_task(spec, &more);
  simulation.run_for(1s);
  client->objects().cancel(more.at(1), error(Code::cancelled, "enough"));
  for (const auto& one : {first, more[0], more[1]}) {
    ASSERT_NE(one->failure(), nullptr);
    EXPECT_EQ(one->failure()->code(), Code::cancelled);
  }
  simulation.run_for(100ms);
  EXPECT_EQ(slot.cancelled, 1);
}

TEST_F(TaskTest, FailuresThatNobodyCanReadAreCounted) {
  start_client();
  FakeProcess& slot = add_slot();
  const Error failure = error(Code::conflict, "no").at("task on node worker-1");
  slot.failures = {failure, failure};
  const auto kept = client->start_task(task_of("kept"));
  const auto dropped = client->start_task(task_of("dropped"));
  EXPECT_EQ(client->objects().calls().unfinished(), 2u);
  client->objects().drop_reference(dropped);
  simulation.run_for(1s);
  EXPECT_EQ(slot.calls.size(), 2u) << "it runs all the same";
  EXPECT_EQ(client->objects().unread_failures(), 1u);
  EXPECT_EQ(client->objects().calls().unfinished(), 0u);
}

TEST_F(TaskTest, RefusedLeaseFailsItsTasks) {
  start_client();
  head.failures = {error(Code::invalid, "no such module")};
  const auto answer = get(client->submit_task(task_of("hello")));
  ASSERT_EQ(code_of(answer), Code::invalid);
  EXPECT_EQ(answer.error().message(), "no such module");
}

TEST_F(TaskTest, TaskWaitsWhileTheClusterIsFull) {
  start_client();
  head.failures = {error(Code::exhausted, "the cluster has 7 leases")};
  const ObjectName result = client->submit_task(task_of("hello"));
  simulation.run_for(100ms);
  add_slot();
  EXPECT_EQ(code_of(get(result)), Code::ok);
}

TEST_F(TaskTest, FullClusterIsAskedLessAndLessOften) {
  start_client();
  head.failures.assign(10'000, error(Code::exhausted, "the cluster has 7 leases"));
  const ObjectName result = client->submit_task(task_of("hello"));
  simulation.run_for(10s);
  EXPECT_GE(head.leases.size(), 15u);
  EXPECT_LE(head.leases.size(), 30u);
  client->cancel(result.id);
}

// --- Deadlines and cancellation.

TEST_F(TaskTest, TaskThatFindsNoSlotEndsAtItsDeadline) {
  start_client();
  auto spec = task_of("hello");
  spec.budget = 2s;
  const Instant before = simulation.clock().now();
  const auto answer = get(client->submit_task(spec));
  EXPECT_EQ(code_of(answer), Code::deadline_exceeded);
  EXPECT_LE(since(before), 2500ms);
  ASSERT_FALSE(answer);
  EXPECT_NE(answer.error().message().find("no slot yet"), std::string::npos);
}

TEST_F(TaskTest, TaskWhoseSlotsAreAllUnreachableEndsAtItsDeadline) {
  start_client();
  FakeProcess& dead = add_process();
  dead.die();
  head.free_slots.assign(10'000, dead.address);
  simulation.network().set_faults({.delay_min = 50us, .delay_max = 50us});
  auto spec = task_of("hello");
  spec.budget = 100ms;
  const Instant before = simulation.clock().now();
  EXPECT_NE(code_of(get(client->submit_task(spec))), Code::ok);
  EXPECT_LE(since(before), 110ms);
}

TEST_F(TaskTest, RunningTaskEndsAtItsDeadline) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  auto spec = task_of("hello");
  spec.budget = 2s;
  const Instant before = simulation.clock().now();
  EXPECT_EQ(code_of(get(client->submit_task(spec))), Code::deadline_exceeded);
  EXPECT_EQ(since(before) / 10ms, 200);
}

// Ten times as many as can run, and each has a second.
TEST_F(TaskTest, WhatWouldBeLateIsNotBegunWhileOthersWait) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.takes = 10ms;
  auto task = task_of("hello");
  task.budget = 1s;
  std::vector<ObjectName> results;
  for (int ms = 0; ms < 5000; ++ms) {
    results.push_back(client->submit_task(task));
    simulation.run_for(1ms);
  }
  size_t done = 0, not_begun = 0;
  for (const ObjectName& result : results) {
    const auto outcome = get(result);
    if (outcome) {
      ++done;
    } else {
      EXPECT_EQ(outcome.error().code(), Code::deadline_exceeded) << outcome.error().message();
      if (outcome.error().message().find("was not begun") != std::string::npos) ++not_begun;
    }
  }
  EXPECT_GT(done, 450u);  // Of at most 600, with the way there and back.
  EXPECT_GT(not_begun, 3500u);
  EXPECT_LT(slot.calls.size(), done + 50);
  // The last one is tried, whatever is left of its time, and so is one with a short time.
  head.free_slots = {slot.address};  // It may have been given back meanwhile.
  ASSERT_TRUE(get(client->submit_task(task)));
  task.budget = 5ms;
  const size_t before = slot.calls.size();
  EXPECT_EQ(code_of(get(client->submit_task(task))), Code::deadline_exceeded);
  EXPECT_EQ(slot.calls.size(), before + 1);
}

TEST_F(TaskTest, CancelledTaskThatWaitsNeverRuns) {
  start_client();
  const ObjectName result = client->submit_task(task_of("hello"));
  simulation.run_for(1s);
  client->cancel(result.id);
  EXPECT_EQ(code_of(get(result)), Code::cancelled);
  FakeProcess& slot = add_slot();
  simulation.run_for(1min);
  EXPECT_TRUE(slot.calls.empty());
}

TEST_F(TaskTest, TaskCancelledBeforeItsSlotIsReachedIsNotSent) {
  start_client();
  FakeProcess& slot = add_slot();
  simulation.network().set_faults({.delay_min = 100ms, .delay_max = 100ms});
  const ObjectName result = client->submit_task(task_of("hello"));
  // 400 ms to the head and back; then it connects to the slot.
  ASSERT_TRUE(simulation.run_until([&] { return !head.leases.empty(); }, 1s));
  simulation.run_for(250ms);
  client->cancel(result.id);
  simulation.run_for(5s);
  EXPECT_EQ(slot.peers.size(), 1u);
  EXPECT_TRUE(slot.calls.empty());
}

TEST_F(TaskTest, CancelledTaskThatWaitsLetsGoOfItsArguments) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  const ObjectName running = client->submit_task(task_of("first"));
  simulation.run_for(1s);
  const ObjectName object = put("value");
  auto spec = task_of("second");
  spec.held = {object};
  const ObjectName waiting = client->submit_task(spec);
  client->drop_reference(object);
  ASSERT_EQ(code_of(get(object)), Code::ok);
  client->cancel(waiting.id);
  simulation.run_for(1s);
  EXPECT_EQ(code_of(get(object)), Code::not_found);
  client->cancel(running.id);
}

TEST_F(TaskTest, CancelledTaskThatRunsIsCancelledForItsSlotToo) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  const ObjectName result = client->submit_task(task_of("hello"));
  simulation.run_for(1s);
  client->cancel(result.id);
  EXPECT_EQ(code_of(get(result)), Code::cancelled);
  simulation.run_for(100ms);
  EXPECT_EQ(slot.cancelled, 1);
}

TEST_F(TaskTest, SlotOfACancelledTaskGetsNoOther) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  const ObjectName first = client->submit_task(task_of("first"));
  simulation.run_for(1s);
  client->cancel(first.id);
  FakeProcess& other = add_slot();
  EXPECT_EQ(code_of(get(client->submit_task(task_of("second")))), Code::ok);
  EXPECT_EQ(slot.calls.size(), 1u) << "its process may still be busy";
  EXPECT_EQ(other.calls.size(), 1u);
}

// --- The end.

TEST_F(TaskTest, StoppedClientGivesItsLeasesBack) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  client->submit_task(task_of("hello"));
  simulation.run_for(1s);
  stop_client();
  ASSERT_EQ(head.returned.size(), 1u);
  EXPECT_EQ(head.returned[0].lease, head.leases.at(0).lease);
  EXPECT_TRUE(head.returned[0].processes.empty()) << "all of it";
}

TEST_F(TaskTest, StopWaitsNoLongForAHeadThatIsGone) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  client->submit_task(task_of("hello"));
  simulation.run_for(1s);
  simulation.network().partition("machine", "head");
  const Instant before = simulation.clock().now();
  stop_client();
  EXPECT_LE(since(before), 2s);
}

TEST_F(TaskTest, TasksPreferTheNodeOfTheirLargeArguments) {
  start_client();
  const auto stored = [&](NodeId node, uint64_t bytes) {
    const auto object = client->objects().make();
    const ObjectName name = client->objects().publish(object);
    protocol::ProcessAddress worker;
    worker.process = ProcessId::random(simulation.random());
    worker.node = node;
    client->objects().set_stored(object, worker, bytes);
    return name;
  };
  const NodeId first = NodeId::random(simulation.random());
  const NodeId second = NodeId::random(simulation.random());
  int32_t priority = 100;
  const auto wanted_by = [&](std::vector<ObjectName> arguments,
                             protocol::PlacementSpec placement = {}) {
    EchoTask spec = task_of("hello");
    spec.priority = ++priority;  // A class of its own.
    spec.placement = std::move(placement);
    for (const ObjectName& name : arguments) spec.arguments.push_back({{}, name.id, name.owner});
    (void)client->submit_task(spec);
    simulation.run_for(10ms);
    const auto lease = std::ranges::find(head.leases, priority, &protocol::RequestLease::priority);
    EXPECT_NE(lease, head.leases.end());
    return lease->placement;
  };
  const auto small = wanted_by({stored(first, 1 << 20)});
  EXPECT_TRUE(small.node.is_nil());
  const auto large = wanted_by({stored(first, 30 << 20)});
  EXPECT_EQ(large.node, first);
  EXPECT_TRUE(large.node_soft);  // Elsewhere rather than not at all.
  const auto most =
      wanted_by({stored(first, 30 << 20), stored(second, 20 << 20), stored(second, 20 << 20)});
  EXPECT_EQ(most.node, second);
  // What was asked for counts more.
  protocol::PlacementSpec there;
  there.node = second;
  const auto told = wanted_by({stored(first, 30 << 20)}, there);
  EXPECT_EQ(told.node, second);
  EXPECT_FALSE(told.node_soft);
}

TEST_F(TaskTest, WhatWaitsWhenTheClientStopsIsCancelledAndItsDeadlineIsForgotten) {
  start_client();
  FakeProcess& process = add_actor();
  process.hold = true;
  EchoTask late = task_of("no slot is free");
  late.budget = 30s;
  const auto queued = client->start_task(late);
  ActorCallSpec call = call_of("no answer");
  call.budget = 30s;
  const auto sent = client->start_call(client->target_of(actor), call);
  simulation.run_for(1s);
  ASSERT_FALSE(queued->is_ready());
  ASSERT_EQ(process.calls.size(), 1u);
  stop_client();
  for (const auto& object : {queued, sent}) {
    ASSERT_TRUE(object->is_ready());
    EXPECT_EQ(object->failure()->code(), Code::cancelled);
  }
  simulation.run_for(1min);  // A deadline that still fired would look at a client that is gone.
  process.hold = false;
  process.changed.pulse();
}

}  // namespace
}  // namespace troupe::client
