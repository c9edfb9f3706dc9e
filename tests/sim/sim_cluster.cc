#include "tests/sim/sim_cluster.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

namespace troupe::sim {

using namespace std::chrono_literals;
using protocol::Empty;
using transport::Endpoint;
using transport::Method;
using transport::Role;

namespace {

constexpr uint16_t head_port = 7000;
constexpr const char* head_address = "10.0.0.1";

Endpoint head_endpoint() {
  return {"", head_address, head_port};
}

std::string machine_of(size_t index) {
  return fmt::format("machine-{}", index);
}
std::string folder_of(size_t index) {
  return fmt::format("/simulated/{}", index);
}

// Short budgets: a frame that the network drops is lost for good here, where a real connection
// would send it again.
head::HeadOptions head_options(ClusterId cluster) {
  head::HeadOptions options;
  options.cluster = cluster;
  options.version = "sim";
  options.listen = {head_endpoint()};
  options.actor_start_budget = 3s;
  options.slot_start_budget = 3s;
  options.stop_grace = 500ms;
  options.backoff_max = 2s;
  return options;
}

worker::WorkerOptions worker_options(ClusterId cluster, NodeId node, size_t index,
                                     int64_t cpu_milli) {
  worker::WorkerOptions options;
  options.node = node;
  options.name = fmt::format("worker-{}", index);
  options.cluster = cluster;
  options.head = head_endpoint();
  options.worker_socket = folder_of(index) + "/worker.sock";
  options.host = fmt::format("10.0.1.{}", index);
  options.socket_folder = folder_of(index);
  options.log_folder = folder_of(index);
  options.total = {{"cpu", cpu_milli}};
  options.store_capacity_bytes = 1 << 20;
  options.version = "sim";
  return options;
}

}  // namespace

SimCluster::SimCluster(Simulation& simulation, const ClusterOptions& options)
    : simulation_(simulation),
      options_(options),
      cluster_(ClusterId::random(simulation.random())),
      job_(JobId::random(simulation.random())),
      store_(MapOptions{cluster_, options.lazy_sync}),
      checks_(simulation, options.cpu_milli) {
  nodes_.resize(options_.workers);
  for (Node& node : nodes_) node.id = NodeId::random(simulation.random());
  simulation_.on_step([this] { checks_.check(); });
}

SimCluster::~SimCluster() {
  stop();
  simulation_.on_step(nullptr);
}

Async<void> SimCluster::run_head(head::Head* head) {
  const Status started = co_await head->start();
  if (!started) checks_.violation("the head does not start: " + started.error().to_string());
}

Async<void> SimCluster::run_worker(worker::Worker* worker) {
  const Status started = co_await worker->start();
  if (!started) checks_.violation("a worker does not start: " + started.error().to_string());
}

void SimCluster::start_head() {
  transport::PeerIdentity identity;
  identity.role = Role::head;
  identity.name = "head";
  head_host_ = &simulation_.network().add_host(
      {fmt::format("head-{}", ++heads_started_), "machine-head", identity});
  head_ = std::make_unique<head::Head>(simulation_.environment(*head_host_), store_,
                                       head_options(cluster_));
  spawn(simulation_.scope(), run_head(head_.get()));
}

void SimCluster::kill_head() {
  simulation_.network().kill(*head_host_);
  store_.crash();
  spawn(simulation_.scope(), bury(std::shared_ptr<head::Head>(std::move(head_))));
}

void SimCluster::start_worker(size_t index) {
  Node& node = nodes_[index];
  transport::PeerIdentity identity;
  identity.role = Role::node;
  identity.name = node.id.to_string();
  node.host = &simulation_.network().add_host(
      {fmt::format("worker-{}", index), machine_of(index), identity});
  node.launcher = std::make_unique<SimLauncher>(simulation_, *node.host, checks_);
  node.worker = std::make_unique<worker::Worker>(
      simulation_.environment(*node.host), *node.launcher,
      worker_options(cluster_, node.id, index, options_.cpu_milli));
  spawn(simulation_.scope(), run_worker(node.worker.get()));
}

void SimCluster::kill_worker(size_t index) {
  Node& node = nodes_[index];
  simulation_.network().kill(*node.host);
  std::vector<std::shared_ptr<SimProcess>> own;
  for (const auto& [id, process] : checks_.processes()) {
    if (process->node() == node.id) own.push_back(process);
  }
  for (const auto& process : own) process->end("its machine is lost");
  struct Remains {  // In this order: the worker uses the launcher.
    std::unique_ptr<SimLauncher> launcher;
    std::unique_ptr<worker::Worker> worker;
    Async<void> stop() { return worker->stop(); }
  };
  auto remains = std::make_shared<Remains>();
  remains->launcher = std::move(node.launcher);
  remains->worker = std::move(node.worker);
  spawn(simulation_.scope(), bury(std::move(remains)));
}

bool SimCluster::start() {
  start_head();
  for (size_t i = 0; i < nodes_.size(); ++i) start_worker(i);
  const bool registered = simulation_.run_until(
      [this] {
        return std::all_of(nodes_.begin(), nodes_.end(),
                           [](const Node& node) { return node.worker->head().is_registered(); });
      },
      10s);
  if (!registered) return false;
  transport::PeerIdentity identity = nodes_[0].host->identity();
  driver_host_ = &simulation_.network().add_host({"driver", machine_of(0), identity});
  client::ClientOptions options;
  options.kind = "driver";
  options.process = ProcessId::random(simulation_.random());
  options.job = job_;
  options.worker.unix_path = folder_of(0) + "/worker.sock";
  driver_ =
      std::make_unique<client::Client>(simulation_.environment(*driver_host_), std::move(options));
  bool begun = false;
  if (!simulation_.run(begin_job(begun), 10s) || !begun) return false;
  return true;
}

Async<void> SimCluster::begin_job(bool& begun) {
  if (!co_await driver_->start()) co_return;
  protocol::BeginJob request;
  request.job = job_;
  request.name = "simulated";
  auto answer = co_await driver_->ask_head<Empty>(Method::begin_job, request, 5s);
  begun = answer.has_value();
}

Async<void> SimCluster::look(std::shared_ptr<Seen> seen, std::shared_ptr<bool> done) {
  Empty nothing;
  auto actors = co_await driver_->ask_head<protocol::ActorList>(Method::list_actors, nothing, 10s);
  auto nodes = co_await driver_->ask_head<protocol::NodeList>(Method::list_nodes, nothing, 10s);
  auto info = co_await driver_->ask_head<protocol::ClusterInfo>(Method::cluster_info, nothing, 10s);
  auto groups = co_await driver_->ask_head<protocol::PlacementGroupList>(
      Method::list_placement_groups, nothing, 10s);
  if (!actors || !nodes || !info || !groups) co_return;
  seen->groups = std::move(groups->items);
  seen->actors = std::move(actors->items);
  seen->nodes = std::move(nodes->items);
  seen->cluster = std::move(*info);
  *done = true;
}

std::string SimCluster::difference(const Seen& seen) const {
  std::map<NodeId, int64_t> used;
  std::set<ProcessId> expected;
  for (const protocol::ActorInfo& actor : seen.actors) {
    if (actor.state == "dead") continue;
    const std::string name =
        fmt::format("actor {} incarnation {}", actor.actor.short_string(), actor.incarnation);
    if (actor.state != "alive") return name + " is " + actor.state + ": " + actor.reason;
    const auto found = checks_.processes().find(actor.address.process);
    if (found == checks_.processes().end()) return name + " is alive and has no process";
    const protocol::AssignActor& assigned = found->second->actor();
    if (assigned.spec.actor != actor.actor || assigned.incarnation != actor.incarnation) {
      return name + " is alive and its process runs something else";
    }
    expected.insert(actor.address.process);
    if (!assigned.spec.placement.group.is_nil()) continue;  // Its bundle is what is used.
    for (const auto& amount : assigned.spec.demand) used[actor.address.node] += amount.milli;
  }
  for (const protocol::PlacementGroupInfo& group : seen.groups) {
    if (group.state != "placed") {
      return "group " + group.spec.group.short_string() + " is " + group.state + ": " +
             group.reason;
    }
    for (size_t i = 0; i < group.places.size(); ++i) {
      for (const auto& amount : group.spec.bundles[i].demand) {
        used[group.places[i].node] += amount.milli;
      }
    }
  }
  for (const auto& [id, process] : checks_.processes()) {
    if (process->actor().incarnation == 0 || expected.contains(id)) continue;
    return fmt::format("process {} runs actor {} incarnation {}, of which the head knows nothing",
                       id.short_string(), process->actor().spec.actor.short_string(),
                       process->actor().incarnation);
  }
  if (seen.cluster.leases != 0) return fmt::format("{} leases are left", seen.cluster.leases);
  size_t alive = 0;
  for (const protocol::NodeInfo& node : seen.nodes) {
    if (node.state != "alive") continue;
    ++alive;
    for (const auto& [name, available] : node.available) {
      if (name != "cpu") continue;
      const int64_t free = options_.cpu_milli - used[node.address.node];
      if (available == free) continue;
      return fmt::format("{} has {} milli free by the head, {} in truth", node.name, available,
                         free);
    }
  }
  if (alive != nodes_.size()) return fmt::format("{} of {} nodes are alive", alive, nodes_.size());
  return {};
}

void SimCluster::settle(Duration limit) {
  const Instant deadline = simulation_.clock().now() + limit;
  std::string last = "the head does not answer";
  while (simulation_.clock().now() < deadline) {
    auto seen = std::make_shared<Seen>();
    auto done = std::make_shared<bool>(false);
    simulation_.run(look(seen, done), 30s);
    if (*done) last = difference(*seen);
    if (*done && last.empty()) return;
    simulation_.run_for(500ms);
  }
  checks_.violation(fmt::format("not settled after {} s: {}", limit / 1s, last));
}

Async<void> SimCluster::finish_job() {
  protocol::EndJob request;
  request.job = job_;
  request.succeeded = true;
  auto ended = co_await driver_->ask_head<Empty>(Method::end_job, request, 10s);
  if (!ended) checks_.violation("the job does not end: " + ended.error().to_string());
}

void SimCluster::end_job() {
  simulation_.run(finish_job(), 30s);
  const bool gone = simulation_.run_until(
      [this] {
        return std::none_of(
            checks_.processes().begin(), checks_.processes().end(),
            [](const auto& entry) { return entry.second->actor().incarnation != 0; });
      },
      10s);
  if (!gone) checks_.violation("actors outlive their job");
}

Async<void> SimCluster::stop_all() {
  if (driver_) co_await driver_->stop();
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i].worker) co_await nodes_[i].worker->stop();
  }
  if (head_) co_await head_->stop();
}

void SimCluster::stop() {
  if (std::exchange(stopping_, true)) return;
  if (!simulation_.run(stop_all(), 60s)) checks_.violation("the cluster does not stop");
  const bool ended = simulation_.run_until([this] { return simulation_.scope().size() == 0; }, 60s);
  if (!ended) checks_.violation("something still runs after the cluster has stopped");
  for (const auto& [id, process] : checks_.processes()) {
    checks_.violation("process " + id.short_string() + " outlives the cluster");
  }
}

}  // namespace troupe::sim
