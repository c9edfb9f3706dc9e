// The environment of a job over two real workers: variables, files, and the lines of its processes.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <regex>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

namespace fs = std::filesystem;

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != text.npos; at += part.size()) ++count;
  return count;
}

class EnvironmentSystem : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    cluster = new Cluster;
    const Outcome started = cluster->up({"--workers", "2", "--cpus", "2", "--gateway-port", "-1",
                                         "--label", "node=1", "--label", "worker-0:node=0"});
    ASSERT_EQ(started.status, 0) << started.err;
  }
  static void TearDownTestSuite() {
    delete cluster;
    cluster = nullptr;
  }
  void SetUp() override {
    folder = cluster->folder() / testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::create_directory(folder);
  }
  static Outcome check(std::vector<std::string> arguments) {
    const Outcome outcome = cluster->program("environment", std::move(arguments));
    EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
    return outcome;
  }
  fs::path make_working_folder() const {
    fs::create_directories(folder / "work/data");
    std::ofstream{folder / "work/data/text"} << "as it was";
    return folder / "work";
  }
  // A copy of the program that no worker has.
  struct Copy {
    fs::path program;
    fs::path module;
  };
  Copy copy_program() const {
    const std::string module = "libenvironment_module.so";
    for (const char* name : {"bin", "lib"}) fs::create_directory(folder / name);
    const Copy copy{folder / "bin/environment", folder / "lib" / module};
    fs::copy_file(fs::path(TROUPE_BIN) / "environment", copy.program);
    fs::copy_file(fs::path(TROUPE_LIB) / module, copy.module);
    std::ofstream{copy.module, std::ios::app} << folder;  // No worker has the same from before.
    return copy;
  }
  static Outcome run_copy(const Copy& copy, const std::string& name) {
    std::vector<std::string> variables = cluster->variables();
    variables.push_back("LD_LIBRARY_PATH=" + copy.module.parent_path().string() + ":" TROUPE_LIB);
    return run({copy.program, name, copy.module}, variables);
  }
  static size_t packages_kept(const std::string& daemon) {
    const auto place = cluster->state() / "packages" / daemon;
    return static_cast<size_t>(std::distance(fs::directory_iterator(place), {}));
  }

  static Cluster* cluster;
  fs::path folder;
};
Cluster* EnvironmentSystem::cluster = nullptr;

TEST_F(EnvironmentSystem, VariablesReachTasksAndActorsOfAllNodes) {
  check({"variables"});
}

TEST_F(EnvironmentSystem, AllProcessesOfAJobGiveAndFindNamesInItsNamespace) {
  check({"namespaces"});
}

TEST_F(EnvironmentSystem, ASubmittedJobHasTheNamespaceThatItWasGiven) {
  const std::string program = std::string(TROUPE_BIN) + "/environment";
  const auto submit = [&](std::vector<std::string> options, const std::string& name_space) {
    options.insert(options.begin(), "submit");
    options.insert(options.end(), {"--", program, "submitted_to", name_space});
    const Outcome outcome = cluster->troupe(std::move(options));
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_NE(outcome.out.find("its job was submitted to '" + name_space + "'"), std::string::npos)
        << outcome.out;
  };
  submit({"--name", "green job", "--namespace", "green"}, "green");
  EXPECT_EQ(cluster->describe("green job", "namespace"), "green");
  submit({}, "default");
}

TEST_F(EnvironmentSystem, WhatAJobCannotHaveIsRefused) {
  const Outcome outcome = check({"refused"});
  EXPECT_NE(outcome.out.find("TROUPE_STATE is Troupe's own"), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find("128 KiB together"), std::string::npos) << outcome.out;
}

TEST_F(EnvironmentSystem, AWorkingDirectoryIsSentAsItIsAndRemovedWithItsJob) {
  check({"working_dir", make_working_folder()});
  EXPECT_TRUE(eventually([] { return packages_kept("head") == 0; }));
}

TEST_F(EnvironmentSystem, TheExampleShowsIt) {
  const Outcome outcome = cluster->program("job_environment", {make_working_folder(), "data/text"});
  EXPECT_EQ(outcome.out, "Hello, as it was!\n") << outcome.err;
  EXPECT_NE(outcome.err.find(") reading data/text\n"), std::string::npos) << outcome.err;
}

TEST_F(EnvironmentSystem, CodeThatIsAtTheDriverAloneIsSent) {
  const Outcome outcome = run_copy(copy_program(), "moved");
  EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
  check({"find_kept"});
  EXPECT_TRUE(eventually([] { return packages_kept("head") == 0; }));
}

TEST_F(EnvironmentSystem, CodeThatChangedIsNotRun) {
  const Outcome outcome = run_copy(copy_program(), "changed");
  EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
  EXPECT_NE(outcome.out.find("not what it was when the job began"), std::string::npos)
      << outcome.out;
}

TEST_F(EnvironmentSystem, ASubmittedJobHasItsEnvironmentInAllItsPrograms) {
  const std::string program = std::string(TROUPE_BIN) + "/environment look COLOUR";
  const std::string script =
      "echo $COLOUR; " + program + " && rm -r " + make_working_folder().string() + " && " + program;
  const Outcome outcome =
      cluster->troupe({"submit", "--env", "COLOUR=deep blue", "--working-dir", folder / "work",
                       "--name", "blue", "--", "/bin/sh", "-c", script});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(
      outcome.out, "deep blue\n" + [] {
        std::string lines;
        for (int i = 0; i < 4; ++i) lines += "deep blue as it was\n";
        return lines;
      }());
  EXPECT_EQ(cluster->describe("blue", "state"), "succeeded");
}

