// Policies against theory, and preemption.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <set>

#include "base/random.h"
#include "scenario.h"
#include "scheduler/replay/replay.h"

namespace troupe::scheduler {
namespace {

using std::chrono::hours;
using std::chrono::milliseconds;
using std::chrono::seconds;

TraceJob job_of(int64_t submitted_s, int64_t run_s, int64_t gpu_count = 1) {
  TraceJob job;
  job.submitted = seconds(submitted_s);
  job.run_time = seconds(run_s);
  job.gpu_milli = gpu_count * whole_gpu_milli;
  return job;
}

// On one machine of one GPU, where preemption costs nothing.
ReplayOptions one_machine(std::unique_ptr<Policy> policy) {
  ReplayOptions options;
  options.policy = std::move(policy);
  options.gpus_per_node = 1;
  options.restart_cost = Duration::zero();
  return options;
}

double total_completion(const std::vector<TraceJob>& jobs, std::unique_ptr<Policy> policy) {
  const ReplayResult result = replay(jobs, one_machine(std::move(policy)));
  EXPECT_EQ(result.jobs, jobs.size());
  return result.jct_avg_s * static_cast<double>(jobs.size());
}

std::string log_of(const std::vector<TraceJob>& jobs, std::unique_ptr<Policy> policy) {
  std::string log;
  ReplayOptions options = one_machine(std::move(policy));
  options.on_decision = [&log](const Decision& decision, Instant now) {
    log += fmt::format("{} {}\n", now.time_since_epoch().count(), to_string(decision));
  };
  (void)replay(jobs, std::move(options));
  return log;
}

// --- Against brute force, on one machine

double best_order(const std::vector<TraceJob>& jobs) {
  std::vector<size_t> order(jobs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  double best = 1e18;
  do {
    double end = 0;
    double sum = 0;
    for (const size_t i : order) {
      end += std::chrono::duration<double>(jobs[i].run_time).count();
      sum += end;
    }
    best = std::min(best, sum);
  } while (std::next_permutation(order.begin(), order.end()));
  return best;
}

TEST(Sjf, IsOptimalForJobsThatAreAllThere) {
  SeededRandom random{1};
  for (int round = 0; round < 40; ++round) {
    std::vector<TraceJob> jobs;
    const uint64_t count = 1 + random.below(8);
    // All are there when the machine is free for the first of them.
    for (uint64_t i = 0; i < count; ++i) {
      jobs.push_back(job_of(0, 1 + static_cast<int64_t>(random.below(20))));
    }
    std::vector<TraceJob> behind = jobs;
    for (TraceJob& job : behind) job.submitted = seconds(1);
    behind.insert(behind.begin(), job_of(0, 2));
    // The first holds the machine until 2 s; the others wait 1 s longer each.
    const double expected = best_order(jobs) + 2 + static_cast<double>(count);
    EXPECT_DOUBLE_EQ(total_completion(behind, make_sjf_policy()), expected) << "round " << round;
  }
}

// Of all ways to give each second to one of the jobs that are there.
class BestPreemptive {
 public:
  explicit BestPreemptive(const std::vector<TraceJob>& jobs) : jobs_(jobs) {
    for (const TraceJob& job : jobs) left_.push_back(job.run_time / seconds(1));
  }
  int64_t total() { return from(0); }

 private:
  int64_t from(int64_t time) {
    if (std::ranges::all_of(left_, [](int64_t left) { return left == 0; })) return 0;
    const auto known = known_.find({time, left_});
    if (known != known_.end()) return known->second;
    int64_t best = INT64_MAX;
    bool some = false;
    for (size_t i = 0; i < jobs_.size(); ++i) {
      if (left_[i] == 0 || jobs_[i].submitted > seconds(time)) continue;
      some = true;
      --left_[i];
      const int64_t ended = left_[i] == 0 ? time + 1 - jobs_[i].submitted / seconds(1) : 0;
      best = std::min(best, ended + from(time + 1));
      ++left_[i];
    }
    if (!some) best = from(time + 1);
    known_.emplace(std::pair{time, left_}, best);
    return best;
  }

  const std::vector<TraceJob>& jobs_;
  std::vector<int64_t> left_;
  std::map<std::pair<int64_t, std::vector<int64_t>>, int64_t> known_;
};

std::vector<TraceJob> random_jobs(Random& random, uint64_t count, uint64_t run_max) {
  std::vector<TraceJob> jobs;
  for (uint64_t i = 0; i < count; ++i) {
    jobs.push_back(job_of(static_cast<int64_t>(random.below(2 * count)),
                          1 + static_cast<int64_t>(random.below(run_max))));
  }
  std::ranges::stable_sort(jobs, {}, &TraceJob::submitted);
  for (TraceJob& job : jobs) job.submitted -= jobs.front().submitted;
  return jobs;
}

TEST(Srtf, IsOptimalOnOneMachine) {
  SeededRandom random{2};
  bool sjf_is_worse = false;
  for (int round = 0; round < 60; ++round) {
    const auto jobs = random_jobs(random, 1 + random.below(6), 6);
    const auto best = static_cast<double>(BestPreemptive{jobs}.total());
    EXPECT_NEAR(total_completion(jobs, make_srtf_policy()), best, 1e-6) << "round " << round;
    sjf_is_worse = sjf_is_worse || total_completion(jobs, make_sjf_policy()) > best + 0.5;
  }
  EXPECT_TRUE(sjf_is_worse);  // Else the check could not fail.
}

TEST(Srtf, IsNeverWorseThanAnyOtherOnOneMachine) {
  SeededRandom random{3};
  for (int round = 0; round < 30; ++round) {
    const auto jobs = random_jobs(random, 40, 30);
    const double srtf = total_completion(jobs, make_srtf_policy());
    for (const std::string_view name : policy_names) {
      EXPECT_LE(srtf, total_completion(jobs, make_policy(name).value()) + 1e-6) << name;
    }
  }
}

TEST(Srtf, PreemptsOnceAnArrivalAtMost) {
  SeededRandom random{4};
  for (int round = 0; round < 30; ++round) {
    const auto jobs = random_jobs(random, 40, 30);
    EXPECT_LT(replay(jobs, one_machine(make_srtf_policy())).preemptions, jobs.size());
  }
}

// --- Multilevel feedback

MlfqOptions levels(std::vector<Duration> thresholds, int64_t promotion = 0) {
  return {std::move(thresholds), promotion};
}

// Heavy tails, and all alike: a hundred for one GPU that come almost at once.
std::vector<TraceJob> hundred(Random& random, bool heavy_tail) {
  std::vector<TraceJob> jobs;
  for (int64_t i = 0; i < 100; ++i) {
    // Pareto with shape 1.1, cut off.
    const double run_s = std::min(10'000.0, 10 * std::pow(1 - random.uniform(), -1 / 1.1));
    jobs.push_back(job_of(i, heavy_tail ? static_cast<int64_t>(run_s) : 100));
  }
  return jobs;
}

TEST(Mlfq, BeatsFirstComeOnHeavyTailsAndNotOnEqualJobs) {
  const std::vector<Duration> thresholds{seconds(20), seconds(200), seconds(2000)};
  int wins = 0;
  constexpr int rounds = 20;
  for (int round = 0; round < rounds; ++round) {
    SeededRandom random{static_cast<uint64_t>(round)};
    const auto tails = hundred(random, true);
    wins += total_completion(tails, make_mlfq_policy(levels(thresholds))) <
            total_completion(tails, make_fifo_policy());
    const auto equal = hundred(random, false);
    EXPECT_GE(total_completion(equal, make_mlfq_policy(levels(thresholds))),
              total_completion(equal, make_fifo_policy()));
  }
  EXPECT_EQ(wins, rounds);
}

TEST(Mlfq, OfOneLevelIsFirstComeFirstServed) {
  SeededRandom random{5};
  const auto jobs = random_jobs(random, 200, 50);
  EXPECT_EQ(log_of(jobs, make_mlfq_policy(levels({}))), log_of(jobs, make_fifo_policy()));
}

// Down a level by all that it held, whatever is reported of it; up by promotion alone.
TEST(Mlfq, LevelNeverRisesButByPromotion) {
  const auto policy = make_mlfq_policy(levels({seconds(10), seconds(100)}, 4));
  SeededRandom random{6};
  for (int round = 0; round < 200; ++round) {
    Standing standing;
    standing.gpu_milli = static_cast<int64_t>(1 + random.below(8)) * whole_gpu_milli;
    Instant now{seconds(1)};
    standing.since = now;
    Rank last = policy->rank(standing, now);
    for (int step = 0; step < 100; ++step) {
      now += milliseconds(random.below(20'000));
      const bool promoted = policy->promotes(standing, now);
      if (promoted) standing.promoted_at = standing.ran;
      const Rank rank = policy->rank(standing, now);
      if (promoted) {
        EXPECT_EQ(rank.major, 0);
      } else {
        EXPECT_GE(rank.major, last.major);
      }
      last = rank;
      standing.ran = standing.ran_until(now);
      standing.since = now;
      standing.runs = !standing.runs;
    }
  }
}

TEST(Mlfq, SaysWhenARankChanges) {
  const auto policy = make_mlfq_policy(levels({seconds(10), seconds(100)}, 4));
  Standing standing;
  standing.gpu_milli = 3 * whole_gpu_milli;
  standing.runs = true;
  Instant now{seconds(1)};
  standing.since = now;
  for (int64_t level = 0; level < 2; ++level) {
    const Instant change = policy->changes_at(standing, now);
    EXPECT_EQ(policy->rank(standing, change - Duration{1}).major, level);
    EXPECT_EQ(policy->rank(standing, change).major, level + 1);
    now = change;
  }
  EXPECT_EQ(policy->changes_at(standing, now), Instant::max());
}

// A large job that came first, and short ones without end: it is promoted again and again.
TEST(Mlfq, PromotionBoundsStarvation) {
  std::vector<TraceJob> jobs{job_of(0, 1000)};
  for (int64_t i = 1; i < 20'000; ++i) jobs.push_back(job_of(i, 1));
  const auto end_of_first = [&](int64_t promotion) {
    return replay(jobs, one_machine(make_mlfq_policy(levels({seconds(10)}, promotion)))).jct_max_s;
  };
  const double starved = end_of_first(0);
  EXPECT_GE(starved, 20'000);
  // 10 s of service, then 4 times as long a wait, 100 times.
  EXPECT_LE(end_of_first(4), 100 * 51);
}

// --- Round robin

std::unique_ptr<Policy> rounds_of(Duration quantum) {
  return make_round_robin_policy({.quantum = quantum});
}

TEST(RoundRobin, OfAnEndlessQuantumIsFirstComeFirstServed) {
  SeededRandom random{8};
  const auto jobs = random_jobs(random, 200, 50);
  EXPECT_EQ(log_of(jobs, rounds_of(hours(1000))), log_of(jobs, make_fifo_policy()));
}

// n jobs that are all there: the first service comes within (n - 1) quanta, and one of length p
// ends within n p + (n - 1) q.
TEST(RoundRobin, BoundsTheFirstServiceAndTheEndOfEach) {
  SeededRandom random{9};
  for (int round = 0; round < 30; ++round) {
    const auto count = static_cast<int64_t>(2 + random.below(10));
    const auto quantum = static_cast<int64_t>(1 + random.below(10));
    std::vector<TraceJob> jobs;
    for (int64_t i = 0; i < count; ++i)
      jobs.push_back(job_of(0, 1 + static_cast<int64_t>(random.below(60))));
    std::map<uint64_t, Instant> first;
    ReplayOptions options = one_machine(rounds_of(seconds(quantum)));
    std::map<uint64_t, Instant> ends;
    options.on_decision = [&](const Decision& decision, Instant now) {
      if (const auto* placed = std::get_if<GangPlaced>(&decision))
        first.emplace(placed->gang.low, now);
    };
    const ReplayResult result = replay(jobs, std::move(options));
    EXPECT_EQ(result.jobs, jobs.size());
    for (const auto& [job, at] : first)
      EXPECT_LE(at - first.at(1), seconds((count - 1) * quantum) + milliseconds(1));
    double longest = 0;
    for (const TraceJob& job : jobs)
      longest = std::max(longest, std::chrono::duration<double>(job.run_time).count());
    const auto jobs_count = static_cast<double>(count);
    EXPECT_LE(result.jct_max_s,
              jobs_count * longest + (jobs_count - 1) * static_cast<double>(quantum) + 0.001);
  }
}

// Who stays gets its share by weight, wherever it came in: two quanta apart at most.
TEST(RoundRobin, NobodyLagsMoreThanTwoQuantaBehindItsShare) {
  SeededRandom random{10};
  for (int round = 0; round < 30; ++round) {
    SchedulerOptions options;
    options.policy = rounds_of(seconds(10));
    Scenario cluster(std::move(options));
    cluster.node(1, gpus(1000));
    struct Job {
      uint32_t weight;
      Instant joined;
    };
    std::map<uint64_t, Job> jobs;
    std::map<uint64_t, Duration> served;
    uint64_t runs = 0;
    const std::function<void(const Decisions&)> heed = [&](const Decisions& decisions) {
      for (const Decision& decision : decisions) {
        if (const auto* placed = std::get_if<GangPlaced>(&decision)) runs = placed->gang.low;
        if (std::holds_alternative<Revoked>(decision)) {
          const GangId leaving = make_id<GangId>(std::exchange(runs, 0));
          heed(cluster.apply(GangYielded{leaving, {}}));
        }
      }
    };
    for (uint64_t n = 1; n <= 6; ++n) {
      jobs[n] = {1 + static_cast<uint32_t>(random.below(4)), cluster.now};
      heed(cluster.apply(GangRequested{.gang = make_id<GangId>(n),
                                       .job = make_id<JobId>(n),
                                       .bundles = {gpus(1000)},
                                       .can_pause = true,
                                       .weight = jobs[n].weight}));
      std::map<uint64_t, Duration> since;  // Since this one came.
      for (int step = 0; step < 200; ++step) {
        const auto next = cluster.scheduler.next_deadline();
        const Instant until = next ? *next : cluster.now + seconds(10);
        since[runs] += until - cluster.now;
        heed(cluster.pass(until - cluster.now));
        std::vector<double> shares;
        for (const auto& [job, of] : jobs)
          shares.push_back(std::chrono::duration<double>(since[job]).count() / of.weight);
        const auto [least, most] = std::ranges::minmax(shares);
        ASSERT_LE(most - least, 20.001) << "after " << n << " came, step " << step;
      }
    }
  }
}

// --- Aging

TEST(Aging, BoundsHowLongALowPriorityWaits) {
  const auto first_wait = [](std::unique_ptr<Policy> policy) {
    std::vector<TraceJob> jobs{job_of(0, 1), job_of(0, 1)};
    jobs[1].priority = -10;
    for (int64_t i = 1; i < 1000; ++i) {
      jobs.push_back(job_of(i - 1, 1));  // One always waits.
    }
    Instant began;
    ReplayOptions options = one_machine(std::move(policy));
    options.on_decision = [&](const Decision& decision, Instant now) {
      const auto* placed = std::get_if<GangPlaced>(&decision);
      if (placed != nullptr && placed->gang.low == 2) began = now;
    };
    (void)replay(jobs, std::move(options));
    return began - Instant(seconds(1));
  };
  EXPECT_EQ(first_wait(make_priority_policy()), seconds(1000)) << "when all others are done";
  // Ten steps, and what runs then.
  EXPECT_LE(first_wait(make_aging_policy({.step = seconds(10)})), seconds(101));
}

TEST(Aging, WhoWaitedOneStepGoesWithWhoHasOnePriorityMore) {
  const auto policy = make_aging_policy({.step = seconds(10)});
  Standing old;
  old.arrived = Instant(seconds(100));
  Standing young;
  young.priority = 1;
  young.arrived = Instant(seconds(110));
  const Instant now(seconds(200));
  EXPECT_EQ(policy->rank(old, now).major, policy->rank(young, now).major);
  young.priority = INT32_MAX;
  EXPECT_LT(policy->rank(young, now), policy->rank(old, now));
  young.priority = INT32_MIN;
  EXPECT_GT(policy->rank(young, now), policy->rank(old, now));
}

// --- Preemption

class Preemption : public testing::Test {
 protected:
  Preemption() : cluster(options()) {}
  static SchedulerOptions options() {
    SchedulerOptions options;
    options.policy = make_srtf_policy();
    return options;
  }
  Decisions gang(uint64_t n, int64_t gpu_count, int64_t run_s, bool can_pause = true) {
    return cluster.apply(GangRequested{.gang = make_id<GangId>(n),
                                       .job = make_id<JobId>(n),
                                       .bundles = {gpus(gpu_count * 1000)},
                                       .can_pause = can_pause,
                                       .run_time = seconds(run_s)});
  }
  Decisions yields(uint64_t n) { return cluster.apply(GangYielded{make_id<GangId>(n), {}}); }
  static std::set<uint64_t> preempted(const Decisions& decisions) {
    std::set<uint64_t> ids;
    for (const Decision& decision : decisions) {
      const auto* revoked = std::get_if<Revoked>(&decision);
      if (revoked == nullptr) continue;
      EXPECT_EQ(revoked->reason, RevokeReason::preempted);
      ids.insert(std::get<GangId>(revoked->id).low);
    }
    return ids;
  }
  using Ids = std::set<uint64_t>;

  Scenario cluster;
};

TEST_F(Preemption, TheOneThatWaitsRunsOnceTheOtherHasLeft) {
  cluster.node(1, gpus(1000));
  EXPECT_EQ(grants(gang(1, 1, 100)), "gang 1@1");
  const auto asked = gang(2, 1, 10);
  EXPECT_EQ(preempted(asked), Ids{1});
  EXPECT_EQ(grants(asked), "");
  EXPECT_EQ(grants(yields(1)), "gang 2@1");
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(2)})), "gang 1@1");
}

TEST_F(Preemption, NoneOfTheSameRankMakesRoom) {
  cluster.node(1, gpus(1000));
  gang(1, 1, 100);
  EXPECT_EQ(preempted(gang(2, 1, 100)), Ids{});
}

TEST_F(Preemption, WhatCannotPauseIsNeverAsked) {
  cluster.node(1, gpus(1000));
  gang(1, 1, 100, false);
  EXPECT_EQ(preempted(gang(2, 1, 10)), Ids{});
}

TEST_F(Preemption, NobodyLeavesForOneThatCouldNotStartThen) {
  cluster.node(1, gpus(4000));
  gang(1, 2, 100, false);
  gang(2, 2, 100);
  EXPECT_EQ(preempted(gang(3, 4, 10)), Ids{});  // The first stays: 2 GPUs at most would be free.
}

// The node is kept for the one that claimed it. Once that has its part, the rest goes by seniority,
// not to others of its size.
TEST_F(Preemption, WhatIsLeftOfAClaimGoesToTheMostSenior) {
  cluster.node(1, gpus(8000));
  gang(1, 8, 1000);
  gang(2, 1, 1600);
  gang(3, 4, 1500);
  gang(4, 1, 1700);
  EXPECT_EQ(preempted(gang(5, 1, 400)), Ids{1});
  EXPECT_EQ(grants(yields(1)), "gang 5@1, gang 3@1, gang 2@1, gang 4@1");
}

// What waits in a gang's bundles is not held up by who goes before the gang.
TEST(Inheritance, AGangRunsAtThePriorityOfWhatNeedsIt) {
  Scenario cluster;  // By priority.
  cluster.node(1, cpus(1));
  cluster.actor(1, cpus(1));
  const auto ask = [&](uint64_t n, int32_t priority) {
    cluster.apply(GangRequested{.gang = make_id<GangId>(n),
                                .job = make_id<JobId>(1),
                                .bundles = {cpus(1)},
                                .priority = priority});
  };
  ask(1, 0);
  ask(2, 5);
  const ActorRequested inside{.actor = make_id<ActorId>(10),
                              .job = make_id<JobId>(1),
                              .demand = cpus(1),
                              .priority = 9,
                              .affinity = {.within = WithinGang{make_id<GangId>(1), {}}}};
  cluster.apply(inside);
  EXPECT_EQ(grants(cluster.apply(ActorReleased{make_id<ActorId>(1)})), "gang 1@1, actor 10@1");
  // Without it the gang has its own priority.
  ask(3, 0);
  ActorRequested other = inside;
  other.actor = make_id<ActorId>(11);
  other.affinity.within = WithinGang{make_id<GangId>(3), {}};
  cluster.apply(other);
  cluster.apply(Cancelled{make_id<ActorId>(11)});
  cluster.apply(ActorReleased{make_id<ActorId>(10)});
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(1)})), "gang 2@1");
}

