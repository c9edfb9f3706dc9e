// The scheduler's state. Internal: scheduler.cc changes it, placement.cc finds places,
// explain.cc reads it.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "scheduler/cluster.h"
#include "scheduler/gang_plan.h"
#include "scheduler/queue.h"
#include "scheduler/request_table.h"
#include "scheduler/scheduler.h"

namespace troupe::scheduler {

struct Scheduler::Impl {
  using Members = absl::btree_map<uint64_t, Request*>;  // By number of arrival.
  struct Inside {
    Members members;
    std::map<int32_t, uint32_t> priorities;  // Of the gang itself and of each of them.
  };

  explicit Impl(SchedulerOptions given)
      : options(std::move(given)),
        cluster(options.hash_seed),
        queue(pools, options.hash_seed),
        requests{RequestTable{options.hash_seed}, RequestTable{options.hash_seed},
                 RequestTable{options.hash_seed}} {
    if (!options.policy) options.policy = make_priority_policy();
    policies.assign(pools.size(), options.policy.get());
    victims.resize(pools.size());
    requests_in.resize(pools.size());
    virtual_times.resize(pools.size());
  }

  // ---- Events (scheduler.cc) ----
  void on(const NodeAdded& event);
  void on(const NodeRemoved& event);
  void on(const NodeDraining& event);
  void on(const LeaseRequested& event);
  void on(const LeaseReturned& event);
  void on(const SlotLost& event);
  void on(const SlotWaits& event);
  void on(const LeaseRenewed& event);
  void on(const ActorRequested& event);
  void on(const ActorReleased& event);
  void on(const GangRequested& event);
  void on(const GangYielded& event);
  void on(const GangReleased& event);
  void on(const Adopted& event);
  void on(const Cancelled& event);
  void on(const JobRemoved& event);
  void on(const PoolsSet& event);
  void on(const TimePassed&) {}
  void expire_leases();
  void expire_later(Request* lease);

  // ---- Requests (scheduler.cc) ----
  Request* find(const RequestId& id);
  const Request* find(const RequestId& id) const;
  // A request as it came, before it is known.
  struct Application {
    RequestId id;
    JobId job;
    Standing standing;
    Needs needs;
    uint32_t units = 1;
    bool can_pause = false;
  };
  Result<Application> read(const LeaseRequested& event) const;
  Result<Application> read(const ActorRequested& event) const;
  Result<Application> read(const GangRequested& event) const;
  Result<PoolIndex> read_pool(const std::string& name) const;
  Request* admit(Application application);
  uint64_t request_count() const {
    return requests[0].size() + requests[1].size() + requests[2].size();
  }
  template <class Requested>
  void submit(const Requested& event);
  Status adopt(Application application, const std::vector<Placed>& held);
  void wait(Request* request, uint32_t units);
  void finish(Request* request);
  void forget(Request* request);
  void hold(Request* request, uint32_t unit, NodeIndex node, Devices devices);
  void unhold(Request* request, size_t position);
  void stop_waiting(Request* request);
  void remove_node(NodeIndex index);
  // What lies there is gone: actors and gangs are over, leases wait for other slots.
  void lose_holders(NodeIndex index);
  void recall_leases(NodeIndex index);
  void nodes_changed();

  // ---- Bundles of gangs, and what lies in them (bundles.cc) ----
  Request* gang_of(const Request& request);
  const Request* gang_of(const Needs& needs) const;
  Status check_within(const Needs& needs) const;
  void join(Request* request);
  void leave(Request* request);
  // The gang runs at the highest priority of what needs it: else who waits in it would wait for
  // who goes before it.
  void inherit(Request* gang, const Inside& from);
  void close(Request* gang);
  // Forgets it once nothing is left of it.
  void end_closed(Request* gang);
  // Something in the bundle ended: it is free if its gang is over.
  void bundle_emptied(NodeIndex bundle);
  void wake_members(const Request& gang);
  void recheck_members(const Request& gang);
  std::optional<NodeIndex> room_within(const Shape& shape) const;
  bool feasible_within(const Needs& needs) const;
  std::optional<NodeIndex> place_of(const Needs& needs, const Placed& unit) const;
  Status adopt_gang(Application application, const std::vector<Placed>& held);
  const Members& members_of(const Request& gang) const;
  std::string why_not_within(const Shape& shape) const;
  void revoke(const Request& request, RevokeReason reason, std::vector<Placed> units);
  Placed placed(const Request::Unit& unit) const;
  std::vector<Placed> placed(const Request& request) const;

  // ---- Placement (placement.cc) ----
  // Decides all that can be decided now.
  void settle();
  void wake();
  void place_ready();
  bool place_units(Request* request);
  void grant(Request* request, NodeIndex index);
  // Of a node that has more room now, and no other has.
  void refill(NodeIndex index);
  void wake_for(NodeIndex index);
  bool place_gang(Request* request);
  enum class Among : uint8_t { preferred, all };
  std::optional<NodeIndex> room_for(Shape& shape);
  GangPlan plan_now(Shape& shape);
  GangPlan plan_among(Among nodes, const Shape& shape);
  void set_aside(Shape* shape);
  bool feasible(Shape* shape);
  void recheck_feasibility();
  void tell_infeasible(Request* request);
  void announce_infeasible();
  bool helps(const Node& node, const Shape& shape) const;

