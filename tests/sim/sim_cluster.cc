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
constexpr Duration restart_delay = 300ms;  // Of a supervisor.

Endpoint head_endpoint() {
  return {"", head_address, head_port};
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
  options.heads = {head_endpoint()};
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

std::string SimCluster::machine_of(size_t index) {
  return fmt::format("machine-{}", index);
}
std::string SimCluster::head_machine() {
  return "machine-head";
}

SimCluster::SimCluster(Simulation& simulation, const ClusterOptions& options)
    : simulation_(simulation),
      options_(options),
      cluster_(ClusterId::random(simulation.random())),
      disk_({cluster_, options.lazy_sync}, simulation.clock(), simulation.history(),
            simulation.network().fault_counts(), simulation.random().next()),
      checks_(simulation, options.cpu_milli) {
  nodes_.resize(options_.workers);
  for (Node& node : nodes_) node.id = NodeId::random(simulation.random());
  simulation_.on_step([this] {
    check();
    checks_.check();
  });
}

SimCluster::~SimCluster() {
  stop();
  simulation_.on_step(nullptr);
}

void SimCluster::check() {
  for (Node& node : nodes_) {
    if (!node.worker) continue;
    const uint64_t epoch = node.worker->head().epoch();
    if (epoch < node.epoch_seen) checks_.violation("a worker goes back to an older epoch");
    if (epoch > epoch_ + 1) checks_.violation("a worker knows an epoch that no head has");
    node.epoch_seen = epoch;
  }
}

// --- The head

Async<void> SimCluster::run_head(HeadPointer process) {
  const Status started = co_await process->head->start();
  process->started = started.has_value();
  process->start_ended.set();
  if (process->over.is_set()) co_return;
  if (started) {
    const uint64_t epoch = process->head->epoch();
    if (epoch <= epoch_) checks_.violation(fmt::format("epoch {} is used again", epoch));
    epoch_ = epoch;
    auto& broken = process->head->broken();
    const bool is_broken = co_await wait_either(broken, process->over);
    if (!is_broken || process->over.is_set()) co_return;
    // Until its process is gone it must tell nobody what it could not write.
    const auto lingers = std::chrono::milliseconds(simulation_.random().below(100));
    co_await sleep_for(simulation_.clock(), lingers);
  }
  simulation_.record(started ? "the head is broken"
                             : "the head does not start: " + started.error().to_string());
  if (head_ != process) co_return;
  kill_head();
  co_await start_head_again();
}

Async<void> SimCluster::start_head_again() {
  co_await sleep_for(simulation_.clock(), restart_delay);
  if (may_start_head() && !stopping_) start_head();
}

void SimCluster::start_head() {
  transport::PeerIdentity identity;
  identity.role = Role::head;
  identity.name = "head";
  head_ = std::make_shared<HeadProcess>(simulation_.executor());
  head_->host = &simulation_.network().add_host(
      {fmt::format("head-{}", ++heads_started_), head_machine(), identity});
  head_->store = disk_.open();
  transport::Environment environment = simulation_.environment(*head_->host);
  environment.blocking = disk_.executor(environment.loop, environment.clock);
  head_->head = std::make_unique<head::Head>(environment, *head_->store, head_options(cluster_));
  spawn(simulation_.scope(), run_head(head_));
}

// A start that is under way looks at its parts until it has failed.
Async<void> SimCluster::end_head(HeadPointer process) {
  if (!process->start_ended.is_set()) co_await process->start_ended.wait();
  co_await process->head->stop();
}

void SimCluster::kill_head() {
  const HeadPointer process = std::exchange(head_, nullptr);
  simulation_.network().kill(*process->host);
  disk_.crash();
  process->over.set();
  spawn(simulation_.scope(), end_head(process));
}

Async<bool> SimCluster::stop_head() {
  const HeadPointer process = head_;
  if (!process || !process->started) co_return false;
  process->over.set();
  head_ = nullptr;
  head_stopping_ = true;
  co_await process->head->stop();
  simulation_.network().kill(*process->host);
  disk_.crash();
  head_stopping_ = false;
  co_return true;
}

// --- Workers

Async<void> SimCluster::run_worker(worker::Worker* worker) {
  const Status started = co_await worker->start();
  if (!started) checks_.violation("a worker does not start: " + started.error().to_string());
}

void SimCluster::start_worker(size_t index) {
  Node& node = nodes_[index];
  transport::PeerIdentity identity;
  identity.role = Role::node;
  identity.name = node.id.to_string();
  node.host = &simulation_.network().add_host(
      {fmt::format("worker-{}", index), machine_of(index), identity});
  node.launcher = std::make_unique<SimLauncher>(simulation_, *node.host, checks_, launch_faults_);
  node.worker = std::make_unique<worker::Worker>(
      simulation_.environment(*node.host), *node.launcher,
      worker_options(cluster_, node.id, index, options_.cpu_milli));
  node.epoch_seen = 0;
  spawn(simulation_.scope(), run_worker(node.worker.get()));
}

void SimCluster::end_processes(const Node& node, const std::string& reason) {
  std::vector<std::shared_ptr<SimProcess>> own;
  for (const auto& [id, process] : checks_.processes()) {
    if (process->node() == node.id) own.push_back(process);
  }
  for (const auto& process : own) process->end(reason);
}

std::shared_ptr<SimCluster::Remains> SimCluster::take_apart(Node& node) {
  auto remains = std::make_shared<Remains>();
  remains->launcher = std::move(node.launcher);
  remains->worker = std::move(node.worker);
  return remains;
}

void SimCluster::kill_worker(size_t index, bool silently) {
  Node& node = nodes_[index];
  SimNetwork& network = simulation_.network();
  const auto end = [&](SimHost& host) { silently ? network.lose(host) : network.kill(host); };
  if (silently) {
    for (const auto& [id, process] : checks_.processes()) {
      if (process->node() == node.id) end(process->host());
    }
  }
  end(*node.host);
  for (const auto& driver : drivers()) {
    if (driver->machine != index) continue;
    end(*driver->host);
    kill_driver(driver);
  }
  end_processes(node, "its machine is lost");
  spawn(simulation_.scope(), bury(take_apart(node)));
}

Async<bool> SimCluster::stop_worker(size_t index) {
  if (!nodes_[index].worker) co_return false;
  nodes_[index].stopping = true;
  SimHost* host = nodes_[index].host;
  for (const auto& driver : drivers()) {
    if (driver->machine == index) kill_driver(driver);
  }
  auto remains = take_apart(nodes_[index]);
  co_await remains->stop();
  simulation_.network().kill(*host);
  nodes_[index].stopping = false;
  co_return true;
}

// --- Drivers

std::shared_ptr<SimDriver> SimCluster::make_driver(size_t machine) {
  auto driver = std::make_shared<SimDriver>();
  driver->machine = machine;
  driver->job = JobId::random(simulation_.random());
  driver->host =
      &simulation_.network().add_host({fmt::format("driver-{}", ++drivers_made_),
                                       machine_of(machine), nodes_[machine].host->identity()});
  client::ClientOptions options;
  options.kind = "driver";
  options.process = ProcessId::random(simulation_.random());
  options.job = driver->job;
  options.worker.unix_path = folder_of(machine) + "/worker.sock";
  driver->client =
      std::make_unique<client::Client>(simulation_.environment(*driver->host), std::move(options));
  std::erase_if(drivers_, [](const auto& weak) { return weak.expired(); });
  drivers_.push_back(driver);
  return driver;
}

std::vector<std::shared_ptr<SimDriver>> SimCluster::drivers() const {
  std::vector<std::shared_ptr<SimDriver>> alive;
  for (const auto& weak : drivers_) {
    if (auto driver = weak.lock(); driver && driver->is_alive()) alive.push_back(driver);
  }
  return alive;
}

Async<bool> SimCluster::begin(std::shared_ptr<SimDriver> driver) {
  const Status started = co_await driver->client->start();
  if (!started) co_return false;
  protocol::BeginJob request;
  request.job = driver->job;
  request.name = "simulated";
  auto answer = co_await driver->client->ask_head<Empty>(Method::begin_job, request, 5s);
  co_return answer.has_value();
}

Async<void> SimCluster::begin_into(std::shared_ptr<SimDriver> driver, bool& begun) {
  begun = co_await begin(driver);
}

void SimCluster::kill_driver(const std::shared_ptr<SimDriver>& driver) {
  simulation_.network().kill(*driver->host);
  spawn(simulation_.scope(), stop_driver(driver));
}

Async<void> SimCluster::stop_driver(std::shared_ptr<SimDriver> driver) {
  co_await driver->client->stop();
  simulation_.network().kill(*driver->host);
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
  if (!registered || !options_.main_driver) return registered;
  main_driver_ = make_driver(0);
  bool begun = false;
  return simulation_.run(begin_into(main_driver_, begun), 10s) && begun;
}

Async<void> SimCluster::look(std::shared_ptr<Seen> seen, std::shared_ptr<bool> done) {
  std::shared_ptr<SimDriver> eyes = main_driver_;
  const bool is_stranger = !eyes || !eyes->is_alive();
  if (is_stranger) {
    size_t machine = 0;
    while (machine + 1 < nodes_.size() && !is_worker_up(machine)) ++machine;
    eyes = make_driver(machine);
    const Status started = co_await eyes->client->start();
    if (!started) co_return co_await stop_driver(eyes);
  }
  co_await look_through(eyes, seen, done);
  if (is_stranger) co_await stop_driver(eyes);
}

Async<void> SimCluster::look_through(std::shared_ptr<SimDriver> eyes, std::shared_ptr<Seen> seen,
                                     std::shared_ptr<bool> done) {
  client::Client& client = *eyes->client;
  Empty nothing;
  auto actors = co_await client.ask_head<protocol::ActorList>(Method::list_actors, nothing, 10s);
  auto nodes = co_await client.ask_head<protocol::NodeList>(Method::list_nodes, nothing, 10s);
  auto info = co_await client.ask_head<protocol::ClusterInfo>(Method::cluster_info, nothing, 10s);
  auto jobs = co_await client.ask_head<protocol::JobList>(Method::list_jobs, nothing, 10s);
  auto groups = co_await client.ask_head<protocol::PlacementGroupList>(
      Method::list_placement_groups, nothing, 10s);
  if (!actors || !nodes || !info || !groups || !jobs) co_return;
  seen->groups = std::move(groups->items);
  seen->actors = std::move(actors->items);
  seen->nodes = std::move(nodes->items);
  seen->jobs = std::move(jobs->items);
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
  std::set<NodeId> living;
  for (const protocol::NodeInfo& node : seen.nodes) {
    if (node.state != "alive") continue;
    ++alive;
    living.insert(node.address.node);
    for (const auto& [name, available] : node.available) {
      if (name != "cpu") continue;
      const int64_t free = options_.cpu_milli - used[node.address.node];
      if (available == free) continue;
      return fmt::format("{} has {} milli free by the head, {} in truth", node.name, available,
                         free);
    }
  }
  for (const auto& [node, milli] : used) {
    if (!living.contains(node)) return "something is on a node that is not alive";
  }
  const auto expected_alive = static_cast<size_t>(
      std::ranges::count_if(nodes_, [](const Node& node) { return !node.abandoned; }));
  if (alive != expected_alive) {
    return fmt::format("{} of {} nodes are alive", alive, expected_alive);
  }
  return {};
}

void SimCluster::settle(Duration limit) {
  const Instant deadline = simulation_.clock().now() + limit;
  std::vector<std::string> differences{"the head does not answer"};
  while (simulation_.clock().now() < deadline) {
    auto seen = std::make_shared<Seen>();
    auto done = std::make_shared<bool>(false);
    simulation_.run(look(seen, done), 30s);
    if (*done) {
      differences.clear();
      seen_ = std::move(*seen);
      if (std::string first = difference(seen_); !first.empty()) differences.push_back(first);
      if (differences.empty() && also_settled_) differences = also_settled_();
      if (differences.empty()) return;
    }
    simulation_.run_for(500ms);
  }
  for (const std::string& what : differences) {
    checks_.violation(fmt::format("not settled after {} s: {}", limit / 1s, what));
  }
}

Async<void> SimCluster::finish_job() {
  protocol::EndJob request;
  request.job = job();
  request.succeeded = true;
  auto ended = co_await driver().ask_head<Empty>(Method::end_job, request, 10s);
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
  for (const auto& driver : drivers()) co_await driver->client->stop();
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i].worker) co_await nodes_[i].worker->stop();
  }
  if (!head_) co_return;
  head_->over.set();
  if (!head_->start_ended.is_set()) co_await head_->start_ended.wait();
  co_await head_->head->stop();
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
