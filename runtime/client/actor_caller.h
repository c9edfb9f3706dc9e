// Calls to actors: where they live, one ordered queue an actor, what to do when they die.
//
// A call to an actor whose process is reached through a channel, with none queued before it, is
// written there by the thread that makes it. Every other one goes through the loop.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>

#include "client/mailbox_pace.h"
#include "client/object.h"
#include "client/roster.h"

namespace troupe::client {

class ActorCaller;

// A call on its way. Of its caller; others hold it.
struct ActorCall {
  const ActorCallSpec spec;  // The actor in it counts for a stream of Client::stream_actor alone.
  std::shared_ptr<Object> result;
  Instant deadline;
  Duration delay{};  // Before it is sent once more, if it surely did not run.
  int32_t retried = 0;
  // Among its target's: those that found its mailbox full are sent again in this order.
  uint64_t number = 0;
  std::shared_ptr<ReadyHook> seat = {};  // Its CallRoute's own.
  Instant submitted{};  // As the process's timeline has it; zero: it has not, or it was sent.

  // --- On the loop.
  TimerClock::TimerId timer = 0;
  bool has_timer = false;  // Or had.
  bool found_full = false;
};

// Who chose the actor of a call, and may choose another. Thread-safe.
class CallRoute {
 public:
  virtual ~CallRoute() = default;
  // The call is to be sent again, to whomever: it surely did not run, or may run twice.
  virtual void take_back(std::shared_ptr<ActorCall> call, Error why) = 0;
};

// Told on the loop that the process of an actor is gone.
class ActorWatch {
 public:
  virtual ~ActorWatch() = default;
  virtual void process_gone(ActorId actor) = 0;
};

// One actor as this process calls it. Thread-safe.
class ActorTarget {
 public:
  ActorTarget(ActorId actor, ActorCaller& caller) : actor_(actor), caller_(caller) {}
  ActorId actor() const { return actor_; }

 private:
  friend class ActorCaller;
  friend class RingCall;

  const ActorId actor_;
  ActorCaller& caller_;

  std::mutex mutex_;  // Guards what follows.
  std::shared_ptr<transport::CallChannel> channel_;
  uint32_t incarnation_ = 0;
  std::shared_ptr<const protocol::ProcessAddress> address_;
  size_t on_loop_ = 0;  // Calls that the loop has not sent yet: later ones queue behind them.
  uint64_t submitted_ = 0;

  // --- On the loop.
  std::optional<protocol::ActorInfo> info_;
  std::shared_ptr<Peer> peer_;
  std::deque<std::shared_ptr<ActorCall>> queue_;
  bool pumping_ = false;
  MailboxPace pace_;
  std::vector<std::weak_ptr<ActorWatch>> watches_;
};

class ActorCaller {
 public:
  explicit ActorCaller(Client& client);
  // What has no outcome yet gets this one, and no deadline fires any more: the client stops, and
  // may go before they do.
  void fail_all(const Error& why);

  // Thread-safe. Kept for as long as the actor is called.
  std::shared_ptr<ActorTarget> target(ActorId actor);
  // Thread-safe. Calls to one actor are sent in the order of these calls, as one thread makes them.
  // `more`: as of Client::start_call.
  std::shared_ptr<Object> submit(const std::shared_ptr<ActorTarget>& target, ActorCallSpec spec,
                                 std::vector<std::shared_ptr<Object>>* more);
  // The same in two steps, for a CallRoute, thread-safe, too: the call's result is there at once,
  // and its time runs. It must be sent or finished.
  std::shared_ptr<ActorCall> prepare(ActorCallSpec spec,
                                     std::vector<std::shared_ptr<Object>>* more);
  void send(const std::shared_ptr<ActorTarget>& target, std::shared_ptr<ActorCall> call);
  // One that is not to be sent: its result is there, or becomes this failure.
  void fail(const std::shared_ptr<ActorCall>& call, Error failure);
  void finish(const std::shared_ptr<ActorCall>& call);

