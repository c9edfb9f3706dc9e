// Starts and stops this node's actors, each in a process of its own.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>

#include "worker/logs.h"
#include "worker/process_table.h"

namespace troupe::worker {

class ActorHost {
 public:
  // All outlive the host.
  ActorHost(transport::Environment environment, ProcessTable& processes, Logs& logs);

  // Idempotent by (actor, incarnation): a repeated request joins the first or gets its answer,
  // also the answer that it failed. A higher incarnation stops the lower one first. The budget is
  // the call's. Errors: conflict (a higher incarnation was here, or this one ended), cancelled
  // (stopped while it started), what the process answered, what ProcessTable::launch returns.
  Async<Result<protocol::ProcessStarted>> start(protocol::StartActor request, Instant deadline);
  // Answers when the process is gone. Idempotent; a start that comes late is then refused.
  // Errors: deadline_exceeded (it still ends).
  Async<Result<protocol::Empty>> stop(protocol::StopActor request, Instant deadline);

  void process_exited(HostedProcess& process);
  // Errors: invalid (too many), not_found (no such actor in this process).
  Status set_gauges(protocol::ActorGauges report, ProcessId process);
  // Those that changed since the last call.
  std::vector<protocol::ActorGauges> changed_gauges();
  // A head that registers this node anew does not know any.
  void tell_gauges_again();
  // Those that were answered as started, by actor.
  std::vector<protocol::RunningActor> running() const;

 private:
  struct Actor {
    explicit Actor(const Executor& executor) : settled(executor) {}
    uint32_t incarnation = 0;
    HostedProcess::Pointer process;
    std::optional<Result<protocol::ProcessStarted>> outcome;
    Event settled;
    std::vector<protocol::Gauge> gauges;
    bool gauges_changed = false;
  };
  struct Ended {
    uint32_t incarnation = 0;
    Error why;
  };
  using Pointer = std::shared_ptr<Actor>;

  Async<Result<protocol::ProcessStarted>> begin(protocol::StartActor request);
  Async<Result<protocol::ProcessStarted>> join(Pointer actor, Instant deadline);
  std::optional<Error> refusal(const protocol::StartActor& request) const;
  Pointer find(ActorId id) const;
  void remember_end(ActorId id, uint32_t incarnation, Error why);

  transport::Environment environment_;
  ProcessTable& processes_;
  Logs& logs_;
  std::map<ActorId, Pointer> actors_;
  std::map<ActorId, Ended> ended_;  // The newest incarnation that ended here; bounded.
  std::deque<ActorId> ended_order_;
};

}  // namespace troupe::worker
