#include <gtest/gtest.h>

#include "scenario.h"

namespace troupe::scheduler {
namespace {

constexpr auto gang_one = [] { return make_id<GangId>(1); };

Decisions actor_in(Scenario& cluster, uint64_t n, const ResourceVector& demand,
                   std::optional<uint32_t> bundle = {}, uint64_t gang = 1) {
  return cluster.apply(
      ActorRequested{.actor = make_id<ActorId>(n),
                     .job = make_id<JobId>(1),
                     .demand = demand,
                     .affinity = {.within = WithinGang{make_id<GangId>(gang), bundle}}});
}

Decisions release(Scenario& cluster, uint64_t actor) {
  return cluster.apply(ActorReleased{make_id<ActorId>(actor)});
}

int64_t cpus_free(const Scenario& cluster, size_t node = 0) {
  return cluster.scheduler.nodes()[node].available.cpu_milli / 1000;
}

TEST(Bundles, WhatLiesInOneTakesNothingOfTheNodesFreeRoom) {
  Scenario cluster;
  cluster.node(1, cpus(8));
  cluster.gang(1, {cpus(3), cpus(2)});
  EXPECT_EQ(cpus_free(cluster), 3);
  EXPECT_EQ(grants(actor_in(cluster, 1, cpus(2), 0)), "actor 1@1");
  EXPECT_EQ(cpus_free(cluster), 3);
  // Bundle 0 has one core left: the node's free ones are no help.
  EXPECT_EQ(grants(actor_in(cluster, 2, cpus(2), 0)), "");
  EXPECT_EQ(grants(actor_in(cluster, 3, cpus(1), 0)), "actor 3@1");
  EXPECT_EQ(grants(release(cluster, 1)), "actor 2@1");
  EXPECT_EQ(cpus_free(cluster), 3);
}

TEST(Bundles, AnyBundleWithRoomWillDo) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.gang(1, {cpus(1), cpus(2)});
  const auto placed = only<ActorPlaced>(actor_in(cluster, 1, cpus(2)));
  ASSERT_EQ(placed.size(), 1u);
  EXPECT_EQ(placed[0].bundle, 1u);
  EXPECT_EQ(only<ActorPlaced>(actor_in(cluster, 2, cpus(1)))[0].bundle, 0u);
  EXPECT_EQ(grants(actor_in(cluster, 3, cpus(1))), "");
  EXPECT_NE(cluster.why(make_id<ActorId>(3)).find("no room in any bundle of gang"),
            std::string::npos);
}

TEST(Bundles, GpusAreThoseThatTheBundleHolds) {
  Scenario cluster;
  cluster.node(1, gpus(4000, 8));
  cluster.actor(9, gpus(1000));  // Device 0.
  cluster.gang(1, {gpus(2000, 1), gpus(500, 1)});
  const auto whole = only<ActorPlaced>(actor_in(cluster, 1, gpus(1000), 0));
  const auto other = only<ActorPlaced>(actor_in(cluster, 2, gpus(1000), 0));
  EXPECT_EQ(whole[0].devices, (Devices{{1, 1000}}));
  EXPECT_EQ(other[0].devices, (Devices{{2, 1000}}));
  const auto half = only<ActorPlaced>(actor_in(cluster, 3, gpus(300), 1));
  EXPECT_EQ(half[0].devices, (Devices{{3, 300}}));
  EXPECT_EQ(grants(actor_in(cluster, 4, gpus(300), 1)), "");
  EXPECT_EQ(grants(actor_in(cluster, 5, gpus(1000), 0)), "");
  release(cluster, 3);
  EXPECT_EQ(grants(release(cluster, 1)), "actor 5@1");
}

TEST(Bundles, ALeaseTakesSlotsOfSeveral) {
  Scenario cluster;
  cluster.node(1, cpus(2));
  cluster.node(2, cpus(2));
  cluster.gang(1, {cpus(2), cpus(2)}, GangStrategy::strict_spread);
  const Decisions decisions =
      cluster.apply(LeaseRequested{.lease = make_id<LeaseId>(1),
                                   .demand = cpus(1),
                                   .slots = 5,
                                   .affinity = {.within = WithinGang{gang_one(), {}}}});
  EXPECT_EQ(grants(decisions), "lease 1@1x2, lease 1@2x2");
  EXPECT_EQ(only<LeaseGranted>(decisions)[1].bundle, 1u);
  EXPECT_EQ(cluster.scheduler.held(make_id<LeaseId>(1))[3].bundle, 1u);
  // A task that waits lends its core within the bundle, not to the node.
  EXPECT_EQ(grants(cluster.apply(SlotWaits{make_id<LeaseId>(1), 0, true})), "lease 1@1x1");
  EXPECT_EQ(cpus_free(cluster), 0);
}

TEST(Bundles, WaitForTheirGang) {
  Scenario cluster;
  cluster.gang(1, {cpus(2)});
  EXPECT_EQ(grants(actor_in(cluster, 1, cpus(1))), "");
  EXPECT_NE(cluster.why(make_id<ActorId>(1)).find("is not placed yet"), std::string::npos);
  EXPECT_EQ(grants(cluster.node(1, cpus(2))), "gang 1@1, actor 1@1");
}

TEST(Bundles, ThatAreTooSmallAreInfeasible) {
  Scenario cluster;
  cluster.node(1, cpus(8));
  cluster.gang(1, {cpus(2), cpus(2)});
  const auto told = only<Infeasible>(actor_in(cluster, 1, cpus(3)));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_NE(told[0].why.find("{cpu 3} is larger than any bundle of gang"), std::string::npos);
}

TEST(Bundles, OfAReleasedGangAreFreeOnceWhatLiesInThemEnded) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.gang(1, {cpus(2), cpus(2)});
  actor_in(cluster, 1, cpus(1), 0);
  actor_in(cluster, 2, cpus(2), 0);
  const Decisions released = cluster.apply(GangReleased{gang_one()});
  ASSERT_EQ(only<Infeasible>(released).size(), 1u);
  EXPECT_NE(only<Infeasible>(released)[0].why.find("is no more"), std::string::npos);
  EXPECT_EQ(cpus_free(cluster), 2);
  EXPECT_EQ(only<Rejected>(actor_in(cluster, 3, cpus(1))).size(), 1u);
  cluster.apply(Cancelled{make_id<ActorId>(2)});
  EXPECT_EQ(cpus_free(cluster), 2);
  release(cluster, 1);
  EXPECT_EQ(cpus_free(cluster), 4);
  // Nothing is left of it: its id is free.
  EXPECT_EQ(grants(cluster.gang(1, {cpus(4)})), "gang 1@1");
}

