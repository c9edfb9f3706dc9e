// Recorded jobs, from text. Reading the file is the caller's.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/status.h"

namespace troupe::scheduler {

struct TraceJob {
  Duration submitted{};  // Since the first.
  Duration run_time{};
  int64_t gpu_milli = 0;
  int64_t cpu_milli = 0;
  int64_t memory_mib = 0;
  int32_t priority = 0;
  std::string group;  // Virtual cluster, queue or tenant.
};

// By submission; equal ones in the order of the lines. The first line names the columns, in any
// order. Ours and Philly's: submit_s, duration_s and num_gpus, and any of id, vc, user, priority,
// cpu_milli and memory_mib. Alibaba's (cluster-trace-gpu-v2023): name, cpu_milli, memory_mib,
// num_gpu, gpu_milli, gpu_spec, qos, pod_phase, creation_time, deletion_time, scheduled_time; a pod
// runs from its scheduling (or creation) to its deletion, and one that never ran is left out.
// Errors: invalid (an unknown or missing column, a value that is none or negative, an id that is
// there twice), each with its line.
Result<std::vector<TraceJob>> read_trace(std::string_view text);

}  // namespace troupe::scheduler
