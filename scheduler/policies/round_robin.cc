#include <algorithm>

#include "scheduler/policy.h"
#include "scheduler/resources.h"

namespace troupe::scheduler {
namespace {

class RoundRobinPolicy final : public Policy {
 public:
  explicit RoundRobinPolicy(RoundRobinOptions options) : options_(options) {}

  std::string_view name() const override { return "rr"; }
  Rank rank(const Standing& standing, Instant now) const override {
    return {.major = virtual_time(standing, now) / options_.quantum};
  }
  Instant changes_at(const Standing& standing, Instant now) const override {
    if (!standing.runs) return Instant::max();
    const Duration at = virtual_time(standing, now);
    const Duration left = (at / options_.quantum + 1) * options_.quantum - at;
    // Rounded up, and one more for what virtual_time() rounded down.
    const auto exact = static_cast<__int128>(left.count()) * standing.weight * whole_gpu_milli;
    const int64_t rate = rate_of(standing);
    return now + Duration(static_cast<int64_t>((exact + rate - 1) / rate) + 1);
  }
  bool preempts() const override { return true; }
  Duration virtual_time(const Standing& standing, Instant now) const override {
    const auto ran = static_cast<__int128>(standing.ran_until(now).count());
    const auto served = ran * rate_of(standing) / whole_gpu_milli / standing.weight;
    return standing.joined_at + Duration(static_cast<int64_t>(served));
  }

 private:
  static int64_t rate_of(const Standing& standing) {
    return standing.gpu_milli > 0 ? standing.gpu_milli : whole_gpu_milli;
  }

  const RoundRobinOptions options_;
};

}  // namespace

std::unique_ptr<Policy> make_round_robin_policy(RoundRobinOptions options) {
  return std::make_unique<RoundRobinPolicy>(options);
}

}  // namespace troupe::scheduler
