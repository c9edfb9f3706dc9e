// Tasks and methods that give a stream of items, and the caller's end of it.
//
//   Generator<int> count(int n) { for (int i = 0; i < n; ++i) co_yield i; }
//   TROUPE_TASK(count);
//   Stream<int> numbers = session.stream(count, 5);
//   while (auto item = numbers.next().value()) use(*item);
#pragma once

#include <coroutine>
#include <exception>
#include <semaphore>

#include "troupe/coroutine.h"
#include "troupe/object_ref.h"
#include "troupe/plugin.h"

namespace troupe {

namespace detail {

// The callee's end of a stream.
class ItemWriter {
 public:
  explicit ItemWriter(troupe_call* call) : call_(call) {}
  // False: as many items are unread as may be. Throws cancelled when nobody reads any more,
  // deadline_exceeded past the time limit.
  bool offer(const Writer& item);
  // Calls back once when there is room, on any thread, or gives false: there is now.
  bool on_room(const Writer& item, std::function<void()> ready);
  // Blocks until there is room; a task lends its cpu meanwhile.
  void wait_for_room(const Writer& item);
  // The end; null: an orderly one.
  void finish(const std::exception_ptr& thrown) noexcept;

 private:
  troupe_call* call_;
};

// Whether the code that this thread runs goes on later rather than blocks: a coroutine method.
bool runs_coroutine_method();

}  // namespace detail

// What such a task or method returns: a coroutine that gives its items by co_yield and may await
// refs. It starts when it is called. When as many items are unread as the caller allows, a task
// blocks in co_yield, and a method of an actor suspends there, so that other calls run. When the
// caller gives up, co_yield throws Error (cancelled). The objects of refs inside an item live until
// it is read, and on with the reader's refs, or until nobody will read it; the generator need not
// keep them. Parameters must be values. It is not retried.
template <class T>
class Generator {
 public:
  struct promise_type {
    std::optional<detail::ItemWriter> out;
    std::function<void()> ended;
    std::exception_ptr thrown;
    bool suspends = false;

    Generator get_return_object() {
      return Generator{std::coroutine_handle<promise_type>::from_promise(*this)};
    }
    std::suspend_always initial_suspend() noexcept { return {}; }
    auto final_suspend() noexcept {
      struct End {
        bool await_ready() noexcept { return false; }
        void await_suspend(std::coroutine_handle<promise_type> done) noexcept {
          // What it holds goes before its caller hears of the end.
          auto out = *done.promise().out;
          const auto thrown = done.promise().thrown;
          const auto ended = std::move(done.promise().ended);
          done.destroy();
          out.finish(thrown);
          ended();
        }
        void await_resume() noexcept {}
      };
      return End{};
    }
    void return_void() {}
    void unhandled_exception() { thrown = std::current_exception(); }

    auto yield_value(const T& value) {
      struct Offer {
        promise_type& promise;
        detail::Writer item;
        bool done = false;
        bool await_ready() {
          done = promise.out->offer(item);
          while (!done && !promise.suspends) {
            promise.out->wait_for_room(item);
            done = promise.out->offer(item);
          }
          return done;
        }
        bool await_suspend(std::coroutine_handle<> waiting) {
          return promise.out->on_room(
              item, [waiting, next = detail::Continuation{}] { next.resume(waiting); });
        }
        void await_resume() {
          // This alone writes, so the room that there was is there.
          if (!done && !promise.out->offer(item)) {
            throw error(Code::internal, "no room for an item where there was some");
          }
        }
      };
      Offer offer{*this, {}};
      detail::write<T>(offer.item, value);
      return offer;
    }
  };

  Generator(Generator&& from) noexcept : coroutine_(std::exchange(from.coroutine_, nullptr)) {}
  Generator& operator=(Generator&&) = delete;
  ~Generator() {
    if (coroutine_) coroutine_.destroy();
  }

