#include "actor/main.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstdio>
#include <cstdlib>

#include "actor/host.h"
#include "base/log.h"
#include "client/blocked_waits.h"
#include "security/credentials.h"
#include "transport/asio_network.h"
#include "transport/real_environment.h"

namespace troupe::actor {

namespace {

constexpr int inherited_descriptor = 3;

std::function<void(client::Client&)>& client_hook() {
  static std::function<void(client::Client&)> hook;
  return hook;
}

// lib/troupe/plugins beside bin, in the build tree as in a prefix; TROUPE_PLUGINS goes first.
std::vector<std::filesystem::path> plugin_folders() {
  std::vector<std::filesystem::path> folders;
  if (const char* given = std::getenv("TROUPE_PLUGINS")) folders.emplace_back(given);
  std::error_code failed;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", failed);
  const auto prefix = self.parent_path().parent_path();
  for (const char* lib : {"lib", "lib/x86_64-linux-gnu", "lib64"}) {
    folders.push_back(prefix / lib / "troupe" / "plugins");
  }
  return folders;
}

template <class IdType>
Result<IdType> id_from_environment(const char* name) {
  const char* text = std::getenv(name);
  if (text == nullptr) {
    return error(Code::invalid, fmt::format("{} is not set: a worker starts troupe-actor", name));
  }
  return IdType::parse(text);
}

// The kernel's: it strikes also while the worker, or every thread of this process, is stopped.
class LastTimer {
 public:
  void kill_at(Instant when) {
    if (!made_) {
      sigevent strike{};
      strike.sigev_notify = SIGEV_SIGNAL;
      strike.sigev_signo = SIGKILL;
      TROUPE_ASSERT(::timer_create(CLOCK_MONOTONIC, &strike, &timer_) == 0, "no timers are left");
      made_ = true;
    }
    const auto since = std::max<Duration>(when.time_since_epoch(), std::chrono::nanoseconds(1));
    itimerspec at{};
    at.it_value.tv_sec = since / std::chrono::seconds(1);
    at.it_value.tv_nsec = (since % std::chrono::seconds(1)) / std::chrono::nanoseconds(1);
    ::timer_settime(timer_, TIMER_ABSTIME, &at, nullptr);
  }

 private:
  timer_t timer_{};
  bool made_ = false;
};

Async<void> live(boost::asio::io_context& loop, client::Client& client, Host& host, int& status) {
  using namespace boost::asio::experimental::awaitable_operators;
  boost::asio::signal_set terminated{loop, SIGTERM};
  auto started = co_await client.start();
  if (!started) {
    log::error("not_attached", {{"why", started.error()}});
    status = 1;
  } else {
    if (client_hook()) client_hook()(client);
    auto token = boost::asio::use_awaitable;
    const auto raced = co_await (host.done().wait() || client.worker()->closed().wait() ||
                                 terminated.async_wait(token));
    co_await host.stop();
    status = host.exit_status();
    constexpr const char* reasons[] = {"its work is done", "its worker is gone", "SIGTERM"};
    log::info("process_ends", {{"why", reasons[raced.index()]}, {"status", status}});
  }
  co_await client.stop();
  loop.stop();
}

}  // namespace

void set_client_hook(std::function<void(client::Client&)> hook) {
  client_hook() = std::move(hook);
}

int actor_main(int, char**) {
  // The worker's death ends this process; one that came before this line closed its connection.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGINT, SIG_IGN);  // The terminal's Ctrl-C is for the driver.
  log::start("actor", log::level_from(std::getenv("TROUPE_LOG")));
  const auto process = id_from_environment<ProcessId>("TROUPE_PROCESS_ID");
  if (!process) {
    log::error("not_started_by_a_worker", {{"why", process.error()}});
    return 2;
  }
  const auto job = id_from_environment<JobId>("TROUPE_JOB_ID");
  // What user code starts must not take itself for this process or for its job's driver.
  const char* module_file = std::getenv("TROUPE_MODULE_FILE");
  HostOptions host_options;
  host_options.plugin_folders = plugin_folders();
  LastTimer last_timer;
  host_options.kill_at = [&last_timer](Instant when) { last_timer.kill_at(when); };
  if (module_file != nullptr) host_options.module_file = module_file;
  for (const char* name : {"TROUPE_PROCESS_ID", "TROUPE_JOB_ID", "TROUPE_NAMESPACE",
                           "TROUPE_MODULE", "TROUPE_MODULE_FILE"}) {
    ::unsetenv(name);
  }
  // Whoever reads along wants each line when it is whole, though standard output is a file.
  std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
  // A second thread would cost a twentieth of the start, and is hardly ever of use here.
  transport::RealEnvironment real{1};
  std::unique_ptr<security::DeferredCredentials> credentials;
  Scope connection{real.io().get_executor()};
  if (auto enabled = real.enable_rings(); !enabled) {
    log::error("no_rings", {{"why", enabled.error()}});
    return 1;
  }
  auto timeline = transport::TimelineMemory::create_if_on(real.environment().clock);
  if (!timeline) {
    log::error("no_timeline", {{"why", timeline.error()}});
    return 1;
  }
  client::ClientOptions options;
  options.timeline = timeline->get();
  options.kind = "actor";
  options.process = *process;
  if (job) options.job = *job;
  options.blocked_log_after = client::blocked_log_after(std::getenv("TROUPE_BLOCKED_LOG_S"));
  options.worker_connection =
      transport::adopt_unix_socket(connection, real.io(), FileDescriptor{inherited_descriptor});
  options.use_credentials = [&](const protocol::Attached& attached) -> Status {
    credentials = std::make_unique<security::DeferredCredentials>(security::CredentialsPem{
        attached.authority_pem, attached.certificate_pem, attached.key_pem});
    real.set_credentials(credentials.get());
    return ok();
  };
  int status = 0;
  {
    client::Client client{real.environment(), std::move(options)};
    Host host{client, std::move(host_options)};
    Scope main{real.io().get_executor()};
    spawn(main, live(real.io(), client, host, status));
    real.io().run();
    // The module's static objects and this process's memory need no orderly end: its work is done,
    // and user code may still have threads that use them.
    std::fflush(stdout);
    ::_exit(status);
  }
}

}  // namespace troupe::actor
