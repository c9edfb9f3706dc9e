// Actor processes of this machine: one troupe-actor each, with a socket pair as descriptor 3.
#pragma once

#include <boost/asio/io_context.hpp>
#include <string>

#include "worker/file_watch.h"
#include "worker/fork_client.h"
#include "worker/process_launcher.h"

namespace troupe::worker {

struct WatchedProcess;

// How a process comes to be. fork: a fork server makes it, which takes a fifth of the time; those
// whose own environment has variables that are read when libraries are loaded (LD_PRELOAD,
// MALLOC_...) are executed all the same.
enum class ProcessStart : uint8_t { execute, fork };

// Removes the sockets of processes in `folder` that nobody has open any more and that are at least
// so old: those of a worker that was killed have nobody else who does it. Returns how many. Blocks.
size_t remove_dead_sockets(const std::string& folder, Duration age_least);

// A process gets: descriptor 3 (its connection to the worker), no input, its output appended to
// spec.log_path, a process group of its own, no other descriptor, and a small clean environment
// (PATH, HOME, ... and TROUPE_*) plus the spec's. When it ends, its whole group ends.
class PosixLauncher final : public ProcessLauncher {
 public:
  // `program` is the path of troupe-actor. `scope` owns the connections, the watchers and the fork
  // server: it is stopped before this goes and before the loop ends, after all processes have been
  // destroyed or have exited.
  PosixLauncher(boost::asio::io_context& loop, Scope& scope, std::string program,
                ProcessStart how = ProcessStart::execute);

  // Starts the fork server now, not when the first process is launched.
  void prepare();

  Result<std::unique_ptr<LaunchedProcess>> launch(const LaunchSpec& spec) override;
  void remove_socket(const std::string& path) override;
  std::unique_ptr<LogWatch> watch_log(const std::string& path,
                                      std::function<void()> written) override;

 private:
  Status start_fork_server();
  // The two ways to start a process. fork: false if it cannot be asked for now.
  Status start(const LaunchSpec& spec, const std::shared_ptr<WatchedProcess>& watched);
  bool fork(const LaunchSpec& spec, const std::shared_ptr<WatchedProcess>& watched);

  boost::asio::io_context& loop_;
  Scope& scope_;
  std::string program_;
  bool forks_;
  std::unique_ptr<ForkClient> fork_server_;
  std::unique_ptr<FileWatches> watches_;  // Made for the first.
};

}  // namespace troupe::worker
