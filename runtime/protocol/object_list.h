// Lists of objects that do not grow beyond what was asked for.
#pragma once

#include "protocol/messages.h"

namespace troupe::protocol {

// The largest first, and no more than `limit` of them (0: all). `total` stays.
void keep_largest(ObjectList& list, uint32_t limit);

}  // namespace troupe::protocol
