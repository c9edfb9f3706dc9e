#include "worker/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <vector>

namespace troupe::worker {
namespace fs = std::filesystem;

namespace {

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<int64_t> parse_number(std::string_view text) {
  int64_t value = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failed != std::errc{} || end == text.data()) return std::nullopt;
  return value;
}

std::optional<int64_t> number_in(const std::string& path) {
  const auto line = first_line(path);
  return line ? parse_number(*line) : std::nullopt;
}

// The number of the line that begins with `name`, in bytes if it says kB; 0: there is none.
uint64_t field_of(const std::string& path, std::string_view name) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with(name) || line.size() <= name.size()) continue;
    if (line[name.size()] != ':' && line[name.size()] != ' ') continue;
    const size_t digits = line.find_first_of("0123456789", name.size());
    if (digits == std::string::npos) return 0;
    const auto value = parse_number(std::string_view(line).substr(digits));
    return value ? static_cast<uint64_t>(*value) << (line.ends_with(" kB") ? 10 : 0) : 0;
  }
  return 0;
}

uint64_t memory_field(const std::string& root, std::string_view name) {
  return field_of(root + "/proc/meminfo", name);
}

// This process's cgroups from the innermost outward, as folders under `mount`: a limit holds
// wherever on the way it is set.
std::vector<std::string> cgroup_folders(const std::string& root, std::string_view controller) {
  std::ifstream file(root + "/proc/self/cgroup");
  std::string line;
  std::vector<std::string> folders;
  while (std::getline(file, line)) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    fs::path path = line.substr(second + 1);
    std::string mount = root + "/sys/fs/cgroup";
    if (!controllers.empty()) {
      if (("," + controllers + ",").find("," + std::string(controller) + ",") == std::string::npos)
        continue;
      mount += "/" + std::string(controller);
    }
    for (; path.has_relative_path(); path = path.parent_path()) {
      folders.push_back(mount + path.string());
    }
    folders.push_back(mount);  // In a container the own cgroup is mounted as the root.
  }
  return folders;
}

std::optional<int64_t> cpu_quota_milli(const std::string& folder) {
  if (const auto line = first_line(folder + "/cpu.max")) {
    std::istringstream words(*line);
    std::string quota;
    int64_t period = 0;
    if (words >> quota >> period && quota != "max" && period > 0) {
      if (const auto value = parse_number(quota)) return *value * 1000 / period;
    }
  }
  const auto quota = number_in(folder + "/cpu.cfs_quota_us");
  const auto period = number_in(folder + "/cpu.cfs_period_us");
  if (quota && period && *quota > 0 && *period > 0) return *quota * 1000 / *period;
  return std::nullopt;
}

}  // namespace

int64_t detect_cpu_milli(const std::string& root) {
  cpu_set_t set;
  CPU_ZERO(&set);
  int64_t milli = 1000;
  if (::sched_getaffinity(0, sizeof set, &set) == 0) milli = int64_t{CPU_COUNT(&set)} * 1000;
  for (const std::string& folder : cgroup_folders(root, "cpu")) {
    if (const auto quota = cpu_quota_milli(folder)) milli = std::min(milli, *quota);
  }
  return std::max<int64_t>(milli, 1);
}

namespace {

struct MemoryLimit {
  uint64_t bytes = 0;
  std::string cgroup;  // Whose; empty: the machine's.
};

MemoryLimit memory_limit(const std::string& root) {
  MemoryLimit least{memory_field(root, "MemTotal"), {}};
  for (const std::string& folder : cgroup_folders(root, "memory")) {
    for (const char* file : {"/memory.max", "/memory.limit_in_bytes"}) {
      const auto limit = number_in(folder + file);
      if (!limit || *limit <= 0 || static_cast<uint64_t>(*limit) >= least.bytes) continue;
      least = {static_cast<uint64_t>(*limit), folder};
    }
  }
  return least;
}

}  // namespace

uint64_t detect_memory_bytes(const std::string& root) {
  return memory_limit(root).bytes;
}

uint32_t detect_gpus(const std::string& root) {
  std::error_code failed;
  uint32_t count = 0;
  for (const auto& entry : fs::directory_iterator(root + "/proc/driver/nvidia/gpus", failed)) {
    (void)entry;
    ++count;
  }
  if (count > 0) return count;
  for (const auto& entry : fs::directory_iterator(root + "/dev", failed)) {
    const std::string name = entry.path().filename().string();
    if (name.size() > 6 && name.starts_with("nvidia") &&
        std::all_of(name.begin() + 6, name.end(), [](unsigned char c) { return std::isdigit(c); }))
      ++count;
  }
  return count;
}

uint64_t ProcMachineUsage::memory_used_bytes() {
  const uint64_t total = memory_field(root_, "MemTotal");
  const uint64_t available = memory_field(root_, "MemAvailable");
  uint64_t used = total > available ? total - available : 0;
  const std::string cgroup = memory_limit(root_).cgroup;
  if (cgroup.empty()) return used;
  for (const char* file : {"/memory.current", "/memory.usage_in_bytes"}) {
    const auto charged = number_in(cgroup + file);
    if (!charged || *charged <= 0) continue;
    // What its files have in the cache can be given to others.
    const uint64_t cached = field_of(cgroup + "/memory.stat", "inactive_file");
    used = static_cast<uint64_t>(*charged) - std::min(cached, static_cast<uint64_t>(*charged));
  }
  return used;
}

uint64_t ProcMachineUsage::process_bytes(uint32_t pid) {
  return field_of(root_ + "/proc/" + std::to_string(pid) + "/status", "RssAnon");
}

uint64_t ProcMachineUsage::cpu_used_milli() {
  const auto line = first_line("/proc/stat");
  if (!line) return 0;
  // user nice system idle iowait irq softirq steal: all but idle and iowait is work.
  std::istringstream words(*line);
  std::string label;
  words >> label;
  uint64_t busy = 0, total = 0, ticks = 0;
  for (int column = 0; column < 8 && words >> ticks; ++column) {
    total += ticks;
    if (column != 3 && column != 4) busy += ticks;
  }
  const uint64_t busy_since = busy - last_busy_;
  const uint64_t total_since = total - last_total_;
  last_busy_ = busy;
  last_total_ = total;
  if (total_since == 0) return 0;
  const long cores = std::max(::sysconf(_SC_NPROCESSORS_ONLN), 1L);
  return busy_since * 1000 * static_cast<uint64_t>(cores) / total_since;
}

}  // namespace troupe::worker
