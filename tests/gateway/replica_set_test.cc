#include "gateway/replica_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace troupe::gateway {
namespace {

using namespace std::chrono_literals;

protocol::ActorInfo actor(uint64_t number, uint32_t incarnation, std::string state = "alive") {
  protocol::ActorInfo info;
  info.actor = ActorId{RawId{1, number}};
  info.incarnation = incarnation;
  info.state = std::move(state);
  return info;
}

protocol::DeploymentList list_of(std::vector<protocol::ActorInfo> replicas, uint32_t wanted) {
  protocol::DeploymentInfo info;
  info.spec.name = "m";
  info.spec.replicas = wanted;
  info.state = "ready";
  info.replicas = std::move(replicas);
  return {{info}};
}

class ReplicaSetTest : public testing::Test {
 protected:
  Instant at(Duration when) const { return Instant{} + 1h + when; }
  Result<ReplicaSet::Choice> pick(Duration when = 0s, std::set<std::string> excluded = {}) {
    return set.pick("m", excluded, at(when), random);
  }
  SeededRandom random{1};
  ReplicaSet set;
};

TEST_F(ReplicaSetTest, SpreadsOverTheLeastBusy) {
  (void)set.update(list_of({actor(1, 1), actor(2, 1), actor(3, 1, "starting")}, 3), at(0s));
  std::map<std::string, int> counts;
  for (int i = 0; i < 10; ++i) ++counts[pick()->key];
  ASSERT_EQ(counts.size(), 2U);
  for (const auto& [key, count] : counts) EXPECT_EQ(count, 5);
  const std::string freed = counts.begin()->first;
  set.ended(freed, at(0s));
  EXPECT_EQ(pick()->key, freed);
}

TEST_F(ReplicaSetTest, KnowsNoOtherModelAndNoExcludedReplica) {
  (void)set.update(list_of({actor(1, 1)}, 1), at(0s));
  EXPECT_EQ(set.pick("x", {}, at(0s), random).error().code(), Code::not_found);
  EXPECT_EQ(pick(0s, {pick()->key}).error().code(), Code::unavailable);
}

TEST_F(ReplicaSetTest, NamesWhatIsGone) {
  (void)set.update(list_of({actor(1, 1), actor(2, 1)}, 2), at(0s));
  EXPECT_EQ(set.update(list_of({actor(1, 1), actor(2, 2, "starting")}, 2), at(1s)).size(), 1U);
  EXPECT_EQ(set.update({}, at(2s)).size(), 1U);
  EXPECT_TRUE(set.models(at(13s)).empty());
}

TEST_F(ReplicaSetTest, MeasuresAnOutageFromItsFirstSign) {
  (void)set.update(list_of({actor(1, 1)}, 1), at(0s));
  set.failed("m", pick()->key, at(10s));
  EXPECT_EQ(set.models(at(13s))[0].replicas_alive, 0U);
  EXPECT_FALSE(pick(10s));
  (void)set.update(list_of({actor(1, 1, "restarting")}, 1), at(11s));
  (void)set.update(list_of({actor(1, 2)}, 1), at(13s));
  const auto info = set.models(at(13s))[0];
  EXPECT_EQ(info.replica_failures, 1U);
  EXPECT_DOUBLE_EQ(info.last_recovery_seconds.value(), 3.0);
  EXPECT_TRUE(pick(13s));
}

TEST_F(ReplicaSetTest, TrustsOneAgainThatAnswers) {
  (void)set.update(list_of({actor(1, 1)}, 1), at(0s));
  const std::string key = pick()->key;
  set.failed("m", key, at(0s));
  EXPECT_TRUE(pick(2s));  // Suspicion has passed: it is tried.
  set.worked("m", key, at(2s));
  EXPECT_EQ(set.models(at(13s))[0].replicas_alive, 1U);
  EXPECT_DOUBLE_EQ(set.models(at(13s))[0].last_recovery_seconds.value(), 2.0);
}

TEST_F(ReplicaSetTest, CountsTheTimeInWhichReplicasHaveWork) {
  (void)set.update(list_of({actor(1, 1), actor(2, 1)}, 2), at(0s));
  EXPECT_DOUBLE_EQ(set.models(at(5s))[0].utilisation, 0.0);
  const std::string first = pick(10s)->key;
  const std::string second = pick(10s)->key;
  set.ended(first, at(12s));
  EXPECT_DOUBLE_EQ(set.models(at(14s))[0].utilisation, (2.0 + 4.0) / (2 * 4.0));
  set.ended(second, at(14s));
  EXPECT_DOUBLE_EQ(set.models(at(20s))[0].utilisation, (2.0 + 4.0) / (2 * 10.0));
}

TEST_F(ReplicaSetTest, CallsFewerOnPurposeNoFailure) {
  (void)set.update(list_of({actor(1, 1), actor(2, 1)}, 2), at(0s));
  (void)set.update(list_of({actor(1, 1)}, 1), at(1s));
  EXPECT_EQ(set.models(at(13s))[0].replica_failures, 0U);
}

}  // namespace
}  // namespace troupe::gateway
