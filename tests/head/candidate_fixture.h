// Three heads of one cluster, of which one leads, on virtual time; and a client that asks for
// promises.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "head/candidate.h"
#include "metadata/map_store.h"
#include "protocol/codec.h"
#include "tests/sim/sim_coordinator.h"
#include "tests/sim/simulation.h"

namespace troupe::head {

using namespace std::chrono_literals;
using protocol::Empty;
using transport::Endpoint;
using transport::Method;
using transport::Peer;
using transport::Role;

inline constexpr size_t heads = 3;

// One head: what survives its process, and the process.
struct Machine {
  explicit Machine(ClusterId cluster) : store(MapOptions{cluster, false}) {}

  MapStore store;
  std::unique_ptr<sim::SimCoordinator> coordinator;
  sim::SimHost* host = nullptr;
  std::unique_ptr<Scope> scope;
  std::unique_ptr<Candidate> candidate;
  std::optional<Error> ended;  // Why its life did.
};

class CandidateTest : public testing::Test {
 protected:
  void SetUp() override {
    for (size_t i = 0; i < heads; ++i) machines[i] = std::make_unique<Machine>(cluster);
    transport::PeerIdentity identity;
    identity.role = Role::client;
    identity.name = "driver";
    simulation.network().set_refusals(true);
    client = &simulation.network().add_host({"driver", "driver", identity});
  }
  void TearDown() override {
    for (size_t i = 0; i < heads; ++i) {
      if (machines[i]->candidate) end(i, true);
    }
    EXPECT_TRUE(simulation.run(scope.stop(), 1min));
  }

  static std::string name_of(size_t i) { return "head-" + std::to_string(i); }
  std::filesystem::path packages_of(size_t i) const { return folder / name_of(i) / "packages"; }
  std::filesystem::path checkpoints_of(size_t i) const {
    return folder / name_of(i) / "checkpoints";
  }
  static Endpoint endpoint_of(size_t i) { return {"", "10.0.1." + std::to_string(i), 7000}; }

  void start(size_t i) {
    Machine& machine = *machines[i];
    transport::PeerIdentity identity;
    identity.role = Role::head;
    identity.name = name_of(i);
    machine.host = &simulation.network().add_host({name_of(i), "machine-" + name_of(i), identity});
    machine.coordinator =
        std::make_unique<sim::SimCoordinator>(model, machine.host->clock(), ++seeds);
    machine.coordinator->set_patience(coordinator_patience);
    HeadOptions options;
    options.cluster = cluster;
    options.listen = {endpoint_of(i)};
    if (!folder.empty()) {
      options.package_folder = packages_of(i);
      options.checkpoint_folder = checkpoints_of(i);
    }
    StandbyOptions standby;
    standby.cluster = cluster;
    standby.name = name_of(i);
    standby.is_first = i == 0;
    machine.scope = std::make_unique<Scope>(simulation.executor());
    machine.candidate =
        std::make_unique<Candidate>(simulation.environment(*machine.host), machine.store,
                                    *machine.coordinator, options, standby);
    ASSERT_TRUE(machine.candidate->listen());
    machine.ended.reset();
    spawn(*machine.scope, live(&machine));
  }
  void start_all() {
    for (size_t i = 0; i < heads; ++i) start(i);
    ASSERT_TRUE(simulation.run_until([&] { return in_sync().size() == heads; }, 10s));
  }
  // As the death of its process, unless it resigns.
  void end(size_t i, bool resigns) {
    Machine& machine = *machines[i];
    if (!resigns) {
      simulation.network().kill(*machine.host);
      machine.coordinator->cut(true, true);
    }
    EXPECT_TRUE(simulation.run(machine.scope->stop(), 1min));
    EXPECT_TRUE(simulation.run(machine.candidate->stop(resigns), 1min));
    if (resigns) simulation.network().kill(*machine.host);
    machine.candidate.reset();
    machine.scope.reset();
  }
  void kill(size_t i) { end(i, false); }
  void cut_off(size_t i) {
    for (size_t other = 0; other < heads; ++other) {
      if (other != i) {
        simulation.network().partition("machine-" + name_of(i), "machine-" + name_of(other));
      }
    }
    machines[i]->coordinator->cut(true, true);
  }
  void reconnect(size_t i) {
    simulation.network().heal();
    machines[i]->coordinator->cut(false, false);
  }

