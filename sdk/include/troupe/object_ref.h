// Refs to objects of the cluster.
#pragma once

#include <atomic>
#include <coroutine>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "protocol/messages.h"
#include "troupe/serialize.h"
#include "troupe/this_call.h"

namespace troupe {

namespace client {
class Object;
class ActorTarget;
class LocalBlock;
}  // namespace client

namespace detail {

// One counted reference of this process; the last copy gives it back. Thread-safe.
class RefHandle {
 public:
  // Of another process's object; takes over one reference of the session's to it.
  RefHandle(std::shared_ptr<SessionImpl> session, ObjectId id,
            std::shared_ptr<const protocol::ProcessAddress> owner);
  // Of an object of this process; takes over one reference to it.
  RefHandle(std::shared_ptr<SessionImpl> session, std::shared_ptr<client::Object> object);
  RefHandle(const RefHandle&) = delete;
  RefHandle& operator=(const RefHandle&) = delete;
  ~RefHandle();

  const std::shared_ptr<SessionImpl>& session() const { return session_; }
  ObjectId id() const;
  // Null of a borrowed one.
  const std::shared_ptr<client::Object>& object() const { return object_; }
  const protocol::ProcessAddress& owner() const;
  // False: nobody knows here.
  bool is_ready() const;
  void note_ready() const;

 private:
  struct Borrowed {
    ObjectId id;
    std::shared_ptr<const protocol::ProcessAddress> owner;
    std::atomic<bool> known_ready = false;
  };
  const std::shared_ptr<SessionImpl> session_;
  // Either is null. Small, for there may be millions.
  const std::shared_ptr<client::Object> object_;
  const std::unique_ptr<Borrowed> borrowed_;
};

// The bytes of an object and what keeps them valid.
struct Fetched {
  BytesView bytes;
  std::shared_ptr<const void> keep_alive;
};

// Takes one more reference to an object that another process told us of.
std::shared_ptr<RefHandle> borrow(std::shared_ptr<SessionImpl> session, ObjectId id,
                                  std::shared_ptr<const protocol::ProcessAddress> owner);
// Blocks. Errors: what makes the object failed with, deadline_exceeded, data_loss.
Result<Fetched> fetch(const RefHandle& ref, std::chrono::nanoseconds timeout);
// Those of all, or the first error in their order. `refs` are not null.
Result<std::vector<Fetched>> fetch_all(const std::shared_ptr<SessionImpl>& session,
                                       std::span<const RefHandle* const> refs,
                                       std::chrono::nanoseconds timeout);
void call_when_ready(const RefHandle& ref, std::function<void()> done);
Status call_when_freed(const RefHandle& ref, std::function<void()> done);
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
  Continuation(const Continuation& other);
  Continuation& operator=(const Continuation&) = delete;
  ~Continuation();
  void resume(std::coroutine_handle<> waiting) const;
  // The same for whoever must neither wait nor run the program's code: any other coroutine goes on
  // on a thread of the session's.
  void resume_later(std::coroutine_handle<> waiting) const;

 private:
  void* const actor_;  // Its context, retained; null: none.
  const CurrentCall call_;
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

// Elements that lie in `bytes` as they are, where their alignment allows it; else their copy.
template <Dense E>
Result<std::span<const E>> elements_in(Fetched& fetched) {
  uint64_t count = 0;
  const BytesView bytes = fetched.bytes;
  if (bytes.size() >= sizeof count) std::memcpy(&count, bytes.data(), sizeof count);
  if (bytes.size() < sizeof count || count != (bytes.size() - sizeof count) / sizeof(E) ||
      (bytes.size() - sizeof count) % sizeof(E) != 0) {
    return error(Code::invalid, "the object's bytes are not of the expected type");
  }
  const uint8_t* first = bytes.data() + sizeof count;
  if (reinterpret_cast<uintptr_t>(first) % alignof(E) == 0) {
    return std::span<const E>{reinterpret_cast<const E*>(first), count};
  }
  // Only small values, which lie in private memory.
  auto copy = std::make_shared<std::vector<E>>(count);
  if (count > 0) std::memcpy(copy->data(), first, count * sizeof(E));
  const std::span<const E> elements{*copy};
  fetched.keep_alive = std::move(copy);
  return elements;
}

}  // namespace detail

// An object in place: no copy was made of it. Its memory cannot change, and stays valid as long as
// any copy of the view lives, whatever becomes of the refs and the session; until then it is
// neither spilled nor reused. Thread-safe to read. Elements are aligned to 8 bytes: in the store an
// object begins at a multiple of 64, and its elements after their count of 8 bytes.
template <class T>
class View;

template <detail::Dense E>
class View<std::vector<E>> {
 public:
  View() = default;
  std::span<const E> span() const { return elements_; }
  const E* data() const { return elements_.data(); }
  size_t size() const { return elements_.size(); }
  auto begin() const { return elements_.begin(); }
  auto end() const { return elements_.end(); }
  const E& operator[](size_t index) const { return elements_[index]; }

