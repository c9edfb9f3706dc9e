#include <gtest/gtest.h>

#include "scenario.h"
#include "scheduler/gang_plan.h"

namespace troupe::scheduler {
namespace {

TEST(Gang, IsGrantedWholeOrNotAtAll) {
  Scenario cluster;
  cluster.node(1, gpus(3000));
  EXPECT_EQ(grants(cluster.gang(1, {4, gpus(1000)})), "");
  EXPECT_EQ(cluster.scheduler.nodes()[0].available.gpu_milli, 3000);
  EXPECT_EQ(grants(cluster.node(2, gpus(1000))), "gang 1@1+1+1+2");
}

TEST(Gang, OfTwoThatFitAloneExactlyOneRuns) {
  Scenario cluster;
  cluster.gang(1, {3, gpus(1000)});
  cluster.gang(2, {3, gpus(1000)});
  EXPECT_EQ(grants(cluster.node(1, gpus(5000))), "gang 1@1+1+1");
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(1)})), "gang 2@1+1+1");
}

TEST(Gang, PackPrefersTheTightestSingleNode) {
  Scenario cluster;
  cluster.node(1, gpus(8000));
  cluster.node(2, gpus(4000));
  cluster.node(3, gpus(2000));
  EXPECT_EQ(grants(cluster.gang(1, {3, gpus(1000)})), "gang 1@2+2+2");
}

TEST(Gang, PackUsesFewNodesWhenOneIsNotEnough) {
  Scenario cluster;
  for (uint64_t n = 1; n <= 4; ++n) cluster.node(n, gpus(n == 4 ? 4000 : 1000));
  EXPECT_EQ(grants(cluster.gang(1, {5, gpus(1000)})), "gang 1@4+4+4+4+3");
}

TEST(Gang, SpreadUsesDifferentNodesWherePossible) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.node(2, cpus(4));
  EXPECT_EQ(grants(cluster.gang(1, {2, cpus(1)}, GangStrategy::spread)), "gang 1@1+2");
  EXPECT_EQ(grants(cluster.gang(2, {4, cpus(1)}, GangStrategy::spread)), "gang 2@1+2+1+2");
}

TEST(Gang, StrictSpreadWaitsForEnoughNodes) {
  Scenario cluster;
  cluster.node(1, cpus(8));
  EXPECT_EQ(only<Infeasible>(cluster.gang(1, {2, cpus(1)}, GangStrategy::strict_spread)).size(),
            1u);
  EXPECT_EQ(grants(cluster.node(2, cpus(8))), "gang 1@1+2");
}

TEST(Gang, StrictPackNeedsOneNodeDeviceByDevice) {
  Scenario cluster;
  cluster.node(1, gpus(1000));
  cluster.node(2, gpus(1000));
  // 1.2 GPUs in sum, but two fractions of 0.6 do not share a device.
  EXPECT_EQ(grants(cluster.gang(1, {2, gpus(600)}, GangStrategy::strict_pack)), "");
  EXPECT_EQ(cluster.scheduler.explain(make_id<GangId>(1)).state, RequestState::infeasible);
  EXPECT_EQ(grants(cluster.node(3, gpus(2000))), "gang 1@3+3");
}

TEST(Gang, UnequalBundlesAreMatchedByBacktracking) {
  Scenario cluster;
  // Greedy puts the GPU-less large bundle on node 1 first; only node 1 has the license.
  cluster.node(1, {.cpu_milli = 4000, .custom = {{"license", 1000}}});
  cluster.node(2, cpus(4));
  EXPECT_EQ(grants(cluster.gang(1, {cpus(4), {.cpu_milli = 3000, .custom = {{"license", 1000}}}})),
            "gang 1@2+1");
}

TEST(Gang, ALostNodeBreaksItAndKeepsTheRestUntilReleased) {
  Scenario cluster;
  cluster.node(1, cpus(1));
  cluster.node(2, cpus(1));
  cluster.gang(1, {2, cpus(1)}, GangStrategy::strict_spread);
  const Decisions broken = cluster.apply(NodeRemoved{make_id<NodeId>(1)});
  ASSERT_EQ(only<Revoked>(broken).size(), 1u);
  ASSERT_EQ(only<Revoked>(broken)[0].units.size(), 1u);
  EXPECT_EQ(only<Revoked>(broken)[0].units[0].unit, 0u);
  EXPECT_EQ(cluster.scheduler.nodes()[0].available, cpus(0));
  cluster.apply(GangReleased{make_id<GangId>(1)});
  EXPECT_EQ(cluster.scheduler.nodes()[0].available, cpus(1));
}

TEST(Gang, DyingTwiceLeaksNothing) {
  Scenario cluster;
  for (uint64_t n = 1; n <= 2; ++n) cluster.node(n, cpus(1));
  cluster.gang(1, {2, cpus(1)});
  cluster.apply(NodeRemoved{make_id<NodeId>(1)});
  cluster.apply(NodeRemoved{make_id<NodeId>(2)});
  EXPECT_EQ(cluster.scheduler.explain(make_id<GangId>(1)).state, RequestState::unknown);
  for (uint64_t n = 1; n <= 2; ++n) cluster.node(n, cpus(1));
  EXPECT_EQ(grants(cluster.gang(1, {2, cpus(1)})), "gang 1@1+2");
}

TEST(GangPlan, LeavesTheLedgersAsTheyWere) {
  std::vector<GangNode> nodes;
  for (NodeIndex n = 0; n < 3; ++n) nodes.push_back({n, NodeLedger(gpus(2000))});
  EXPECT_EQ(plan_gang({5, gpus(1000)}, GangStrategy::pack, nodes).outcome,
            GangPlan::Outcome::found);
  EXPECT_EQ(plan_gang({7, gpus(1000)}, GangStrategy::pack, nodes).outcome,
            GangPlan::Outcome::impossible);
  for (const GangNode& node : nodes) EXPECT_TRUE(node.ledger.untouched());
}

TEST(GangPlan, GivesUpWithinItsBudgetAndSaysSo) {
  // Twelve items of 5 and one of 1 in bins of 9: one to a bin, so eleven bins cannot do, but
  // unequal sizes make the search try.
  std::vector<ResourceVector> bundles;
  for (int64_t n = 0; n < 24; ++n) bundles.push_back({.cpu_milli = 5000 + n});
  std::vector<GangNode> nodes;
  for (NodeIndex n = 0; n < 23; ++n) nodes.push_back({n, NodeLedger(cpus(9))});
  EXPECT_EQ(plan_gang(bundles, GangStrategy::pack, nodes).outcome, GangPlan::Outcome::unsure);
}

}  // namespace
}  // namespace troupe::scheduler
