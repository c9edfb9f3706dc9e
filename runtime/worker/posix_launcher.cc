#include "worker/posix_launcher.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <map>

#include "base/log.h"
#include "transport/asio_network.h"

extern char** environ;

namespace troupe::worker {
namespace asio = boost::asio;

namespace {

constexpr int inherited_descriptor = 3;
// Above what the child's own descriptors take, so that no file action overwrites it too early.
constexpr int child_end_lowest = 10;

Error system_error(const std::string& doing, int number) {
  Code code = Code::internal;
  if (number == ENOENT || number == EACCES || number == ENOEXEC) code = Code::not_found;
  if (number == EAGAIN || number == ENOMEM || number == EMFILE || number == ENFILE) {
    code = Code::exhausted;
  }
  return error(code, fmt::format("{}: {}", doing, std::strerror(number)));
}

std::string describe(const siginfo_t& info) {
  if (info.si_code == CLD_EXITED) return fmt::format("exited with status {}", info.si_status);
  std::string reason =
      fmt::format("killed by signal {} ({})", info.si_status, ::strsignal(info.si_status));
  if (info.si_status == SIGKILL) {
    reason += "; if nobody sent it, the machine was out of memory: see dmesg";
  } else if (info.si_status == SIGSEGV || info.si_status == SIGBUS) {
    reason += "; it touched memory that it does not have: a bug in its module, or a deep recursion";
  } else if (info.si_status == SIGABRT) {
    reason += "; it gave up by itself: the end of its log says why";
  }
  return reason;
}

// Shared by the process's handle and its watcher, who may outlive the handle until it has reaped.
struct Watched {
  Watched(asio::io_context& loop, pid_t process, FileDescriptor handle)
      : pid(process), exited(loop.get_executor()), descriptor(loop, handle.release()) {}

  // The group ends with its leader. Until the leader is reaped its number cannot be reused.
  void signal(int number) {
    if (!exited.is_set()) ::kill(-pid, number);
  }

  pid_t pid;
  Event exited;
  std::string reason;
  asio::posix::stream_descriptor descriptor;  // A pidfd.
};

bool has_ended(pid_t pid) {
  siginfo_t info{};
  return ::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
         info.si_pid != 0;
}

Async<void> watch(std::shared_ptr<Watched> watched) {
  // However this ends, also unwound at shutdown, no zombie stays.
  struct Reap {
    Watched& watched;
    ~Reap() {
      watched.signal(SIGKILL);
      siginfo_t info{};
      int failed = 0;
      do {
        failed = ::waitid(P_PID, static_cast<id_t>(watched.pid), &info, WEXITED);
      } while (failed != 0 && errno == EINTR);
      watched.reason = failed == 0 ? describe(info) : "it was reaped by somebody else";
      watched.exited.set();
    }
  } reap{*watched};
  auto token = asio::as_tuple(asio::use_awaitable);
  for (;;) {
    const auto [failed] =
        co_await watched->descriptor.async_wait(asio::posix::stream_descriptor::wait_read, token);
    if (failed || has_ended(watched->pid)) co_return;  // Readiness may be a false alarm.
  }
}

class PosixProcess final : public LaunchedProcess {
 public:
  PosixProcess(std::shared_ptr<Watched> watched, std::unique_ptr<transport::Connection> connection)
      : watched_(std::move(watched)), connection_(std::move(connection)) {}
  ~PosixProcess() override { watched_->signal(SIGKILL); }

  uint32_t pid() const override { return static_cast<uint32_t>(watched_->pid); }
  std::unique_ptr<transport::Connection> take_connection() override {
    return std::move(connection_);
  }
  Event& exited() override { return watched_->exited; }
  std::string exit_reason() const override { return watched_->reason; }
  void terminate() override { watched_->signal(SIGTERM); }
  void kill() override { watched_->signal(SIGKILL); }

