// What programs do with objects, over a real cluster of two workers with small stores.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cstdio>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

class ObjectsSystem : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster = new Cluster;
    const Outcome started = cluster->up(
        {"--workers", "2", "--cpus", "4", "--store-mib", "128", "--gateway-port", "-1"});
    ASSERT_EQ(started.status, 0) << started.err;
  }
  static void TearDownTestSuite() {
    delete cluster;
    cluster = nullptr;
  }
  static void check(const std::string& name) {
    const Outcome outcome = cluster->program("objects", {name});
    EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
    // What the program had is gone with it.
    EXPECT_TRUE(eventually([] { return store_used_mib() == "00"; })) << store_used_mib();
  }
  static std::string store_used_mib() {
    return cluster->describe("worker-0", "store_used_mib") +
           cluster->describe("worker-1", "store_used_mib");
  }
  static Cluster* cluster;
};
Cluster* ObjectsSystem::cluster = nullptr;

// The program `objects hold`, or another that holds some until this goes.
class HeldObjects {
 public:
  explicit HeldObjects(Cluster& of, std::string name = "hold") {
    int in[2], out[2];
    EXPECT_EQ(::pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
    posix_spawn_file_actions_t files;
    ::posix_spawn_file_actions_init(&files);
    ::posix_spawn_file_actions_adddup2(&files, in[0], 0);
    ::posix_spawn_file_actions_adddup2(&files, out[1], 1);
    std::vector<std::string> variables = of.variables();
    std::vector<char*> environment;
    for (std::string& variable : variables) environment.push_back(variable.data());
    environment.push_back(nullptr);
    std::string program = std::string(TROUPE_BIN) + "/objects";
    char* arguments[] = {program.data(), name.data(), nullptr};
    EXPECT_EQ(::posix_spawn(&pid_, program.c_str(), &files, nullptr, arguments, environment.data()),
              0);
    ::posix_spawn_file_actions_destroy(&files);
    ::close(in[0]);
    ::close(out[1]);
    in_ = in[1];
    out_ = ::fdopen(out[0], "r");
  }
  HeldObjects(const HeldObjects&) = delete;
  HeldObjects& operator=(const HeldObjects&) = delete;
  ~HeldObjects() {
    ::close(in_);
    int status = 1;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    EXPECT_EQ(status, 0);
    std::fclose(out_);
  }
  std::string line() {
    char buffer[256] = {};
    if (std::fgets(buffer, sizeof buffer, out_) == nullptr) return {};
    std::string text = buffer;
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
  }

 private:
  pid_t pid_ = 0;
  int in_ = -1;
  std::FILE* out_ = nullptr;
};

TEST_F(ObjectsSystem, WaitGivesAsManyAsWereAskedFor) {
  check("wait");
}
TEST_F(ObjectsSystem, ObjectsOfOthersAreWaitedForWithoutFetchingThem) {
  check("wait_borrowed");
}
TEST_F(ObjectsSystem, CallbacksComeWhenAnObjectIsReadyAndWhenItIsFreed) {
  check("callbacks");
}
TEST_F(ObjectsSystem, ManyRefsAreReadAtOnce) {
  check("many_refs");
}
TEST_F(ObjectsSystem, ViewsShowObjectsInPlace) {
  check("views");
}
TEST_F(ObjectsSystem, ViewsOutliveTheOwnerAndItsRefs) {
  check("views_elsewhere");
}
TEST_F(ObjectsSystem, ArraysAreBuiltInPlace) {
  check("building");
}
TEST_F(ObjectsSystem, FreedObjectsAreNotFound) {
  check("free");
}

TEST_F(ObjectsSystem, LargeArraysExample) {
  const Outcome outcome = cluster->program("large_arrays", {"1000001"});
  EXPECT_EQ(outcome.out, "mean 500000, largest 1e+06\nfreed\n") << outcome.err;
}

TEST_F(ObjectsSystem, TheExampleOfTheirLifeRuns) {
  const Outcome outcome = cluster->program("object_control");
  EXPECT_EQ(outcome.out,
            "ready: 1 of 3\nthe third has 30 numbers\npinned, read in place: 3000\n"
            "freed: not_found, the others: 2000\n")
      << outcome.err;
}

TEST_F(ObjectsSystem, AreListedWithWhoHoldsThem) {
  HeldObjects held{*cluster};
  const std::string large = held.line();
  const std::string made = held.line();
  ASSERT_EQ(large.size(), 32u);
  const Outcome json = cluster->troupe({"objects", "-o", "json"});
  ASSERT_EQ(json.status, 0) << json.err;
  const auto rows = boost::json::parse(json.out).as_array();
  const auto row_of = [&](const std::string& id) -> boost::json::object {
    for (const auto& row : rows) {
      if (row.at("id").as_string() == id) return row.as_object();
    }
    ADD_FAILURE() << "no object " << id << " in " << json.out;
    return {};
  };
  const auto put = row_of(large);
  EXPECT_EQ(put.at("size_bytes").to_number<int64_t>(), 8'000'008);
  EXPECT_EQ(put.at("state").as_string(), "stored");
  EXPECT_EQ(put.at("owner_kind").as_string(), "driver");
  EXPECT_TRUE(put.at("node").as_string().starts_with("worker-")) << json.out;
  EXPECT_NE(put.at("why").as_string().find("refs in its owner"), std::string::npos) << json.out;
  EXPECT_EQ(row_of(made).at("size_bytes").to_number<int64_t>(), 3'200'008);
  const auto job = std::string(put.at("job").as_string());
  // The largest first, and no more than asked for; of one job.
  const Outcome one = cluster->troupe({"objects", "--limit", "1", "-o", "json"});
  EXPECT_EQ(boost::json::parse(one.out).as_array().size(), 1u);
  EXPECT_EQ(boost::json::parse(one.out).as_array().at(0).at("id").as_string(), large);
  EXPECT_NE(one.err.find("--limit 0"), std::string::npos);
  const Outcome own = cluster->troupe({"objects", "--job", job, "-o", "json"});
  EXPECT_NE(own.out.find(made), std::string::npos) << own.err;
  const Outcome other = cluster->troupe({"objects", "--job", std::string(32, 'a'), "-o", "json"});
  EXPECT_EQ(boost::json::parse(other.out).as_array().size(), 0u) << other.out;
  EXPECT_EQ(cluster->troupe({"objects", "--job", "nonsense"}).status, 1);
  const Outcome table = cluster->troupe({"objects"});
  EXPECT_NE(table.out.find(large), std::string::npos) << table.out;
}

TEST_F(ObjectsSystem, MessagesAreReadWhereTheyLie) {
  const Outcome outcome = cluster->program("messages", {});
  EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
}

TEST(ObjectsSystemOfASmallStore, RoomGoesToWhoeverNeedsIt) {
  Cluster cluster;
  ASSERT_EQ(
      cluster
          .up({"--workers", "1", "--store-mib", "64", "--spill-mib", "0", "--gateway-port", "-1"})
          .status,
      0);
  const Outcome outcome = cluster.program("objects", {"full_store"});
  EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
}

TEST(ObjectsSystemOfASmallStore, WhatIsLargerThanTheStoreIsRefusedAtOnce) {
  Cluster cluster;
  ASSERT_EQ(
      cluster
          .up({"--workers", "1", "--store-mib", "64", "--spill-mib", "0", "--gateway-port", "-1"})
          .status,
      0);
  const Outcome outcome = cluster.program("objects", {"larger_than_the_store"});
  EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
  EXPECT_TRUE(eventually([&] { return cluster.describe("worker-0", "store_used_mib") == "0"; }))
      << "room is still taken";
}

TEST(ObjectsSystemOfASmallStore, SpilledObjectsAreListedAndRead) {
  Cluster cluster;
  ASSERT_EQ(cluster.up({"--workers", "1", "--store-mib", "64", "--gateway-port", "-1"}).status, 0);
  HeldObjects held{cluster, "hold_spilled"};
  const std::string pinned = held.line();
  ASSERT_EQ(pinned.size(), 32u);
  const Outcome json = cluster.troupe({"objects", "-o", "json"});
  const auto rows = boost::json::parse(json.out).as_array();
  EXPECT_EQ(rows.size(), 41u) << json.out;
  int spilled = 0;
  for (const auto& row : rows) {
    const auto state = row.at("state").as_string();
    if (state == "spilled") ++spilled;
    if (row.at("id").as_string() == pinned) {
      EXPECT_EQ(state, "stored") << json.out;
    }
    EXPECT_GE(row.at("size_bytes").to_number<int64_t>(), 2 << 20) << json.out;
  }
  EXPECT_GE(spilled, 10) << json.out;
  // The head hears of it with the next beat.
  EXPECT_TRUE(eventually([&] { return cluster.describe("worker-0", "store_spilled_mib") != "0"; }));
}

}  // namespace
}  // namespace troupe::test
