// A whole cluster in one thread: one head or several, workers, a driver, and the actor processes
// that the workers launch. Real but for network, clock, randomness, store, launcher, and the
// service in which several heads agree.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/client.h"
#include "tests/sim/cluster_checks.h"
#include "tests/sim/sim_head.h"
#include "tests/sim/sim_process.h"
#include "tests/sim/simulation.h"
#include "worker/worker.h"

namespace troupe::sim {

struct ClusterOptions {
  size_t heads = 1;  // Of several one leads.
  size_t workers = 3;
  int64_t cpu_milli = 4000;  // Of each worker.
  bool lazy_sync = false;    // A disk that loses what it promised: for the checks' own test.
  bool main_driver = true;   // Of start().
};

// A program of its own: the client of a job, on one of the machines. It dies with its machine's
// worker.
struct SimDriver {
  size_t machine = 0;
  JobId job;
  SimHost* host = nullptr;
  std::unique_ptr<client::Client> client;

  bool is_alive() const { return host->is_alive(); }
};

class SimCluster final : HeadObserver {
 public:
  SimCluster(Simulation& simulation, const ClusterOptions& options);
  ~SimCluster() override;

  // Starts all and waits until all heads are in sync, the workers are registered and the job has
  // begun. False: it did not come up. Without faults it does.
  bool start();
  // Ends the job and waits until nothing of it is left; what is left is a violation.
  void end_job();
  // Stops all; nothing may be left running.
  void stop();

  // The main driver, which start() makes.
  client::Client& driver() { return *main_driver_->client; }
  JobId job() const { return main_driver_->job; }
  ClusterChecks& checks() { return checks_; }
  size_t workers() const { return nodes_.size(); }
  static std::string machine_of(size_t index);

  size_t heads() const { return heads_.size(); }
  SimHead& head(size_t index = 0) { return *heads_[index]; }
  // The only one, if it has started; of several the one that leads. Null: none.
  SimHead* leader();
  // Called with each of several heads that begins to lead.
  void on_lead(std::function<void(SimHead&)> hook) { on_lead_ = std::move(hook); }
  // What several heads agree on.
  const CoordinatorModel& coordinator() const { return coordinator_; }

  // Kills a worker and its processes at once, as the loss of its machine does; silently: nobody is
  // told.
  void kill_worker(size_t index, bool silently = false);
  void start_worker(size_t index);
  bool is_worker_up(size_t index) const { return nodes_[index].worker != nullptr; }
  bool may_start_worker(size_t index) const {
    const Node& node = nodes_[index];
    return !node.worker && !node.stopping && !node.abandoned;
  }
  SimHost& worker_host(size_t index) { return *nodes_[index].host; }
  // In good order; returns when it has ended. False: it was not up.
  Async<bool> stop_worker(size_t index);
  // It stays down: settle() expects nothing of it.
  void abandon_worker(size_t index) { nodes_[index].abandoned = true; }

  LaunchFaults& launch_faults() { return launch_faults_; }

  // A driver that has not started, with a job of its own that has not begun.
  std::shared_ptr<SimDriver> make_driver(size_t machine);
  // Starts it and begins its job.
  Async<bool> begin(std::shared_ptr<SimDriver> driver);
  void kill_driver(const std::shared_ptr<SimDriver>& driver);
  // In good order; returns when it has ended.
  Async<void> stop_driver(std::shared_ptr<SimDriver> driver);
  // Of make_driver(), alive.
  std::vector<std::shared_ptr<SimDriver>> drivers() const;

  // Asks the head until what it says and what really runs agree and no lease is left; what still
  // differs at the limit is a violation.
  void settle(Duration limit);
  struct Seen {  // One look at the head's view.
    std::vector<protocol::ActorInfo> actors;
    std::vector<protocol::NodeInfo> nodes;
    protocol::ClusterInfo cluster;
    std::vector<protocol::PlacementGroupInfo> groups;
    std::vector<protocol::JobInfo> jobs;
  };
  // What settle() saw last.
  const Seen& seen() const { return seen_; }
  // What else must hold before the cluster has settled, by what seen() says.
  void also_settled(std::function<std::vector<std::string>()> broken) {
    also_settled_ = std::move(broken);
  }

 private:
  struct Node {
    bool abandoned = false;
    bool stopping = false;
    uint64_t epoch_seen = 0;
    NodeId id;
    SimHost* host = nullptr;
    std::unique_ptr<SimLauncher> launcher;
    std::unique_ptr<worker::Worker> worker;
  };

  // The zombie of a killed component: unwinds without a network, then goes.
  template <class Component>
  Async<void> bury(std::shared_ptr<Component> component) {
    co_await component->stop();
  }
  bool has_several_heads() const { return heads_.size() > 1; }
  void head_began(uint64_t epoch) override;
  void head_violates(std::string what) override { checks_.violation(std::move(what)); }
  void lead_changed(const head::LeadRecord& record);
  struct Remains {  // Of a worker. In this order: the worker uses the launcher.
    std::unique_ptr<SimLauncher> launcher;
    std::unique_ptr<worker::Worker> worker;
    Async<void> stop() { return worker->stop(); }
  };
  std::shared_ptr<Remains> take_apart(Node& node);
  void end_processes(const Node& node, const std::string& reason);
  void check();
  Async<void> run_worker(worker::Worker* worker);
  Async<void> begin_into(std::shared_ptr<SimDriver> driver, bool& begun);
  Async<void> look(std::shared_ptr<Seen> seen, std::shared_ptr<bool> done);
  Async<void> look_through(std::shared_ptr<SimDriver> eyes, std::shared_ptr<Seen> seen,
                           std::shared_ptr<bool> done);
  Async<void> finish_job();
  // The first difference between the head's view and the processes; empty if there is none.
  std::string difference(const Seen& seen) const;
  // The same between the heads.
  std::string difference_of_heads();
  Async<void> stop_all();

  Simulation& simulation_;
  const ClusterOptions options_;
  ClusterId cluster_;
  CoordinatorModel coordinator_;
  ClusterChecks checks_;
  LaunchFaults launch_faults_;
  std::vector<std::unique_ptr<SimHead>> heads_;
  uint64_t epoch_ = 0;       // Of the latest head that started; of several: of the last that led.
  std::string last_leader_;  // Of several.
  uint64_t looked_at_ = 0;   // The last of whom on_lead_ heard.
  std::function<void(SimHead&)> on_lead_;
  std::vector<Node> nodes_;
  std::shared_ptr<SimDriver> main_driver_;
  std::vector<std::weak_ptr<SimDriver>> drivers_;
  Seen seen_;
  std::function<std::vector<std::string>()> also_settled_;
  uint32_t drivers_made_ = 0;
  bool stopping_ = false;
};

}  // namespace troupe::sim
