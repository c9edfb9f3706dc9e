#include "harness.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <thread>

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int window_count = 4;
// Leases end and killed actors are gone before the next row starts.
constexpr auto settling = std::chrono::milliseconds(700);

double percentile(std::vector<double>& values, double part) {
  if (values.empty()) return 0;
  const auto index = static_cast<size_t>(part * static_cast<double>(values.size() - 1));
  std::ranges::nth_element(values, values.begin() + static_cast<std::ptrdiff_t>(index));
  return values[index];
}

// Calls `work` and what clears up after it, and counts the time of `work` alone.
class Timed {
 public:
  Timed(const Work& work, const Work& after, bool keeps_times)
      : work_(work), after_(after), keeps_times_(keeps_times) {}

  // Seconds of `count` runs.
  double run(uint64_t count) {
    const auto start = Clock::now();
    auto before = start;
    double cleared = 0;
    for (uint64_t i = 0; i < count; ++i) {
      work_();
      if (keeps_times_) {
        const auto now = Clock::now();
        times_us_.push_back(std::chrono::duration<double, std::micro>(now - before).count());
        before = now;
      }
      if (after_) {
        cleared += seconds_of(after_);
        before = Clock::now();
      }
    }
    return seconds_since(start) - cleared;
  }
  std::vector<double>& times_us() { return times_us_; }

 private:
  const Work& work_;
  const Work& after_;
  bool keeps_times_;
  std::vector<double> times_us_;
};

bool holds_one_of(std::string_view name, const std::vector<std::string>& parts) {
  return std::ranges::any_of(
      parts, [&](const std::string& part) { return name.find(part) != std::string_view::npos; });
}

std::optional<double> positive_number(const char* text) {
  char* end = nullptr;
  const double number = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(number > 0)) return {};
  return number;
}

std::optional<Options> parse(int argc, char** argv) {
  Options options;
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
    } else if (flag == "--state") {
      options.state = argv[i + 1];
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

}  // namespace

std::optional<Options> read_options(int argc, char** argv) {
  auto options = parse(argc, argv);
  if (!options) {
    fmt::print(
        stderr,
        "usage: {} [--seconds S] [--only SUBSTRING]... [--skip SUBSTRING]... [--state FOLDER]\n",
        argv[0]);
  }
  return options;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double seconds_of(const Work& work) {
  const auto start = Clock::now();
  work();
  return seconds_since(start);
}

std::pair<double, double> mean_and_deviation(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  double mean = 0;
  for (const double value : values) mean += value / count;
  double variance = 0;
  for (const double value : values) variance += (value - mean) * (value - mean) / count;
  return {mean, std::sqrt(variance)};
}

bool Harness::is_wanted(std::string_view name) const {
  if (holds_one_of(name, options_.skip)) return false;
  return options_.only.empty() || holds_one_of(name, options_.only);
}

void Harness::row(std::string_view name, const Work& body) {
  if (!is_wanted(name)) return;
  std::this_thread::sleep_for(settling);
  try {
    body();
  } catch (const std::exception& thrown) {
    ++failed_;
    fmt::print(stderr, "{} failed: {}\n", name, thrown.what());
  }
}

Measured Harness::windows(const Shape& shape, const Work& work, const Work& after) {
  Timed timed{work, after, shape.is_one_call};
  uint64_t warm_up = 0;
  for (double spent = 0; spent < options_.window_seconds / 2; ++warm_up) spent += timed.run(1);
  timed.times_us().clear();

  const uint64_t step = warm_up / 10 + 1;
  std::vector<double> rates;
  uint64_t total = 0;
  const double cpu_before = processes_.cpu_seconds();
  for (int window = 0; window < window_count; ++window) {
    double spent = 0;
    uint64_t count = 0;
    while (spent < options_.window_seconds) {
      spent += timed.run(step);
      count += step;
    }
    rates.push_back(shape.multiplier * static_cast<double>(count) / spent);
    total += count;
  }
  const double cpu = processes_.cpu_seconds() - cpu_before;

  const auto [rate, spread] = mean_and_deviation(rates);
  const double calls = shape.calls > 0 ? shape.calls : shape.multiplier;
  return {.rate = rate,
          .spread = spread,
          .p50_us = percentile(timed.times_us(), 0.5),
          .p99_us = percentile(timed.times_us(), 0.99),
          .cpu_s_per_million = cpu / (static_cast<double>(total) * calls) * 1e6};
}

void Harness::measure(const Shape& shape, const Work& work, const Work& after) {
  const Measured measured = windows(shape, work, after);
  Extra extra{{"spread", measured.spread}};
  if (shape.is_one_call) {
    extra.emplace_back("p50_us", measured.p50_us);
    extra.emplace_back("p99_us", measured.p99_us);
  }
  extra.emplace_back("cpu_s_per_million", measured.cpu_s_per_million);
  print(shape.name, measured.rate, shape.unit, extra);
}

void Harness::print(std::string_view name, double value, std::string_view unit,
                    const Extra& extra) {
  std::string line =
      fmt::format("{{\"name\":\"{}\",\"value\":{:.4g},\"unit\":\"{}\"", name, value, unit);
  for (const auto& [key, number] : extra) line += fmt::format(",\"{}\":{:.4g}", key, number);
  fmt::print("{}}}\n", line);
  std::fflush(stdout);
}

}  // namespace bench
