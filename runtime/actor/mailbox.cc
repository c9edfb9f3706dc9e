#include "actor/mailbox.h"

#include <fmt/format.h>

namespace troupe::actor {

Status Mailbox::put(std::shared_ptr<Call> call) {
  {
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
    size_.store(calls_.size());
    if (calls_.size() > 1) return ok();  // The thread was woken and has not emptied it yet.
    notify();
  }
  return ok();
}

void Mailbox::notify() {
  if (waiter_ != nullptr) waiter_->signal();
  changed_.notify_one();
}

std::shared_ptr<Call> Mailbox::take() {
  if (size_.load() == 0) return nullptr;
  const std::lock_guard lock{mutex_};
  if (calls_.empty()) return nullptr;
  auto call = std::move(calls_.front());
  calls_.pop_front();
  size_.store(calls_.size());
  return call;
}

void Mailbox::wait() {
  if (rings_ == nullptr) {
    std::unique_lock lock{mutex_};
    changed_.wait(lock, [this] { return !calls_.empty() || closed_; });
    return;
  }
  transport::RingPort::Waiter waiter{*rings_};
  const auto set = [this](transport::RingPort::Waiter* to) {
    const std::lock_guard lock{mutex_};
    waiter_ = to;
  };
  rings_->wait(
      waiter, Instant::max(), [this] { return has_something(); }, [&] { set(&waiter); });
  set(nullptr);
}

void Mailbox::close() {
  const std::lock_guard lock{mutex_};
  closed_ = true;
  notify();
}

}  // namespace troupe::actor
