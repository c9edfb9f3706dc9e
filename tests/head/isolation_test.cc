// Actors that must not overlap: each incarnation starts once the one before has surely ended.
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

class Isolation : public HeadTest {
 protected:
  static constexpr Duration limit = 10s;  // Longer than a node's window of 5 s.

  void SetUp() override {
    start_head();
    client = driver();
    spec = actor_spec();
    spec.max_restarts = -1;
    spec.isolation_limit_us = static_cast<uint64_t>(limit / 1us);
  }
  // It runs on the worker that this adds first.
  FakeWorker& create_on_one_of_two() {
    FakeWorker& first = add_worker(4);
    EXPECT_TRUE(create(client, spec));
    alive = wait_alive(client, spec.actor).value();
    second = &add_worker(4);
    return first;
  }
  void let_come_back(FakeWorker& worker) {
    worker.registration.actors = {{spec.actor, alive.incarnation, alive.address, 1}};
    worker.beats = true;
    return_worker(worker);
  }

  std::shared_ptr<Peer> client;
  protocol::ActorSpec spec;
  protocol::ActorInfo alive;
  FakeWorker* second = nullptr;
};

TEST_F(Isolation, LimitsAreChecked) {
  const auto least = static_cast<uint64_t>(3 * options.heartbeat / 1us);
  for (const uint64_t wrong : {least - 1, uint64_t{3'600'000'001}, UINT64_MAX}) {
    spec.actor = ActorId::random(simulation.random());
    spec.isolation_limit_us = wrong;
    EXPECT_EQ(code_of(create(client, spec)), Code::invalid) << wrong;
  }
  spec.isolation_limit_us = least;
  spec.shared = true;
  spec.module = "/module.so";
  EXPECT_EQ(code_of(create(client, spec)), Code::invalid);
  spec.shared = false;
  EXPECT_TRUE(create(client, spec));
}

TEST_F(Isolation, AnActorOfALostNodeWaitsItsLimitOut) {
  FakeWorker& first = create_on_one_of_two();
  first.beats = false;
  simulation.run_for(14s);
  EXPECT_EQ(look(client, first.node).state, "dead");
  EXPECT_EQ(look(client, spec.actor).state, "restarting");
  EXPECT_TRUE(second->started.empty());
  simulation.run_for(3s);
  EXPECT_EQ(wait_alive(client, spec.actor, 1).value().address.node, second->node);
}

TEST_F(Isolation, OneWhoseNodeComesBackIsStoppedFirst) {
  FakeWorker& first = create_on_one_of_two();
  first.beats = false;
  simulation.run_for(10s);
  ASSERT_EQ(look(client, first.node).state, "dead");
  first.hold_stops = true;
  let_come_back(first);
  simulation.run_for(1min);
  EXPECT_FALSE(first.stopped.empty());
  EXPECT_EQ(look(client, spec.actor).state, "restarting") << "it was told to stop, and still runs";
  first.let_go();
  EXPECT_TRUE(wait_alive(client, spec.actor, 1));
}

TEST_F(Isolation, ANodeThatIsLostOnceMoreIsWaitedForOnceMore) {
  FakeWorker& first = create_on_one_of_two();
  first.beats = false;
  simulation.run_for(14s);
  first.hold_stops = true;
  let_come_back(first);
  simulation.run_for(2s);  // The first wait would be over by now.
  first.beats = false;
  simulation.run_for(14s);
  ASSERT_EQ(look(client, first.node).state, "dead");
  EXPECT_EQ(look(client, spec.actor).state, "restarting");
  simulation.run_for(3s);
  EXPECT_TRUE(wait_alive(client, spec.actor, 1));
}

TEST_F(Isolation, AProcessThatEndedIsNotWaitedFor) {
  FakeWorker& first = create_on_one_of_two();
  ASSERT_TRUE(report_exit(first, alive));
  const Instant before = simulation.clock().now();
  EXPECT_TRUE(wait_alive(client, spec.actor, 1));
  EXPECT_LT(simulation.clock().now() - before, 1s);
}

TEST_F(Isolation, ANewHeadWaitsForWhatTheOneBeforeWaitedFor) {
  FakeWorker& first = create_on_one_of_two();
  first.beats = false;
  simulation.run_for(6s);
  ASSERT_EQ(look(client, spec.actor).state, "restarting");
  restart_head();
  client = driver();
  return_worker(*second);
  simulation.run_for(9s);
  EXPECT_TRUE(second->started.empty());
  simulation.run_for(2s);
  EXPECT_TRUE(wait_alive(client, spec.actor, 1));
}

TEST_F(Isolation, ANewHeadWaitsUntilWhatCameBackHasStopped) {
  FakeWorker& first = create_on_one_of_two();
  first.beats = false;
  simulation.run_for(6s);
  ASSERT_EQ(look(client, spec.actor).state, "restarting");
  restart_head();
  client = driver();
  return_worker(*second);
  first.hold_stops = true;
  let_come_back(first);
  simulation.run_for(1min);
  EXPECT_TRUE(second->started.empty());
  first.let_go();
  EXPECT_TRUE(wait_alive(client, spec.actor, 1));
}

}  // namespace
}  // namespace troupe::head
