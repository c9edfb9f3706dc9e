// How one version of a deployment replaces another: what serves meanwhile, and what is said of it.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/sim/sim_cluster.h"

namespace troupe::sim {
namespace {

using namespace std::chrono_literals;
using protocol::DeploymentInfo;
using protocol::Method;

constexpr char name[] = "model";

class DeploymentSimulation : public testing::Test {
 protected:
  // Two replicas fill a cluster of `cpu_milli` 1000, and half of one with 2000.
  void start(int64_t cpu_milli) {
    ClusterOptions options;
    options.workers = 2;
    options.cpu_milli = cpu_milli;
    cluster_.emplace(sim_, options);
    ASSERT_TRUE(cluster_->start());
  }
  void TearDown() override {
    cluster_->stop();
    for (const std::string& what : cluster_->checks().violations()) ADD_FAILURE() << what;
  }

  static protocol::DeploymentSpec spec(const std::string& config) {
    protocol::DeploymentSpec spec;
    spec.name = name;
    spec.module = "module";
    spec.class_name = "engine";
    spec.config = config;
    spec.replicas = 2;
    spec.demand = {{"cpu", 1000}};
    return spec;
  }
  DeploymentInfo deploy(protocol::DeploymentSpec spec) {
    DeploymentInfo info;
    EXPECT_TRUE(sim_.run(ask_deploy(std::move(spec), info), 20s));
    return info;
  }
  DeploymentInfo look() {
    DeploymentInfo info;
    EXPECT_TRUE(sim_.run(ask_list(info), 20s));
    return info;
  }
  // Replicas with this configuration that may be called.
  size_t serving(const std::string& config) {
    const auto& processes = cluster_->checks().processes();
    return static_cast<size_t>(
        std::count_if(processes.begin(), processes.end(), [&](const auto& entry) {
          const auto& arguments = entry.second->actor().spec.arguments;
          return entry.second->is_serving() && !arguments.empty() &&
                 as_text(arguments[0].inline_value) == config;
        }));
  }
  // Whether the deployment got there; `least_` is what served meanwhile.
  bool reaches(const std::string& state, Duration limit = 60s) {
    const Instant end = sim_.clock().now() + limit;
    while (sim_.clock().now() < end) {
      const DeploymentInfo info = look();
      if (info.state == state) return true;
      sim_.run_until(
          [&] {
            least_ = std::min(least_, serving("one") + serving("two"));
            return false;
          },
          5ms);
    }
    return false;
  }

  Simulation sim_{1};
  std::optional<SimCluster> cluster_;
  size_t least_ = 1000;

 private:
  Async<void> ask_deploy(protocol::DeploymentSpec spec, DeploymentInfo& out) {
    auto info =
        co_await cluster_->driver().ask_head<DeploymentInfo>(Method::deploy, std::move(spec), 10s);
    EXPECT_TRUE(info) << info.error().to_string();
    if (info) out = std::move(*info);
  }
  Async<void> ask_list(DeploymentInfo& out) {
    protocol::Empty nothing;
    auto list = co_await cluster_->driver().ask_head<protocol::DeploymentList>(
        Method::list_deployments, nothing, 10s);
    if (list && list->items.size() == 1) out = std::move(list->items[0]);
  }
};

TEST_F(DeploymentSimulation, TheOldVersionServesUntilTheNewOneDoes) {
  start(2000);
  deploy(spec("one"));
  ASSERT_TRUE(reaches("ready"));
  EXPECT_EQ(serving("one"), 2u);
  least_ = 1000;
  EXPECT_EQ(deploy(spec("two")).state, "updating");
  ASSERT_TRUE(reaches("ready"));
  EXPECT_EQ(serving("two"), 2u);
  EXPECT_GE(least_, 2u);
  EXPECT_EQ(look().replicas.size(), 2u);
  EXPECT_TRUE(sim_.run_until([&] { return serving("one") == 0; }, 5s));
}

TEST_F(DeploymentSimulation, AVersionThatDoesNotStartLeavesTheOldOneServing) {
  start(2000);
  deploy(spec("one"));
  ASSERT_TRUE(reaches("ready"));
  least_ = 1000;
  auto broken = spec("two");
  broken.class_name = "broken";
  EXPECT_EQ(deploy(broken).state, "updating");
  ASSERT_TRUE(reaches("failed"));
  sim_.run_for(5s);
  const DeploymentInfo info = look();
  EXPECT_EQ(info.state, "failed");
  EXPECT_NE(info.reason.find("broken on purpose"), std::string::npos) << info.reason;
  EXPECT_NE(info.reason.find("serve on: 2"), std::string::npos) << info.reason;
  EXPECT_EQ(info.replicas.size(), 2u);
  EXPECT_EQ(serving("one"), 2u);
  EXPECT_EQ(least_, 2u);
  // A version that works replaces what is left.
  deploy(spec("two"));
  ASSERT_TRUE(reaches("ready"));
  EXPECT_EQ(serving("two"), 2u);
}

TEST_F(DeploymentSimulation, WithoutRoomForBothOneReplicaAtATimeMakesRoom) {
  start(1000);
  deploy(spec("one"));
  ASSERT_TRUE(reaches("ready"));
  least_ = 1000;
  deploy(spec("two"));
  ASSERT_TRUE(reaches("ready"));
  EXPECT_EQ(serving("two"), 2u);
  EXPECT_EQ(least_, 1u);
}

TEST_F(DeploymentSimulation, AVersionThatFitsNoNodeTakesNobodysPlace) {
  start(1000);
  deploy(spec("one"));
  ASSERT_TRUE(reaches("ready"));
  auto large = spec("two");
  large.demand = {{"cpu", 100'000}};
  deploy(large);
  sim_.run_for(20s);
  const DeploymentInfo info = look();
  EXPECT_EQ(info.state, "updating");
  EXPECT_NE(info.reason.find("cpu"), std::string::npos) << info.reason;
  EXPECT_EQ(serving("one"), 2u);
}

class DeploymentHeadRestart : public DeploymentSimulation,
                              public testing::WithParamInterface<std::chrono::milliseconds> {};

TEST_P(DeploymentHeadRestart, GoesOnWithTheUpdate) {
  start(1000);
  deploy(spec("one"));
  ASSERT_TRUE(reaches("ready"));
  deploy(spec("two"));
  sim_.run_for(GetParam());
  cluster_->head().kill();
  sim_.run_for(1s);
  cluster_->head().start();
  ASSERT_TRUE(reaches("ready")) << look().state << ": " << look().reason;
  EXPECT_EQ(serving("two"), 2u);
}

INSTANTIATE_TEST_SUITE_P(Moments, DeploymentHeadRestart, testing::Values(0ms, 2ms, 20ms, 200ms));

TEST_F(DeploymentSimulation, AnotherCountAloneRestartsNobody) {
  start(2000);
  deploy(spec("one"));
  ASSERT_TRUE(reaches("ready"));
  const DeploymentInfo before = look();
  auto more = spec("one");
  more.replicas = 3;
  deploy(more);
  ASSERT_TRUE(reaches("ready"));
  DeploymentInfo now = look();
  EXPECT_EQ(now.version, before.version);
  ASSERT_EQ(now.replicas.size(), 3u);
  EXPECT_EQ(now.replicas[0].actor, before.replicas[0].actor);
  deploy(spec("one"));
  sim_.run_for(3s);
  now = look();
  EXPECT_EQ(now.state, "ready");
  EXPECT_EQ(now.replicas.size(), 2u);
}

}  // namespace
}  // namespace troupe::sim
