// Retries, time limits, cancelling, several results and tasks whose refs are dropped.
#include <gtest/gtest.h>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

class TasksSystem : public testing::Test {
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
  static Outcome check(const std::string& name) {
    Outcome outcome = cluster->program("task_checks", {name});
    EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
    return outcome;
  }
  static Cluster* cluster;
};
Cluster* TasksSystem::cluster = nullptr;

TEST_F(TasksSystem, AFailureOfAListedCodeIsTriedAgainWithBackOff) {
  check("retries");
}
TEST_F(TasksSystem, CallsOfAnActorAreTriedAgainAsItsOptionsSay) {
  check("call_retries");
}
TEST_F(TasksSystem, ATaskPastItsTimeLimitIsWarnedAndThenEnded) {
  check("time_limits");
}
TEST_F(TasksSystem, ForceEndsTheProcessAndNoOtherTaskIsLost) {
  check("force");
}
TEST_F(TasksSystem, CancellingReachesWhatWasSubmitted) {
  check("children");
  check("spared_children");
}
TEST_F(TasksSystem, ACoroutineMethodIsToldByItself) {
  check("coroutine_told");
}
TEST_F(TasksSystem, SeveralResultsAreObjectsOfTheirOwn) {
  check("several");
}
TEST_F(TasksSystem, GeneratorsGiveTheirItemsAsTheyAreReadAndNoFaster) {
  check("streams");
}
TEST_F(TasksSystem, AFailureComesAfterTheItemsAndADroppedStreamEndsItsTask) {
  check("stream_failures");
}
TEST_F(TasksSystem, AGeneratorThatWaitsHoldsUpNoOtherCallOfItsActor) {
  check("actor_stream");
}
TEST_F(TasksSystem, AFloodedClassHoldsUpNoOther) {
  check("flooded_class");
}
TEST_F(TasksSystem, TheHigherPriorityGoesFirst) {
  check("priorities");
}
TEST_F(TasksSystem, WhatNobodyReadsIsStillTracked) {
  const Outcome outcome = check("dropped");
  size_t logged = 0;
  for (size_t at = outcome.err.find("unread_call_failed"); at != std::string::npos;
       at = outcome.err.find("unread_call_failed", at + 1)) {
    ++logged;
  }
  EXPECT_EQ(logged, 3u) << outcome.err;
  EXPECT_NE(outcome.err.find("lost"), std::string::npos) << outcome.err;
}

TEST(TasksSystemOfTwoNodes, TheSameHoldsBetweenNodes) {
  Cluster cluster;
  ASSERT_EQ(cluster.up({"--workers", "2", "--cpus", "1", "--gateway-port", "-1"}).status, 0);
  for (const char* name : {"retries", "time_limits", "force", "children", "spared_children",
                           "several", "dropped", "streams", "stream_failures", "actor_stream"}) {
    const Outcome outcome = cluster.program("task_checks", {name});
    EXPECT_EQ(outcome.status, 0) << name << ": " << outcome.err << outcome.out;
  }
}

// Of producers on the driver's node, whose items come through rings, and on another.
TEST(TasksSystemOfTwoNodes, RefsInItemsKeepTheirObjectsUntilNobodyNeedsThem) {
  Cluster cluster;
  ASSERT_EQ(cluster
                .up({"--workers", "2", "--cpus", "4", "--label", "worker-0:n=0", "--label",
                     "worker-1:n=1", "--gateway-port", "-1"})
                .status,
            0);
  for (const char* name : {"read", "read_and_dropped", "awaited", "unread", "passed_on",
                           "producer_dies", "caller_dies", "actors"}) {
    for (const char* node : {"0", "1"}) {
      const Outcome outcome = cluster.program("item_refs", {name, node});
      EXPECT_EQ(outcome.status, 0) << name << " " << node << ": " << outcome.err << outcome.out;
    }
  }
}

}  // namespace
}  // namespace troupe::test
