// Light actors, batches of actors, concurrency groups, mailboxes, and how actors end.
#include <gtest/gtest.h>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

class ActorsSystem : public testing::Test {
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
    const Outcome outcome = cluster->program("actors", {name});
    EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
  }
  static Cluster* cluster;
};
Cluster* ActorsSystem::cluster = nullptr;

TEST_F(ActorsSystem, ThousandsOfLightActorsShareOneProcess) {
  check("many");
}
TEST_F(ActorsSystem, ABatchOfActorsHasProcessesOfTheirOwnAndIsMadeWholeOrNotAtAll) {
  check("own_processes");
}
TEST_F(ActorsSystem, LightActorsThatWaitForEachOtherGetMoreThreads) {
  check("blocked");
}
TEST_F(ActorsSystem, LightActorsRestartOrDieTogetherWithTheirProcess) {
  check("shared_fate");
}
TEST_F(ActorsSystem, ALightActorThatDoesNotReturnIsEndedWithItsProcess) {
  check("stuck");
}
TEST_F(ActorsSystem, AConstructorThatFailsHarmsNoOtherOfTheBatch) {
  check("bad_constructors");
}
TEST_F(ActorsSystem, ConcurrencyGroupsRunBesideEachOtherWithinTheirLimits) {
  check("groups");
}
TEST_F(ActorsSystem, CoroutineMethodsOfAGroupAreBoundedApart) {
  check("coroutine_groups");
}
TEST_F(ActorsSystem, WhatAnEndedLightActorAwaitedHarmsNobody) {
  check("suspended");
}
TEST_F(ActorsSystem, OnlyAnOutOfOrderActorRunsACallBeforeAnEarlierOneThatWaitsForItsArguments) {
  check("order");
}
TEST_F(ActorsSystem, AFullMailboxRefusesAndSaysSo) {
  check("full_mailbox");
}
TEST_F(ActorsSystem, AnActorHasItsLastWordWithinItsGrace) {
  check("exit");
}

}  // namespace
}  // namespace troupe::test
