// What a coroutine method can wait for besides refs: time, and a signal of another method of its
// actor. It holds no thread meanwhile.
//
//   Coroutine<int> next() {
//     while (made_.empty()) {
//       if (auto woken = co_await changed_.wait(1s); !woken) throw woken.error();
//     }
//     ...
//   }
//   void add(int one) { made_.push_back(one); changed_.notify_one(); }
#pragma once

#include <chrono>
#include <coroutine>
#include <list>
#include <memory>

#include "troupe/invoke.h"

namespace troupe {

namespace detail {

// A coroutine that waits for whichever comes first: wake(), a time, or that the call that it runs
// in should stop. Thread-safe.
class Suspension {
 public:
  // Of a coroutine that is about to wait. `session` keeps the time; null: there is none.
  static std::shared_ptr<Suspension> make(std::shared_ptr<SessionImpl> session = process_session());
  virtual ~Suspension() = default;

  // False: the wait was over before. Never runs the coroutine itself.
  virtual bool wake() = 0;
  virtual bool is_over() const = 0;
  // Suspends `waiting` on its own thread; false: the wait is over already.
  virtual bool suspend(std::coroutine_handle<> waiting, std::chrono::nanoseconds timeout) = 0;
  // Once it is over. Errors: deadline_exceeded, cancelled (the call should stop), invalid (a
  // timeout where nothing keeps the time).
  virtual Status outcome() const = 0;
};

// co_await of it gives the outcome.
struct SuspensionWait {
  std::shared_ptr<Suspension> suspension;
  std::chrono::nanoseconds timeout = no_timeout;
  bool await_ready() const { return false; }
  bool await_suspend(std::coroutine_handle<> waiting) const {
    // The coroutine may go on, and this be gone, before suspend() returns.
    const auto kept = suspension;
    return kept->suspend(waiting, timeout);
  }
  Status await_resume() const { return suspension->outcome(); }
};

struct Slept : SuspensionWait {
  Status await_resume() const {
    Status outcome = suspension->outcome();
    if (!outcome && outcome.error().code() == Code::deadline_exceeded) return ok();
    return outcome;
  }
};

}  // namespace detail

// co_await sleep_for(duration) in a coroutine method or task, which goes on once so much time has
// passed. Errors: cancelled, at once when the call that awaits should stop; invalid outside of
// tasks and actors: there Session::sleep_for.
inline detail::Slept sleep_for(std::chrono::nanoseconds duration) {
  return {{detail::Suspension::make(), duration}};
}

// Between coroutine methods of one actor, on its thread alone: a method waits until another one
// says that something changed, and then looks for itself. Those that wait longest are woken first.
// Must outlive the calls that wait, so it is a member of the actor.
class Signal {
 public:
  Signal() = default;
  Signal(const Signal&) = delete;
  Signal& operator=(const Signal&) = delete;

  class Wait {
   public:
    Wait(Signal& signal, std::chrono::nanoseconds timeout) : signal_(signal), timeout_(timeout) {}
    bool await_ready() const { return false; }
    bool await_suspend(std::coroutine_handle<> waiting) {
      suspension_ = detail::Suspension::make();
      place_ = signal_.waiting_.insert(signal_.waiting_.end(), suspension_);
      const auto kept = suspension_;
      return kept->suspend(waiting, timeout_);
    }
    Status await_resume() {
      Status outcome = suspension_->outcome();
      if (!outcome) signal_.waiting_.erase(place_);  // Who was woken is in it no more.
      return outcome;
    }

   private:
    Signal& signal_;
    const std::chrono::nanoseconds timeout_;
    std::shared_ptr<detail::Suspension> suspension_;
    std::list<std::shared_ptr<detail::Suspension>>::iterator place_;
  };

  // co_await signal.wait(): until it is notified. Errors: deadline_exceeded, cancelled (the call
  // that awaits should stop).
  Wait wait(std::chrono::nanoseconds timeout = no_timeout) { return {*this, timeout}; }
  // False: nobody waits.
  bool notify_one() {
    for (auto place = waiting_.begin(); place != waiting_.end();) {
      const auto first = *place;
      // One whose time is over takes itself out.
      const auto next = std::next(place);
      if (first->wake()) {
        waiting_.erase(place);
        return true;
      }
      place = next;
    }
    return false;
  }
  void notify_all() {
    while (notify_one()) {
    }
  }

 private:
  std::list<std::shared_ptr<detail::Suspension>> waiting_;
};

}  // namespace troupe
