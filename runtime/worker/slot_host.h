// Starts and stops the processes that run tasks: the slots of leases.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>

#include "worker/logs.h"
#include "worker/options.h"
#include "worker/process_table.h"

namespace troupe::worker {

// A process whose slot was taken back waits a while for the next lease of the same job and module,
// because a process costs milliseconds and an assignment microseconds. A process that still runs a
// task answers assign_slot with an error and is ended.
class SlotHost {
 public:
  // All outlive the host.
  SlotHost(transport::Environment environment, Scope& scope, ProcessTable& processes, Logs& logs,
           const WorkerOptions& options);

  // Starts those of the slots that the lease does not have and answers with all that it has.
  // Idempotent, also when a request comes once more after its slots have ended. Errors: conflict
  // (the lease was stopped here), unavailable (all of the slots have ended), and, if no slot at all
  // could be started, why the last one was not.
  Async<Result<protocol::SlotsStarted>> start(protocol::StartSlots request,
                                              Surroundings surroundings, Instant deadline);
  // No processes named: the whole lease, for good. Processes that are used again idle; answers when
  // the others, those with devices among them, have ended. Errors: deadline_exceeded.
  Async<Result<protocol::Empty>> stop(protocol::StopSlots request, Instant deadline);

  void process_exited(HostedProcess& process);
  // Its idle processes end: nobody will use them again.
  void job_ended(JobId job);
  // Ends those that still start: a head that registers this node anew asks for them again.
  void drop_unstarted();
  // Those that were answered as started, by lease and number, and then those that are stopping.
  std::vector<protocol::RunningSlot> running() const;

 private:
  struct Slot {
    HostedProcess::Pointer process;  // Nil until one is launched or taken.
    bool started = false;
    std::vector<uint32_t> devices;
    uint32_t bundle = 0;
  };
  struct Lease {
    explicit Lease(const Executor& executor) : changed(executor) {}
    JobId job;
    std::string module;
    std::vector<protocol::ResourceAmount> demand;
    protocol::PlacementSpec placement;
    std::map<uint32_t, Slot> slots;  // By their number in the lease.
    // Numbers of this head's that it was answered about: what is gone of them does not come back.
    std::set<uint32_t> answered;
    uint64_t epoch = 0;
    // Who served it and idled since does not serve it again: a late request to stop them in this
    // lease must not hit them in it anew.
    std::set<ProcessId> left;
    std::optional<Error> failure;
    bool stopped = false;
    Event changed;
  };
  struct Idle {
    HostedProcess::Pointer process;
    std::string module;
    Instant until;
    bool leaves = false;  // It is asked whether it may go.
  };
  struct Ending {
    HostedProcess::Pointer process;
    protocol::RunningSlot listed;
  };
  using Pointer = std::shared_ptr<Lease>;

  Async<void> start_slot(Pointer lease, protocol::SlotToStart slot, protocol::StartSlots request,
                         Surroundings surroundings, Instant deadline);
  Async<bool> reuse(Pointer lease, protocol::SlotToStart slot, protocol::StartSlots request);
  Async<bool> wait_until_ended(LeaseId lease, Instant deadline);
  void drop_unstarted(LeaseId id, Lease& lease);
  // What is remembered of a lease without slots stays a while.
  void drop_if_empty(LeaseId id);
  void end_slot(LeaseId id, const Lease& lease, const Slot& slot);
  protocol::RunningSlot listed(LeaseId id, const Lease& lease, const Slot& slot) const;
  void stop_now(std::map<LeaseId, Pointer>::iterator lease, const protocol::StopSlots& request);
  void forget_ended(const HostedProcess& process);
  HostedProcess::Pointer take_idle(const Lease& lease);
  void retire(LeaseId id, const Lease& lease, const Slot& slot);
  void end_soon(HostedProcess::Pointer process);
  Async<void> end_process(HostedProcess::Pointer process, Duration grace);
  Async<void> end_idle(ProcessId process, Instant when);
  // It idles on while others need what it owns.
  Async<void> end_if_unneeded(ProcessId process);
  protocol::SlotsStarted started(const Lease& lease) const;
  bool settled(const Lease& lease) const;

  transport::Environment environment_;
  Scope& scope_;
  ProcessTable& processes_;
  Logs& logs_;
  const WorkerOptions& options_;
  std::map<LeaseId, Pointer> leases_;
  std::deque<LeaseId> emptied_;  // Of those the ones that lost their last slot, perhaps for now.
  std::map<LeaseId, std::vector<Ending>> ending_;
  std::set<LeaseId> ended_;  // So that a start that comes late is refused; bounded.
  std::deque<LeaseId> ended_order_;
  std::map<ProcessId, Idle> idle_;
};

}  // namespace troupe::worker