 private:
  std::shared_ptr<Watched> watched_;
  std::unique_ptr<transport::Connection> connection_;
};

std::vector<std::string> environment_of(const LaunchSpec& spec) {
  static constexpr std::array<std::string_view, 8> inherited = {
      "PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "ASAN_OPTIONS"};
  std::map<std::string, std::string> values;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const size_t equals = text.find('=');
    if (equals == text.npos) continue;
    const std::string_view name = text.substr(0, equals);
    if (name.starts_with("TROUPE_") ||
        std::find(inherited.begin(), inherited.end(), name) != inherited.end()) {
      values[std::string(name)] = text.substr(equals + 1);
    }
  }
  for (const auto& [name, value] : spec.environment) values[name] = value;
  std::vector<std::string> entries;
  for (const auto& [name, value] : values) entries.push_back(fmt::format("{}={}", name, value));
  return entries;
}

struct FileActions {
  FileActions() { ::posix_spawn_file_actions_init(&actions); }
  ~FileActions() { ::posix_spawn_file_actions_destroy(&actions); }
  posix_spawn_file_actions_t actions;
};

struct Attributes {
  Attributes() { ::posix_spawnattr_init(&attributes); }
  ~Attributes() { ::posix_spawnattr_destroy(&attributes); }
  posix_spawnattr_t attributes;
};

Result<pid_t> spawn_program(const std::string& program, const LaunchSpec& spec, int child_end) {
  FileActions files;
  int failed = ::posix_spawn_file_actions_addopen(&files.actions, 0, "/dev/null", O_RDONLY, 0);
  if (failed == 0) {
    failed = ::posix_spawn_file_actions_addopen(&files.actions, 1, spec.log_path.c_str(),
                                                O_WRONLY | O_CREAT | O_APPEND, 0600);
  }
  if (failed == 0) failed = ::posix_spawn_file_actions_adddup2(&files.actions, 1, 2);
  if (failed == 0) {
    failed = ::posix_spawn_file_actions_adddup2(&files.actions, child_end, inherited_descriptor);
  }
  // Asio opens its sockets without CLOEXEC.
  if (failed == 0) {
    failed = ::posix_spawn_file_actions_addclosefrom_np(&files.actions, inherited_descriptor + 1);
  }
  if (failed == 0 && !spec.working_folder.empty()) {
    failed = ::posix_spawn_file_actions_addchdir_np(&files.actions, spec.working_folder.c_str());
  }
  if (failed != 0) return system_error("prepare " + program, failed);

  Attributes how;
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  ::posix_spawnattr_setpgroup(&how.attributes, 0);
  ::posix_spawnattr_setsigmask(&how.attributes, &none);
  ::posix_spawnattr_setsigdefault(&how.attributes, &all);
  ::posix_spawnattr_setflags(
      &how.attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

  std::vector<std::string> entries = environment_of(spec);
  std::vector<char*> environment;
  for (std::string& entry : entries) environment.push_back(entry.data());
  environment.push_back(nullptr);
  std::string path = program;
  std::string id = spec.process.to_string();  // Tells processes apart in ps.
  char* arguments[] = {path.data(), id.data(), nullptr};
  pid_t pid = 0;
  failed = ::posix_spawn(&pid, program.c_str(), &files.actions, &how.attributes, arguments,
                         environment.data());
  if (failed != 0) {
    const std::string where =
        spec.working_folder.empty() ? std::string{} : " in " + spec.working_folder;
    return system_error(fmt::format("start {}{} with log {}", program, where, spec.log_path),
                        failed);
  }
  return pid;
}

}  // namespace

PosixLauncher::PosixLauncher(asio::io_context& loop, Scope& scope, std::string program)
    : loop_(loop), scope_(scope), program_(std::move(program)) {}

Result<std::unique_ptr<LaunchedProcess>> PosixLauncher::launch(const LaunchSpec& spec) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
    return system_error("make a socket pair", errno);
  }
  FileDescriptor own_end{pair[0]};
  FileDescriptor low_end{pair[1]};
  FileDescriptor child_end{::fcntl(low_end.get(), F_DUPFD_CLOEXEC, child_end_lowest)};
  if (!child_end.is_open()) return system_error("duplicate a descriptor", errno);
  TROUPE_TRY(const pid_t pid, spawn_program(program_, spec, child_end.get()));
  FileDescriptor handle{static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))};
  if (!handle.is_open()) {
    const int number = errno;
    ::kill(-pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return system_error("watch the new process", number);
  }
  auto watched = std::make_shared<Watched>(loop_, pid, std::move(handle));
  spawn(scope_, watch(watched));
  return std::make_unique<PosixProcess>(
      std::move(watched), transport::adopt_unix_socket(scope_, loop_, std::move(own_end)));
}

void PosixLauncher::remove_socket(const std::string& path) {
  ::unlink(path.c_str());
}

std::unique_ptr<LogWatch> PosixLauncher::watch_log(const std::string& path,
                                                   std::function<void()> written) {
  if (!watches_) watches_ = std::make_unique<FileWatches>(loop_, scope_);
  return watches_->watch(path, std::move(written));
}

}  // namespace troupe::worker
