// Pools: limits, quotas that are lent or not, shares, and a policy each.
#include "scheduler/pools.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <set>

#include "base/random.h"
#include "scenario.h"

namespace troupe::scheduler {
namespace {

using std::chrono::seconds;

constexpr Amounts no_quota{};

Amounts gpu_amount(int64_t count, int64_t others = 0) {
  return {others, others, count * 1000};
}
Amounts gpu_limit(int64_t count) {
  return gpu_amount(count, unlimited);
}
const auto nobody = [](PoolIndex) { return false; };

Result<Pools> make(std::vector<PoolSpec> specs) {
  return Pools().replaced_by(std::move(specs), nobody);
}

TEST(Pools, RefusesATreeThatIsNone) {
  const auto refuses = [](std::vector<PoolSpec> specs, const char* why) {
    const auto made = make(std::move(specs));
    ASSERT_FALSE(made) << why;
    EXPECT_EQ(made.error().code(), Code::invalid);
    EXPECT_NE(made.error().message().find(why), std::string::npos) << made.error().message();
  };
  refuses({{.name = ""}}, "needs a name");
  refuses({{.name = "a"}, {.name = "a"}}, "'a' is there twice");
  refuses({{.name = "a", .parent = "b"}}, "'a' lies in 'b', which is no pool");
  refuses({{.name = "a", .parent = "a"}}, "'a' lies within itself");
  refuses(
      {{.name = "a", .parent = "b"}, {.name = "b", .parent = "c"}, {.name = "c", .parent = "a"}},
      "lies within itself");
  refuses({{.name = "a", .weight = 0}}, "weight");
  refuses({{.name = "a", .quota = {-1, 0, 0}}}, "cpu is out of range");
  refuses({{.name = "a", .quota = gpu_amount(2), .limit = gpu_limit(1)}},
          "limit of gpu is below its quota");
  refuses({{.name = "a", .limit = gpu_limit(3)},
           {.name = "b", .parent = "a", .quota = gpu_amount(2), .lends = no_quota},
           {.name = "c", .parent = "a", .quota = gpu_amount(2), .lends = no_quota}},
          "'a': the pools in it reserve more gpu than its limit");
}

TEST(Pools, NamesTheOneWhoseLimitIsInTheWay) {
  auto pools = make({{.name = "team", .limit = gpu_limit(4)},
                     {.name = "a", .parent = "team", .limit = gpu_limit(3)},
                     {.name = "b", .parent = "team"}})
                   .value();
  const PoolIndex team = *pools.find("team");
  const PoolIndex a = *pools.find("a");
  const PoolIndex b = *pools.find("b");
  EXPECT_EQ(pools.obstacle(a, gpu_amount(3)), std::nullopt);
  EXPECT_EQ(pools.obstacle(a, gpu_amount(4)), a);
  EXPECT_EQ(pools.obstacle(b, gpu_amount(5)), team);
  pools.add(a, gpu_amount(3));
  EXPECT_EQ(pools.obstacle(b, gpu_amount(2)), team);
  EXPECT_EQ(pools.obstacle(b, gpu_amount(1)), std::nullopt);
  EXPECT_EQ(pools.obstacle(*pools.find(""), gpu_amount(100)), std::nullopt) << "the default one";
  EXPECT_FALSE(pools.feasible(b, gpu_amount(5)));
  pools.remove(a, gpu_amount(1));
  EXPECT_EQ(pools.used(team), gpu_amount(2));
}

TEST(Pools, WhatIsNotLentCountsAsUsed) {
  auto pools = make({{.name = "a", .quota = gpu_amount(4), .lends = gpu_amount(1)},
                     {.name = "b", .quota = gpu_amount(2)}})
                   .value();
  pools.set_total(gpu_amount(8, 1000));
  const PoolIndex a = *pools.find("a");
  const PoolIndex b = *pools.find("b");
  EXPECT_EQ(pools.used(Pools::cluster), gpu_amount(3)) << "the part of a that is not lent";
  EXPECT_EQ(pools.obstacle(b, gpu_amount(5)), std::nullopt);
  EXPECT_EQ(pools.obstacle(b, gpu_amount(6)), Pools::cluster);
  pools.add(a, gpu_amount(3));
  EXPECT_EQ(pools.used(Pools::cluster), gpu_amount(3));
  pools.remove(a, gpu_amount(1));
  EXPECT_EQ(pools.used(Pools::cluster), gpu_amount(3));
  pools.add(a, gpu_amount(3));
  EXPECT_EQ(pools.used(Pools::cluster), gpu_amount(5));
  EXPECT_EQ(pools.obstacle(b, gpu_amount(4)), Pools::cluster);
}

TEST(Pools, TheSmallerDominantShareByWeightGoesFirst) {
  auto pools = make({{.name = "a"}, {.name = "b", .weight = 3}, {.name = "c"}}).value();
  pools.set_total({9000, 18'000, 8000});
  const PoolIndex a = *pools.find("a");
  const PoolIndex b = *pools.find("b");
  const PoolIndex c = *pools.find("c");
  EXPECT_FALSE(pools.before(a, b) || pools.before(b, a));
  pools.add(a, {1000, 4000, 0});  // 2/9 of the memory.
  EXPECT_TRUE(pools.before(b, a));
  pools.add(b, {5000, 1000, 0});  // 5/9 of the CPUs, a third of that by weight.
  EXPECT_TRUE(pools.before(b, a));
  pools.add(b, {1500, 0, 0});
  EXPECT_TRUE(pools.before(a, b));
  EXPECT_TRUE(pools.before(c, a) && pools.before(c, b));
}

TEST(Pools, WhoIsWithinItsQuotaGoesBeforeWhoBorrows) {
  auto pools = make({{.name = "a", .quota = gpu_amount(6, 1000)}, {.name = "b"}}).value();
  pools.set_total(gpu_amount(8, 1000));
  const PoolIndex a = *pools.find("a");
  const PoolIndex b = *pools.find("b");
  pools.add(a, gpu_amount(6));
  pools.add(b, gpu_amount(1));
  EXPECT_TRUE(pools.before(a, b)) << "though its share is six times as large";
  pools.add(a, gpu_amount(1));
  EXPECT_TRUE(pools.before(b, a));
}

TEST(Pools, SharesAreComparedBelowThePoolThatBothAreIn) {
  auto pools = make({{.name = "x"},
                     {.name = "y"},
                     {.name = "x1", .parent = "x"},
                     {.name = "x2", .parent = "x"}})
                   .value();
  pools.set_total(gpu_amount(8, 1000));
  const PoolIndex x1 = *pools.find("x1");
  const PoolIndex x2 = *pools.find("x2");
  const PoolIndex y = *pools.find("y");
  pools.add(x1, gpu_amount(3));
  pools.add(y, gpu_amount(2));
  EXPECT_TRUE(pools.before(x2, x1));
  EXPECT_TRUE(pools.before(y, x2)) << "x has 3, whatever its x2 has";
}

TEST(Pools, KeepWhatIsUsedAndTheirIndexesWhenOthersCome) {
  auto pools = make({{.name = "a"}, {.name = "b"}}).value();
  const PoolIndex a = *pools.find("a");
  const PoolIndex b = *pools.find("b");
  pools.add(a, gpu_amount(2));
  const auto has_requests = [&](PoolIndex pool) { return pool == a; };
  auto next =
      pools.replaced_by({{.name = "c"}, {.name = "a", .parent = "c"}}, has_requests).value();
  EXPECT_EQ(next.find("a"), a);
  EXPECT_EQ(next.used(*next.find("c")), gpu_amount(2));
  EXPECT_FALSE(next.is_there(b));
  const auto without = pools.replaced_by({{.name = "b"}}, has_requests);
  ASSERT_FALSE(without);
  EXPECT_EQ(without.error().code(), Code::conflict);
  EXPECT_FALSE(pools.replaced_by({{.name = "a"}, {.name = "d", .parent = "a"}}, has_requests));
}

// ---- In the scheduler.

class PooledCluster : public Scenario {
 public:
  explicit PooledCluster(std::vector<PoolSpec> pools, SchedulerOptions options = {})
      : Scenario(std::move(options)) {
    EXPECT_TRUE(apply(PoolsSet{std::move(pools)}).empty());
  }
  Decisions in(const std::string& pool, uint64_t n, const ResourceVector& demand) {
    return apply(ActorRequested{
        .actor = make_id<ActorId>(n), .job = make_id<JobId>(1), .demand = demand, .pool = pool});
  }
  Decisions gang_in(const std::string& pool, uint64_t n, int64_t gpu_count,
                    std::optional<Duration> run_time = {}) {
    return apply(GangRequested{.gang = make_id<GangId>(n),
                               .job = make_id<JobId>(1),
                               .bundles = {gpus(gpu_count * 1000)},
                               .can_pause = true,
                               .run_time = run_time,
                               .pool = pool});
  }
  Decisions end(uint64_t n) { return apply(ActorReleased{make_id<ActorId>(n)}); }
  PoolView pool(const std::string& name) const {
    for (PoolView& view : scheduler.pools())
      if (view.spec.name == name) return view;
    ADD_FAILURE() << "no pool " << name;
    return {};
  }
};

TEST(PooledScheduler, RefusesAPoolThatIsNotThereOrHasPools) {
  PooledCluster cluster({{.name = "team"}, {.name = "a", .parent = "team"}});
  const auto refused = [&](const std::string& pool, uint64_t n) {
    const auto rejected = only<Rejected>(cluster.in(pool, n, gpus(1000)));
    return rejected.empty() ? Code::ok : rejected[0].error.code();
  };
  EXPECT_EQ(refused("nowhere", 1), Code::not_found);
  EXPECT_EQ(refused("team", 2), Code::invalid);
  EXPECT_EQ(refused("a", 3), Code::ok);
  EXPECT_EQ(cluster.pool("a").requests, 1u);
}

TEST(PooledScheduler, NobodyUsesMoreThanItsLimit) {
  PooledCluster cluster({{.name = "a", .limit = gpu_limit(2)}});
  cluster.node(1, gpus(8000));
  EXPECT_EQ(grants(cluster.in("a", 1, gpus(1000))), "actor 1@1");
  EXPECT_EQ(grants(cluster.in("a", 2, gpus(1000))), "actor 2@1");
  EXPECT_EQ(grants(cluster.in("a", 3, gpus(1000))), "");
  EXPECT_EQ(grants(cluster.in("", 4, gpus(1000))), "actor 4@1") << "others go on";
  EXPECT_EQ(cluster.why(make_id<ActorId>(3)),
            "actor 00000000000000000000000000000003: 0 held, 1 pending of {gpu 1}; pool 'a' has no "
            "more gpu (needs 1, 2 of at most 2 in use)");
  EXPECT_EQ(grants(cluster.end(1)), "actor 3@1");
  const auto never = only<Infeasible>(cluster.in("a", 5, gpus(3000)));
  ASSERT_EQ(never.size(), 1u);
  EXPECT_NE(never[0].why.find("more than pool 'a' may ever use"), std::string::npos);
}

TEST(PooledScheduler, ALeaseGetsAsManySlotsAsItsPoolHas) {
  PooledCluster cluster({{.name = "a", .limit = {2000, unlimited, unlimited}}});
  cluster.node(1, cpus(8));
  EXPECT_EQ(grants(cluster.apply(LeaseRequested{
                .lease = make_id<LeaseId>(1), .demand = cpus(1), .slots = 5, .pool = "a"})),
            "lease 1@1x2");
  EXPECT_EQ(grants(cluster.give_back(1, {0})), "lease 1@1x1");
}

TEST(PooledScheduler, WhatOnePoolGivesBackGoesToOthersBelowTheSameLimit) {
  PooledCluster cluster({{.name = "team", .limit = gpu_limit(2)},
                         {.name = "a", .parent = "team"},
                         {.name = "b", .parent = "team"}});
  cluster.node(1, gpus(8000));
  cluster.in("a", 1, gpus(1000));
  cluster.in("a", 2, gpus(1000));
  cluster.in("a", 3, gpus(1000));
  EXPECT_EQ(grants(cluster.in("b", 4, gpus(1000))), "");
  EXPECT_EQ(grants(cluster.end(1)), "actor 4@1") << "b has the smaller share";
  EXPECT_EQ(grants(cluster.end(2)), "actor 3@1");
}

TEST(PooledScheduler, WhatAPoolDoesNotLendIdlesForIt) {
  PooledCluster cluster({{.name = "a", .quota = gpu_amount(3), .lends = gpu_amount(1)}});
  cluster.node(1, gpus(4000));
  EXPECT_EQ(grants(cluster.in("", 1, gpus(2000))), "actor 1@1");
  EXPECT_EQ(grants(cluster.in("", 2, gpus(1000))), "");
  EXPECT_NE(cluster.why(make_id<ActorId>(2)).find("reserved for pools that do not lend"),
            std::string::npos);
  EXPECT_EQ(grants(cluster.in("a", 3, gpus(2000))), "actor 3@1");
  EXPECT_EQ(grants(cluster.node(2, gpus(1000))), "actor 2@2");
}

// The example of the DRF paper (section 4.1): 9 CPUs, 18 GB; tasks of <1 CPU, 4 GB> and <3, 1>.
TEST(PooledScheduler, DominantSharesAreEqual) {
  PooledCluster cluster({{.name = "a"}, {.name = "b"}});
  for (uint64_t n = 0; n < 10; ++n) {
    cluster.in("a", 100 + n, {.cpu_milli = 1000, .memory_mib = 4});
    cluster.in("b", 200 + n, {.cpu_milli = 3000, .memory_mib = 1});
  }
  cluster.node(1, {.cpu_milli = 9000, .memory_mib = 18});
  EXPECT_EQ(cluster.pool("a").used, (Amounts{3000, 12, 0}));
  EXPECT_EQ(cluster.pool("b").used, (Amounts{6000, 2, 0}));
}

TEST(PooledScheduler, SharesFollowWeightsWhileThingsComeAndGo) {
  PooledCluster cluster({{.name = "a"}, {.name = "b", .weight = 3}});
  cluster.node(1, gpus(16'000));
  SeededRandom random(5);
  std::vector<uint64_t> running;
  uint64_t next = 1;
  const auto note = [&](const Decisions& decisions) {
    for (const ActorPlaced& placed : only<ActorPlaced>(decisions))
      running.push_back(placed.actor.low);
  };
  for (int i = 0; i < 2000; ++i) note(cluster.in(i % 2 == 0 ? "a" : "b", next++, gpus(1000)));
  for (int i = 0; i < 1000; ++i) {
    std::swap(running[random.below(running.size())], running.back());
    const uint64_t ended = running.back();
    running.pop_back();
    note(cluster.end(ended));
  }
  EXPECT_EQ(cluster.pool("a").used, gpu_amount(4));
  EXPECT_EQ(cluster.pool("b").used, gpu_amount(12));
}

TEST(PooledScheduler, EachPoolHasItsPolicyAndMayGetAnotherWhileThingsWait) {
  PooledCluster cluster({{.name = "short", .policy = "sjf"}, {.name = "long", .policy = "fifo"}});
  cluster.node(1, gpus(1000));
  cluster.in("", 1, gpus(1000));
  cluster.gang_in("short", 1, 1, seconds(100));
  cluster.gang_in("short", 2, 1, seconds(10));
  cluster.gang_in("long", 3, 1, seconds(100));
  cluster.gang_in("long", 4, 1, seconds(10));
  EXPECT_EQ(cluster.pool("short").policy, "sjf");
  // Shares are equal: by rank and arrival.
  EXPECT_EQ(grants(cluster.end(1)), "gang 3@1");
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(3)})), "gang 4@1");
  cluster.gang_in("long", 5, 1, seconds(100));
  cluster.gang_in("long", 6, 1, seconds(10));
  // Nothing is lost or given anew.
  EXPECT_TRUE(
      cluster
          .apply(PoolsSet{{{.name = "short", .policy = "fifo"}, {.name = "long", .policy = "sjf"}}})
          .empty());
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(4)})), "gang 1@1") << "was 2 by sjf";
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(1)})), "gang 2@1");
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(2)})), "gang 6@1") << "was 5 by fifo";
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(6)})), "gang 5@1");
}

