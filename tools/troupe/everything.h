// What the head lists, for commands that look for something by its id or name.
#pragma once

#include <string>
#include <vector>

#include "troupe/rpc.h"

namespace troupe::tools {

struct Everything {
  std::vector<protocol::NodeInfo> nodes;
  std::vector<protocol::ActorInfo> actors;
  std::vector<protocol::JobInfo> jobs;
  std::vector<protocol::DeploymentInfo> deployments;
  std::vector<protocol::PlacementGroupInfo> groups;
};
Result<Everything> ask_everything(Rpc& head);

// Whether `wanted` is its name, or the beginning of its id (4 digits at least).
bool matches(const RawId& id, const std::string& name, const std::string& wanted);

}  // namespace troupe::tools
