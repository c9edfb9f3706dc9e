// How a row is measured: Ray's way, so that rows compare. A warm-up counts calls; then each of four
// windows runs a tenth of that count, plus one, between looks at the clock, until its time is up.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "processes.h"

namespace bench {

using Work = std::function<void()>;

struct Options {
  double window_seconds = 2;      // The warm-up takes half of it.
  std::vector<std::string> only;  // Rows whose name holds one of these; empty: all.
  std::vector<std::string> skip;
  std::string state;  // Of a cluster of two nodes that runs already; empty: start some.
};

// From [--seconds S] [--only SUBSTRING]... [--skip SUBSTRING]... [--state FOLDER] and
// TROUPE_BENCH_SECONDS. Nothing, with the usage on stderr, if they are wrong.
std::optional<Options> read_options(int argc, char** argv);

// What a run of the timed function stands for.
struct Shape {
  std::string_view name;
  std::string_view unit = "calls/s";
  double multiplier = 1;     // Units.
  double calls = 0;          // Calls, for the cpu time of a million; 0: as many as units.
  bool is_one_call = false;  // Its own time is a latency.
};

struct Measured {
  double rate = 0;    // Units a second: the mean of the windows.
  double spread = 0;  // Their standard deviation.
  double p50_us = 0;  // Of single calls; 0: not timed.
  double p99_us = 0;
  double cpu_s_per_million = 0;  // All processes' user and system seconds for a million calls.
};

using Extra = std::vector<std::pair<std::string_view, double>>;

class Harness {
 public:
  Harness(Options options, const Processes& processes)
      : options_(std::move(options)), processes_(processes) {}

  const Options& options() const { return options_; }
  const Processes& processes() const { return processes_; }

  // Runs `body` if the row is wanted. What it throws makes the row fail, and the others go on.
  void row(std::string_view name, const Work& body);
  // In a row's body. `after` clears up after each run of `work`, off the clock.
  Measured windows(const Shape& shape, const Work& work, const Work& after = {});
  // Both, with the row printed.
  void measure(const Shape& shape, const Work& work, const Work& after = {});
  void print(std::string_view name, double value, std::string_view unit, const Extra& extra = {});

  bool all_good() const { return failed_ == 0; }

 private:
  bool is_wanted(std::string_view name) const;

  Options options_;
  const Processes& processes_;
  int failed_ = 0;
};

double seconds_since(std::chrono::steady_clock::time_point start);
// How long `work` takes.
double seconds_of(const Work& work);
std::pair<double, double> mean_and_deviation(const std::vector<double>& values);

}  // namespace bench