TEST(PooledScheduler, RefusesPoolsThatItCannotHave) {
  PooledCluster cluster({{.name = "a"}});
  cluster.in("a", 1, gpus(1000));
  const auto refused = [&](std::vector<PoolSpec> pools) {
    const auto rejected = only<Rejected>(cluster.apply(PoolsSet{std::move(pools)}));
    return rejected.empty() ? Code::ok : rejected[0].error.code();
  };
  EXPECT_EQ(refused({{.name = "b"}}), Code::conflict) << "a has a request";
  EXPECT_EQ(refused({{.name = "a", .policy = "lottery"}}), Code::invalid);
  EXPECT_EQ(cluster.pool("a").requests, 1u);
  cluster.apply(Cancelled{make_id<ActorId>(1)});
  EXPECT_EQ(refused({{.name = "b"}}), Code::ok);
}

TEST(PooledScheduler, OneOfAHigherRankMakesRoomInAPoolThatIsAtItsLimit) {
  PooledCluster cluster({{.name = "a", .limit = gpu_limit(2), .policy = "srtf"}});
  cluster.node(1, gpus(8000));
  EXPECT_EQ(grants(cluster.gang_in("a", 1, 1, seconds(1000))), "gang 1@1");
  EXPECT_EQ(grants(cluster.gang_in("a", 2, 1, seconds(2000))), "gang 2@1");
  const auto asked = only<Revoked>(cluster.gang_in("a", 3, 1, seconds(10)));
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].id, RequestId{make_id<GangId>(2)});
  EXPECT_EQ(grants(cluster.apply(GangYielded{make_id<GangId>(2), {}})), "gang 3@1");
  EXPECT_EQ(cluster.pool("a").used, gpu_amount(2));
}

