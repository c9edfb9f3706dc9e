#include "scheduler/scheduler.h"

#include <gtest/gtest.h>

#include "scenario.h"

namespace troupe::scheduler {
namespace {

using std::chrono::seconds;

TEST(Scheduler, GrantsALeaseInPartsAsRoomAppears) {
  Scenario cluster;
  cluster.node(1, cpus(2));
  EXPECT_EQ(grants(cluster.lease(1, cpus(1), 5)), "lease 1@1x2");
  EXPECT_EQ(grants(cluster.node(2, cpus(1))), "lease 1@2x1");
  EXPECT_EQ(cluster.scheduler.pending_units(), 2u);
  // Slots given back are not wanted again, but make room for those still wanted.
  EXPECT_EQ(grants(cluster.give_back(1, {0})), "lease 1@1x1");
  EXPECT_EQ(cluster.scheduler.pending_units(), 1u);
}

TEST(Scheduler, SlotNumbersAreNeverUsedTwice) {
  Scenario cluster;
  cluster.node(1, cpus(1));
  cluster.lease(1, cpus(1), 2);
  const Decisions decisions = cluster.give_back(1, {0});
  ASSERT_EQ(only<LeaseGranted>(decisions).size(), 1u);
  EXPECT_EQ(only<LeaseGranted>(decisions)[0].slots[0].slot, 1u);
}

TEST(Scheduler, ALostSlotIsReplacedInItsOldTurn) {
  Scenario cluster;
  cluster.node(1, cpus(1));
  cluster.lease(1, cpus(1));
  cluster.lease(2, cpus(1));
  // Lease 1 came before lease 2, so the slot is its again.
  EXPECT_EQ(grants(cluster.apply(SlotLost{make_id<LeaseId>(1), 0})), "lease 1@1x1");
}

TEST(Scheduler, AnEndedLeaseIsForgotten) {
  Scenario cluster;
  cluster.node(1, cpus(2));
  cluster.lease(1, cpus(1), 2);
  cluster.give_back(1, {0});
  cluster.give_back(1, {1});
  EXPECT_EQ(cluster.scheduler.explain(make_id<LeaseId>(1)).state, RequestState::unknown);
  EXPECT_EQ(grants(cluster.lease(1, cpus(2))), "lease 1@1x1");
}

TEST(Scheduler, HigherPriorityThenArrivalDecides) {
  Scenario cluster;
  cluster.lease(1, cpus(1), 1, 0);
  cluster.lease(2, cpus(1), 1, 5);
  cluster.lease(3, cpus(1), 1, 5);
  cluster.lease(4, cpus(1), 1, -1);
  EXPECT_EQ(grants(cluster.node(1, cpus(3))), "lease 2@1x1, lease 3@1x1, lease 1@1x1");
}

TEST(Scheduler, RestartsGoBeforeFirstStartsOfTheirPriority) {
  Scenario cluster;
  cluster.actor(1, cpus(1));
  cluster.actor(2, cpus(1), 0, /*restart=*/true);
  cluster.actor(3, cpus(1), 1);
  EXPECT_EQ(grants(cluster.node(1, cpus(3))), "actor 3@1, actor 2@1, actor 1@1");
}

TEST(Scheduler, WhatDoesNotFitStallsNobody) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.actor(1, cpus(3));
  EXPECT_EQ(grants(cluster.lease(1, cpus(2), 1, 9)), "");
  EXPECT_EQ(grants(cluster.lease(2, cpus(1))), "lease 2@1x1");
}

TEST(Scheduler, LeavesGpuNodesForWorkThatNeedsThem) {
  Scenario cluster;
  cluster.node(1, gpus(2000, 4));
  cluster.node(2, cpus(2));
  EXPECT_EQ(grants(cluster.lease(1, cpus(1), 3)), "lease 1@2x2, lease 1@1x1");
}

TEST(Scheduler, PacksFractionsBesideFractions) {
  Scenario cluster;
  cluster.node(1, gpus(2000));
  cluster.node(2, gpus(1000));
  EXPECT_EQ(grants(cluster.actor(1, gpus(500))), "actor 1@2");
  EXPECT_EQ(grants(cluster.actor(2, gpus(500))), "actor 2@2");
  EXPECT_EQ(grants(cluster.actor(3, gpus(2000))), "actor 3@1");
}

TEST(Scheduler, SpreadGoesWhereFewestThingsAre) {
  Scenario cluster;
  for (uint64_t n = 1; n <= 3; ++n) cluster.node(n, cpus(4));
  const Decisions decisions = cluster.apply(LeaseRequested{
      .lease = make_id<LeaseId>(1), .demand = {}, .slots = 4, .strategy = Strategy::spread});
  EXPECT_EQ(grants(decisions), "lease 1@1x1, lease 1@2x1, lease 1@3x1, lease 1@1x1");
}

TEST(Scheduler, SpreadSeesWhatWasGivenBack) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.lease(1, {}, 2);
  cluster.node(2, cpus(4));
  ActorRequested actor{.actor = make_id<ActorId>(1), .strategy = Strategy::spread};
  EXPECT_EQ(grants(cluster.apply(actor)), "actor 1@2");
  cluster.give_back(1);
  actor.actor = make_id<ActorId>(2);
  EXPECT_EQ(grants(cluster.apply(actor)), "actor 2@1");
}

