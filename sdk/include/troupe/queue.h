// A queue that many processes put into and get from. An actor holds it.
//
//   const auto jobs = troupe::Queue<Job>::create(session, {.elements_max = 1000}).value();
//   session.submit(work, jobs);                         // Handles travel as arguments.
//   jobs.put(job).value();                              // Blocks while it is full.
//   while (auto job = jobs.get().value()) use(*job);    // Blocks; ends once it is closed and
//   empty.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "troupe/session.h"

namespace troupe {

struct QueueOptions {
  uint64_t elements_max = 0;  // Of a full queue; 0: no bound but memory.
  // Of the actor that holds it: name, get_if_exists, detached, placement... Elements die with its
  // process, and a restart begins empty. Its max_concurrency is the queue's own affair.
  ActorOptions actor = {};
};

struct QueueStatus {
  uint64_t size = 0;
  uint64_t elements_max = 0;  // 0: no bound.
  uint64_t getters = 0;       // Calls that wait for an element,
  uint64_t putters = 0;       // or for room.
  bool is_closed = false;
};

namespace detail {

// An element as the queue's actor keeps it: its bytes, and the refs inside them.
struct Packed {
  Bytes bytes;
  std::vector<std::shared_ptr<RefHandle>> refs;
};

template <>
struct Codec<Packed> {
  static uint64_t hash() { return 26; }
  static void write(Writer& out, const Packed& value) {
    detail::write<Bytes>(out, value.bytes);
    detail::write<uint64_t>(out, value.refs.size());
    for (const auto& ref : value.refs) write_ref(out, ref);
  }
  static void read(Reader& in, Packed& value) {
    detail::read<Bytes>(in, value.bytes);
    const size_t count = in.length(sizeof(uint32_t));
    value.refs.clear();
    for (size_t i = 0; i < count && !in.failed; ++i) value.refs.push_back(read_ref(in));
  }
};

// What a get gives. No elements: the queue is closed, and was empty.
struct Batch {
  std::vector<Packed> elements;
};

// A queue as its handles name it. Copies are cheap.
struct QueueHandle {
  std::shared_ptr<SessionImpl> session;
  ActorId actor;
  uint64_t type = 0;  // The hash of the elements' type, which callers must agree on.
  std::shared_ptr<client::ActorTarget> target = nullptr;
};

QueueHandle queue_handle(const std::shared_ptr<SessionImpl>& session, ActorId actor, uint64_t type);
Result<QueueHandle> create_queue(const std::shared_ptr<SessionImpl>& session, uint64_t type,
                                 const QueueOptions& options);
Result<QueueHandle> find_queue(const std::shared_ptr<SessionImpl>& session, uint64_t type,
                               std::string_view name, std::string_view name_space);
// The timeouts are kept by the queue: so nobody gives up on an element that is on its way to it.
ObjectRef<uint64_t> queue_put(const QueueHandle& queue, std::vector<Packed> elements,
                              std::chrono::nanoseconds timeout);
ObjectRef<Batch> queue_get(const QueueHandle& queue, uint64_t count_max,
                           std::chrono::nanoseconds timeout);
Result<QueueStatus> queue_status(const QueueHandle& queue);
Status queue_close(const QueueHandle& queue);

// co_await of it gives what `Convert` makes of the ref's value.
template <class T, class Convert>
struct ConvertedWait {
  using Inner = decltype(std::declval<const ObjectRef<T>&>().operator co_await());
  Inner wait;
  Convert convert;
  bool await_ready() { return wait.await_ready(); }
  void await_suspend(std::coroutine_handle<> waiting) { wait.await_suspend(waiting); }
  auto await_resume() { return convert(wait.await_resume()); }
};
template <class T, class Convert>
ConvertedWait<T, Convert> convert_later(const ObjectRef<T>& ref, Convert convert) {
  return {ref.operator co_await(), std::move(convert)};
}

}  // namespace detail

// A handle; copies, also in other processes, name the same queue, and dropping them does not end
// it: kill(), or the end of the job. Thread-safe.
//
// First in, first out: elements of one caller in its order, and who waits longest is served first,
// both of getters and of putters. An element is given to one getter at most. A getter that is gone
// or was cancelled while it waited gets none; one whose process dies in the moment in which an
// element is on its way to it, or that drops what get_later() gave, takes that element along. Refs
// inside elements are kept alive by the queue. Elements above 64 KiB are copied through the store:
// put() large values yourself and queue the refs.
//
// Every operation also fails with unavailable (its actor is dead), outcome_unknown (it died
// meanwhile) and invalid (the queue is one of another type). Those that block must not be used in
// coroutine methods: co_await the ..._later() ones there, which hold no thread.
template <Serializable T>
class Queue {
 public:
  Queue() = default;
  explicit Queue(detail::QueueHandle handle) : handle_(std::move(handle)) {}

  // Errors: as Session::create; with get_if_exists invalid (it has elements of another type).
  static Result<Queue> create(const Session& session, const QueueOptions& options = {}) {
    TROUPE_TRY(auto handle, detail::create_queue(session.impl(), type(), options));
    return Queue{std::move(handle)};
  }
  // A named one. Errors: not_found, invalid (it has elements of another type, or is no queue).
  static Result<Queue> find(const Session& session, std::string_view name,
                            std::string_view name_space = {}) {
    TROUPE_TRY(auto handle, detail::find_queue(session.impl(), type(), name, name_space));
    return Queue{std::move(handle)};
  }

