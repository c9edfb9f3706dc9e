// Three heads of one cluster: whichever dies, another one leads, and has all that was promised.
// TROUPE_KILLS: how often (default 30, fewer under a sanitizer).
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

class Heads : public testing::Test {
 protected:
  void SetUp() override {
    std::vector<std::string> arguments{"--heads", "3", "--workers", "2", "--gateway-port", "-1"};
    if (!has_keeper()) arguments.push_back("--no-keeper");
    ASSERT_EQ(cluster.up(arguments).status, 0);
    ASSERT_TRUE(all_in_sync());
  }
  virtual bool has_keeper() const { return true; }
  json::array heads() {
    const Outcome status = cluster.troupe({"status", "-o", "json"});
    if (status.status != 0) return {};
    const json::value parsed = json::parse(status.out);
    const json::value* found = parsed.as_object().if_contains("heads");
    return found != nullptr ? found->as_array() : json::array{};
  }
  std::string leader() {
    for (const json::value& head : heads()) {
      if (head.at("role").as_string() == "leads") return std::string(head.at("name").as_string());
    }
    return {};
  }
  bool all_in_sync() {
    return eventually([&] {
      const json::array all = heads();
      return all.size() == 3 && std::ranges::all_of(all, [](const json::value& head) {
               return head.at("in_sync").as_bool() && head.at("role").as_string() != "away";
             });
    });
  }
  bool is_back(const std::string& daemon, int before) {
    return eventually([&] {
      const int pid = cluster.recorded_pid(daemon);
      return pid != before && pid != 0 && !leader().empty();
    });
  }
  // A driver that asks for promises all the while that `disturb` runs.
  template <class Disturb>
  void drive(Disturb disturb) {
    Outcome driven;
    std::thread driver{[&] {
      const std::chrono::seconds limit{120 + 4 * kills_wanted(KILLS)};
      driven = cluster.program("recovery", {cluster.folder().string()}, limit);
    }};
    disturb();
    std::ofstream{cluster.folder() / "stop"} << "now";
    driver.join();
    EXPECT_EQ(driven.status, 0) << driven.out << driven.err;
    RecordProperty("done", driven.out);
  }

  Cluster cluster;
};

TEST_F(Heads, NoPromiseIsLostWhenLeadersAreKilled) {
  drive([&] {
    std::minstd_rand random{11};
    std::uniform_int_distribution<int> wait_ms{1, 500};
    int kills = 0;
    for (; kills < kills_wanted(KILLS); ++kills) {
      const std::string dies = leader();
      const int before = cluster.recorded_pid(dies);
      if (before == 0) break;
      ::kill(before, SIGKILL);
      if (!is_back(dies, before)) break;
      ::poll(nullptr, 0, wait_ms(random));  // The instant.
    }
    EXPECT_EQ(kills, kills_wanted(KILLS))
        << cluster.log_of("head") << cluster.log_of("head-1") << cluster.log_of("head-2");
  });
  EXPECT_TRUE(all_in_sync());
}

TEST_F(Heads, AJobThatIsSubmittedWhileNobodyLeadsRuns) {
  const std::string dies = leader();
  const int before = cluster.recorded_pid(dies);
  ASSERT_GT(before, 0);
  ::kill(before, SIGKILL);
  const std::string program = std::string(TROUPE_BIN) + "/parallel_pi";
  const Outcome ran = cluster.troupe({"submit", "--name", "pi", "--", program, "4", "1000"});
  EXPECT_EQ(ran.status, 0) << ran.out << ran.err;
  EXPECT_EQ(cluster.describe("pi", "state"), "succeeded");
  EXPECT_TRUE(is_back(dies, before));
}

TEST_F(Heads, AHeadThatStandsStillIsReplacedAndComesBack) {
  drive([&] {
    for (int round = 0; round < 2; ++round) {
      const std::string still = leader();
      const int pid = cluster.recorded_pid(still);
      ::kill(pid, SIGSTOP);
      EXPECT_TRUE(eventually([&] {
        const json::array all = heads();
        return !all.empty() && leader() != still && leader() != "";
      })) << cluster.log_of("head-1");
      ::kill(pid, SIGCONT);
      // It finds out, ends, and stands by in a new life.
      EXPECT_TRUE(is_back(still, pid)) << cluster.log_of(still);
      EXPECT_TRUE(all_in_sync());
    }
  });
}

TEST_F(Heads, TheLeadIsHandedOver) {
  drive([&] {
    const Outcome nobody = cluster.troupe({"head", "transfer", "head-7"});
    EXPECT_NE(nobody.status, 0);
    EXPECT_NE(nobody.err.find("in sync: head"), std::string::npos) << nobody.err;
    for (const char* to : {"head-2", "head-1", "head"}) {
      const std::string from = leader();
      const int before = cluster.recorded_pid(from);
      const Outcome handed = cluster.troupe({"head", "transfer", to});
      EXPECT_EQ(handed.status, 0) << handed.err;
      EXPECT_TRUE(eventually([&] { return leader() == to; })) << cluster.log_of(to);
      EXPECT_TRUE(is_back(from, before));
      EXPECT_TRUE(all_in_sync());
    }
  });
}