TEST(Scheduler, AffinityPinsToNodeOrLabels) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.node(2, cpus(4), {{"disk", "ssd"}, {"zone", "a"}});
  ActorRequested pinned{.actor = make_id<ActorId>(1), .demand = cpus(1)};
  pinned.affinity.node = make_id<NodeId>(2);
  EXPECT_EQ(grants(cluster.apply(pinned)), "actor 1@2");
  ActorRequested labelled{.actor = make_id<ActorId>(2), .demand = cpus(1)};
  labelled.affinity.selectors = {{"zone", LabelTest::in, {"a"}}};
  EXPECT_EQ(grants(cluster.apply(labelled)), "actor 2@2");
  ActorRequested elsewhere{.actor = make_id<ActorId>(3), .demand = cpus(1)};
  elsewhere.affinity.selectors = {{"zone", LabelTest::in, {"b"}}};
  EXPECT_EQ(only<Infeasible>(cluster.apply(elsewhere)).size(), 1u);
}

TEST(Scheduler, TellsOnceWhatNoNodeCanEverHold) {
  Scenario cluster;
  cluster.node(1, gpus(1000, 4));
  const Decisions decisions = cluster.actor(1, gpus(2000));
  ASSERT_EQ(only<Infeasible>(decisions).size(), 1u);
  EXPECT_EQ(only<Infeasible>(decisions)[0].why,
            "{gpu 2} fits no node, were it empty: 1 of 1 nodes are eligible; short of gpu on 1 of "
            "them (needs 2, at most 1 in all)");
  EXPECT_TRUE(cluster.node(2, gpus(1000, 4)).empty());
  EXPECT_EQ(cluster.scheduler.explain(make_id<ActorId>(1)).state, RequestState::infeasible);
  EXPECT_EQ(grants(cluster.node(3, gpus(2000))), "actor 1@3");
}

TEST(Scheduler, WhatBecomesInfeasibleByALossIsTold) {
  Scenario cluster;
  cluster.node(1, cpus(8));
  cluster.node(2, cpus(1));
  cluster.actor(1, cpus(8));
  EXPECT_TRUE(cluster.actor(2, cpus(8)).empty());
  const Decisions decisions = cluster.apply(NodeRemoved{make_id<NodeId>(1)});
  ASSERT_EQ(only<Revoked>(decisions).size(), 1u);
  ASSERT_EQ(only<Infeasible>(decisions).size(), 1u);
  EXPECT_EQ(only<Infeasible>(decisions)[0].id, RequestId{make_id<ActorId>(2)});
}

