#include <algorithm>

#include "scheduler/policy.h"

namespace troupe::scheduler {
namespace {

class PriorityPolicy final : public Policy {
 public:
  std::string_view name() const override { return "priority"; }
  Rank rank(const Standing& standing, Instant) const override {
    return {.major = -int64_t{standing.priority}, .minor = standing.restart ? 0 : 1};
  }
};

// All gain alike with time, so their order never changes: it is that of the times at which each
// would have reached priority 0.
class AgingPolicy final : public Policy {
 public:
  explicit AgingPolicy(AgingOptions options) : options_(options) {}

  std::string_view name() const override { return "aging"; }
  Rank rank(const Standing& standing, Instant) const override {
    const auto head_start = static_cast<__int128>(standing.priority) * options_.step.count();
    const auto at = standing.arrived.time_since_epoch().count() - head_start;
    constexpr __int128 far = INT64_MAX / 4;
    return {.major = static_cast<int64_t>(std::clamp(at, -far, far)),
            .minor = standing.restart ? 0 : 1};
  }
  bool preempts() const override { return options_.preempts; }

 private:
  const AgingOptions options_;
};

}  // namespace

std::unique_ptr<Policy> make_priority_policy() {
  return std::make_unique<PriorityPolicy>();
}

std::unique_ptr<Policy> make_aging_policy(AgingOptions options) {
  return std::make_unique<AgingPolicy>(options);
}

}  // namespace troupe::scheduler
