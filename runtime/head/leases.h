// Leases: slots on workers that a client may push tasks to, for a quantum at a time.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "head/groups.h"
#include "head/membership.h"
#include "head/placement.h"

namespace troupe::head {

// Leases live in memory alone. A head that was restarted takes over what the workers list, and lets
// its clients renew it; what nobody renews within a quantum goes.
class Leases : public NodeListener, public PlacementListener, public GroupListener {
 public:
  Leases(transport::Environment environment, const HeadOptions& options, Scope& scope,
         Membership& membership, Placement& placement, const Groups& groups);

  // Waits for at least one slot. Idempotent by id. Errors: invalid, exhausted (too many leases),
  // not_found (its placement group is gone), deadline_exceeded or cancelled (for a quantum it keeps
  // its place: ask again), and why no slot could start.
  Async<Result<protocol::LeaseGranted>> request(protocol::RequestLease request,
                                                transport::CallContext context);
  // Errors: not_found (it is over), unavailable (this head has just started, and does not know).
  Result<protocol::LeaseGranted> renew(LeaseId lease);
  // Idempotent; of an unknown lease there is nothing left to return.
  void give_back(const protocol::ReturnLease& request);
  // The process of a slot tells whether its task waits.
  void slot_waits(const protocol::SlotWaits& news, const protocol::ProcessAddress& teller);
  void end_job(JobId job);
  void process_exited(const protocol::ProcessExited& news);

  size_t size() const { return leases_.size(); }
  size_t slots_on(NodeId node) const;
  // Whether it waits, and why; nothing: it is not known (any more).
  std::optional<protocol::Explanation> explain(LeaseId lease) const;
  struct SlotPlace {
    LeaseId lease;
    NodeId node;
    JobId job;
  };
  // Of the process of a slot.
  std::optional<SlotPlace> place_of(ProcessId process) const;
  // Those that wait for their first slot, with the reason.
  std::vector<protocol::PendingInfo> pending(size_t items_max) const;

  void node_registered(const protocol::RegisterNode& node) override;
  void lease_granted(const scheduler::LeaseGranted& granted) override;
  void lease_revoked(LeaseId lease, const scheduler::Revoked& revoked) override;
  void node_lost(NodeId node, const std::string& reason) override;
  void group_removed(PlacementGroupId group, scheduler::GangId gang,
                     const std::string& reason) override;
  void group_broken(PlacementGroupId group, scheduler::GangId old_gang,
                    const std::string& reason) override;

 private:
  struct Held {
    uint32_t slot = 0;  // The scheduler's number.
    scheduler::Devices devices;
    protocol::ProcessAddress address;  // Its process is nil until it runs.
    bool granted = false;              // Its client was told.
    uint32_t bundle = 0;               // As in PlacementSpec.
    uint64_t wait_sequence = 0;        // Of the latest notice.
  };
  struct Share {  // What a lease has on one node.
    std::vector<Held> held;
    bool starting = false;
  };
  struct Lease {
    protocol::RequestLease request;
    std::map<NodeId, Share> shares;
    std::shared_ptr<Event> changed;
    // Why it ended, for those who wait.
    std::shared_ptr<Error> end = std::make_shared<Error>(Code::cancelled, "the lease ended");
    std::optional<Error> failure;  // The last.
    std::weak_ptr<transport::Peer> holder;
    uint32_t waiters = 0;
    bool delivered = false;
    bool adopted = false;    // Taken over from the head before: further nodes may bring slots.
    uint32_t next_slot = 0;  // Above all of the scheduler's numbers.
    // Told to stop under the lease's id, which goes on: a worker may still name one as started, or
    // list it, while the stop accounts for its slot.
    std::map<NodeId, std::set<ProcessId>> leaving;
    bool expires = false;  // From when it was delivered, adopted, or its client went silent.
    Instant expires_at;
  };

  Lease* look_up(LeaseId id);
  // Nodes may not be back yet.
  bool is_young() const { return environment_.clock.now() - started_ < 2 * options_.window; }
  protocol::StartSlots start_request(const Lease& lease, const Share& share) const;
  static bool runs(const Lease& lease);
  static bool starts(const Lease& lease);
  static bool is_leaving(const Lease& lease, NodeId node, ProcessId process);
  protocol::LeaseGranted grant_of(const Lease& lease) const;
  Async<Status> wait(LeaseId id, transport::CallContext context);
  // While the lease waits for its first slot, those who hold what it wants are asked for it.
  Async<void> press_holders(LeaseId id);
  void press_to_leave(const Lease& lease, NodeId node);
  Async<void> press(std::shared_ptr<transport::Peer> holder, protocol::YieldSlots wanted);
  Async<void> start_slots(LeaseId id, NodeId node);
  // Gives slots without a process back to the scheduler, and stops those that came too late.
  void settle(LeaseId id, NodeId node);
  void drop_process(LeaseId id, NodeId node, ProcessId process);
  // What runs on a node, as its worker lists it.
  void take_over(LeaseId id, NodeId node, std::vector<const protocol::RunningSlot*> slots);
  // Accounts those that a head before had stopped, until they have ended.
  void see_out(Lease& lease, NodeId node, const std::vector<const protocol::RunningSlot*>& slots);
  // Accounts slots that run there and that the lease did not have.
  std::vector<Held> adopt(Lease& lease, NodeId node,
                          const std::vector<const protocol::RunningSlot*>& slots);
  // As stop_slots, of these alone: the lease goes on.
  void stop_some(Lease& lease, NodeId node, std::vector<ProcessId> processes,
                 std::vector<uint32_t> slots);
  // Its slots are stopped or stopping; its id is not used again.
  void forget(LeaseId id);
  // Ends the lease: its slots stop, and are free once they did. What runs in them goes on for as
  // long as its process, or ends as well.
  enum class Running : uint8_t { goes_on, ends };
  void finish(LeaseId id, Error why, Running running = Running::goes_on);
  void finish_within(scheduler::GangId gang, const Error& why);
  Async<void> stop_slots(LeaseId id, NodeId node, std::vector<ProcessId> processes,
                         std::vector<uint32_t> slots, Running running = Running::goes_on);
  void keep_for_a_quantum(Lease& lease);
  Async<void> expire(LeaseId id);

  transport::Environment environment_;
  const HeadOptions& options_;
  Scope& scope_;
  Membership& membership_;
  Placement& placement_;
  const Groups& groups_;
  const Instant started_;
  std::set<LeaseId> ended_;  // The latest that ended here; an id is used once.
  std::deque<LeaseId> ended_order_;
  std::map<LeaseId, Lease> leases_;
};

}  // namespace troupe::head
