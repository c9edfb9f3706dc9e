// Backups of a running head, and restores: what was promised is back, and workers follow it.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <atomic>
#include <boost/json.hpp>
#include <fstream>
#include <thread>

#include "tests/system/cluster.h"

extern char** environ;

namespace troupe::test {
namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

class BackupSystem : public testing::Test {
 protected:
  void up() {
    const Outcome started =
        cluster.up({"--workers", "2", "--cpus", "2", "--gateway-port", "-1", "--no-keeper"});
    ASSERT_EQ(started.status, 0) << started.err;
  }
  json::object backup() { return parsed(cluster.troupe({"backup", folder, "-o", "json"})); }
  json::object restore(std::vector<std::string> more = {}) {
    std::vector<std::string> all{"restore", folder, "-o", "json"};
    all.insert(all.end(), more.begin(), more.end());
    return parsed(cluster.troupe(all));
  }
  json::array list() {
    const Outcome outcome = cluster.troupe({"backup", folder, "--list", "-o", "json"});
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    return json::parse(outcome.out).as_array();
  }
  // Returns when it is gone, and its lock with it.
  bool kill_head() {
    const int head = pid_of(cluster, "head");
    if (::kill(head, SIGKILL) != 0) return false;
    return eventually([&] { return has_ended(head); });
  }
  // A process that ends loses its memory, by which we find the cluster's processes, before its
  // files; and those stay until its last thread has ended, which may not be the first.
  static bool has_ended(int process) {
    const std::string folder = "/proc/" + std::to_string(process);
    std::ifstream file{folder + "/stat"};
    std::string stat;
    std::getline(file, stat);
    const size_t state = stat.rfind(") ");
    if (state == stat.npos) return true;
    std::error_code gone;
    const auto threads = std::distance(fs::directory_iterator{folder + "/task", gone}, {});
    return stat[state + 2] == 'Z' && threads <= 1;
  }
  uint64_t epoch() {
    return json::parse(cluster.troupe({"status", "-o", "json"}).out)
        .at("epoch")
        .to_number<uint64_t>();
  }
  size_t alive_nodes() {
    const Outcome outcome = cluster.troupe({"list", "nodes", "-o", "json"});
    if (outcome.status != 0) return 0;
    const json::value nodes = json::parse(outcome.out);
    size_t alive = 0;
    for (const auto& node : nodes.as_array()) {
      if (node.at("state").as_string() == "alive") ++alive;
    }
    return alive;
  }
  fs::path metadata() const { return cluster.state() / "metadata"; }

  static json::object parsed(const Outcome& outcome) {
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    if (outcome.status != 0) return {};
    return json::parse(outcome.out).as_object();
  }

  Cluster cluster;
  const std::string folder = cluster.folder() / "backups";
};

// A head beside the cluster's record of what runs, at the port that its workers know.
class HeadByHand {
 public:
  explicit HeadByHand(const Cluster& cluster) {
    std::ifstream file{cluster.state() / "cluster.json"};
    const std::string text{std::istreambuf_iterator<char>{file}, {}};
    const auto record = json::parse(text);
    const std::string address{record.at("heads").at(0).as_string()};
    std::vector<std::string> command{std::string(TROUPE_BIN) + "/troupe",
                                     "head",
                                     "--state",
                                     cluster.state(),
                                     "--name",
                                     "head",
                                     "--port",
                                     address.substr(address.rfind(':') + 1)};
    std::vector<char*> argv;
    for (auto& argument : command) argv.push_back(argument.data());
    argv.push_back(nullptr);
    std::vector<std::string> variables = cluster.variables();
    for (char** entry = environ; *entry != nullptr; ++entry) variables.emplace_back(*entry);
    std::vector<char*> envp;
    for (auto& variable : variables) envp.push_back(variable.data());
    envp.push_back(nullptr);
    const std::string log = cluster.state() / "logs/head-by-hand.log";
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    EXPECT_EQ(::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), envp.data()), 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  ~HeadByHand() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  HeadByHand(const HeadByHand&) = delete;
  HeadByHand& operator=(const HeadByHand&) = delete;