  // Runs it for a call: until its end, or, of a coroutine method, as far as it goes at once.
  void run(troupe_call* call) && {
    const auto coroutine = std::exchange(coroutine_, nullptr);
    promise_type& promise = coroutine.promise();
    promise.out.emplace(call);
    promise.suspends = detail::runs_coroutine_method();
    if (promise.suspends) {
      promise.ended = [] {};
      coroutine.resume();
      return;
    }
    const auto done = std::make_shared<std::binary_semaphore>(0);
    promise.ended = [done] { done->release(); };
    coroutine.resume();
    if (done->try_acquire()) return;
    const detail::ThreadWait lends;  // It awaits a ref.
    done->acquire();
  }

 private:
  explicit Generator(std::coroutine_handle<promise_type> coroutine) : coroutine_(coroutine) {}
  std::coroutine_handle<promise_type> coroutine_;
};

namespace detail {

template <class T>
constexpr bool is_generator = false;
template <class T>
constexpr bool is_generator<Generator<T>> = true;

// Drop `keep_alive` once the refs in the bytes are read: so long their objects are kept alive.
struct Item {
  Bytes bytes;
  std::shared_ptr<const void> keep_alive;  // Null: there are none.
};

// Items of a streaming call.
class ItemStream {
 public:
  virtual ~ItemStream() = default;
  // Blocks. nullopt at the end. Errors: what the call failed with, deadline_exceeded.
  virtual Result<std::optional<Item>> next(std::chrono::nanoseconds timeout = no_timeout) = 0;
  // Calls back on a thread of the session's, once.
  virtual void next_later(std::function<void(Result<std::optional<Item>>)> done) = 0;
  virtual const std::shared_ptr<SessionImpl>& session() const = 0;
};

template <class T>
Result<std::optional<T>> decode_item(Result<std::optional<Item>> item,
                                     const std::shared_ptr<SessionImpl>& session) {
  if (!item) return std::move(item).error();
  if (!*item) return std::optional<T>{};
  Reader in{(*item)->bytes, session};
  T value{};
  read<T>(in, value);
  if (in.failed) return error(Code::invalid, "the item's bytes are not of the expected type");
  return std::optional<T>{std::move(value)};
}

}  // namespace detail

// The caller's end: items in the order in which they were made, each once, as they are made. A
// failure of the callee comes after the items that were delivered. Dropping it cancels the call.
// For one thread at a time.
template <class T>
class Stream {
 public:
  Stream() = default;
  Stream(std::unique_ptr<detail::ItemStream> items, std::shared_ptr<detail::RefHandle> call)
      : items_(std::move(items)), call_(std::move(call)) {}

  // Blocks for the next item; nullopt at the end. Errors: what the callee failed with,
  // deadline_exceeded (it can be asked again), cancelled, invalid (an empty stream).
  Result<std::optional<T>> next(std::chrono::nanoseconds timeout = no_timeout) {
    if (!items_) return error(Code::invalid, "an empty stream");
    return detail::decode_item<T>(items_->next(timeout), items_->session());
  }
  // co_await stream gives what next() does; the stream must outlive that.
  auto operator co_await() {
    struct Awaiter {
      detail::ItemStream* items;
      std::optional<Result<std::optional<detail::Item>>> item = std::nullopt;
      bool await_ready() {
        if (items == nullptr) item.emplace(error(Code::invalid, "an empty stream"));
        return items == nullptr;
      }
      void await_suspend(std::coroutine_handle<> waiting) {
        const detail::Continuation next;
        items->next_later([this, waiting, next](Result<std::optional<detail::Item>> got) {
          item.emplace(std::move(got));
          next.resume(waiting);
        });
      }
      Result<std::optional<T>> await_resume() {
        return detail::decode_item<T>(std::move(*item), items ? items->session() : nullptr);
      }
    };
    return Awaiter{items_.get()};
  }
  // The whole of the call, for Session::cancel and wait: ready once all items were made.
  ObjectRef<void> call() const { return ObjectRef<void>{call_}; }

 private:
  std::unique_ptr<detail::ItemStream> items_;
  std::shared_ptr<detail::RefHandle> call_;
};

}  // namespace troupe
