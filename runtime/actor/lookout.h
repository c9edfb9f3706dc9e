// Threads that wait for work of one kind.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "transport/ring_port.h"

namespace troupe::actor {

// With rings, who waits reads them meanwhile. One mutex, the work's, guards the work and this.
class Lookout {
 public:
  explicit Lookout(transport::RingPort* rings) : rings_(rings) {}

  // Without the mutex: waits until has(), which may be called with or without it.
  template <class Has>
  void wait(std::mutex& mutex, Has has);

  // --- With the mutex held.
  // There are so many pieces of work: wakes one thread that sleeps, if those that look already do
  // not suffice.
  void notify(size_t work);
  void notify_all();
  // Threads in wait().
  size_t idle() const { return looking_ + asleep_.size(); }

 private:
  using Waiter = transport::RingPort::Waiter;
  transport::RingPort* const rings_;
  std::condition_variable changed_;  // Without rings.
  std::vector<Waiter*> asleep_;      // Or about to be.
  size_t looking_ = 0;               // Threads in wait() that are not.
};

template <class Has>
void Lookout::wait(std::mutex& mutex, Has has) {
  if (rings_ == nullptr) {
    std::unique_lock lock{mutex};
    ++looking_;
    changed_.wait(lock, has);
    --looking_;
    return;
  }
  if (has()) return;
  Waiter waiter{*rings_, Waiter::Kind::patient};
  const auto sleeping = [&] { return std::find(asleep_.begin(), asleep_.end(), &waiter); };
  {
    const std::lock_guard lock{mutex};
    ++looking_;
  }
  const auto arm = [&] {
    const std::lock_guard lock{mutex};
    if (sleeping() != asleep_.end()) return;
    asleep_.push_back(&waiter);
    --looking_;
  };
  rings_->wait(waiter, Instant::max(), has, arm);
  const std::lock_guard lock{mutex};
  if (const auto found = sleeping(); found != asleep_.end()) {
    asleep_.erase(found);
  } else {
    --looking_;
  }
}

}  // namespace troupe::actor
