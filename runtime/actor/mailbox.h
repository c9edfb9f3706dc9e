// The calls that wait for an actor's thread, in the order of their arrival.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

#include "actor/call.h"

namespace troupe::actor {

// Thread-safe; one thread takes.
class Mailbox {
 public:
  explicit Mailbox(size_t calls_max) : calls_max_(calls_max) {}

  // Errors: exhausted (full), unavailable (closed).
  Status put(std::shared_ptr<Call> call);
  // The oldest call, without waiting; null if there is none.
  std::shared_ptr<Call> take();
  // Waits until there is a call or the mailbox is closed.
  void wait();
  // Later puts are refused; wait() returns at once. The calls inside can still be taken.
  void close();

 private:
  const size_t calls_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Call>> calls_;
  bool closed_ = false;
};

}  // namespace troupe::actor
