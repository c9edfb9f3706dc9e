// Starts and stops this node's actors, each in a process of its own, or light ones together in one.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "worker/logs.h"
#include "worker/process_table.h"

namespace troupe::worker {

class ActorHost {
 public:
  // All outlive the host.
  ActorHost(transport::Environment environment, Scope& scope, ProcessTable& processes, Logs& logs,
            const WorkerOptions& options);

  // Idempotent by (actor, incarnation): a repeated request joins the first or gets its answer,
  // also the answer that it failed. A higher incarnation stops the lower one first. The budget is
  // the call's. Errors: conflict (a higher incarnation was here, or this one ended), cancelled
  // (stopped while it started), what the process answered, what ProcessTable::launch returns.
  // `checkpoint`: the request's, if it has one.
  Async<Result<protocol::ProcessStarted>> start(protocol::StartActor request,
                                                Surroundings surroundings,
                                                CheckpointFolder checkpoint, Instant deadline);
  // What was made ready for the module of a job, and for an actor, or why it could not be.
  struct Prepared {
    std::map<std::pair<JobId, std::string>, Result<Surroundings>> surroundings;
    std::map<ActorId, Result<CheckpointFolder>> checkpoints;  // Of those that have one.
  };
  // The same of light actors, whose outcomes `out` gets as they come, in batches.
  Async<Status> start_light(protocol::StartActors request, std::shared_ptr<const Prepared> prepared,
                            transport::OutgoingStream& out);
  // Answers when the actor is gone. Idempotent; a start that comes late is then refused.
  // Errors: deadline_exceeded (it still ends).
  Async<Result<protocol::Empty>> stop(protocol::StopActor request, Instant deadline);

  Async<Result<protocol::Empty>> stop_many(protocol::StopActors request, Instant deadline);

  // The actors that ended with it.
  std::vector<Work> process_exited(HostedProcess& process);
  // Errors: invalid (too many), not_found (no such actor in this process).
  Status set_gauges(protocol::ActorGauges report, ProcessId process);
  // Those that changed since the last call.
  std::vector<protocol::ActorGauges> changed_gauges();
  // A head that registers this node anew does not know any.
  void tell_gauges_again();
  // A head has answered what was sent then: actors with a limit to their isolation live on.
  void extend_isolated(Instant heard);
  // Whether the process is that of the actor.
  bool hosts(ActorId actor, uint32_t incarnation, ProcessId process) const;
  // Those that were answered as started, by actor.
  std::vector<protocol::RunningActor> running() const;
  // Those that still start: a head that does not want them any more stops them.
  std::vector<protocol::RunningActor> starting() const;
  // Those that wait for an older incarnation to end go no further: a head that registers this node
  // anew asks for them again.
  void drop_waiting() { ++drops_; }

 private:
  struct LightProcess;
  struct Actor {
    explicit Actor(const Executor& executor) : settled(executor) {}
    uint32_t incarnation = 0;
    HostedProcess::Pointer process;
    std::shared_ptr<LightProcess> light;  // Null: the process is its own.
    std::optional<Result<protocol::ProcessStarted>> outcome;
    Event settled;
    std::vector<protocol::Gauge> gauges;
    bool gauges_changed = false;
    Duration isolation_limit{};  // 0: none.
  };
  // A process of light actors of one job, module, environment and place.
  struct LightProcess {
    explicit LightProcess(const Executor& executor) : greeted(executor) {}
    std::string key;
    HostedProcess::Pointer process;
    Status outcome = ok();
    Event greeted;
    std::set<ActorId> actors;
    uint64_t uses = 0;  // How often it got actors.
  };
  using LightPointer = std::shared_ptr<LightProcess>;
  // What came of a request for light actors, until it was told.
  struct Outcomes {
    explicit Outcomes(const Executor& loop) : changed(loop) {}
    std::vector<protocol::StartedActor> told_next;
    size_t left = 0;
    Event changed;
    void add(protocol::StartedActor outcome) {
      told_next.push_back(std::move(outcome));
      --left;
      changed.pulse();
    }
  };
  using OutcomesPointer = std::shared_ptr<Outcomes>;
  struct Ended {
    uint32_t incarnation = 0;
    Error why;
  };
  using Pointer = std::shared_ptr<Actor>;

  Async<Result<protocol::ProcessStarted>> begin(protocol::StartActor request,
                                                Surroundings surroundings,
                                                CheckpointFolder checkpoint);
  protocol::AssignActor assignment_of(protocol::StartActor request,
                                      const CheckpointFolder& checkpoint, ProcessId process) const;
  Async<Status> extend(HostedProcess::Pointer process, Duration isolation_limit);
  Async<void> extend_later(HostedProcess::Pointer process, Duration isolation_limit);
  Async<Result<protocol::ProcessStarted>> join(Pointer actor, Instant deadline);
  std::optional<Error> refusal(const protocol::StartActor& request) const;
  static Error dropped();
  // Ends an older incarnation, which then has left the map.
  Async<void> supersede(ActorId id);
  Async<void> start_light_later(protocol::StartActor request,
                                std::shared_ptr<const Prepared> prepared, OutcomesPointer outcomes);
  Async<void> join_light(ActorId id, uint32_t incarnation, Pointer actor, OutcomesPointer outcomes);
  Async<void> assign_light(LightPointer light, std::vector<protocol::StartActor> items,
                           std::shared_ptr<const Prepared> prepared, OutcomesPointer outcomes);
  // Errors: that of the process or of the stream as a whole.
  Async<Status> stream_light(LightPointer light, protocol::AssignActors request,
                             OutcomesPointer outcomes, std::map<ActorId, Pointer>& unsettled);
  // The process for such actors, launched if there is none.
  Result<LightPointer> light_process(const protocol::StartActor& request, const Prepared& prepared);
  Async<void> greet(LightPointer light);
  void retire(const LightPointer& light);
  void settle(ActorId id, const Pointer& actor, Result<protocol::ProcessStarted> outcome);
  void leave_light(ActorId id, const Pointer& actor);
  Async<void> end_unused(LightPointer light, uint64_t uses);
  Async<Status> stop_light(HostedProcess::Pointer process, std::vector<protocol::StopActor> items,
                           Instant deadline);
  Pointer find(ActorId id) const;
  void remember_end(ActorId id, uint32_t incarnation, Error why);

  transport::Environment environment_;
  Scope& scope_;
  ProcessTable& processes_;
  Logs& logs_;
  const WorkerOptions& options_;
  std::map<ActorId, Pointer> actors_;
  Instant heard_;  // As HeadLink::heard().
  uint64_t drops_ = 0;
  std::map<std::string, LightPointer> light_;          // The newest of a kind: takes more actors.
  std::map<ProcessId, LightPointer> light_processes_;  // All that have not exited.
  std::map<ActorId, Ended> ended_;  // The newest incarnation that ended here; bounded.
  std::deque<ActorId> ended_order_;
};

}  // namespace troupe::worker
