// Placement groups: bundles of resources that are granted whole or not at all, and what of the
// cluster runs in them.
//
//   pending -> placed -> (rescheduling -> placed)* -> removed
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <unordered_set>

#include "head/membership.h"
#include "head/placement.h"

namespace troupe::head {

// Who has something in groups. Called within the turn of the change.
class GroupListener {
 public:
  virtual ~GroupListener() = default;
  // What lies in it or waits for it ends.
  virtual void group_removed(PlacementGroupId group, scheduler::GangId gang,
                             const std::string& reason) = 0;
  // A node under it died. What lies in the old grant ends; what waits waits for the new one.
  virtual void group_broken(PlacementGroupId group, scheduler::GangId old_gang,
                            const std::string& reason) = 0;
};

class Groups : public NodeListener, public PlacementListener {
 public:
  Groups(transport::Environment environment, const HeadOptions& options, Journal& journal,
         Membership& membership, Placement& placement);

  void add_listener(GroupListener& listener) { listeners_.push_back(&listener); }
  void restore(std::vector<protocol::PlacementGroupInfo> groups);
  // After what lies in them was restored: those whose node is gone already are granted anew.
  void check_nodes();

  // Durable on return, all in one write; does not wait until they are placed. Idempotent by id.
  // Of each group: invalid, conflict (its name is taken, it is another one, or it was removed),
  // exhausted.
  Async<Result<protocol::PlacementGroupResults>> create(protocol::PlacementGroupSpecs specs);
  // Durable on return; what runs in them may end a little later. Unknown ones are gone already.
  Async<Status> remove(protocol::RemovePlacementGroups request);
  // Errors: not_found, and of a wait deadline_exceeded (says what it waits for), cancelled.
  Async<Result<protocol::PlacementGroupInfo>> get(protocol::GetPlacementGroup request,
                                                  transport::CallContext context);
  void end_job(JobId job);

  std::vector<protocol::PlacementGroupInfo> list() const;
  size_t size() const { return groups_.size(); }
  std::vector<protocol::PendingInfo> pending(size_t items_max) const;

  // What the scheduler has to know of a request. Errors: invalid, not_found (no such group).
  Result<scheduler::Affinity> affinity_of(const protocol::PlacementSpec& placement) const;
  // With what the worker and its process have to know of the group.
  protocol::PlacementSpec for_worker(protocol::PlacementSpec placement, uint32_t bundle) const;
  // Whether this is the grant that counts.
  bool is_current(PlacementGroupId group, uint32_t grant) const;
  uint32_t grant_of(PlacementGroupId group) const;
  // Until where they lie is durable: what starts in one before would be without a place if the head
  // then lost it.
  Async<Status> settled() const;

  void node_registered(const protocol::RegisterNode& node) override;
  void node_lost(NodeId node, const std::string& reason) override;
  void gang_placed(const scheduler::GangPlaced& placed) override;
  void gang_revoked(scheduler::GangId gang, const scheduler::Revoked& revoked) override;

 private:
  struct Group {
    protocol::PlacementGroupInfo info;
    Journal::Ticket written = 0;     // 0: it is being made.
    std::shared_ptr<Event> changed;  // Once somebody waits.
  };
  using Name = std::pair<std::string, std::string>;

  Group* look_up(PlacementGroupId id);
  const Group* look_up(PlacementGroupId id) const;
  Status check(const protocol::PlacementGroupSpec& spec) const;
  Status begin(protocol::PlacementGroupSpec spec, Journal::Ticket& same);
  void drop(PlacementGroupId id, const std::string& reason, Batch& batch);
  // A node under it is gone.
  void break_group(PlacementGroupId id, const std::string& reason);
  void write(Group& group);
  protocol::PlacementGroupInfo describe(const Group& group) const;

  transport::Environment environment_;
  const HeadOptions& options_;
  Journal& journal_;
  Membership& membership_;
  Placement& placement_;
  std::vector<GroupListener*> listeners_;
  std::map<PlacementGroupId, Group> groups_;
  std::map<scheduler::GangId, PlacementGroupId> gangs_;  // By their current grant.
  std::map<Name, PlacementGroupId> names_;
  // The latest, so that a late request makes none anew.
  std::unordered_set<PlacementGroupId> removed_;
  std::deque<PlacementGroupId> removed_order_;
};

}  // namespace troupe::head
