#include "tests/system/cluster.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <fstream>
#include <sstream>

extern char** environ;

namespace troupe::test {
namespace {

std::string read_all(int fd) {
  std::string text;
  ::lseek(fd, 0, SEEK_SET);
  char buffer[65536];
  for (ssize_t count; (count = ::read(fd, buffer, sizeof buffer)) > 0;) {
    text.append(buffer, static_cast<size_t>(count));
  }
  return text;
}

// Output goes to files, so that a daemon that keeps the descriptor cannot hold the test up.
int temporary_file() {
  std::string name = "/tmp/troupe-out-XXXXXX";
  const int fd = ::mkostemp(name.data(), O_CLOEXEC);
  ::unlink(name.c_str());
  return fd;
}

}  // namespace

void pause_between_looks() {
  ::poll(nullptr, 0, 20);
}

Outcome run(const std::vector<std::string>& command, const std::vector<std::string>& variables,
            std::chrono::seconds limit) {
  const int out = temporary_file();
  const int err = temporary_file();
  std::vector<std::string> all = command;
  std::vector<char*> argv;
  for (auto& argument : all) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::vector<std::string> environment = variables;
  for (char** entry = environ; *entry != nullptr; ++entry) environment.emplace_back(*entry);
  std::vector<char*> envp;
  for (auto& variable : environment) envp.push_back(variable.data());
  envp.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(::open("/dev/null", O_RDONLY), 0);
    ::dup2(out, 1);
    ::dup2(err, 2);
    ::execve(argv[0], argv.data(), envp.data());
    ::_exit(127);
  }
  Outcome outcome;
  int status = 0;
  const auto end = std::chrono::steady_clock::now() + limit;
  while (::waitpid(pid, &status, WNOHANG) == 0) {
    if (std::chrono::steady_clock::now() > end) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, &status, 0);
      break;
    }
    ::poll(nullptr, 0, 5);
  }
  outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  outcome.out = read_all(out);
  outcome.err = read_all(err);
  ::close(out);
  ::close(err);
  return outcome;
}

Cluster::Cluster() {
  std::string pattern = "/tmp/troupe-sys-XXXXXX";
  EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
  folder_ = pattern;
}

