// The directory of actors: where each lives, and the machine that brings them to life again.
//
//   pending -> starting -> alive -> (restarting -> starting -> alive)* -> dead
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "head/groups.h"
#include "head/membership.h"
#include "head/placement.h"

namespace troupe::head {

enum class ActorState : uint8_t { pending, starting, alive, restarting, dead };

struct Actor {
  StoredActor stored;
  ActorState state = ActorState::pending;
  Journal::Ticket written = 0;
  std::shared_ptr<Event> changed;
  uint32_t quick_failures = 0;  // In a row.
  Instant alive_since;
  Instant due;                          // Of its start, its stop or its pause before a start.
  bool start_runs = false;              // A coroutine asks the worker for this incarnation.
  std::vector<protocol::Gauge> gauges;  // Of the present incarnation; in memory alone.
  bool stopping = false;                // The process of the incarnation before may still run,
  NodeId stopping_on;                   // there; nil: nobody knows where.
  bool moves = false;                   // It is asked for its state before it ends.

  const protocol::ActorSpec& spec() const { return stored.record.spec; }
  // Its process ends by itself where no head is heard, and the next incarnation waits for that.
  bool must_not_overlap() const { return spec().isolation_limit_us != 0; }
  // With what clocks that differ in speed, and a kill, may take.
  Duration isolation_limit() const {
    const std::chrono::microseconds limit{spec().isolation_limit_us};
    return limit + limit / 50 + std::chrono::milliseconds(100);
  }
  protocol::ActorInfo& info() { return stored.record.info; }
  const protocol::ActorInfo& info() const { return stored.record.info; }
};

class ActorListener {
 public:
  virtual ~ActorListener() = default;
  // Within the turn of the change: look, do not touch.
  virtual void actor_changed(const Actor& actor) = 0;
};

class Actors : public NodeListener, public PlacementListener, public GroupListener {
 public:
  Actors(transport::Environment environment, const HeadOptions& options, Scope& scope,
         Journal& journal, Membership& membership, Placement& placement, const Groups& groups);

  void set_listener(ActorListener& listener) { listener_ = &listener; }
  void restore(StoredActors actors);

  // Durable on return; does not wait until it runs. Idempotent by id. Errors: invalid, conflict
  // (the name is taken, or the id by another actor), exhausted.
  Async<Result<protocol::ActorInfo>> create(protocol::ActorSpec spec);
  // The same of many; an outcome each, in their order.
  Async<Result<protocol::ActorResults>> create_many(protocol::ActorSpecs specs);
  // Waits until it is alive in an incarnation above `after`, or dead. Errors: not_found,
  // deadline_exceeded (says what it waits for), cancelled.
  Async<Result<protocol::ActorInfo>> get(protocol::GetActor request,
                                         transport::CallContext context);
  // Waits until each is alive or dead; an outcome each, in their order.
  Async<Result<protocol::ActorResults>> get_many(protocol::ActorIds request,
                                                 transport::CallContext context);
  // Durable on return. Its process may end a little later. Errors: not_found.
  Async<Status> kill(ActorId actor, std::string reason);
  // The same of many; those that are not known count as dead.
  Async<Status> kill_many(protocol::ActorIds request);
  // Kills those that do not outlive the job.
  void end_job(JobId job);
  // Kills all of its replicas, in one write with what else this turn writes.
  void end_deployment(const std::string& deployment, const std::string& reason);
  // What an actor on the node says of itself; of another incarnation it is dropped.
  void set_gauges(NodeId node, protocol::ActorGauges report);
  // A process ended; late and repeated news change nothing.
  Async<Status> process_exited(protocol::ProcessExited news);

  // Whether the state is that of the current incarnation, from the node where it runs and over that
  // node's present connection. Errors: not_found, conflict (an older incarnation, term or place),
  // unavailable (the node is not registered).
  Status may_checkpoint(const protocol::StoreCheckpoint& request,
                        const std::shared_ptr<transport::Peer>& worker) const;
  struct Noted {
    protocol::Checkpoint checkpoint;
    Journal::Ticket written = 0;
  };
  // Takes the place of the one before. Of an actor that may_checkpoint.
  Noted set_checkpoint(const protocol::StoreCheckpoint& request);

  const Actor* find(ActorId actor) const;
  const Actor* find(const std::string& name_space, const std::string& name) const;
  const std::map<ActorId, Actor>& all() const { return actors_; }
  // With the reason why it waits.
  protocol::ActorInfo describe(const Actor& actor) const;
  // Never placed so far, and not for want of a node that could hold it.
  bool waits_for_room(const Actor& actor) const;
  size_t living() const { return actors_.size() - dead_.size(); }