TEST(Reclaim, WhoStaysWithinItsQuotaGetsItBack) {
  PooledCluster cluster(
      {{.name = "a", .quota = gpu_amount(4)}, {.name = "b", .quota = gpu_amount(4)}});
  cluster.node(1, gpus(8000));
  for (uint64_t n = 1; n <= 4; ++n) EXPECT_NE(grants(cluster.gang_in("b", n, 2)), "");
  const auto asked = [](const Decisions& decisions) {
    std::set<uint64_t> ids;
    for (const Revoked& revoked : only<Revoked>(decisions))
      ids.insert(std::get<GangId>(revoked.id).low);
    return ids;
  };
  using Ids = std::set<uint64_t>;
  EXPECT_EQ(asked(cluster.gang_in("a", 11, 3)), (Ids{3, 4})) << "the youngest";
  EXPECT_EQ(grants(cluster.apply(GangYielded{make_id<GangId>(3), {}})), "");
  EXPECT_EQ(grants(cluster.apply(GangYielded{make_id<GangId>(4), {}})), "gang 11@1");
  // b has its quota, and there is one GPU left for a: no more is taken from b.
  EXPECT_EQ(asked(cluster.gang_in("a", 12, 2)), Ids{});
  EXPECT_EQ(grants(cluster.gang_in("a", 13, 1)), "gang 13@1");
  EXPECT_EQ(cluster.pool("b").used, gpu_amount(4));
  // What left waits for its turn.
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(1)})), "gang 3@1");
}

