// The SDK's words for places and resources in those of the protocol.
#pragma once

#include <vector>

#include "protocol/messages.h"
#include "troupe/placement.h"

namespace troupe::detail {

std::vector<protocol::ResourceAmount> to_demand(const Resources& resources);
protocol::PlacementSpec to_spec(const Placement& placement);
protocol::PlacementGroupSpec to_spec(const PlacementGroupOptions& options);

}  // namespace troupe::detail
