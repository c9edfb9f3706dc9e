#include <gtest/gtest.h>

#include "scenario.h"

namespace troupe::scheduler {
namespace {

const std::string zeros(31, '0');

TEST(Explain, NamesTheDeviceThatIsShortNotTheSum) {
  Scenario cluster;
  cluster.node(1, gpus(2000, 8));
  cluster.actor(1, gpus(600));
  cluster.actor(2, gpus(600));
  cluster.actor(3, gpus(500, 1));
  const Explanation why = cluster.scheduler.explain(make_id<ActorId>(3));
  EXPECT_EQ(why.state, RequestState::pending);
  ASSERT_EQ(why.shortages.size(), 1u);
  EXPECT_EQ(why.shortages[0].resource, "gpu");
  EXPECT_EQ(why.shortages[0].most_available, 400);
  EXPECT_EQ(why.text, "actor " + zeros +
                          "3: 0 held, 1 pending of {cpu 1, gpu 0.5}; 1 of 1 eligible nodes could "
                          "hold {cpu 1, gpu 0.5} if empty; short of gpu on 1 of them (needs 0.5, "
                          "at most 0.4 free)");
}

TEST(Explain, RemovingTheNamedObstacleStartsIt) {
  Scenario cluster;
  cluster.node(1, {.cpu_milli = 4000, .memory_mib = 100});
  cluster.lease(1, {.memory_mib = 60});
  cluster.lease(2, {.cpu_milli = 1000, .memory_mib = 50});
  const Explanation why = cluster.scheduler.explain(make_id<LeaseId>(2));
  ASSERT_EQ(why.shortages.size(), 1u);
  EXPECT_EQ(why.shortages[0].resource, "memory");
  EXPECT_EQ(grants(cluster.give_back(1)), "lease 2@1x1");
  EXPECT_EQ(cluster.scheduler.explain(make_id<LeaseId>(2)).state, RequestState::placed);
}

TEST(Explain, NamesWhomItWaitsBehind) {
  Scenario cluster;
  cluster.node(1, cpus(1));
  for (uint64_t n = 1; n <= 4; ++n) cluster.lease(n, cpus(1));
  const Explanation why = cluster.scheduler.explain(make_id<LeaseId>(4));
  EXPECT_EQ(why.ahead, 2u);
  EXPECT_EQ(why.behind, RequestId{make_id<LeaseId>(3)});
}

TEST(Explain, SaysForWhomNodesAreKept) {
  Scenario cluster;
  cluster.node(1, cpus(2));
  cluster.lease(1, cpus(1));
  cluster.lease(2, cpus(2));
  cluster.pass(std::chrono::seconds(10));
  cluster.apply(LeaseRenewed{make_id<LeaseId>(1)});
  cluster.lease(3, cpus(1));
  const Explanation why = cluster.scheduler.explain(make_id<LeaseId>(3));
  EXPECT_EQ(why.nodes_kept, 1u);
  EXPECT_TRUE(why.shortages.empty());
  EXPECT_NE(why.text.find("1 kept for lease " + zeros + "2"), std::string::npos) << why.text;
}

TEST(Explain, NamesTheBundleOfAGangThatHasNoRoom) {
  Scenario cluster;
  cluster.node(1, gpus(1000, 8));
  cluster.actor(1, gpus(1000));
  cluster.gang(1, {cpus(1), gpus(1000)});
  const Explanation why = cluster.scheduler.explain(make_id<GangId>(1));
  ASSERT_FALSE(why.shortages.empty());
  EXPECT_EQ(why.shortages[0].resource, "gpu");
  EXPECT_NE(why.text.find("2 bundles of 1x{cpu 1} 1x{gpu 1}"), std::string::npos) << why.text;
}

TEST(Explain, PendingIsListedByShape) {
  Scenario cluster;
  cluster.lease(1, cpus(1), 3);
  cluster.lease(2, cpus(1), 2);
  cluster.gang(1, {2, gpus(1000)});
  const auto pending = cluster.scheduler.pending();
  ASSERT_EQ(pending.size(), 2u);
  EXPECT_EQ(pending[0].requests, 2u);
  EXPECT_EQ(pending[0].units, 5u);
  EXPECT_TRUE(pending[0].infeasible);
  EXPECT_EQ(pending[1].bundles, 2u);
  EXPECT_EQ(pending[1].demand.gpu_milli, 2000);
}

TEST(Explain, HoldersAreListedByArrival) {
  Scenario cluster;
  cluster.node(1, cpus(4));
  cluster.actor(7, cpus(1));
  cluster.lease(3, cpus(1), 2);
  EXPECT_EQ(cluster.scheduler.holders(make_id<NodeId>(1)),
            (std::vector<RequestId>{make_id<ActorId>(7), make_id<LeaseId>(3)}));
}

}  // namespace
}  // namespace troupe::scheduler
