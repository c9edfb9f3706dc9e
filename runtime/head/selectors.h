// Label selectors of requests, as the scheduler knows them.
#pragma once

#include <vector>

#include "base/status.h"
#include "protocol/messages.h"
#include "scheduler/events.h"

namespace troupe::head {

// Errors: invalid (no such test, no key, values missing or too many).
Result<scheduler::Affinity> to_affinity(const std::vector<protocol::LabelSelector>& selectors);

}  // namespace troupe::head
