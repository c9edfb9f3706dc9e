// What is promised stays so, whoever dies. TROUPE_KILLS: how often (default 50, fewer under a
// sanitizer).
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>

#include <boost/json.hpp>
#include <cstdlib>
#include <fstream>
#include <random>
#include <thread>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

namespace json = boost::json;
using namespace std::chrono_literals;

class Recovery : public testing::Test {
 protected:
  std::string state_of(const std::string& node) {
    const json::value nodes = json::parse(cluster.troupe({"list", "nodes", "-o", "json"}).out);
    for (const json::value& item : nodes.as_array()) {
      if (item.at("name").as_string() == node) return std::string(item.at("state").as_string());
    }
    return {};
  }
  void stand_still(const std::string& daemon, std::chrono::milliseconds time) {
    const int pid = cluster.recorded_pid(daemon);
    ::kill(pid, SIGSTOP);
    ::poll(nullptr, 0, static_cast<int>(time.count()));
    ::kill(pid, SIGCONT);
  }
  // True once another process than `before` answers.
  bool is_back(const std::string& daemon, int before) {
    return eventually([&] {
      const int pid = cluster.recorded_pid(daemon);
      return pid != before && cluster.troupe({"status"}).status == 0;
    });
  }

  Cluster cluster;
};

TEST_F(Recovery, WhatDiesIsStartedAgain) {
  ASSERT_EQ(cluster.up().status, 0);
  for (const char* daemon : {"head", "worker-1", "gateway"}) {
    const int before = cluster.recorded_pid(daemon);
    ASSERT_GT(before, 0);
    ::kill(before, SIGKILL);
    EXPECT_TRUE(is_back(daemon, before)) << daemon;
  }
  EXPECT_TRUE(eventually([&] {
    const auto nodes = json::parse(cluster.troupe({"list", "nodes", "-o", "json"}).out);
    return std::ranges::all_of(nodes.as_array(), [](const json::value& node) {
      return node.at("state").as_string() == "alive";
    });
  }));
  EXPECT_EQ(cluster.program("hello_task").status, 0);
  EXPECT_NE(cluster.troupe({"status"}).out.find("watches"), std::string::npos);
  ::kill(cluster.recorded_pid("keeper"), SIGKILL);
  EXPECT_TRUE(eventually([&] {
    return cluster.troupe({"status"}).out.find("what dies now stays so") != std::string::npos;
  }));
}

TEST_F(Recovery, WithoutAKeeperNothingIsStartedAgain) {
  ASSERT_EQ(cluster.up({"--workers", "1", "--gateway-port", "-1", "--no-keeper"}).status, 0);
  EXPECT_EQ(cluster.recorded_pid("keeper"), 0);
  ::kill(cluster.recorded_pid("head"), SIGKILL);
  EXPECT_TRUE(eventually([&] { return cluster.troupe({"status"}).status != 0; }));
  const Outcome again = cluster.up({"--workers", "1", "--gateway-port", "-1"});
  EXPECT_NE(again.status, 0);
  EXPECT_NE(again.err.find("troupe down"), std::string::npos) << again.err;
}

TEST_F(Recovery, ADaemonThatDiesAtOnceIsTriedLessAndLess) {
  ASSERT_EQ(cluster.up({"--workers", "1", "--gateway-port", "-1"}).status, 0);
  // A head that cannot start: its store is taken away.
  const auto metadata = cluster.state() / "metadata";
  std::filesystem::rename(metadata, cluster.state() / "aside");
  std::ofstream{metadata} << "no folder";
  const int before = cluster.recorded_pid("head");
  ::kill(before, SIGKILL);
  EXPECT_TRUE(eventually([&] {
    return cluster.log_of("keeper").find("again_in_ms=800") != std::string::npos;
  })) << cluster.log_of("keeper");
  std::filesystem::remove(metadata);
  std::filesystem::rename(cluster.state() / "aside", metadata);
  EXPECT_TRUE(is_back("head", before)) << cluster.log_of("keeper");
}

TEST_F(Recovery, AWorkerThatIsKilledIsMissedAtOnce) {
  ASSERT_EQ(cluster.up({"--workers", "2", "--gateway-port", "-1", "--no-keeper"}).status, 0);
  ::kill(cluster.recorded_pid("worker-1"), SIGKILL);
  // Long before its heartbeats are missed.
  EXPECT_TRUE(eventually([&] { return state_of("worker-1") == "dead"; }, 2s));
  EXPECT_NE(cluster.log_of("head").find("nobody listens on"), std::string::npos);
}

