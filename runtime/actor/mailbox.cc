#include "actor/mailbox.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::actor {

Mailbox::Mailbox(size_t calls_max, transport::RingPort* rings, std::function<bool()> admits)
    : calls_max_(calls_max), rings_(rings), admits_(std::move(admits)) {}

bool Mailbox::has_something() const {
  return deferred_count_.load() > 0 || closed_.load() || (calls_count_.load() > 0 && admits_());
}

void Mailbox::notify() {
  if (rings_ == nullptr) {
    changed_.notify_one();
    return;
  }
  if (asleep_.empty() || calls_.size() + deferred_.size() <= looking_) return;
  Waiter* const waiter = asleep_.back();
  asleep_.pop_back();
  ++looking_;
  waiter->signal();
}

Status Mailbox::put(std::shared_ptr<Call> call) {
  const std::lock_guard lock{mutex_};
  if (closed_) return error(Code::unavailable, "the actor is stopping; the call was not run");
  if (calls_.size() >= calls_max_) {
    return error(Code::exhausted,
                 fmt::format("the actor's mailbox is full ({} calls wait): retry later, or call "
                             "less",
                             calls_max_))
        .after(std::chrono::milliseconds(10));
  }
  calls_.push_back(std::move(call));
  calls_count_.store(calls_.size());
  notify();
  return ok();
}

bool Mailbox::defer(std::function<void()> work) {
  const std::lock_guard lock{mutex_};
  if (closed_) return false;
  deferred_.push_back(std::move(work));
  deferred_count_.store(deferred_.size());
  notify();
  return true;
}

void Mailbox::admit() {
  if (calls_count_.load() == 0) return;
  const std::lock_guard lock{mutex_};
  notify();
}

std::shared_ptr<Call> Mailbox::pop() {
  if (calls_.empty()) return nullptr;
  auto call = std::move(calls_.front());
  calls_.pop_front();
  calls_count_.store(calls_.size());
  if (!calls_.empty()) notify();  // For this thread is busy now.
  return call;
}

std::shared_ptr<Call> Mailbox::take() {
  if (calls_count_.load() == 0 || !admits_()) return nullptr;
  const std::lock_guard lock{mutex_};
  return pop();
}

std::shared_ptr<Call> Mailbox::take_any() {
  const std::lock_guard lock{mutex_};
  return pop();
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

void Mailbox::wait() {
  if (rings_ == nullptr) {
    std::unique_lock lock{mutex_};
    changed_.wait(lock, [this] { return has_something(); });
    return;
  }
  if (has_something()) return;
  Waiter waiter{*rings_, Waiter::Kind::patient};
  {
    const std::lock_guard lock{mutex_};
    ++looking_;
  }
  const auto arm = [&] {
    const std::lock_guard lock{mutex_};
    if (std::find(asleep_.begin(), asleep_.end(), &waiter) != asleep_.end()) return;
    asleep_.push_back(&waiter);
    --looking_;
  };
  rings_->wait(
      waiter, Instant::max(), [this] { return has_something(); }, arm);
  const std::lock_guard lock{mutex_};
  const auto found = std::find(asleep_.begin(), asleep_.end(), &waiter);
  if (found != asleep_.end()) {
    asleep_.erase(found);
  } else {
    --looking_;
  }
}

void Mailbox::close() {
  const std::lock_guard lock{mutex_};
  closed_ = true;
  changed_.notify_all();
  for (Waiter* waiter : asleep_) waiter->signal();
  looking_ += asleep_.size();
  asleep_.clear();
}

}  // namespace troupe::actor
