// The troupe tool: exit codes, refusals, and that nothing is left behind.
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <fstream>
#include <thread>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

TEST(CliSystem, ExitCodesTellWhatKindOfTroubleItWas) {
  Cluster cluster;
  EXPECT_EQ(cluster.troupe({"version"}).status, 0);
  EXPECT_EQ(cluster.troupe({"no-such-command"}).status, 2);
  EXPECT_EQ(cluster.troupe({"list", "no-such-kind"}).status, 2);
  const Outcome unreachable = cluster.troupe({"status"});
  EXPECT_EQ(unreachable.status, 5);
  EXPECT_NE(unreachable.err.find("troupe up"), std::string::npos) << unreachable.err;
  ASSERT_EQ(cluster.up().status, 0);
  EXPECT_EQ(cluster.troupe({"status"}).status, 0);
  EXPECT_EQ(cluster.troupe({"describe", "nobody"}).status, 3);
  EXPECT_EQ(cluster.troupe({"logs", "nobody"}).status, 3);
  EXPECT_EQ(cluster.troupe({"undeploy", "nobody"}).status, 3);
}

TEST(CliSystem, ListsInEveryFormat) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  ASSERT_EQ(cluster.program("hello_task").status, 0);
  for (const char* kind : {"nodes", "actors", "jobs", "deployments"}) {
    const Outcome json = cluster.troupe({"list", kind, "-o", "json"});
    EXPECT_EQ(json.status, 0) << json.err;
    EXPECT_TRUE(boost::json::parse(json.out).is_array()) << json.out;
    EXPECT_EQ(cluster.troupe({"list", kind, "-o", "yaml"}).status, 0);
    EXPECT_EQ(cluster.troupe({"list", kind}).status, 0);
  }
  const auto nodes = boost::json::parse(cluster.troupe({"list", "nodes", "-o", "json"}).out);
  ASSERT_EQ(nodes.as_array().size(), 2u);
  for (const auto& node : nodes.as_array()) EXPECT_EQ(node.at("state").as_string(), "alive");
  const auto jobs = boost::json::parse(cluster.troupe({"list", "jobs", "-o", "json"}).out);
  ASSERT_EQ(jobs.as_array().size(), 1u);
  EXPECT_EQ(jobs.at(0).at("state").as_string(), "succeeded");
}

TEST(CliSystem, ASecondUpOnTheSameStateIsRefusedAndHarmsNothing) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  const Outcome second = cluster.troupe({"up"});
  EXPECT_EQ(second.status, 1);
  EXPECT_NE(second.err.find("already"), std::string::npos) << second.err;
  EXPECT_EQ(cluster.program("hello_task").status, 0);
}

