#include "scheduler/policy.h"

namespace troupe::scheduler {
namespace {

class SjfPolicy final : public Policy {
 public:
  std::string_view name() const override { return "sjf"; }
  Rank rank(const Standing& standing, Instant) const override {
    return {.major = standing.run_time.count()};
  }
};

}  // namespace

std::unique_ptr<Policy> make_sjf_policy() {
  return std::make_unique<SjfPolicy>();
}

}  // namespace troupe::scheduler
