// Calls to actors: where they live, one ordered queue an actor, what to do when they die.
#pragma once

#include <deque>
#include <map>
#include <memory>

#include "client/client.h"

namespace troupe::client {

class ActorCaller {
 public:
  ActorCaller(Client& client);

  // Calls to one actor are sent in the order of these calls.
  Async<Result<protocol::InvokeReply>> call(std::shared_ptr<ActorCallSpec> spec, ObjectId result,
                                            std::shared_ptr<Event> cancelled,
                                            protocol::ProcessAddress* callee);
  Async<Result<std::shared_ptr<transport::IncomingStream>>> stream(ActorCallSpec spec);
  // Forgets the actors that it ran; the head knows where they are now.
  void process_gone(ProcessId process);

 private:
  // A call on its way: queued until it is its turn to be sent.
  struct Queued {
    explicit Queued(const Executor& executor) : sent(executor) {}
    protocol::Invoke invoke;
    Instant deadline;
    std::optional<Result<transport::OutgoingCall>> call;
    protocol::ProcessAddress callee;
    Event sent;
  };
  struct Target {
    std::optional<protocol::ActorInfo> info;
    std::shared_ptr<Peer> peer;
    std::deque<std::shared_ptr<Queued>> queue;
    bool pumping = false;
  };

  protocol::Invoke to_invoke(const ActorCallSpec& spec, ObjectId result) const;
  Async<Result<transport::Message>> send_in_order(std::shared_ptr<Queued> queued);
  Async<void> pump(ActorId actor);
  // An open connection to the actor's present process.
  Async<Result<std::shared_ptr<Peer>>> reach(ActorId actor, Instant deadline);
  // Whether the failed call surely did not run, so that it may be sent again.
  static bool surely_not_run(const Error& failure);
  // Whether nobody knows if it ran.
  static bool may_have_run(const Error& failure);
  // The head is asked anew: the process said that it hosts another incarnation.
  void forget_incarnation(ActorId actor, const Queued& refused);

  Client& client_;
  std::map<ActorId, Target> targets_;
};

}  // namespace troupe::client