  // Blocks while the queue is full. Errors: deadline_exceeded; exhausted (full, and no time was
  // given); conflict (closed).
  Status put(const T& element, std::chrono::nanoseconds timeout = no_timeout) const {
    return to_status(detail::queue_put(handle_, pack({&element, 1}), timeout).get());
  }
  Status try_put(const T& element) const { return put(element, std::chrono::nanoseconds(0)); }
  // All of them, in this order, as room comes: how many went in before the time was up or the queue
  // was closed. Errors: as put, if none did.
  Result<size_t> put_many(std::span<const T> elements,
                          std::chrono::nanoseconds timeout = no_timeout) const {
    return to_count(detail::queue_put(handle_, pack(elements), timeout).get());
  }
  // Blocks while the queue is empty. nullopt: it is closed, and all that was in it was given out.
  // Errors: deadline_exceeded; exhausted (empty, and no time was given).
  Result<std::optional<T>> get(std::chrono::nanoseconds timeout = no_timeout) const {
    return to_element(handle_.session, detail::queue_get(handle_, 1, timeout).get());
  }
  Result<std::optional<T>> try_get() const { return get(std::chrono::nanoseconds(0)); }
  // Blocks for one element, and gives what is there, at most `count_max` (at least 1). None: as
  // nullopt of get. Errors: as get.
  Result<std::vector<T>> get_many(size_t count_max,
                                  std::chrono::nanoseconds timeout = no_timeout) const {
    return to_elements(handle_.session, detail::queue_get(handle_, count_max, timeout).get());
  }

  // co_await of these gives what put, put_many, get and get_many give. The call is made at once; a
  // method that waits for one is told to stop as for any other.
  auto put_later(const T& element, std::chrono::nanoseconds timeout = no_timeout) const {
    return detail::convert_later(detail::queue_put(handle_, pack({&element, 1}), timeout),
                                 &to_status);
  }
  auto put_many_later(std::span<const T> elements,
                      std::chrono::nanoseconds timeout = no_timeout) const {
    return detail::convert_later(detail::queue_put(handle_, pack(elements), timeout), &to_count);
  }
  auto get_later(std::chrono::nanoseconds timeout = no_timeout) const {
    return detail::convert_later(detail::queue_get(handle_, 1, timeout),
                                 [session = handle_.session](Result<detail::Batch> batch) {
                                   return to_element(session, std::move(batch));
                                 });
  }
  auto get_many_later(size_t count_max, std::chrono::nanoseconds timeout = no_timeout) const {
    return detail::convert_later(detail::queue_get(handle_, count_max, timeout),
                                 [session = handle_.session](Result<detail::Batch> batch) {
                                   return to_elements(session, std::move(batch));
                                 });
  }

  // What was true a moment ago.
  Result<QueueStatus> status() const { return detail::queue_status(handle_); }
  Result<uint64_t> size() const {
    TROUPE_TRY(const auto now, status());
    return now.size;
  }
  Result<bool> empty() const {
    TROUPE_TRY(const auto now, status());
    return now.size == 0;
  }
  // Later puts fail with conflict, and so do those that wait; what is inside can still be got, then
  // getters are told the end. Idempotent.
  Status close() const { return detail::queue_close(handle_); }
  // Ends its actor, and with it what is inside.
  Status kill() const {
    if (!handle_.session) return error(Code::invalid, "an empty handle of a queue");
    return detail::kill_actor(handle_.session, handle_.actor);
  }
  ActorId actor() const { return handle_.actor; }

 private:
  friend struct detail::Codec<Queue<T>>;
  static uint64_t type() { return detail::type_hash<T>(); }
  static std::vector<detail::Packed> pack(std::span<const T> elements) {
    std::vector<detail::Packed> packed;
    packed.reserve(elements.size());
    for (const T& element : elements) {
      detail::Writer out;
      detail::write<T>(out, element);
      packed.push_back({std::move(out.bytes), std::move(out.refs)});
    }
    return packed;
  }
  static Status to_status(Result<uint64_t> count) {
    if (!count) return std::move(count).error();
    return ok();
  }
  static Result<size_t> to_count(Result<uint64_t> count) {
    if (!count) return std::move(count).error();
    return static_cast<size_t>(*count);
  }
  static Result<std::vector<T>> to_elements(const std::shared_ptr<detail::SessionImpl>& session,
                                            Result<detail::Batch> batch) {
    if (!batch) return std::move(batch).error();
    std::vector<T> elements;
    elements.reserve(batch->elements.size());
    for (const detail::Packed& packed : batch->elements) {
      detail::Reader in{packed.bytes, session};
      detail::read<T>(in, elements.emplace_back());
      if (in.failed) return error(Code::invalid, "an element's bytes are not of its type");
    }
    return elements;
  }
  static Result<std::optional<T>> to_element(const std::shared_ptr<detail::SessionImpl>& session,
                                             Result<detail::Batch> batch) {
    TROUPE_TRY(auto elements, to_elements(session, std::move(batch)));
    if (elements.empty()) return std::optional<T>{};
    return std::optional<T>{std::move(elements.front())};
  }

  detail::QueueHandle handle_;
};

namespace detail {
template <class T>
struct Codec<Queue<T>> {
  static uint64_t hash() { return hash_mix(27, type_hash<T>()); }
  static void write(Writer& out, const Queue<T>& queue) {
    uint8_t bytes[16];
    queue.handle_.actor.to_bytes(bytes);
    out.raw(bytes, sizeof bytes);
  }
  static void read(Reader& in, Queue<T>& queue) {
    uint8_t bytes[16];
    in.raw(bytes, sizeof bytes);
    queue = Queue<T>{queue_handle(in.session, ActorId::from_bytes(bytes), Queue<T>::type())};
  }
};
}  // namespace detail

}  // namespace troupe
