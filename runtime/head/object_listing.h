// What the nodes say of objects, as one list.
#pragma once

#include <vector>

#include "protocol/messages.h"

namespace troupe::head {

// One entry an object: what its owner says of it, with where its bytes lie and how many read them.
// At most `limit` (0: all), those with the most bytes first.
protocol::ObjectList merge_objects(std::vector<protocol::ObjectList> lists, uint32_t limit);

}  // namespace troupe::head