  void node_registered(const protocol::RegisterNode& node) override;
  void node_lost(NodeId node, const std::string& reason) override;
  // Those that may restart do so elsewhere, at the cost of one restart; members of placement groups
  // stay with them.
  void node_draining(const protocol::NodeInfo& node) override;
  void actor_placed(const scheduler::ActorPlaced& placed) override;
  void group_removed(PlacementGroupId group, scheduler::GangId gang,
                     const std::string& reason) override;
  void group_broken(PlacementGroupId group, scheduler::GangId old_gang,
                    const std::string& reason) override;

 private:
  struct Failure {
    std::string reason;
    bool permanent = false;      // Another start would fail as well.
    bool blameless = false;      // Not the actor's fault: no back-off.
    bool may_still_run = false;  // The worker is told to stop it.
    bool ended = false;          // Its process has, for sure.
    bool moves = false;          // By plan: its state goes with it.
  };
  using Name = std::pair<std::string, std::string>;

  // What was promised, once the ticket is settled.
  struct Promised {
    protocol::ActorInfo info;
    Journal::Ticket written = 0;
  };
  Result<Promised> promise(protocol::ActorSpec spec);
  Actor* look_up(ActorId actor);
  Status check(const protocol::ActorSpec& spec) const;
  scheduler::ActorRequested request_of(const protocol::ActorSpec& spec, bool restart) const;
  void request_placement(const Actor& actor, bool restart);
  void release(ActorId actor);
  void adopt_resources(const Actor& actor);
  // Writes the row, wakes those who wait, tells the listener.
  void set_state(Actor& actor, ActorState state);
  void set_alive(Actor& actor, const protocol::ProcessAddress& address, uint32_t pid);
  void fail(Actor& actor, Failure failure);
  void die(Actor& actor, std::string reason);
  void forget_oldest();
  Duration backoff(const Actor& actor) const;
  void begin_start(Actor& actor);
  Async<void> start(ActorId id, uint32_t incarnation);
  protocol::StartActor start_request(const Actor& actor) const;
  bool still_starts(ActorId id, uint32_t incarnation) const;
  void started(ActorId id, NodeId node, const Result<protocol::ProcessStarted>& outcome);
  // Of light actors: those that are placed on a node within a turn are started together.
  void start_light_soon(NodeId node, ActorId id, uint32_t incarnation);
  Async<void> start_light(NodeId node);
  Async<void> start_batch(NodeId node, std::map<ActorId, uint32_t> batch);
  Async<Status> stream_batch(NodeId node, std::map<ActorId, uint32_t>& unsettled);
  Async<void> restart_once_stopped(ActorId id, uint32_t failed, NodeId node);
  Async<void> restart_after_silence(ActorId id, uint32_t incarnation);
  Async<void> restart_later(ActorId id, uint32_t incarnation, Duration delay);
  // Asks until the process is gone or its node is; then frees what a dead actor held.
  Async<void> stop(ActorId id, uint32_t incarnation, NodeId node, Journal::Ticket after);
  // False: it may still run, or its node is dead.
  Async<bool> ask_to_stop(ActorId id, uint32_t incarnation, NodeId node);
  // Returns when the process has ended, for sure: it was stopped, or its node was away for so long.
  Async<void> stop_surely(ActorId id, uint32_t incarnation, NodeId node, Duration limit);
  // What runs or starts on a node and is not current there.
  void stop_unwanted(const protocol::RunningActor& running, NodeId here);
  // The same of an incarnation that is not current and runs all the same.
  void stop_stale(const protocol::RunningActor& running, NodeId node);
  Async<void> release_once_stopped(ActorId id, uint32_t incarnation, NodeId node, ActorId held_as);
  protocol::StopActor stop_request(ActorId id, uint32_t incarnation) const;
  // When a process that is told to stop now has ended at the latest.
  Instant stops_until(ActorId id, uint32_t incarnation) const;
  // Of dead light actors: those of a node that die within a turn are stopped together.
  void stop_light_soon(NodeId node, ActorId id, uint32_t incarnation, Journal::Ticket after);
  Async<void> stop_light(NodeId node);
  void released_once_stopped(ActorId id);

  transport::Environment environment_;
  const HeadOptions& options_;
  Scope& scope_;
  Journal& journal_;
  Membership& membership_;
  Placement& placement_;
  const Groups& groups_;
  ActorListener* listener_ = nullptr;
  std::map<ActorId, Actor> actors_;
  std::map<Name, ActorId> names_;                            // Of those that are not dead.
  std::map<PlacementGroupId, std::set<ActorId>> in_groups_;  // The same.
  std::deque<ActorId> dead_;  // The latest; older ones are forgotten.
  struct Stopping {
    std::map<ActorId, uint32_t> actors;
    Journal::Ticket after = 0;
  };
  std::multiset<ActorId> stale_;  // Once for each incarnation that stop_stale() is about.
  Event stale_stopped_;
  Event registered_;                                        // A node.
  std::map<NodeId, std::map<ActorId, uint32_t>> to_start_;  // Light actors' incarnations.
  std::map<NodeId, Stopping> to_stop_;
};

}  // namespace troupe::head
