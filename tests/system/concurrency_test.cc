// What runs at once in one actor, and tasks that are sent ahead to their slots.
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

class ConcurrencySystem : public testing::Test {
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
  static void check(const std::string& name) {
    const Outcome outcome = cluster->program("concurrency", {name});
    EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
  }
  static Cluster* cluster;
};
Cluster* ConcurrencySystem::cluster = nullptr;

TEST_F(ConcurrencySystem, CoroutineMethodsOfOneActorOverlap) {
  check("overlap");
}
TEST_F(ConcurrencySystem, CoroutineMethodsStayOnTheThreadOfTheirActor) {
  check("one_thread");
}
TEST_F(ConcurrencySystem, UnfinishedCoroutineCallsAreBounded) {
  check("bounded");
}
TEST_F(ConcurrencySystem, ErrorsOfCoroutineMethodsKeepCodeAndMessage) {
  check("errors");
}
TEST_F(ConcurrencySystem, CallsSuspendedInAnActorThatDiesFail) {
  check("killed");
}
TEST_F(ConcurrencySystem, ASessionClosesWithSuspendedCallsInFlight) {
  check("left_behind");
}
TEST_F(ConcurrencySystem, AThreadedActorRunsBlockingCallsAtOnce) {
  check("threads");
}
TEST_F(ConcurrencySystem, AnyOtherActorRunsOneCallAtATime) {
  check("one_at_a_time");
}
TEST_F(ConcurrencySystem, AThreadedActorIsKilledWithEveryCall) {
  check("kill_threads");
}
TEST_F(ConcurrencySystem, ShortTasksDoNotWaitForALongOneThatTheyWereSentBehind) {
  check("long_among_short");
}
TEST_F(ConcurrencySystem, OfTheTasksOfAProcessThatDiesOnlyTheOneThatHadBegunIsLost) {
  check("death_among_short");
}

TEST_F(ConcurrencySystem, AProgramGetsSlotsWhileAnotherFloodsTheCluster) {
  const auto flag = cluster->folder() / "flood";
  std::ofstream{flag}.flush();
  Outcome flood;
  std::thread first{[&] { flood = cluster->program("concurrency", {"flood", flag}); }};
  EXPECT_TRUE(
      eventually([&] { return std::filesystem::file_size(flag) > 0; }, std::chrono::seconds(60)));
  check("one_task");
  EXPECT_TRUE(std::filesystem::remove(flag));
  first.join();
  EXPECT_EQ(flood.status, 0) << flood.err << flood.out;
}

TEST(ConcurrencySystemOfOneCpu, TasksSentAheadDoNotWaitForEachOther) {
  Cluster cluster;
  ASSERT_EQ(cluster.up({"--workers", "1", "--cpus", "1", "--gateway-port", "-1"}).status, 0);
  const Outcome outcome = cluster.program("concurrency", {"nested"});
  EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
}

TEST(ConcurrencySystemOfTwoNodes, LongTasksAndDeathsHoldUpNoOther) {
  Cluster cluster;
  ASSERT_EQ(cluster.up({"--workers", "2", "--cpus", "1", "--gateway-port", "-1"}).status, 0);
  for (const char* name : {"long_among_short", "death_among_short", "nested"}) {
    const Outcome outcome = cluster.program("concurrency", {name});
    EXPECT_EQ(outcome.status, 0) << name << ": " << outcome.err << outcome.out;
  }
}

}  // namespace
}  // namespace troupe::test