  // --- On the loop.
  // Ends the call at its deadline. `target`: null if it is not chosen yet.
  void keep_time(const std::shared_ptr<ActorCall>& call,
                 const std::shared_ptr<ActorTarget>& target);
  // An open connection to the actor's present process; waits while it starts or restarts. Errors:
  // unavailable (it is dead: why), not_found, deadline_exceeded.
  Async<Result<std::shared_ptr<Peer>>> reach(std::shared_ptr<ActorTarget> target, Instant deadline);
  // Until `watch` goes.
  void watch(const std::shared_ptr<ActorTarget>& target, std::weak_ptr<ActorWatch> watch);
  Async<Result<std::shared_ptr<transport::IncomingStream>>> stream(ActorCallSpec spec);
  // Where an actor lives, for the first call to it.
  void learn(protocol::ActorInfo info);
  // Forgets that its actors live there; the head knows where they are now.
  void process_gone(ProcessId process);
  // Why the object, which a call makes, is not ready. False: it is none of these calls', or on its
  // way between two states.
  bool explain(const Object& result, protocol::Explanation& told) const;

 private:
  friend class RingCall;
  using Target = std::shared_ptr<ActorTarget>;
  using Queued = std::shared_ptr<ActorCall>;
  struct Sent {
    Queued queued;
    protocol::ProcessAddress process;
  };
  struct Later {
    Queued queued;
    ActorId actor;
    Instant when;
  };

  // With the target's lock held. Errors: those of CallChannel::call.
  Status send_directly(const Target& target, const Queued& queued);
  Status pass_to_channel(const Target& target,
                         const std::shared_ptr<transport::CallChannel>& channel);
  void enqueue(Target target, Queued queued);
  Async<void> enqueue_later(Target target, Queued queued, Duration delay);
  Async<void> route_later(Queued queued, Duration delay, Error failure);
  // The actor's mailbox was full: it is sent again, before those that were made after it.
  void wait_for_room(const Target& target, const Queued& queued);
  void start_pump(const Target& target);
  Async<void> pump(Target target);
  Async<void> await_reply(Target target, Queued queued, transport::OutgoingCall call,
                          uint32_t incarnation, protocol::ProcessAddress callee);
  void begin_stream(const Target& target, const Queued& queued, const std::shared_ptr<Peer>& peer);
  std::shared_ptr<transport::CancelEvent> on_cancel(Object& result) const;
  // A generator's call: until its stream has ended.
  Async<void> await_stream(Target target, Queued queued,
                           std::shared_ptr<transport::IncomingStream> stream, uint32_t incarnation,
                           std::shared_ptr<Peer> peer);
  // From any thread: the outcome of a call that was sent to an incarnation.
  void settle(const Target& target, const Queued& queued, uint32_t incarnation,
              Result<protocol::InvokeReply> outcome, const protocol::ProcessAddress& callee);
  // It was not sent.
  void fail_unsent(const Queued& queued, Error failure);
  void note_sent(const Queued& queued);
  void forget_incarnation(const Target& target, uint32_t incarnation);
  protocol::Invoke to_invoke(ActorId actor, const ActorCallSpec& spec, ObjectId result) const;

  std::vector<Target> targets() const;
  bool explain_queued(const Target& target, const Object& result,
                      protocol::Explanation& told) const;

  Client& client_;
  mutable std::mutex mutex_;
  std::map<ActorId, Target> targets_;  // Guarded.
  // --- On the loop.
  Roster<Sent> sent_;    // By it, rather than through a channel.
  Roster<Later> later_;  // Sent again a moment later.
  struct Due {
    Instant deadline;
    TimerClock::TimerId timer = 0;
    std::shared_ptr<Object> result;
  };
  std::map<ObjectId, Due> deadlines_;  // Of those that have one.
};

}  // namespace troupe::client
