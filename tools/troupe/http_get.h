// One small HTTP request to the gateway on loopback.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.h"
#include "base/status.h"

namespace troupe::tools {

struct HttpGet {
  std::string host;
  uint16_t port = 0;
  std::string target;
  std::string api_key;
  Duration budget = std::chrono::seconds(5);  // For all of it.
};

// The body of a 200 answer. Blocks. Errors: unavailable, deadline_exceeded (the gateway hangs), and
// what the gateway answered.
Result<std::string> http_get(const HttpGet& get);

}  // namespace troupe::tools
