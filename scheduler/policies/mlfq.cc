#include <algorithm>
#include <utility>

#include "scheduler/policy.h"
#include "scheduler/resources.h"

namespace troupe::scheduler {
namespace {

class MlfqPolicy final : public Policy {
 public:
  explicit MlfqPolicy(MlfqOptions options) : options_(std::move(options)) {}

  std::string_view name() const override { return "mlfq"; }
  Rank rank(const Standing& standing, Instant now) const override {
    const Duration counted = standing.counted_until(now);
    const auto& levels = options_.thresholds;
    const auto level = std::ranges::find_if(
        levels, [&](Duration threshold) { return counted < time_for(threshold, standing); });
    return {.major = level - levels.begin()};
  }
  Instant changes_at(const Standing& standing, Instant now) const override {
    if (!standing.runs) {
      return may_rise(standing) ? standing.since + promotion_after(standing) : Instant::max();
    }
    const Duration counted = standing.counted_until(now);
    for (const Duration threshold : options_.thresholds) {
      const Duration end = time_for(threshold, standing);
      if (counted < end) return now + (end - counted);
    }
    return Instant::max();
  }
  bool promotes(const Standing& standing, Instant now) const override {
    return may_rise(standing) && now - standing.since >= promotion_after(standing);
  }
  bool preempts() const override { return true; }

 private:
  // How long it has to run to have attained so much: rounded up, or the rank would change just
  // before its time and never again.
  static Duration time_for(Duration threshold, const Standing& standing) {
    if (standing.gpu_milli <= 0) return threshold;
    const auto exact = static_cast<__int128>(threshold.count()) * whole_gpu_milli;
    const auto gpus = static_cast<__int128>(standing.gpu_milli);
    return Duration(static_cast<int64_t>((exact + gpus - 1) / gpus));
  }
  // It waits below the top. There its allotment would never be used up if it were counted anew.
  bool may_rise(const Standing& standing) const {
    if (options_.promotion == 0 || standing.runs || options_.thresholds.empty()) return false;
    return standing.ran - standing.promoted_at >= time_for(options_.thresholds.front(), standing);
  }
  Duration promotion_after(const Standing& standing) const {
    const Duration ran = standing.ran - standing.promoted_at;
    const bool is_far = ran > Duration::max() / options_.promotion / 4;
    return is_far ? Duration::max() / 4 : ran * options_.promotion;
  }

  const MlfqOptions options_;
};

}  // namespace

std::unique_ptr<Policy> make_mlfq_policy(MlfqOptions options) {
  return std::make_unique<MlfqPolicy>(std::move(options));
}

}  // namespace troupe::scheduler
