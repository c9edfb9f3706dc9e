// Drives the scheduler: turns messages into its events, its decisions into calls, and keeps its
// time.
#pragma once

#include <set>

#include "head/membership.h"
#include "scheduler/scheduler.h"

namespace troupe::head {

// Who acts on decisions. Called within the turn that caused them, never inside apply().
class PlacementListener {
 public:
  virtual ~PlacementListener() = default;
  virtual void actor_placed(const scheduler::ActorPlaced& placed) { (void)placed; }
  virtual void lease_granted(const scheduler::LeaseGranted& granted) { (void)granted; }
  virtual void lease_revoked(LeaseId lease, const scheduler::Revoked& revoked) {
    (void)lease, (void)revoked;
  }
  virtual void gang_placed(const scheduler::GangPlaced& placed) { (void)placed; }
  virtual void gang_revoked(scheduler::GangId gang, const scheduler::Revoked& revoked) {
    (void)gang, (void)revoked;
  }
};

// Errors: invalid (twice the same name, out of range).
Result<scheduler::ResourceVector> to_resources(
    const std::vector<protocol::ResourceAmount>& amounts);
std::vector<protocol::ResourceAmount> to_amounts(const scheduler::ResourceVector& resources);
// What such a demand takes of each of its devices.
scheduler::Devices shares_of(const std::vector<uint32_t>& devices,
                             const scheduler::ResourceVector& demand);

class Placement : public NodeListener {
 public:
  explicit Placement(transport::Environment environment);
  ~Placement() override;

  void set_actor_listener(PlacementListener& listener) { actors_ = &listener; }
  void set_lease_listener(PlacementListener& listener) { leases_ = &listener; }
  void set_gang_listener(PlacementListener& listener) { gangs_ = &listener; }

  void apply(const scheduler::Event& event);
  // Like apply(), but false if the scheduler rejected it.
  bool adopt(scheduler::Adopted adopted);
  // Why it waits, as a line for people.
  std::string why(const scheduler::RequestId& request) const;
  const scheduler::Scheduler& view() const { return scheduler_; }

  // Takes the node in, but closed: the other listeners first say what runs there.
  void node_registered(const protocol::RegisterNode& node) override;
  // Told last of all listeners: what waits may go there now.
  NodeListener& opener() { return opener_; }
  void node_lost(NodeId node, const std::string& reason) override;
  void node_draining(const protocol::NodeInfo& node) override;
  void stop();

 private:
  struct Opener final : NodeListener {
    explicit Opener(Placement& of) : placement(of) {}
    void node_registered(const protocol::RegisterNode& node) override {
      placement.add_node(node, placement.draining_.contains(node.address.node));
    }
    void node_lost(NodeId, const std::string&) override {}
    Placement& placement;
  };

  void add_node(const protocol::RegisterNode& node, bool closed);
  void dispatch(const scheduler::Decision& decision);
  void arm();

  transport::Environment environment_;
  scheduler::Scheduler scheduler_;
  Opener opener_{*this};
  std::set<NodeId> draining_;
  PlacementListener* actors_ = nullptr;
  PlacementListener* leases_ = nullptr;
  PlacementListener* gangs_ = nullptr;
  std::vector<scheduler::Event> queue_;  // Events that decisions led to, in order.
  bool applying_ = false;
  bool stopped_ = false;
  TimerClock::TimerId timer_ = 0;
};

}  // namespace troupe::head
