#include "transport/doorbell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace troupe::transport {

void futex_wait(std::atomic<uint32_t>& word, uint32_t value, Instant until) {
  timespec end{};
  timespec* timeout = nullptr;
  if (until != Instant::max()) {
    // Instants are CLOCK_MONOTONIC, and FUTEX_WAIT_BITSET takes an absolute time on it.
    const auto since = std::max(until.time_since_epoch(), Duration::zero());
    end.tv_sec = since / std::chrono::seconds(1);
    end.tv_nsec = (since % std::chrono::seconds(1)).count();
    timeout = &end;
  }
  ::syscall(SYS_futex, &word, FUTEX_WAIT_BITSET, value, timeout, nullptr, FUTEX_BITSET_MATCH_ANY);
}

void futex_wake(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, 1, nullptr, nullptr, 0);
}

void Doorbell::mark(uint32_t index) {
  std::atomic<uint64_t>& word = page_.ready[index / 64 % std::size(page_.ready)];
  const uint64_t bit = uint64_t{1} << (index % 64);
  if ((word.load() & bit) == 0) word.fetch_or(bit);
}

void Doorbell::ring(uint32_t index) {
  mark(index);
  wake();
}

void Doorbell::ring_for_dead(uint32_t index) {
  mark(index);
  page_.state.exchange(watched);
  futex_wake(page_.state);
  wake_watcher();
}

void Doorbell::ring_now(uint32_t index) {
  mark(index);
  if (wake() || page_.led.load() != 0) return;
  wake_watcher();
}

bool Doorbell::wake() {
  if (page_.state.load() == watched) return false;
  const uint32_t was = page_.state.exchange(watched);
  if (was == leader_sleeps) {
    futex_wake(page_.state);
  } else if (was == watcher_sleeps) {
    wake_watcher();
  }
  return was != watched;
}

void Doorbell::wake_watcher() {
  page_.watcher.fetch_add(1);
  futex_wake(page_.watcher);
}

bool Doorbell::anything_ready(uint32_t words) const {
  for (uint32_t i = 0; i < words; ++i) {
    if (page_.ready[i].load() != 0) return true;
  }
  return false;
}

}  // namespace troupe::transport
