// A real etcd on free ports of the loopback, and coordinators that ask it.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <iostream>
#include <optional>

#include "etcd/etcd_coordinator.h"
#include "etcd/etcd_server.h"
#include "tests/security/security_fixture.h"
#include "transport/real_environment.h"

namespace troupe::etcd {

using head::LeadRecord;
using security::Authority;
using security::CredentialsPem;
using security::issue_pem;
using security::make_authority;
using security::Role;
using namespace std::chrono_literals;

constexpr const char* etcd_program = "/usr/bin/etcd";
constexpr auto patience = 30s;  // Of waits for what must come.

// "127.0.0.1:PORT" where nobody listens.
inline std::string free_address() {
  const FileDescriptor socket{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(socket.get(), generic, size) != 0 ||
      ::getsockname(socket.get(), generic, &size) != 0) {
    throw std::runtime_error("no free port");
  }
  return fmt::format("127.0.0.1:{}", ntohs(address.sin_port));
}

inline CredentialsPem etcd_pem(const Authority& authority, Role role = Role::etcd) {
  security::IdentitySpec spec;
  spec.role = role;
  spec.name = "etcd-0";
  spec.ip_addresses = {"127.0.0.1"};
  const auto issued = authority.issue(spec, security::real_now()).value();
  return {authority.certificate_pem(), issued.certificate_pem, issued.key_pem};
}

class EtcdProcess {
 public:
  // What `options` leaves out is chosen here.
  explicit EtcdProcess(const Authority& authority, EtcdServerOptions options = {})
      : options_(std::move(options)) {
    options_.folder = scratch_ / "state";
    EXPECT_TRUE(security::save_credentials(options_.folder, etcd_pem(authority)));
    options_.cluster = authority.cluster().to_string();
    options_.client_address = free_address();
    if (options_.self.name.empty()) options_.self = {"etcd-0", free_address()};
    start();
  }
  ~EtcdProcess() {
    kill();
    if (testing::Test::HasFailure()) std::cerr << security::read_text(scratch_ / "log");
  }
  EtcdProcess(const EtcdProcess&) = delete;
  EtcdProcess& operator=(const EtcdProcess&) = delete;

  void start() {
    const std::string log = (scratch_ / "log").string();
    std::vector<std::string> words = etcd_arguments(options_);
    words.insert(words.begin(), etcd_program);
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(out, STDERR_FILENO);
    char* environment[] = {nullptr};
    if (::getppid() == parent) ::execve(etcd_program, arguments.data(), environment);
    ::_exit(127);
  }
  void signal(int number) const { ::kill(pid_, number); }
  // Returns when it stands still: its threads run on for a moment after the signal.
  void stop() const {
    signal(SIGSTOP);
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, WUNTRACED), pid_);
    EXPECT_TRUE(WIFSTOPPED(status));
  }
  void kill() {
    if (pid_ <= 0) return;
    signal(SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  const std::string& address() const { return options_.client_address; }
  const std::string& peer_address() const { return options_.self.peer_address; }

 private:
  security::ScratchDirectory scratch_;
  EtcdServerOptions options_;
  pid_t pid_ = 0;
};

// Has a loop, which runs while run() waits.
class EtcdTest : public testing::Test {
 protected:
  template <class T>
  T run(Async<T> operation) {
    std::optional<T> result;
    auto done = [&](const std::exception_ptr& thrown, T value) {
      EXPECT_FALSE(thrown);
      result = std::move(value);
    };
    boost::asio::co_spawn(real_.io(), std::move(operation), done);
    real_.io().restart();
    while (!result && real_.io().run_one() > 0) {
    }
    return std::move(*result);
  }

  transport::Environment environment() { return real_.environment(); }
  TimerClock& clock() { return environment().clock; }

  std::unique_ptr<EtcdCoordinator> make(std::vector<std::string> endpoints,
                                        CredentialsPem credentials,
                                        std::chrono::seconds lease_time = 2s) {
    EtcdOptions options;
    options.endpoints = std::move(endpoints);
    options.prefix =
        "/troupe/" + std::string{testing::UnitTest::GetInstance()->current_test_info()->name()};
    options.credentials = std::move(credentials);
    options.lease_time = lease_time;
    return EtcdCoordinator::create(environment().loop, clock(), std::move(options)).value();
  }

  // Looks again and again until it is so.
  template <class Condition>
  bool comes_true(Condition condition) {
    const Instant give_up = clock().now() + patience;
    while (clock().now() < give_up) {
      if (condition()) return true;
      ::poll(nullptr, 0, 10);
    }
    return false;
  }

  transport::RealEnvironment real_;
  Authority authority_ = make_authority();
};

}  // namespace troupe::etcd
