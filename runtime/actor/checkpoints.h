// When the states of this process's actors are taken, and their way to the worker.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actor/instance.h"
#include "client/client.h"

namespace troupe::actor {

// Belongs to the client's loop.
class Checkpoints {
 public:
  explicit Checkpoints(client::Client& client) : client_(client) {}

  // What the instance of such an assignment is made with. `hosted` gives it on the loop; null: it
  // is no more. Empty: its class has no checkpoints.
  using Find = std::function<std::shared_ptr<Instance>()>;
  CheckpointPlan plan(const protocol::AssignActor& assignment, const Find& hosted);
  // Takes them of an actor that was created, if its spec says how often.
  void begin(const protocol::ActorSpec& spec, const std::shared_ptr<Instance>& instance);

 private:
  struct State {
    std::string path;
    std::function<void(Result<Bytes>)> done;
  };
  // One at a time goes to the worker; of those that wait meanwhile, the newest is all of them.
  struct Queue {
    std::vector<State> waiting;
    bool storing = false;
  };

  void saved(ActorId actor, uint32_t incarnation, std::shared_ptr<Instance> instance, State state);
  Async<void> store_all(ActorId actor, uint32_t incarnation, std::shared_ptr<Instance> instance);
  Async<Result<Bytes>> store(ActorId actor, uint32_t incarnation, std::vector<std::string> paths);
  Async<void> take_regularly(ActorId actor, std::weak_ptr<Instance> instance, Duration interval);
  // What came of it is logged alone.
  Async<void> take(ActorId actor, std::shared_ptr<Instance> instance);

  client::Client& client_;
  std::map<ActorId, Queue> queues_;
};

}  // namespace troupe::actor
