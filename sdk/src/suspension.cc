#include <boost/asio/post.hpp>
#include <mutex>
#include <optional>
#include <stop_token>

#include "call_scope.h"
#include "session_impl.h"
#include "troupe/signal.h"

namespace troupe::detail {
namespace {

class SuspensionImpl final : public Suspension,
                             public std::enable_shared_from_this<SuspensionImpl> {
 public:
  explicit SuspensionImpl(std::weak_ptr<SessionImpl> session) : session_(std::move(session)) {}

  bool wake() override { return end(End::woken); }

  bool suspend(std::coroutine_handle<> waiting, std::chrono::nanoseconds timeout) override {
    const auto session = session_.lock();
    if (timeout < no_timeout && !session) {
      end(End::untimed);
      return false;
    }
    {
      const std::lock_guard lock{mutex_};
      if (end_ != End::none) return false;
      next_.emplace();
      waiting_ = waiting;
    }
    // From here on it may go on, on any thread.
    if (timeout < no_timeout) start_timer(*session, timeout);
    if (const auto scope = CallScope::current()) {
      on_stop_.emplace(scope->token(), Stop{weak_from_this()});
    }
    return true;
  }

  bool is_over() const override {
    const std::lock_guard lock{mutex_};
    return end_ != End::none;
  }

  Status outcome() const override {
    const std::lock_guard lock{mutex_};
    switch (end_) {
      case End::woken:
        return ok();
      case End::timed_out:
        return error(Code::deadline_exceeded, "nobody woke it in time");
      case End::stopped:
        return error(Code::cancelled, "the call that waits was told to stop");
      case End::untimed:
        return error(Code::invalid,
                     "nothing keeps the time outside of tasks and actors: use Session::sleep_for");
      case End::none:
        break;
    }
    return error(Code::internal, "it still waits");
  }

 private:
  enum class End : uint8_t { none, woken, timed_out, stopped, untimed };
  struct Stop {
    std::weak_ptr<SuspensionImpl> suspension;
    void operator()() const {
      if (const auto kept = suspension.lock()) kept->end(End::stopped);
    }
  };

  bool end(End how) {
    std::coroutine_handle<> waiting;
    {
      const std::lock_guard lock{mutex_};
      if (end_ != End::none) return false;
      end_ = how;
      waiting = waiting_;
    }
    if (how != End::timed_out) stop_timer();
    if (waiting) next_->resume_later(waiting);
    return true;
  }

  void start_timer(SessionImpl& session, std::chrono::nanoseconds timeout) {
    client::Client* const client = &session.client();
    has_timer_.store(true);
    const Instant when = client->environment().clock.now() + timeout;
    session.post([self = shared_from_this(), client, when] {
      {
        const std::lock_guard lock{self->mutex_};
        if (self->end_ != End::none) return;
      }
      self->timer_ = client->environment().clock.call_at(when, [self] {
        self->timer_ = 0;
        self->end(End::timed_out);
      });
    });
  }
  void stop_timer() {
    if (!has_timer_.load()) return;
    const auto session = session_.lock();
    if (!session) return;
    client::Client* const client = &session->client();
    session->post([self = shared_from_this(), client] {
      if (self->timer_ != 0) client->environment().clock.cancel(std::exchange(self->timer_, 0));
    });
  }

  const std::weak_ptr<SessionImpl> session_;
  mutable std::mutex mutex_;  // Guards what follows, up to the timer.
  End end_ = End::none;
  std::coroutine_handle<> waiting_;
  std::optional<Continuation> next_;  // Once there is a coroutine that waits; then it stays.
  std::atomic<bool> has_timer_ = false;
  TimerClock::TimerId timer_ = 0;  // The loop's own.
  // Last: while it is called it may be the one that lets go of this.
  std::optional<std::stop_callback<Stop>> on_stop_;
};

}  // namespace

std::shared_ptr<Suspension> Suspension::make(std::shared_ptr<SessionImpl> session) {
  return std::make_shared<SuspensionImpl>(session);
}

}  // namespace troupe::detail
