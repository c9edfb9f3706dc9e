// Actor processes of this machine: one troupe-actor each, with a socket pair as descriptor 3.
#pragma once

#include <boost/asio/io_context.hpp>
#include <string>

#include "worker/file_watch.h"
#include "worker/process_launcher.h"

namespace troupe::worker {

// A process gets: descriptor 3 (its connection to the worker), no input, its output appended to
// spec.log_path, a process group of its own, no other descriptor, and a small clean environment
// (PATH, HOME, ... and TROUPE_*) plus the spec's. When it ends, its whole group ends.
class PosixLauncher final : public ProcessLauncher {
 public:
  // `program` is the path of troupe-actor. `scope` owns the connections and the watchers: it is
  // stopped before the loop ends, after all processes have been destroyed or have exited.
  PosixLauncher(boost::asio::io_context& loop, Scope& scope, std::string program);

  Result<std::unique_ptr<LaunchedProcess>> launch(const LaunchSpec& spec) override;
  void remove_socket(const std::string& path) override;
  std::unique_ptr<LogWatch> watch_log(const std::string& path,
                                      std::function<void()> written) override;

 private:
  boost::asio::io_context& loop_;
  Scope& scope_;
  std::string program_;
  std::unique_ptr<FileWatches> watches_;  // Made for the first.
};

}  // namespace troupe::worker
