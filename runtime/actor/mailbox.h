// What waits for an actor's threads: calls in the order of their arrival, and what was deferred.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "actor/call.h"

namespace troupe::actor {

// Thread-safe; any number of threads take.
class Mailbox {
 public:
  // With `rings` the threads that wait read them, too. Calls are given out only while `admits` says
  // so; whoever makes it say so again calls admit().
  Mailbox(size_t calls_max, transport::RingPort* rings, std::function<bool()> admits);

  // Errors: exhausted (full), unavailable (closed).
  Status put(std::shared_ptr<Call> call);
  // False: closed.
  bool defer(std::function<void()> work);
  // The oldest call, without waiting; null if there is none, or none may run now.
  std::shared_ptr<Call> take();
  // The oldest deferred work; empty if there is none.
  std::function<void()> take_deferred();
  void admit();
  // Each call inside, oldest first. `look` must not come back here.
  template <class Look>
  void for_each(Look look) {
    const std::lock_guard lock{mutex_};
    for (const auto& call : calls_) look(call);
  }
  // Waits until there is something to take or the mailbox is closed.
  void wait();
  // Later puts are refused; wait() returns at once. The calls inside can still be taken by
  // take_any().
  void close();
  std::shared_ptr<Call> take_any();

 private:
  using Waiter = transport::RingPort::Waiter;
  bool has_something() const;
  // With the lock held: wakes one thread that sleeps, if those that look already do not suffice.
  void notify();
  std::shared_ptr<Call> pop();

  const size_t calls_max_;
  transport::RingPort* const rings_;
  const std::function<bool()> admits_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // Without rings.
  std::deque<std::shared_ptr<Call>> calls_;
  std::deque<std::function<void()>> deferred_;
  std::atomic<size_t> calls_count_ = 0;
  std::atomic<size_t> deferred_count_ = 0;
  std::atomic<bool> closed_ = false;
  std::vector<Waiter*> asleep_;  // Or about to be. Guarded.
  size_t looking_ = 0;           // Threads in wait() that are not. Guarded.
};

}  // namespace troupe::actor
