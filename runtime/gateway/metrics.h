// The gateway's metrics, in Prometheus' text format.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "base/clock.h"

namespace troupe::gateway {

// Upper bounds in seconds; the last bucket is unbounded.
class Histogram {
 public:
  static constexpr std::array<double, 18> bounds{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
                                                 0.05,   0.1,   0.25,   0.5,   1,    2.5,
                                                 5,      10,    30,     60,    120,  300};
  void observe(Duration value);
  void write(std::string& out, const std::string& name, const std::string& labels) const;

 private:
  std::array<uint64_t, bounds.size() + 1> counts_{};
  double sum_ = 0;
};

// Labels are bounded: routes and models that exist, status codes. Not thread-safe.
class Metrics {
 public:
  void request_ended(const std::string& route, int code, Duration took);
  void first_token(const std::string& model, Duration after) { first_[model].observe(after); }
  void next_token(const std::string& model, Duration after) { between_[model].observe(after); }
  void tokens(const std::string& model, uint64_t prompt, uint64_t completion);
  void retried(const std::string& model, uint64_t count) { retries_[model] += count; }
  void in_flight(const std::string& model, uint64_t now) { in_flight_[model] = now; }
  void connections(uint64_t now) { connections_ = now; }
  void refused(const std::string& why) { ++refused_[why]; }  // A fixed set of words.

  std::string text() const;

 private:
  std::map<std::pair<std::string, int>, uint64_t> requests_;
  std::map<std::string, Histogram> durations_;  // By route.
  std::map<std::string, Histogram> first_;      // By model, as all below.
  std::map<std::string, Histogram> between_;
  std::map<std::string, uint64_t> prompt_tokens_;
  std::map<std::string, uint64_t> completion_tokens_;
  std::map<std::string, uint64_t> retries_;
  std::map<std::string, uint64_t> in_flight_;
  std::map<std::string, uint64_t> refused_;  // By reason.
  uint64_t connections_ = 0;
};

}  // namespace troupe::gateway
