// What somebody waits for who has nothing running: `troupe up` with two workers and a gateway, then
// the first task's result, then `troupe down`. Each time in a fresh state folder; medians.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

extern char** environ;

namespace {

constexpr int repetitions = 11;
volatile sig_atomic_t interrupted = 0;

void on_signal(int) {
  interrupted = 1;
}

// Milliseconds until the program has ended; nothing if it failed. Its standard output is dropped.
std::optional<double> run(std::vector<std::string> command) {
  std::vector<char*> arguments;
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
  const auto start = std::chrono::steady_clock::now();
  pid_t pid = 0;
  const int failed = ::posix_spawn(&pid, arguments[0], &files, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&files);
  if (failed != 0) {
    fmt::print(stderr, "cannot start {}: {}\n", command[0], std::strerror(failed));
    return {};
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  const auto took = std::chrono::steady_clock::now() - start;
  if (status == 0) return std::chrono::duration<double, std::milli>(took).count();
  fmt::print(stderr, "{} {} failed\n", command[0], command.size() > 1 ? command[1] : "");
  return {};
}

struct Times {
  std::vector<double> up, first_task, up_to_first_task, down;
};

bool repeat(Times& times) {
  std::string folder = std::filesystem::temp_directory_path() / "troupe-bench-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) return false;
  ::setenv("TROUPE_STATE", (folder + "/state").c_str(), 1);
  const auto up = run({TROUPE_TOOL, "up", "--workers", "2", "--gateway-port", "0"});
  const auto task = up ? run({TROUPE_PROGRAM}) : std::nullopt;
  const auto down = up ? run({TROUPE_TOOL, "down"}) : std::nullopt;
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  if (!up || !task || !down) return false;
  times.up.push_back(*up);
  times.first_task.push_back(*task);
  times.up_to_first_task.push_back(*up + *task);
  times.down.push_back(*down);
  return true;
}

void row(std::string_view name, double value) {
  fmt::print("{{\"name\":\"system/{}\",\"value\":{:.4g},\"unit\":\"ms\"}}\n", name, value);
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

}  // namespace

int main() {
  struct sigaction action {};
  action.sa_handler = on_signal;  // What was started is ended before this program is.
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  Times times;
  for (int i = 0; i < repetitions; ++i) {
    if (!repeat(times) || interrupted != 0) return 1;
  }
  row("up", median(times.up));
  row("first_program_with_a_task", median(times.first_task));
  row("up_to_first_task", median(times.up_to_first_task));
  row("up_to_first_task.max", *std::ranges::max_element(times.up_to_first_task));
  row("down", median(times.down));
}
