// What the head tells of why something waits.
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

using protocol::Explanation;

class HeadExplains : public HeadTest {
 protected:
  Explanation explain(const std::shared_ptr<Peer>& peer, RawId id) {
    auto told = ask<Explanation>(peer, Method::explain, protocol::Explain{id});
    if (told) return *told;
    ADD_FAILURE() << told.error().to_string();
    return {};
  }
  // What is left until its deadline, give or take a heartbeat.
  void expect_due(const Explanation& told, Duration left) const {
    const auto told_left = std::chrono::microseconds(told.deadline_us);
    EXPECT_GT(told_left, left - 2 * options.heartbeat) << told.state << ": " << told.why;
    EXPECT_LT(told_left, left + 2 * options.heartbeat) << told.state << ": " << told.why;
  }
};

TEST_F(HeadExplains, AnActorThatWaitsForRoomOrNeverFits) {
  start_head();
  add_worker(2);
  const auto client = driver();
  auto spec = actor_spec(2);
  spec.name = "first";
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(wait_alive(client, spec.actor));
  const Explanation alive = explain(client, spec.actor);
  EXPECT_EQ(alive.kind, "actor");
  EXPECT_EQ(alive.name, "first (Counter)");
  EXPECT_EQ(alive.state, "alive");
  EXPECT_EQ(alive.why, "it lives on node worker-1, which is alive");
  const auto second = actor_spec(1);
  ASSERT_TRUE(create(client, second));
  const Explanation waits = explain(client, second.actor);
  EXPECT_EQ(waits.state, "pending");
  EXPECT_NE(waits.why.find("short of cpu"), std::string::npos) << waits.why;
  const auto third = actor_spec(100);
  ASSERT_TRUE(create(client, third));
  EXPECT_NE(explain(client, third.actor).why.find("fits no node"), std::string::npos);
}

TEST_F(HeadExplains, AnActorThatStartsWaitsForItsArguments) {
  start_head();
  FakeWorker& worker = add_worker(2);
  worker.hold_starts = true;
  const auto client = driver();
  auto spec = actor_spec(1);
  protocol::ProcessAddress owner;
  owner.process = ProcessId::random(simulation.random());
  spec.arguments.push_back({{}, ObjectId{RawId{5, 5}}, owner});
  ASSERT_TRUE(create(client, spec));
  simulation.run_for(1s);
  const Explanation told = explain(client, spec.actor);
  EXPECT_EQ(told.state, "starting");
  ASSERT_EQ(told.waits_for.size(), 1u);
  EXPECT_EQ(told.waits_for[0].kind, "object");
  EXPECT_EQ(told.waits_for[0].at.process, owner.process);
  expect_due(told, options.actor_start_budget - 1s);
  worker.let_go();
}

TEST_F(HeadExplains, ADeadActorAndOneThatRestarts) {
  start_head();
  FakeWorker& worker = add_worker(2);
  const auto client = driver();
  auto spec = actor_spec(1);
  spec.max_restarts = 1;
  ASSERT_TRUE(create(client, spec));
  const auto alive = wait_alive(client, spec.actor);
  ASSERT_TRUE(alive);
  worker.hold_starts = true;
  ASSERT_TRUE(report_exit(worker, *alive));
  simulation.run_for(2s);
  const Explanation again = explain(client, spec.actor);
  EXPECT_NE(again.why.find("started 2 times"), std::string::npos) << again.state << again.why;
  ASSERT_TRUE(kill(client, spec.actor));
  EXPECT_EQ(explain(client, spec.actor).state, "dead");
  worker.let_go();
}

TEST_F(HeadExplains, HowLongAnActorsProcessHasToEnd) {
  start_head();
  FakeWorker& worker = add_worker(2);
  const auto client = driver();
  auto spec = actor_spec(1);
  spec.exit_grace_us = 30'000'000;
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(wait_alive(client, spec.actor));
  EXPECT_EQ(explain(client, spec.actor).deadline_us, 0u);
  worker.hold_stops = true;
  ASSERT_TRUE(kill(client, spec.actor));
  simulation.run_for(1s);
  const Explanation told = explain(client, spec.actor);
  EXPECT_EQ(told.state, "dead");
  EXPECT_NE(told.why.find("has until the deadline to end"), std::string::npos) << told.why;
  expect_due(told, 29s);
  worker.let_go();
  simulation.run_for(1s);
  EXPECT_EQ(explain(client, spec.actor).deadline_us, 0u);
}

TEST_F(HeadExplains, WhenAnActorThatKeepsFailingStartsAgain) {
  options.backoff_min = options.backoff_max = 20s;
  start_head();
  FakeWorker& worker = add_worker(2);
  worker.start_failure = error(Code::unavailable, "not today");
  const auto client = driver();
  auto spec = actor_spec(1);
  spec.max_restarts = -1;
  ASSERT_TRUE(create(client, spec));
  simulation.run_for(5s);
  const Explanation told = explain(client, spec.actor);
  EXPECT_EQ(told.state, "restarting");
  expect_due(told, 15s);
}

