// What instances ask of the cluster, through the process's client.
#pragma once

#include <future>
#include <map>
#include <memory>
#include <string>

#include "actor/inbox.h"
#include "actor/services.h"
#include "client/client.h"

namespace troupe::actor {

// This process's places in collective groups, by name. Belongs to the loop.
class Groups {
 public:
  struct Place {
    explicit Place(const Executor& loop) : room(loop) {}
    uint64_t generation = 0;
    uint32_t world = 0;
    // The process behind each rank that has spoken; another cannot speak for it.
    std::map<uint32_t, ProcessId> members;
    Inbox inbox;
    Event room;  // Pulsed when a full sender has room again; set when this process left.
  };

  explicit Groups(client::Client& client);

  // Errors: conflict (a newer generation was formed).
  Status open(const std::string& name, uint64_t generation, std::shared_ptr<Place> place);
  void close(const std::string& name, const std::shared_ptr<Place>& place);
  // Answers Method::collective: takes in a chunk, or waits until this process has joined. Errors:
  // denied (another job's process, or not the one behind its rank), conflict (a newer generation).
  Async<Result<transport::Message>> receive(transport::Message message,
                                            transport::CallContext context);

 private:
  client::Client& client_;
  std::map<std::string, std::shared_ptr<Place>> places_;
  Event changed_;
};

// Thread-safe; outlives every instance. Stop the loop's scope after the instances have ended.
class ClusterServices final : public Services {
 public:
  ClusterServices(client::Client& client, Groups& groups) : client_(client), groups_(groups) {}

  Result<ObjectId> put(BytesView value, std::stop_token stop) override;
  Result<client::ObjectBytes> get(ObjectId object, std::stop_token stop) override;
  Result<client::ObjectBytes> call_actor(client::ActorCallSpec spec, std::stop_token stop) override;
  Result<std::unique_ptr<Channel>> open_channel(GroupSpec spec, std::stop_token stop) override;

 private:
  client::Client& client_;
  Groups& groups_;
};

}  // namespace troupe::actor