// Found by TROUPE_SEED=896: a late comer of high priority drew its shape forward.
TEST(Scheduler, InfeasibleIsToldByAgeWhoeverHeadsTheShape) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.lease(1, cpus(4));
  cluster.actor(2, cpus(2));
  cluster.actor(3, cpus(3));
  cluster.actor(4, cpus(3), 9);
  const Decisions decisions = cluster.apply(NodeRemoved{make_id<NodeId>(1)});
  std::vector<RequestId> told;
  for (const Infeasible& infeasible : only<Infeasible>(decisions)) told.push_back(infeasible.id);
  EXPECT_EQ(told, (std::vector<RequestId>{make_id<ActorId>(4), make_id<LeaseId>(1),
                                          make_id<ActorId>(2), make_id<ActorId>(3)}));
}

TEST(Scheduler, ANodeThatComesBackLargerMakesNothingInfeasible) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.actor(1, cpus(4));
  cluster.actor(2, cpus(4));
  const Decisions decisions = cluster.node(1, cpus(8));
  EXPECT_TRUE(only<Infeasible>(decisions).empty());
  EXPECT_EQ(grants(decisions), "actor 2@1");
}

TEST(Scheduler, ALeaseExpiresUnlessRenewed) {
  Scenario cluster({.lease_term = seconds(30)});
  cluster.node(1, cpus(1));
  cluster.lease(1, cpus(1));
  cluster.lease(2, cpus(1));
  cluster.pass(seconds(20));
  cluster.apply(LeaseRenewed{make_id<LeaseId>(1)});
  EXPECT_TRUE(cluster.pass(seconds(29)).empty());
  EXPECT_EQ(cluster.scheduler.next_deadline(), cluster.now + seconds(1));
  const Decisions decisions = cluster.pass(seconds(1));
  ASSERT_EQ(only<Revoked>(decisions).size(), 1u);
  EXPECT_EQ(only<Revoked>(decisions)[0].reason, RevokeReason::lease_expired);
  EXPECT_EQ(grants(decisions), "lease 2@1x1");
}

TEST(Scheduler, ALostNodeSendsItsLeasesBackInLine) {
  Scenario cluster;
  cluster.node(1, cpus(2));
  cluster.lease(1, cpus(1), 2);
  cluster.actor(1, cpus(2));
  const Decisions decisions = cluster.apply(NodeRemoved{make_id<NodeId>(1)});
  ASSERT_EQ(only<Revoked>(decisions).size(), 1u);
  EXPECT_EQ(only<Revoked>(decisions)[0].reason, RevokeReason::node_lost);
  EXPECT_EQ(only<Revoked>(decisions)[0].units.size(), 2u);
  EXPECT_EQ(grants(cluster.node(2, cpus(2))), "lease 1@2x2");
}

TEST(Scheduler, ADrainingNodeRecallsLeasesAndTakesNothingNew) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.lease(1, cpus(1));
  cluster.actor(1, cpus(1));
  const Decisions decisions = cluster.apply(NodeDraining{make_id<NodeId>(1)});
  ASSERT_EQ(only<Revoked>(decisions).size(), 1u);
  EXPECT_EQ(only<Revoked>(decisions)[0].reason, RevokeReason::node_draining);
  EXPECT_EQ(cluster.scheduler.held(make_id<LeaseId>(1)).size(), 1u);
  EXPECT_EQ(grants(cluster.actor(2, cpus(1))), "");
  // The same node again: it takes part once more.
  EXPECT_EQ(grants(cluster.node(1, cpus(4))), "actor 2@1");
}

TEST(Scheduler, ANodeThatComesBackDifferentLosesWhatItHeld) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.actor(1, cpus(1));
  const Decisions decisions = cluster.node(1, cpus(8));
  EXPECT_EQ(only<Revoked>(decisions).size(), 1u);
  EXPECT_EQ(cluster.scheduler.nodes()[0].available, cpus(8));
}

