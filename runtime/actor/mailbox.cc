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
    if (calls_.size() > 1) return ok();  // The thread was woken and has not emptied it yet.
  }
  changed_.notify_one();
  return ok();
}

std::shared_ptr<Call> Mailbox::take() {
  const std::lock_guard lock{mutex_};
  if (calls_.empty()) return nullptr;
  auto call = std::move(calls_.front());
  calls_.pop_front();
  return call;
}

void Mailbox::wait() {
  std::unique_lock lock{mutex_};
  changed_.wait(lock, [this] { return !calls_.empty() || closed_; });
}

void Mailbox::close() {
  {
    const std::lock_guard lock{mutex_};
    closed_ = true;
  }
  changed_.notify_one();
}

}  // namespace troupe::actor
