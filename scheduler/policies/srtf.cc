#include "scheduler/policy.h"

namespace troupe::scheduler {
namespace {

// Beyond all expected times: there those stand that nobody knows.
constexpr int64_t unknown = INT64_MAX / 2;

class SrtfPolicy final : public Policy {
 public:
  std::string_view name() const override { return "srtf"; }
  // One that takes longer than expected has nothing left, and is not stopped for that.
  Rank rank(const Standing& standing, Instant now) const override {
    const Duration stint = standing.stint(now);
    if (standing.run_time == Standing::unknown_run_time)
      return {.major = unknown - stint.count(), .minor = standing.ran.count()};
    return {.major = (standing.run_time - standing.progress - stint).count()};
  }
  int64_t running_slope() const override { return -1; }
  bool preempts() const override { return true; }
};

}  // namespace

std::unique_ptr<Policy> make_srtf_policy() {
  return std::make_unique<SrtfPolicy>();
}

}  // namespace troupe::scheduler
