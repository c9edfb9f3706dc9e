#include "tests/sim/sim_clock.h"

#include <algorithm>

namespace troupe::sim {
namespace {

// 2026-01-01T00:00:00Z. Fixed, so that what depends on the date replays too.
constexpr WallTime wall_start{std::chrono::seconds(1'767'225'600)};

}  // namespace

WallTime SimClock::wall_now() const {
  return wall_start + now_.time_since_epoch();
}

TimerClock::TimerId SimClock::call_at(Instant when, std::function<void()> callback) {
  const TimerId timer = next_++;
  when = std::max(when, now_);
  due_.emplace(std::pair{when, timer}, std::move(callback));
  when_.emplace(timer, when);
  return timer;
}

void SimClock::cancel(TimerId timer) {
  const auto found = when_.find(timer);
  if (found == when_.end()) return;
  due_.erase({found->second, timer});
  when_.erase(found);
}

std::optional<Instant> SimClock::next() const {
  if (due_.empty()) return std::nullopt;
  return due_.begin()->first.first;
}

void SimClock::fire_next() {
  TROUPE_ASSERT(!due_.empty(), "no timer to fire");
  auto node = due_.extract(due_.begin());
  when_.erase(node.key().second);
  now_ = node.key().first;
  node.mapped()();
}

void SimClock::advance_to(Instant when) {
  now_ = std::max(now_, when);
}

void SimClock::clear() {
  due_.clear();
  when_.clear();
}

}  // namespace troupe::sim
