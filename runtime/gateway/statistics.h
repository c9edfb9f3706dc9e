// What each model's recent requests were like, for /v1/troupe/stats and `troupe report`.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <vector>

#include "base/clock.h"
#include "gateway/backend.h"

namespace troupe::gateway {

class Statistics {
 public:
  struct Request {
    Instant ended;
    Duration took{};
    std::optional<Duration> first_token;
    uint64_t tokens = 0;
    uint32_t retries = 0;
    bool succeeded = false;
  };
  void add(const std::string& model, Request request);
  // JSON: {"models": {name: {...}}}. Models that are gone are left out.
  std::string to_json(const std::vector<ModelInfo>& models, Instant now) const;
  // Forgets models that are gone.
  void keep_only(const std::vector<ModelInfo>& models);

 private:
  struct Model {
    std::deque<Request> recent;  // At most recent_max.
    uint64_t requests = 0;
    uint64_t failed = 0;
    uint64_t tokens = 0;
    uint64_t retries = 0;
  };
  static constexpr size_t recent_max = 4096;
  std::map<std::string, Model> models_;
};

}  // namespace troupe::gateway
