#include <fmt/format.h>

#include <algorithm>
#include <list>
#include <mutex>

#include "client/object_directory.h"
#include "submitting.h"
#include "troupe/limited_actor.h"
#include "troupe/signal.h"
#include "waiting.h"

namespace troupe::detail {

// Who waits for a place: a thread, or a coroutine.
class CallWindow::Entry {
 public:
  explicit Entry(transport::RingPort::Waiter* waiter) : waiter_(waiter) {}
  explicit Entry(std::shared_ptr<Suspension> suspension) : suspension_(std::move(suspension)) {}

  // False: it waits no more.
  bool grant() {
    if (suspension_) return suspension_->wake();
    is_granted_.store(true, std::memory_order_release);
    waiter_->signal();
    return true;
  }
  bool is_granted() const { return is_granted_.load(std::memory_order_acquire); }
  Suspension& suspension() { return *suspension_; }

 private:
  const std::shared_ptr<Suspension> suspension_;  // Null: a thread waits.
  transport::RingPort::Waiter* const waiter_ = nullptr;
  std::atomic<bool> is_granted_ = false;
};

namespace {

// A thread that reads the rings for itself is woken for every result, to send one call: two
// switches a call on a busy machine. Of so many places some will be free each time that the results
// of a while are read.
constexpr uint32_t wide = 64;
constexpr int looks_max = 200;  // Some microseconds.

class CallWindowImpl final : public CallWindow,
                             public client::ReadyHook,
                             public std::enable_shared_from_this<CallWindowImpl> {
 public:
  CallWindowImpl(const std::shared_ptr<SessionImpl>& session, uint32_t calls_max)
      : session_(session),
        calls_max_(std::max(calls_max, 1u)),
        watch_(session ? session->client().objects().watches().open(*this) : 0) {}
  CallWindowImpl(const CallWindowImpl&) = delete;
  CallWindowImpl& operator=(const CallWindowImpl&) = delete;
  ~CallWindowImpl() override {
    if (const auto session = session_.lock()) session->client().objects().watches().close(watch_);
  }

  Status take(std::chrono::nanoseconds timeout) override {
    if (take_now()) return ok();
    if (timeout <= timeout.zero()) return not_in_time(timeout);
    if (runs_coroutine_method()) {
      return error(
          Code::invalid,
          fmt::format("{} calls of this handle are unfinished, and a coroutine method must "
                      "not block its actor's thread: co_await call_later()",
                      calls_max_));
    }
    const auto session = session_.lock();
    if (!session) return error(Code::invalid, "an empty handle");
    const auto& environment = session->client().environment();
    const Instant deadline = environment.clock.now() + timeout;
    using Waiter = transport::RingPort::Waiter;
    const bool is_wide = calls_max_ >= wide;
    if (is_wide && look_for_place(*environment.rings)) return ok();
    Waiter waiter{*environment.rings, is_wide ? Waiter::Kind::lazy : Waiter::Kind::eager};
    Entry entry{&waiter};
    if (enter(entry)) return ok();
    const auto facts = [deadline] {
      return client::WaitFacts{
          "wait for room in a limited handle", {}, client::WaitFacts::Needs::unknown, deadline};
    };
    (void)wait_in_rings(
        *session, waiter, deadline, [&] { return entry.is_granted(); }, [] {}, facts);
    // In any case: whoever grants it a place may still be about to signal.
    if (!leave(entry)) return ok();
    return not_in_time(timeout);
  }

  void give_back_when_ready(const RefHandle& ref) override {
    using Watch = client::Object::Watch;
    // A watch costs no memory, but an object has one alone.
    const Watch outcome = ref.object()->watch(watch_);
    const bool waits = outcome == Watch::watched ||
                       (outcome == Watch::taken && ref.object()->add_hook(shared_from_this(), 0));
    if (!waits) give_back();
  }
  void ready(uint32_t) override { give_back(); }

  uint32_t unfinished() const override {
    const std::lock_guard lock{mutex_};
    return taken_;
  }

 protected:
  bool take_now() override {
    const std::lock_guard lock{mutex_};
    if (taken_ >= calls_max_) return false;
    ++taken_;
    return true;
  }
  bool take_later(std::shared_ptr<Entry>& entry, std::coroutine_handle<> waiting,
                  std::chrono::nanoseconds timeout) override {
    const auto suspension = Suspension::make(session_.lock());
    entry = std::make_shared<Entry>(suspension);
    if (enter(*entry)) {
      entry = nullptr;
      return false;
    }
    return suspension->suspend(waiting, std::max(timeout, timeout.zero()));
  }
  Status taken(Entry& entry, std::chrono::nanoseconds timeout) override {
    Status outcome = entry.suspension().outcome();
    if (outcome) return outcome;
    leave(entry);
    if (outcome.error().code() == Code::deadline_exceeded) return not_in_time(timeout);
    return outcome;
  }

 private:
  // Reads what has arrived, as long as the wait is likely to be short.
  bool look_for_place(transport::RingPort& rings) {
    for (int looks = 0; looks < looks_max; ++looks) {
      rings.drain();
      if (take_now()) return true;
      __builtin_ia32_pause();
    }
    return false;
  }
  // True: there is a place now, and it is taken.
  bool enter(Entry& entry) {
    const std::lock_guard lock{mutex_};
    if (taken_ < calls_max_) {
      ++taken_;
      return true;
    }
    waiting_.push_back(&entry);
    return false;
  }
  // False: it waits no more, for it was granted a place.
  bool leave(Entry& entry) {
    const std::lock_guard lock{mutex_};
    return std::erase(waiting_, &entry) > 0;
  }
  void give_back() {
    const std::lock_guard lock{mutex_};
    while (!waiting_.empty()) {
      Entry* const next = waiting_.front();
      waiting_.pop_front();
      if (next->grant()) return;  // It takes the place over.
    }
    --taken_;
  }
  Error not_in_time(std::chrono::nanoseconds timeout) const {
    if (timeout <= timeout.zero()) {
      return error(
          Code::exhausted,
          fmt::format("{} calls of this handle are unfinished: wait for one, or allow more",
                      calls_max_));
    }
    return error(Code::deadline_exceeded,
                 fmt::format("{} calls of this handle are unfinished, and none ended within {} ms: "
                             "the call was not sent",
                             calls_max_, timeout / std::chrono::milliseconds(1)));
  }

  const std::weak_ptr<SessionImpl> session_;
  const uint32_t calls_max_;
  const uint64_t watch_;
  mutable std::mutex mutex_;  // Guards what follows.
  uint32_t taken_ = 0;
  std::list<Entry*> waiting_;
};

}  // namespace

std::shared_ptr<CallWindow> CallWindow::make(std::shared_ptr<SessionImpl> session,
                                             uint32_t calls_max) {
  return std::make_shared<CallWindowImpl>(session, calls_max);
}

std::shared_ptr<RefHandle> failed_call(const std::shared_ptr<SessionImpl>& session, Error failure) {
  return make_failed(session, std::move(failure));
}

}  // namespace troupe::detail
