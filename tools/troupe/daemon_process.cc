#include "troupe/daemon_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <boost/json.hpp>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "base/log.h"
#include "troupe/own_log.h"

extern char** environ;

namespace troupe::tools {
namespace json = boost::json;
using Steady = std::chrono::steady_clock;

namespace {

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);

// Field 22 of /proc/PID/stat; 0 when there is no such process, or it has ended and nobody has
// reaped it yet.
uint64_t started_ticks(int pid) {
  auto text = read_file(fmt::format("/proc/{}/stat", pid));
  if (!text) return 0;
  // The command in brackets may hold anything, so count from its end.
  const auto after = text->rfind(')');
  if (after == text->npos) return 0;
  const char state = text->size() > after + 2 ? (*text)[after + 2] : 'X';
  if (state == 'Z' || state == 'X') return 0;
  size_t position = after + 1;
  for (int field = 3; field < 22; ++field) position = text->find(' ', position + 1);
  return std::strtoull(text->c_str() + position, nullptr, 10);
}

int milliseconds_left(Steady::time_point end) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Steady::now());
  return static_cast<int>(std::max<int64_t>(left.count(), 0));
}

std::string last_line(const std::string& log_path) {
  auto text = read_file(log_path);
  if (!text) return {};
  while (!text->empty() && text->back() == '\n') text->pop_back();
  return text->substr(text->rfind('\n') + 1);
}

}  // namespace

void watch_interrupts() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

bool was_interrupted() {
  return interrupted;
}

Result<StartedDaemon> start_daemon(const std::string& kind, const std::string& name,
                                   std::vector<std::string> arguments, const std::string& log_path,
                                   const FileDescriptor& lock) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return error(Code::exhausted, "pipe: out of descriptors");
  FileDescriptor reading{ends[0]};
  FileDescriptor writing{ends[1]};
  // It starts without, as it goes on without.
  if (const Status bounded = bound_log(log_path, {}); !bounded) {
    log::warning("log_not_bounded", {{"why", bounded.error()}});
  }
  FileDescriptor log{::open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)};
  FileDescriptor null{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
  if (!log.is_open()) {
    return error(errno == ENOSPC ? Code::exhausted : Code::unavailable,
                 fmt::format("open the log {}: {}", log_path, std::strerror(errno)));
  }
  StartedDaemon started;
  started.record.arguments = arguments;
  // All is made ready before the fork: the child only makes system calls.
  arguments.insert(arguments.begin(), "troupe");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::string ready_variable = "TROUPE_READY_FD=3";
  std::vector<char*> variables{ready_variable.data()};
  for (char** entry = environ; *entry != nullptr; ++entry) variables.push_back(*entry);
  variables.push_back(nullptr);
  const int lock_fd = lock.get();
  // Until the child has its own dispositions: a signal for it would run the handlers of this
  // process.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const pid_t pid = ::fork();
  const int failed = errno;
  if (pid != 0) ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return error(Code::exhausted, std::string("fork: ") + std::strerror(failed));
  if (pid == 0) {
    ::setsid();
    ::signal(SIGINT, SIG_DFL);
    ::signal(SIGTERM, SIG_DFL);
    ::signal(SIGCHLD, SIG_DFL);
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    // High copies first, so that none of 0 to 4 is overwritten before it was copied.
    const int high_ready = ::fcntl(writing.get(), F_DUPFD_CLOEXEC, 20);
    const int high_lock = lock_fd >= 0 ? ::fcntl(lock_fd, F_DUPFD_CLOEXEC, 20) : -1;
    ::dup2(null.get(), 0);
    ::dup2(log.get(), 1);
    ::dup2(log.get(), 2);
    ::dup2(high_ready, 3);
    if (high_lock >= 0) ::dup2(high_lock, 4);
    ::execve("/proc/self/exe", argv.data(), variables.data());
    ::_exit(127);
  }
  started.record.kind = kind;
  started.record.name = name;
  started.record.pid = pid;
  started.record.started_ticks = started_ticks(pid);
  started.ready = std::move(reading);
  return started;
}

