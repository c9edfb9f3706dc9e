// Files that are watched for writes, by inotify. An adapter.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>

#include "worker/process_launcher.h"

namespace troupe::worker {

class FileWatches {
 public:
  // `scope` owns the reading of what the system says.
  FileWatches(boost::asio::io_context& loop, Scope& scope);
  ~FileWatches();

  // The callback runs on the loop, and not after the watch is gone.
  std::unique_ptr<LogWatch> watch(const std::string& path, std::function<void()> written);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace troupe::worker
