// One actor process of this node: its connection, what it is for, and how it ends.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "protocol/messages.h"
#include "transport/environment.h"
#include "transport/peer.h"
#include "worker/process_launcher.h"

namespace troupe::worker {

// What a process runs, as the head knows it: an actor, a lease's slot, or nothing (all nil).
struct Work {
  ActorId actor;
  uint32_t incarnation = 0;
  LeaseId lease;
  bool is_replaceable = false;  // It is started again elsewhere if its process ends.

  bool is_none() const { return actor.is_nil() && lease.is_nil(); }
};

class HostedProcess {
 public:
  using Pointer = std::shared_ptr<HostedProcess>;

  HostedProcess(transport::Environment environment, Scope& scope, ProcessId id, JobId job,
                std::string log_path, std::unique_ptr<LaunchedProcess> launched);

  ProcessId id() const { return id_; }
  JobId job() const { return job_; }
  uint32_t pid() const { return launched_->pid(); }
  const std::string& log_path() const { return log_path_; }
  Event& exited() { return launched_->exited(); }
  std::string exit_reason() const {
    return ended_for_.empty() ? launched_->exit_reason() : ended_for_;
  }
  // Nil before greet() or after the connection closed.
  const std::shared_ptr<transport::Peer>& peer() const { return peer_; }
  bool is_ending() const { return ending_; }
  // It is about to be ended by its worker: for the others this is why.
  void end_for(std::string reason) { ended_for_ = std::move(reason); }
  bool is_usable() const { return peer_ && peer_->is_open() && !ending_; }
  // Where it listens, once an assignment was answered.
  const protocol::ProcessStarted& started() const { return started_; }

  Work work;  // Written by the host that uses the process.

  // Exchanges hellos. Errors: unavailable (it ended; the message says how and quotes the end of its
  // log), deadline_exceeded.
  static Async<Status> greet(Pointer self, transport::Service& service, protocol::Hello worker,
                             Instant deadline);
  // And gives the process its work: assign_actor or assign_slot. Errors: the same, and what the
  // process answered.
  static Async<Result<protocol::ProcessStarted>> greet_and_assign(
      Pointer self, transport::Service& service, protocol::Hello worker, transport::Method method,
      Bytes assignment, Instant deadline);
  // What a failed exchange means, once it is known whether the process has ended.
  static Async<Error> explain(Pointer self, Error failed);
  // Gives a process that was greeted new work.
  static Async<Result<protocol::ProcessStarted>> assign(Pointer self, transport::Method method,
                                                        Bytes assignment, Instant deadline);
  // Returns when it has exited: stop_process, after `grace` SIGTERM, 2 seconds later SIGKILL; with
  // no grace SIGKILL at once. A second call waits for the first.
  static Async<void> end(Pointer self, Duration grace, bool save = false);
  // The same, unless others need what it owns: then it is false, and nothing happens.
  static Async<bool> end_if_unneeded(Pointer self, Duration grace);

 private:
  static Async<void> escalate(Pointer self, Duration grace, bool save);
  static Async<void> end_when_disconnected(Pointer self);

  transport::Environment environment_;
  Scope& scope_;
  ProcessId id_;
  JobId job_;
  std::string log_path_;
  std::unique_ptr<LaunchedProcess> launched_;
  std::shared_ptr<transport::Peer> peer_;
  protocol::ProcessStarted started_;
  std::string ended_for_;
  bool ending_ = false;
};

}  // namespace troupe::worker
