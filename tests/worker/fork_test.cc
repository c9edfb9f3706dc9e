// Processes that a fork server starts, and what happens when it cannot.
#include <sys/socket.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "tests/worker/fixture.h"
#include "worker/fork_client.h"

namespace troupe::worker {
namespace {

namespace fs = std::filesystem;

std::string read_of(pid_t pid, const std::string& file) {
  std::ifstream in{"/proc/" + std::to_string(pid) + "/" + file, std::ios::binary};
  return {std::istreambuf_iterator<char>{in}, {}};
}

// Where the kernel put program and libraries is chosen anew for what is executed.
bool is_forked_from(pid_t server, pid_t pid) {
  return read_of(pid, "auxv") == read_of(server, "auxv");
}

std::multiset<std::string> kinds_of_descriptors(pid_t pid) {
  std::multiset<std::string> kinds;
  for (const auto& entry : fs::directory_iterator{"/proc/" + std::to_string(pid) + "/fd"}) {
    std::error_code gone;
    const std::string target = fs::read_symlink(entry.path(), gone);
    kinds.insert(target.ends_with(".log") ? "log" : target.substr(0, target.find('[')));
  }
  return kinds;
}

class ForkTest : public WorkerTest {
 protected:
  // With a variable of its own, if it has a name.
  Async<protocol::ProcessStarted> start(uint32_t incarnation, std::string name = "",
                                        std::string value = "1") {
    auto request = start_request(actor, incarnation, "run");
    if (!name.empty()) request.spec.environment.push_back({std::move(name), std::move(value)});
    auto started = co_await start_actor(std::move(request));
    if (!started) {
      ADD_FAILURE() << started.error().message();
      co_return protocol::ProcessStarted{};
    }
    co_return *started;
  }

  // The child of this process that is a fork server; 0: there is none.
  static pid_t fork_server() {
    std::istringstream children{
        read_of(::getpid(), "task/" + std::to_string(::getpid()) + "/children")};
    for (pid_t child = 0; children >> child;) {
      if (read_of(child, "cmdline").find("fork-server") != std::string::npos) return child;
    }
    return 0;
  }

  static bool is_forked(const protocol::ProcessStarted& started) {
    return is_forked_from(fork_server(), static_cast<pid_t>(started.pid));
  }