TEST(CliSystem, APortInUseIsNamedAndEverythingEndsAgain) {
  const int taken = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(::bind(taken, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(::listen(taken, 1), 0);
  ASSERT_EQ(::getsockname(taken, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string port = std::to_string(ntohs(address.sin_port));
  {
    Cluster cluster;
    const Outcome refused = cluster.up({"--workers", "1", "--gateway-port", port});
    EXPECT_EQ(refused.status, 1);
    EXPECT_NE(refused.err.find(port), std::string::npos) << refused.err;
    EXPECT_NE(refused.err.find("--gateway-port 0"), std::string::npos) << refused.err;
    EXPECT_TRUE(cluster.processes().empty());
  }
  ::close(taken);
}

TEST(CliSystem, TheGatewaySpeaksHttpsWithACertificateOfTheClustersAuthority) {
  Cluster cluster;
  const Outcome refused = cluster.troupe({"up", "--gateway-https", "nonsense"});
  EXPECT_NE(refused.status, 0);
  EXPECT_NE(refused.err.find("HOST:PORT"), std::string::npos) << refused.err;
  ASSERT_EQ(cluster.up({"--workers", "1", "--gateway-port", "0", "--gateway-https", "127.0.0.1:0"})
                .status,
            0);
  const auto status = boost::json::parse(cluster.troupe({"status", "-o", "json"}).out);
  const std::string models = std::string(status.at("gateway_https").as_string()) + "/v1/models";
  const std::string authority = cluster.state() / "authority" / "authority.pem";
  std::ifstream file{cluster.state() / "gateway.key"};
  std::string key;
  std::getline(file, key);
  const auto curl = [&](std::vector<std::string> more) {
    std::vector<std::string> command{"/usr/bin/curl", "-s", "-o",
                                     "/dev/null",     "-w", "%{http_code}"};
    command.insert(command.end(), more.begin(), more.end());
    command.push_back(models);
    return run(command);
  };
  EXPECT_EQ(curl({"--cacert", authority, "-H", "Authorization: Bearer " + key}).out, "200");
  EXPECT_EQ(curl({"--cacert", authority}).out, "401");
  EXPECT_EQ(curl({"-H", "Authorization: Bearer " + key}).status, 60) << "an unknown authority";
}

TEST(CliSystem, CtrlCDuringUpLeavesNothing) {
  Cluster cluster;
  // Interrupted at different moments of the start.
  for (const int delay_ms : {0, 20, 60, 150}) {
    const std::string program = std::string(TROUPE_BIN) + "/troupe";
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::setenv("TROUPE_STATE", cluster.state().c_str(), 1);
      ::execl(program.c_str(), "troupe", "up", "--workers", "2", "--gateway-port", "0", nullptr);
      ::_exit(127);
    }
    // The moment itself is what varies; nothing below depends on where it falls.
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(delay_ms);
    while (std::chrono::steady_clock::now() < end) pause_between_looks();
    ::kill(pid, SIGINT);
    int status = 0;
    ::waitpid(pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
      EXPECT_EQ(cluster.down().status, 0);  // It was up already.
    }
    EXPECT_TRUE(eventually([&] { return cluster.processes().empty(); })) << delay_ms;
  }
}

TEST(CliSystem, CtrlCDuringDownEndsEverythingNevertheless) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  const int worker = std::atoi(cluster.describe("worker-0", "pid").c_str());
  ASSERT_GT(worker, 0);
  ASSERT_EQ(::kill(worker, SIGSTOP), 0);  // So that `down` is caught in the middle.
  std::thread interrupting{[&] {
    EXPECT_TRUE(eventually([&] { return pid_of(cluster, "gateway") == 0; }));
    if (const int down = pid_of(cluster, "down"); down > 0) ::kill(down, SIGINT);
    ::kill(worker, SIGCONT);
  }};
  const Outcome ended = cluster.down();
  interrupting.join();
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_TRUE(cluster.processes().empty());
  if (ended.status != 0) (void)cluster.down();
}

TEST(CliSystem, WorkersShareOutTheMachinesMemory) {
  const auto memory_of = [](const char* workers) {
    Cluster cluster;
    EXPECT_EQ(cluster.up({"--workers", workers, "--gateway-port", "-1"}).status, 0);
    const auto nodes = boost::json::parse(cluster.troupe({"list", "nodes", "-o", "json"}).out);
    return nodes.at(0).at("total").at("memory").to_number<double>();
  };
  const double whole = memory_of("1");
  EXPECT_GT(whole, 0);
  EXPECT_NEAR(memory_of("4"), whole / 4, 1);
}

TEST(CliSystem, StateSurvivesDownAndUp) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  const std::string id = cluster.describe("worker-0", "id");
  EXPECT_FALSE(id.empty());
  EXPECT_EQ(cluster.program("checks", {"detached"}).out, "1\nok\n");
  ASSERT_EQ(cluster.down().status, 0);
  ASSERT_EQ(cluster.up().status, 0);
  EXPECT_EQ(cluster.describe("worker-0", "id"), id);
  EXPECT_EQ(cluster.describe("for-ever", "name"), "for-ever");
}

TEST(CliSystem, AFullDiskIsNamedAndNothingStarts) {
  Cluster cluster;
  const auto small = cluster.folder() / "small";
  std::filesystem::create_directory(small);
  if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "mounting a small file system is not permitted here; "
                    "AFileSizeLimitIsNamedAndNothingStarts tests the same ways out";
  }
  {
    std::ofstream fill{small / "fill"};
    const std::string block(4096, 'x');
    while (fill.write(block.data(), 4096).flush()) {
    }
  }
  const Outcome refused = cluster.troupe({"up", "--state", small / "state", "--gateway-port", "0"});
  EXPECT_EQ(refused.status, 1) << refused.err;
  EXPECT_NE(refused.err.find("space"), std::string::npos) << refused.err;
  EXPECT_TRUE(cluster.processes().empty());
  ::umount2(small.c_str(), MNT_DETACH);
}