TEST_F(EnvironmentSystem, WhatCannotBeSubmittedRunsNothing) {
  const auto submit = [](std::vector<std::string> options) {
    options.insert(options.begin(), "submit");
    options.insert(options.end(), {"--", "/bin/echo", "it ran"});
    const Outcome outcome = cluster->troupe(std::move(options));
    EXPECT_NE(outcome.status, 0);
    EXPECT_EQ(outcome.out, "");
    return outcome.err;
  };
  EXPECT_NE(submit({"--env", "novalue"}).find("NAME=VALUE"), std::string::npos);
  EXPECT_NE(submit({"--env", "TROUPE_X=1"}).find("Troupe's own"), std::string::npos);
  EXPECT_NE(submit({"--working-dir", "/no/such"}).find("/no/such"), std::string::npos);
  fs::create_symlink("/etc", folder / "out");
  EXPECT_NE(submit({"--working-dir", folder}).find("leads out"), std::string::npos);
}

TEST_F(EnvironmentSystem, LinesOfProcessesComeToTheDriver) {
  const Outcome outcome = check({"chatter"});
  const std::string& err = outcome.err;
  std::smatch zero, one;
  ASSERT_TRUE(std::regex_search(err, zero, std::regex("(\\d+) zero\n"))) << err;
  ASSERT_TRUE(std::regex_search(err, one, std::regex("(\\d+) one\n"))) << err;
  for (const char* line : {"from zero 0\n", "from zero 1\n"}) {
    const std::string whole = "(environment pid=" + zero[1].str() + ", worker-0) " + line;
    EXPECT_EQ(count_of(err, whole), 1U) << whole << err;
  }
  EXPECT_EQ(count_of(err, "(environment pid=" + one[1].str() + ", worker-1) from one 1\n"), 1U)
      << err;
  // Four lines of two processes or more: what the first says is shown, then that of others counted.
  const size_t shown = count_of(err, "all alike\n");
  std::smatch repeated;
  ASSERT_TRUE(std::regex_search(err, repeated,
                                std::regex("all alike \\[repeated (\\d)x across the cluster\\]\n")))
      << err;
  EXPECT_EQ(shown + std::stoul(repeated[1].str()), 4U) << err;
  EXPECT_EQ(count_of(err, ", worker-1) last words\n"), 1U) << err;
  EXPECT_EQ(count_of(err, ", worker-0) without end\n"), 1U) << err;
  EXPECT_EQ(outcome.out, "");
  EXPECT_EQ(count_of(err, " troupe actor "), 0U) << err;  // Nothing of the runtime's own.
}

TEST_F(EnvironmentSystem, TheLinesCanBeTurnedOff) {
  std::vector<std::string> variables = cluster->variables();
  const std::string program = std::string(TROUPE_BIN) + "/environment";
  variables.push_back("TROUPE_LOG_DEDUP=0");
  Outcome outcome = run({program, "chatter"}, variables);
  EXPECT_EQ(count_of(outcome.err, "all alike\n"), 4U) << outcome.err;
  variables.push_back("TROUPE_LOG_TO_DRIVER=0");
  outcome = run({program, "chatter"}, variables);
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(count_of(outcome.err, "worker-"), 0U) << outcome.err;
}

TEST_F(EnvironmentSystem, MuchOutputLosesNothingButWhatIsCounted) {
  check({"lines", "100"});
  const Outcome outcome = check({"lines", "200000"});
  EXPECT_NE(outcome.out.find(" lines, "), std::string::npos) << outcome.out;
}

// A worker that is started anew finds what it had.
TEST(EnvironmentSystemAlone, AWorkersPackagesSurviveIt) {
  Cluster cluster;
  const fs::path work = cluster.folder() / "work";
  fs::create_directories(work / "data");
  std::ofstream{work / "data/text"} << "as it was";
  const std::vector<std::string> arguments{
      "--workers", "2",       "--cpus", "2",       "--gateway-port",
      "-1",        "--label", "node=1", "--label", "worker-0:node=0"};
  ASSERT_EQ(cluster.up(arguments).status, 0);
  const auto submit = [&] {
    return cluster.troupe({"submit", "--env", "A=b", "--working-dir", work, "--",
                           std::string(TROUPE_BIN) + "/environment", "look", "A"});
  };
  EXPECT_EQ(submit().out, "b as it was\nb as it was\n");
  ASSERT_EQ(cluster.down().status, 0);
  ASSERT_EQ(cluster.up(arguments).status, 0);
  const auto log_of = [&](const std::string& worker) {
    std::ifstream log{cluster.state() / "logs" / (worker + ".log")};
    return std::string{std::istreambuf_iterator<char>(log), {}};
  };
  const size_t before = count_of(log_of("worker-0"), " package_fetched ");
  EXPECT_EQ(before, 1U);
  EXPECT_EQ(submit().out, "b as it was\nb as it was\n");
  EXPECT_EQ(count_of(log_of("worker-0"), " package_fetched "), before);
}

TEST(EnvironmentSystemAlone, ACacheThatCannotBeWrittenFailsTheTask) {
  Cluster cluster;
  fs::create_directories(cluster.state() / "packages");
  std::ofstream{cluster.state() / "packages/worker-0"} << "a file in its place";
  ASSERT_EQ(::chmod(cluster.state().c_str(), 0700), 0);
  ASSERT_EQ(cluster.up({"--workers", "1", "--gateway-port", "-1", "--label", "node=0"}).status, 0);
  const fs::path work = cluster.folder() / "work";
  fs::create_directories(work);
  const Outcome outcome = cluster.troupe({"submit", "--working-dir", work, "--",
                                          std::string(TROUPE_BIN) + "/environment", "look", "A"});
  EXPECT_NE(outcome.status, 0);
  EXPECT_NE(outcome.err.find("packages/worker-0"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace troupe::test
