// Coroutines of one event loop: scopes that own them, events that wake them, deadlines that end
// them. Nothing here is thread-safe: everything belongs to the loop (or strand) of its executor.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/system/error_code.hpp>
#include <functional>
#include <list>
#include <memory>
#include <optional>

#include "base/clock.h"
#include "base/status.h"

namespace troupe {

template <class T>
using Async = boost::asio::awaitable<T>;
using Executor = boost::asio::any_io_executor;

// A clock that also calls back. Its callbacks run on the loop that made it.
class TimerClock : public Clock {
 public:
  using TimerId = uint64_t;  // 0 is never given out.
  virtual TimerId call_at(Instant when, std::function<void()> callback) = 0;
  // The callback will not run. Harmless when it ran already.
  virtual void cancel(TimerId timer) = 0;
};

// Wakes coroutines. set() wakes all waiters, and later ones return at once; pulse() wakes the
// present waiters only. A waiter that is cancelled unwinds. Must outlive its waiters.
class Event {
 public:
  explicit Event(Executor executor) : executor_(std::move(executor)) {}
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  ~Event();

  bool is_set() const { return set_; }
  void set();
  void pulse();
  void clear() { set_ = false; }
  // Returns at the first set() or pulse() after this call, even if the coroutine that it gives is
  // awaited later: `a.wait() || b.wait()` starts both on a later turn of the loop.
  Async<void> wait() { return wait_beyond(pulses_); }

  struct Waiter {
    virtual ~Waiter() = default;
    virtual void complete(boost::system::error_code outcome) = 0;
  };

 private:
  friend Async<bool> wait_until(TimerClock& clock, Instant deadline, Event& event);
  friend Async<bool> wait_either(Event& first, Event& second);
  Async<void> wait_beyond(uint64_t seen);
  enum class Winner : uint8_t { first, second, deadline };
  // Without the coroutines, and the exception that unwinds the loser, of `a || b`, which cost
  // several times a message. `second` and `clock` may be null.
  static Async<Winner> race(Event& first, Event* second, TimerClock* clock, Instant deadline);

  Executor executor_;
  std::list<std::unique_ptr<Waiter>> waiters_;
  uint64_t pulses_ = 0;
  bool set_ = false;
};

// Owns coroutines: nothing started in it outlives stop(). The destructor asserts that none is left.
class Scope {
 public:
  explicit Scope(Executor executor);
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope();

  const Executor& executor() const { return executor_; }
  size_t size() const { return running_->size(); }
  // Asks every coroutine to unwind, from the loop's next turn on. Later spawns are refused (unwound
  // at once).
  void cancel();
  // Waits until every coroutine has ended.
  Async<void> join();
  Async<void> stop();

 private:
  friend void spawn(Scope& scope, Async<void> coroutine);
  struct Running {
    boost::asio::cancellation_signal signal;
  };
  Executor executor_;
  std::shared_ptr<std::list<Running>> running_;
  Event idle_;
  bool cancelled_ = false;
};

// Starts a coroutine that `scope` owns, on a later turn of the loop; those that are spawned first
// start first. Cancellation ends it quietly; any other exception is a bug.
void spawn(Scope& scope, Async<void> coroutine);

Async<void> sleep_until(TimerClock& clock, Instant when);
Async<void> sleep_for(TimerClock& clock, Duration duration);

// Runs `operation` until `deadline`; past it the operation is cancelled (unwound) and the answer is
// deadline_exceeded.
template <class T>
Async<Result<T>> with_deadline(TimerClock& clock, Instant deadline, Async<Result<T>> operation);

// Waits for the event; false if `deadline` came first.
Async<bool> wait_until(TimerClock& clock, Instant deadline, Event& event);
// Waits for the first of both; false: it was the second.
Async<bool> wait_either(Event& first, Event& second);

}  // namespace troupe

#include "transport/async_inline.h"
