// When the states of this process's actors are taken, and their way to the worker.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "actor/instance.h"
#include "client/client.h"
#include "packages/file.h"
#include "transport/semaphore.h"

namespace troupe::actor {

// Belongs to the client's loop.
class Checkpoints {
 public:
  explicit Checkpoints(client::Client& client)
      : client_(client),
        stores_(client.environment().loop, stores_max),
        stored_(client.environment().loop) {}

  // What the instance of such an assignment is made with. `hosted` gives it on the loop; null: it
  // is no more. Empty: its class has no checkpoints.
  using Find = std::function<std::shared_ptr<Instance>()>;
  CheckpointPlan plan(const protocol::AssignActor& assignment, const Find& hosted);
  // Takes them of an actor that was created, if its spec says how often.
  void begin(const protocol::ActorSpec& spec, const std::shared_ptr<Instance>& instance);
  // Until none of this incarnation is on its way any more. False: it was not in time.
  Async<bool> wait_stored(ActorId actor, uint32_t incarnation, Instant deadline);

 private:
  struct State {
    std::string path;
    std::function<void(Result<Bytes>)> done;
  };
  // Of one incarnation. One at a time goes to the worker; of those that wait meanwhile the newest
  // is all of them, and alone on disk.
  struct Queue {
    std::string path;  // Of the newest.
    std::vector<std::function<void(Result<Bytes>)>> waiting;
    bool storing = false;
  };
  using Key = std::pair<ActorId, uint32_t>;
  // Each holds a descriptor here, and one at the worker, for as long as the head is away.
  static constexpr size_t stores_max = 4;

  void saved(Key key, std::shared_ptr<Instance> instance, State state);
  Async<void> store_all(Key key, std::shared_ptr<Instance> instance);
  Async<Result<Bytes>> store(Key key);
  Async<Result<packages::PackageFilePointer>> pack(std::string path);
  Async<void> remove(std::string path);
  Async<void> take_regularly(ActorId actor, std::weak_ptr<Instance> instance, Duration interval);
  // What came of it is logged alone.
  Async<void> take(ActorId actor, std::shared_ptr<Instance> instance);

  client::Client& client_;
  Semaphore stores_;
  std::map<Key, Queue> queues_;
  Event stored_;  // All of an incarnation.
};

}  // namespace troupe::actor