 private:
  pid_t pid_ = -1;
};

TEST_F(BackupSystem, BringsBackWhatWasPromisedAfterTheStoreIsLost) {
  up();
  const Outcome left = cluster.program("placement_checks", {"leave"});
  ASSERT_EQ(left.status, 0) << left.err;
  const std::string group = cluster.describe("kept", "id");
  const std::string member = cluster.describe("member", "id");
  ASSERT_FALSE(group.empty());
  ASSERT_FALSE(member.empty());
  const json::object taken = backup();
  ASSERT_EQ(taken.at("number").to_number<int>(), 1);
  // After the backup: it must not be there later.
  ASSERT_EQ(cluster.program("checks", {"detached"}).status, 0);
  ASSERT_EQ(cluster.down().status, 0);

  const json::array listed = list();
  ASSERT_EQ(listed.size(), 1u);
  EXPECT_EQ(listed[0].at("state_hash"), taken.at("state_hash"));
  EXPECT_EQ(listed[0].at("time"), taken.at("time"));

  fs::remove_all(metadata());
  const json::object restored = restore();
  EXPECT_EQ(restored.at("state_hash"), taken.at("state_hash"));
  EXPECT_EQ(restored.at("number").to_number<int>(), 1);
  EXPECT_GT(restored.at("epoch").to_number<uint64_t>(), taken.at("epoch").to_number<uint64_t>());
  up();
  EXPECT_EQ(epoch(), restored.at("epoch").to_number<uint64_t>() + 1);
  EXPECT_EQ(cluster.describe("kept", "id"), group);
  EXPECT_EQ(cluster.describe("member", "id"), member);
  EXPECT_EQ(cluster.describe("for-ever", "id"), "");
  // It runs again, in the group.
  const Outcome found = cluster.program("placement_checks", {"find"});
  EXPECT_EQ(found.status, 0) << found.err;
}

// Without a raised epoch the workers, who have seen three heads start since the backup, refuse the
// fourth that begins where the backup was.
TEST_F(BackupSystem, WorkersThatLivedOnFollowTheRestoredHead) {
  up();
  ASSERT_EQ(cluster.program("checks", {"detached"}).status, 0);
  const std::string actor = cluster.describe("for-ever", "pid");
  const json::object taken = backup();
  const auto taken_epoch = taken.at("epoch").to_number<uint64_t>();
  ASSERT_TRUE(kill_head());
  for (int i = 1; i <= 3; ++i) {
    const HeadByHand head{cluster};
    ASSERT_TRUE(eventually([&] { return alive_nodes() == 2; }));
    ASSERT_EQ(epoch(), taken_epoch + static_cast<uint64_t>(i));
    const Outcome refused = cluster.troupe({"restore", folder});
    EXPECT_EQ(refused.status, 1);
    EXPECT_NE(refused.err.find("another head"), std::string::npos) << refused.err;
  }
  fs::remove_all(metadata());
  ASSERT_EQ(restore().at("state_hash"), taken.at("state_hash"));
  {
    const HeadByHand head{cluster};
    EXPECT_TRUE(eventually([&] { return alive_nodes() == 2; }));
    EXPECT_EQ(cluster.describe("for-ever", "pid"), actor) << "the actor's process lived on";
    EXPECT_EQ(cluster.program("checks", {"detached"}).out, "2\nok\n");
  }
}

// The restored head knows an earlier incarnation than the one that runs.
TEST_F(BackupSystem, AnActorThatWasRestartedSinceTheBackupRunsOnce) {
  up();
  ASSERT_EQ(cluster.program("placement_checks", {"leave"}).status, 0);
  const json::object taken = backup();
  const std::string first = cluster.describe("member", "pid");
  for (const char* incarnation : {"2", "3"}) {
    ::kill(std::atoi(cluster.describe("member", "pid").c_str()), SIGKILL);
    ASSERT_TRUE(eventually([&] {
      return cluster.describe("member", "incarnation") == incarnation &&
             cluster.describe("member", "state") == "alive";
    }));
  }
  const int before = std::atoi(cluster.describe("member", "pid").c_str());
  ASSERT_TRUE(kill_head());
  fs::remove_all(metadata());
  ASSERT_EQ(restore().at("state_hash"), taken.at("state_hash"));
  {
    const HeadByHand head{cluster};
    EXPECT_TRUE(eventually([&] { return alive_nodes() == 2; }));
    EXPECT_TRUE(eventually([&] {
      const int now = std::atoi(cluster.describe("member", "pid").c_str());
      return cluster.describe("member", "state") == "alive" && now != before && ::kill(now, 0) == 0;
    })) << cluster.troupe({"describe", "member"}).out;
    EXPECT_TRUE(eventually([&] { return ::kill(before, 0) != 0; })) << "a second one runs on";
    EXPECT_EQ(cluster.program("placement_checks", {"find"}).status, 0);
  }
}

TEST_F(BackupSystem, TakenWhileClientsWriteEachRestoresIntoAFreshFolder) {
  up();
  std::atomic<bool> done = false;
  std::thread client{[&] {
    while (!done) EXPECT_EQ(cluster.program("hello_task").status, 0);
  }};
  std::vector<json::object> taken;
  for (int i = 0; i < 5; ++i) taken.push_back(backup());
  done = true;
  client.join();
  // All in one folder, which two may not use at a time, nor has the first to be the best.
  EXPECT_EQ(list().size(), 5u);
  ASSERT_EQ(cluster.down().status, 0);
  for (const json::object& one : taken) {
    const std::string number = std::to_string(one.at("number").to_number<int>());
    const std::string fresh = cluster.folder() / ("fresh-" + number);
    const Outcome outcome =
        cluster.troupe({"restore", folder, "--number", number, "--state", fresh, "-o", "json"});
    EXPECT_EQ(parsed(outcome).at("state_hash"), one.at("state_hash"));
    EXPECT_NE(outcome.err.find("authority/"), std::string::npos) << outcome.err;
  }
  // A cluster without what it is known by is refused, and comes up with it.
  const std::string fresh = cluster.folder() / "fresh-5";
  const std::vector<std::string> up_there{"up", "--state",        fresh, "--workers", "1", "--cpus",
                                          "1",  "--gateway-port", "-1"};
  const Outcome refused = cluster.troupe(up_there);
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.err.find("copy authority/"), std::string::npos) << refused.err;
  fs::copy(cluster.state() / "authority", fs::path(fresh) / "authority",
           fs::copy_options::recursive);
  const Outcome started = cluster.troupe(up_there);
  EXPECT_EQ(started.status, 0) << started.err;
  const Outcome jobs = cluster.troupe({"list", "jobs", "--state", fresh, "-o", "json"});
  EXPECT_FALSE(json::parse(jobs.out).as_array().empty());
  EXPECT_EQ(cluster.troupe({"down", "--state", fresh}).status, 0);
}