// Writes fail as on a full disk: at once, or when the record of what runs has grown too long.
TEST(CliSystem, AFileSizeLimitIsNamedAndNothingStarts) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "ThreadSanitizer writes files of its own before main";
#endif
  for (const char* limit_kib : {"0", "1"}) {
    SCOPED_TRACE(limit_kib);
    Cluster cluster;
    // Through a pipe, for a file of the test's would be limited as well.
    const std::string script =
        "set -o pipefail; { ulimit -f " + std::string(limit_kib) + "; \"$@\"; } 2>&1 | cat";
    const std::string program = std::string(TROUPE_BIN) + "/troupe";
    const Outcome refused = run({"/bin/bash", "-c", script, "bash", program, "up", "--workers",
                                 "16", "--gateway-port", "0"},
                                cluster.variables());
    EXPECT_EQ(refused.status, 1) << refused.out;
    EXPECT_NE(refused.out.find("ulimit -f"), std::string::npos) << refused.out;
    EXPECT_TRUE(eventually([&] { return cluster.processes().empty(); }));
    if (refused.status == 0) (void)cluster.down();
  }
}

TEST(CliSystem, SubmitPassesTheStatusOn) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  const std::string bin = TROUPE_BIN;
  EXPECT_EQ(
      cluster.troupe({"submit", "--name", "pi", "--", bin + "/parallel_pi", "4", "1000"}).status,
      0);
  EXPECT_EQ(cluster.describe("pi", "state"), "succeeded");
  EXPECT_EQ(
      cluster.troupe({"submit", "--name", "bad", "--", bin + "/checks", "no-such-check"}).status,
      2);
  EXPECT_EQ(cluster.troupe({"submit", "--", "/no/such/program"}).status, 127);
}

TEST(CliSystem, ASubmittedScriptIsOneJobWhateverProgramsItRuns) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  // The pause is longer than a job without its driver lives.
  const std::string hello = std::string(TROUPE_BIN) + "/hello_task";
  const std::string script = hello + " && " + hello + " && sleep 3 && " + hello;
  const Outcome outcome =
      cluster.troupe({"submit", "--name", "script", "--", "/bin/sh", "-c", script});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_EQ(cluster.describe("script", "state"), "succeeded");
  const std::string failing = hello + "; " + hello + "; exit 3";
  EXPECT_EQ(cluster.troupe({"submit", "--name", "failing", "--", "/bin/sh", "-c", failing}).status,
            3);
  EXPECT_EQ(cluster.describe("failing", "state"), "failed");
  EXPECT_EQ(cluster.describe("failing", "message"), "the command exited with status 3");
}

TEST(CliSystem, LogsOfAnActorAreRead) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  ASSERT_EQ(cluster.program("checks", {"detached"}).status, 0);
  EXPECT_EQ(cluster.troupe({"logs", "for-ever"}).status, 0);
  const Outcome head = cluster.troupe({"logs", "head"});
  EXPECT_NE(head.out.find("ready"), std::string::npos);
}

TEST(CliSystem, LogsOfANameAreThoseOfTheActorThatLives) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  constexpr int rounds = 4;
  for (int round = 1; round <= rounds; ++round) {
    ASSERT_EQ(cluster.program("checks", {"detached"}).status, 0);
    const auto actors = boost::json::parse(cluster.troupe({"list", "actors", "-o", "json"}).out);
    std::string id;
    int pid = 0;
    for (const auto& actor : actors.as_array()) {
      if (actor.at("state").as_string() != "alive") continue;
      id = actor.at("id").as_string();
      pid = actor.at("pid").to_number<int>();
    }
    ASSERT_GT(pid, 0);
    const std::string mark = "of round " + std::to_string(round);
    std::ofstream{"/proc/" + std::to_string(pid) + "/fd/1", std::ios::app} << mark << std::endl;
    const Outcome log = cluster.troupe({"logs", "for-ever"});
    EXPECT_NE(log.out.find(mark), std::string::npos) << log.out << log.err;
    ::kill(pid, SIGKILL);
    EXPECT_TRUE(eventually([&] {
      return cluster.troupe({"describe", id}).out.find("dead") != id.npos;
    }));
  }
  // Of those that are dead, the latest.
  const Outcome log = cluster.troupe({"logs", "for-ever"});
  EXPECT_NE(log.out.find("of round " + std::to_string(rounds)), std::string::npos)
      << log.out << log.err;
}

TEST(CliSystem, LogsOfANodeAreFoundByItsId) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  const Outcome log = cluster.troupe({"logs", cluster.describe("worker-1", "id")});
  EXPECT_EQ(log.status, 0) << log.err;
  EXPECT_NE(log.out.find("ready"), std::string::npos) << log.out;
}