TEST(Reclaim, NobodyLeavesForWhoWouldBorrowItselfOrCouldNotStart) {
  PooledCluster cluster({{.name = "a", .quota = gpu_amount(4)}, {.name = "b"}, {.name = "c"}});
  for (uint64_t n = 1; n <= 2; ++n) cluster.node(n, gpus(4000));
  cluster.in("a", 1, gpus(1000));
  cluster.gang_in("b", 3, 2);
  cluster.gang_in("b", 4, 2);
  cluster.gang_in("b", 2, 3);
  EXPECT_TRUE(only<Revoked>(cluster.gang_in("c", 5, 1)).empty()) << "c has no quota";
  EXPECT_TRUE(only<Revoked>(cluster.gang_in("a", 6, 4)).empty()) << "it would be beyond a's quota";
  EXPECT_EQ(only<Revoked>(cluster.gang_in("a", 7, 3)).size(), 1u);
}

TEST(Reclaim, GoesByTheQuotasBelowThePoolThatBothAreIn) {
  PooledCluster cluster({{.name = "x", .quota = gpu_amount(4)},
                         {.name = "y", .quota = gpu_amount(4)},
                         {.name = "x1", .parent = "x", .quota = gpu_amount(2)},
                         {.name = "x2", .parent = "x", .quota = gpu_amount(2)},
                         {.name = "y1", .parent = "y"}});
  cluster.node(1, gpus(8000));
  for (uint64_t n = 1; n <= 4; ++n) cluster.gang_in("x1", n, 1);
  for (uint64_t n = 5; n <= 8; ++n) cluster.gang_in("y1", n, 1);
  // Within x its x1 borrowed; y is within its quota, though y1 has none.
  const auto asked = only<Revoked>(cluster.gang_in("x2", 9, 1));
  ASSERT_EQ(asked.size(), 1u);
  EXPECT_EQ(asked[0].id, RequestId{make_id<GangId>(4)});
}

