// Several heads of one cluster, of which one leads: who is promoted, what it has, and what a head
// that does not lead any more may say.
#include "tests/head/candidate_fixture.h"

namespace troupe::head {
namespace {

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

TEST_F(CandidateTest, ALeaderThatStoodStillForLongerThanItsLeasePromisesNothing) {
  start(0);
  ASSERT_TRUE(await_leader());
  machines[0]->coordinator->cut(true, true);
  auto outcome = std::make_shared<std::optional<Result<JobId>>>();
  spawn(scope, begin_job(0, JobId::random(simulation.random()), 20s, outcome));
  // Both have greeted; what comes next finds a process that stands still.
  ASSERT_TRUE(
      simulation.run_until([&] { return simulation.network().counts().delivered >= 2; }, 1s));
  machines[0]->host->pause();
  simulation.run_for(5s);
  machines[0]->host->resume();
  ASSERT_TRUE(simulation.run_until([&] { return outcome->has_value(); }, 20s));
  EXPECT_FALSE(**outcome);
  EXPECT_TRUE(simulation.run_until([&] { return machines[0]->ended.has_value(); }, 10s));
}

// Actors that must not overlap live on by what a head answers to their worker.
TEST_F(CandidateTest, ALeaderThatStoodStillForLongerThanItsLeaseAnswersNoHeartbeat) {
  start(0);
  ASSERT_TRUE(await_leader());
  const NodeId node = NodeId::random(simulation.random());
  transport::PeerIdentity identity;
  identity.role = Role::node;
  identity.name = node.to_string();
  client = &simulation.network().add_host({"worker", "worker", identity});
  const auto begin_beat = [&] {
    auto outcome = std::make_shared<std::optional<Result<protocol::HeartbeatReply>>>();
    spawn(scope, beat(0, node, outcome));
    return outcome;
  };
  const auto early = begin_beat();
  ASSERT_TRUE(simulation.run_until([&] { return early->has_value(); }, 1s));
  ASSERT_TRUE(**early) << (**early).error().message();
  machines[0]->coordinator->cut(true, true);
  const uint64_t before = simulation.network().counts().delivered;
  const auto late = begin_beat();
  ASSERT_TRUE(simulation.run_until(
      [&] { return simulation.network().counts().delivered >= before + 2; }, 1s));
  machines[0]->host->pause();
  simulation.run_for(5s);
  machines[0]->host->resume();
  ASSERT_TRUE(simulation.run_until([&] { return late->has_value(); }, 30s));
  EXPECT_FALSE(**late);
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

// Each batch reaches it later than the others' promise of the next one is given.
TEST_F(CandidateTest, AHeadThatComesBackUnderLoadGetsInSync) {
  start_all();
  kill(2);
  ASSERT_TRUE(await_in_sync({"head-0", "head-1"}));
  bool over = false;
  const auto load = [&]() -> Async<void> {
    while (!over) {
      auto outcome = std::make_shared<std::optional<Result<JobId>>>();
      co_await begin_job(0, JobId::random(simulation.random()), 5s, outcome);
    }
  };
  for (int i = 0; i < 8; ++i) spawn(scope, load());
  start(2);
  simulation.network().slow_down("machine-head-2", 20ms);
  EXPECT_TRUE(await_in_sync({"head-0", "head-1", "head-2"}));
  over = true;
  simulation.run_for(1s);
}

// It leaves a little later each time: also while promises wait for it already, and it is not
// recorded yet. They are given without it then.
TEST_F(CandidateTest, AHeadThatLeavesWhileItComesBackIsNotRecordedWithoutWhatWasPromised) {
  start(0);
  start(1);
  ASSERT_TRUE(await_in_sync({"head-0", "head-1"}));
  for (int step = 0; step < 24; ++step) {
    SCOPED_TRACE(step);
    kill(1);
    ASSERT_TRUE(await_in_sync({"head-0"}));
    bool over = false;
    const auto load = [&]() -> Async<void> {
      while (!over) {
        auto outcome = std::make_shared<std::optional<Result<JobId>>>();
        co_await begin_job(0, JobId::random(simulation.random()), 5s, outcome);
        if (outcome->value()) promised.insert(***outcome);
      }
    };
    for (int i = 0; i < 4; ++i) spawn(scope, load());
    simulation.run_for(100ms);
    simulation.network().slow_down("machine-head-1", 20ms);
    start(1);
    simulation.run_for(std::chrono::milliseconds(40 + 6 * step));
    kill(1);
    simulation.run_for(100ms);
    over = true;
    kill(0);
    simulation.network().heal();
    start(1);
    simulation.run_for(3s);  // Its old lease ends; one that was recorded leads.
    start(0);
    ASSERT_TRUE(await_leader());
    ASSERT_TRUE(all_kept());
    ASSERT_TRUE(await_in_sync({"head-0", "head-1"}, 30s));
    if (leader() != 0U) {
      kill(1);
      ASSERT_TRUE(await_leader());
      start(1);
      ASSERT_TRUE(await_in_sync({"head-0", "head-1"}, 30s));
    }
  }
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

// Its name is recorded, but what it had is gone.
TEST_F(CandidateTest, AHeadWhoseDiskWasReplacedIsNotPromoted) {
  start_all();
  promise_many(3);
  for (size_t i = 0; i < heads; ++i) kill(i);
  machines[1] = std::make_unique<Machine>(cluster);
  start(1);
  EXPECT_FALSE(await_leader(1min));
  start(2);
  ASSERT_TRUE(await_leader());
  EXPECT_EQ(leader(), 2U);
  EXPECT_TRUE(all_kept());
  start(0);
  ASSERT_TRUE(simulation.run_until([&] { return in_sync().size() == heads; }, 10s));
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

// The head before had sent it to one of the others only: not promised, and yet in the tables.
TEST_F(CandidateTest, TellsOfWhatItFoundOnlyOnceAllInSyncHaveIt) {
  start_all();
  simulation.network().cut("machine-head-0", "machine-head-2", sim::Fault::partition_one_way);
  const JobId job = JobId::random(simulation.random());
  EXPECT_FALSE(promise(0, job, 200ms));
  const auto has = [&](size_t i) {
    return machines[i]->store.get(Table::jobs, job.to_string()).value().has_value();
  };
  ASSERT_TRUE(has(1));
  ASSERT_FALSE(has(2));
  // Both die, and it takes no time: head-2 stays recorded for a second.
  for (const size_t i : {2, 0}) {
    simulation.network().kill(*machines[i]->host);
    machines[i]->coordinator->cut(true, true);
  }
  ASSERT_TRUE(simulation.run_until([&] { return leader() == 1u; }, 10s));
  ASSERT_TRUE(in_sync().contains("head-2"));
  EXPECT_FALSE(promise(1, job, 300ms));
  ASSERT_TRUE(await_in_sync({"head-1"}));
  EXPECT_TRUE(promise(1, job, 2s));
}

}  // namespace
}  // namespace troupe::head
