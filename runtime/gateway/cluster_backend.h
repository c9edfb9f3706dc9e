// The cluster's deployments as a Backend: watches the head's list, spreads load over replicas.
#pragma once

#include <map>
#include <memory>

#include "client/client.h"
#include "gateway/backend.h"
#include "gateway/replica_set.h"

namespace troupe::gateway {

class ClusterBackend final : public Backend {
 public:
  // `client` outlives it and is started before it.
  explicit ClusterBackend(client::Client& client);
  ~ClusterBackend() override;

  // Begins to watch; does not wait for the head.
  void start();
  Async<void> stop();

  std::vector<ModelInfo> models() const override;
  Async<Result<std::unique_ptr<Generation>>> begin(GenerateRequest request,
                                                   std::set<std::string> excluded,
                                                   std::string& tried) override;
  Async<bool> wait_change(Instant deadline) override;

 private:
  class Running;
  // Set when the head says that the incarnation is gone: a broken network alone ends no stream.
  struct Lost {
    explicit Lost(const Executor& executor) : event(executor) {}
    Event event;
  };
  // What must outlive the generations that clients still hold.
  struct Shared {
    explicit Shared(transport::Environment env) : environment(env) {}
    transport::Environment environment;
    ReplicaSet replicas;
    std::map<std::string, std::weak_ptr<Lost>> lost;  // By replica key.
  };
  Async<void> watch();
  Async<Status> watch_once(bool& heard);

  client::Client& client_;
  std::shared_ptr<Shared> shared_;
  Event changed_;
  Scope scope_;
};

}  // namespace troupe::gateway
