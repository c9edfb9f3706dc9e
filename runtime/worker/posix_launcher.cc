#include "worker/posix_launcher.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <map>

#include "base/log.h"
#include "protocol/fork_server.h"
#include "transport/asio_network.h"

extern char** environ;

namespace troupe::worker {
namespace asio = boost::asio;

// Shared by the process's handle and its watcher, who may outlive the handle until it has reaped.
struct WatchedProcess {
  explicit WatchedProcess(asio::io_context& loop)
      : started(loop.get_executor()), exited(loop.get_executor()), descriptor(loop) {}

  // The group ends with its leader. Until the leader is reaped its number cannot be reused.
  void signal(int number) {
    if (exited.is_set()) return;
    if (pid != 0) {
      ::kill(-pid, number);
    } else if (signal_at_start != SIGKILL) {
      signal_at_start = number;
    }
  }

  void fail(const Error& why) {
    reason = fmt::format("was not started ({})", why.message());
    exited.set();
    started.set();
  }

  pid_t pid = 0;
  int signal_at_start = 0;  // Sent before it had a number.
  Event started;
  Event exited;
  std::string reason;
  asio::posix::stream_descriptor descriptor;  // A pidfd.
  std::unique_ptr<transport::Connection> connection;
};

namespace {

using Watched = WatchedProcess;

constexpr int inherited_descriptor = 3;
// Above what the child's own descriptors take, so that no file action overwrites one too early.
constexpr int given_lowest = 10;

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
  explicit PosixProcess(std::shared_ptr<Watched> watched) : watched_(std::move(watched)) {}
  ~PosixProcess() override { watched_->signal(SIGKILL); }

  Event& started() override { return watched_->started; }
  uint32_t pid() const override { return static_cast<uint32_t>(watched_->pid); }
  std::unique_ptr<transport::Connection> take_connection() override {
    return std::move(watched_->connection);
  }
  Event& exited() override { return watched_->exited; }
  std::string exit_reason() const override { return watched_->reason; }
  void terminate() override { watched_->signal(SIGTERM); }
  void kill() override { watched_->signal(SIGKILL); }

 private:
  std::shared_ptr<Watched> watched_;
};

using Variables = std::vector<protocol::NamedValue>;

// What of this process's environment the others get, and theirs.
Variables environment_of(const Variables& own) {
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
  for (const auto& [name, value] : own) values[name] = value;
  Variables all;
  for (const auto& [name, value] : values) all.push_back({name, value});
  return all;
}

// Whether the libraries that a fork server has loaded would have read one of these when they were.
bool is_read_at_start(const Variables& own) {
  static constexpr std::array<std::string_view, 8> prefixes = {
      "LD_", "GLIBC_", "MALLOC_", "OPENSSL_", "ASAN_", "LSAN_", "TSAN_", "UBSAN_"};
  return std::ranges::any_of(own, [](const protocol::NamedValue& variable) {
    return std::ranges::any_of(
        prefixes, [&](std::string_view prefix) { return variable.name.starts_with(prefix); });
  });
}

Result<FileDescriptor> out_of_the_way(int descriptor, const std::string& doing) {
  if (descriptor < 0) return system_error(doing, errno);
  const FileDescriptor low{descriptor};
  FileDescriptor high{::fcntl(descriptor, F_DUPFD_CLOEXEC, given_lowest)};
  if (!high.is_open()) return system_error("duplicate a descriptor", errno);
  return high;
}

// A process gets them as its connection, its log, and, if there is a third, its working folder.
using Given = std::vector<FileDescriptor>;

struct Files {
  FileDescriptor own_end;
  Given given;
};

Result<Files> open_pair(int type) {
  int pair[2];
  if (::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) != 0) {
    return system_error("make a socket pair", errno);
  }
  Files files;
  files.own_end = FileDescriptor{pair[0]};
  TROUPE_TRY(FileDescriptor child_end, out_of_the_way(pair[1], ""));
  files.given.push_back(std::move(child_end));
  return files;
}