// Its rank changes by time alone; that it was asked to leave does not.
TEST(MlfqPreemption, OneThatLeavesMayStillDoSoAfterItsLevelChanged) {
  SchedulerOptions options;
  options.policy = make_mlfq_policy(levels({seconds(10), seconds(100)}));
  Scenario cluster(std::move(options));
  cluster.node(1, gpus(1000));
  const auto ask = [&](uint64_t n) {
    return cluster.apply(GangRequested{.gang = make_id<GangId>(n),
                                       .job = make_id<JobId>(1),
                                       .bundles = {gpus(1000)},
                                       .can_pause = true});
  };
  EXPECT_EQ(grants(ask(1)), "gang 1@1");
  cluster.pass(seconds(10));
  EXPECT_EQ(only<Revoked>(ask(2)).size(), 1u);
  EXPECT_TRUE(only<Revoked>(cluster.pass(seconds(95))).empty()) << "it was asked already";
  EXPECT_EQ(grants(cluster.apply(GangYielded{make_id<GangId>(1), {}})), "gang 2@1");
}

TEST_F(Preemption, TakesNoMoreThanItNeeds) {
  cluster.node(1, gpus(4000));
  gang(1, 1, 500);
  gang(2, 1, 400);
  gang(3, 2, 300);
  // One GPU: the least senior alone.
  EXPECT_EQ(preempted(gang(4, 1, 10)), Ids{1});
}

