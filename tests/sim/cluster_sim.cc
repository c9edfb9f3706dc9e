// Simulated clusters by the hour. `cluster_sim --seed N` replays one, exactly.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "base/log.h"
#include "tests/sim/episode.h"

namespace troupe::sim {
namespace {

constexpr const char* usage =
    "usage: cluster_sim [--seed N] [--hours H] [--seeds N] [--history] [--every-fault] [--twice]\n"
    "  --seed N       runs seed N, or with --hours or --seeds begins there\n"
    "  --hours H      as many simulated hours as that takes (default: one seed)\n"
    "  --seeds N      as many seeds\n"
    "  --history      prints all that happens\n"
    "  --every-fault  fails if a kind of fault never fired\n"
    "  --twice        runs each seed twice and compares the histories\n";

struct Arguments {
  std::optional<uint64_t> seed;
  double hours = 0;
  uint64_t seeds = 0;
  bool history = false;
  bool every_fault = false;
  bool twice = false;
};

std::optional<Arguments> parse(int count, char** values) {
  Arguments arguments;
  for (int i = 1; i < count; ++i) {
    const std::string_view name = values[i];
    const char* next = i + 1 < count ? values[i + 1] : nullptr;
    if (name == "--history") {
      arguments.history = true;
    } else if (name == "--every-fault") {
      arguments.every_fault = true;
    } else if (name == "--twice") {
      arguments.twice = true;
    } else if (name == "--seed" && next != nullptr) {
      arguments.seed = std::strtoull(next, nullptr, 10);
      ++i;
    } else if (name == "--seeds" && next != nullptr) {
      arguments.seeds = std::strtoull(next, nullptr, 10);
      ++i;
    } else if (name == "--hours" && next != nullptr) {
      arguments.hours = std::strtod(next, nullptr);
      ++i;
    } else {
      return std::nullopt;
    }
  }
  return arguments;
}

double hours_of(Duration duration) {
  return std::chrono::duration<double, std::ratio<3600>>(duration).count();
}

struct Sum {
  uint64_t seeds = 0;
  uint64_t failures = 0;
  Duration simulated{};
  FaultCounts faults;
  uint64_t succeeded = 0;
  uint64_t failed = 0;
  uint64_t leases = 0;
  uint64_t grants = 0;
};

void run_one(const Arguments& arguments, uint64_t seed, Sum& sum) {
  EpisodeOptions options{seed, arguments.history};
  const EpisodeResult result = run_episode(options);
  ++sum.seeds;
  sum.simulated += result.simulated;
  sum.faults.add(result.faults);
  sum.succeeded += result.succeeded;
  sum.failed += result.failed;
  sum.leases += result.leases;
  sum.grants += result.grants;
  bool failed = !result.violations.empty();
  for (const std::string& violation : result.violations) {
    fmt::print("--seed {}: {}\n", seed, violation);
  }
  if (arguments.twice && run_episode(options).hash != result.hash) {
    fmt::print("--seed {}: two runs differ\n", seed);
    failed = true;
  }
  if (failed) ++sum.failures;
  if (!arguments.hours && !arguments.seeds) {
    fmt::print("seed {}: {:.0f} s simulated, history {:016x}\n", seed,
               std::chrono::duration<double>(result.simulated).count(), result.hash);
  }
  std::fflush(stdout);
}

int run(const Arguments& arguments) {
  const char* level = std::getenv("TROUPE_LOG");
  log::start("sim", level != nullptr ? log::level_from(level) : log::Level::error);
  const auto began = std::chrono::steady_clock::now();
  constexpr uint64_t failures_enough = 20;
  Sum sum;
  for (uint64_t seed = arguments.seed.value_or(1);; ++seed) {
    run_one(arguments, seed, sum);
    const bool more = sum.seeds < arguments.seeds || hours_of(sum.simulated) < arguments.hours;
    if (!more || sum.failures >= failures_enough) break;
  }
  const auto seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  fmt::print("{} seeds, {:.2f} simulated hours in {:.1f} s; {} seeds failed\n", sum.seeds,
             hours_of(sum.simulated), seconds, sum.failures);
  fmt::print("{} successes, {} failures, {} leases, {} grants of groups\n", sum.succeeded,
             sum.failed, sum.leases, sum.grants);
  fmt::print("faults: {}\n", sum.faults.to_string());
  const std::string missing = sum.faults.missing();
  if (!missing.empty()) fmt::print("never fired: {}\n", missing);
  if (sum.failures > 0) return 1;
  return arguments.every_fault && !missing.empty() ? 1 : 0;
}

}  // namespace
}  // namespace troupe::sim

int main(int count, char** values) {
  const auto arguments = troupe::sim::parse(count, values);
  if (!arguments) {
    std::fputs(troupe::sim::usage, stderr);
    return 2;
  }
  return troupe::sim::run(*arguments);
}
