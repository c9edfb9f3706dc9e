// How long work of one kind takes, so that what cannot be done in its time is not begun.
#pragma once

#include <algorithm>
#include <mutex>

#include "base/clock.h"

namespace troupe {

// Mean and mean deviation, as TCP estimates its round trips (Jacobson, "Congestion Avoidance and
// Control", SIGCOMM 1988, appendix A). Thread-safe.
class ServiceTime {
 public:
  void note(Duration took) {
    const std::lock_guard lock{mutex_};
    if (samples_ == 0) {
      mean_ = took;
      deviation_ = took / 2;
    } else {
      const Duration error = took - mean_;
      mean_ += error / 8;
      deviation_ += ((error < Duration::zero() ? -error : error) - deviation_) / 4;
    }
    samples_ = std::min(samples_ + 1, samples_wanted);
  }
  // Whether work that has waited so long and has so much time left would most likely be late: then
  // it only takes the time of others. Never of what has waited for less than half of its time: it
  // may be of another kind than what was seen so far.
  bool is_late(Duration waited, Duration left) const {
    if (waited < left) return false;
    const std::lock_guard lock{mutex_};
    return samples_ == samples_wanted && left < mean_ + 4 * deviation_;
  }
  Duration mean() const {
    const std::lock_guard lock{mutex_};
    return mean_;
  }

 private:
  static constexpr int samples_wanted = 8;
  mutable std::mutex mutex_;
  int samples_ = 0;
  Duration mean_{};
  Duration deviation_{};
};

}  // namespace troupe
