// Moves objects from nodes that are drained to others.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "head/membership.h"

namespace troupe::head {

// The head knows no objects: it asks the owners, through their workers, and again until nothing
// runs on the node any more that could make new ones. Objects whose owner is a process that goes
// with the node are not worth the way; they move all the same, for the head cannot tell.
class Evacuation : public NodeListener {
 public:
  // Whether neither actors nor slots are left on the node.
  using IsIdle = std::function<bool(NodeId)>;
  Evacuation(transport::Environment environment, Scope& scope, Membership& membership,
             IsIdle is_idle);

  // Nothing that can move lies there any more, and nothing new comes.
  bool is_done(NodeId node) const;

  void node_registered(const protocol::RegisterNode&) override {}
  void node_lost(NodeId node, const std::string& reason) override;
  void node_draining(const protocol::NodeInfo& node) override;

 private:
  struct Round;
  Async<void> run(NodeId node);
  // All owners of the cluster once. Errors: of the first that could not move all.
  Async<Status> ask_all(NodeId node);
  Async<void> ask(NodeId node, protocol::Evacuate request, std::shared_ptr<Round> round);

  transport::Environment environment_;
  Scope& scope_;
  Membership& membership_;
  const IsIdle is_idle_;
  std::map<NodeId, bool> done_;  // Those that are drained.
};

}  // namespace troupe::head