  // ---- Pools (pooling.cc) ----
  const Policy& policy_of(const Request& request) const {
    return *policies[request.shape->needs->pool];
  }
  // What lies within a gang is of the gang's share.
  static bool is_shared_out(const Needs& needs) { return !needs.affinity.within; }
  // Of one unit, or of all of a gang's.
  static Amounts amounts_of(const Needs& needs);
  std::optional<PoolIndex> obstacle(const Shape& shape);
  void take_share(const Request& request, uint32_t unit);
  void give_share_back(const Request& request, uint32_t unit);
  void share_freed(PoolIndex of);
  // Places what waited for a pool that uses less now.
  void refill_pools();
  void refill_pool(PoolIndex by);
  void place_capped(Shape& shape);
  std::string cap_text(const Shape& shape) const;

  // ---- Nodes kept for what waited too long (keep.cc) ----
  // True if nodes were let go, so that others may fit.
  bool update_kept();
  // What a blocked shape may ask for: by its most senior request that is overdue, not by a younger
  // one before it, so that who comes late changes nothing for the others.
  struct Claim {
    std::optional<Seniority> overdue;
    Shape* shape = nullptr;
    Instant next_due = Instant::max();
  };
  Claim claim_of(Shape& shape) const;
  GangPlan plan_keep(const Shape& shape, bool beside_gangs) const;
  NodeLedger without_transient(const Node& node, bool beside_gangs) const;
  bool keep_nodes(Shape* shape);
  void keep_nodes_of(const GangPlan& plan, Shape* shape);
  void release_kept();

  // ---- Ranks that change, and preemption (preempt.cc) ----
  // Of its standing, from now on.
  void set_running(Request* request, bool runs);
  void rank_anew(Request* request);
  // As something else in its standing changed.
  void restand(Request* request);
  void schedule_review(Request* request);
  void review_due();
  void add_victim(Request* request);
  void remove_victim(Request* request);
  // Asks the least senior ones that can pause for room, if something of a higher rank waits.
  void preempt();
  bool preempt_in(PoolIndex pool);
  bool reclaim();
  template <class Next>
  bool claim_room(Shape* shape, Shape::Attempt& failed_at, Next&& next);
  GangPlan plan_without(const Shape& shape, const std::vector<Request*>& gone) const;
  Rank rank_of_victim(const Request& victim) const;

  // ---- Reading (explain.cc) ----
  std::vector<Shortage> shortages(const ResourceVector& demand, const Affinity& affinity,
                                  bool when_empty) const;
  std::string infeasible_text(const Shape& shape) const;

  SchedulerOptions options;
  Cluster cluster;
  Pools pools;
  std::vector<const Policy*> policies;                // By pool.
  std::vector<std::unique_ptr<Policy>> own_policies;  // Of pools that name one.
  std::vector<uint64_t> requests_in;                  // By pool.
  std::vector<Duration> virtual_times;                // By pool; see Policy::virtual_time.
  std::set<PoolIndex> caps_freed;                     // Use less since the last settle.
  Queue queue;
  std::array<RequestTable, 3> requests;  // By Request::Kind.
  std::map<JobId, Job> jobs;
  // Of each gang what asked to lie within.
  std::map<GangId, Inside> inside;
  std::map<std::pair<Instant, uint64_t>, Request*> expiries;
  uint64_t next_arrival_number = 0;
  // Changes with the nodes, and when an actor or gang goes: what may change feasibility or keeping.
  uint64_t version = 0;
  uint64_t nodes_version = 0;  // With the nodes alone.
  Instant now;
  std::vector<NodeIndex> freed;  // Have more room since the last settle.
  Shape* keeper = nullptr;       // The shape that nodes are kept for.
  // The share that it claimed as well: it counts as used, so that nobody else takes it meanwhile.
  std::optional<Amounts> kept_share;
  std::vector<NodeIndex> kept;
  // Whose turn it is to have nodes kept is looked at again from then on, and at a new version.
  Instant next_claim = Instant::max();
  uint64_t claims_seen_at = 0;
  Instant claims_rest_until;  // Unless nodes were let go.
  bool claims_open = false;   // One is overdue and has no nodes kept.
  // Requests whose rank changes by itself, by the time when it may.
  std::map<std::pair<Instant, uint64_t>, Request*> reviews;
  // By pool, what runs and can pause, if the policy preempts. Ranks as of time zero, by the
  // policy's slope, so that time changes no order.
  using Victims = absl::btree_map<std::pair<Rank, uint64_t>, Request*>;
  std::vector<Victims> victims;
  uint32_t leaving = 0;         // Asked to make room, and still there.
  uint64_t claims_version = 0;  // Changes with the victims, and when room was freed.
  Line<Request> to_tell;        // Found infeasible since the last settle.
  Decisions decisions;
};

// "gpu on 3 nodes (needs 8, at most 4 free)" and so on.
std::string to_string(const std::vector<Shortage>& shortages, std::string_view free_word);

}  // namespace troupe::scheduler
