// Starts actor processes. PosixLauncher is the real one; the simulator has its own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "protocol/messages.h"
#include "transport/network.h"

namespace troupe::worker {

struct LaunchSpec {
  ProcessId process;
  NodeId node;
  std::vector<protocol::NamedValue> environment;  // Of a name given twice the last value counts.
  std::string log_path;                           // Gets its output, appended.
  std::string working_folder;                     // Where it starts; empty: as the worker.
};

// One process. Destroying it kills the process if it still runs.
class LaunchedProcess {
 public:
  virtual ~LaunchedProcess() = default;
  // Set when it has a number and a connection, or has failed to start: then it has also exited.
  virtual Event& started() = 0;
  virtual uint32_t pid() const = 0;
  // The inherited connection, once, after the start.
  virtual std::unique_ptr<transport::Connection> take_connection() = 0;
  // Set when the process has ended and was reaped.
  virtual Event& exited() = 0;
  // "exited with status 3", "killed by signal 9 (Killed)", "was not started (...)"; empty while it
  // runs.
  virtual std::string exit_reason() const = 0;
  virtual void terminate() = 0;  // Asks (SIGTERM).
  virtual void kill() = 0;       // Does not ask (SIGKILL).
};

// Says when a file was written to. Costs nothing while it is not.
class LogWatch {
 public:
  virtual ~LogWatch() = default;
  // The next write calls back, once, on the loop. False: the system watches no more files.
  virtual bool arm() = 0;
};

class ProcessLauncher {
 public:
  virtual ~ProcessLauncher() = default;
  // Errors: not_found (no such program), exhausted (no processes, descriptors or memory left).
  virtual Result<std::unique_ptr<LaunchedProcess>> launch(const LaunchSpec& spec) = 0;
  // What a process that was killed left behind; nothing if it is gone already.
  virtual void remove_socket(const std::string& path) = 0;
  // Null: this one cannot. Goes before the launcher does.
  virtual std::unique_ptr<LogWatch> watch_log(const std::string& path,
                                              std::function<void()> written) {
    (void)path, (void)written;
    return nullptr;
  }
};

}  // namespace troupe::worker
