// The scheduler alone, one thread, at the sizes that are asked of it: a million requests that wait
// for 80,000 GPUs, gangs, and how the cost grows with the cluster. Figures are medians of batches,
// for the machine is shared.
#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <chrono>
#include <queue>
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

// Kueue's large scheduler test (kubernetes-sigs/kueue, test/performance/scheduler): 10 cohorts of
// 100 queues with a quota of 20 each that lend all of it and may use 100 more, and 50 workloads a
// queue: 35 of 1 for 50 ms, 10 of 5 for 100 ms and 5 of 20 for 200 ms, which come every 20, 50 and
// 200 ms; larger ones have the higher priority. Time is simulated; what counts is the scheduler's.
class Queues {
 public:
  Queues() : scheduler_({.lease_term = hours(1000), .patience = hours(1000)}) {
    for (uint64_t n = 0; n < cohorts; ++n)
      take(NodeAdded{NodeId{RawId{0, n + 1}}, {.cpu_milli = queues_each * quota_milli}, {}});
    PoolsSet pools;
    for (uint64_t cohort = 0; cohort < cohorts; ++cohort) {
      const std::string name = fmt::format("cohort-{}", cohort);
      const int64_t all = static_cast<int64_t>(queues_each) * quota_milli;
      pools.pools.push_back(
          {.name = name, .quota = {all, 0, 0}, .limit = {all, unlimited, unlimited}});
      for (uint64_t queue = 0; queue < queues_each; ++queue)
        pools.pools.push_back({.name = name_of(cohort * queues_each + queue),
                               .parent = name,
                               .quota = {quota_milli, 0, 0},
                               .limit = {6 * quota_milli, unlimited, unlimited}});
    }
    take(pools);
    for (uint64_t queue = 0; queue < cohorts * queues_each; ++queue) {
      for (const Class& kind : classes)
        for (int64_t i = 0; i < kind.count; ++i)
          arrivals_.push_back({i * kind.interval, queue, &kind});
    }
    std::ranges::stable_sort(arrivals_, {}, &Arrival::at);
  }

  void run() {
    size_t next = 0;
    while (next < arrivals_.size() || !ends_.empty()) {
      const bool arrives =
          next < arrivals_.size() && (ends_.empty() || arrivals_[next].at < ends_.top().first);
      now_ = arrives ? arrivals_[next].at : ends_.top().first;
      if (arrives) {
        const Arrival& arrival = arrivals_[next];
        take(ActorRequested{.actor = ActorId{RawId{0, next++}},
                            .job = JobId{RawId{0, arrival.queue}},
                            .demand = {.cpu_milli = arrival.kind->request_milli},
                            .priority = arrival.kind->priority,
                            .pool = name_of(arrival.queue)});
      } else {
        const uint64_t ended = ends_.top().second;
        ends_.pop();
        take(ActorReleased{ActorId{RawId{0, ended}}});
      }
    }
    row("kueue_scheduler_s", seconds_, "s");
    const double capacity = static_cast<double>(cohorts * queues_each * quota_milli);
    const double makespan = static_cast<double>(now_.count());
    row("kueue_quota_use", used_ / (capacity * makespan), "ratio");
    row("kueue_events_per_s", static_cast<double>(2 * arrivals_.size()) / seconds_, "event/s");
  }

 private:
  static constexpr uint64_t cohorts = 10;
  static constexpr uint64_t queues_each = 100;
  static constexpr int64_t quota_milli = 20'000;
  struct Class {
    int64_t count;
    int64_t request_milli;
    std::chrono::milliseconds interval;
    std::chrono::milliseconds run_time;
    int32_t priority;
  };
  static constexpr Class classes[] = {
      {35, 1000, std::chrono::milliseconds(20), std::chrono::milliseconds(50), 50},
      {10, 5000, std::chrono::milliseconds(50), std::chrono::milliseconds(100), 100},
      {5, 20'000, std::chrono::milliseconds(200), std::chrono::milliseconds(200), 200}};
  struct Arrival {
    std::chrono::milliseconds at;
    uint64_t queue;
    const Class* kind;
  };
  using End = std::pair<std::chrono::milliseconds, uint64_t>;

  static std::string name_of(uint64_t queue) { return fmt::format("queue-{}", queue); }
  void take(const Event& event) {
    const auto began = Wall::now();
    const Decisions decisions = scheduler_.apply(event, Instant(hours(1)) + now_);
    seconds_ += seconds_since(began);
    for (const Decision& decision : decisions) {
      const auto* placed = std::get_if<ActorPlaced>(&decision);
      if (placed == nullptr) continue;
      const Class& kind = *arrivals_[placed->actor.low].kind;
      ends_.emplace(now_ + kind.run_time, placed->actor.low);
      used_ += static_cast<double>(kind.request_milli * kind.run_time.count());
    }
  }

  Scheduler scheduler_;
  std::vector<Arrival> arrivals_;
  std::priority_queue<End, std::vector<End>, std::greater<>> ends_;
  std::chrono::milliseconds now_{};
  double seconds_ = 0;
  double used_ = 0;
};

}  // namespace
}  // namespace troupe::scheduler

int main() {
  troupe::scheduler::dispatch();
  troupe::scheduler::growth();
  troupe::scheduler::gangs();
  troupe::scheduler::Queues().run();
  return 0;
}