TEST(Scheduler, RemovingAJobFreesAndForgetsAllOfIt) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.lease(1, cpus(1), 2);
  cluster.actor(1, cpus(1));
  cluster.gang(1, {cpus(1)});
  cluster.actor(2, cpus(4));  // Waits.
  const Decisions decisions = cluster.apply(JobRemoved{make_id<JobId>(1)});
  EXPECT_EQ(only<Revoked>(decisions).size(), 3u);
  EXPECT_EQ(grants(decisions), "");
  EXPECT_EQ(cluster.scheduler.nodes()[0].available, cpus(4));
  EXPECT_EQ(cluster.scheduler.pending_units(), 0u);
  EXPECT_TRUE(cluster.scheduler.pending().empty());
}

TEST(Scheduler, CancelDropsWhatWaitsAndKeepsWhatIsHeld) {
  Scenario cluster;
  cluster.node(1, cpus(1));
  cluster.lease(1, cpus(1), 3);
  cluster.apply(Cancelled{make_id<LeaseId>(1)});
  EXPECT_EQ(cluster.scheduler.pending_units(), 0u);
  EXPECT_EQ(cluster.scheduler.held(make_id<LeaseId>(1)).size(), 1u);
  cluster.actor(1, cpus(1));
  cluster.apply(Cancelled{make_id<ActorId>(1)});
  EXPECT_EQ(grants(cluster.give_back(1)), "");
}

TEST(Scheduler, DuplicatesAndLateNewsChangeNothing) {
  Scenario cluster;
  cluster.node(1, cpus(2));
  cluster.lease(1, cpus(1));
  EXPECT_TRUE(cluster.lease(1, cpus(1), 7).empty());
  cluster.give_back(1);
  EXPECT_TRUE(cluster.give_back(1).empty());
  EXPECT_TRUE(cluster.apply(SlotLost{make_id<LeaseId>(1), 0}).empty());
  EXPECT_TRUE(cluster.apply(LeaseRenewed{make_id<LeaseId>(1)}).empty());
  EXPECT_TRUE(cluster.apply(ActorReleased{make_id<ActorId>(9)}).empty());
  EXPECT_TRUE(cluster.apply(NodeRemoved{make_id<NodeId>(9)}).empty());
  EXPECT_TRUE(cluster.apply(Cancelled{make_id<GangId>(9)}).empty());
  EXPECT_EQ(cluster.scheduler.nodes()[0].available, cpus(2));
}

TEST(Scheduler, RejectsWhatMakesNoSense) {
  Scenario cluster;
  const auto code = [](const Decisions& decisions) {
    const auto rejected = only<Rejected>(decisions);
    return rejected.size() == 1 ? rejected[0].error.code() : Code::ok;
  };
  EXPECT_EQ(code(cluster.lease(1, gpus(1500))), Code::invalid);
  EXPECT_EQ(code(cluster.lease(1, cpus(1), 0)), Code::invalid);
  EXPECT_EQ(code(cluster.actor(1, cpus(-1))), Code::invalid);
  EXPECT_EQ(code(cluster.gang(1, {})), Code::invalid);
  EXPECT_EQ(code(cluster.gang(1, {cpus(1), gpus(1100)})), Code::invalid);
  EXPECT_EQ(code(cluster.node(1, gpus(500))), Code::invalid);
  EXPECT_EQ(code(cluster.node(1, cpus(1), {{"b", ""}, {"a", ""}})), Code::invalid);
  EXPECT_EQ(cluster.scheduler.pending_units(), 0u);
  EXPECT_TRUE(cluster.scheduler.nodes().empty());
}

