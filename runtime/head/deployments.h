// Deployments: so many replicas of an actor class, kept alive.
#pragma once

#include <map>
#include <string>

#include "head/actors.h"

namespace troupe::head {

// A replica is a detached actor of namespace "deployments" named NAME#I. The spec is durable; the
// replicas are the actors whose spec names the deployment.
//
// Another spec is another version. The replicas of the version before serve on until all of the new
// one are alive; where there is no room for both, one at a time makes room. If the new version
// fails, those that are left serve on.
class Deployments : public ActorListener, public NodeListener {
 public:
  Deployments(transport::Environment environment, const HeadOptions& options, Scope& scope,
              Journal& journal, Actors& actors);

  // After the actors were restored.
  void restore(std::vector<protocol::DeploymentInfo> deployments);

  // Durable on return. The same spec again changes nothing, unless it has failed: then it is tried
  // anew. Another spec replaces the replicas (see above); another count alone adds or takes some.
  // Errors: invalid, exhausted.
  Async<Result<protocol::DeploymentInfo>> deploy(protocol::DeploymentSpec spec);
  // Durable on return. Errors: not_found.
  Async<Status> undeploy(std::string name);
  std::vector<protocol::DeploymentInfo> list() const;
  size_t size() const { return deployments_.size(); }
  // The list at once and after each change, until the receiver gives up.
  Async<Status> watch(transport::CallContext context, transport::OutgoingStream& out);

  void actor_changed(const Actor& actor) override;
  // What an update waits for may be different now.
  void node_registered(const protocol::RegisterNode& node) override;
  void node_lost(NodeId, const std::string&) override {}

 private:
  struct Deployment {
    protocol::DeploymentSpec spec;
    uint64_t version = 0;
    std::string failure;  // Set: it was given up.
    Journal::Ticket written = 0;
    bool reconciling = false;
    bool again = false;  // Something changed meanwhile.
  };

  // The replicas by version; within one those that are alive come first. Valid within one turn.
  struct Versions {
    std::vector<const Actor*> current;
    std::vector<const Actor*> old;
    size_t alive = 0;             // Of the current.
    bool waits_for_room = false;  // One of the current would find it if others left.
  };
  struct Surplus {
    std::vector<ActorId> replicas;
    std::string reason;
  };

  Status check(const protocol::DeploymentSpec& spec) const;
  std::vector<const Actor*> replicas_of(const std::string& name) const;
  Versions versions_of(const Deployment& deployment) const;
  protocol::ActorSpec next_replica(const Deployment& deployment) const;
  Surplus surplus_of(const std::string& name) const;
  protocol::DeploymentInfo describe(const Deployment& deployment) const;
  void write(Deployment& deployment);
  void announce();
  // Brings the replicas to what the spec says. One runs a deployment.
  void reconcile(const std::string& name);
  Async<void> reconcile_until_done(std::string name);
  // False: something of it was refused and is tried again.
  Async<bool> reconcile_once(std::string name);
  Async<bool> add_missing(std::string name);

  transport::Environment environment_;
  const HeadOptions& options_;
  Scope& scope_;
  Journal& journal_;
  Actors& actors_;
  std::map<std::string, Deployment> deployments_;
  uint64_t revision_ = 0;
  Event changed_;
};

}  // namespace troupe::head
