// The scheduler alone, one thread, at the sizes that are asked of it: a million requests that wait
// for 80,000 GPUs, gangs, and how the cost grows with the cluster. Figures are medians of batches,
// for the machine is shared.
#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <span>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "scheduler/scheduler.h"

namespace troupe::scheduler {
namespace {

using std::chrono::hours;
using Wall = std::chrono::steady_clock;

constexpr int64_t gpus_per_node = 8;

double seconds_since(Wall::time_point began) {
  return std::chrono::duration<double>(Wall::now() - began).count();
}

double quantile(std::vector<double> values, double part) {
  std::ranges::sort(values);
  return values[static_cast<size_t>(static_cast<double>(values.size() - 1) * part)];
}

void row(std::string_view name, double value, std::string_view unit) {
  fmt::print("{{\"name\":\"{}\",\"value\":{:.4g},\"unit\":\"{}\"}}\n", name, value, unit);
}

size_t live_bytes() {
  return ::mallinfo2().uordblks + ::mallinfo2().hblkhd;
}

// What jobs of one GPU, a few, or a part of one ask for, in 64 sizes of CPU and memory.
ResourceVector demand_of(Random& random) {
  static constexpr int64_t gpu_milli[] = {1000, 1000, 1000, 2000, 4000, 8000, 250, 500};
  const int64_t gpu = gpu_milli[random.below(std::size(gpu_milli))];
  const auto size = static_cast<int64_t>(random.below(8)) + 1;
  return {.cpu_milli = size * std::max<int64_t>(gpu / 4, 125),
          .memory_mib = size * std::max<int64_t>(gpu, 250),
          .gpu_milli = gpu};
}

class Cluster {
 public:
  explicit Cluster(uint64_t nodes)
      : scheduler_({.lease_term = hours(1000), .patience = hours(1000)}) {
    for (uint64_t n = 0; n < nodes; ++n)
      take(NodeAdded{
          NodeId::random(random_),
          {.cpu_milli = 64'000, .memory_mib = 1'024'000, .gpu_milli = gpus_per_node * 1000},
          {}});
  }
  // How many placements followed.
  size_t take(const Event& event) {
    size_t placed = 0;
    for (const Decision& decision : scheduler_.apply(event, now_)) {
      if (const auto* actor = std::get_if<ActorPlaced>(&decision)) {
        running_.push_back(actor->actor);
        ++placed;
      }
      placed += std::holds_alternative<GangPlaced>(decision) ? 1 : 0;
    }
    return placed;
  }
  size_t submit() {
    return take(ActorRequested{.actor = ActorId::random(random_),
                               .job = JobId{RawId{0, random_.below(1000)}},
                               .demand = demand_of(random_)});
  }
  // Of those that run any one.
  size_t end_one() {
    std::swap(running_[random_.below(running_.size())], running_.back());
    const ActorId ended = running_.back();
    running_.pop_back();
    return take(ActorReleased{ended});
  }
  GangId gang(uint32_t gpus, size_t& placed) {
    const GangId id = GangId::random(random_);
    const std::vector<ResourceVector> bundles(gpus, {.cpu_milli = 1000, .gpu_milli = 1000});
    placed += take(GangRequested{.gang = id, .bundles = bundles});
    return id;
  }
  void fill_with(uint64_t waiting) {
    while (scheduler_.pending_units() < waiting) submit();
  }

 private:
  SeededRandom random_{1};
  Scheduler scheduler_;
  const Instant now_{std::chrono::seconds(1)};
  std::vector<ActorId> running_;
};

struct Rate {
  double per_second = 0;
  double p99_us = 0;  // Of one event, with all that followed from it.
};

// One ends and another one comes, in turn: the queue stays as long as it is.
Rate churn(Cluster& cluster, size_t batches, size_t events_a_batch) {
  std::vector<double> rates;
  std::vector<double> latencies;
  for (size_t batch = 0; batch < batches; ++batch) {
    size_t placed = 0;
    const auto began = Wall::now();
    auto before = began;
    for (size_t i = 0; i < events_a_batch; ++i) {
      placed += i % 2 == 0 ? cluster.end_one() : cluster.submit();
      const auto now = Wall::now();
      latencies.push_back(std::chrono::duration<double, std::micro>(now - before).count());
      before = now;
    }
    rates.push_back(static_cast<double>(placed) / seconds_since(began));
  }
  return {quantile(rates, 0.5), quantile(latencies, 0.99)};
}

void dispatch() {
  Cluster cluster(10'000);
  cluster.fill_with(1);
  const size_t before = live_bytes();
  cluster.fill_with(1'000'000);
  const size_t after = live_bytes();
  const Rate rate = churn(cluster, 21, 20'000);
  row("decisions_per_s", rate.per_second, "decision/s");
  row("decision_p99_us", rate.p99_us, "us");
  row("bytes_per_queued_job", static_cast<double>(after - before) / 1e6, "B");
}

void growth() {
  const auto rate_of = [](uint64_t nodes) {
    Cluster cluster(nodes);
    cluster.fill_with(10'000);
    return churn(cluster, 21, 10'000).per_second;
  };
  row("cost_ratio_100k_over_1k_nodes", rate_of(1000) / rate_of(100'000), "ratio");
}

// On a cluster that is half full of single GPUs.
void gangs() {
  Cluster cluster(10'000);
  for (uint64_t n = 0; n < 10'000 * gpus_per_node / 2; ++n) {
    cluster.take(ActorRequested{.actor = ActorId{RawId{1, n}}, .demand = {.gpu_milli = 1000}});
  }
  const auto times = [&](uint32_t gpus, size_t count) {
    std::vector<double> seconds;
    for (size_t i = 0; i < count; ++i) {
      size_t placed = 0;
      const auto began = Wall::now();
      const GangId id = cluster.gang(gpus, placed);
      seconds.push_back(seconds_since(began));
      cluster.take(GangReleased{id});
      if (placed == 0) seconds.back() = 1e9;  // Seen at once in the figure.
    }
    return quantile(seconds, 0.5);
  };
  row("gangs_of_8_per_s", 1 / times(8, 10'000), "gang/s");
  row("gang_1024_ms", times(1024, 101) * 1e3, "ms");
}

}  // namespace
}  // namespace troupe::scheduler

int main() {
  troupe::scheduler::dispatch();
  troupe::scheduler::growth();
  troupe::scheduler::gangs();
  return 0;
}
