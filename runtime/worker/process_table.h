// All processes that this worker started and that have not ended.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "worker/hosted_process.h"
#include "worker/job_environments.h"
#include "worker/options.h"

namespace troupe::worker {

class ProcessTable {
 public:
  // `scope`, `launcher`, `service` and `options` outlive the table. `on_exit` is called once for
  // each process that ended, when it is no longer in the table.
  ProcessTable(transport::Environment environment, Scope& scope, ProcessLauncher& launcher,
               const WorkerOptions& options, transport::Service& service,
               std::function<void(HostedProcess&)> on_exit);

  // What this worker says first on each connection; set when it listens.
  protocol::Hello hello;

  struct Request {
    JobId job;
    std::vector<uint32_t> devices;  // GPUs that it may see, as this node numbers them.
    std::vector<protocol::NamedValue> environment;  // Its own; goes before that of its job.
    std::string module;                             // What it will load.
    Surroundings surroundings = {};
  };
  // Errors: those of ProcessLauncher; unavailable (the worker stops).
  Result<HostedProcess::Pointer> launch(const Request& request);
  // Notes that a process took from `began` until now to be ready for its work.
  void note_started(const std::string& what, Instant began, bool has_failed) const;
  // The same of an actor, in a process of its own or in another's.
  void note_actor(ActorId actor, const std::string& what, uint32_t incarnation, Instant began,
                  bool has_failed) const;
  HostedProcess::Pointer find(ProcessId process) const;
  std::vector<HostedProcess::Pointer> all() const;
  size_t size() const { return processes_.size(); }
  bool has_any_of(JobId job) const;
  transport::Service& service() { return service_; }

  // Launches nothing more, and returns when every process has ended.
  Async<void> end_all(Duration grace);

 private:
  Async<void> watch(HostedProcess::Pointer process);
  static Async<void> end_one(HostedProcess::Pointer process, Duration grace);

  transport::Environment environment_;
  Scope& scope_;
  ProcessLauncher& launcher_;
  const WorkerOptions& options_;
  transport::Service& service_;
  std::function<void(HostedProcess&)> on_exit_;
  std::map<ProcessId, HostedProcess::Pointer> processes_;
  Event changed_;
  bool stopping_ = false;
};

}  // namespace troupe::worker