Result<Files> open_files(const LaunchSpec& spec) {
  TROUPE_TRY(Files files, open_pair(SOCK_STREAM));
  constexpr int log_flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
  TROUPE_TRY(FileDescriptor log, out_of_the_way(::open(spec.log_path.c_str(), log_flags, 0600),
                                                "open a process's log " + spec.log_path));
  files.given.push_back(std::move(log));
  if (!spec.working_folder.empty()) {
    constexpr int folder_flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
    TROUPE_TRY(FileDescriptor folder,
               out_of_the_way(::open(spec.working_folder.c_str(), folder_flags),
                              "open a process's working folder " + spec.working_folder));
    files.given.push_back(std::move(folder));
  }
  return files;
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

// Starts the program with one argument.
Result<pid_t> spawn_program(const std::string& program, std::string argument,
                            const Variables& environment, const Given& given) {
  FileActions files;
  int failed = 0;
  if (given.size() > 2) {
    failed = ::posix_spawn_file_actions_addfchdir_np(&files.actions, given[2].get());
  }
  if (failed == 0) {
    failed = ::posix_spawn_file_actions_addopen(&files.actions, 0, "/dev/null", O_RDONLY, 0);
  }
  if (failed == 0) failed = ::posix_spawn_file_actions_adddup2(&files.actions, given[1].get(), 1);
  if (failed == 0) failed = ::posix_spawn_file_actions_adddup2(&files.actions, given[1].get(), 2);
  if (failed == 0) {
    failed =
        ::posix_spawn_file_actions_adddup2(&files.actions, given[0].get(), inherited_descriptor);
  }
  // Asio opens its sockets without CLOEXEC.
  if (failed == 0) {
    failed = ::posix_spawn_file_actions_addclosefrom_np(&files.actions, inherited_descriptor + 1);
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

  std::vector<std::string> entries;
  for (const auto& [name, value] : environment) {
    entries.push_back(fmt::format("{}={}", name, value));
  }
  std::vector<char*> variables;
  for (std::string& entry : entries) variables.push_back(entry.data());
  variables.push_back(nullptr);
  std::string path = program;
  char* arguments[] = {path.data(), argument.data(), nullptr};
  pid_t pid = 0;
  failed = ::posix_spawn(&pid, program.c_str(), &files.actions, &how.attributes, arguments,
                         variables.data());
  if (failed != 0) return system_error("start " + program, failed);
  return pid;
}

// Follows a process of this number, which is a child that nobody has reaped.
Status follow(Scope& scope, const std::shared_ptr<Watched>& watched, pid_t pid) {
  FileDescriptor handle{static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))};
  if (!handle.is_open()) {
    const int number = errno;
    ::kill(-pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return system_error("watch the new process", number);
  }
  watched->pid = pid;
  watched->descriptor.assign(handle.release());
  if (watched->signal_at_start != 0) watched->signal(watched->signal_at_start);
  spawn(scope, watch(watched));
  watched->started.set();
  return ok();
}

}  // namespace

PosixLauncher::PosixLauncher(asio::io_context& loop, Scope& scope, std::string program,
                             ProcessStart how)
    : loop_(loop), scope_(scope), program_(std::move(program)), forks_(how == ProcessStart::fork) {}

void PosixLauncher::prepare() {
  if (!forks_ || (fork_server_ && fork_server_->is_open())) return;
  if (auto started = start_fork_server(); !started) {
    log::warning("no_fork_server", {{"why", started.error()}});
  }
}

