// Virtual time: it moves only when the simulation moves it.
#pragma once

#include <map>
#include <optional>
#include <utility>

#include "transport/async.h"

namespace troupe::sim {

class HostClock;

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
  friend class HostClock;
  struct Timer {
    std::function<void()> callback;
    HostClock* owner = nullptr;
  };

  TimerId add(Instant when, std::function<void()> callback, HostClock* owner);

  Instant now_{};
  std::map<std::pair<Instant, TimerId>, Timer> due_;
  std::map<TimerId, Instant> when_;
  TimerId next_ = 1;
};

// The clock of one process: its timers wait while the process is paused, and its wall clock may
// jump.
class HostClock final : public TimerClock {
 public:
  explicit HostClock(SimClock& base) : base_(base) {}

  Instant now() const override { return base_.now(); }
  WallTime wall_now() const override { return base_.wall_now() + wall_offset_; }
  TimerId call_at(Instant when, std::function<void()> callback) override;
  void cancel(TimerId timer) override;

  void pause() { paused_ = true; }
  // What was due meanwhile is due now.
  void resume();
  bool is_paused() const { return paused_; }
  // How many of its timers waited for the end of a pause.
  uint64_t held_back() const { return held_back_; }
  void jump(Duration by) { wall_offset_ += by; }

 private:
  friend class SimClock;

  SimClock& base_;
  Duration wall_offset_{};
  bool paused_ = false;
  uint64_t held_back_ = 0;
  std::map<TimerClock::TimerId, std::function<void()>> held_;
};

}  // namespace troupe::sim
