// A real cluster in a temporary state directory, and commands run against it.
#pragma once

#include <chrono>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace troupe::test {

struct Outcome {
  int status = -1;  // Exit status, or 128 + signal.
  std::string out;
  std::string err;
};

// Runs a program to its end; `variables` are NAME=VALUE. A program that outlives `limit` is killed.
Outcome run(const std::vector<std::string>& command, const std::vector<std::string>& variables = {},
            std::chrono::seconds limit = std::chrono::seconds(120));

class Cluster {
 public:
  // Makes the state directory; starts nothing yet.
  Cluster();
  // Checks that the daemons hold no more than after their start and `troupe down`s the cluster, if
  // it is up; then that nothing is left: no process, no socket.
  ~Cluster();

  // `troupe up` with these further arguments.
  Outcome up(const std::vector<std::string>& arguments = {"--workers", "2", "--gateway-port", "0"});
  Outcome down();
  // `troupe ARGUMENTS` with the cluster's state directory.
  Outcome troupe(std::vector<std::string> arguments);
  // A program of build/bin or the tests' programs. As run().
  Outcome program(const std::string& name, std::vector<std::string> arguments = {},
                  std::chrono::seconds limit = std::chrono::seconds(120));

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path state() const { return folder_ / "state"; }
  std::vector<std::string> variables() const;
  // Pids of all processes that were started for this cluster and still run.
  std::vector<int> processes() const;
  // A value of `troupe describe ID -o json`, by its key; empty if there is none.
  std::string describe(const std::string& id, const std::string& key);
  // The pid of a daemon by its name ("worker-1"), as the record of what runs says; 0: there is
  // none.
  int recorded_pid(const std::string& daemon) const;
  std::string log_of(const std::string& daemon) const;

 private:
  struct Held {
    std::string daemon;
    size_t descriptors = 0;  // But for files, which a head's store opens as it likes.
    size_t memfds = 0;       // Among these.
  };
  // Of a process; none if it is gone.
  static std::optional<Held> held_by(int pid);
  // How much the workers' stores use, in MiB; none if nobody tells.
  std::optional<int64_t> store_used_mib();
  std::map<int, std::string> recorded_daemons() const;
  void expect_nothing_is_held();

  std::filesystem::path folder_;
  bool up_ = false;
  std::map<int, Held> held_;  // After the start, by pid.
};

// The pid of the process of this cluster that runs `troupe COMMAND`; 0 if there is none.
int pid_of(const Cluster& cluster, const std::string& command);

// How often a test kills something: TROUPE_KILLS, or `usual`.
int kills_wanted(int usual);

// Asks again until `condition` holds; false after `limit`. For what the outside shows but does not
// signal.
template <class Condition>
bool eventually(Condition condition, std::chrono::seconds limit = std::chrono::seconds(20));

// Waits for a moment between two looks (poll without descriptors).
void pause_between_looks();

template <class Condition>
bool eventually(Condition condition, std::chrono::seconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    pause_between_looks();
  }
  return true;
}

}  // namespace troupe::test