Status PosixLauncher::start_fork_server() {
  TROUPE_TRY(Files files, open_pair(SOCK_SEQPACKET));
  TROUPE_TRY(FileDescriptor log, out_of_the_way(::dup(STDERR_FILENO), "duplicate a descriptor"));
  files.given.push_back(std::move(log));
  // Its children have nothing left to bind.
  const Variables environment = environment_of({{"LD_BIND_NOW", "1"}});
  TROUPE_TRY(const pid_t pid, spawn_program(program_, std::string(protocol::fork_server_argument),
                                            environment, files.given));
  TROUPE_CHECK(follow(scope_, std::make_shared<Watched>(loop_), pid));
  fork_server_ = std::make_unique<ForkClient>(loop_, scope_, std::move(files.own_end));
  return ok();
}

Result<std::unique_ptr<LaunchedProcess>> PosixLauncher::launch(const LaunchSpec& spec) {
  auto watched = std::make_shared<Watched>(loop_);
  if (!forks_ || is_read_at_start(spec.environment) || !fork(spec, watched)) {
    TROUPE_CHECK(start(spec, watched));
  }
  return std::make_unique<PosixProcess>(std::move(watched));
}

Status PosixLauncher::start(const LaunchSpec& spec, const std::shared_ptr<Watched>& watched) {
  TROUPE_TRY(Files files, open_files(spec));
  TROUPE_TRY(const pid_t pid, spawn_program(program_, spec.process.to_string(),
                                            environment_of(spec.environment), files.given));
  watched->connection = transport::adopt_unix_socket(scope_, loop_, std::move(files.own_end));
  return follow(scope_, watched, pid);
}

bool PosixLauncher::fork(const LaunchSpec& spec, const std::shared_ptr<Watched>& watched) {
  prepare();
  if (!fork_server_ || !fork_server_->is_open()) return false;
  auto files = open_files(spec);
  if (!files) return false;
  const auto own_end = std::make_shared<FileDescriptor>(std::move(files->own_end));
  return fork_server_->fork(
      {spec.process, environment_of(spec.environment)}, files->given,
      [this, spec, watched, own_end](Result<pid_t> pid) {
        Status done = ok();
        if (pid) {
          ::setpgid(*pid, *pid);  // As the process itself does, later perhaps than it is signalled.
          watched->connection = transport::adopt_unix_socket(scope_, loop_, std::move(*own_end));
          done = follow(scope_, watched, *pid);
        } else {
          own_end->reset();
          if (pid.error().code() == Code::unimplemented && std::exchange(forks_, false)) {
            log::warning("no_forks", {{"why", pid.error()}});
          }
          done = start(spec, watched);
        }
        if (!done) watched->fail(done.error());
      });
}

namespace {

// As the worker names the sockets of processes: by eight digits of their ids.
bool is_of_process(const std::filesystem::path& path) {
  const std::string name = path.stem();
  return path.extension() == ".sock" && name.size() == 8 &&
         name.find_first_not_of("0123456789abcdef") == name.npos;
}

// Asked as for another type of socket, which says who is there without a word to him.
bool is_nobodys(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return false;
  std::copy(path.begin(), path.end(), address.sun_path);
  const FileDescriptor socket{::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  const auto* generic = reinterpret_cast<const sockaddr*>(&address);
  return socket.is_open() && ::connect(socket.get(), generic, sizeof address) != 0 &&
         errno == ECONNREFUSED;
}

}  // namespace

size_t remove_dead_sockets(const std::string& folder, Duration age_least) {
  size_t removed = 0;
  std::error_code failed;
  const auto now = std::filesystem::file_time_type::clock::now();
  std::vector<std::filesystem::path> old;
  for (std::filesystem::directory_iterator entry{folder, failed}, end; !failed && entry != end;
       entry.increment(failed)) {
    std::error_code gone;
    const auto made = std::filesystem::last_write_time(entry->path(), gone);
    // A young one may be bound, and not listened on yet.
    if (!gone && is_of_process(entry->path()) &&
        now - made >= std::chrono::nanoseconds(age_least)) {
      old.push_back(entry->path());
    }
  }
  for (const auto& path : old) {
    if (is_nobodys(path) && ::unlink(path.c_str()) == 0) ++removed;
  }
  return removed;
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