  static Result<View> of(detail::Fetched fetched) {
    TROUPE_TRY(const auto elements, detail::elements_in<E>(fetched));
    View view;
    view.elements_ = elements;
    view.keep_alive_ = std::move(fetched.keep_alive);
    return view;
  }

 private:
  std::span<const E> elements_;
  std::shared_ptr<const void> keep_alive_;
};

template <>
class View<std::string> {
 public:
  View() = default;
  std::string_view text() const { return {characters_.data(), characters_.size()}; }
  const char* data() const { return characters_.data(); }
  size_t size() const { return characters_.size(); }

  static Result<View> of(detail::Fetched fetched) {
    TROUPE_TRY(const auto characters, detail::elements_in<char>(fetched));
    View view;
    view.characters_ = characters;
    view.keep_alive_ = std::move(fetched.keep_alive);
    return view;
  }

 private:
  std::span<const char> characters_;
  std::shared_ptr<const void> keep_alive_;
};

// What View can show: std::string, and std::vector of numbers, enums, arrays of these and plain
// structs of these without padding.
template <class T>
concept Viewable = requires(detail::Fetched fetched) { View<T>::of(std::move(fetched)); };

// Keeps an object's bytes on this node, in memory, as long as any copy lives: ready to be read, and
// not spilled.
class Pin {
 public:
  Pin() = default;
  explicit Pin(std::shared_ptr<const void> keep_alive) : keep_alive_(std::move(keep_alive)) {}

 private:
  std::shared_ptr<const void> keep_alive_;
};

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
  // and place), deadline_exceeded, cancelled, data_loss (its owner is gone), conflict (a deadlock:
  // what makes the value waits, by way of others, for the call that asks here).
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

  // As get, without a copy: what is on this node and was read before takes well under a
  // microsecond, however large. Errors: as get.
  Result<View<T>> view(std::chrono::nanoseconds timeout = no_timeout) const
    requires Viewable<T>
  {
    if (!handle_) return error(Code::invalid, "an empty ref");
    TROUPE_TRY(auto fetched, detail::fetch(*handle_, timeout));
    return View<T>::of(std::move(fetched));
  }
  // Brings the value to this node, unless it is here, and keeps it. Errors: as get.
  Result<Pin> pin(std::chrono::nanoseconds timeout = no_timeout) const {
    if (!handle_) return error(Code::invalid, "an empty ref");
    TROUPE_TRY(auto fetched, detail::fetch(*handle_, timeout));
    return Pin{std::move(fetched.keep_alive)};
  }
  // Calls `done` once the value, or a failure, is there: on a thread of the session's, which it may
  // block. It is called though every ref is gone by then, but not after the session ended.
  void on_ready(std::function<void()> done) const {
    if (handle_) detail::call_when_ready(*handle_, std::move(done));
  }
  // Of an object of this process: calls `done` once it was freed, for nobody has a ref to it any
  // more, here or in other processes. On a thread of the session's.
  // Errors: invalid (empty, or another process's object).
  Status on_out_of_scope(std::function<void()> done) const {
    if (!handle_) return error(Code::invalid, "an empty ref");
    return detail::call_when_freed(*handle_, std::move(done));
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
