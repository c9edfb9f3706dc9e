// The rows of the head's tables. Keys are ids in hexadecimal, or names.
#pragma once

#include <utility>
#include <vector>

#include "metadata/store.h"
#include "protocol/messages.h"

namespace troupe::head {

struct StoredActor {
  protocol::ActorRecord record;
  std::vector<uint32_t> devices;  // That it holds on record.info.address.node.
  uint32_t bundle = 0;            // Of its placement group (plus one), in this grant of it.
  uint32_t grant = 0;
};

using StoredActors = std::vector<std::vector<StoredActor>>;  // In pages, none of them empty.

// What a head finds when it starts.
struct StoredState {
  std::vector<protocol::NodeInfo> nodes;
  std::vector<protocol::JobInfo> jobs;
  StoredActors actors;                                // In the order of their ids.
  std::vector<protocol::DeploymentInfo> deployments;  // Without replicas.
  std::vector<protocol::PlacementGroupInfo> groups;
};

void put_node(Batch& batch, const protocol::NodeInfo& node);
void erase_node(Batch& batch, NodeId node);
void put_job(Batch& batch, const protocol::JobInfo& job);
void erase_job(Batch& batch, JobId job);
// The actor, its devices, and while it is not dead its name.
void put_actor(Batch& batch, const StoredActor& actor);
void erase_actor(Batch& batch, ActorId actor);
void put_deployment(Batch& batch, protocol::DeploymentInfo deployment);
void erase_deployment(Batch& batch, const std::string& name);
void put_group(Batch& batch, const protocol::PlacementGroupInfo& group);
void erase_group(Batch& batch, PlacementGroupId group);

// Blocks. Errors: those of Store::scan, data_loss (a row cannot be read).
Result<StoredState> load(Store& store);

}  // namespace troupe::head
