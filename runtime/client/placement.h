// What a client makes of the places that tasks and actors ask for.
#pragma once

#include <string>

#include "client/client.h"

namespace troupe::client {

// Puts what chooses no place itself into the group that captures this process, if there is one.
void capture(protocol::PlacementSpec& placement, PlacementGroupId captured_in);

// Nothing is said of where: no node, labels or group.
bool is_anywhere(const protocol::PlacementSpec& placement);

// Equal for equal places; empty for none.
std::string placement_key(const protocol::PlacementSpec& placement);

// What became of a task whose slot died in a placement group: not_found and the reason if the
// group is gone, else `failure`.
Async<Error> why_it_died(Client& client, protocol::PlacementSpec placement, Error failure);

}  // namespace troupe::client