// Whatever they want and have: it ends, and nobody within its quota is asked to leave.
TEST(Reclaim, NoTwoTakeFromEachOtherForEver) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    SeededRandom random(seed);
    std::vector<PoolSpec> specs;
    for (int i = 0; i < 5; ++i) {
      PoolSpec spec{.name = fmt::format("p{}", i)};
      spec.quota = gpu_amount(static_cast<int64_t>(random.below(6)));
      if (random.below(3) == 0) spec.limit = gpu_limit(5 + static_cast<int64_t>(random.below(4)));
      if (i >= 3) spec.parent = "p0";
      spec.policy = std::array{"", "srtf", "mlfq"}[random.below(3)];
      specs.push_back(spec);
    }
    if (!make(specs)) continue;
    PooledCluster cluster(specs);
    for (uint64_t n = 1; n <= 3; ++n) cluster.node(n, gpus(4000));
    std::map<GangId, std::string> pool_of;
    int asked = 0;
    const std::function<void(const Decisions&)> heed = [&](const Decisions& decisions) {
      for (const Revoked& revoked : only<Revoked>(decisions)) {
        ASSERT_LT(++asked, 1000) << "for ever";
        heed(cluster.apply(GangYielded{std::get<GangId>(revoked.id), {}}));
      }
    };
    for (uint64_t n = 1; n <= 40; ++n) {
      const std::string pool = std::array{"p1", "p2", "p3", "p4", ""}[random.below(5)];
      pool_of[make_id<GangId>(n)] = pool;
      heed(cluster.gang_in(pool, n, 1 + static_cast<int64_t>(random.below(4)),
                           seconds(1 + random.below(100))));
      ASSERT_FALSE(HasFailure());
    }
    for (const NodeView& node : cluster.scheduler.nodes()) EXPECT_FALSE(node.kept);
  }
}