TEST(Scheduler, ANewHeadAdoptsWhatRuns) {
  Scenario cluster;
  cluster.node(1, gpus(4000, 4));
  const LeaseRequested lease{.lease = make_id<LeaseId>(1), .demand = gpus(1000), .slots = 3};
  const NodeId node = make_id<NodeId>(1);
  EXPECT_TRUE(
      cluster.apply(Adopted{lease, {{4, node, {{1, 1000}}}, {7, node, {{3, 1000}}}}}).empty());
  EXPECT_EQ(cluster.scheduler.held(lease.lease).size(), 2u);
  // The devices that it holds are taken.
  const ActorRequested actor{.actor = make_id<ActorId>(1), .demand = gpus(1000)};
  const Decisions clash = cluster.apply(Adopted{actor, {{0, node, {{3, 1000}}}}});
  ASSERT_EQ(only<Rejected>(clash).size(), 1u);
  EXPECT_EQ(only<Rejected>(clash)[0].error.code(), Code::conflict);
  EXPECT_TRUE(cluster.apply(Adopted{actor, {{0, node, {{0, 1000}}}}}).empty());
  // Its next slots have new numbers.
  const Decisions replaced = cluster.apply(SlotLost{lease.lease, 4});
  ASSERT_EQ(only<LeaseGranted>(replaced).size(), 1u);
  EXPECT_EQ(only<LeaseGranted>(replaced)[0].slots[0].slot, 8u);
  // And it expires like any other.
  EXPECT_EQ(only<Revoked>(cluster.pass(seconds(30))).size(), 1u);
}

TEST(Scheduler, ALeaseOnSeveralNodesIsAdoptedInParts) {
  Scenario cluster;
  cluster.node(1, cpus(2));
  cluster.node(2, cpus(2));
  const LeaseRequested lease{.lease = make_id<LeaseId>(1), .demand = cpus(1), .slots = 2};
  EXPECT_TRUE(cluster.apply(Adopted{lease, {{0, make_id<NodeId>(1), {}}}}).empty());
  // Not under a number that is taken, nor with another demand.
  EXPECT_EQ(only<Rejected>(cluster.apply(Adopted{lease, {{0, make_id<NodeId>(2), {}}}})).size(),
            1u);
  LeaseRequested other = lease;
  other.demand = cpus(2);
  EXPECT_EQ(only<Rejected>(cluster.apply(Adopted{other, {{1, make_id<NodeId>(2), {}}}})).size(),
            1u);
  EXPECT_TRUE(cluster.apply(Adopted{lease, {{1, make_id<NodeId>(2), {}}}}).empty());
  EXPECT_EQ(cluster.scheduler.held(lease.lease).size(), 2u);
  EXPECT_TRUE(only<LeaseGranted>(cluster.lease(2, cpus(2), 1)).empty());
  const Decisions freed = cluster.apply(LeaseReturned{lease.lease, {1}});
  ASSERT_EQ(only<LeaseGranted>(freed).size(), 1u);
  EXPECT_EQ(only<LeaseGranted>(freed)[0].node, make_id<NodeId>(2));
}

TEST(Scheduler, AFailedAdoptionTakesNothing) {
  Scenario cluster;
  cluster.node(1, gpus(2000, 4));
  const NodeId node = make_id<NodeId>(1);
  const GangRequested gang{.gang = make_id<GangId>(1), .bundles = {gpus(1000), gpus(1000)}};
  const Decisions clash =
      cluster.apply(Adopted{gang, {{0, node, {{0, 1000}}}, {1, node, {{0, 1000}}}}});
  EXPECT_EQ(only<Rejected>(clash).size(), 1u);
  EXPECT_EQ(cluster.scheduler.nodes()[0].device_free_milli, (std::vector<int64_t>{1000, 1000}));
}

TEST(Scheduler, RefusesWhatWouldBeMoreThanItsBound) {
  Scenario cluster({.requests_max = 3});
  cluster.node(1, cpus(1));
  EXPECT_EQ(grants(cluster.actor(1, cpus(1))), "actor 1@1");
  cluster.actor(2, cpus(1));
  cluster.actor(3, cpus(1));
  const auto refused = only<Rejected>(cluster.actor(4, cpus(1)));
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].error.code(), Code::exhausted);
  EXPECT_EQ(refused[0].error.message(), "3 requests wait or run, and requests_max is 3");
  EXPECT_TRUE(cluster.actor(3, cpus(1)).empty()) << "it is known";
  cluster.apply(Cancelled{make_id<ActorId>(3)});
  EXPECT_TRUE(cluster.actor(4, cpus(1)).empty());
  EXPECT_EQ(grants(cluster.apply(ActorReleased{make_id<ActorId>(1)})), "actor 2@1");
}

