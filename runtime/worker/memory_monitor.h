// Ends processes of this worker before the kernel has to, when the machine runs out of memory.
#pragma once

#include <string>
#include <vector>

#include "transport/environment.h"
#include "worker/options.h"
#include "worker/process_table.h"

namespace troupe::worker {

// A process that could be ended.
struct Candidate {
  ProcessId process;
  uint64_t bytes = 0;           // Memory of its own: what its end gives back.
  bool is_replaceable = false;  // What it runs is run again: tasks, actors with restarts left.
};

// Whom to end so that about `excess_bytes` come back: the replaceable before the others, the larger
// before the smaller, as few as will do. Of those that cannot be replaced no more than one, for the
// kernel would end one, too.
std::vector<ProcessId> choose_victims(std::vector<Candidate> candidates, uint64_t excess_bytes);

// Looks once a second, ten times a second while more than 85 % is used, and acts when more than 95
// % is used (WorkerOptions::memory_high): what it ends says so as its reason, with who used how
// much.
class MemoryMonitor {
 public:
  // All outlive it. Without options.usage it does nothing.
  MemoryMonitor(transport::Environment environment, Scope& scope, const WorkerOptions& options,
                ProcessTable& processes);
  void start();

 private:
  Async<void> watch();
  void act(uint64_t used);

  transport::Environment environment_;
  Scope& scope_;
  const WorkerOptions& options_;
  ProcessTable& processes_;
};

}  // namespace troupe::worker