// Random pools, requests and ends: no limit and no reserve is ever overrun, what is used adds up,
// nothing waits that its pools and a node have room for, and equal runs decide equally.
class PoolHistory {
 public:
  explicit PoolHistory(uint64_t seed) : random_(seed), cluster_({}) {
    for (uint64_t n = 1; n <= 4; ++n)
      cluster_.node(n, {.cpu_milli = 16'000, .memory_mib = 1000, .gpu_milli = 8000});
    set_pools();
  }
  void run(int steps) {
    for (int i = 0; i < steps && !testing::Test::HasFailure(); ++i) {
      const uint64_t kind = random_.below(20);
      if (kind == 0) {
        set_pools();
      } else if (kind < 11) {
        submit();
      } else if (!held_.empty()) {
        end();
      }
      check();
    }
  }
  const std::string& log() const { return log_; }

 private:
  struct Asked {
    std::string pool;
    ResourceVector demand;
  };

  Amounts some(int64_t gpu_count) {
    return {static_cast<int64_t>(random_.below(17)) * 1000, 1000,
            static_cast<int64_t>(random_.below(static_cast<uint64_t>(gpu_count) + 1)) * 1000};
  }
  void set_pools() {
    std::vector<PoolSpec> pools;
    std::set<std::string> used;
    for (const auto& [n, asked] : asked_) used.insert(asked.pool);
    for (int i = 0; i < 6; ++i) {
      PoolSpec spec{.name = fmt::format("p{}", i)};
      if (random_.below(5) == 0 && !used.contains(spec.name)) continue;
      if (i >= 3) {  // In one of those that are there and have no requests.
        const std::string parent = fmt::format("p{}", random_.below(3));
        const bool there = std::ranges::find(pools, parent, &PoolSpec::name) != pools.end();
        if (there && !used.contains(parent)) spec.parent = parent;
      }
      spec.weight = 1 + static_cast<int64_t>(random_.below(3));
      if (random_.below(2) == 0) spec.quota = some(8);
      if (random_.below(3) == 0) spec.lends = some(4);
      if (random_.below(2) == 0) {
        for (size_t r = 0; r < spec.limit.size(); ++r)
          spec.limit[r] = spec.quota[r] + static_cast<int64_t>(random_.below(9)) * 1000;
      }
      spec.policy = std::array{"", "fifo", "priority"}[random_.below(3)];
      pools.push_back(spec);
    }
    if (!make(pools)) return;  // Reserves beyond a limit.
    note(cluster_.apply(PoolsSet{pools}));
    pools_ = pools;
  }
  void submit() {
    std::vector<std::string> leaves{""};
    for (const PoolSpec& spec : pools_) {
      const bool has_pools =
          std::ranges::find(pools_, spec.name, &PoolSpec::parent) != pools_.end();
      if (!has_pools) leaves.push_back(spec.name);
    }
    const uint64_t n = next_++;
    const std::string pool = leaves[random_.below(leaves.size())];
    ResourceVector demand{.cpu_milli = static_cast<int64_t>(random_.below(4)) * 1000,
                          .gpu_milli = static_cast<int64_t>(random_.below(5)) * 1000};
    asked_[n] = {pool, demand};
    note(cluster_.in(pool, n, demand));
  }
  void end() {
    auto ended = held_.begin();
    std::advance(ended, static_cast<ptrdiff_t>(random_.below(held_.size())));
    const uint64_t n = *ended;
    held_.erase(ended);
    asked_.erase(n);
    note(cluster_.end(n));
  }
  void note(const Decisions& decisions) {
    for (const Decision& decision : decisions) {
      log_ += to_string(decision) + "\n";
      if (const auto* placed = std::get_if<ActorPlaced>(&decision)) held_.insert(placed->actor.low);
      EXPECT_FALSE(std::holds_alternative<Rejected>(decision)) << to_string(decision);
    }
  }
  void check() {
    // By a tree of its own, from what is held.
    std::vector<PoolSpec> specs = pools_;
    auto model = make(specs).value();
    model.set_total({64'000, 4000, 32'000});
    for (const uint64_t n : held_)
      model.add(*model.find(asked_[n].pool), amounts_of(asked_[n].demand));
    for (const PoolView& view : cluster_.scheduler.pools())
      ASSERT_EQ(view.used, model.used(*model.find(view.spec.name))) << view.spec.name;
    const auto nodes = cluster_.scheduler.nodes();
    for (const auto& [n, asked] : asked_) {
      if (held_.contains(n)) continue;
      const auto room = std::ranges::any_of(nodes, [&](const NodeView& node) {
        return !node.kept && node.available.gpu_milli >= asked.demand.gpu_milli &&
               node.available.cpu_milli >= asked.demand.cpu_milli;
      });
      if (!room) continue;
      ASSERT_TRUE(model.obstacle(*model.find(asked.pool), amounts_of(asked.demand)))
          << cluster_.why(make_id<ActorId>(n));
    }
  }

  SeededRandom random_;
  PooledCluster cluster_;
  std::vector<PoolSpec> pools_;
  std::map<uint64_t, Asked> asked_;
  std::set<uint64_t> held_;
  uint64_t next_ = 1;
  std::string log_;
};

TEST(PooledScheduler, RandomHistoriesKeepLimitsAndReservesAndWasteNothing) {
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    PoolHistory history(seed);
    history.run(300);
    ASSERT_FALSE(HasFailure());
  }
}

TEST(PooledScheduler, EqualHistoriesDecideEqually) {
  PoolHistory one(7);
  PoolHistory other(7);
  one.run(500);
  other.run(500);
  EXPECT_EQ(one.log(), other.log());
  EXPECT_GT(one.log().size(), 1000u);
}

}  // namespace
}  // namespace troupe::scheduler
