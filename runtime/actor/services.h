// What an instance may ask of the cluster, as its thread sees it.
#pragma once

#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "actor/collectives.h"
#include "client/client.h"

namespace troupe::actor {

// Called on actor threads alone; each call blocks until it is done, its deadline, or `stop`
// (cancelled). ClusterServices is the real one.
class Services {
 public:
  virtual ~Services() = default;
  virtual Result<ObjectId> put(BytesView value, std::stop_token stop) = 0;
  virtual Result<client::ObjectBytes> get(ObjectId object, std::stop_token stop) = 0;
  virtual Result<client::ObjectBytes> call_actor(client::ActorCallSpec spec,
                                                 std::stop_token stop) = 0;
  // The way to the other members of a group; every member has opened its own when it returns.
  virtual Result<std::unique_ptr<Channel>> open_channel(GroupSpec spec, std::stop_token stop) = 0;
};

}  // namespace troupe::actor
