// How a process hears of records in its rings: one doorbell a process, a page that its peers write,
// too. A peer can at worst wake it in vain or not at all.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/clock.h"
#include "transport/ring.h"

namespace troupe::transport {

inline constexpr uint32_t rings_max = 1024;  // Of one process.

struct DoorbellPage {
  // Who must be woken by a ring: see Doorbell::State. Also a futex, on which the leader sleeps.
  alignas(64) std::atomic<uint32_t> state;
  std::atomic<uint32_t> watcher;  // The watcher's futex; counts its wake-ups.
  std::atomic<uint32_t> awake;    // This process's part of NodePage::awake.
  std::atomic<uint32_t> led;      // A thread waits and reads the rings by itself.
  alignas(64) std::atomic<uint64_t> ready[rings_max / 64];  // A bit a ring.
};

// Shared by all processes of a node.
struct NodePage {
  // Threads that work for Troupe and are not asleep: while there are no more than processors, one
  // that waits may spin.
  std::atomic<int32_t> awake;
};

// The owner's and the peers' view of one page.
class Doorbell {
 public:
  enum State : uint32_t {
    watched = 0,  // Somebody looks soon.
    watcher_sleeps = 1,
    leader_sleeps = 2,
  };

  explicit Doorbell(SharedPage page)
      : memory_(std::make_shared<SharedPage>(std::move(page))),
        page_(memory_->as<DoorbellPage>()) {}

  // A peer wrote to ring `index`. The write was published by a full barrier.
  void ring(uint32_t index);
  // Wakes whoever sleeps; true: somebody did.
  bool wake();
  // As ring, of what no waiting thread asks for: a watcher that would look in a moment looks now.
  void ring_now(uint32_t index);
  // As ring, of a peer that may have died while it rang: it may have written that all are awake and
  // woken nobody.
  void ring_for_dead(uint32_t index);

  bool anything_ready(uint32_t words) const;
  DoorbellPage& page() const { return page_; }
  const std::shared_ptr<SharedPage>& memory() const { return memory_; }

 private:
  void mark(uint32_t index);
  void wake_watcher();

  std::shared_ptr<SharedPage> memory_;
  DoorbellPage& page_;
};

// Sleeps while `word` is `value`, until `until` at most.
void futex_wait(std::atomic<uint32_t>& word, uint32_t value, Instant until);
void futex_wake(std::atomic<uint32_t>& word);

}  // namespace troupe::transport
