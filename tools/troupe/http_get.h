// One small HTTP request to the gateway on loopback.
#pragma once

#include <cstdint>
#include <string>

#include "base/status.h"

namespace troupe::tools {

// The body of a 200 answer. Blocks. Errors: unavailable, and what the gateway answered.
Result<std::string> http_get(const std::string& host, uint16_t port, const std::string& target,
                             const std::string& api_key);

}  // namespace troupe::tools
