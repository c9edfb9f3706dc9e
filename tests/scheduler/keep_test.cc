#include <gtest/gtest.h>

#include "scenario.h"

namespace troupe::scheduler {
namespace {

using std::chrono::seconds;

TEST(Keep, ABigRequestIsNotOvertakenForEver) {
  Scenario cluster({.lease_term = seconds(1000), .patience = seconds(10)});
  cluster.node(1, cpus(4));
  for (uint64_t n = 1; n <= 4; ++n) cluster.lease(n, cpus(1));
  cluster.lease(100, cpus(4));
  // Small leases come and go, one a second; each would take the room of the one before.
  uint64_t next = 5;
  uint64_t oldest = 1;
  seconds waited{0};
  while (cluster.scheduler.held(make_id<LeaseId>(100)).empty()) {
    ASSERT_LT(waited, seconds(20)) << cluster.why(make_id<LeaseId>(100));
    cluster.pass(seconds(1));
    ++waited;
    cluster.lease(next++, cpus(1));
    cluster.give_back(oldest++);
  }
  EXPECT_GE(waited, seconds(10));
}

TEST(Keep, WithoutPatienceRunningOutSmallOnesOvertake) {
  Scenario cluster({.lease_term = seconds(1000), .patience = seconds(1000)});
  cluster.node(1, cpus(4));
  for (uint64_t n = 1; n <= 4; ++n) cluster.lease(n, cpus(1));
  cluster.lease(100, cpus(4));
  for (uint64_t n = 0; n < 50; ++n) {
    cluster.pass(seconds(1));
    cluster.lease(5 + n, cpus(1));
    cluster.give_back(1 + n);
  }
  EXPECT_TRUE(cluster.scheduler.held(make_id<LeaseId>(100)).empty());
}

TEST(Keep, DeadlineNamesTheMomentPatienceEnds) {
  Scenario cluster({.lease_term = seconds(1000), .patience = seconds(10)});
  cluster.node(1, cpus(2));
  cluster.lease(1, cpus(1));
  cluster.lease(2, cpus(2));
  const Instant due = cluster.now + seconds(10);
  EXPECT_EQ(cluster.scheduler.next_deadline(), due);
  cluster.pass(seconds(10));
  EXPECT_TRUE(cluster.scheduler.nodes()[0].kept);
  // Nothing else is due before the lease expires.
  EXPECT_GT(cluster.scheduler.next_deadline(), due);
}

TEST(Keep, KeepsOnlyAsManyNodesAsAreNeeded) {
  Scenario cluster({.lease_term = seconds(1000), .patience = seconds(10)});
  for (uint64_t n = 1; n <= 3; ++n) cluster.node(n, cpus(2));
  for (uint64_t n = 1; n <= 3; ++n) cluster.lease(n, cpus(1), 2);
  cluster.lease(100, cpus(2));
  cluster.pass(seconds(10));
  cluster.give_back(2, {0});
  cluster.give_back(1, {0});
  uint32_t kept = 0;
  for (const NodeView& node : cluster.scheduler.nodes()) kept += node.kept ? 1 : 0;
  EXPECT_EQ(kept, 1u);
  // One of the two freed CPUs is on a node that is not kept.
  EXPECT_EQ(only<LeaseGranted>(cluster.lease(50, cpus(1), 2)).size(), 1u);
}

TEST(Keep, CancelLetsTheNodesGoAtOnce) {
  Scenario cluster({.lease_term = seconds(1000), .patience = seconds(10)});
  cluster.node(1, cpus(2));
  cluster.lease(1, cpus(1));
  cluster.lease(2, cpus(2));
  cluster.pass(seconds(10));
  EXPECT_EQ(grants(cluster.lease(3, cpus(1))), "");
  EXPECT_EQ(grants(cluster.apply(Cancelled{make_id<LeaseId>(2)})), "lease 3@1x1");
}

TEST(Keep, NothingIsKeptBesideActorsThatMayStayForEver) {
  Scenario cluster({.lease_term = seconds(1000), .patience = seconds(10)});
  cluster.node(1, cpus(2));
  cluster.actor(1, cpus(1));
  cluster.lease(1, cpus(2));
  cluster.pass(seconds(10));
  EXPECT_EQ(grants(cluster.lease(2, cpus(1))), "lease 2@1x1");
}

TEST(Keep, AMoreSeniorRequestTakesOverTheNodes) {
  Scenario cluster({.lease_term = seconds(1000), .patience = seconds(10)});
  cluster.node(1, cpus(3));
  cluster.lease(1, cpus(1));
  cluster.lease(2, cpus(3));
  cluster.pass(seconds(10));
  cluster.lease(3, {.cpu_milli = 3000, .memory_mib = 0, .custom = {{"none", 0}}}, 1, 7);
  cluster.pass(seconds(10));
  EXPECT_EQ(grants(cluster.give_back(1)), "lease 3@1x1");
}

// Whose turn it is changes with what ends; that is looked at a few times within the patience, for a
// look costs as much as there are nodes.
TEST(Keep, WhatBecomesPossibleIsSeenWithinAnEighthOfThePatience) {
  Scenario cluster({.lease_term = seconds(1000), .patience = seconds(80)});
  cluster.node(1, cpus(2));
  cluster.actor(1, cpus(1));
  cluster.lease(2, cpus(1));
  cluster.lease(100, cpus(2));
  cluster.pass(seconds(80));
  ASSERT_FALSE(cluster.scheduler.nodes()[0].kept) << "the actor may stay for ever";
  cluster.pass(seconds(1));
  cluster.apply(ActorReleased{make_id<ActorId>(1)});
  EXPECT_FALSE(cluster.scheduler.nodes()[0].kept);
  const auto look = cluster.scheduler.next_deadline();
  ASSERT_TRUE(look);
  EXPECT_EQ(*look - cluster.now, seconds(9));
  cluster.pass(seconds(9));
  EXPECT_TRUE(cluster.scheduler.nodes()[0].kept);
}

TEST(Keep, ALostKeptNodeIsReplacedByAnother) {
  Scenario cluster({.lease_term = seconds(1000), .patience = seconds(10)});
  cluster.node(1, cpus(2));
  cluster.node(2, cpus(2));
  cluster.lease(1, cpus(1));
  cluster.lease(2, cpus(2));
  cluster.lease(3, cpus(2));
  cluster.pass(seconds(10));
  ASSERT_TRUE(cluster.scheduler.nodes()[0].kept);
  cluster.apply(NodeRemoved{make_id<NodeId>(1)});
  EXPECT_TRUE(cluster.scheduler.nodes()[0].kept);
}

TEST(Keep, AGangGetsItsNodesTogether) {
  Scenario cluster({.lease_term = seconds(1000), .patience = seconds(10)});
  cluster.node(1, gpus(2000));
  cluster.node(2, gpus(2000));
  for (uint64_t n = 1; n <= 2; ++n) cluster.gang(n, {2, gpus(1000)});
  cluster.gang(3, {4, gpus(1000)});
  cluster.gang(4, {2, gpus(1000)});
  cluster.pass(seconds(10));
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(1)})), "");
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(2)})), "gang 3@2+2+1+1");
}

// Seed 71 of SchedulerProperty.ACancelledRequestThatHeldNothingLeavesNoTrace.
TEST(Keep, NodesAreFreeForAllOnceTheOverdueRequestIsCancelledWhoeverWaitsForTheSame) {
  for (const bool another_waits : {false, true}) {
    SCOPED_TRACE(another_waits);
    Scenario cluster;
    cluster.node(1, cpus(6));
    EXPECT_EQ(grants(cluster.lease(1, cpus(5), 2, 2)), "lease 1@1x1");
    cluster.lease(2, cpus(2), 1, 1);
    cluster.pass(std::chrono::seconds(11));
    EXPECT_TRUE(cluster.scheduler.nodes()[0].kept);
    EXPECT_EQ(grants(cluster.lease(3, cpus(1), 1, 2)), "");
    if (another_waits) cluster.lease(4, cpus(5), 1, 2);
    EXPECT_EQ(grants(cluster.apply(Cancelled{make_id<LeaseId>(1)})), "lease 3@1x1");
  }
}

}  // namespace
}  // namespace troupe::scheduler
