// Several heads of one cluster, of which one leads: who is promoted, what it has, and what a head
// that does not lead any more may say.
#include "head/candidate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>

#include "metadata/map_store.h"
#include "protocol/codec.h"
#include "tests/sim/sim_coordinator.h"
#include "tests/sim/simulation.h"

namespace troupe::head {
namespace {

using namespace std::chrono_literals;
using protocol::Empty;
using transport::Endpoint;
using transport::Method;
using transport::Peer;
using transport::Role;

constexpr size_t heads = 3;

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
    client = &simulation.network().add_host({"driver", "driver", identity});
  }
  void TearDown() override {
    for (size_t i = 0; i < heads; ++i) {
      if (machines[i]->candidate) end(i, true);
    }
    EXPECT_TRUE(simulation.run(scope.stop(), 1min));
  }

  static std::string name_of(size_t i) { return "head-" + std::to_string(i); }
  static Endpoint endpoint_of(size_t i) { return {"", "10.0.1." + std::to_string(i), 7000}; }

  void start(size_t i) {
    Machine& machine = *machines[i];
    transport::PeerIdentity identity;
    identity.role = Role::head;
    identity.name = name_of(i);
    machine.host = &simulation.network().add_host({name_of(i), "machine-" + name_of(i), identity});
    machine.coordinator =
        std::make_unique<sim::SimCoordinator>(model, machine.host->clock(), ++seeds);
    HeadOptions options;
    options.cluster = cluster;
    options.listen = {endpoint_of(i)};
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

  std::optional<size_t> leader() const {
    std::optional<size_t> found;
    for (size_t i = 0; i < heads; ++i) {
      const auto& candidate = machines[i]->candidate;
      if (candidate && candidate->leads() && !machines[i]->ended) found = i;
    }
    return found;
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
    auto outcome = std::make_shared<std::optional<Result<JobId>>>();
    spawn(scope, begin_job(i, budget, outcome));
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

  sim::Simulation simulation{7};
  Scope scope{simulation.executor()};
  const ClusterId cluster = ClusterId::random(simulation.random());
  sim::CoordinatorModel model{simulation.clock(), 2s};
  std::array<std::unique_ptr<Machine>, heads> machines;
  sim::SimHost* client = nullptr;
  std::set<JobId> promised;

 private:
  Async<void> live(Machine* machine) { machine->ended = co_await machine->candidate->live(); }
  Async<void> begin_job(size_t i, Duration budget,
                        std::shared_ptr<std::optional<Result<JobId>>> outcome) {
    const transport::Environment environment = simulation.environment(*client);
    const Instant deadline = simulation.clock().now() + budget;
    auto connection = co_await environment.network.connect(endpoint_of(i), deadline);
    if (!connection) {
      *outcome = std::move(connection).error();
      co_return;
    }
    protocol::Hello self;
    self.kind = "driver";
    self.address.process = ProcessId::random(simulation.random());
    auto peer =
        co_await Peer::start(scope, environment, std::move(*connection), nothing_, self, deadline);
    if (!peer) {
      *outcome = std::move(peer).error();
      co_return;
    }
    protocol::BeginJob request;
    request.job = JobId::random(simulation.random());
    const JobId job = request.job;
    auto begun = co_await transport::call<Empty>(*peer, Method::begin_job, std::move(request),
                                                 deadline - simulation.clock().now());
    if (begun) {
      *outcome = job;
    } else {
      *outcome = std::move(begun).error();
    }
    (*peer)->close();
  }

  transport::Router nothing_;
  uint64_t seeds = 0;
};

TEST_F(CandidateTest, OneLeadsAndTheOthersHaveAllThatItPromises) {
  start_all();
  ASSERT_EQ(leader(), 0U);
  promise_many(20);
  EXPECT_TRUE(all_kept());
  EXPECT_TRUE(simulation.run_until([&] { return all_hashes_agree(); }, 5s));
  const auto refused = promise(1);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::unavailable);
  EXPECT_NE(refused.error().message().find("stands by"), std::string::npos);
  const auto infos = machines[0]->candidate->replicator()->heads();
  ASSERT_EQ(infos.size(), heads);
  for (const auto& info : infos) EXPECT_TRUE(info.in_sync) << info.name;
}

TEST_F(CandidateTest, WhenTheLeaderDiesAnotherOneLeadsAtOnceAndHasAllThatWasPromised) {
  start_all();
  for (int round = 0; round < 6; ++round) {
    promise_many(5);
    const size_t dies = *leader();
    const uint64_t term = model.read().term;
    kill(dies);
    // Long before its lease is over.
    ASSERT_TRUE(await_leader(1s));
    EXPECT_GT(model.read().term, term);
    EXPECT_TRUE(all_kept());
    promise_many(3);
    start(dies);
    ASSERT_TRUE(simulation.run_until([&] { return in_sync().size() == heads; }, 10s));
  }
  EXPECT_TRUE(simulation.run_until([&] { return all_hashes_agree(); }, 5s));
}

TEST_F(CandidateTest, ALeaderThatIsCutOffPromisesNothingOnceAnotherMayLead) {
  start_all();
  promise_many(5);
  const size_t old = *leader();
  cut_off(old);
  const auto unanswered = promise(old, 10s);  // The client still reaches it.
  EXPECT_FALSE(unanswered);
  EXPECT_TRUE(simulation.run_until([&] { return machines[old]->ended.has_value(); }, 10s));
  ASSERT_TRUE(await_leader());
  EXPECT_NE(*leader(), old);
  EXPECT_TRUE(all_kept());
  promise_many(5);
  reconnect(old);
  end(old, true);
  start(old);  // With a batch that nobody was promised, and which no other head has.
  ASSERT_TRUE(simulation.run_until([&] { return in_sync().size() == heads; }, 10s));
  EXPECT_TRUE(simulation.run_until([&] { return all_hashes_agree(); }, 5s));
  EXPECT_TRUE(all_kept());
}

TEST_F(CandidateTest, ALeaderThatDoesNotReachTheCoordinatorStopsPromisingBeforeItsLeaseIsOver) {
  start_all();
  const size_t old = *leader();
  const Instant cut_at = simulation.clock().now();
  machines[old]->coordinator->cut(true, true);
  ASSERT_TRUE(simulation.run_until([&] { return machines[old]->ended.has_value(); }, 10s));
  EXPECT_LT(simulation.clock().now() - cut_at, model.lease_time() + 500ms);
  EXPECT_FALSE(promise(old));
  ASSERT_TRUE(await_leader());
  EXPECT_NE(*leader(), old);
}

TEST_F(CandidateTest, AHeadThatIsAwayIsNotWaitedForAndComesBack) {
  start_all();
  kill(2);
  const Instant killed_at = simulation.clock().now();
  promise_many(1);
  EXPECT_LT(simulation.clock().now() - killed_at, 1500ms);
  EXPECT_EQ(in_sync(), (std::set<std::string>{"head-0", "head-1"}));
  promise_many(10);
  start(2);
  ASSERT_TRUE(await_in_sync({"head-0", "head-1", "head-2"}));
  EXPECT_TRUE(simulation.run_until([&] { return all_hashes_agree(); }, 5s));
}

TEST_F(CandidateTest, AHeadThatStandsStillIsGivenUp) {
  start_all();
  machines[1]->host->pause();
  const Instant since = simulation.clock().now();
  promise_many(3);
  EXPECT_LT(simulation.clock().now() - since, 2s);
  EXPECT_EQ(in_sync(), (std::set<std::string>{"head-0", "head-2"}));
  machines[1]->host->resume();
  ASSERT_TRUE(await_in_sync({"head-0", "head-1", "head-2"}));
}

TEST_F(CandidateTest, WhoLacksAPromiseIsNotPromoted) {
  start_all();
  kill(1);
  kill(2);
  promise_many(3);
  ASSERT_EQ(in_sync(), std::set<std::string>{"head-0"});
  kill(0);
  start(1);
  start(2);
  EXPECT_FALSE(await_leader(1min));
  start(0);
  ASSERT_TRUE(await_leader());
  EXPECT_EQ(leader(), 0U);
  EXPECT_TRUE(all_kept());
}

TEST_F(CandidateTest, OneThatWasRestartedLeadsAgainWithoutWaitingForItsOldLease) {
  start(0);
  ASSERT_TRUE(await_leader());
  promise_many(3);
  const uint64_t term = model.read().term;
  kill(0);
  start(0);
  ASSERT_TRUE(await_leader(500ms));
  EXPECT_EQ(model.read().term, term + 1);
  EXPECT_TRUE(all_kept());
}

TEST_F(CandidateTest, ALeadIsHandedOver) {
  start_all();
  promise_many(5);
  auto outcome = std::make_shared<std::optional<Result<protocol::TransferLead>>>();
  const auto ask = [&](std::string to) -> Async<void> {
    protocol::TransferLead request;
    request.to = std::move(to);
    auto handed = co_await machines[0]->candidate->replicator()->hand_over(std::move(request));
    *outcome = std::move(handed);
  };
  ASSERT_TRUE(simulation.run(ask("nobody"), 10s));
  ASSERT_FALSE(**outcome);
  EXPECT_EQ((*outcome)->error().code(), Code::not_found);
  EXPECT_NE((*outcome)->error().message().find("head-1, head-2"), std::string::npos);
  ASSERT_TRUE(simulation.run(ask("head-2"), 10s));
  ASSERT_TRUE(**outcome) << (*outcome)->error().to_string();
  ASSERT_TRUE(simulation.run_until([&] { return leader() == 2U; }, 1s));
  EXPECT_TRUE(all_kept());
  EXPECT_TRUE(machines[0]->ended);
  end(0, true);
  start(0);
  ASSERT_TRUE(simulation.run_until([&] { return in_sync().size() == heads; }, 10s));
  promise_many(3);
}

TEST_F(CandidateTest, AWholeCopyIsTakenWhileMoreIsWritten) {
  start(0);
  ASSERT_TRUE(await_leader());
  Batch rows;  // Several parts of it, in several pages.
  for (int i = 0; i < 10'000; ++i) {
    rows.put(Table::users, "user-" + std::to_string(i), std::string(400, 'x'));
  }
  ASSERT_TRUE(machines[0]->store.commit(rows, model.read().term));
  Batch junk;
  junk.put(Table::users, "somebody else", "of no use");
  ASSERT_TRUE(machines[1]->store.commit(junk, 1));
  start(1);
  for (int i = 0; i < 50; ++i) promise_many(1);
  ASSERT_TRUE(await_in_sync({"head-0", "head-1"}));
  EXPECT_TRUE(simulation.run_until(
      [&] {
        return machines[0]->store.state_hash().value() == machines[1]->store.state_hash().value();
      },
      5s));
  kill(0);
  ASSERT_TRUE(await_leader());
  EXPECT_TRUE(all_kept());
}

// The copy ends halfway, again and again: what is half copied is of no use, and says so.
TEST_F(CandidateTest, HalfACopyIsNeverPromotedAndIsTakenAnew) {
  start(0);
  ASSERT_TRUE(await_leader());
  Batch rows;
  for (int i = 0; i < 20'000; ++i) {
    rows.put(Table::users, "user-" + std::to_string(i), std::string(400, 'x'));
  }
  ASSERT_TRUE(machines[0]->store.commit(rows, model.read().term));
  bool was_half = false;
  start(1);
  ASSERT_TRUE(simulation.run_until(
      [&] { return was_half = is_half_copied(machines[1]->store).value(); }, 10s));
  kill(1);
  EXPECT_TRUE(is_half_copied(machines[1]->store).value());
  EXPECT_EQ(read_place(machines[1]->store).value(), Place{});
  kill(0);
  start(1);
  EXPECT_FALSE(await_leader(20s));
  start(0);
  ASSERT_TRUE(await_in_sync({"head-0", "head-1"}));
  EXPECT_FALSE(is_half_copied(machines[1]->store).value());
  EXPECT_TRUE(was_half);
}

TEST_F(CandidateTest, ACoordinatorThatForgotTheClusterIsAnErrorAndNoNewBeginning) {
  start_all();
  promise_many(3);
  for (size_t i = 0; i < heads; ++i) kill(i);
  model.forget();
  start(0);
  ASSERT_TRUE(simulation.run_until([&] { return machines[0]->ended.has_value(); }, 10s));
  EXPECT_EQ(machines[0]->ended->code(), Code::not_found);
  EXPECT_NE(machines[0]->ended->message().find("knows nothing of cluster"), std::string::npos);
}

TEST_F(CandidateTest, AHeadWhoseStoreFailsEnds) {
  start_all();
  machines[1]->store.fail_next_commit(error(Code::outcome_unknown, "the disk failed"));
  promise_many(2);
  EXPECT_TRUE(simulation.run_until([&] { return machines[1]->ended.has_value(); }, 10s));
  EXPECT_EQ(in_sync(), (std::set<std::string>{"head-0", "head-2"}));
}

}  // namespace
}  // namespace troupe::head