TEST_F(Preemption, SparesWhoIsSeniorWhereOthersWillDo) {
  cluster.node(1, gpus(4000));
  gang(1, 1, 500);
  gang(2, 1, 400);
  gang(3, 2, 450);
  // From the least senior on: 1, then 3; with 3 there is room without 1.
  EXPECT_EQ(preempted(gang(4, 2, 10)), Ids{3});
}

TEST_F(Preemption, RoomThatIsMadeIsKept) {
  cluster.node(1, gpus(2000));
  gang(1, 1, 500);
  gang(2, 1, 400);
  EXPECT_EQ(preempted(gang(3, 2, 100)), (Ids{1, 2}));
  gang(4, 1, 50);  // More senior, and needs less: it waits for its turn all the same.
  EXPECT_EQ(grants(yields(1)), "");
  EXPECT_EQ(grants(yields(2)), "gang 3@1");
}

TEST_F(Preemption, OneThatEndsInsteadOfYieldingMakesRoomToo) {
  cluster.node(1, gpus(1000));
  gang(1, 1, 100);
  gang(2, 1, 10);
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(1)})), "gang 2@1");
  EXPECT_EQ(grants(yields(1)), "");
}

TEST_F(Preemption, WhoWasNotAskedCannotYield) {
  cluster.node(1, gpus(1000));
  gang(1, 1, 100);
  EXPECT_TRUE(yields(1).empty());
  EXPECT_EQ(cluster.scheduler.nodes()[0].available.gpu_milli, 0);
}

