// How many coroutines of a loop may do something at a time.
#pragma once

#include <cstddef>
#include <list>
#include <utility>

#include "transport/async.h"

namespace troupe {

// Belongs to one loop, and outlives its permits and who waits for one. First come, first served.
class Semaphore {
 public:
  Semaphore(Executor executor, size_t permits) : executor_(std::move(executor)), left_(permits) {}

  // Given back when it is destroyed.
  class Permit {
   public:
    explicit Permit(Semaphore& from) : from_(&from) {}
    Permit(Permit&& other) noexcept : from_(std::exchange(other.from_, nullptr)) {}
    Permit& operator=(Permit&&) = delete;
    ~Permit() {
      if (from_ != nullptr) from_->give_back();
    }

   private:
    Semaphore* from_;
  };

  Async<Permit> acquire() {
    if (left_ > 0) {
      --left_;
    } else {
      Waiter waiter{*this};
      co_await waiter.given.wait();
      waiter.has_taken = true;
    }
    co_return Permit{*this};
  }

 private:
  struct Waiter {
    explicit Waiter(Semaphore& of) : semaphore(of), given(of.executor_) {
      semaphore.waiters_.push_back(this);
    }
    Waiter(const Waiter&) = delete;
    Waiter& operator=(const Waiter&) = delete;
    ~Waiter() {
      if (!given.is_set()) {
        semaphore.waiters_.remove(this);
      } else if (!has_taken) {  // It was unwound in between.
        semaphore.give_back();
      }
    }
    Semaphore& semaphore;
    Event given;
    bool has_taken = false;
  };

  void give_back() {
    if (waiters_.empty()) {
      ++left_;
      return;
    }
    Waiter* const next = waiters_.front();
    waiters_.pop_front();
    next->given.set();
  }

  const Executor executor_;
  size_t left_;
  std::list<Waiter*> waiters_;
};

}  // namespace troupe