TEST_F(BackupSystem, KeepsAsManyAsAskedFor) {
  up();
  backup();
  backup();
  const Outcome kept = cluster.troupe({"backup", folder, "--keep", "2"});
  EXPECT_EQ(kept.status, 0) << kept.err;
  const json::array listed = list();
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[0].at("number").to_number<int>(), 2);
  EXPECT_EQ(listed[1].at("number").to_number<int>(), 3);
  EXPECT_EQ(cluster.troupe({"backup", folder, "--keep", "0"}).status, 2);
  EXPECT_EQ(cluster.troupe({"backup", folder, "--list", "--keep", "1"}).status, 2);
}

TEST_F(BackupSystem, DamageOfTheLiveStoreIsNamedAndTheHintWorks) {
  up();
  ASSERT_EQ(cluster.program("checks", {"detached"}).status, 0);
  const json::object taken = backup();
  ASSERT_EQ(cluster.down().status, 0);
  fs::path damaged;
  for (const auto& entry : fs::directory_iterator{metadata()}) {
    const fs::path& path = entry.path();
    if (path.extension() != ".sst" && path.extension() != ".log") continue;
    if (damaged.empty() || fs::file_size(path) > fs::file_size(damaged)) damaged = path;
  }
  ASSERT_FALSE(damaged.empty());
  {
    std::fstream file{damaged, std::ios::in | std::ios::out | std::ios::binary};
    const auto middle = static_cast<std::streamoff>(fs::file_size(damaged) / 2);
    file.seekg(middle);
    const char byte = static_cast<char>(file.get() ^ 0x04);
    file.seekp(middle).put(byte);
  }
  const Outcome refused = cluster.troupe({"up", "--workers", "1", "--gateway-port", "-1"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.err.find(damaged.filename().string()), std::string::npos) << refused.err;
  EXPECT_NE(refused.err.find("troupe restore DIR --force"), std::string::npos) << refused.err;

  const Outcome without_force = cluster.troupe({"restore", folder});
  EXPECT_EQ(without_force.status, 1);
  EXPECT_NE(without_force.err.find("--force"), std::string::npos) << without_force.err;
  const json::object restored = restore({"--force"});
  EXPECT_EQ(restored.at("state_hash"), taken.at("state_hash"));
  EXPECT_TRUE(
      fs::exists(fs::path(restored.at("moved_aside").as_string().c_str()) / damaged.filename()));
  up();
  EXPECT_EQ(cluster.describe("for-ever", "name"), "for-ever");
}

TEST_F(BackupSystem, RefusalsSayWhatToDo) {
  const auto refusal = [&](std::vector<std::string> arguments, int status) {
    const Outcome outcome = cluster.troupe(std::move(arguments));
    EXPECT_EQ(outcome.status, status) << outcome.err;
    return outcome.err;
  };
  const auto says = [](const std::string& text, const std::string& what) {
    EXPECT_NE(text.find(what), std::string::npos) << text;
  };
  says(refusal({"backup", folder}, 5), "troupe up");
  says(refusal({"backup", folder, "--list"}, 3), folder);
  says(refusal({"restore", folder}, 3), folder);
  up();
  says(refusal({"backup", metadata() / "backups"}, 1), "inside the head's own store");
  says(refusal({"backup", cluster.state()}, 1), "choose an empty folder");
  backup();
  says(refusal({"restore", folder, "--force"}, 1), "troupe down");
  ASSERT_EQ(cluster.down().status, 0);
  // Another cluster's state folder.
  const std::string other = cluster.folder() / "other";
  ASSERT_EQ(
      cluster.troupe({"up", "--state", other, "--workers", "0", "--gateway-port", "-1"}).status, 0);
  says(refusal({"backup", folder, "--state", other}, 1), "choose another folder");
  EXPECT_EQ(cluster.troupe({"down", "--state", other}).status, 0);
  says(refusal({"restore", folder, "--state", other, "--force"}, 1), "is of cluster");
  says(refusal({"restore", folder, "--number", "9"}, 3), "--list");
}

}  // namespace
}  // namespace troupe::test
