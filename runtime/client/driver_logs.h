// The lines that a job's processes write, at the job's driver: printed, or given to the program.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/log_repeats.h"

namespace troupe::client {

// Takes lines one batch at a time, on any thread, and may block: the workers wait for it.
using LogSink = std::function<void(const protocol::JobLogs&)>;

// On the client's loop; make it before the client starts, and stop it before the client stops.
class DriverLogs {
 public:
  struct Options {
    LogSink sink;                // Empty: standard error.
    bool shows_repeats = false;  // Every line as it comes.
  };
  DriverLogs(Client& client, Options options);
  ~DriverLogs();

  // Waits until what the job's processes have written is here, or `budget` is over; then shows what
  // was held back. A standard error that nobody reads does not hold it up for longer.
  Async<void> stop(Duration budget);

 private:
  struct Printer;

  Async<Result<protocol::Empty>> take(protocol::JobLogs batch, transport::CallContext context);
  std::vector<std::string> lines_of(const protocol::JobLogs& batch);
  void show_repeats_later();
  Async<void> show_repeats();
  Async<void> print(std::vector<std::string> lines);

  Client& client_;
  const Options options_;
  LogRepeats repeats_;
  bool waits_ = false;  // A coroutine, for repetitions to become due.
  std::shared_ptr<Printer> printer_;
};

}  // namespace troupe::client
