// The shapes of Ray's microbenchmarks, and some of our own, on a whole cluster. This process starts
// the cluster and takes it down whatever happens; a child of it is the driver that measures.
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>

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

std::optional<double> positive_number(const char* text) {
  char* end = nullptr;
  const double number = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(number > 0)) return {};
  return number;
}

std::optional<bench::Options> parse(int argc, char** argv) {
  bench::Options options;
  const char* seconds = std::getenv("TROUPE_BENCH_SECONDS");
  for (int i = 1; i < argc; i += 2) {
    const std::string_view flag = argv[i];
    if (i + 1 == argc) return {};
    if (flag == "--only") {
      options.only.emplace_back(argv[i + 1]);
    } else if (flag == "--skip") {
      options.skip.emplace_back(argv[i + 1]);
    } else if (flag == "--seconds") {
      seconds = argv[i + 1];
    } else {
      return {};
    }
  }
  if (seconds == nullptr) return options;
  const auto number = positive_number(seconds);
  if (!number) return {};
  options.window_seconds = *number;
  return options;
}

// In the driver.
int run_rows(const bench::Options& options, const std::string& state) try {
  const bench::Processes processes{state};
  bench::Harness harness{options, processes};
  const auto session = troupe::connect().value();
  bench::scale_rows(harness, session);
  bench::task_rows(harness, session);
  bench::actor_rows(harness, session);
  bench::object_rows(harness, session);
  return harness.all_good() ? 0 : 1;
} catch (const std::exception& thrown) {
  fmt::print(stderr, "{}\n", thrown.what());
  return 1;
}

// The exit status of the driver.
int run_driver(const bench::Options& options, const std::string& state) {
  const pid_t driver = ::fork();
  if (driver < 0) {
    fmt::print(stderr, "cannot fork: {}\n", std::strerror(errno));
    return 1;
  }
  if (driver == 0) {
    handle_signals(SIG_DFL);
    std::exit(run_rows(options, state));
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
  const auto options = parse(argc, argv);
  if (!options) {
    fmt::print(stderr,
               "usage: bench_core [--seconds S] [--only SUBSTRING]... [--skip SUBSTRING]...\n");
    return 2;
  }
  handle_signals(on_signal);
  const auto cluster = bench::Cluster::start();
  if (!cluster) return 1;
  const int status = interrupted != 0 ? 1 : run_driver(*options, cluster->state());
  return status;
}
