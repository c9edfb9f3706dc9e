// `troupe keeper`: starts again what dies of a cluster on this machine.
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <map>

#include "base/log.h"
#include "troupe/commands.h"
#include "troupe/daemon_process.h"
#include "troupe/own_log.h"
#include "troupe/state_folder.h"

namespace troupe::tools {

namespace {

using Steady = std::chrono::steady_clock;

constexpr Duration ready_budget = std::chrono::seconds(20);
// How long a daemon is left alone that dies again soon; one that was ready only for a moment.
constexpr Duration wait_first = std::chrono::milliseconds(100);
constexpr Duration wait_longest = std::chrono::seconds(10);
constexpr Duration wait_longest_if_ready = std::chrono::milliseconds(400);
// Who was ready and lived for so long is started again at once.
constexpr Duration long_life = std::chrono::seconds(1);

// SIGTERM is blocked but while it waits, so that none comes between a look and the wait.
class Blocked {
 public:
  Blocked() {
    sigset_t stops;
    ::sigemptyset(&stops);
    ::sigaddset(&stops, SIGTERM);
    ::sigaddset(&stops, SIGINT);
    ::sigprocmask(SIG_BLOCK, &stops, &before_);
  }
  ~Blocked() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }
  const sigset_t& before() const { return before_; }

 private:
  sigset_t before_;
};

class Keeper {
 public:
  explicit Keeper(StateFolder folder) : folder_(std::move(folder)) {}

  // Returns when it is asked to end, or the cluster was taken down.
  Status run() {
    while (!was_interrupted()) {
      // It says something only when a daemon has died.
      (void)bound_log(folder_.logs() / "keeper.log", {STDERR_FILENO, STDOUT_FILENO});
      TROUPE_TRY(auto record, folder_.read_record());
      Steady::time_point next = Steady::time_point::max();
      std::vector<FileDescriptor> running;
      for (DaemonRecord& daemon : record.daemons) {
        if (daemon.kind == "keeper") continue;
        // Looked at after the descriptor was taken: from then on it cannot become another's.
        FileDescriptor handle{static_cast<int>(::syscall(SYS_pidfd_open, daemon.pid, 0))};
        if (handle.is_open() && is_running(daemon)) {
          running.push_back(std::move(handle));
          continue;
        }
        Death& death = deaths_[daemon.name];
        if (!death.is_noted) note(daemon, death);
        if (death.restart_at <= Steady::now()) {
          start_again(daemon, record, death);
          next = Steady::now();  // And look anew.
        } else {
          next = std::min(next, death.restart_at);
        }
      }
      wait(running, next);
    }
    return ok();
  }

 private:
  struct Death {
    bool is_noted = false;
    bool was_ready = false;
    Duration wait = Duration::zero();
    Steady::time_point restart_at;
    Steady::time_point started_at;
  };

  void note(const DaemonRecord& daemon, Death& death) {
    const auto now = Steady::now();
    death.is_noted = true;
    const bool is_first = death.started_at == Steady::time_point{};
    const bool lived =
        death.was_ready && now - death.started_at > std::chrono::nanoseconds(long_life);
    const Duration most = death.was_ready ? wait_longest_if_ready : wait_longest;
    death.wait = is_first || lived ? Duration::zero()
                                   : std::clamp<Duration>(death.wait * 2, wait_first, most);
    death.restart_at = now + std::chrono::nanoseconds(death.wait);
    log::warning("daemon_died", {{"daemon", daemon.name},
                                 {"pid", daemon.pid},
                                 {"again_in_ms", death.wait / std::chrono::milliseconds(1)}});
  }

  void start_again(DaemonRecord& daemon, ClusterRecord& record, Death& death) {
    death.started_at = Steady::now();
    death.is_noted = false;
    const Status started = start(daemon, record);
    death.was_ready = started.has_value();
    if (!started) {
      log::error("daemon_not_started", {{"daemon", daemon.name}, {"why", started.error()}});
      return;
    }
    const auto took = Steady::now() - death.started_at;
    log::info("daemon_started_again", {{"daemon", daemon.name},
                                       {"pid", daemon.pid},
                                       {"ms", took / std::chrono::milliseconds(1)}});
  }

  Status start(DaemonRecord& daemon, ClusterRecord& record) {
    FileDescriptor lock;
    if (daemon.kind == "head") {
      TROUPE_TRY(lock, folder_.lock(daemon.name));
    }
    const std::string log_path = folder_.logs() / (daemon.name + ".log");
    TROUPE_TRY(auto started,
               start_daemon(daemon.kind, daemon.name, daemon.arguments, log_path, lock));
    daemon = started.record;
    // So that `down` finds it whatever happens next.
    if (auto written = folder_.write_record(record); !written) {
      end_daemons({daemon}, Duration::zero());
      return written;
    }
    const auto ready = wait_ready(started, log_path, ready_budget);
    return ready ? ok() : Status{ready.error()};
  }

  static void wait(const std::vector<FileDescriptor>& running, Steady::time_point until) {
    const Blocked blocked;
    if (was_interrupted()) return;
    std::vector<pollfd> all;
    for (const FileDescriptor& handle : running) all.push_back({handle.get(), POLLIN, 0});
    const auto left = std::max<Steady::duration>(until - Steady::now(), Steady::duration::zero());
    const bool for_ever = until == Steady::time_point::max();
    const timespec patience{left / std::chrono::seconds(1),
                            (left % std::chrono::seconds(1)) / std::chrono::nanoseconds(1)};
    ::ppoll(all.data(), all.size(), for_ever ? nullptr : &patience, &blocked.before());
  }

  StateFolder folder_;
  std::map<std::string, Death> deaths_;
};

}  // namespace

int run_keeper(const CommonOptions& common, const DaemonOptions& options) {
  log::start(options.name.empty() ? "keeper" : options.name,
             log::level_from(std::getenv("TROUPE_LOG")));
  watch_interrupts();
  ::signal(SIGCHLD, SIG_IGN);  // Whom it starts nobody waits for.
  report_ready(boost::json::object{});
  const Status ended = Keeper{StateFolder{common.state}}.run();
  if (ended || ended.error().code() == Code::not_found) return 0;  // Taken down.
  log::error("keeper_ends", {{"why", ended.error()}});
  return fail(ended.error());
}

}  // namespace troupe::tools
