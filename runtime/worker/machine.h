// What this machine has and how much of it is in use. Reads /proc, /sys and /dev.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/status.h"
#include "protocol/messages.h"

namespace troupe::worker {

// cpu (1000 a core this process may use, cgroup quotas included), memory (MiB * 1000, cgroup limit
// included) and gpu (1000 a device; absent without devices).
std::vector<protocol::ResourceAmount> detect_resources();

// The parts of the above, with the file system's root replaceable for tests.
int64_t detect_cpu_milli(const std::string& root);
uint64_t detect_memory_bytes(const std::string& root);
uint32_t detect_gpus(const std::string& root);

class MachineUsage {
 public:
  virtual ~MachineUsage() = default;
  virtual uint64_t memory_used_bytes() = 0;
  // Since the last call: 1000 is one core busy all the time.
  virtual uint64_t cpu_used_milli() = 0;
};

class ProcMachineUsage final : public MachineUsage {
 public:
  uint64_t memory_used_bytes() override;
  uint64_t cpu_used_milli() override;

 private:
  uint64_t last_busy_ = 0;
  uint64_t last_total_ = 0;
};

// Makes a folder that only this user may enter, with its parents. Errors: denied, unavailable.
Status make_private_folder(const std::string& path);

}  // namespace troupe::worker
