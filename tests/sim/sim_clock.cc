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
  return add(when, std::move(callback), nullptr);
}

TimerClock::TimerId SimClock::add(Instant when, std::function<void()> callback, HostClock* owner) {
  const TimerId timer = next_++;
  when = std::max(when, now_);
  due_.emplace(std::pair{when, timer}, Timer{std::move(callback), owner});
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
  const TimerId timer = node.key().second;
  when_.erase(timer);
  now_ = node.key().first;
  HostClock* owner = node.mapped().owner;
  if (owner != nullptr && owner->paused_) {
    ++owner->held_back_;
    owner->held_.emplace(timer, std::move(node.mapped().callback));
    return;
  }
  node.mapped().callback();
}

void SimClock::advance_to(Instant when) {
  now_ = std::max(now_, when);
}

void SimClock::clear() {
  due_.clear();
  when_.clear();
}

TimerClock::TimerId HostClock::call_at(Instant when, std::function<void()> callback) {
  return base_.add(when, std::move(callback), this);
}

void HostClock::cancel(TimerId timer) {
  if (held_.erase(timer) == 0) base_.cancel(timer);
}

void HostClock::resume() {
  paused_ = false;
  // Under their own numbers, by which they may yet be cancelled.
  for (auto& [timer, callback] : std::exchange(held_, {})) {
    base_.due_.emplace(std::pair{base_.now_, timer}, SimClock::Timer{std::move(callback), this});
    base_.when_.emplace(timer, base_.now_);
  }
}

}  // namespace troupe::sim
