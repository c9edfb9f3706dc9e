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

constexpr Duration lead_lasts = 2s;  // Of several heads.
// A part of a copy that is lost with its frame is sent again after 30 s.
constexpr Duration copy_again = 40s;

std::string folder_of(size_t index) {
  return fmt::format("/simulated/{}", index);
}

worker::WorkerOptions worker_options(const ClusterOptions& cluster_options, ClusterId cluster,
                                     NodeId node, size_t index) {
  worker::WorkerOptions options;
  options.node = node;
  options.name = fmt::format("worker-{}", index);
  options.cluster = cluster;
  for (size_t head = 0; head < cluster_options.heads; ++head) {
    options.heads.push_back(SimHead::endpoint_of(head));
  }
  options.worker_socket = folder_of(index) + "/worker.sock";
  options.host = fmt::format("10.0.1.{}", index);
  options.socket_folder = folder_of(index);
  options.log_folder = folder_of(index);
  options.total = {{"cpu", cluster_options.cpu_milli}};
  options.store_capacity_bytes = 1 << 20;
  options.version = "sim";
  return options;
}

}  // namespace

std::string SimCluster::machine_of(size_t index) {
  return fmt::format("machine-{}", index);
}

SimCluster::SimCluster(Simulation& simulation, const ClusterOptions& options)
    : simulation_(simulation),
      options_(options),
      cluster_(ClusterId::random(simulation.random())),
      coordinator_(simulation.clock(), lead_lasts),
      checks_(simulation, options.cpu_milli) {
  coordinator_.on_change([this](const head::LeadRecord& record) { lead_changed(record); });
  HeadObserver& observer = *this;
  SimHeadOptions head;
  head.cluster = cluster_;
  head.lazy_sync = options.lazy_sync;
  if (options.heads > 1) {
    head.coordinator = &coordinator_;
    head.coordinator_patience = simulation.random().chance(0.5) ? 150ms : 1500ms;
    // Else the end of a lease is always waited for.
    simulation.network().set_refusals(simulation.random().chance(0.5));
  }
  for (; head.index < options.heads; ++head.index) {
    heads_.push_back(std::make_unique<SimHead>(simulation, observer, head));
  }
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
    const uint64_t newest = has_several_heads() ? epoch_ : epoch_ + 1;  // One may be starting.
    if (epoch > newest) checks_.violation("a worker knows an epoch that no head has");
    node.epoch_seen = epoch;
  }
  if (!has_several_heads() || looked_at_ == epoch_) return;
  if (SimHead* const leads = leader()) {
    looked_at_ = epoch_;
    if (on_lead_) on_lead_(*leads);
  }
}

// --- The heads

void SimCluster::head_began(uint64_t epoch) {
  if (epoch <= epoch_) checks_.violation(fmt::format("epoch {} is used again", epoch));
  epoch_ = epoch;
}

// With each record that becomes true: of who is in sync, too.
void SimCluster::lead_changed(const head::LeadRecord& record) {
  if (record.term < epoch_) checks_.violation("a term goes back");
  if (record.term == epoch_ && record.leader != last_leader_) {
    checks_.violation(fmt::format("two heads lead in term {}", epoch_));
  }
  if (record.term == epoch_) return;
  epoch_ = record.term;
  last_leader_ = record.leader;
  simulation_.record(fmt::format("{} leads in term {}", record.leader, record.term));
  FaultCounts& counts = simulation_.network().fault_counts();
  while (counts.of(Fault::lease_expired) < coordinator_.expired()) {
    counts.note(Fault::lease_expired);
  }
  for (const auto& head : heads_) {
    if (head->name() == record.leader) {
      checks_.head_leads(head->is_up() ? head->host().name() : "");
    } else if (head->serves()) {
      counts.note(Fault::lead_outlived);
    }
  }
}

SimHead* SimCluster::leader() {
  if (!has_several_heads()) return heads_[0]->serves() ? heads_[0].get() : nullptr;
  const std::string name = coordinator_.read().leader;
  for (const auto& head : heads_) {
    if (head->name() == name && head->serves()) return head.get();
  }
  return nullptr;
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
  node.worker =
      std::make_unique<worker::Worker>(simulation_.environment(*node.host), *node.launcher,
                                       worker_options(options_, cluster_, node.id, index));
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
  for (const auto& head : heads_) head->start();
  for (size_t i = 0; i < nodes_.size(); ++i) start_worker(i);
  const auto is_complete = [this] {
    if (has_several_heads() && coordinator_.read().in_sync.size() < heads_.size()) return false;
    return std::all_of(nodes_.begin(), nodes_.end(),
                       [](const Node& node) { return node.worker->head().is_registered(); });
  };
  const bool registered = simulation_.run_until(is_complete, 10s);
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

// In time each has what the others have.
std::string SimCluster::difference_of_heads() {
  if (!has_several_heads()) return {};
  std::set<std::string> hashes;
  size_t expected = 0;
  for (const auto& head : heads_) {
    if (head->is_abandoned()) continue;
    ++expected;
    hashes.insert(head->disk().state_hash());
  }
  const head::LeadRecord record = coordinator_.read();
  if (record.leader.empty()) return "no head leads";
  if (record.in_sync.size() != expected) {
    return fmt::format("{} heads are in sync, {} are up", record.in_sync.size(), expected);
  }
  return hashes.size() == 1 ? "" : "the tables of the heads differ";
}

void SimCluster::settle(Duration limit) {
  const Instant begun = simulation_.clock().now();
  Duration patience = limit;
  std::vector<std::string> differences{"the head does not answer"};
  while (simulation_.clock().now() < begun + patience) {
    auto seen = std::make_shared<Seen>();
    auto done = std::make_shared<bool>(false);
    simulation_.run(look(seen, done), 30s);
    if (*done) {
      differences.clear();
      seen_ = std::move(*seen);
      patience = limit;
      if (std::string first = difference(seen_); !first.empty()) differences.push_back(first);
      if (differences.empty() && also_settled_) differences = also_settled_();
      if (differences.empty()) {
        std::string between_heads = difference_of_heads();
        if (between_heads.empty()) return;
        differences.push_back(std::move(between_heads));
        patience = std::max(limit, copy_again);
      }
    }
    simulation_.run_for(500ms);
  }
  for (const std::string& what : differences) {
    checks_.violation(fmt::format("not settled after {} s: {}", patience / 1s, what));
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
  // Those that stand by first, or each would lead for a moment.
  SimHead* const last = leader();
  for (const auto& head : heads_) {
    if (head.get() != last) co_await head->shut_down();
  }
  if (last != nullptr) co_await last->shut_down();
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
