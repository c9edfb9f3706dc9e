// Callers that are held back, pools of actors, queues between processes, and what coroutine methods
// wait for.
#include <gtest/gtest.h>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

class PoolsSystem : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster = new Cluster;
    const Outcome started = cluster->up({"--workers", "1", "--cpus", "4", "--gateway-port", "-1"});
    ASSERT_EQ(started.status, 0) << started.err;
  }
  static void TearDownTestSuite() {
    delete cluster;
    cluster = nullptr;
  }
  static void check(const std::string& program, const std::string& name) {
    const Outcome outcome = cluster->program(program, {name});
    EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
  }
  static Cluster* cluster;
};
Cluster* PoolsSystem::cluster = nullptr;

TEST_F(PoolsSystem, ALimitedHandleHoldsItsCallersBack) {
  check("pools", "window");
}
TEST_F(PoolsSystem, APlaceOfALimitedHandleComesBackHoweverItsCallEnds) {
  check("pools", "window_failures");
}
TEST_F(PoolsSystem, CoroutineMethodsWaitForAPlaceWithoutAThread) {
  check("pools", "window_in_coroutines");
}
TEST_F(PoolsSystem, ACallerThatWaitsForRoomInAMailboxGetsItOnce) {
  check("pools", "room");
}
TEST_F(PoolsSystem, OfACrowdThatWaitsForOneMailboxNoCallIsLostOrRunsTwice) {
  check("pools", "crowd");
}
TEST_F(PoolsSystem, APoolSharesWorkAndLetsNobodyWaitBehindASlowMember) {
  check("pools", "pool");
}
TEST_F(PoolsSystem, APoolOutlivesItsMembers) {
  check("pools", "pool_deaths");
}
TEST_F(PoolsSystem, WhatWaitsBehindTheCallOfAMemberThatStopsGoesToAnother) {
  check("pools", "pool_behind");
}
TEST_F(PoolsSystem, APoolThatGoesFailsWhatWaitsAndEndsItsOwnActors) {
  check("pools", "pool_end");
}
TEST_F(PoolsSystem, AMapReadsItsRangeOnlySoFarAhead) {
  check("pools", "map");
}
TEST_F(PoolsSystem, CoroutineMethodsSleepUntilTheirCallShouldStop) {
  check("pools", "sleep");
}
TEST_F(PoolsSystem, MethodsOfAnActorSignalEachOther) {
  check("pools", "signal");
}
TEST_F(PoolsSystem, AQueueIsFirstInFirstOutBoundedAndKeepsTime) {
  check("queues", "basics");
}
TEST_F(PoolsSystem, AClosedQueueIsDrainedThenEnds) {
  check("queues", "closed");
}
TEST_F(PoolsSystem, ManyProcessesProduceAndConsumeEachElementOnce) {
  check("queues", "crowd");
}
TEST_F(PoolsSystem, RefsInsideQueuedElementsStayAlive) {
  check("queues", "refs");
}
TEST_F(PoolsSystem, AGetterThatIsGoneTakesNoElementAlong) {
  check("queues", "gone");
}
TEST_F(PoolsSystem, NamedQueuesAreFoundAndOfOneType) {
  check("queues", "named");
}
TEST_F(PoolsSystem, ThousandsWaitAtAQueueAndItsActorAnswersOthers) {
  check("queues", "waiting");
}
TEST_F(PoolsSystem, CoroutineMethodsUseAQueueWithoutAThread) {
  check("queues", "coroutines");
}
TEST_F(PoolsSystem, AQueueThatDiesFailsWhoeverWaits) {
  check("queues", "dies");
}
TEST_F(PoolsSystem, TheExampleRuns) {
  const Outcome outcome = cluster->program("worker_pool");
  EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
}

TEST(PoolsSystemOfTwoNodes, PoolsQueuesAndWaitingCallersSpanNodes) {
  Cluster cluster;
  ASSERT_EQ(cluster
                .up({"--workers", "2", "--cpus", "2", "--label", "worker-0:n=0", "--label",
                     "worker-1:n=1", "--gateway-port", "-1"})
                .status,
            0);
  const std::pair<const char*, const char*> checks[] = {
      {"pools", "window"}, {"pools", "room"},   {"pools", "pool_deaths"}, {"pools", "leaving"},
      {"pools", "map"},    {"queues", "crowd"}, {"queues", "two_nodes"},  {"queues", "gone"}};
  for (const auto& [program, name] : checks) {
    const Outcome outcome = cluster.program(program, {name});
    EXPECT_EQ(outcome.status, 0) << name << ": " << outcome.err << outcome.out;
  }
}

}  // namespace
}  // namespace troupe::test
