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

}  // namespace

std::unique_ptr<Policy> make_priority_policy() {
  return std::make_unique<PriorityPolicy>();
}

}  // namespace troupe::scheduler
