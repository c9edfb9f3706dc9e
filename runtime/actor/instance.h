// One instance of an actor class and the thread that owns it.
#pragma once

#include <memory>
#include <optional>
#include <thread>

#include "actor/call_table.h"
#include "actor/context.h"
#include "actor/mailbox.h"
#include "transport/environment.h"

namespace troupe::actor {

struct InstanceOptions {
  size_t mailbox_calls_max = 1 << 20;
  size_t calls_a_step = 1024;  // Between two steps, so that callers cannot starve them.
  Duration step_budget = std::chrono::milliseconds(10);
};

struct InstanceSpec {
  const troupe_actor_class* type = nullptr;  // From a Module.
  Identity identity;
  uint64_t signature = 0;
  std::vector<client::ObjectBytes> arguments;
  uint32_t concurrency = 0;  // 0: the class's default.
};

// Belongs to the loop; the module's code runs on the instance's own thread alone: create, then
// calls in the order of the mailbox and steps between them, then destroy. A plugin that lets an
// exception out ends the process.
class Instance {
 public:
  // `services` outlives the instance.
  Instance(transport::Environment environment, Services& services, InstanceSpec spec,
           InstanceOptions options);
  // Only after ended() is set, or before start().
  ~Instance();

  // Starts the thread and waits for create. Once. Errors: what create answered.
  Async<Status> start();
  // A call as submit takes it; its context's event tells that the caller gave up.
  std::shared_ptr<Call> make_call(CallRequest request,
                                  std::shared_ptr<transport::CancelEvent> abandoned);
  // The same of a call that came through a ring. Thread-safe, as submit.
  static std::shared_ptr<Call> make_call(CallRequest request, RingOrigin origin) {
    return std::make_shared<Call>(std::move(request), std::move(origin));
  }
  // To the end of the mailbox. Errors: exhausted (full), unavailable (stopping: it will not run).
  Status submit(std::shared_ptr<Call> call) { return mailbox_.put(std::move(call)); }

  // Those in the mailbox that came through this channel: they will not run, and the caller of this
  // answers them. Thread-safe.
  std::vector<std::shared_ptr<Call>> withdraw(const transport::RingChannel& channel);

  // Runs `work` on an actor thread, before the calls that wait. False: the instance stops.
  // Thread-safe.
  bool defer(std::function<void()> work);

  // Asks the thread to end after its present call or step. Idempotent.
  void request_stop();
  // Waits for the end of the thread; false if `deadline` comes first.
  Async<bool> wait_ended(Instant deadline);
  Event& ended() { return ended_; }
  // Why it ended by itself: what a step failed with.
  const std::optional<Error>& death() const { return death_; }
  std::map<std::string, double> gauges() const { return context_.gauges.read(); }

 private:
  bool defers() const { return (type_flags() & TROUPE_CLASS_COROUTINES) != 0; }
  uint32_t type_flags() const;
  // On the actor's threads.
  void run() noexcept;
  // Another thread's part in a threaded actor: calls alone.
  void help() noexcept;
  // Runs what waits; false: there was nothing.
  bool take_some() noexcept;
  Status create() noexcept;
  void deliver(std::shared_ptr<Call> call) noexcept;
  // Whether there is more to do. Errors: the actor dies of it.
  Result<bool> step() noexcept;
  void finish(const std::optional<Error>& death) noexcept;
  bool stop_requested() const { return context_.stopping.stop_requested(); }

  const transport::Environment environment_;
  const InstanceOptions options_;
  const troupe_actor_class* const type_;
  const uint64_t signature_;
  std::vector<client::ObjectBytes> arguments_;  // Until create has returned.
  troupe_context context_;
  std::shared_ptr<Doorbell> doorbell_;
  Mailbox mailbox_;
  CallTable calls_;
  const uint32_t concurrency_;  // Threads, or unfinished calls.
  void* instance_ = nullptr;

  Event created_;
  Status create_outcome_ = error(Code::internal, "not created yet");
  Event ended_;
  std::optional<Error> death_;
  std::vector<std::thread> helpers_;
  std::thread thread_;  // Last: it uses all of the above.
};

}  // namespace troupe::actor
