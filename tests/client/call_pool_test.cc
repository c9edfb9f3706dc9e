// Calls to whichever actor has the least to do, and what becomes of them when actors die.
#include "client/call_pool.h"

#include "tests/client/client_fixture.h"

namespace troupe::client {
namespace {

class CallPoolTest : public ClientTest {
 protected:
  void TearDown() override {
    if (pool) pool->close();
    pool = nullptr;
    ClientTest::TearDown();
  }
  void make_pool(uint32_t calls_a_member = 1) {
    pool = std::make_shared<CallPool>(*client, calls_a_member);
  }
  // A process that hosts an actor of the pool.
  FakeProcess& add_member() {
    const ActorId id = ActorId::random(simulation.random());
    FakeProcess& process = host_actor(id, 1);
    members.push_back(id);
    EXPECT_TRUE(pool->add(id));
    simulation.run_for(1s);
    return process;
  }
  FakeProcess& host_actor(ActorId id, uint32_t incarnation) {
    FakeProcess& process = add_process();
    auto& info = head.more_actors[id];
    info.actor = id;
    info.state = "alive";
    info.incarnation = incarnation;
    info.address = process.address;
    head.changed.pulse();
    return process;
  }
  ObjectName submit(const std::string& argument, RetryPolicy policy = {},
                    Duration budget = default_budget) {
    auto spec = call_of(argument);
    spec.actor = {};
    spec.budget = budget;
    ActorCallExtras extras;
    extras.retry = std::move(policy);
    extras.route = pool;
    spec.extras = std::make_shared<const ActorCallExtras>(std::move(extras));
    return client->objects().publish(pool->submit(std::move(spec), nullptr));
  }
  static void release(FakeProcess& process) {
    process.hold = false;
    process.changed.pulse();
  }

