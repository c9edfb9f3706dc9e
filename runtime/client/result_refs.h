// The side channel of refs inside results and items of streams. The plugin ABI carries their bytes
// alone; code built with the C++ SDK also tells the host, on the same thread and just before it
// replies or gives the item, which refs the bytes hold, so that they outlive the callee's own
// handles.
#pragma once

#include <memory>
#include <vector>

#include "client/client.h"

namespace troupe::client {

struct HeldRef {
  ObjectName name;
  uint32_t result = 0;                     // Which of the call's results holds it.
  std::shared_ptr<const void> keep_alive;  // Until the reply, or item, holds the ref by itself.
};

// Of the calling thread.
void put_result_refs(std::vector<HeldRef> refs);
std::vector<HeldRef> take_result_refs();

}  // namespace troupe::client
