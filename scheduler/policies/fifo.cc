#include "scheduler/policy.h"

namespace troupe::scheduler {
namespace {

class FifoPolicy final : public Policy {
 public:
  std::string_view name() const override { return "fifo"; }
  Rank rank(const Standing&, Instant) const override { return {}; }
};

}  // namespace

std::unique_ptr<Policy> make_fifo_policy() {
  return std::make_unique<FifoPolicy>();
}

}  // namespace troupe::scheduler
