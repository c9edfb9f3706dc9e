// What this machine has and how much of it is in use. Reads /proc, /sys and /dev.
#pragma once

#include <cstdint>
#include <string>

namespace troupe::worker {

// `root` is that of the file system, replaceable for tests. The limits of the cgroup hold.
int64_t detect_cpu_milli(const std::string& root);
uint64_t detect_memory_bytes(const std::string& root);
uint32_t detect_gpus(const std::string& root);

class MachineUsage {
 public:
  virtual ~MachineUsage() = default;
  // All that there is, and what cannot be given to others; of the cgroup, if that has a limit.
  virtual uint64_t memory_bytes() = 0;
  virtual uint64_t memory_used_bytes() = 0;
  // What one process has for itself; 0: there is none.
  virtual uint64_t process_bytes(uint32_t pid) = 0;
  // Since the last call: 1000 is one core busy all the time.
  virtual uint64_t cpu_used_milli() = 0;
};

class ProcMachineUsage final : public MachineUsage {
 public:
  explicit ProcMachineUsage(std::string root = "/") : root_(std::move(root)) {}
  uint64_t memory_bytes() override { return detect_memory_bytes(root_); }
  uint64_t memory_used_bytes() override;
  uint64_t process_bytes(uint32_t pid) override;
  uint64_t cpu_used_milli() override;

 private:
  const std::string root_;
  uint64_t last_busy_ = 0;
  uint64_t last_total_ = 0;
};

}  // namespace troupe::worker