TEST(Bundles, OfABrokenGangTakeNothingIn) {
  Scenario cluster;
  cluster.node(1, cpus(2));
  cluster.node(2, cpus(2));
  cluster.gang(1, {cpus(2), cpus(2)}, GangStrategy::strict_spread);
  actor_in(cluster, 1, cpus(1), 0);
  actor_in(cluster, 2, cpus(1), 1);
  const Decisions lost = cluster.apply(NodeRemoved{make_id<NodeId>(2)});
  ASSERT_EQ(only<Revoked>(lost).size(), 2u);
  EXPECT_EQ(only<Revoked>(lost)[0].id, RequestId{make_id<ActorId>(2)});
  EXPECT_EQ(only<Revoked>(lost)[1].id, RequestId{gang_one()});
  EXPECT_EQ(grants(actor_in(cluster, 3, cpus(1), 0)), "");
  EXPECT_NE(cluster.why(make_id<ActorId>(3)).find("is not whole"), std::string::npos);
  // Given back: bundle 0 only after actor 1.
  cluster.apply(GangReleased{gang_one()});
  EXPECT_EQ(cpus_free(cluster), 0);
  release(cluster, 1);
  EXPECT_EQ(cpus_free(cluster), 2);
}

TEST(Bundles, AreAdoptedNodeByNode) {
  Scenario cluster;
  const GangRequested gang{.gang = gang_one(), .bundles = {gpus(1000, 1), gpus(1000, 1)}};
  EXPECT_TRUE(cluster.apply(Adopted{gang, {}}).empty());
  EXPECT_EQ(grants(actor_in(cluster, 1, gpus(1000))), "");
  const NodeId first = make_id<NodeId>(1);
  const NodeId second = make_id<NodeId>(2);
  cluster.node(1, gpus(2000, 2));
  EXPECT_TRUE(cluster.apply(Adopted{gang, {{0, first, {{1, 1000}}}}}).empty());
  // What ran in the bundle is taken over into it.
  const ActorRequested runs{.actor = make_id<ActorId>(2),
                            .demand = gpus(1000),
                            .affinity = {.within = WithinGang{gang_one(), 0}}};
  EXPECT_TRUE(cluster.apply(Adopted{runs, {{0, first, {{1, 1000}}, 0}}}).empty());
  // Neither twice nor where something else lies.
  EXPECT_EQ(only<Rejected>(cluster.apply(Adopted{gang, {{0, first, {{0, 1000}}}}})).size(), 1u);
  cluster.node(2, gpus(1000, 2));
  EXPECT_EQ(grants(cluster.apply(Adopted{gang, {{1, second, {{0, 1000}}}}})), "actor 1@2");
  EXPECT_EQ(cluster.scheduler.nodes()[0].device_free_milli, (std::vector<int64_t>{1000, 0}));
}

TEST(Bundles, OnADrainingNodeTakeNothingInAndRecallTheirLeases) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.gang(1, {cpus(4)});
  cluster.apply(LeaseRequested{.lease = make_id<LeaseId>(1),
                               .demand = cpus(1),
                               .affinity = {.within = WithinGang{gang_one(), {}}}});
  const auto recalled = only<Revoked>(cluster.apply(NodeDraining{make_id<NodeId>(1)}));
  ASSERT_EQ(recalled.size(), 1u);
  EXPECT_EQ(recalled[0].id, RequestId{make_id<LeaseId>(1)});
  EXPECT_EQ(grants(actor_in(cluster, 1, cpus(1))), "");
  EXPECT_EQ(grants(cluster.node(1, cpus(4))), "actor 1@1");
}