  std::shared_ptr<CallPool> pool;
  std::vector<ActorId> members;
};

TEST_F(CallPoolTest, CallsGoToTheMemberWithTheFewestUnfinishedOnesAndTheOthersWait) {
  start_client();
  make_pool(2);
  FakeProcess& slow = add_member();
  FakeProcess& quick = add_member();
  slow.hold = true;
  std::vector<ObjectName> results;
  for (int i = 0; i < 20; ++i) results.push_back(submit(std::to_string(i)));
  simulation.run_for(1s);
  EXPECT_EQ(slow.calls.size(), 2u);
  EXPECT_EQ(quick.calls.size(), 18u);
  EXPECT_EQ(pool->counts().unfinished, 2u);
  EXPECT_EQ(pool->counts().idle, 1u);
  release(slow);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(get(results[size_t(i)]).value(), std::to_string(i));
  EXPECT_EQ(pool->counts().unfinished, 0u);
}

TEST_F(CallPoolTest, CallsThatWaitAreSentInTheirOrder) {
  start_client();
  make_pool();
  FakeProcess& only = add_member();
  only.hold = true;
  std::vector<ObjectName> results;
  for (int i = 0; i < 10; ++i) results.push_back(submit(std::to_string(i)));
  simulation.run_for(1s);
  EXPECT_EQ(only.calls.size(), 1u);
  EXPECT_EQ(pool->counts().queued, 9u);
  release(only);
  for (const auto& result : results) ASSERT_TRUE(get(result));
  for (size_t i = 0; i < 10; ++i) {
    EXPECT_EQ(as_text(only.calls[i].arguments[0].inline_value), std::to_string(i));
  }
}

TEST_F(CallPoolTest, WhatDidNotRunOnAMemberThatDiesGoesToAnother) {
  start_client();
  make_pool(4);
  FakeProcess& first = add_member();
  FakeProcess& second = add_member();
  first.failures.assign(100, error(Code::unavailable, "the actor is stopping"));
  std::vector<ObjectName> results;
  for (int i = 0; i < 8; ++i) results.push_back(submit(std::to_string(i)));
  for (int i = 0; i < 8; ++i) EXPECT_EQ(get(results[size_t(i)]).value(), std::to_string(i));
  EXPECT_EQ(second.calls.size(), 8u);
  const size_t refused = first.calls.size();
  simulation.run_for(1min);
  EXPECT_LT(first.calls.size(), refused + 2) << "nothing is sent there without a need";
}

TEST_F(CallPoolTest, AMemberThatRefusesIsTriedLessAndLessOften) {
  start_client();
  make_pool();
  FakeProcess& only = add_member();
  only.failures.assign(100'000, error(Code::unavailable, "the actor is stopping"));
  const ObjectName result = submit("hello", {}, 20s);
  EXPECT_EQ(code_of(get(result)), Code::unavailable);
  EXPECT_LT(only.calls.size(), 60u);
}

TEST_F(CallPoolTest, WhatMayHaveRunFailsUnlessItMayRunTwice) {
  start_client();
  make_pool();
  FakeProcess& first = add_member();
  FakeProcess& second = add_member();
  first.hold = second.hold = true;
  const ObjectName once = submit("once");
  const ObjectName again = submit("again", {.retries = 1});
  simulation.run_for(1s);
  head.more_actors[members[0]].state = "dead";
  head.more_actors[members[1]].state = "dead";
  FakeProcess& third = add_member();
  first.die();
  second.die();
  EXPECT_EQ(code_of(get(once)), Code::outcome_unknown);
  EXPECT_EQ(get(again).value(), "again");
  EXPECT_EQ(third.calls.size(), 1u);
  EXPECT_EQ(pool->members(), std::vector{members[2]});
}

TEST_F(CallPoolTest, AMemberThatRestartsComesBackAndHoldsUpNobodyMeanwhile) {
  start_client();
  make_pool();
  FakeProcess& first = add_member();
  FakeProcess& second = add_member();
  head.more_actors[members[0]].state = "restarting";
  first.die();
  simulation.run_for(1s);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(get(submit(std::to_string(i))).value(), std::to_string(i));
  EXPECT_EQ(pool->counts().reached, 1u);
  EXPECT_EQ(pool->counts().members, 2u);
  FakeProcess& next = host_actor(members[0], 2);
  simulation.run_for(1s);
  EXPECT_EQ(pool->counts().reached, 2u);
  second.hold = true;
  const ObjectName held = submit("held");
  const ObjectName other = submit("other");
  simulation.run_for(1s);
  EXPECT_EQ(next.calls.size() + second.calls.size(), 12u);
  release(second);
  EXPECT_TRUE(get(held));
  EXPECT_TRUE(get(other));
}

TEST_F(CallPoolTest, WhenNobodyIsLeftCallsFailAndSayWhy) {
  start_client();
  make_pool();
  EXPECT_EQ(code_of(get(submit("nobody yet"))), Code::unavailable);
  FakeProcess& only = add_member();
  only.hold = true;
  const ObjectName sent = submit("sent");
  const ObjectName waits = submit("waits");
  simulation.run_for(1s);
  head.more_actors[members[0]].state = "dead";
  head.more_actors[members[0]].reason = "it was killed";
  only.die();
  EXPECT_EQ(code_of(get(sent)), Code::outcome_unknown);
  const auto failed = get(waits);
  ASSERT_EQ(code_of(failed), Code::unavailable);
  EXPECT_NE(failed.error().message().find("it was killed"), std::string::npos);
  EXPECT_EQ(code_of(get(submit("later"))), Code::unavailable);
  add_member();
  EXPECT_EQ(code_of(get(submit("after a push"))), Code::ok);
}

TEST_F(CallPoolTest, CancelledAndLateCallsThatWaitAreNotSent) {
  start_client();
  make_pool();
  FakeProcess& only = add_member();
  only.hold = true;
  const ObjectName first = submit("first");
  const ObjectName cancelled = submit("cancelled");
  const ObjectName late = submit("late", {}, 2s);
  const ObjectName last = submit("last");
  client->cancel(cancelled.id);
  EXPECT_EQ(code_of(get(cancelled)), Code::cancelled);
  EXPECT_EQ(code_of(get(late)), Code::deadline_exceeded);
  release(only);
  EXPECT_TRUE(get(first));
  EXPECT_TRUE(get(last));
  EXPECT_EQ(only.calls.size(), 2u);
  EXPECT_EQ(pool->counts().queued, 0u);
}

TEST_F(CallPoolTest, AnIdleMemberCanBeTakenOutAndABusyOneCannot) {
  start_client();
  make_pool();
  EXPECT_EQ(pool->take_idle(), std::nullopt);
  FakeProcess& only = add_member();
  EXPECT_FALSE(pool->add(members[0])) << "it is a member already";
  only.hold = true;
  const ObjectName result = submit("hello");
  EXPECT_EQ(pool->take_idle(), std::nullopt);
  release(only);
  ASSERT_TRUE(get(result));
  EXPECT_EQ(pool->take_idle(), members[0]);
  EXPECT_EQ(pool->counts().members, 0u);
  EXPECT_TRUE(pool->add(members[0]));
  EXPECT_EQ(code_of(get(submit("back"))), Code::ok);
}

TEST_F(CallPoolTest, AClosedPoolFailsWhatWaitsFinishesWhatWasSentAndIsFreed) {
  start_client();
  make_pool();
  FakeProcess& only = add_member();
  only.hold = true;
  const ObjectName object = put("value");
  auto spec = call_of("waits");
  spec.held = {object};
  ActorCallExtras extras;
  extras.route = pool;
  spec.extras = std::make_shared<const ActorCallExtras>(std::move(extras));
  const ObjectName sent = submit("sent");
  const ObjectName waits = client->objects().publish(pool->submit(std::move(spec), nullptr));
  client->drop_reference(object);
  simulation.run_for(1s);
  ASSERT_TRUE(get(object));
  pool->close();
  EXPECT_EQ(code_of(get(waits)), Code::cancelled);
  EXPECT_EQ(code_of(get(object)), Code::not_found) << "its arguments are let go";
  EXPECT_EQ(code_of(get(submit("later"))), Code::cancelled);
  const std::weak_ptr<CallPool> gone = pool;
  pool = nullptr;
  EXPECT_FALSE(gone.expired()) << "a call is unfinished";
  release(only);
  EXPECT_EQ(get(sent).value(), "sent");
  simulation.run_for(1s);
  EXPECT_TRUE(gone.expired());
}

}  // namespace
}  // namespace troupe::client
