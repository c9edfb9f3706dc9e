// Which replicas serve which model, how busy each is, and how long outages last. No I/O.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "gateway/backend.h"
#include "protocol/messages.h"

namespace troupe::gateway {

class ReplicaSet {
 public:
  // A replica in one incarnation.
  struct Choice {
    ActorId actor;
    uint32_t incarnation = 0;
    std::string key;  // What excludes it.
  };

  // The head's present view replaces the former one. Gives the keys that are gone: incarnations
  // that were alive and are no more.
  std::vector<std::string> update(const protocol::DeploymentList& list, Instant now);

  std::vector<ModelInfo> models(Instant now) const;
  bool has_model(const std::string& model) const { return models_.contains(model); }

  // The alive replica with the fewest generations running, ties by lot; counted as one more until
  // ended(). One that failed a moment ago is passed over. Errors: unavailable (none to try).
  Result<Choice> pick(const std::string& model, const std::set<std::string>& excluded, Instant now,
                      Random& random);
  void ended(const std::string& key, Instant now);
  // A generation found it lost, maybe before the head noticed.
  void failed(const std::string& model, const std::string& key, Instant now);
  // It answers: if it was thought lost, it is back.
  void worked(const std::string& model, const std::string& key, Instant now);

 private:
  struct Replica {
    Choice choice;
    bool alive = false;
    Instant suspect_until{};
  };
  struct Model {
    ModelInfo info;
    std::vector<Replica> replicas;
    std::set<std::string> failed;  // Incarnations whose failure is counted.
    std::optional<Instant> outage_start;
    std::optional<Instant> first_pick;
    Duration busy{};  // Of its replicas, without what is running.
  };
  struct Load {
    std::string model;
    uint32_t generations = 0;
    Instant since;  // When the first of them began.
  };
  static void settle(Model& model, Instant now);
  static void count_failure(Model& model, const std::string& key, Instant now);

  std::map<std::string, Model> models_;
  std::map<std::string, Load> running_;  // By key.
};

}  // namespace troupe::gateway
