// One instance of an actor class and the thread that owns it.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>

#include "actor/call_table.h"
#include "actor/context.h"
#include "actor/crew.h"
#include "actor/mailbox.h"
#include "base/service_time.h"
#include "transport/environment.h"

namespace troupe::actor {

struct InstanceOptions {
  size_t mailbox_calls_max = 1 << 20;
  size_t calls_a_step = 1024;  // Between two steps, so that callers cannot starve them.
  Duration step_budget = std::chrono::milliseconds(10);
};

// Methods with threads, or unfinished calls, of their own.
struct ConcurrencyGroup {
  std::string name;
  uint32_t limit = 0;
};

// How the states of an instance are kept.
struct CheckpointPlan {
  std::string folder = {};        // Where it writes them; empty: they are not kept.
  std::string restore_from = {};  // What it goes on from; empty: it begins anew.
  uint64_t number = 0;            // Of that.
  bool is_regular = false;        // They are taken by an interval.
  // A state was written to `path`. On an actor thread; `done` may be called on any other, once,
  // while the instance lives.
  std::function<void(std::string path, std::function<void(Result<Bytes>)> done)> saved = {};
  // The instance wants its state to be kept. On any thread.
  std::function<void()> wished = {};
};

struct InstanceSpec {
  const troupe_actor_class* type = nullptr;  // From a Module.
  Identity identity;
  uint64_t signature = 0;
  std::vector<client::ObjectBytes> arguments;
  uint32_t concurrency = 0;                   // 0: the class's default.
  std::vector<ConcurrencyGroup> groups = {};  // Other limits than the class's own.
  size_t mailbox_calls_max = 0;               // 0: the options'.
  Crew* crew = nullptr;  // A light actor's threads; null, or several threads: its own ones.
  CheckpointPlan checkpoints = {};
};

// Belongs to the loop; the module's code runs on the instance's threads, or on one of the crew's at
// a time, alone: create (and restore), then calls in the order of the mailbox, checkpoints among
// them, and steps between them, then destroy. A plugin that lets an exception out ends the process.
class Instance final : private Crew::Member {
 public:
  // `services` outlives the instance.
  Instance(transport::Environment environment, Services& services, InstanceSpec spec,
           InstanceOptions options);
  // Only after ended() is set, or before start().
  ~Instance();

  // Starts the thread and waits for create. Once. Errors: what create answered; data_loss (what
  // restore answered); invalid (checkpoints by an interval of a class that has none).
  Async<Status> start();
  bool has_started() const { return started_; }
  // A call as submit takes it; its context's event tells that the caller gave up.
  std::shared_ptr<Call> make_call(CallRequest request,
                                  std::shared_ptr<transport::CancelEvent> abandoned,
                                  ObjectId result = {});
  // The same of a call that came through a ring. Thread-safe, as submit.
  static std::shared_ptr<Call> make_call(CallRequest request, RingOrigin origin) {
    return std::make_shared<Call>(std::move(request), std::move(origin));
  }
  // To the end of the mailbox. Errors: exhausted (full), unavailable (stopping: it will not run).
  Status submit(std::shared_ptr<Call> call);
  // One that the runtime makes, of which there are few: it needs no room in the mailbox. Errors:
  // unavailable.
  Status submit_own(std::shared_ptr<Call> call);

  // Those in the mailbox that came through this channel: they will not run, and the caller of this
  // answers them. Thread-safe.
  std::vector<std::shared_ptr<Call>> withdraw(const transport::CallChannel& channel);

  // Looks at the calls in the mailbox, the oldest of a lane first, and at those that have begun and
  // have no outcome yet. Neither may come back here. Thread-safe.
  template <class Look>
  void for_each_waiting(Look look) {
    mailbox_.for_each(look);
  }
  template <class Look>
  void for_each_running(Look look) const {
    calls_.for_each_open(look);
  }
  // A part of the mailbox: the calls of a concurrency group, or of none.
  struct LaneView {
    std::string_view name;  // Empty: of none.
    uint32_t limit = 1;     // Threads, or unfinished calls if they are coroutines.
  };
  LaneView lane(uint32_t number) const { return {lanes_[number].name, lanes_[number].limit}; }
  // Its methods are coroutines, which share a thread.
  bool has_coroutines() const { return defers(); }
  // Runs `work` on an actor thread, before the calls that wait. False: the instance stops.
  // Thread-safe.
  bool defer(std::function<void()> work);

