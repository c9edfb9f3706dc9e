// Actors whose state is kept go on from it, whoever dies.
#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <thread>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

class CheckpointsSystem : public testing::Test {
 protected:
  void start(const std::vector<std::string>& more = {}) {
    std::vector<std::string> arguments{"--workers",        "2", "--gateway-port", "-1",
                                       "--checkpoint-mib", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Outcome started = cluster.up(arguments);
    ASSERT_EQ(started.status, 0) << started.err;
  }
  void check(const std::string& name, const std::string& where = {}) {
    const Outcome outcome = cluster.program("checkpoints", {name, where});
    EXPECT_EQ(outcome.status, 0) << name << ": " << outcome.err << outcome.out;
  }
  // Runs it beside what the test does to the cluster; its output.
  template <class Meanwhile>
  std::string check_while(const std::string& name, Meanwhile meanwhile) {
    Outcome driven;
    std::thread driver{[&] {
      driven = cluster.program("checkpoints", {name, cluster.folder().string()});
    }};
    meanwhile();
    driver.join();
    EXPECT_EQ(driven.status, 0) << name << ": " << driven.err << driven.out;
    return driven.out;
  }
  // What the program wrote into the file of this name, once it is there.
  std::string told(const std::string& name) const {
    const fs::path path = cluster.folder() / name;
    EXPECT_TRUE(eventually([&] { return fs::exists(path); })) << name;
    std::string text;
    std::ifstream{path} >> text;
    return text;
  }
  std::vector<fs::path> kept() const {
    std::vector<fs::path> files;
    for (const auto& entry : fs::directory_iterator(cluster.state() / "checkpoints" / "head")) {
      files.push_back(entry.path());
    }
    return files;
  }

  Cluster cluster;
};

TEST_F(CheckpointsSystem, AnActorGoesOnFromTheLastOne) {
  start();
  check("on_demand");
  check("light");
  check("by_interval");
  check("by_itself");
  check("plugin", std::string(TROUPE_LIB) + "/libshelf.so");
  // Their jobs have ended.
  EXPECT_TRUE(eventually([&] { return kept().empty(); }));
}

TEST_F(CheckpointsSystem, WhatGoesWrongIsSaidAndKeepsTheOneBefore) {
  start();
  check("trouble");
  check("bad_load");
  const std::string said = cluster.describe("unlucky", "reason");
  EXPECT_NE(said.find("restore from checkpoint 1: no glasses"), std::string::npos) << said;
  EXPECT_TRUE(eventually([&] { return kept().empty(); }));
}

TEST_F(CheckpointsSystem, WhenItsNodeDiesItGoesOnElsewhere) {
  start({"--no-keeper"});  // Which would bring the node back.
  check_while("node_killed", [&] {
    const std::string node = told("kill");
    const int pid = cluster.recorded_pid(cluster.describe(node, "name"));
    ASSERT_GT(pid, 0) << node;
    ::kill(pid, SIGKILL);
  });
}

TEST_F(CheckpointsSystem, WhenTheHeadDiesOrItsNodeIsDrained) {
  start();
  check_while("head_killed", [&] {
    const int before = cluster.recorded_pid(told("kill"));
    ASSERT_GT(before, 0);
    ::kill(before, SIGKILL);
    EXPECT_TRUE(eventually([&] {
      return cluster.recorded_pid("head") != before && cluster.troupe({"status"}).status == 0;
    }));
    std::ofstream{cluster.folder() / "killed"} << "now";
  });
  check_while("drained", [&] {
    const std::string node = told("drain");
    const Outcome drained = cluster.troupe({"drain", node, "--timeout", "30"});
    EXPECT_EQ(drained.status, 0) << drained.err;
  });
}

TEST_F(CheckpointsSystem, WhatIsDamagedOrLostIsNeverTakenForNothing) {
  start();
  const auto spoil = [&](auto how) {
    const std::string said = check_while("spoilt", [&] {
      told("kept");
      ASSERT_EQ(kept().size(), 1U);
      how(kept().front());
      std::ofstream{cluster.folder() / "spoilt"} << "now";
    });
    fs::remove(cluster.folder() / "kept");
    fs::remove(cluster.folder() / "spoilt");
    EXPECT_TRUE(eventually([&] { return kept().empty(); }));
    return said;
  };
  std::string hash;
  const std::string damaged = spoil([&](const fs::path& file) {
    hash = file.filename();
    std::fstream bytes{file};
    bytes.seekp(-1, std::ios::end);
    bytes.put('z');
  });
  EXPECT_NE(damaged.find("in the place of " + hash), std::string::npos) << damaged;
  EXPECT_NE(damaged.find("checkpoint 1"), std::string::npos) << damaged;
  const std::string lost = spoil([](const fs::path& file) { fs::remove(file); });
  EXPECT_NE(lost.find("is not at this head"), std::string::npos) << lost;
}

TEST_F(CheckpointsSystem, DescribeShowsIt) {
  start();
  check_while("described", [&] {
    told("described");
    const std::string shown = cluster.describe("described", "checkpoint");
    EXPECT_TRUE(shown.starts_with("2, ")) << shown;
    EXPECT_NE(shown.find(" s old, "), std::string::npos) << shown;
    EXPECT_NE(shown.find(" bytes, of incarnation 1"), std::string::npos) << shown;
    std::ofstream{cluster.folder() / "seen"} << "now";
  });
}

}  // namespace
}  // namespace troupe::test