  Async<void> until_gone(pid_t pid) {
    const Instant deadline = environment().clock.now() + 20s;
    while (fs::exists("/proc/" + std::to_string(pid)) && environment().clock.now() < deadline) {
      co_await sleep_for(environment().clock, 1ms);
    }
  }
};

TEST_F(ForkTest, AForkedProcessIsAsOneThatIsExecuted) {
  with_worker([this]() -> Async<void> {
    const auto executed = co_await start(1, "LD_BIND_NOW");
    const auto executed_pid = static_cast<pid_t>(executed.pid);
    EXPECT_FALSE(is_forked(executed));
    const auto wanted = kinds_of_descriptors(executed_pid);
    const auto forked = co_await start(2);
    const auto pid = static_cast<pid_t>(forked.pid);
    EXPECT_TRUE(is_forked(forked));
    EXPECT_EQ(kinds_of_descriptors(pid), wanted);
    const std::string command = read_of(pid, "cmdline");
    EXPECT_NE(command.find(forked.address.process.to_string()), std::string::npos) << command;
    EXPECT_EQ(command.find("fork-server"), std::string::npos) << command;
    EXPECT_EQ(::getpgid(pid), pid);
    const std::string variables = read_of(pid, "environ");
    EXPECT_NE(variables.find("TROUPE_PROCESS_ID=" + forked.address.process.to_string() + '\0'),
              std::string::npos);
    EXPECT_EQ(variables.find("LD_BIND_NOW"), std::string::npos);
    const std::string parent = "PPid:\t" + std::to_string(::getpid()) + "\n";
    EXPECT_NE(read_of(pid, "status").find(parent), std::string::npos);
  });
}

TEST_F(ForkTest, AServerThatDiedIsReplaced) {
  with_worker([this]() -> Async<void> {
    co_await start(1);
    const pid_t first = fork_server();
    EXPECT_NE(first, 0);
    ::kill(first, SIGKILL);
    co_await until_gone(first);
    const auto second = co_await start(2);
    EXPECT_TRUE(is_forked(second));
    EXPECT_NE(fork_server(), first);
    EXPECT_NE(fork_server(), 0);
  });
}

TEST_F(ForkTest, WhatAServerWasAskedForWhenItDiedIsExecuted) {
  with_worker([this]() -> Async<void> {
    co_await start(1);
    const pid_t server = fork_server();
    const std::string layout = read_of(server, "auxv");
    ::kill(server, SIGSTOP);
    auto request = start_request(actor, 2, "run");
    std::optional<Result<protocol::ProcessStarted>> outcome;
    Event answered{environment().loop};
    const auto ask = [&]() -> Async<void> {
      outcome = co_await start_actor(std::move(request));
      answered.set();
    };
    spawn(scope, ask());
    co_await head->until([this] { return head->exits.size() == 1; });  // Of the first incarnation.
    ::kill(server, SIGKILL);
    co_await answered.wait();

    EXPECT_NE(read_of(static_cast<pid_t>(outcome->value().pid), "auxv"), layout);
  });
}

TEST_F(ForkTest, AProcessThatIsKilledBeforeItStartedEnds) {
  with_worker([this]() -> Async<void> {
    co_await start(1);
    const pid_t server = fork_server();
    ::kill(server, SIGSTOP);
    LaunchSpec spec;
    spec.process = ProcessId::random(random);
    // Without it it ends by itself, perhaps before it is killed.
    spec.environment = {{"TROUPE_PROCESS_ID", spec.process.to_string()}};
    spec.log_path = "/dev/null";
    auto process = launcher.launch(spec).value();
    EXPECT_FALSE(process->started().is_set());
    EXPECT_EQ(process->pid(), 0u);
    process->kill();
    ::kill(server, SIGCONT);
    co_await process->exited().wait();
    EXPECT_TRUE(process->exit_reason().starts_with("killed by signal 9")) << process->exit_reason();
  });
}

TEST_F(ForkTest, AnEnvironmentTooLargeForAPacketIsExecuted) {
  with_worker([this]() -> Async<void> {
    const auto started = co_await start(1, "LARGE", std::string(100 << 10, 'x'));
    EXPECT_FALSE(is_forked(started));
  });
}

TEST_F(ForkTest, AMissingWorkingFolderIsNamed) {
  with_worker([this]() -> Async<void> {
    LaunchSpec spec;
    spec.process = ProcessId::random(random);
    spec.log_path = "/dev/null";
    spec.working_folder = folder + "/missing";
    const auto refused = launcher.launch(spec);
    EXPECT_EQ(refused.error().code(), Code::not_found);
    EXPECT_NE(refused.error().message().find(spec.working_folder), std::string::npos);
    co_return;
  });
}

// A server that a test plays.
class PlayedServer : public testing::Test {
 protected:
  void SetUp() override {
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    server = FileDescriptor{pair[1]};
    client.emplace(real.io(), scope, FileDescriptor{pair[0]});
  }
  void TearDown() override {
    scope.cancel();
    real.io().restart();
    real.io().run();
  }
  Code answer_to(BytesView packet) {
    std::optional<Result<pid_t>> outcome;
    EXPECT_TRUE(client->fork({}, {}, [&](Result<pid_t> answer) { outcome = std::move(answer); }));
    EXPECT_EQ(::send(server.get(), packet.data(), packet.size(), 0),
              static_cast<ssize_t>(packet.size()));
    while (!outcome && real.io().run_one() > 0) {
    }
    return *outcome ? Code::ok : outcome->error().code();
  }

  transport::RealEnvironment real;
  Scope scope{real.io().get_executor()};
  FileDescriptor server;
  std::optional<ForkClient> client;
};

TEST_F(PlayedServer, WhatItSaysDecidesWhatIsDone) {
  EXPECT_EQ(answer_to(protocol::encode(protocol::ProcessForked{123, 0})), Code::ok);
  EXPECT_EQ(answer_to(protocol::encode(protocol::ProcessForked{0, EAGAIN})), Code::exhausted);
  EXPECT_EQ(answer_to(protocol::encode(protocol::ProcessForked{0, EPERM})), Code::unimplemented);
  const Bytes garbage(100, 0xff);
  EXPECT_EQ(answer_to(garbage), Code::invalid);
}

TEST_F(PlayedServer, ItsEndIsNoticed) {
  std::optional<Result<pid_t>> outcome;
  ASSERT_TRUE(client->fork({}, {}, [&](Result<pid_t> answer) { outcome = std::move(answer); }));
  server.reset();
  while (!outcome && real.io().run_one() > 0) {
  }
  EXPECT_EQ(outcome->error().code(), Code::unavailable);
  EXPECT_FALSE(client->is_open());
  EXPECT_FALSE(client->fork({}, {}, [](const Result<pid_t>&) {}));
}

}  // namespace
}  // namespace troupe::worker
