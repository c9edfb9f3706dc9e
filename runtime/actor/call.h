// One call from its arrival on the loop to its outcome, which any thread of the module may give.
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "client/client.h"
#include "client/result_refs.h"
#include "transport/async.h"
#include "transport/ring_channel.h"

namespace troupe::actor {

class Call;

// Takes the outcomes of calls that came through a ring, on whichever thread gives them.
class CallSink {
 public:
  virtual ~CallSink() = default;
  virtual void finished(const std::shared_ptr<Call>& call, Result<BytesView> outcome) = 0;
};

// Where such a call came from.
struct RingOrigin {
  CallSink* sink = nullptr;
  std::shared_ptr<transport::RingChannel> channel;
  uint64_t number = 0;
  ObjectId result;
  uint64_t ordinal = 0;  // Among the caller's calls.
  ActorId actor = {};    // Who is called; nil: a task.
};

// Wakes the loop for calls that changed, once a batch. Thread-safe.
class Doorbell : public std::enable_shared_from_this<Doorbell> {
 public:
  explicit Doorbell(Executor loop) : loop_(std::move(loop)) {}
  void ring(std::shared_ptr<Call> call);
  const Executor& loop() const { return loop_; }

 private:
  void answer();
  Executor loop_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Call>> rung_;
};

struct CallRequest {
  std::string method;
  uint64_t signature = 0;
  std::vector<client::ObjectBytes> arguments;
  Instant deadline = Instant::max();
  bool streams = false;
  uint32_t lane = 0;  // Of the mailbox; its instance says which.
  Bytes record;       // What the arguments point into, if the call came through a ring.
};

// Items of a stream that wait for the receiver: at most so many, and so many bytes unless it is
// one.
inline constexpr size_t stream_items_max = 1024;
inline constexpr size_t stream_bytes_max = 8u << 20;

class Call : public std::enable_shared_from_this<Call> {
 public:
  // `abandoned` is the event of the call's context, set on the loop when the caller gives up.
  Call(CallRequest request, std::shared_ptr<Event> abandoned, std::shared_ptr<Doorbell> doorbell);

  // A call of a ring: its outcome goes to the origin's sink, and nobody waits for it here.
  Call(CallRequest request, RingOrigin origin);

  // Fixed once the call is in a mailbox.
  CallRequest& request() { return request_; }
  const CallRequest& request() const { return request_; }
  const RingOrigin& origin() const { return origin_; }

  // Refs inside the outcome, which the reply must keep alive. Set before finish(), read after it.
  std::vector<client::HeldRef> held;

  // --- Thread-safe.
  // The first outcome counts; false: there was one already.
  bool finish(Result<Bytes> outcome);
  bool finish_value(BytesView value);
  // Errors: cancelled (the caller is gone), invalid (it wants a single reply), exhausted (the queue
  // is full: retry later).
  Code emit(BytesView item);
  bool is_finished() const;
  // The module runs it, or will not any more. False: it was withdrawn.
  bool begin(Instant now);
  // Of what began. 0: it did not.
  uint32_t ran_ns(Instant now) const;
  // It does not run if it has not begun: true, and whoever withdrew it answers the caller.
  bool withdraw();
  // The caller gave up; the module sees it and should finish soon.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool is_cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  // --- On the loop.
  // Waits for the outcome, which is taken.
  Async<Result<Bytes>> outcome();
  // The next item of the stream; nullopt at its end.
  Async<std::optional<Bytes>> next_item();

 private:
  friend class Doorbell;
  void wake();
  // Waits until something changed: an item, the outcome, or that the caller gave up.
  Async<void> change();

  // Whether this is the first outcome.
  bool claim();

  CallRequest request_;
  const RingOrigin origin_;
  const std::shared_ptr<Event> abandoned_;
  const std::shared_ptr<Doorbell> doorbell_;
  std::atomic<bool> cancelled_ = false;
  std::atomic<int64_t> begun_at_ns_ = 0;
  std::atomic<bool> begun_ = false;  // Or withdrawn: whichever was first.
  std::optional<Event> changed_;     // Of the loop.
  mutable std::mutex mutex_;
  std::list<Bytes> items_;
  size_t items_bytes_ = 0;
  bool finished_ = false;
  std::optional<Result<Bytes>> outcome_;
};

}  // namespace troupe::actor