Result<json::value> wait_ready(StartedDaemon& daemon, const std::string& log_path,
                               Duration budget) {
  const auto end = Steady::now() + budget;
  std::string line;
  for (;;) {
    if (was_interrupted()) return error(Code::cancelled, "interrupted");
    pollfd waiting{daemon.ready.get(), POLLIN, 0};
    const int left = milliseconds_left(end);
    const int count = ::poll(&waiting, 1, std::min(left, 100));
    if (count < 0 && errno != EINTR) return error(Code::internal, std::strerror(errno));
    if (count <= 0) {
      if (left > 0) continue;
      return error(Code::deadline_exceeded,
                   fmt::format("{} was not ready within {} s; its log: {}", daemon.record.name,
                               budget / std::chrono::seconds(1), log_path));
    }
    char buffer[4096];
    const ssize_t got = ::read(daemon.ready.get(), buffer, sizeof buffer);
    if (got > 0) {
      line.append(buffer, static_cast<size_t>(got));
      if (line.back() != '\n') continue;
    } else if (line.empty()) {
      return error(Code::internal, fmt::format("{} ended at its start: {} (log: {})",
                                               daemon.record.name, last_line(log_path), log_path));
    }
    try {
      const auto facts = json::parse(line);
      if (const auto* failed = facts.as_object().if_contains("error")) {
        const auto code = failed->at("code").to_number<uint32_t>();
        return error(code_from_number(code), std::string(failed->at("message").as_string()))
            .context(daemon.record.name);
      }
      return facts;
    } catch (const std::exception& caught) {
      return error(Code::internal, fmt::format("{} said something else than that it is ready: {}",
                                               daemon.record.name, caught.what()));
    }
  }
}

namespace {

void say(const json::value& value) {
  const char* variable = std::getenv("TROUPE_READY_FD");
  if (variable == nullptr) return;
  FileDescriptor out{std::atoi(variable)};
  const std::string line = json::serialize(value) + "\n";
  // Nobody may be listening any more: then nobody needs to know.
  if (::write(out.get(), line.data(), line.size()) < 0) return;
}

}  // namespace

void report_ready(const json::value& facts) {
  say(facts);
}

void report_failure(const Error& failure) {
  say(json::object{{"error", json::object{{"code", static_cast<uint32_t>(failure.code())},
                                          {"message", failure.message()}}}});
}

bool is_running(const DaemonRecord& daemon) {
  return daemon.started_ticks != 0 && started_ticks(daemon.pid) == daemon.started_ticks;
}

std::vector<std::string> end_daemons(const std::vector<DaemonRecord>& daemons, Duration grace) {
  struct Ending {
    const DaemonRecord* daemon;
    FileDescriptor pidfd;
  };
  std::vector<Ending> running;
  for (const DaemonRecord& daemon : daemons) {
    FileDescriptor pidfd{static_cast<int>(::syscall(SYS_pidfd_open, daemon.pid, 0))};
    // Checked after the descriptor was taken: from then on it cannot become another process's.
    if (!pidfd.is_open() || !is_running(daemon)) continue;
    ::syscall(SYS_pidfd_send_signal, pidfd.get(), SIGTERM, nullptr, 0);
    running.push_back({&daemon, std::move(pidfd)});
  }
  std::vector<std::string> killed;
  const auto end = Steady::now() + grace;
  bool forced = false;
  for (size_t i = 0; i < running.size();) {
    pollfd waiting{running[i].pidfd.get(), POLLIN, 0};
    const int count = ::poll(&waiting, 1, forced ? 5000 : milliseconds_left(end));
    if (count < 0 && errno == EINTR) continue;
    if (count > 0) {
      // Reaps it if it is our child; otherwise init does.
      ::waitid(static_cast<idtype_t>(P_PIDFD), static_cast<id_t>(running[i].pidfd.get()), nullptr,
               WEXITED | WNOHANG);
      ++i;
      continue;
    }
    if (forced) break;
    forced = true;
    for (size_t j = i; j < running.size(); ++j) {
      pollfd alive{running[j].pidfd.get(), POLLIN, 0};
      if (::poll(&alive, 1, 0) > 0) continue;
      ::syscall(SYS_pidfd_send_signal, running[j].pidfd.get(), SIGKILL, nullptr, 0);
      killed.push_back(running[j].daemon->name);
    }
  }
  return killed;
}

}  // namespace troupe::tools
