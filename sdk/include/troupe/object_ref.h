// Refs to objects of the cluster.
#pragma once

#include <coroutine>
#include <functional>

#include "protocol/messages.h"
#include "troupe/serialize.h"
#include "troupe/this_call.h"

namespace troupe {

namespace client {
class Object;
class ActorTarget;
}  // namespace client

namespace detail {

// One counted reference of this process; the last copy gives it back. Thread-safe.
class RefHandle {
 public:
  // Of another process's object, borrowed.
  RefHandle(std::shared_ptr<SessionImpl> session, ObjectId id, protocol::ProcessAddress owner);
  // Of an object of this process; takes over one reference to it.
  RefHandle(std::shared_ptr<SessionImpl> session, std::shared_ptr<client::Object> object);
  RefHandle(const RefHandle&) = delete;
  RefHandle& operator=(const RefHandle&) = delete;
  ~RefHandle();

  const std::shared_ptr<SessionImpl>& session() const { return session_; }
  ObjectId id() const { return id_; }
  // Null of a borrowed one.
  const std::shared_ptr<client::Object>& object() const { return object_; }
  const protocol::ProcessAddress& owner() const;

 private:
  const std::shared_ptr<SessionImpl> session_;
  const ObjectId id_;
  const std::shared_ptr<client::Object> object_;
  const std::unique_ptr<const protocol::ProcessAddress> owner_;  // Of a borrowed one.
};

// The bytes of an object and what keeps them valid.
struct Fetched {
  BytesView bytes;
  std::shared_ptr<const void> keep_alive;
};

// Takes one more reference to an object that another process told us of.
std::shared_ptr<RefHandle> borrow(std::shared_ptr<SessionImpl> session, ObjectId id,
                                  protocol::ProcessAddress owner);
// Blocks. Errors: what makes the object failed with, deadline_exceeded, data_loss.
Result<Fetched> fetch(const RefHandle& ref, std::chrono::nanoseconds timeout);
// Calls back on a thread of the session's, once.
void fetch_later(std::shared_ptr<RefHandle> ref, std::function<void(Result<Fetched>)> done);

// While it lives this thread runs a coroutine method of the present actor.
class CoroutineMethod {
 public:
  CoroutineMethod();
  CoroutineMethod(const CoroutineMethod&) = delete;
  CoroutineMethod& operator=(const CoroutineMethod&) = delete;
  ~CoroutineMethod();
};

// Where the coroutine that awaits now goes on: a coroutine method on its actor's thread, any other
// one right where the value arrives.
class Continuation {
 public:
  Continuation();
  void resume(std::coroutine_handle<> waiting) const;

 private:
  void* actor_;  // Null: none.
  CurrentCall call_;
};

// While it lives this thread waits for other tasks; if it belongs to a task, they may have its cpu.
class ThreadWait {
 public:
  ThreadWait();
  ThreadWait(const ThreadWait&) = delete;
  ThreadWait& operator=(const ThreadWait&) = delete;
  ~ThreadWait();

 private:
  std::shared_ptr<SessionImpl> session_;  // Of a process that hosts tasks; null in a driver.
};

template <class T>
Result<T> decode_value(const Result<Fetched>& fetched, std::shared_ptr<SessionImpl> session) {
  if (!fetched) return fetched.error();
  Reader in{fetched->bytes, std::move(session)};
  T value{};
  read<T>(in, value);
  if (in.failed) return error(Code::invalid, "the object's bytes are not of the expected type");
  return value;
}

}  // namespace detail

// Waits for ever, or until the session is closed.
inline constexpr std::chrono::nanoseconds no_timeout = std::chrono::hours(24 * 365 * 10);

// A ref to an object of type T: a result to come, or a value that was put. Copies share one
// reference count; while one lives, the object lives. Thread-safe. T is void for tasks without a
// result.
template <class T>
class ObjectRef {
 public:
  ObjectRef() = default;
  explicit ObjectRef(std::shared_ptr<detail::RefHandle> handle) : handle_(std::move(handle)) {}

  bool is_valid() const { return handle_ != nullptr; }
  ObjectId id() const { return handle_ ? handle_->id() : ObjectId{}; }

  // Blocks until the value is there. Errors: what the task or call failed with (its code, message
  // and place), deadline_exceeded, cancelled, data_loss (its owner is gone).
  Result<T> get(std::chrono::nanoseconds timeout = no_timeout) const {
    if (!handle_) return error(Code::invalid, "an empty ref");
    auto fetched = detail::fetch(*handle_, timeout);
    if constexpr (std::is_void_v<T>) {
      if (!fetched) return std::move(fetched).error();
      return ok();
    } else {
      return detail::decode_value<T>(fetched, handle_->session());
    }
  }

  // co_await ref gives Result<T>, of an empty ref at once. A coroutine method goes on on its
  // actor's thread, any other coroutine on one of the session's.
  auto operator co_await() const {
    struct Awaiter {
      std::shared_ptr<detail::RefHandle> handle;
      std::optional<Result<detail::Fetched>> fetched = std::nullopt;
      bool await_ready() {
        if (!handle) fetched.emplace(error(Code::invalid, "an empty ref"));
        return !handle;
      }
      void await_suspend(std::coroutine_handle<> waiting) {
        const detail::Continuation next;
        detail::fetch_later(handle, [this, waiting, next](Result<detail::Fetched> got) {
          fetched.emplace(std::move(got));
          next.resume(waiting);
        });
      }
      Result<T> await_resume() {
        if constexpr (std::is_void_v<T>) {
          if (!*fetched) return std::move(*fetched).error();
          return ok();
        } else {
          return detail::decode_value<T>(*fetched, handle ? handle->session() : nullptr);
        }
      }
    };
    return Awaiter{handle_};
  }

  const std::shared_ptr<detail::RefHandle>& handle() const { return handle_; }

 private:
  std::shared_ptr<detail::RefHandle> handle_;
};

namespace detail {

void write_ref(Writer& out, const std::shared_ptr<RefHandle>& handle);
std::shared_ptr<RefHandle> read_ref(Reader& in);

template <class T>
struct Codec<ObjectRef<T>> {
  static uint64_t hash() {
    if constexpr (std::is_void_v<T>) {
      return 20;
    } else {
      return hash_mix(20, type_hash<T>());
    }
  }
  static void write(Writer& out, const ObjectRef<T>& ref) { write_ref(out, ref.handle()); }
  static void read(Reader& in, ObjectRef<T>& ref) { ref = ObjectRef<T>{read_ref(in)}; }
};

template <class T>
constexpr bool is_object_ref = false;
template <class T>
constexpr bool is_object_ref<ObjectRef<T>> = true;

}  // namespace detail
}  // namespace troupe
