// Objects under pressure and between nodes, over real clusters.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

namespace fs = std::filesystem;

// Lines of all logs that name an event.
std::vector<std::string> logged(const Cluster& cluster, const std::string& event) {
  std::vector<std::string> lines;
  for (const auto& entry : fs::directory_iterator(cluster.state() / "logs")) {
    std::ifstream log{entry.path()};
    for (std::string line; std::getline(log, line);) {
      if (line.find(" " + event + " ") != line.npos) lines.push_back(line);
    }
  }
  return lines;
}

std::string label_of(int worker) {
  const std::string number = std::to_string(worker);
  return "worker-" + number + ":n=" + number;
}

TEST(TransferSystem, FourTimesTheStoreIsPutAndReadBack) {
  Cluster cluster;
  const fs::path disk = cluster.folder() / "disk";
  ASSERT_EQ(cluster
                .up({"--workers", "1", "--store-mib", "64", "--spill-mib", "512", "--spill-dir",
                     disk, "--gateway-port", "-1"})
                .status,
            0);
  const Outcome outcome = cluster.program("transfers", {"spill"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_FALSE(logged(cluster, "objects_spilled").empty());
  // The job is over, so nothing of it is on disk.
  EXPECT_TRUE(eventually([&] {
    for (const auto& entry : fs::recursive_directory_iterator(disk)) {
      if (entry.is_regular_file()) return false;
    }
    return true;
  })) << "files outlive their job";
  EXPECT_EQ(cluster.down().status, 0);
  EXPECT_TRUE(fs::is_empty(disk)) << "a worker leaves its folder behind";
}

TEST(TransferSystem, ReadersOfOneObjectServeEachOther) {
  Cluster cluster;
  ::setenv("TROUPE_LOG", "debug", 1);
  std::vector<std::string> arguments{"--workers",   "5",   "--cpus",         "2",
                                     "--store-mib", "200", "--gateway-port", "-1"};
  for (int i = 0; i < 5; ++i) {
    arguments.insert(arguments.end(), {"--label", label_of(i)});
  }
  const Outcome started = cluster.up(arguments);
  ::unsetenv("TROUPE_LOG");
  ASSERT_EQ(started.status, 0) << started.err;
  const Outcome outcome = cluster.program("transfers", {"broadcast"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const std::string home = outcome.out.substr(0, outcome.out.find('\n'));
  const auto pulls = logged(cluster, "object_pulled");
  EXPECT_EQ(pulls.size(), 4u);
  size_t from_home = 0;
  for (const std::string& line : pulls) {
    if (line.find("source=" + home) != line.npos) ++from_home;
  }
  EXPECT_GE(from_home, 1u);
  EXPECT_LE(from_home, 2u) << "the object's node served more than two of four";

  const Outcome local = cluster.program("transfers", {"locality"});
  EXPECT_EQ(local.status, 0) << local.err;
  EXPECT_EQ(logged(cluster, "object_pulled").size(), 4u) << "bytes moved to a task";
}

std::vector<std::string> command_of(int pid) {
  std::ifstream file{"/proc/" + std::to_string(pid) + "/cmdline", std::ios::binary};
  std::vector<std::string> words;
  for (std::string word; std::getline(file, word, '\0');) words.push_back(word);
  return words;
}

// A worker in the place of one of `troupe up`, with a store of its own size.
class OtherWorker {
 public:
  OtherWorker(Cluster& cluster, const std::string& name, const std::string& store_mib) {
    const int before = cluster.recorded_pid(name);
    auto command = command_of(before);
    command[0] = std::string(TROUPE_BIN) + "/troupe";
    const auto size = std::ranges::find(command, "--store-mib");
    EXPECT_NE(size, command.end());
    *std::next(size) = store_mib;
    EXPECT_EQ(::kill(before, SIGTERM), 0);
    EXPECT_TRUE(eventually([&] { return command_of(before).empty(); }));
    thread_ = std::thread([this, command, variables = cluster.variables()] {
      ended_ = run(command, variables, std::chrono::seconds(200));
    });
    EXPECT_TRUE(
        eventually([&] { return cluster.describe(name, "store_capacity_mib") == store_mib; }));
    for (const int pid : cluster.processes()) {
      auto words = command_of(pid);
      if (!words.empty()) words[0] = command[0];
      if (words == command) pid_ = pid;
    }
    EXPECT_NE(pid_, 0);
  }
  ~OtherWorker() {
    if (pid_ != 0) ::kill(pid_, SIGTERM);
    thread_.join();
    EXPECT_EQ(ended_.status, 0) << ended_.err;
  }
  OtherWorker(const OtherWorker&) = delete;
  OtherWorker& operator=(const OtherWorker&) = delete;

 private:
  std::thread thread_;
  Outcome ended_;
  int pid_ = 0;
};

TEST(TransferSystem, WhatANodesStoreCanNeverTakeIsNotBroughtThere) {
  Cluster cluster;
  ASSERT_EQ(cluster
                .up({"--workers", "2", "--no-keeper", "--store-mib", "200", "--gateway-port", "-1",
                     "--label", label_of(0), "--label", label_of(1)})
                .status,
            0);
  const OtherWorker small{cluster, "worker-1", "32"};
  const Outcome outcome = cluster.program("transfers", {"small_node"});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  for (const char* worker : {"worker-0", "worker-1"}) {
    EXPECT_TRUE(eventually([&] { return cluster.describe(worker, "store_used_mib") == "0"; }))
        << worker;
  }
}

}  // namespace
}  // namespace troupe::test
