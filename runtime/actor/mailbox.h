// The calls that wait for an actor's thread, in the order of their arrival.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

#include "actor/call.h"

namespace troupe::actor {

// Thread-safe; one thread takes.
class Mailbox {
 public:
  // With `rings` the thread that waits reads them, too.
  Mailbox(size_t calls_max, transport::RingPort* rings) : calls_max_(calls_max), rings_(rings) {}

  // Errors: exhausted (full), unavailable (closed).
  Status put(std::shared_ptr<Call> call);
  // The oldest call, without waiting; null if there is none.
  std::shared_ptr<Call> take();
  // Each call inside, oldest first. `look` must not come back here.
  template <class Look>
  void for_each(Look look) {
    const std::lock_guard lock{mutex_};
    for (const auto& call : calls_) look(call);
  }
  // Waits until there is a call or the mailbox is closed.
  void wait();
  // Later puts are refused; wait() returns at once. The calls inside can still be taken.
  void close();

 private:
  bool has_something() const { return size_.load() > 0 || closed_.load(); }
  void notify();

  const size_t calls_max_;
  transport::RingPort* const rings_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Call>> calls_;
  std::atomic<size_t> size_ = 0;
  std::atomic<bool> closed_ = false;
  transport::RingPort::Waiter* waiter_ = nullptr;  // The thread that waits. Guarded by mutex_.
};

}  // namespace troupe::actor