TEST_F(Heads, TheyOutliveTheirCoordinator) {
  drive([&] {
    const int before = cluster.recorded_pid("etcd");
    ASSERT_GT(before, 0);
    ::kill(before, SIGKILL);
    EXPECT_TRUE(eventually([&] { return cluster.recorded_pid("etcd") != before; }));
    const std::string dies = leader();
    const int head = cluster.recorded_pid(dies);
    ::kill(head, SIGKILL);
    EXPECT_TRUE(is_back(dies, head)) << cluster.log_of("etcd");
    EXPECT_TRUE(all_in_sync());
  });
}

TEST_F(Heads, TheirStateIsKeptAndIsNotThatOfASingleHead) {
  const auto epoch = [&] {
    return json::parse(cluster.troupe({"status", "-o", "json"}).out)
        .at("epoch")
        .to_number<uint64_t>();
  };
  const uint64_t before = epoch();
  ASSERT_EQ(cluster.down().status, 0);
  const Outcome alone = cluster.up({"--workers", "1", "--gateway-port", "-1"});
  EXPECT_NE(alone.status, 0);
  EXPECT_NE(alone.err.find("one head of several"), std::string::npos) << alone.err;
  ASSERT_EQ(cluster.up({"--heads", "3", "--workers", "2", "--gateway-port", "-1"}).status, 0);
  EXPECT_TRUE(all_in_sync());
  EXPECT_GT(epoch(), before);
}

// Nobody brings back a head that is gone.
class HeadsWithoutKeeper : public Heads {
  bool has_keeper() const override { return false; }
};

TEST_F(HeadsWithoutKeeper, AnActorGoesOnFromItsCheckpointAfterTheLeadersMachineIsLost) {
  Outcome driven;
  std::thread driver{[&] {
    driven = cluster.program("checkpoints", {"head_lost", cluster.folder().string()});
  }};
  const auto lose_leader = [&] {
    EXPECT_TRUE(eventually([&] { return std::filesystem::exists(cluster.folder() / "kept"); }));
    const std::string dies = leader();
    const int pid = cluster.recorded_pid(dies);
    ASSERT_GT(pid, 0);
    ::kill(pid, SIGKILL);
    const std::string suffix = dies == "head" ? "" : "-" + dies;
    for (const std::string& kept :
         {"metadata" + suffix, "checkpoints/" + dies, "packages/" + dies}) {
      EXPECT_GT(std::filesystem::remove_all(cluster.state() / kept), 0U) << kept;
    }
    EXPECT_TRUE(eventually([&] { return !leader().empty() && leader() != dies; }));
    std::ofstream{cluster.folder() / "killed"} << "now";
  };
  lose_leader();
  driver.join();
  EXPECT_EQ(driven.status, 0) << driven.out << driven.err;
}

// What a backup brings back begins anew: as one head, and then as several.
TEST_F(Heads, ABackupIsRestored) {
  ASSERT_EQ(cluster.program("hello_task").status, 0);
  const auto jobs = json::parse(cluster.troupe({"list", "jobs", "-o", "json"}).out);
  ASSERT_FALSE(jobs.as_array().empty());
  const std::string kept{jobs.at(0).at("id").as_string()};
  const std::string folder = cluster.folder() / "backups";
  const Outcome backup = cluster.troupe({"backup", folder});
  ASSERT_EQ(backup.status, 0) << backup.err;
  const Outcome early = cluster.troupe({"restore", folder, "--force"});
  EXPECT_NE(early.status, 0);
  ASSERT_EQ(cluster.down().status, 0);
  const Outcome restored = cluster.troupe({"restore", folder, "--force"});
  ASSERT_EQ(restored.status, 0) << restored.err;
  const auto has_kept = [&] {
    return cluster.troupe({"list", "jobs", "-o", "json"}).out.find(kept) != std::string::npos;
  };
  const Outcome alone = cluster.up({"--workers", "1", "--gateway-port", "-1"});
  ASSERT_EQ(alone.status, 0) << alone.err;
  EXPECT_TRUE(has_kept());
  ASSERT_EQ(cluster.down().status, 0);
  const Outcome several =
      cluster.up({"--heads", "3", "--head-lease", "5", "--workers", "1", "--gateway-port", "-1"});
  ASSERT_EQ(several.status, 0) << several.err;
  EXPECT_TRUE(all_in_sync());
  // As etcd granted it; the heads before, in the same logs, had the default.
  const std::string log = cluster.log_of(leader());
  EXPECT_NE(log.find("lease_s=5"), std::string::npos) << log;
  EXPECT_TRUE(has_kept());
}

}  // namespace
}  // namespace troupe::test
