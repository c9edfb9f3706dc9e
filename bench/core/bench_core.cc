// The shapes of Ray's microbenchmarks, and some of our own, on a whole cluster. This process starts
// the cluster and takes it down whatever happens; a child of it is the driver that measures.
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "cluster.h"
#include "rows.h"

namespace {

volatile sig_atomic_t interrupted = 0;

void on_signal(int) {
  interrupted = 1;
}

void handle_signals(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

// In the driver.
int run_rows(const bench::Options& options, const std::string& state, bool is_alone) try {
  const bench::Processes processes{"TROUPE_STATE=" + state};
  bench::Harness harness{options, processes};
  const auto session = troupe::connect().value();
  if (!is_alone) {
    bench::remote_rows(harness, session);
    return harness.all_good() ? 0 : 1;
  }
  bench::scale_rows(harness, session);
  bench::placement_rows(harness, session);
  bench::task_rows(harness, session);
  bench::actor_rows(harness, session);
  bench::concurrent_actor_rows(harness, session);
  bench::object_rows(harness, session);
  return harness.all_good() ? 0 : 1;
} catch (const std::exception& thrown) {
  fmt::print(stderr, "{}\n", thrown.what());
  return 1;
}

// The exit status of the driver.
int run_driver(const bench::Options& options, const std::string& state, bool is_alone) {
  const pid_t driver = ::fork();
  if (driver < 0) {
    fmt::print(stderr, "cannot fork: {}\n", std::strerror(errno));
    return 1;
  }
  if (driver == 0) {
    handle_signals(SIG_DFL);
    std::exit(run_rows(options, state, is_alone));
  }
  int status = 0;
  while (::waitpid(driver, &status, 0) < 0 && errno == EINTR) {
    if (interrupted != 0) ::kill(driver, SIGKILL);
  }
  if (WIFSIGNALED(status)) fmt::print(stderr, "the driver died of signal {}\n", WTERMSIG(status));
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const auto options = bench::read_options(argc, argv);
  if (!options) return 2;
  handle_signals(on_signal);
  if (!options->state.empty()) {
    ::setenv("TROUPE_STATE", options->state.c_str(), 1);
    return run_driver(*options, options->state, false);
  }
  int status = 0;
  for (const int workers : {1, 2}) {
    const auto cluster = bench::Cluster::start(workers);
    if (!cluster) return 1;
    if (interrupted != 0) return 1;
    status = std::max(status, run_driver(*options, cluster->state(), workers == 1));
  }
  return status;
}
