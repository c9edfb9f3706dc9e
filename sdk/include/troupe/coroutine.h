// A coroutine that a program can write over refs: Coroutine<int> f() { co_return *(co_await ref); }
// A method of an actor may be one, too: see TROUPE_ACTOR.
#pragma once

#include <condition_variable>
#include <coroutine>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>

#include "troupe/object_ref.h"

namespace troupe {

namespace detail {

// What a coroutine leaves behind. Thread-safe.
template <class T>
class CoroutineState {
 public:
  using Value = std::conditional_t<std::is_void_v<T>, bool, T>;

  void finish(std::optional<Value> value, std::exception_ptr thrown) {
    std::function<void()> done;
    {
      const std::lock_guard lock{mutex_};
      value_ = std::move(value);
      thrown_ = std::move(thrown);
      done = std::move(done_);
      changed_.notify_all();
    }
    if (done) done();
  }
  void then(std::function<void()> done) {
    {
      const std::lock_guard lock{mutex_};
      if (!is_done()) {
        done_ = std::move(done);
        return;
      }
    }
    done();
  }
  Value take() {
    std::unique_lock lock{mutex_};
    if (!is_done()) {
      const ThreadWait wait;
      changed_.wait(lock, [this] { return is_done(); });
    }
    if (thrown_) std::rethrow_exception(thrown_);
    return std::move(*value_);
  }

 private:
  bool is_done() const { return value_ || thrown_; }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Value> value_;
  std::exception_ptr thrown_;
  std::function<void()> done_;
};

template <class T>
struct CoroutinePromise {
  std::shared_ptr<CoroutineState<T>> state = std::make_shared<CoroutineState<T>>();
  std::suspend_never initial_suspend() noexcept { return {}; }
  std::suspend_never final_suspend() noexcept { return {}; }
  void unhandled_exception() { state->finish(std::nullopt, std::current_exception()); }
};

}  // namespace detail

// Starts at once, on the caller's thread. A coroutine method of an actor, and what it awaits,
// continues on the actor's thread, which therefore must not block in get(); any other one on
// threads of the session's. get() blocks for the result, once, and throws what the coroutine threw.
// Its parameters must be values, for it outlives its caller.
template <class T = void>
class Coroutine {
 public:
  struct promise_type : detail::CoroutinePromise<T> {
    Coroutine get_return_object() { return Coroutine{this->state}; }
    void return_value(T value) { this->state->finish(std::move(value), nullptr); }
  };

  T get() { return state_->take(); }
  // Calls `done` once there is a result, at once if there is, on the thread that makes it.
  void then(std::function<void()> done) { state_->then(std::move(done)); }

 private:
  explicit Coroutine(std::shared_ptr<detail::CoroutineState<T>> state) : state_(std::move(state)) {}
  std::shared_ptr<detail::CoroutineState<T>> state_;
};

template <>
class Coroutine<void> {
 public:
  struct promise_type : detail::CoroutinePromise<void> {
    Coroutine get_return_object() { return Coroutine{state}; }
    void return_void() { state->finish(true, nullptr); }
  };

  void get() { state_->take(); }
  void then(std::function<void()> done) { state_->then(std::move(done)); }

 private:
  explicit Coroutine(std::shared_ptr<detail::CoroutineState<void>> state)
      : state_(std::move(state)) {}
  std::shared_ptr<detail::CoroutineState<void>> state_;
};

}  // namespace troupe
