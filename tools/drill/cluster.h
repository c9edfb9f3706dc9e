// A throw-away cluster, handled as its operator would: with the `troupe` tool, and by signals.
#pragma once

#include <sys/types.h>

#include <boost/json/value.hpp>
#include <chrono>
#include <filesystem>
#include <string>
#include <vector>

#include "base/status.h"

namespace troupe::drill {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start);

// Looks every millisecond until it holds; false after `limit`.
template <class Condition>
bool comes_true(Condition condition, std::chrono::nanoseconds limit);
// Waits for a moment between two looks.
void pause(std::chrono::milliseconds time);

class Cluster {
 public:
  explicit Cluster(std::filesystem::path state) : state_(std::move(state)) {}
  // Takes it down if it is up.
  ~Cluster();
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  const std::filesystem::path& state() const { return state_; }
  // `troupe up` without a gateway and with these further arguments.
  Status up(std::vector<std::string> arguments);
  Status down();
  // What `troupe ARGUMENTS -o json` prints. Errors: unavailable (it failed: what it said).
  Result<boost::json::value> ask(std::vector<std::string> arguments) const;

  // Of a daemon by its name, as the record of what runs says. Errors: not_found.
  Result<pid_t> pid_of(const std::string& daemon) const;
  // Ends it with SIGKILL and returns once it is gone. Gives the moment of the signal.
  Result<Clock::time_point> kill(const std::string& daemon) const;
  // Whether so many workers are alive, as the head sees it.
  bool has_alive(size_t workers) const;
  std::string log_of(const std::string& daemon) const;
  // The record of what runs, from which the keeper starts again what dies.
  Result<boost::json::value> read_record() const;
  Status write_record(const boost::json::value& record) const;

 private:
  std::filesystem::path state_;
  bool up_ = false;
};

template <class Condition>
bool comes_true(Condition condition, std::chrono::nanoseconds limit) {
  const auto end = Clock::now() + limit;
  while (!condition()) {
    if (Clock::now() > end) return false;
    pause(std::chrono::milliseconds(1));
  }
  return true;
}

}  // namespace troupe::drill
