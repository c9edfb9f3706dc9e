// What the processes of this node have noted of what they did, also of those that have ended, and
// what the worker notes itself.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "transport/environment.h"
#include "transport/peer.h"
#include "transport/timeline_memory.h"
#include "worker/options.h"

namespace troupe::worker {

// Notes what the worker did from `began` until now. Nothing is noted without options.timeline.
struct WorkerNote {
  TimelineKind kind = TimelineKind::none;
  std::string name;
  RawId id = {};
  Instant began{};
  uint64_t amount = 0;
  bool has_failed = false;
};
void note(const WorkerOptions& options, const WorkerNote& what);

class Timelines {
 public:
  // `scope` and `options` outlive it.
  Timelines(transport::Environment environment, Scope& scope, const WorkerOptions& options);

  // A process of this node gives the memory of its timeline. Once a process. Errors: denied
  // (another node's, or the memory may shrink), invalid, conflict, exhausted.
  Async<Result<transport::Message>> attach(transport::Message message, transport::CallContext call,
                                           JobId job);
  // It writes no more. What it noted stays.
  void process_gone(ProcessId process);
  // Answers get_timelines: first what this node's clock says (kind "clock"), then one or more
  // messages a process, the worker's own first. `self`: the worker.
  Async<Status> send(transport::Message message, const protocol::Hello& self,
                     transport::OutgoingStream& out);
  size_t living() const { return living_.size(); }
  size_t ended() const { return ended_.size(); }

 private:
  using View = std::shared_ptr<const transport::TimelineView>;
  // Without names and records.
  struct Living {
    protocol::ProcessTimeline about;
    View view;
    bool is_gone = false;
  };
  // With them.
  using Ended = std::shared_ptr<const protocol::ProcessTimeline>;

  Async<void> keep(ProcessId process);
  void forget_oldest();
  Async<Status> send_process(protocol::ProcessTimeline about, TimelineCopy copy,
                             transport::OutgoingStream& out);

  transport::Environment environment_;
  Scope& scope_;
  const WorkerOptions& options_;
  std::map<ProcessId, Living> living_;
  std::deque<Ended> ended_;  // The oldest first.
  size_t ended_bytes_ = 0;
};

}  // namespace troupe::worker
