#include "processes.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace bench {
namespace {

std::string read_proc(const std::filesystem::path& path) {
  std::ifstream file{path};
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::filesystem::path folder_of(pid_t pid) {
  return std::filesystem::path("/proc") / std::to_string(pid);
}

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
}

// utime, stime, cutime and cstime: fields 14 to 17, of which the second may hold spaces.
double cpu_of(pid_t pid) {
  const std::string text = read_proc(folder_of(pid) / "stat");
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return 0;  // It has ended.
  std::istringstream fields{text.substr(name_end + 1)};
  std::string skipped;
  for (int i = 3; i < 14; ++i) fields >> skipped;
  double ticks = 0;
  for (int i = 14; i < 18; ++i) {
    double field = 0;
    fields >> field;
    ticks += field;
  }
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

// The number after `key` in a text of lines "key: number".
uint64_t number_after(const std::string& text, const std::string& key) {
  const size_t at = text.find("\n" + key + ":");
  return at == std::string::npos ? 0 : std::stoull(text.substr(at + key.size() + 2));
}

}  // namespace

std::vector<pid_t> Processes::list() const {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (!std::ranges::all_of(name, [](unsigned char c) { return std::isdigit(c) != 0; })) continue;
    const std::string variables = read_proc(entry.path() / "environ");
    const bool ours = variables.starts_with(mark_ + '\0') ||
                      variables.find('\0' + mark_ + '\0') != std::string::npos;
    if (ours && std::stoi(name) != ::getpid()) found.push_back(std::stoi(name));
  }
  return found;
}

double Processes::cpu_seconds() const {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  double total = seconds(used.ru_utime) + seconds(used.ru_stime);
  for (const pid_t pid : list()) total += cpu_of(pid);
  return total;
}

pid_t Processes::find(const std::string& kind) const {
  for (const pid_t pid : list()) {
    const std::string command = read_proc(folder_of(pid) / "cmdline");
    if (command.find('\0' + kind + '\0') != std::string::npos) return pid;
  }
  return 0;
}

Activity activity_of(pid_t pid) {
  Activity total;
  for (const auto& thread : std::filesystem::directory_iterator(folder_of(pid) / "task")) {
    std::istringstream schedule{read_proc(thread.path() / "schedstat")};
    double nanoseconds = 0;
    schedule >> nanoseconds;
    total.cpu_seconds += nanoseconds / 1e9;
    total.sleeps += number_after(read_proc(thread.path() / "status"), "voluntary_ctxt_switches");
  }
  return total;
}

uint64_t resident_bytes(pid_t pid) {
  const std::string process = pid == 0 ? "self" : std::to_string(pid);
  return number_after(read_proc("/proc/" + process + "/status"), "VmRSS") * 1024;
}

}  // namespace bench