  // One that does not know yet that another leads is none.
  std::optional<size_t> leader() const {
    const std::string name = model.read().leader;
    for (size_t i = 0; i < heads; ++i) {
      const auto& candidate = machines[i]->candidate;
      const bool leads = candidate && candidate->leads() && !machines[i]->ended;
      if (leads && name == name_of(i)) return i;
    }
    return std::nullopt;
  }
  bool await_leader(Duration limit = 10s) {
    return simulation.run_until([&] { return leader().has_value(); }, limit);
  }
  // Names, as recorded; empty while nobody leads.
  std::set<std::string> in_sync() const {
    const LeadRecord record = model.read();
    if (record.leader.empty()) return {};
    return {record.in_sync.begin(), record.in_sync.end()};
  }
  bool await_in_sync(const std::set<std::string>& names, Duration limit = 10s) {
    return simulation.run_until([&] { return in_sync() == names; }, limit);
  }
  bool all_hashes_agree() {
    std::set<std::string> hashes;
    for (const auto& machine : machines) hashes.insert(machine->store.state_hash().value());
    return hashes.size() == 1;
  }

  // A job that begins is what is promised here.
  Result<JobId> promise(size_t i, Duration budget = 5s) {
    return promise(i, JobId::random(simulation.random()), budget);
  }
  Result<JobId> promise(size_t i, JobId job, Duration budget) {
    auto outcome = std::make_shared<std::optional<Result<JobId>>>();
    spawn(scope, begin_job(i, job, budget, outcome));
    simulation.run_until([&] { return outcome->has_value(); }, budget + 1s);
    return outcome->has_value() ? **outcome : error(Code::internal, "no answer");
  }
  void promise_many(size_t count) {
    const auto from = leader();
    ASSERT_TRUE(from);
    for (size_t i = 0; i < count; ++i) {
      const auto job = promise(*from);
      ASSERT_TRUE(job) << job.error().to_string();
      promised.insert(*job);
    }
  }
  // What is promised is in the tables of the head that leads.
  bool all_kept() {
    const auto from = leader();
    if (!from) return false;
    return std::ranges::all_of(promised, [&](JobId job) {
      return machines[*from]->store.get(Table::jobs, job.to_string()).value().has_value();
    });
  }

  explicit CandidateTest(uint64_t seed = 7) : simulation(seed) {}

  sim::Simulation simulation;
  Scope scope{simulation.executor()};
  const ClusterId cluster = ClusterId::random(simulation.random());
  sim::CoordinatorModel model{simulation.clock(), 2s};
  std::array<std::unique_ptr<Machine>, heads> machines;
  sim::SimHost* client = nullptr;
  transport::Router service;  // What the client answers.
  std::set<JobId> promised;
  std::filesystem::path folder;  // Where heads keep files; empty: they keep none.
  Duration coordinator_patience = 1500ms;

  Async<void> live(Machine* machine) { machine->ended = co_await machine->candidate->live(); }
  // A connection of its own to a head. It is to be closed.
  Async<Result<std::shared_ptr<Peer>>> connect(size_t i, Instant deadline) {
    const transport::Environment environment = simulation.environment(*client);
    auto connection = co_await environment.network.connect(endpoint_of(i), deadline);
    if (!connection) co_return std::move(connection).error();
    protocol::Hello self;
    self.kind = "driver";
    self.address.process = ProcessId::random(simulation.random());
    co_return co_await Peer::start(scope, environment, std::move(*connection), service, self,
                                   deadline);
  }
  Async<Result<JobId>> begin_job_over(std::shared_ptr<Peer> peer, JobId job, Instant deadline) {
    protocol::BeginJob request;
    request.job = job;
    auto begun = co_await transport::call<Empty>(peer, Method::begin_job, std::move(request),
                                                 deadline - simulation.clock().now());
    if (!begun) co_return std::move(begun).error();
    co_return job;
  }
  Async<void> begin_job(size_t i, JobId job, Duration budget,
                        std::shared_ptr<std::optional<Result<JobId>>> outcome) {
    const Instant deadline = simulation.clock().now() + budget;
    auto peer = co_await connect(i, deadline);
    if (!peer) {
      *outcome = std::move(peer).error();
      co_return;
    }
    auto begun = co_await begin_job_over(*peer, job, deadline);
    *outcome = std::move(begun);
    (*peer)->close();
  }
  Async<void> beat(size_t i, NodeId node,
                   std::shared_ptr<std::optional<Result<protocol::HeartbeatReply>>> outcome) {
    auto peer = co_await connect(i, simulation.clock().now() + 20s);
    if (!peer) {
      *outcome = std::move(peer).error();
      co_return;
    }
    protocol::Heartbeat beat;
    beat.node = node;
    auto reply = co_await transport::call<protocol::HeartbeatReply>(*peer, Method::heartbeat,
                                                                    std::move(beat), 20s);
    *outcome = std::move(reply);
    (*peer)->close();
  }

 private:
  uint64_t seeds = 0;
};

}  // namespace troupe::head
