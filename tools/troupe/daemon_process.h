// Starting and ending daemons: processes that say when they are ready, or why they are not.
#pragma once

#include <boost/json/value.hpp>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/file_descriptor.h"
#include "base/status.h"
#include "troupe/state_folder.h"

namespace troupe::tools {

struct StartedDaemon {
  DaemonRecord record;
  FileDescriptor ready;  // Where it writes one line of JSON.
};

// Starts this very executable with `arguments` as a daemon in a session of its own, its output in
// `log_path`. It finds the writing end of its ready pipe in TROUPE_READY_FD, and holds `lock` (if
// open) for as long as it runs.
Result<StartedDaemon> start_daemon(const std::string& kind, const std::string& name,
                                   std::vector<std::string> arguments, const std::string& log_path,
                                   const FileDescriptor& lock);
// Its line. Errors: what it says went wrong, deadline_exceeded, internal (it ended without a word),
// cancelled (Ctrl-C).
Result<boost::json::value> wait_ready(StartedDaemon& daemon, const std::string& log_path,
                                      Duration budget);
// For the daemon: tells the starter.
void report_ready(const boost::json::value& facts);
void report_failure(const Error& failure);

bool is_running(const DaemonRecord& daemon);
// SIGTERM, then SIGKILL after `grace`, all of them at once. Returns the names of those that had to
// be killed.
std::vector<std::string> end_daemons(const std::vector<DaemonRecord>& daemons, Duration grace);

// Whether Ctrl-C (or SIGTERM) came; from then on waits return early.
void watch_interrupts();
bool was_interrupted();

}  // namespace troupe::tools
