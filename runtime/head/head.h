// The head: membership, the directory of actors, jobs, leases and deployments behind one door.
#pragma once

#include <memory>
#include <vector>

#include "head/options.h"
#include "head/replicator.h"
#include "metadata/store.h"
#include "transport/environment.h"
#include "transport/router.h"

namespace troupe::head {

// Everything runs on the environment's loop. Stop it before it is destroyed.
class Head {
 public:
  // `store` and `replicator` outlive the head. The replicator is that of the lead which this head
  // has among several; null: it is the only one.
  Head(transport::Environment environment, Store& store, HeadOptions options,
       Replicator* replicator = nullptr);
  ~Head();

  // Loads what was promised, makes its epoch durable, listens.
  // Errors: those of the store and of Network::listen.
  Async<Status> start();
  Async<void> stop();
  // With the ports that the system chose.
  const std::vector<transport::Endpoint>& endpoints() const { return endpoints_; }
  uint64_t epoch() const;
  // Set when a promise could not be made durable: the process should end and start anew.
  Event& broken();

 private:
  struct Parts;
  class Door;

  Async<void> accept_from(transport::Listener* listener);
  Async<void> greet(std::unique_ptr<transport::Connection> connection);

  transport::Environment environment_;
  Store& store_;
  const HeadOptions options_;
  Replicator* const replicator_;
  Scope scope_;
  std::unique_ptr<Door> door_;
  std::unique_ptr<Parts> parts_;
  std::vector<std::unique_ptr<transport::Listener>> listeners_;
  std::vector<transport::Endpoint> endpoints_;
  protocol::Hello hello_;
};

}  // namespace troupe::head
