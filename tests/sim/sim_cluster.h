// A whole cluster in one thread: a head, workers, a driver, and the actor processes that the
// workers launch. Real but for network, clock, randomness, store and launcher.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/client.h"
#include "head/head.h"
#include "metadata/map_store.h"
#include "tests/sim/cluster_checks.h"
#include "tests/sim/sim_process.h"
#include "tests/sim/simulation.h"
#include "worker/worker.h"

namespace troupe::sim {

struct ClusterOptions {
  size_t workers = 3;
  int64_t cpu_milli = 4000;  // Of each worker.
  bool lazy_sync = false;    // A disk that loses what it promised: for the checks' own test.
};

class SimCluster {
 public:
  SimCluster(Simulation& simulation, const ClusterOptions& options);
  ~SimCluster();

  // Starts all and waits until the workers are registered and the job has begun. False: it did not
  // come up. Without faults it does.
  bool start();
  // Ends the job and waits until nothing of it is left; what is left is a violation.
  void end_job();
  // Stops all; nothing may be left running.
  void stop();

  client::Client& driver() { return *driver_; }
  JobId job() const { return job_; }
  ClusterChecks& checks() { return checks_; }
  MapStore& store() { return store_; }

  // Kills a worker and its processes at once, as the loss of its machine does.
  void kill_worker(size_t index);
  void start_worker(size_t index);
  // Kills the head; its disk keeps what was synced.
  void kill_head();
  void start_head();

  // Asks the head until what it says and what really runs agree and no lease is left; what still
  // differs at the limit is a violation.
  void settle(Duration limit);

 private:
  struct Node {
    NodeId id;
    SimHost* host = nullptr;
    std::unique_ptr<SimLauncher> launcher;
    std::unique_ptr<worker::Worker> worker;
  };
  struct Seen {  // One look at the head's view.
    std::vector<protocol::ActorInfo> actors;
    std::vector<protocol::NodeInfo> nodes;
    protocol::ClusterInfo cluster;
    std::vector<protocol::PlacementGroupInfo> groups;
  };

  // The zombie of a killed component: unwinds without a network, then goes.
  template <class Component>
  Async<void> bury(std::shared_ptr<Component> component) {
    co_await component->stop();
  }
  Async<void> run_head(head::Head* head);
  Async<void> run_worker(worker::Worker* worker);
  Async<void> begin_job(bool& begun);
  Async<void> look(std::shared_ptr<Seen> seen, std::shared_ptr<bool> done);
  Async<void> finish_job();
  // The first difference between the head's view and the processes; empty if there is none.
  std::string difference(const Seen& seen) const;
  Async<void> stop_all();

  Simulation& simulation_;
  const ClusterOptions options_;
  ClusterId cluster_;
  JobId job_;
  MapStore store_;
  ClusterChecks checks_;
  SimHost* head_host_ = nullptr;
  std::unique_ptr<head::Head> head_;
  std::vector<Node> nodes_;
  SimHost* driver_host_ = nullptr;
  std::unique_ptr<client::Client> driver_;
  uint32_t heads_started_ = 0;
  bool stopping_ = false;
};

}  // namespace troupe::sim
