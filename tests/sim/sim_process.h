// A simulated actor process: a real client, and functions in the place of a plugin.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "client/client.h"
#include "tests/sim/simulation.h"
#include "worker/process_launcher.h"

namespace troupe::sim {

class SimProcess;

// Who looks on: the cluster, which checks its invariants on what processes really do.
class ProcessObserver {
 public:
  virtual ~ProcessObserver() = default;
  virtual void process_began(const std::shared_ptr<SimProcess>& process) = 0;
  virtual void process_ended(SimProcess& process) = 0;
  virtual void call_ran(SimProcess& process, const protocol::Invoke& call) = 0;
};

// Methods: "echo" returns its argument, "read" the value of the ref that is its argument,
// "count" the number of calls so far, "slow" takes a while,
// "fail" fails, "crash" ends the process. An actor of class "broken" does not start.
class SimProcess final : public client::InvocationHandler,
                         public std::enable_shared_from_this<SimProcess> {
 public:
  SimProcess(Simulation& simulation, SimHost& host, SimHost& parent, const worker::LaunchSpec& spec,
             uint32_t pid, std::unique_ptr<transport::Connection> connection,
             ProcessObserver& observer);

  ProcessId id() const { return id_; }
  NodeId node() const { return node_; }
  JobId job() const { return job_; }
  uint32_t pid() const { return pid_; }
  bool is_alive() const { return !ended_; }
  SimHost& host() const { return host_; }
  // What it was told to run; nil before.
  const protocol::AssignActor& actor() const { return actor_; }
  // Where it runs; of a slot's process, as of its latest lease.
  const protocol::PlacementSpec& placement() const { return placement_; }
  // It answered its assignment, and so may be called.
  bool is_serving() const { return serving_; }

  void begin();
  // As kill -9: the network sees it at once, the parent a moment later.
  void end(std::string reason);
  const std::string& exit_reason() const { return exit_reason_; }
  // Who is told of the exit; null: nobody any more.
  void set_parent(std::function<void()> exited) { exited_ = std::move(exited); }

  Async<Result<protocol::InvokeReply>> invoke(protocol::Invoke call,
                                              transport::CallContext context) override;
  Async<Status> invoke_stream(protocol::Invoke call, transport::CallContext context,
                              transport::OutgoingStream& out) override;
  protocol::Explanations explain_calls(const protocol::ExplainCalls& asked) override;
  std::vector<TaskId> calls_of(std::span<client::BlockedWait* const> waits) override {
    return std::vector<TaskId>(waits.size());
  }

 private:
  static Async<void> live(std::shared_ptr<SimProcess> self);
  static Async<void> bury(std::shared_ptr<SimProcess> self);
  Async<Result<protocol::ProcessStarted>> assign_actor(protocol::AssignActor request,
                                                       transport::CallContext context);
  Async<Result<protocol::ProcessStarted>> assign_slot(protocol::AssignSlot request,
                                                      transport::CallContext context);
  Async<Result<protocol::Empty>> stay_until(protocol::StayUntil request,
                                            transport::CallContext context);
  Async<Result<protocol::Empty>> stop_process(protocol::StopProcess request,
                                              transport::CallContext context);
  Async<Result<protocol::ProcessStarted>> answer_when_ready(Instant deadline);

  Simulation& simulation_;
  SimHost& host_;
  SimHost& parent_;
  const ProcessId id_;
  const NodeId node_;
  JobId job_;
  const uint32_t pid_;
  ProcessObserver& observer_;
  client::Client client_;
  Event ready_;
  protocol::AssignActor actor_;
  protocol::PlacementSpec placement_;
  bool hosts_slot_ = false;
  bool serving_ = false;
  uint64_t calls_ = 0;
  bool ended_ = false;
  TimerClock::TimerId last_timer_ = 0;  // As the kernel's, which kills it.
  std::string exit_reason_;
  std::function<void()> exited_;
};

// How often a launch fails, or takes up to slow_max.
struct LaunchFaults {
  double fail = 0;
  double slow = 0;
  Duration slow_max = std::chrono::seconds(4);
};

// Launches simulated processes on one machine. Belongs to one worker.
class SimLauncher final : public worker::ProcessLauncher {
 public:
  SimLauncher(Simulation& simulation, SimHost& worker, ProcessObserver& observer,
              const LaunchFaults& faults)
      : simulation_(simulation), worker_(worker), observer_(observer), faults_(faults) {}

  Result<std::unique_ptr<worker::LaunchedProcess>> launch(const worker::LaunchSpec& spec) override;
  void remove_socket(const std::string&) override {}

 private:
  Simulation& simulation_;
  SimHost& worker_;
  ProcessObserver& observer_;
  const LaunchFaults& faults_;
};

}  // namespace troupe::sim
