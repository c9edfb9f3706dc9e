// `troupe drill`: each drill passes, fails when a promise is not kept, and leaves nothing behind.
// The documented times are for whoever runs a drill on a machine that does nothing else; here they
// are loose, for other tests run beside these.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <boost/json.hpp>
#include <fstream>

#include "tests/system/cluster.h"

extern char** environ;

namespace troupe::test {
namespace {

namespace json = boost::json;
namespace fs = std::filesystem;

// A folder for temporary files, in which all that a drill makes must lie, and nothing at its end.
class Drill : public testing::TestWithParam<const char*> {
 protected:
  Drill() {
    std::string pattern = "/tmp/troupe-test-XXXXXX";
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  ~Drill() override {
    EXPECT_TRUE(eventually([this] { return fs::is_empty(folder_); })) << "files are left behind";
    EXPECT_TRUE(eventually([this] { return processes() == 0; })) << "processes are left behind";
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
  }

  std::vector<std::string> variables() const { return {"TMPDIR=" + folder_.string()}; }
  static std::vector<std::string> command(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {std::string(TROUPE_BIN) + "/troupe", "drill"});
    return arguments;
  }
  Outcome drill(std::vector<std::string> arguments) const {
    return run(command(std::move(arguments)), variables(), std::chrono::seconds(240));
  }
  // Those whose command line names the folder.
  size_t processes() const {
    size_t count = 0;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      std::ifstream file{entry.path() / "cmdline", std::ios::binary};
      const std::string line{std::istreambuf_iterator<char>{file}, {}};
      if (line.find(folder_.string() + "/") != line.npos) ++count;
    }
    return count;
  }
  // Starts a drill, and ends it by `signal` when its cluster has begun to start.
  int end_by(int signal) const {
    std::vector<std::string> all = command({"head-kill"});
    std::vector<char*> argv;
    for (auto& argument : all) argv.push_back(argument.data());
    argv.push_back(nullptr);
    std::vector<std::string> texts = variables();
    for (char** entry = environ; *entry != nullptr; ++entry) texts.emplace_back(*entry);
    std::vector<char*> envp;
    for (auto& text : texts) envp.push_back(text.data());
    envp.push_back(nullptr);
    pid_t pid = 0;
    EXPECT_EQ(::posix_spawn(&pid, argv[0], nullptr, nullptr, argv.data(), envp.data()), 0);
    EXPECT_TRUE(eventually([this] { return processes() >= 3; }));
    ::kill(pid, signal);
    int status = 0;
    ::waitpid(pid, &status, 0);
    return status;
  }

  fs::path folder_;
};

TEST_P(Drill, Passes) {
  const Outcome outcome = drill({GetParam(), "--rounds", "1", "--detect-within", "20",
                                 "--recover-within", "60", "-o", "json"});
  EXPECT_EQ(outcome.status, 0) << outcome.out << outcome.err;
  ASSERT_FALSE(outcome.out.empty()) << outcome.err;
  const json::value rows = json::parse(outcome.out);
  ASSERT_EQ(rows.as_array().size(), 1u);
  const json::value& row = rows.at(0);
  EXPECT_EQ(row.at("drill").as_string(), GetParam());
  EXPECT_EQ(row.at("result").as_string(), "pass") << outcome.out;
  EXPECT_EQ(row.at("lost").to_number<int>(), 0);
  EXPECT_GT(row.at("acknowledged").to_number<int>(), 20);
  EXPECT_GE(row.at("recover_s").to_number<double>(), 0);  // In whole milliseconds.
  EXPECT_TRUE(row.at("why").as_array().empty());
  RecordProperty("row", outcome.out);
}
INSTANTIATE_TEST_SUITE_P(All, Drill,
                         testing::Values("head-kill", "worker-kill", "partition", "disk-full",
                                         "restore"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

class DrillRefusals : public Drill {};

TEST_F(DrillRefusals, APromiseThatIsNotKeptFails) {
  const Outcome late = drill({"head-kill", "--rounds", "1", "--recover-within", "0.001"});
  EXPECT_EQ(late.status, 1);
  EXPECT_NE(late.out.find("fail"), std::string::npos) << late.out << late.err;
  EXPECT_NE(late.out.find("it was whole too late"), std::string::npos) << late.out;
  const Outcome unseen = drill(
      {"worker-kill", "--rounds", "1", "--detect-within", "0.0001", "--recover-within", "60"});
  EXPECT_EQ(unseen.status, 1);
  EXPECT_NE(unseen.out.find("it was noticed too late"), std::string::npos) << unseen.out;
}

TEST_F(DrillRefusals, ADrillThatIsEndedLeavesNothing) {
  const int interrupted = end_by(SIGINT);
  EXPECT_TRUE(WIFEXITED(interrupted));
  EXPECT_EQ(WEXITSTATUS(interrupted), 1);
  EXPECT_TRUE(fs::is_empty(folder_)) << "it was back before all was gone";
}

TEST_F(DrillRefusals, ADrillThatIsKilledLeavesNothing) {
  EXPECT_TRUE(WIFSIGNALED(end_by(SIGKILL)));
}

TEST_F(DrillRefusals, AnUnknownDrillIsAUsageError) {
  EXPECT_EQ(drill({"flood"}).status, 2);
  EXPECT_EQ(drill({"head-kill", "--rounds", "0"}).status, 2);
}

}  // namespace
}  // namespace troupe::test
