#include "cluster.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

extern char** environ;

namespace bench {
namespace {

// Runs `troupe words...` to its end, without its standard output.
bool troupe(std::vector<std::string> words) {
  words.insert(words.begin(), TROUPE_TOOL);
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawn_file_actions_addopen(&files, 1, "/dev/null", O_WRONLY, 0);
  pid_t pid = 0;
  const int failed = ::posix_spawn(&pid, arguments[0], &files, nullptr, arguments.data(), environ);
  ::posix_spawn_file_actions_destroy(&files);
  if (failed != 0) {
    fmt::print(stderr, "cannot start {}: {}\n", words[0], std::strerror(failed));
    return false;
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0) fmt::print(stderr, "troupe {} failed\n", words[1]);
  return status == 0;
}

}  // namespace

std::optional<Cluster> Cluster::start(int workers, int heads) {
  std::string folder = std::filesystem::temp_directory_path() / "troupe-bench-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) {
    fmt::print(stderr, "cannot make {}: {}\n", folder, std::strerror(errno));
    return {};
  }
  Cluster cluster{std::move(folder)};
  ::setenv("TROUPE_STATE", cluster.state().c_str(), 1);
  const std::string count = std::to_string(workers);
  if (!troupe({"up", "--workers", count, "--heads", std::to_string(heads), "--label",
               "worker-" + std::to_string(workers - 1) + ":bench=far", "--gateway-port", "-1"})) {
    return {};
  }
  return cluster;
}

Cluster::Cluster(Cluster&& other) noexcept : folder_(std::exchange(other.folder_, {})) {}

Cluster::~Cluster() {
  if (folder_.empty()) return;
  if (std::filesystem::exists(state())) troupe({"down"});
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

}  // namespace bench
