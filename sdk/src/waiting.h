// How a thread of a program waits: told to whoever asks why (client/blocked_waits.h) once it takes
// a moment, and ended if it could never end.
#pragma once

#include <atomic>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "client/blocked_waits.h"
#include "session_impl.h"
#include "transport/ring_port.h"
#include "troupe/this_call.h"

namespace troupe::detail {

// Most waits are over before the head could make use of a task's cpu, and before anybody asks.
inline constexpr Duration moment = std::chrono::milliseconds(10);

// What it is that a thread waits for. Asked for on the loop, while the thread waits.
using Facts = std::function<client::WaitFacts()>;

// Of a thread that reads the rings.
class RingWait final : public client::BlockedWait {
 public:
  RingWait(const Facts& facts, transport::RingPort::Waiter& waiter)
      : BlockedWait(current_call().call, true), facts_(facts), waiter_(waiter) {}

  client::WaitFacts facts() override { return facts_(); }
  void fail(const Error& why) override {
    failure_ = why;
    failed_.store(true, std::memory_order_release);
    waiter_.signal();
  }
  bool has_failed() const { return failed_.load(std::memory_order_acquire); }
  const Error& failure() const { return *failure_; }

 private:
  const Facts& facts_;
  transport::RingPort::Waiter& waiter_;
  std::optional<Error> failure_;
  std::atomic<bool> failed_ = false;
};

// Blocks this thread until done(), as RingPort::wait; false at the deadline. The thread reads the
// process's rings meanwhile, and a task lends its cpu. Errors: conflict (a deadlock).
template <class Done, class Arm>
Result<bool> wait_in_rings(SessionImpl& session, transport::RingPort::Waiter& waiter,
                           Instant deadline, Done done, Arm arm, const Facts& facts) {
  const auto& environment = session.client().environment();
  const Instant soon = environment.clock.now() + moment;
  if (environment.rings->wait(waiter, std::min(soon, deadline), done, arm)) return true;
  if (soon >= deadline) return false;
  const ThreadWait lends;
  RingWait wait{facts, waiter};
  {
    const client::InBlockedWaits listed{session.client().waits(), wait};
    const bool over = environment.rings->wait(
        waiter, deadline, [&] { return done() || wait.has_failed(); }, arm);
    if (!over) return false;
  }
  if (wait.has_failed() && !done()) return wait.failure();
  return true;
}

// An outcome that a thread waits for; the first counts. Thread-safe.
template <class T>
class Outcome {
 public:
  void give(Result<T> outcome) {
    if (!given_.exchange(true)) promise_.set_value(std::move(outcome));
  }
  std::future<Result<T>> future() { return promise_.get_future(); }

 private:
  std::atomic<bool> given_ = false;
  std::promise<Result<T>> promise_;
};

template <class T>
class OutcomeWait final : public client::BlockedWait {
 public:
  OutcomeWait(const Facts& facts, Outcome<T>& outcome)
      : BlockedWait(current_call().call, true), facts_(facts), outcome_(outcome) {}
  client::WaitFacts facts() override { return facts_(); }
  void fail(const Error& why) override { outcome_.give(why); }

 private:
  const Facts& facts_;
  Outcome<T>& outcome_;
};

template <class T>
Async<void> give_outcome(client::Client& client, Async<Result<T>> operation,
                         std::shared_ptr<Outcome<T>> outcome) {
  // An unwound coroutine must not leave its caller waiting.
  struct Guard {
    std::shared_ptr<Outcome<T>> outcome;
    ~Guard() { outcome->give(error(Code::cancelled, "the session was closed")); }
  } guard{outcome};
  const client::TaskWait lends{client};
  auto value = co_await std::move(operation);
  outcome->give(std::move(value));
}

// As SessionImpl::run_waiting, of what `facts` tell. `make` is copied, and what it makes may go on
// after this returned. Errors: conflict (a deadlock).
template <class T, class Make>
Result<T> run_blocked(SessionImpl& session, const Facts& facts, Make make) {
  client::Client& client = session.client();
  const auto outcome = std::make_shared<Outcome<T>>();
  auto future = outcome->future();
  session.post([&client, outcome, made = std::move(make)]() mutable {
    spawn(client.scope(), give_outcome<T>(client, made(), outcome));
  });
  if (future.wait_for(moment) == std::future_status::ready) return future.get();
  OutcomeWait<T> wait{facts, *outcome};
  const client::InBlockedWaits listed{client.waits(), wait};
  return future.get();
}

}  // namespace troupe::detail
