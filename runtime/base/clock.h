// Time comes from the environment that a component was given.
#pragma once

#include <chrono>

namespace troupe {

using Duration = std::chrono::nanoseconds;

// A point on this process's monotonic clock; meaningless in any other process.
struct MonotonicTag {
  using duration = Duration;
  using rep = duration::rep;
  using period = duration::period;
  using time_point = std::chrono::time_point<MonotonicTag>;
  static constexpr bool is_steady = true;
};
using Instant = std::chrono::time_point<MonotonicTag, Duration>;
// Nanoseconds since the Unix epoch: for people and certificates, never for time-outs.
using WallTime = std::chrono::sys_time<Duration>;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual Instant now() const = 0;
  virtual WallTime wall_now() const = 0;
};

}  // namespace troupe
