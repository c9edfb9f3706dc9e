// What the scheduler is told and what it answers. Plain values, no behaviour.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "scheduler/pools.h"
#include "scheduler/resources.h"

namespace troupe::scheduler {

// A placement group: its bundles start together or not at all.
using GangId = Id<struct GangTag>;
using RequestId = std::variant<LeaseId, ActorId, GangId>;

using SubjectId = std::variant<LeaseId, ActorId, GangId, NodeId>;

// "lease 12ab..", all 32 digits.
std::string to_string(const RequestId& id);
std::string to_string(const SubjectId& id);

struct Label {
  std::string key;
  std::string value;
  auto operator<=>(const Label&) const = default;
};

enum class LabelTest : uint8_t {
  in,      // The label is set, to one of the values.
  not_in,  // It is not; also true of a node without the label.
  exists,
  absent,
};
struct LabelSelector {
  std::string key;
  LabelTest test = LabelTest::in;
  std::vector<std::string> values;  // Ascending. Of in and not_in, where there is at least one.
  auto operator<=>(const LabelSelector&) const = default;
};
// "zone in (a, b)", "!disk".
std::string to_string(const LabelSelector& selector);
// Both ascending by key.
bool matches(const LabelSelector& selector, const std::vector<Label>& labels);

// In a bundle of this gang, whose resources the request then takes, and never the node's free ones.
struct WithinGang {
  GangId gang;
  std::optional<uint32_t> bundle;  // Empty: any.
  auto operator<=>(const WithinGang&) const = default;
};

// Where a request may go. Empty: anywhere.
struct Affinity {
  std::optional<NodeId> node;            // Only there.
  std::vector<LabelSelector> selectors;  // Only on nodes of which all hold. Ascending.
  // Among those it goes where these hold as well, if there is room now, else to any of them.
  std::optional<NodeId> preferred_node;
  std::vector<LabelSelector> preferred;
  std::optional<WithinGang> within;  // Then nothing else of the above.
  bool has_preference() const { return preferred_node.has_value() || !preferred.empty(); }
  auto operator<=>(const Affinity&) const = default;
};

enum class Strategy : uint8_t {
  pack,    // The fullest node that has room; GPU nodes last for what needs no GPU.
  spread,  // The node that holds the fewest things.
};

enum class GangStrategy : uint8_t {
  pack,           // On as few nodes as the bundles allow.
  spread,         // On different nodes where possible.
  strict_pack,    // On one node.
  strict_spread,  // Each bundle on a node of its own.
};

std::string_view gang_strategy_name(GangStrategy strategy);

// ---- Events -----------------------------------------------------------------------------------

// A node that is known: with the same total it stops draining, with another it counts as removed
// and added anew.
struct NodeAdded {
  NodeId node;
  ResourceVector total;
  std::vector<Label> labels;  // Ascending.
  // Nothing new goes there yet: first a new head learns what runs there (Adopted), then it says so
  // again without this.
  bool closed = false;
};
// The node is dead: what it held is gone and free. Gangs with a bundle there are told broken, and
// keep their other bundles until GangReleased, for processes may still run in them; nothing new is
// placed in them.
struct NodeRemoved {
  NodeId node;
};
// Nothing new goes there. Leases there are recalled: they hold their slots until they give them
// back or expire. Actors and gangs stay.
struct NodeDraining {
  NodeId node;
};

// Slots to run tasks of one class. Granted in parts, as room appears. Idempotent by id.
struct LeaseRequested {
  LeaseId lease;
  JobId job;
  std::string scheduling_class;  // Opaque; policies may group by it.
  ResourceVector demand;         // Of each slot.
  uint32_t slots = 1;
  int32_t priority = 0;  // Higher goes first.
  Affinity affinity;
  Strategy strategy = Strategy::pack;
  std::string pool;  // As PoolSpec::name; empty: the default one.
};
// Gives back slots, which are not wanted any more; an empty list gives back all and ends the lease.
struct LeaseReturned {
  LeaseId lease;
  std::vector<uint32_t> slots;
};
// The slot's process died: the slot is free, and another is wanted in its place.
struct SlotLost {
  LeaseId lease;
  uint32_t slot = 0;
};
// The task in the slot waits for others, which may have its CPU meanwhile; or it goes on. The node
// is overcommitted then until what took the CPU has ended. All else of the slot stays held.
struct SlotWaits {
  LeaseId lease;
  uint32_t slot = 0;
  bool waiting = false;
};
// Extends the lease by its term from now.
struct LeaseRenewed {
  LeaseId lease;
};

// Resources on one node until ActorReleased. Idempotent by id.
struct ActorRequested {
  ActorId actor;
  JobId job;
  ResourceVector demand;
  int32_t priority = 0;
  bool restart = false;  // Restarts go before first starts of the same priority.
  Affinity affinity;
  Strategy strategy = Strategy::pack;
  std::string pool;
};
struct ActorReleased {
  ActorId actor;
};

struct GangRequested {
  GangId gang;
  JobId job;
  std::vector<ResourceVector> bundles;
  GangStrategy strategy = GangStrategy::pack;
  int32_t priority = 0;
  bool restart = false;
  Affinity affinity;  // Of every bundle.
  // It can stop at any time, give back all and go on later elsewhere (GangYielded): a policy that
  // preempts may ask it to.
  bool can_pause = false;
  std::optional<Duration> run_time;  // What it is expected to run in all.
  std::string pool;
  uint32_t weight = 1;  // Of policies that share. 1 to 65,535.
};
// It was asked to make room, and holds nothing any more: it waits again, with what it ran so far.
struct GangYielded {
  GangId gang;
  // Of the time since it was placed, what brought it forward, as its workers report; empty: all.
  std::optional<Duration> progress;
};
// Nothing new goes into its bundles; each is free once the last that lies in it has ended. What
// waits for them is told Infeasible.
struct GangReleased {
  GangId gang;
};

// Where one slot (of a lease), actor or bundle (of a gang) lies.
struct Placed {
  uint32_t unit = 0;  // The slot's number, the bundle's place in the request; 0 for an actor.
  NodeId node;
  Devices devices;
  std::optional<uint32_t> bundle;  // Of what lies within a gang.
  auto operator<=>(const Placed&) const = default;
};
// A new head learns what runs already: the request, and what it holds. It is taken as it is, or
// Rejected if the resources are not free; nothing else is decided about it. A lease on several
// nodes comes in parts, with ascending numbers of slots. A gang comes in parts as well, at first
// perhaps with none: nothing new is placed in it before it is whole. An actor that is known already
// stays as it is.
struct Adopted {
  std::variant<LeaseRequested, ActorRequested, GangRequested> request;
  std::vector<Placed> held;
};

// Drops what still waits of it. Slots that a lease holds stay; a placed actor or gang stays.
struct Cancelled {
  RequestId id;
};
// Frees and forgets everything of the job.
struct JobRemoved {
  JobId job;
};
// In place of all pools but the default one these (which may be among them). What waits and runs
// stays in its pool, under the policy that it has now. Rejected: as Pools::replaced_by says.
struct PoolsSet {
  std::vector<PoolSpec> pools;
};
// Time went by: due when Scheduler::next_deadline() says so.
struct TimePassed {};

using Event =
    std::variant<NodeAdded, NodeRemoved, NodeDraining, LeaseRequested, LeaseReturned, SlotLost,
                 SlotWaits, LeaseRenewed, ActorRequested, ActorReleased, GangRequested, GangYielded,
                 GangReleased, Adopted, Cancelled, JobRemoved, PoolsSet, TimePassed>;

// ---- Decisions --------------------------------------------------------------------------------

struct Slot {
  uint32_t slot = 0;  // Never used twice within a lease.
  Devices devices;
};
struct LeaseGranted {
  LeaseId lease;
  NodeId node;
  std::vector<Slot> slots;
  Instant expires_at;              // Of the whole lease, unless it is renewed.
  std::optional<uint32_t> bundle;  // Of a gang, where all of these slots lie.
};
struct ActorPlaced {
  ActorId actor;
  NodeId node;
  Devices devices;
  std::optional<uint32_t> bundle;
};
struct GangPlaced {
  GangId gang;
  std::vector<Placed> bundles;  // In the order of the request.
};

enum class RevokeReason : uint8_t {
  node_lost,      // Freed here. A lease waits for other slots; actors and gangs are over.
  node_draining,  // A wish: the slots stay held until they are given back or expire.
  lease_expired,  // Freed here; the lease is over.
  job_removed,    // Freed here; the request is over.
  preempted,      // A wish: a gang that can pause holds its bundles until GangYielded.
};
std::string_view reason_name(RevokeReason reason);

struct Revoked {
  RequestId id;
  RevokeReason reason{};
  std::vector<Placed> units;  // What was taken or recalled.
};
// No node could ever hold it as the cluster stands, or no bundle of the gang that it belongs in. It
// waits for a node that can. Told once.
struct Infeasible {
  RequestId id;
  std::string why;
};
// The event was wrong and changed nothing. Of a PoolsSet the id is a nil node's.
struct Rejected {
  SubjectId id;
  Error error;
};

using Decision = std::variant<LeaseGranted, ActorPlaced, GangPlaced, Revoked, Infeasible, Rejected>;
using Decisions = std::vector<Decision>;

// One stable line a decision: equal runs give equal logs.
std::string to_string(const Decision& decision);

}  // namespace troupe::scheduler