  // Whether something ran since the last checkpoint that was kept. Thread-safe.
  bool has_changed() const { return changed_.load(); }
  // Whether any can be taken. Errors: unimplemented (why not).
  Status can_checkpoint() const;

  // Asks the thread to end after its present call or step, and to take a checkpoint then if it is
  // to be saved, can be and something ran since the last. Idempotent.
  void request_stop(bool save = false);
  // Waits for the end of the thread; false if `deadline` comes first.
  Async<bool> wait_ended(Instant deadline);
  Event& ended() { return ended_; }
  // Why it ended by itself: what a step failed with.
  const std::optional<Error>& death() const { return death_; }
  Gauges& gauges() { return context_->gauges; }
  bool is_light() const { return crew_ != nullptr; }

 private:
  // The mailbox's, one a concurrency group; the first is for methods of none.
  struct Lane {
    std::string name;
    uint32_t limit = 1;            // Threads, or unfinished calls.
    std::atomic<size_t> open = 0;  // Unfinished calls.
  };
  bool defers() const { return (type_flags() & TROUPE_CLASS_COROUTINES) != 0; }
  uint32_t type_flags() const;
  // Whether the module's table is long enough to have the field.
  bool has(size_t offset) const { return type_->size >= offset + sizeof(void*); }
  Status find_lanes(const InstanceSpec& spec);
  std::vector<Mailbox::Lane> mailbox_lanes();
  // On the actor's threads.
  void run() noexcept;
  // Another thread's part in a threaded actor: calls of a lane alone.
  void help(size_t lane) noexcept;
  After turn() noexcept override;
  // Runs what waits, at most `calls`; false: there was nothing.
  bool take_some(size_t calls, size_t lane = 0) noexcept;
  void tell_created(Status created);
  void destroy() noexcept;
  Status create() noexcept;
  void deliver(std::shared_ptr<Call> call) noexcept;
  // Others wait behind the call, and it would most likely not be done in its time.
  bool is_late(const CallRequest& request, Instant now);
  void note_run(const std::string& method, Duration took);
  // The method that every actor has.
  void checkpoint(const std::shared_ptr<Call>& call) noexcept;
  void save_at_end() noexcept;
  uint32_t choose_lane(Call& call) const;
  // Where the module wrote its state.
  Result<std::string> write_state() noexcept;
  Status restore() noexcept;
  int32_t wish_checkpoint();
  // Whether there is more to do. Errors: the actor dies of it.
  Result<bool> step() noexcept;
  void finish(const std::optional<Error>& death) noexcept;
  bool stop_requested() const { return context_->stopping.stop_requested(); }

  const transport::Environment environment_;
  const InstanceOptions options_;
  const troupe_actor_class* const type_;
  const uint64_t signature_;
  std::vector<client::ObjectBytes> arguments_;  // Until create has returned.
  struct Release {
    void operator()(troupe_context* context) const { context->release(); }
  };
  const std::unique_ptr<troupe_context, Release> context_;
  std::shared_ptr<Doorbell> doorbell_;
  std::deque<Lane> lanes_;
  std::unordered_map<std::string, uint32_t> lane_of_;  // By method, but for those of the first.
  Crew* crew_ = nullptr;
  const Status lanes_found_;  // From what the three above are filled.
  const CheckpointPlan checkpoints_;
  const bool takes_checkpoints_;  // By then the lanes are known.
  std::atomic<bool> changed_ = false;
  std::atomic<bool> wished_ = false;  // And no checkpoint has begun since.
  std::atomic<bool> saves_at_end_ = false;
  // The actor thread's own: whether a call has left something to a step, or the step before.
  bool has_work_ = false;
  uint64_t states_written_ = 0;  // The same.
  Mailbox mailbox_;
  CallTable calls_;
  std::mutex service_times_mutex_;
  // Of methods that are no coroutines, of calls with a deadline. Guarded.
  std::map<std::string, ServiceTime> service_times_;
  void* instance_ = nullptr;
  bool fresh_ = true;  // Of a light one: create has not run. Its turn's own.

  Event created_;
  Status create_outcome_ = error(Code::internal, "not created yet");
  Event ended_;
  bool started_ = false;
  std::optional<Error> death_;
  std::vector<std::thread> helpers_;
  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace troupe::actor
