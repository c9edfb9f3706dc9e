// The output of this node's actor processes, for those who read it.
#pragma once

#include <deque>
#include <map>
#include <string>

#include "transport/environment.h"
#include "transport/peer.h"
#include "worker/hosted_process.h"
#include "worker/log_forwarder.h"
#include "worker/options.h"

namespace troupe::worker {

// The last bytes of a file, from the start of a line where one begins among them; empty if it
// cannot be read. Blocks.
std::string read_log_tail(const std::string& path, size_t bytes_max);

class Logs {
 public:
  Logs(transport::Environment environment, Scope& scope, const WorkerOptions& options,
       LogForwarder& forwarder);

  // `name` is for people; `driver`, if there is one, is sent what the process writes.
  void process_started(const HostedProcess::Pointer& process, ActorId actor, std::string name,
                       const std::optional<protocol::ProcessAddress>& driver);
  // A process that started hosts this light actor, too.
  void hosts(ProcessId process, ActorId actor) { newest_[actor] = process; }
  // Its log stays readable, until those that ended later are too many or too large: then its file
  // is removed.
  void process_ended(ProcessId process);

  // A stream of LogChunk from the given offset; with follow until the process has ended.
  // An actor's log is that of its newest process. Errors: not_found.
  Async<Status> read(transport::Message request, transport::CallContext call,
                     transport::OutgoingStream& out);

 private:
  struct Entry {
    std::string path;
    ActorId actor;
    bool running = true;
    uint64_t bytes = 0;  // Of one that has ended.
  };
  Async<void> note_ended(ProcessId process);
  void forget_oldest();
  Result<ProcessId> resolve(const protocol::ReadLog& request) const;
  bool is_running(ProcessId process) const;

  transport::Environment environment_;
  Scope& scope_;
  const WorkerOptions& options_;
  LogForwarder& forwarder_;
  std::map<ProcessId, Entry> entries_;
  std::map<ActorId, ProcessId> newest_;
  std::deque<ProcessId> ended_;  // The oldest first.
  uint64_t ended_bytes_ = 0;
};

}  // namespace troupe::worker