Decisions labelled(Scenario& cluster, uint64_t n, Affinity affinity) {
  return cluster.apply(ActorRequested{
      .actor = make_id<ActorId>(n), .demand = cpus(1), .affinity = std::move(affinity)});
}

TEST(Labels, SelectorsTestForValuesAndPresence) {
  const std::vector<Label> labels{{"disk", "ssd"}, {"zone", "a"}};
  const auto holds = [&](LabelSelector selector) { return matches(selector, labels); };
  EXPECT_TRUE(holds({"zone", LabelTest::in, {"a", "b"}}));
  EXPECT_FALSE(holds({"zone", LabelTest::in, {"b"}}));
  EXPECT_FALSE(holds({"rack", LabelTest::in, {"a"}}));
  EXPECT_FALSE(holds({"zone", LabelTest::not_in, {"a"}}));
  EXPECT_TRUE(holds({"zone", LabelTest::not_in, {"b"}}));
  EXPECT_TRUE(holds({"rack", LabelTest::not_in, {"b"}}));
  EXPECT_TRUE(holds({"disk", LabelTest::exists, {}}));
  EXPECT_FALSE(holds({"rack", LabelTest::exists, {}}));
  EXPECT_TRUE(holds({"rack", LabelTest::absent, {}}));
  EXPECT_FALSE(holds({"disk", LabelTest::absent, {}}));
}

TEST(Labels, AHardSelectorWaitsAndASoftOneFallsBack) {
  Scenario cluster;
  cluster.node(1, cpus(2), {{"zone", "a"}});
  cluster.node(2, cpus(1), {{"zone", "b"}});
  const LabelSelector in_b{"zone", LabelTest::in, {"b"}};
  EXPECT_EQ(grants(labelled(cluster, 1, {.preferred = {in_b}})), "actor 1@2");
  EXPECT_EQ(grants(labelled(cluster, 2, {.preferred = {in_b}})), "actor 2@1");
  EXPECT_EQ(grants(labelled(cluster, 3, {.selectors = {in_b}})), "");
  EXPECT_NE(cluster.why(make_id<ActorId>(3)).find("only where zone in (b)"), std::string::npos);
  EXPECT_EQ(grants(release(cluster, 1)), "actor 3@2");
}

TEST(Labels, APreferredNodeThatIsGoneIsNoObstacle) {
  Scenario cluster;
  cluster.node(1, cpus(1));
  cluster.node(2, cpus(1));
  EXPECT_EQ(grants(labelled(cluster, 1, {.preferred_node = make_id<NodeId>(2)})), "actor 1@2");
  EXPECT_EQ(grants(labelled(cluster, 2, {.preferred_node = make_id<NodeId>(7)})), "actor 2@1");
  EXPECT_EQ(only<Infeasible>(labelled(cluster, 3, {.node = make_id<NodeId>(7)})).size(), 1u);
}

TEST(Labels, AGangsBundlesPreferNodesTogether) {
  Scenario cluster;
  for (uint64_t n = 1; n <= 4; ++n)
    cluster.node(n, cpus(1), {{"zone", n % 2 == 0 ? "even" : "odd"}});
  const GangRequested gang{.gang = gang_one(),
                           .bundles = {cpus(1), cpus(1)},
                           .strategy = GangStrategy::strict_spread,
                           .affinity = {.preferred = {{"zone", LabelTest::in, {"even"}}}}};
  EXPECT_EQ(grants(cluster.apply(gang)), "gang 1@2+4");
}

TEST(Labels, MalformedSelectorsAreRejected) {
  Scenario cluster;
  cluster.node(1, cpus(8));
  const auto refused = [&](LabelSelector selector) {
    return only<Rejected>(labelled(cluster, 1, {.selectors = {selector}})).size() == 1;
  };
  EXPECT_TRUE(refused({"", LabelTest::exists, {}}));
  EXPECT_TRUE(refused({"zone", LabelTest::in, {}}));
  EXPECT_TRUE(refused({"zone", LabelTest::exists, {"a"}}));
  EXPECT_TRUE(refused({"zone", LabelTest::in, {"b", "a"}}));
}

TEST(Explain, SaysThatAGangsBundlesDoNotFitTogether) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.node(2, cpus(4));
  const auto told =
      only<Infeasible>(cluster.gang(1, {cpus(3), cpus(3)}, GangStrategy::strict_pack));
  ASSERT_EQ(told.size(), 1u);
  EXPECT_NE(told[0].why.find("not all of them as strict_pack"), std::string::npos) << told[0].why;
}

}  // namespace
}  // namespace troupe::scheduler
