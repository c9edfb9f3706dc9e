// A mutex of four bytes, for objects of which there are millions: a futex with three states
// (Drepper, "Futexes Are Tricky", 2011, mutex3). For sections of a few hundred nanoseconds.
#pragma once

#include <atomic>
#include <cstdint>

namespace troupe::transport {

class SmallMutex {
 public:
  SmallMutex() = default;
  SmallMutex(const SmallMutex&) = delete;
  SmallMutex& operator=(const SmallMutex&) = delete;

  void lock() {
    uint32_t seen = unlocked;
    if (state_.compare_exchange_strong(seen, held, std::memory_order_acquire)) return;
    if (seen != awaited) seen = state_.exchange(awaited, std::memory_order_acquire);
    while (seen != unlocked) {
      state_.wait(awaited, std::memory_order_relaxed);
      seen = state_.exchange(awaited, std::memory_order_acquire);
    }
  }
  void unlock() {
    if (state_.exchange(unlocked, std::memory_order_release) == awaited) state_.notify_one();
  }

 private:
  enum State : uint32_t { unlocked = 0, held = 1, awaited = 2 };
  std::atomic<uint32_t> state_ = unlocked;
};

}  // namespace troupe::transport
