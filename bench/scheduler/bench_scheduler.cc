// Decisions a second, in memory, one thread: the part of scheduling that is not the network's.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <deque>

#include "base/random.h"
#include "scheduler/scheduler.h"

namespace troupe::scheduler {
namespace {

using std::chrono::hours;

class Cluster {
 public:
  Cluster(uint64_t nodes, int64_t gpus)
      : scheduler_({.lease_term = hours(1000), .patience = hours(1000)}) {
    for (uint64_t n = 0; n < nodes; ++n)
      apply(NodeAdded{NodeId::random(random_),
                      {.cpu_milli = 64'000, .memory_mib = 256'000, .gpu_milli = gpus * 1000},
                      {}});
  }
  Decisions apply(const Event& event) { return scheduler_.apply(event, now_); }
  LeaseId lease(const ResourceVector& demand, uint32_t slots) {
    const LeaseId id = LeaseId::random(random_);
    decided_ += apply(LeaseRequested{.lease = id, .demand = demand, .slots = slots}).size();
    return id;
  }
  ActorId actor(const ResourceVector& demand) {
    const ActorId id = ActorId::random(random_);
    decided_ += apply(ActorRequested{.actor = id, .demand = demand}).size();
    return id;
  }
  GangId gang(std::vector<ResourceVector> bundles) {
    const GangId id = GangId::random(random_);
    decided_ += apply(GangRequested{.gang = id, .bundles = std::move(bundles)}).size();
    return id;
  }
  void end(const LeaseId& id) { decided_ += apply(LeaseReturned{id, {}}).size(); }
  void end(const ActorId& id) { decided_ += apply(ActorReleased{id}).size(); }
  void end(const GangId& id) { decided_ += apply(GangReleased{id}).size(); }
  size_t decided() const { return decided_; }
  Random& random() { return random_; }

 private:
  SeededRandom random_{1};
  Scheduler scheduler_;
  Instant now_{std::chrono::seconds(1)};
  size_t decided_ = 0;
};

const std::vector<ResourceVector> shapes = {
    {.cpu_milli = 1000, .memory_mib = 1000},
    {.cpu_milli = 4000, .memory_mib = 8000},
    {.cpu_milli = 500},
    {.cpu_milli = 1000, .gpu_milli = 250},
    {.cpu_milli = 8000, .memory_mib = 32'000, .gpu_milli = 1000},
    {.cpu_milli = 2000, .memory_mib = 64'000},
};

void report(benchmark::State& state, const Cluster& cluster, size_t before) {
  state.counters["decisions_per_second"] = benchmark::Counter(
      static_cast<double>(cluster.decided() - before), benchmark::Counter::kIsRate);
}

// A lease is granted and returned on a cluster that is half full.
void lease_grant_and_return(benchmark::State& state) {
  Cluster cluster(static_cast<uint64_t>(state.range(0)), 8);
  for (int64_t n = 0; n < state.range(0) * 32; ++n) cluster.lease(shapes[0], 1);
  const size_t before = cluster.decided();
  for (auto _ : state) cluster.end(cluster.lease(shapes[0], 1));
  report(state, cluster, before);
}
BENCHMARK(lease_grant_and_return)->Arg(10)->Arg(1000)->Arg(10'000);

// Actors of mixed needs come and go on a full cluster with a backlog: each release places some.
void mixed_churn_with_backlog(benchmark::State& state) {
  Cluster cluster(static_cast<uint64_t>(state.range(0)), 8);
  std::deque<ActorId> running;
  const auto next = [&] { return shapes[cluster.random().below(shapes.size())]; };
  for (int64_t n = 0; n < state.range(0) * 40; ++n) running.push_back(cluster.actor(next()));
  const size_t before = cluster.decided();
  for (auto _ : state) {
    running.push_back(cluster.actor(next()));
    cluster.end(running.front());
    running.pop_front();
  }
  report(state, cluster, before);
}
BENCHMARK(mixed_churn_with_backlog)->Arg(10)->Arg(1000);

// A release among 10,000 shapes that wait, of which one fits again.
void release_among_many_shapes(benchmark::State& state) {
  Cluster cluster(100, 8);
  for (int n = 0; n < 100; ++n) cluster.actor({.cpu_milli = 64'000, .gpu_milli = 7000});
  for (int64_t n = 0; n < state.range(0); ++n) cluster.actor({.cpu_milli = 2000 + n});
  ActorId last = cluster.actor({.gpu_milli = 1000});
  const size_t before = cluster.decided();
  for (auto _ : state) {
    cluster.end(last);
    last = cluster.actor({.gpu_milli = 1000});
  }
  report(state, cluster, before);
}
BENCHMARK(release_among_many_shapes)->Arg(100)->Arg(10'000);

// Gangs of 8 GPUs and of 64 on machines of 8.
void gang_place_and_release(benchmark::State& state) {
  Cluster cluster(1000, 8);
  const std::vector<ResourceVector> bundles(static_cast<size_t>(state.range(0)),
                                            {.cpu_milli = 4000, .gpu_milli = 1000});
  for (int n = 0; n < 4000; ++n) cluster.actor(shapes[4]);
  const size_t before = cluster.decided();
  for (auto _ : state) cluster.end(cluster.gang(bundles));
  report(state, cluster, before);
}
BENCHMARK(gang_place_and_release)->Arg(8)->Arg(64)->Arg(1024);

// One JSON row a figure on standard output, as tools/bench.sh collects them.
class RowReporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      const auto rate = run.counters.find("decisions_per_second");
      if (rate == run.counters.end()) continue;
      fmt::print("{{\"name\":\"scheduler/{}\",\"value\":{:.4g},\"unit\":\"decision/s\"}}\n",
                 run.benchmark_name(), rate->second.value);
    }
  }
};

}  // namespace
}  // namespace troupe::scheduler

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  troupe::scheduler::RowReporter rows;
  benchmark::RunSpecifiedBenchmarks(&rows);
  return 0;
}
