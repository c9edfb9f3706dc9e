// A caller that is held back: a handle of an actor of which a bounded number of calls is
// unfinished.
//
//   const auto store = actor.limited(1000);
//   for (const auto& row : rows) refs.push_back(store.call<&Store::add>(row));   // Blocks.
//   refs.push_back(co_await store.call_later<&Store::add>(row));  // In a coroutine method.
#pragma once

#include <chrono>
#include <coroutine>
#include <memory>

#include "troupe/session.h"

namespace troupe {

namespace detail {

// The places of a handle's unfinished calls. Thread-safe; who waits longest is next.
class CallWindow {
 public:
  static std::shared_ptr<CallWindow> make(std::shared_ptr<SessionImpl> session, uint32_t calls_max);
  virtual ~CallWindow() = default;

  // Blocks for a place. Errors: deadline_exceeded; exhausted (no time was given); invalid (this
  // thread runs a coroutine method).
  virtual Status take(std::chrono::nanoseconds timeout) = 0;
  // Until what the ref names is ready.
  virtual void give_back_when_ready(const RefHandle& ref) = 0;
  virtual uint32_t unfinished() const = 0;

  // The same wait of a coroutine. Must stay where it is while that waits.
  class Entry;
  struct Later {
    std::shared_ptr<CallWindow> window;
    std::chrono::nanoseconds timeout;
    std::shared_ptr<Entry> entry = nullptr;
    bool await_ready() { return window->take_now(); }
    bool await_suspend(std::coroutine_handle<> waiting) {
      const auto kept = window;
      return kept->take_later(entry, waiting, timeout);
    }
    // Errors: as take, and cancelled (the call that awaits should stop).
    Status take() { return entry ? window->taken(*entry, timeout) : ok(); }
  };

 protected:
  virtual bool take_now() = 0;
  virtual bool take_later(std::shared_ptr<Entry>& entry, std::coroutine_handle<> waiting,
                          std::chrono::nanoseconds timeout) = 0;
  virtual Status taken(Entry& entry, std::chrono::nanoseconds timeout) = 0;
};

std::shared_ptr<RefHandle> failed_call(const std::shared_ptr<SessionImpl>& session, Error failure);

}  // namespace detail

// Made by ActorRef::limited. Copies, and what within() gives, share the bound. A call has its place
// until its result, or a failure of whatever kind, is there, whether or not anybody holds its ref.
// Thread-safe.
template <class A>
class LimitedActor {
 public:
  LimitedActor(ActorRef<A> actor, std::shared_ptr<detail::CallWindow> window)
      : actor_(std::move(actor)), window_(std::move(window)) {}

  // Waits at most so long for a place; 0: not at all. By default without an end.
  LimitedActor within(std::chrono::nanoseconds timeout) const {
    LimitedActor other = *this;
    other.timeout_ = timeout;
    return other;
  }

  // As ActorRef::call, once there is a place: blocks until then. Without one in time the ref fails
  // with deadline_exceeded, or exhausted where no time was given, and nothing was sent. In a
  // coroutine method, which must not block, that has to wait it fails with invalid: call_later().
  template <auto method, class... Args>
    requires(!detail::starts_with_options<Args...>)
  auto call(Args&&... arguments) const {
    return call<method>(CallOptions{}, std::forward<Args>(arguments)...);
  }
  template <auto method, class... Args>
  auto call(const CallOptions& options, Args&&... arguments) const {
    using Ref = decltype(actor_.template call<method>(options, std::forward<Args>(arguments)...));
    if (auto taken = window_->take(timeout_); !taken) return failed<Ref>(std::move(taken).error());
    auto ref = actor_.template call<method>(options, std::forward<Args>(arguments)...);
    window_->give_back_when_ready(*ref.handle());
    return ref;
  }

  // co_await of it gives the ref, of a call that was made once there was a place: no thread is held
  // until then. Arguments are copied now. Fails as call(), and with cancelled when the call that
  // awaits should stop.
  template <auto method, class... Args>
    requires(!detail::starts_with_options<Args...>)
  auto call_later(Args&&... arguments) const {
    return call_later<method>(CallOptions{}, std::forward<Args>(arguments)...);
  }
  template <auto method, class... Args>
  auto call_later(CallOptions options, Args&&... arguments) const {
    using Traits = detail::FunctionTraits<decltype(method)>;
    using Ref = ObjectRef<typename Traits::Value>;
    struct Awaiter : detail::CallWindow::Later {
      LimitedActor limited;
      CallOptions options;
      std::vector<detail::ArgumentValue> arguments;
      Ref await_resume() {
        if (auto taken = this->take(); !taken) {
          return limited.template failed<Ref>(std::move(taken).error());
        }
        const ActorRef<A>& actor = limited.actor_;
        const Ref ref{detail::submit_call(
            actor.session_, actor.target_, ActorRef<A>::template method_name<method>(),
            Traits::signature(), std::move(arguments), options, actor.max_call_retries_)};
        limited.window_->give_back_when_ready(*ref.handle());
        return ref;
      }
    };
    return Awaiter{{window_, timeout_},
                   *this,
                   std::move(options),
                   ActorRef<A>::template encode<method>(std::forward<Args>(arguments)...)};
  }

  const ActorRef<A>& actor() const { return actor_; }
  // How many calls have a place.
  uint32_t unfinished() const { return window_->unfinished(); }

 private:
  template <class Ref>
  Ref failed(Error failure) const {
    return Ref{detail::failed_call(actor_.session_, std::move(failure))};
  }

  ActorRef<A> actor_;
  std::shared_ptr<detail::CallWindow> window_;
  std::chrono::nanoseconds timeout_ = no_timeout;
};

template <class A>
LimitedActor<A> ActorRef<A>::limited(uint32_t calls_max) const {
  return {*this, detail::CallWindow::make(session_, calls_max)};
}

}  // namespace troupe