TEST_F(Recovery, AProcessThatStoodStillForAMomentIsNotDead) {
  ASSERT_EQ(cluster.up({"--workers", "2", "--gateway-port", "-1"}).status, 0);
  stand_still("worker-1", 1500ms);
  // The head hears nobody meanwhile, for longer than it waits for a silent node.
  stand_still("head", 7s);
  EXPECT_TRUE(eventually([&] {
    return cluster.log_of("head").find("head_was_stalled") != std::string::npos &&
           state_of("worker-0") == "alive" && state_of("worker-1") == "alive";
  }));
  EXPECT_EQ(cluster.log_of("head").find("node_lost"), std::string::npos) << cluster.log_of("head");
  stand_still("worker-1", 8s);
  EXPECT_TRUE(eventually([&] {
    return cluster.log_of("head").find("was not heard of") != std::string::npos &&
           state_of("worker-1") == "alive";
  })) << cluster.log_of("head");
}

TEST_F(Recovery, ADrainedNodeIsLeftByWhatCanLeaveAndTakesNothingNew) {
  ASSERT_EQ(cluster
                .up({"--workers", "2", "--gateway-port", "-1", "--label", "worker-0:zone=a",
                     "--label", "worker-1:zone=b"})
                .status,
            0);
  Outcome driven;
  std::thread driver{[&] {
    driven = cluster.program("recovery", {cluster.folder().string(), "drain"});
  }};
  const auto actors_there = [&] { return cluster.describe("worker-1", "actors"); };
  EXPECT_TRUE(eventually([&] { return actors_there() == "2"; }));
  Outcome late;
  EXPECT_TRUE(eventually([&] {  // The slots leave when their tasks have ended.
    late = cluster.troupe({"drain", "worker-1", "--timeout", "1"});
    return late.status != 0 &&
           late.err.find("still has 1 actors and 0 slots: precious") != std::string::npos;
  })) << late.err;
  // A head that comes back remembers it.
  const int before = cluster.recorded_pid("head");
  ::kill(before, SIGKILL);
  EXPECT_TRUE(is_back("head", before));
  EXPECT_TRUE(eventually([&] { return state_of("worker-1") == "draining"; }));
  std::ofstream{cluster.folder() / "let_go"} << "now";
  const Outcome drained = cluster.troupe({"drain", "worker-1", "--timeout", "20"});
  EXPECT_EQ(drained.status, 0) << drained.err;
  EXPECT_EQ(state_of("worker-1"), "drained");
  EXPECT_EQ(cluster.troupe({"drain", "worker-1", "--undo"}).status, 0);
  EXPECT_EQ(state_of("worker-1"), "alive");
  std::ofstream{cluster.folder() / "stop"} << "now";
  driver.join();
  EXPECT_EQ(driven.status, 0) << driven.out << driven.err;
  const Outcome unknown = cluster.troupe({"drain", "worker-7"});
  EXPECT_NE(unknown.status, 0);
  EXPECT_NE(unknown.err.find("troupe list nodes"), std::string::npos) << unknown.err;
}

TEST_F(Recovery, NoPromiseIsLostWhenTheHeadIsKilled) {
  ASSERT_EQ(cluster.up({"--workers", "2", "--gateway-port", "-1"}).status, 0);
  Outcome driven;
  std::thread driver{[&] {
    const std::chrono::seconds limit{120 + 2 * kills_wanted(KILLS)};
    driven = cluster.program("recovery", {cluster.folder().string()}, limit);
  }};
  std::minstd_rand random{7};
  std::uniform_int_distribution<int> wait_ms{1, 300};
  int kills = 0;
  for (; kills < kills_wanted(KILLS); ++kills) {
    const int before = cluster.recorded_pid("head");
    ::kill(before, SIGKILL);
    if (!is_back("head", before)) break;
    ::poll(nullptr, 0, wait_ms(random));  // The instant.
  }
  EXPECT_EQ(kills, kills_wanted(KILLS));
  std::ofstream{cluster.folder() / "stop"} << "now";
  driver.join();
  EXPECT_EQ(driven.status, 0) << driven.out << driven.err;
  RecordProperty("done", driven.out);
}

}  // namespace
}  // namespace troupe::test