TEST_F(HeadExplains, ALeaseThatWaitsStartsAndIsHeld) {
  start_head();
  FakeWorker& worker = add_worker(1);
  worker.hold_starts = true;
  const auto client = driver();
  protocol::RequestLease request;
  request.lease = LeaseId::random(simulation.random());
  request.module = "module";
  request.demand = {{"cpu", 1000}};
  request.slots = 1;
  const auto granted = begin<protocol::LeaseGranted>(client, Method::request_lease, request);
  simulation.run_for(1s);
  EXPECT_EQ(explain(client, request.lease).state, "starting");
  auto other = request;
  other.lease = LeaseId::random(simulation.random());
  const auto waiting = begin<protocol::LeaseGranted>(client, Method::request_lease, other);
  simulation.run_for(100ms);
  const Explanation told = explain(client, other.lease);
  EXPECT_EQ(told.state, "pending");
  EXPECT_NE(told.why.find("needs 1, at most 0 free"), std::string::npos) << told.why;
  worker.let_go();
  simulation.run_for(1s);
  ASSERT_TRUE(granted->has_value() && **granted);
  const Explanation held = explain(client, request.lease);
  EXPECT_EQ(held.state, "held");
  expect_due(held, options.lease_quantum - 1s);
  const ProcessId slot = (**granted)->slots.at(0).address.process;
  const Explanation process = explain(client, slot);
  EXPECT_EQ(process.kind, "process");
  EXPECT_NE(process.why.find(request.lease.to_string()), std::string::npos) << process.why;
  simulation.run_for(10s);
}

TEST_F(HeadExplains, NodesJobsProcessesAndWhatNobodyKnows) {
  start_head();
  FakeWorker& worker = add_worker(2);
  const ProcessId process = ProcessId::random(simulation.random());
  const auto client = driver_of({}, process);
  const JobId job = begin_job(client);
  EXPECT_EQ(explain(client, job).state, "running");
  EXPECT_EQ(explain(client, process).name, "");
  EXPECT_NE(explain(client, process).why.find("driver of job"), std::string::npos);
  const auto spec = actor_spec(1);
  ASSERT_TRUE(create(client, spec));
  const auto alive = wait_alive(client, spec.actor);
  ASSERT_TRUE(alive);
  EXPECT_NE(explain(client, alive->address.process).why.find("it hosts actor Counter"),
            std::string::npos);
  const Explanation alive_node = explain(client, worker.node);
  EXPECT_EQ(alive_node.state, "alive");
  EXPECT_EQ(alive_node.deadline_us, 0u);
  worker.beats = false;
  simulation.run_for(options.window * 3 / 4);
  const Explanation suspect = explain(client, worker.node);
  EXPECT_EQ(suspect.state, "suspect");
  EXPECT_GT(suspect.since_us, 0u);
  expect_due(suspect, options.window / 4);
  EXPECT_NE(explain(client, spec.actor).why.find("suspect: it has said nothing for"),
            std::string::npos);
  simulation.run_for(options.window);
  EXPECT_EQ(explain(client, worker.node).state, "dead");
  const auto unknown = ask<Explanation>(client, Method::explain, protocol::Explain{RawId{1, 2}});
  EXPECT_EQ(code_of(unknown), Code::not_found);
}

TEST_F(HeadExplains, ANodeThatDrains) {
  start_head();
  FakeWorker& worker = add_worker(1);
  protocol::Hello self;
  self.kind = "tool";
  const auto admin = connect(add_host("admin", "admin", Role::admin), nothing, self).value();
  ASSERT_TRUE(ask<Empty>(admin, Method::drain_node, protocol::DrainNode{worker.node}));
  const Explanation told = explain(admin, worker.node);
  EXPECT_EQ(told.state, "draining");
  EXPECT_NE(told.why.find("nothing new goes there"), std::string::npos) << told.why;
}

TEST_F(HeadExplains, APlacementGroupThatFindsNoRoom) {
  start_head();
  add_worker(1);
  const auto client = driver();
  protocol::PlacementGroupSpec spec;
  spec.group = PlacementGroupId::random(simulation.random());
  spec.name = "gang";
  spec.bundles.resize(2);
  for (auto& bundle : spec.bundles) bundle.demand = {{"cpu", 1000}};
  protocol::PlacementGroupSpecs specs;
  specs.items.push_back(spec);
  ASSERT_TRUE(ask<protocol::PlacementGroupResults>(client, Method::create_placement_groups, specs));
  const Explanation told = explain(client, spec.group);
  EXPECT_EQ(told.kind, "placement group");
  EXPECT_EQ(told.state, "pending");
  EXPECT_NE(told.why.find("2 bundles"), std::string::npos) << told.why;
}

}  // namespace
}  // namespace troupe::head