TEST_F(Preemption, ClaimThatIsCancelledLetsTheNodeGo) {
  cluster.node(1, gpus(1000));
  gang(1, 1, 100);
  gang(2, 1, 10);
  cluster.apply(Cancelled{make_id<GangId>(2)});
  EXPECT_EQ(grants(yields(1)), "gang 1@1");
}

TEST_F(Preemption, BrokenGangIsOverAndDoesNotWaitAgain) {
  cluster.node(1, gpus(1000));
  cluster.node(2, gpus(1000));
  cluster.apply(GangRequested{.gang = make_id<GangId>(1),
                              .job = make_id<JobId>(1),
                              .bundles = {gpus(1000), gpus(1000)},
                              .can_pause = true,
                              .run_time = seconds(100)});
  EXPECT_EQ(preempted(gang(2, 2, 10)), Ids{});  // On no node.
  EXPECT_EQ(preempted(gang(3, 1, 10)), Ids{1});
  cluster.apply(NodeRemoved{make_id<NodeId>(1)});
  EXPECT_TRUE(yields(1).empty());
  EXPECT_EQ(grants(cluster.apply(GangReleased{make_id<GangId>(1)})), "gang 3@2");
}

TEST_F(Preemption, LostNodeEndsTheClaim) {
  cluster.node(1, gpus(1000));
  cluster.node(2, gpus(1000));
  gang(1, 1, 100);
  gang(2, 1, 90);
  EXPECT_EQ(preempted(gang(3, 1, 10)), Ids{1});
  cluster.apply(NodeRemoved{make_id<NodeId>(1)});
  EXPECT_EQ(preempted(cluster.pass(seconds(1))), Ids{});
  EXPECT_EQ(cluster.scheduler.held(make_id<GangId>(2)).size() +
                cluster.scheduler.held(make_id<GangId>(3)).size(),
            1U);
}

