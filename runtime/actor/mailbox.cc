#include "actor/mailbox.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::actor {

Mailbox::Mailbox(size_t calls_max, transport::RingPort* rings, std::vector<Lane> lanes,
                 std::function<void()> on_work)
    : calls_max_(calls_max), on_work_(std::move(on_work)) {
  for (Lane& lane : lanes) {
    while (lookouts_.size() <= lane.threads) lookouts_.emplace_back(rings);
    queues_.emplace_back(std::move(lane));
  }
}

bool Mailbox::has_something(size_t threads) const {
  if (closed_.load()) return true;
  if (threads == 0 && deferred_count_.load() > 0) return true;
  return std::ranges::any_of(queues_, [threads](const Queue& queue) {
    return queue.lane.threads == threads && queue.admits();
  });
}

void Mailbox::notify(size_t threads) {
  if (on_work_) {
    on_work_();
    return;
  }
  size_t work = threads == 0 ? deferred_.size() : 0;
  for (const Queue& queue : queues_) {
    if (queue.lane.threads == threads) work += queue.calls.size();
  }
  lookouts_[threads].notify(work);
}

Status Mailbox::put(std::shared_ptr<Call> call, size_t lane) {
  const std::lock_guard lock{mutex_};
  if (closed_) return error(Code::unavailable, "the actor is stopping; the call was not run");
  if (calls_count_ >= calls_max_) {
    return error(Code::exhausted,
                 fmt::format("the actor's mailbox is full ({} calls wait): retry later, or call "
                             "less",
                             calls_max_))
        .after(std::chrono::milliseconds(10));
  }
  push(std::move(call), lane);
  return ok();
}

Status Mailbox::put_beyond_limit(std::shared_ptr<Call> call, size_t lane) {
  const std::lock_guard lock{mutex_};
  if (closed_) return error(Code::unavailable, "the actor is stopping; the call was not run");
  push(std::move(call), lane);
  return ok();
}

// With the lock held.
void Mailbox::push(std::shared_ptr<Call> call, size_t lane) {
  Queue& queue = queues_[lane];
  queue.calls.push_back(std::move(call));
  queue.count.store(queue.calls.size());
  ++calls_count_;
  notify(queue.lane.threads);
}

bool Mailbox::defer(std::function<void()> work) {
  const std::lock_guard lock{mutex_};
  if (closed_) return false;
  deferred_.push_back(std::move(work));
  deferred_count_.store(deferred_.size());
  notify(0);
  return true;
}

void Mailbox::admit() {
  const bool waits =
      std::ranges::any_of(queues_, [](const Queue& queue) { return queue.count.load() > 0; });
  if (!waits) return;
  const std::lock_guard lock{mutex_};
  for (size_t threads = 0; threads < lookouts_.size(); ++threads) notify(threads);
}

std::shared_ptr<Call> Mailbox::pop(Queue& queue) {
  if (queue.calls.empty()) return nullptr;
  auto call = std::move(queue.calls.front());
  queue.calls.pop_front();
  queue.count.store(queue.calls.size());
  --calls_count_;
  // For this thread is busy now.
  if (!queue.calls.empty() && !on_work_) notify(queue.lane.threads);
  return call;
}

std::shared_ptr<Call> Mailbox::take(size_t threads) {
  const size_t lanes = queues_.size();
  const size_t first = lanes == 1 ? 0 : turn_.fetch_add(1, std::memory_order_relaxed);
  for (size_t i = 0; i < lanes; ++i) {
    Queue& queue = queues_[(first + i) % lanes];
    if (queue.lane.threads != threads || !queue.admits()) continue;
    const std::lock_guard lock{mutex_};
    if (auto call = pop(queue)) return call;
  }
  return nullptr;
}

std::shared_ptr<Call> Mailbox::take_any() {
  const std::lock_guard lock{mutex_};
  for (Queue& queue : queues_) {
    if (auto call = pop(queue)) return call;
  }
  return nullptr;
}

std::function<void()> Mailbox::take_deferred() {
  if (deferred_count_.load() == 0) return nullptr;
  const std::lock_guard lock{mutex_};
  if (deferred_.empty()) return nullptr;
  auto work = std::move(deferred_.front());
  deferred_.pop_front();
  deferred_count_.store(deferred_.size());
  return work;
}

void Mailbox::wait(size_t threads) {
  lookouts_[threads].wait(mutex_, [this, threads] { return has_something(threads); });
}

void Mailbox::close() {
  const std::lock_guard lock{mutex_};
  closed_ = true;
  for (Lookout& lookout : lookouts_) lookout.notify_all();
  if (on_work_) on_work_();
}

}  // namespace troupe::actor