Cluster::~Cluster() {
  if (up_) {
    if (!testing::Test::HasFailure()) expect_nothing_is_held();
    const Outcome ended = down();
    EXPECT_EQ(ended.status, 0) << ended.err;
  }
  EXPECT_TRUE(eventually([this] { return processes().empty(); })) << "processes are left behind";
  if (std::filesystem::exists(state() / "sockets")) {
    EXPECT_TRUE(std::filesystem::is_empty(state() / "sockets")) << "sockets are left behind";
  }
  if (testing::Test::HasFailure()) {
    for (const auto& entry : std::filesystem::directory_iterator(state() / "logs")) {
      std::ifstream log{entry.path()};
      std::stringstream text;
      text << log.rdbuf();
      std::string tail = text.str();
      if (tail.size() > 4000) tail.erase(0, tail.size() - 4000);
      std::cerr << "--- " << entry.path().filename() << "\n" << tail;
    }
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

std::vector<std::string> Cluster::variables() const {
  return {"TROUPE_STATE=" + state().string()};
}

Outcome Cluster::up(const std::vector<std::string>& arguments) {
  std::vector<std::string> all{"up"};
  all.insert(all.end(), arguments.begin(), arguments.end());
  Outcome outcome = troupe(std::move(all));
  up_ = up_ || outcome.status == 0;
  held_.clear();
  for (const auto& [pid, name] : recorded_daemons()) {
    if (auto held = held_by(pid)) {
      held->daemon = name;
      held_[pid] = std::move(*held);
    }
  }
  return outcome;
}

std::optional<Cluster::Held> Cluster::held_by(int pid) {
  std::error_code gone;
  const std::string folder = "/proc/" + std::to_string(pid) + "/fd";
  std::filesystem::directory_iterator entries{folder, gone};
  if (gone) return std::nullopt;
  Held held;
  for (; entries != std::filesystem::directory_iterator{}; entries.increment(gone)) {
    const std::string target = std::filesystem::read_symlink(entries->path(), gone);
    const bool is_memfd = target.starts_with("/memfd:");
    if (is_memfd) ++held.memfds;
    if (is_memfd || !target.starts_with("/")) ++held.descriptors;
  }
  return held;
}

std::optional<int64_t> Cluster::store_used_mib() {
  const Outcome nodes = troupe({"list", "nodes", "-o", "json"});
  boost::system::error_code failed;
  const boost::json::value rows = boost::json::parse(nodes.out, failed);
  if (nodes.status != 0 || failed || !rows.is_array()) return std::nullopt;
  int64_t sum = 0;
  for (const auto& row : rows.get_array()) {
    if (row.at("state").as_string() == "dead") continue;
    sum += row.at("store_used_mib").to_number<int64_t>();
  }
  return sum;
}

// Who was started anew since, or was ended by the test, is not looked at.
void Cluster::expect_nothing_is_held() {
  // What a daemon opens once, when it first needs it; and for a process that still lives.
  constexpr size_t once = 12, memfds_once = 2, of_process = 8;
  for (const auto& [pid, base] : held_) {
    std::optional<Held> held;
    const bool is_well = eventually([&, pid = pid, &base = base] {
      held = held_by(pid);
      if (!held) return true;
      const size_t living = processes().size() - std::min(processes().size(), held_.size());
      return held->descriptors <= base.descriptors + once + living * of_process &&
             held->memfds <= base.memfds + memfds_once + living * of_process;
    });
    EXPECT_TRUE(is_well) << base.daemon << " holds " << held->descriptors << " descriptors, "
                         << held->memfds << " of them memfds; after its start they were "
                         << base.descriptors << " and " << base.memfds;
  }
  std::optional<int64_t> used;
  const bool is_empty = eventually([&] {
    used = store_used_mib();
    return !used || *used == 0;
  });
  EXPECT_TRUE(is_empty) << "the stores still use " << *used << " MiB";
}

Outcome Cluster::down() {
  up_ = false;
  return troupe({"down"});
}

Outcome Cluster::troupe(std::vector<std::string> arguments) {
  return program("troupe", std::move(arguments));
}

Outcome Cluster::program(const std::string& name, std::vector<std::string> arguments,
                         std::chrono::seconds limit) {
  auto path = std::filesystem::path(TROUPE_BIN) / name;
  arguments.insert(arguments.begin(), path.string());
  return run(arguments, variables(), limit);
}

std::vector<int> Cluster::processes() const {
  const std::string mark = "TROUPE_STATE=" + state().string();
  const std::filesystem::path bin = TROUPE_BIN;
  std::vector<int> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (!std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isdigit(c) != 0; })) {
      continue;
    }
    std::error_code gone;
    const auto program = std::filesystem::read_symlink(entry.path() / "exe", gone);
    if (gone || program.parent_path() != std::filesystem::canonical(bin)) continue;
    std::ifstream environment{entry.path() / "environ", std::ios::binary};
    for (std::string variable; std::getline(environment, variable, '\0');) {
      if (variable == mark) {
        found.push_back(std::atoi(name.c_str()));
        break;
      }
    }
  }
  return found;
}

int pid_of(const Cluster& cluster, const std::string& command) {
  for (const int pid : cluster.processes()) {
    std::ifstream arguments{"/proc/" + std::to_string(pid) + "/cmdline", std::ios::binary};
    std::string program, first;
    std::getline(arguments, program, '\0');
    std::getline(arguments, first, '\0');
    if (first == command) return pid;
  }
  return 0;
}

int kills_wanted(int usual) {
  const char* text = std::getenv("TROUPE_KILLS");
  return text != nullptr ? std::atoi(text) : usual;
}

std::map<int, std::string> Cluster::recorded_daemons() const {
  std::ifstream in{state() / "cluster.json"};
  const std::string text{std::istreambuf_iterator<char>{in}, {}};
  boost::system::error_code none;
  const boost::json::value record = boost::json::parse(text, none);
  std::map<int, std::string> daemons;
  if (none) return daemons;
  for (const auto& item : record.at("daemons").as_array()) {
    daemons[item.at("pid").to_number<int>()] = item.at("name").as_string();
  }
  return daemons;
}

int Cluster::recorded_pid(const std::string& daemon) const {
  for (const auto& [pid, name] : recorded_daemons()) {
    if (name == daemon) return pid;
  }
  return 0;
}

std::string Cluster::log_of(const std::string& daemon) const {
  std::ifstream in{state() / "logs" / (daemon + ".log")};
  return {std::istreambuf_iterator<char>{in}, {}};
}

std::string Cluster::describe(const std::string& id, const std::string& key) {
  const Outcome outcome = troupe({"describe", id, "-o", "json"});
  if (outcome.status != 0) return {};
  boost::system::error_code failed;
  const auto value = boost::json::parse(outcome.out, failed);
  if (failed || !value.is_object()) return {};
  const auto* found = value.get_object().if_contains(key);
  if (found == nullptr) return {};
  return found->is_string() ? std::string(found->get_string()) : boost::json::serialize(*found);
}

}  // namespace troupe::test
