// One call from its arrival on the loop to its outcome, which any thread of the module may give.
#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "base/timeline.h"
#include "client/client.h"
#include "client/result_refs.h"
#include "sdk/include/troupe/plugin.h"
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

// Where such a call came from. Of any other: the result alone.
struct RingOrigin {
  CallSink* sink = nullptr;
  std::shared_ptr<transport::CallChannel> channel;
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

// What a module has called when its call is told to end: run(argument, why), and last with 0.
class StopHook {
 public:
  using Run = void (*)(void* argument, uint32_t why);
  StopHook(Run run, void* argument) : run_(run), argument_(argument) {}
  StopHook(const StopHook&) = delete;
  StopHook& operator=(const StopHook&) = delete;
  ~StopHook() { run_(argument_, 0); }
  void operator()(uint32_t why) const { run_(argument_, why); }

 private:
  const Run run_;
  void* const argument_;
};

// What few calls have.
struct RequestExtras {
  std::string name;       // The caller's; empty: none.
  uint32_t results = 0;   // 0: one, by finish_value.
  Duration time_limit{};  // Zero: none.
  Duration grace{};
  // Of one with a time limit: called on its thread when it begins.
  std::function<void(const std::shared_ptr<Call>&)> begun;
};

struct CallRequest {
  std::string method;
  uint64_t signature = 0;
  std::vector<client::ObjectBytes> arguments;
  Instant deadline = Instant::max();
  bool streams = false;
  uint32_t lane = 0;       // Of the mailbox; its instance says which.
  uint32_t items_max = 0;  // How many its receiver leaves unread; 0: stream_items_max wait here.
  Instant arrived = {};    // Of one with a deadline.
  Bytes record;            // What the arguments point into, if the call came through a ring.
  std::unique_ptr<RequestExtras> extras;  // Null: none.
};

struct CallItem {
  Bytes bytes;
  std::vector<client::HeldRef> held;  // The refs inside.
};

// Items of a stream that wait for the receiver: at most so many, and so many bytes unless it is
// one.
inline constexpr size_t stream_items_max = 1024;
inline constexpr size_t stream_bytes_max = 8u << 20;

class Call : public std::enable_shared_from_this<Call> {
 public:
  // `abandoned` is the event of the call's context, set on the loop when the caller gives up.
  Call(CallRequest request, std::shared_ptr<transport::CancelEvent> abandoned,
       std::shared_ptr<Doorbell> doorbell, ObjectId result = {});

  // A call of a ring: its outcome goes to the origin's sink, and nobody waits for it here.
  Call(CallRequest request, RingOrigin origin);

  // Fixed once the call is in a mailbox.
  CallRequest& request() { return request_; }
  const CallRequest& request() const { return request_; }
  const RingOrigin& origin() const { return origin_; }
  // Before it is in a mailbox: its run is noted there, if it is chosen by its result or takes long.
  // `timeline` may be null.
  void note_in(Timeline* timeline, const RawId& result) {
    if (timeline == nullptr) return;
    timeline_ = timeline;
    noted_id_ = timeline_id(result);
    if (timeline->wants(result)) arrived_ = timeline->now();
  }
  uint32_t results() const { return request_.extras ? request_.extras->results : 0; }
  const std::string& label() const {
    const bool is_named = request_.extras && !request_.extras->name.empty();
    return is_named ? request_.extras->name : request_.method;
  }

  // Refs inside the outcome, which the reply must keep alive. Set before finish(), read after it.
  std::vector<client::HeldRef> held;
  // Of the loop: with this outcome its process ends.
  bool ends_process = false;
  // The results after the first, which is the outcome. As `held`.
  std::vector<Bytes> more;

  // --- Thread-safe.
  // The first outcome counts; false: there was one already.
  bool finish(Result<Bytes> outcome);
  bool finish_value(BytesView value);
  // Errors: cancelled (the caller is gone), deadline_exceeded (past its time limit), invalid (it
  // wants a single reply), exhausted (the queue is full: retry later).
  Code emit(BytesView item, std::vector<client::HeldRef> held = {});
  // False: emit has room for an item of so many bytes, or the call should end. True: `ready` is
  // called once when that is so.
  bool on_room(size_t item_bytes, std::function<void()> ready);
  // The receiver of the stream has read so many items.
  void items_read(uint32_t count);
  bool is_finished() const;
  // The module runs it, or will not any more. False: it was withdrawn.
  bool begin(Instant now);
  // Of what began. 0: it did not.
  uint32_t ran_ns(Instant now) const;
  // Of what began; the clock's first instant: it did not.
  Instant begun_at() const { return Instant{Duration{begun_at_ns_.load()}}; }
  bool has_begun() const { return begun_.load(); }
  // It has ended, and the first outcome is known.
  void note_end(Instant now, bool has_failed) {
    if (timeline_ == nullptr) return;
    // Most are neither chosen nor long.
    const int64_t ran_ns =
        now.time_since_epoch().count() - begun_at_ns_.load(std::memory_order_relaxed);
    if (arrived_ == Instant{} && ran_ns < timeline_long_run.count()) return;
    note_run_end(now, has_failed);
  }
  // It does not run if it has not begun: true, and whoever withdrew it answers the caller.
  bool withdraw();
  // The caller gave up; the module sees it and should finish soon. `how`: protocol::CancelBits.
  void cancel(uint8_t how = 0);
  // It is past its time limit; the same.
  void overrun() { stop(TROUPE_STOP_TIME_LIMIT); }
  bool is_cancelled() const { return (stop_.load() & TROUPE_STOP_CANCELLED) != 0; }
  bool should_stop() const { return stop_.load() != 0; }
  // Once. It goes when the call is finished, or with this if it was.
  void on_stop(std::shared_ptr<const StopHook> hook);

  // --- On the loop.
  // Waits for the outcome, which is taken.
  Async<Result<Bytes>> outcome();
  // The next item of the stream; nullopt at its end.
  Async<std::optional<CallItem>> next_item();

 private:
  friend class Doorbell;
  void stop(uint32_t why);
  // With the lock held.
  bool has_room(size_t item_bytes) const;
  // What waits for room, if there is some now.
  std::function<void()> take_ready();
  void wake();
  // Waits until something changed: an item, the outcome, or that the caller gave up.
  Async<void> change();

  // Whether this is the first outcome.
  bool claim();
  TimelineEvent run_event(Instant began) const;
  void note_run_end(Instant now, bool has_failed);

  CallRequest request_;
  const RingOrigin origin_;
  const std::shared_ptr<transport::CancelEvent> abandoned_;
  const std::shared_ptr<Doorbell> doorbell_;
  std::atomic<uint32_t> stop_ = 0;  // TROUPE_STOP_...
  std::atomic<int64_t> begun_at_ns_ = 0;
  // What notes the run, where, and when the call arrived; the last two if it was chosen.
  Timeline* timeline_ = nullptr;
  uint64_t noted_id_ = 0;
  uint64_t noted_at_ = 0;
  Instant arrived_{};
  std::atomic<bool> begun_ = false;  // Or withdrawn: whichever was first.
  std::optional<Event> changed_;     // Of the loop.
  mutable std::mutex mutex_;
  std::list<CallItem> items_;
  size_t items_bytes_ = 0;
  size_t items_sent_ = 0;  // And not read, of a receiver that says what it has read.
  std::function<void()> on_room_;
  size_t on_room_bytes_ = 0;
  std::shared_ptr<const StopHook> stop_hook_;
  bool finished_ = false;
  std::optional<Result<Bytes>> outcome_;
};

}  // namespace troupe::actor