TEST(CliSystem, ADaemonWhoseLogIsLargeGoesOnInANewOne) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  const std::vector<std::string> daemons{"head", "worker-0", "gateway"};
  const auto file_of = [&](const std::string& daemon) {
    return (cluster.state() / "logs" / (daemon + ".log")).string();
  };
  // Somebody reads what comes.
  const std::string seen = cluster.folder() / "seen";
  const Outcome read = run(
      {"/bin/sh", "-c", TROUPE_BIN "/troupe logs --follow worker-0 > " + seen + " 2>&1 & echo $!"},
      cluster.variables());
  const struct Reader {
    int pid;
    ~Reader() {
      if (pid > 0) ::kill(pid, SIGTERM);
    }
  } reader{std::atoi(read.out.c_str())};
  ASSERT_GT(reader.pid, 0) << read.err;
  const std::string much(size_t{17} << 20, 'x');
  for (const auto& daemon : daemons) std::ofstream{file_of(daemon), std::ios::app} << much;
  for (const auto& daemon : daemons) {
    const std::string before = file_of(daemon) + ".1";
    ASSERT_TRUE(eventually([&] { return std::filesystem::exists(before); })) << daemon;
    EXPECT_GT(std::filesystem::file_size(before), much.size());
  }
  ASSERT_EQ(cluster.down().status, 0);
  for (const auto& daemon : daemons) {
    EXPECT_NE(cluster.log_of(daemon).find("stopping"), std::string::npos) << daemon;
    EXPECT_LT(std::filesystem::file_size(file_of(daemon)), size_t{1} << 20) << daemon;
  }
  EXPECT_TRUE(eventually([&] {
    std::ifstream in{seen};
    const std::string text{std::istreambuf_iterator<char>{in}, {}};
    return text.size() > much.size() && text.find(" stopping ") != std::string::npos;
  }));
  // One that wrote all of it before it died: its next life begins with a new file.
  std::ofstream{file_of("worker-0"), std::ios::app} << much;
  ASSERT_EQ(cluster.up().status, 0);
  EXPECT_LT(std::filesystem::file_size(file_of("worker-0")), size_t{1} << 20);
}

TEST(CliSystem, ATraceIsReplayedWithoutACluster) {
  Cluster cluster;
  const std::string trace = (cluster.folder() / "trace.csv").string();
  std::ofstream{trace} << "submit_s,duration_s,num_gpus\n0,100,1\n10,20,1\n";
  const std::vector<std::string> common{"sim",     "run", "--trace", trace,
                                        "--nodes", "1",   "--gpus",  "1"};
  const auto replayed = [&](std::vector<std::string> more) {
    more.insert(more.begin(), common.begin(), common.end());
    return cluster.troupe(std::move(more));
  };
  const Outcome ran = replayed({"--policy", "fifo", "--policy", "srtf", "-o", "json"});
  ASSERT_EQ(ran.status, 0) << ran.err;
  const auto rows = boost::json::parse(ran.out);
  ASSERT_EQ(rows.as_array().size(), 2U);
  EXPECT_EQ(rows.at(0).at("policy").as_string(), "fifo");
  EXPECT_EQ(rows.at(0).at("jct_avg_s").to_number<int>(), (100 + 110) / 2);
  EXPECT_EQ(rows.at(1).at("jct_avg_s").to_number<int>(), (150 + 20) / 2);  // 30 s to go on.
  EXPECT_EQ(rows.at(1).at("preemptions").to_number<int>(), 1);
  const Outcome unknown = replayed({"--policy", "lottery"});
  EXPECT_EQ(unknown.status, 1);
  EXPECT_NE(unknown.err.find("choose one of"), std::string::npos) << unknown.err;
  std::ofstream{trace} << "submit_s,duration_s,num_gpus\n0,-1,1\n";
  const Outcome wrong = replayed({"--policy", "fifo"});
  EXPECT_EQ(wrong.status, 1);
  EXPECT_NE(wrong.err.find("line 2"), std::string::npos) << wrong.err;
}

TEST(CliSystem, AHungGatewayIsReportedInTime) {
  Cluster cluster;
  ASSERT_EQ(cluster.up().status, 0);
  const int gateway = pid_of(cluster, "gateway");
  ASSERT_GT(gateway, 0);
  ::kill(gateway, SIGSTOP);
  const Outcome report = run({std::string(TROUPE_BIN) + "/troupe", "report", "nobody"},
                             cluster.variables(), std::chrono::seconds(30));
  ::kill(gateway, SIGCONT);
  EXPECT_EQ(report.status, 6) << report.err;
  EXPECT_NE(report.err.find("gateway"), std::string::npos) << report.err;
}

}  // namespace
}  // namespace troupe::test
