// Virtual time: it moves only when the simulation moves it.
#pragma once

#include <map>
#include <optional>
#include <utility>

#include "transport/async.h"

namespace troupe::sim {

// Timers of one instant fire in the order in which they were made.
class SimClock final : public TimerClock {
 public:
  Instant now() const override { return now_; }
  WallTime wall_now() const override;
  TimerId call_at(Instant when, std::function<void()> callback) override;
  void cancel(TimerId timer) override;

  // When the next timer is due; nullopt if there is none.
  std::optional<Instant> next() const;
  // Moves to the next timer, takes it out and calls it. There must be one.
  void fire_next();
  // Moves on without calling anything. Never backwards.
  void advance_to(Instant when);
  void clear();

 private:
  Instant now_{};
  std::map<std::pair<Instant, TimerId>, std::function<void()>> due_;
  std::map<TimerId, Instant> when_;
  TimerId next_ = 1;
};

}  // namespace troupe::sim
