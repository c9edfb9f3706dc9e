// A coroutine that a program can write over refs: Coroutine<int> f() { co_return *(co_await ref); }
#pragma once

#include <condition_variable>
#include <coroutine>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>

#include "troupe/object_ref.h"

namespace troupe {

// Starts at once, on the caller's thread, and goes on on threads of the session's. get() blocks for
// the result, once, and throws what the coroutine threw.
template <class T>
class Coroutine {
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::optional<T> value;
    std::exception_ptr thrown;
  };

 public:
  struct promise_type {
    std::shared_ptr<State> state = std::make_shared<State>();
    Coroutine get_return_object() { return Coroutine{state}; }
    std::suspend_never initial_suspend() noexcept { return {}; }
    std::suspend_never final_suspend() noexcept { return {}; }
    void return_value(T value) {
      const std::lock_guard lock{state->mutex};
      state->value.emplace(std::move(value));
      state->changed.notify_all();
    }
    void unhandled_exception() {
      const std::lock_guard lock{state->mutex};
      state->thrown = std::current_exception();
      state->changed.notify_all();
    }
  };

  T get() {
    std::unique_lock lock{state_->mutex};
    const auto done = [this] { return state_->value || state_->thrown; };
    if (!done()) {
      const detail::ThreadWait wait;
      state_->changed.wait(lock, done);
    }
    if (state_->thrown) std::rethrow_exception(state_->thrown);
    return std::move(*state_->value);
  }

 private:
  explicit Coroutine(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

}  // namespace troupe
