// Sends what the processes of a job write to the job's driver: one connection and one request at a
// time for each job, so that a driver that prints slowly holds up its own lines alone.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "transport/environment.h"
#include "transport/peer.h"
#include "worker/job_environments.h"
#include "worker/log_reader.h"
#include "worker/options.h"
#include "worker/process_launcher.h"

namespace troupe::worker {

// "hello_task" of ".../libhello_task_module.so".
std::string program_of(const std::string& module);

struct LoggedProcess {
  ProcessId process;
  ActorId actor;
  JobId job;
  std::function<uint32_t()> pid;  // It has one once it has started.
  std::string name;               // For people.
  std::string path;               // Its log.
};

// Nothing runs while nobody writes: the system says when a log grows.
class LogForwarder {
 public:
  // All outlive it; `launcher` watches the files, `service` answers what drivers ask over these
  // connections.
  LogForwarder(transport::Environment environment, Scope& scope, const WorkerOptions& options,
               ProcessLauncher& launcher, transport::Service& service,
               JobEnvironments& environments);

  // What this worker says first on each connection; set when it listens.
  protocol::Hello hello;

  void process_started(LoggedProcess process, protocol::ProcessAddress driver);
  // Its last lines still go.
  void process_ended(ProcessId process);
  // Returns once what the job's processes have written so far, also of a line without an end, has
  // been sent, or was given up.
  Async<void> flush(JobId job, Instant deadline);
  void job_ended(JobId job);

 private:
  struct Source {
    explicit Source(LoggedProcess who) : process(std::move(who)), reader(process.path) {}
    const LoggedProcess process;
    LogReader reader;
    std::unique_ptr<LogWatch> watch;
    bool grew = true;  // Or may have.
    bool ended = false;
    uint64_t lost = 0;  // Lines that were read and could not be sent.
  };
  using SourcePointer = std::shared_ptr<Source>;
  struct Stream {
    explicit Stream(const Executor& loop) : hurry(loop), progress(loop) {}
    JobId job;
    protocol::ProcessAddress driver;
    std::shared_ptr<transport::Peer> peer;
    std::map<ProcessId, SourcePointer> sources;
    bool sends = false;      // A coroutine does.
    size_t flushes = 0;      // That wait.
    uint64_t pass = 0;       // Through all sources, the latest that began,
    uint64_t pass_told = 0;  // and the latest that left nothing behind.
    Instant not_before{};    // The next pass.
    Event hurry;
    Event progress;
  };
  using StreamPointer = std::shared_ptr<Stream>;

  void send_soon(const StreamPointer& stream);
  Async<void> send(StreamPointer stream);
  // One pass; `complete` turns false if something is left.
  Async<protocol::JobLogs> gather(StreamPointer stream, bool& complete);
  Async<Status> deliver(StreamPointer stream, const protocol::JobLogs& batch);
  Async<Result<std::shared_ptr<transport::Peer>>> connect(protocol::ProcessAddress driver);
  Async<Status> find_driver(StreamPointer stream);
  Async<void> look_from_time_to_time(StreamPointer stream, SourcePointer source);

  transport::Environment environment_;
  Scope& scope_;
  const WorkerOptions& options_;
  ProcessLauncher& launcher_;
  transport::Service& service_;
  JobEnvironments& environments_;
  std::map<JobId, StreamPointer> streams_;
  std::map<ProcessId, StreamPointer> stream_of_;
};

}  // namespace troupe::worker
