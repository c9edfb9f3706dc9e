// What the cluster's processes and this one have used, from /proc.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bench {

class Processes {
 public:
  // The cluster's are those that were started with this environment variable, NAME=VALUE.
  explicit Processes(std::string mark) : mark_(std::move(mark)) {}

  // User and system time since their start: the cluster's processes, those that ended and were
  // waited for, and this one. To 10 ms a process.
  double cpu_seconds() const;
  // The process whose first argument is `kind` (head, worker); 0 if there is none.
  pid_t find(const std::string& kind) const;

 private:
  std::vector<pid_t> list() const;  // Without this one.

  std::string mark_;
};

// Of one process: time on a cpu, and how often it went to sleep by itself.
struct Activity {
  double cpu_seconds = 0;  // To the nanosecond.
  uint64_t sleeps = 0;
};
Activity activity_of(pid_t pid);

uint64_t resident_bytes(pid_t pid = 0);  // 0: of this process.

}  // namespace bench
