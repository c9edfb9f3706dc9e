// A trace replayed through the scheduler, on its own time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "scheduler/replay/trace.h"
#include "scheduler/scheduler.h"

namespace troupe::scheduler {

struct ReplayOptions {
  std::unique_ptr<Policy> policy;  // Null: the scheduler's default.
  uint32_t nodes = 1;
  int64_t gpus_per_node = 8;
  int64_t cpus_per_node = 96;
  int64_t memory_mib_per_node = int64_t{1} << 20;
  // Policies know what each job will run: an oracle.
  bool tells_run_times = true;
  // What it takes a job that was preempted to go on.
  Duration restart_cost = std::chrono::seconds(30);
  // As SchedulerOptions::patience.
  Duration patience = std::chrono::hours(24 * 365 * 10);
  // Called with each decision, in order: for logs and tests.
  std::function<void(const Decision&, Instant)> on_decision;
};

// Times in seconds. Of the jobs that ended.
struct ReplayResult {
  uint64_t jobs = 0;
  uint64_t infeasible = 0;  // Larger than the cluster: left out.
  double jct_avg_s = 0;     // Completion: from submission to end.
  double jct_p50_s = 0;
  double jct_p90_s = 0;
  double jct_p99_s = 0;
  double jct_max_s = 0;
  double first_wait_avg_s = 0;  // From submission to the first start.
  double makespan_s = 0;        // From the first submission to the last end.
  double utilisation = 0;       // GPU-time of jobs, without restarts, to that of the cluster.
  double jain = 0;              // Jain's index of run time over completion time.
  double slowdown_worst = 0;    // Completion over run time (of at least 1 s).
  uint64_t preemptions = 0;
  double lost_gpu_s = 0;  // To restarts.
  uint64_t decisions = 0;
};

// Deterministic: equal traces and options give equal decisions.
ReplayResult replay(const std::vector<TraceJob>& trace, ReplayOptions options);

}  // namespace troupe::scheduler
