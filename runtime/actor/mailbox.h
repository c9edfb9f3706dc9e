// What waits for an actor's threads: calls in the order of their arrival, and what was deferred.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "actor/call.h"
#include "actor/lookout.h"

namespace troupe::actor {

// Thread-safe; any number of threads take. Calls lie in lanes, one a concurrency group.
class Mailbox {
 public:
  struct Lane {
    // Its calls are given out only while this says so; whoever makes it say so again calls admit().
    // Empty: always.
    std::function<bool()> admits;
    size_t threads = 0;  // The number of those that take from it.
  };
  // With `rings` the threads that wait read them, too. With `on_work` nobody waits here: it is
  // called, with the mailbox locked, whenever there may be something to take.
  Mailbox(size_t calls_max, transport::RingPort* rings, std::vector<Lane> lanes,
          std::function<void()> on_work = {});

  // Errors: exhausted (full), unavailable (closed).
  Status put(std::shared_ptr<Call> call, size_t lane = 0);
  // Though it is full: of the few that the runtime itself makes. Errors: unavailable (closed).
  Status put_beyond_limit(std::shared_ptr<Call> call, size_t lane);
  // For the threads of number 0. False: closed.
  bool defer(std::function<void()> work);
  // The oldest call of a lane of these threads, without waiting; null if there is none, or none may
  // run now.
  std::shared_ptr<Call> take(size_t threads = 0);
  // The oldest deferred work; empty if there is none.
  std::function<void()> take_deferred();
  void admit();
  // Each call inside, the oldest of a lane first. `look` must not come back here.
  template <class Look>
  void for_each(Look look) {
    const std::lock_guard lock{mutex_};
    for (const Queue& queue : queues_) {
      for (const auto& call : queue.calls) look(call);
    }
  }
  bool has_something(size_t threads = 0) const;
  // Waits until there is something to take or the mailbox is closed.
  void wait(size_t threads = 0);
  // Later puts are refused; wait() returns at once. The calls inside can still be taken by
  // take_any().
  void close();
  std::shared_ptr<Call> take_any();

 private:
  struct Queue {
    explicit Queue(Lane from) : lane(std::move(from)) {}
    bool admits() const { return count.load() > 0 && (!lane.admits || lane.admits()); }
    const Lane lane;
    std::deque<std::shared_ptr<Call>> calls;
    std::atomic<size_t> count = 0;
  };
  // With the lock held: somebody should look.
  void notify(size_t threads);
  void push(std::shared_ptr<Call> call, size_t lane);
  std::shared_ptr<Call> pop(Queue& queue);

  const size_t calls_max_;
  const std::function<void()> on_work_;
  mutable std::mutex mutex_;
  std::deque<Queue> queues_;  // One a lane. What is in them is guarded.
  size_t calls_count_ = 0;    // In all of them.
  std::deque<std::function<void()>> deferred_;
  std::atomic<size_t> deferred_count_ = 0;
  std::atomic<bool> closed_ = false;
  std::atomic<size_t> turn_ = 0;  // Which lane is looked at first.
  std::deque<Lookout> lookouts_;  // By the threads' number.
};

}  // namespace troupe::actor