// Random histories, in which victims yield late or end instead: no device is held twice, and in the
// end every gang has run.
TEST(PreemptionHistories, NeverOverAllocateAndLoseNoGang) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(seed);
    SeededRandom random{seed};
    SchedulerOptions options;
    options.policy =
        seed % 2 == 0 ? make_srtf_policy() : make_mlfq_policy({{seconds(5), seconds(40)}, 3});
    Scenario cluster{std::move(options)};
    using Device = std::pair<NodeId, uint32_t>;
    std::map<Device, GangId> holders;
    std::map<GangId, std::vector<Device>> held;
    std::vector<GangId> asked;
    uint64_t ended = 0;
    const auto free = [&](const GangId& gang) {
      for (const Device& device : held[gang]) holders.erase(device);
      held.erase(gang);
      std::erase(asked, gang);
    };
    const auto heed = [&](const Decisions& decisions) {
      for (const Decision& decision : decisions) {
        if (const auto* placed = std::get_if<GangPlaced>(&decision)) {
          for (const Placed& bundle : placed->bundles) {
            for (const DeviceShare& share : bundle.devices) {
              const Device device{bundle.node, share.device};
              ASSERT_TRUE(holders.emplace(device, placed->gang).second) << "held twice";
              held[placed->gang].push_back(device);
            }
          }
        } else if (const auto* revoked = std::get_if<Revoked>(&decision)) {
          asked.push_back(std::get<GangId>(revoked->id));
        } else {
          ASSERT_FALSE(std::holds_alternative<Rejected>(decision)) << to_string(decision);
        }
      }
    };
    for (uint64_t n = 1; n <= 4; ++n) heed(cluster.node(n, gpus(8000)));
    uint64_t made = 0;
    constexpr uint64_t gangs = 150;
    for (int step = 0; step < 20'000 && ended < gangs; ++step) {
      heed(cluster.pass(milliseconds(random.below(2000))));
      const uint64_t choice = random.below(10);
      if (made < gangs && choice < 4) {
        const auto bundles = 1 + random.below(3);
        const auto size = static_cast<int64_t>(1 + random.below(8)) * 1000;
        heed(
            cluster.apply(GangRequested{.gang = make_id<GangId>(++made),
                                        .job = make_id<JobId>(made),
                                        .bundles = std::vector<ResourceVector>(bundles, gpus(size)),
                                        .can_pause = random.chance(0.8),
                                        .run_time = seconds(1 + random.below(100))}));
      } else if (choice < 8 && !asked.empty()) {
        const GangId gang = asked[random.below(asked.size())];
        free(gang);
        heed(cluster.apply(GangYielded{gang, {}}));
      } else if (choice == 9 && !held.empty()) {
        auto it = held.begin();
        std::advance(it, static_cast<ptrdiff_t>(random.below(held.size())));
        const GangId gang = it->first;
        free(gang);
        ++ended;
        heed(cluster.apply(GangReleased{gang}));
      }
      if (HasFatalFailure()) return;
    }
    EXPECT_EQ(ended, gangs);
    EXPECT_EQ(cluster.scheduler.pending_units(), 0U);
  }
}

TEST(Policies, AreMadeByName) {
  for (const std::string_view name : policy_names) {
    const auto policy = make_policy(name);
    ASSERT_TRUE(policy);
    EXPECT_EQ((*policy)->name(), name);
  }
  const auto unknown = make_policy("lottery");
  ASSERT_FALSE(unknown);
  EXPECT_THAT(unknown.error().message(),
              testing::HasSubstr("choose one of aging, fifo, mlfq, priority, rr, sjf, srtf"));
}

}  // namespace
}  // namespace troupe::scheduler