TEST(Scheduler, RoomOnANodeGoesToTheMostSeniorOfAllSizesThatFit) {
  Scenario cluster;
  cluster.node(1, {.cpu_milli = 16'000, .gpu_milli = 4000});
  cluster.actor(1, gpus(4000, 16));
  cluster.actor(2, gpus(4000, 15));  // Larger than what will be free.
  cluster.actor(3, gpus(1000, 1));
  cluster.actor(4, cpus(1));
  cluster.actor(5, gpus(500, 1));
  cluster.actor(6, gpus(2000, 1));
  cluster.actor(7, gpus(1000, 12));
  cluster.actor(8, gpus(1000, 1));
  cluster.apply(LeaseRequested{
      .lease = make_id<LeaseId>(9), .demand = cpus(1), .slots = 2, .strategy = Strategy::spread});
  // Behind actor 2, which takes all GPUs as soon as there is room: it would have been told first.
  EXPECT_EQ(grants(cluster.apply(ActorReleased{make_id<ActorId>(1)})), "actor 2@1, actor 4@1");
  EXPECT_EQ(grants(cluster.apply(ActorReleased{make_id<ActorId>(2)})),
            "actor 3@1, actor 5@1, actor 6@1, lease 9@1x1, lease 9@1x1");
}

TEST(Scheduler, DecisionsHaveStableText) {
  Scenario cluster;
  cluster.node(1, gpus(2000, 4));
  const Decisions decisions = cluster.lease(2, gpus(250), 1);
  ASSERT_EQ(decisions.size(), 1u);
  EXPECT_EQ(to_string(decisions[0]),
            "granted lease 00000000000000000000000000000002 on 00000000000000000000000000000001 "
            "until 31000000000ns: 0[0:0.25]");
}

TEST(Scheduler, AWaitingSlotLendsItsCpuAndNothingElse) {
  Scenario cluster;
  cluster.node(1, {.cpu_milli = 1000, .memory_mib = 100});
  const ResourceVector half{.cpu_milli = 1000, .memory_mib = 50};
  EXPECT_EQ(grants(cluster.lease(1, half)), "lease 1@1x1");
  EXPECT_EQ(grants(cluster.lease(2, half)), "");
  EXPECT_EQ(grants(cluster.apply(SlotWaits{make_id<LeaseId>(1), 0, true})), "lease 2@1x1");
  EXPECT_EQ(grants(cluster.apply(SlotWaits{make_id<LeaseId>(1), 0, true})), "");
  EXPECT_EQ(grants(cluster.lease(3, half)), "");
  // Both run now: what the second gives back is what the first has taken again.
  cluster.apply(SlotWaits{make_id<LeaseId>(1), 0, false});
  EXPECT_EQ(grants(cluster.actor(1, {.memory_mib = 0})), "actor 1@1");
  EXPECT_EQ(grants(cluster.give_back(2)), "");
  EXPECT_EQ(grants(cluster.give_back(1)), "lease 3@1x1");
}

TEST(Scheduler, ALeaseThatEndsWhileItWaitsGivesItsCpuBackOnce) {
  Scenario cluster;
  cluster.node(1, cpus(1));
  cluster.lease(1, cpus(1));
  cluster.apply(SlotWaits{make_id<LeaseId>(1), 0, true});
  EXPECT_EQ(grants(cluster.lease(2, cpus(1))), "lease 2@1x1");
  EXPECT_EQ(grants(cluster.give_back(1)), "");
  EXPECT_EQ(grants(cluster.lease(3, cpus(1))), "");
  EXPECT_EQ(grants(cluster.give_back(2)), "lease 3@1x1");
  cluster.apply(SlotWaits{make_id<LeaseId>(1), 0, false});
  EXPECT_EQ(grants(cluster.give_back(3)), "");
  EXPECT_EQ(cluster.scheduler.nodes()[0].available, cpus(1));
}

}  // namespace
}  // namespace troupe::scheduler
