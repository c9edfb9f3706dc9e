// The states of actors on their way from workers to the head and back.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "packages/archive.h"
#include "packages/transfer.h"
#include "security/digest.h"
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

namespace fs = std::filesystem;
using protocol::Checkpoint;
using protocol::StoreCheckpoint;
using testing::HasSubstr;

class HeadCheckpoints : public HeadTest {
 protected:
  HeadCheckpoints() {
    std::string pattern = "/tmp/troupe-head-XXXXXX";
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    options.checkpoint_folder = folder / "checkpoints";
  }
  ~HeadCheckpoints() override { packages::remove_unpacked(folder); }

  static std::string hash_of(const std::string& state) {
    return security::to_hex(security::sha256(as_bytes(state)));
  }

  // A worker with an actor that is alive there, restarts, and gives `state` when it is asked.
  FakeWorker& add_keeper(int64_t cpu = 1) {
    FakeWorker& worker = add_worker(cpu);
    worker.on_stream(Method::get_package,
                     [this](transport::Message, CallContext, transport::OutgoingStream& out) {
                       return give(out);
                     });
    return worker;
  }
  protocol::ActorInfo create_actor() {
    const auto peer = driver();
    protocol::ActorSpec spec = actor_spec();
    spec.max_restarts = -1;
    EXPECT_TRUE(create(peer, spec));
    return wait_alive(peer, spec.actor).value();
  }
  StoreCheckpoint request_of(const FakeWorker& worker, const protocol::ActorInfo& actor) const {
    StoreCheckpoint request;
    request.node = worker.node;
    request.epoch = worker.epoch;
    request.actor = actor.actor;
    request.incarnation = actor.incarnation;
    request.hash = hash_of(state);
    request.size_bytes = state.size();
    return request;
  }
  Result<Checkpoint> store_state(FakeWorker& worker, const protocol::ActorInfo& actor) {
    return ask<Checkpoint>(worker.head, Method::store_checkpoint, request_of(worker, actor));
  }
  void drain(FakeWorker& worker) {
    protocol::Hello self;
    self.kind = "tool";
    const auto admin = connect(add_host("admin", "admin", Role::admin), nothing, self).value();
    EXPECT_TRUE(ask<Empty>(admin, Method::drain_node, protocol::DrainNode{worker.node}));
  }
  // As a worker does that starts it again.
  Result<std::string> fetch(FakeWorker& worker, ActorId actor, const std::string& hash) {
    auto slot = std::make_shared<std::optional<Result<packages::PackageFilePointer>>>();
    if (!here_) here_ = packages::Folder::open(folder / "here").value();
    protocol::GetPackage request;
    request.actor = actor;
    request.hash = hash;
    spawn(scope, fetch_into(slot, worker.head, request, simulation.environment(*worker.host)));
    simulation.run_until([&] { return slot->has_value(); }, 1min);
    if (!*slot) return error(Code::internal, "no answer");
    const Result<packages::PackageFilePointer>& fetched = **slot;
    if (!fetched) return fetched.error();
    const auto bytes = packages::read_chunk(**fetched, 0).value();
    return std::string(as_text(bytes));
  }
  std::vector<std::string> kept() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder / "checkpoints")) {
      names.push_back(entry.path().filename());
    }
    return names;
  }
  bool eventually_kept(const std::vector<std::string>& names) {
    return simulation.run_until(
        [&] { return testing::Value(kept(), testing::UnorderedElementsAreArray(names)); }, 10s);
  }

  fs::path folder;
  std::string state = "one";
  std::optional<std::string> lie;     // What is sent in its place.
  std::optional<uint64_t> lie_later;  // The size that later chunks say.
  bool stops = false;                 // In the midst of sending it, until it changes.

 private:
  Async<Status> give(transport::OutgoingStream& out) {
    const std::string sent = lie.value_or(state);
    const size_t half = sent.size() / 2;
    for (const auto& [at, text] :
         {std::pair{size_t{0}, sent.substr(0, half)}, std::pair{half, sent.substr(half)}}) {
      while (stops && at > 0) co_await sleep_for(simulation.clock(), 10ms);
      protocol::PackageChunk chunk;
      chunk.data = to_bytes(text);
      chunk.offset_bytes = at;
      chunk.total_bytes = at > 0 && lie_later ? *lie_later : sent.size();
      TROUPE_CO_CHECK(co_await out.send(protocol::encode(chunk)));
    }
    co_return ok();
  }
  Async<void> fetch_into(Pending<packages::PackageFilePointer> slot, std::shared_ptr<Peer> head,
                         protocol::GetPackage request, transport::Environment environment) {
    packages::FetchOptions fetch_options;
    fetch_options.request = std::move(request);
    fetch_options.silence_max = 1min;
    fetch_options.folder = &*here_;
    auto fetched = co_await packages::fetch(environment, std::move(head), std::move(fetch_options));
    slot->emplace(std::move(fetched));
  }
  std::optional<packages::Folder> here_;
};

TEST_F(HeadCheckpoints, TheLastOneIsWhatTheActorStartsFrom) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  EXPECT_EQ(worker.started.back().checkpoint.number, 0U);
  const auto first = store_state(worker, actor);
  ASSERT_TRUE(first) << first.error().to_string();
  EXPECT_EQ(first->number, 1U);
  EXPECT_EQ(first->size_bytes, 3U);
  EXPECT_EQ(first->incarnation, 1U);
  state = "the second";
  const auto second = store_state(worker, actor);
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_EQ(second->number, 2U);
  EXPECT_TRUE(eventually_kept({hash_of(state)}));
  const auto peer = driver();
  EXPECT_EQ(look(peer, actor.actor).checkpoint.number, 2U);
  ASSERT_TRUE(report_exit(worker, actor));
  const auto again = wait_alive(peer, actor.actor, 1);
  ASSERT_TRUE(again);
  const Checkpoint& told = worker.started.back().checkpoint;
  EXPECT_EQ(told.number, 2U);
  EXPECT_EQ(told.hash, hash_of(state));
  EXPECT_EQ(fetch(worker, actor.actor, told.hash).value(), state);
  EXPECT_EQ(code_of(fetch(worker, actor.actor, hash_of("one"))), Code::not_found);
  // What it had before goes on counting.
  state = "three";
  const auto third = store_state(worker, *again);
  ASSERT_TRUE(third);
  EXPECT_EQ(third->number, 3U);
  EXPECT_EQ(third->incarnation, 2U);
}

TEST_F(HeadCheckpoints, ALaterHeadKnowsIt) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(worker, actor));
  restart_head();
  return_worker(worker);
  const auto peer = driver();
  ASSERT_TRUE(wait_alive(peer, actor.actor, 1));  // It did not say that it runs: started anew.
  EXPECT_EQ(worker.started.back().checkpoint.number, 1U);
  EXPECT_EQ(fetch(worker, actor.actor, hash_of(state)).value(), state);
}

TEST_F(HeadCheckpoints, OnlyTheCurrentIncarnationWhereItRunsMayStore) {
  start_head();
  FakeWorker& worker = add_keeper();
  FakeWorker& other = add_keeper();
  const auto actor = create_actor();
  FakeWorker& home = actor.address.node == worker.node ? worker : other;
  FakeWorker& elsewhere = &home == &worker ? other : worker;
  EXPECT_EQ(code_of(store_state(elsewhere, actor)), Code::conflict);
  StoreCheckpoint foreign = request_of(home, actor);
  EXPECT_EQ(code_of(ask<Checkpoint>(elsewhere.head, Method::store_checkpoint, foreign)),
            Code::denied);
  StoreCheckpoint old_term = request_of(home, actor);
  --old_term.epoch;
  EXPECT_EQ(code_of(ask<Checkpoint>(home.head, Method::store_checkpoint, old_term)),
            Code::conflict);
  StoreCheckpoint unknown = request_of(home, actor);
  unknown.actor = ActorId::random(simulation.random());
  EXPECT_EQ(code_of(ask<Checkpoint>(home.head, Method::store_checkpoint, unknown)),
            Code::not_found);
  ASSERT_TRUE(report_exit(home, actor));
  ASSERT_TRUE(wait_alive(driver(), actor.actor, 1));
  const auto late = store_state(home, actor);
  EXPECT_EQ(code_of(late), Code::conflict);
  EXPECT_THAT(late.error().message(), HasSubstr("incarnation 1"));
  EXPECT_TRUE(eventually_kept({}));
  // A driver is no worker.
  EXPECT_EQ(code_of(ask<Checkpoint>(driver(), Method::store_checkpoint, request_of(home, actor))),
            Code::denied);
}

TEST_F(HeadCheckpoints, OneThatIsTooLargeIsRefusedWithBothSizes) {
  options.checkpoint_bytes_max = 4;
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(worker, actor));
  state = "larger";
  const auto refused = store_state(worker, actor);
  EXPECT_EQ(code_of(refused), Code::invalid);
  EXPECT_THAT(refused.error().message(), HasSubstr("has 6 bytes, a checkpoint has at most 4"));
  // Nor by saying that it is smaller.
  StoreCheckpoint liar = request_of(worker, actor);
  liar.size_bytes = 4;
  EXPECT_EQ(code_of(ask<Checkpoint>(worker.head, Method::store_checkpoint, liar)), Code::data_loss);
  EXPECT_TRUE(eventually_kept({hash_of("one")}));
  EXPECT_EQ(look(driver(), actor.actor).checkpoint.number, 1U);
}

TEST_F(HeadCheckpoints, OtherBytesThanTheHashSaysAreDataLoss) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(worker, actor));
  state = "two";
  lie = "twp";
  const auto refused = store_state(worker, actor);
  EXPECT_EQ(code_of(refused), Code::data_loss);
  EXPECT_THAT(refused.error().message(), HasSubstr(actor.actor.short_string()));
  EXPECT_TRUE(eventually_kept({hash_of("one")}));
  EXPECT_EQ(look(driver(), actor.actor).checkpoint.hash, hash_of("one"));
}

TEST_F(HeadCheckpoints, ASizeThatShrinksIsDataLoss) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  lie_later = 0;
  EXPECT_EQ(code_of(store_state(worker, actor)), Code::data_loss);
  EXPECT_TRUE(eventually_kept({}));
}

// It has stored a newer one meanwhile.
TEST_F(HeadCheckpoints, OneThatItsWorkerHasGivenUpDoesNotCount) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  stops = true;
  const auto given_up =
      begin<Checkpoint>(worker.head, Method::store_checkpoint, request_of(worker, actor), 1s);
  ASSERT_TRUE(simulation.run_until([&] { return given_up->has_value(); }, 10s));
  EXPECT_EQ(code_of(**given_up), Code::deadline_exceeded);
  stops = false;
  EXPECT_TRUE(eventually_kept({}));
  EXPECT_EQ(look(driver(), actor.actor).checkpoint.number, 0U);
}

TEST_F(HeadCheckpoints, ManyAtOnceAreFetchedAFewAtATime) {
  start_head();
  FakeWorker& worker = add_keeper(100);
  std::vector<protocol::ActorInfo> actors;
  for (int i = 0; i < 40; ++i) actors.push_back(create_actor());
  stops = true;
  std::vector<Pending<Checkpoint>> storing;
  for (size_t i = 0; i < actors.size(); ++i) {
    state = fmt::format("state {:02}", i);  // A file each.
    storing.push_back(
        begin<Checkpoint>(worker.head, Method::store_checkpoint, request_of(worker, actors[i])));
  }
  simulation.run_for(1s);
  EXPECT_EQ(kept().size(), 32U);
  stops = false;
  const auto are_over = [&] {
    return std::ranges::all_of(storing, [](const auto& slot) { return slot->has_value(); });
  };
  EXPECT_TRUE(simulation.run_until(are_over, 30s));
}

TEST_F(HeadCheckpoints, AWorkerThatDiesInTheMidstOfItLeavesTheOneBefore) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(worker, actor));
  state = "two";
  stops = true;
  const auto storing =
      begin<Checkpoint>(worker.head, Method::store_checkpoint, request_of(worker, actor));
  ASSERT_TRUE(simulation.run_until([&] { return kept().size() == 2; }, 10s));
  simulation.run_for(100ms);
  simulation.network().kill(*worker.host);
  stops = false;
  EXPECT_TRUE(eventually_kept({hash_of("one")}));
  FakeWorker& other = add_keeper();
  ASSERT_TRUE(wait_alive(driver(), actor.actor, 1));
  EXPECT_EQ(other.started.back().checkpoint.number, 1U);
  EXPECT_EQ(fetch(other, actor.actor, hash_of("one")).value(), "one");
}

TEST_F(HeadCheckpoints, WhatAnIncarnationSendsThatEndsMeanwhileDoesNotCount) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  stops = true;
  const auto storing =
      begin<Checkpoint>(worker.head, Method::store_checkpoint, request_of(worker, actor));
  ASSERT_TRUE(simulation.run_until([&] { return kept().size() == 1; }, 10s));
  ASSERT_TRUE(report_exit(worker, actor));
  ASSERT_TRUE(wait_alive(driver(), actor.actor, 1));
  stops = false;
  ASSERT_TRUE(simulation.run_until([&] { return storing->has_value(); }, 10s));
  EXPECT_EQ(code_of(**storing), Code::conflict);
  EXPECT_TRUE(eventually_kept({}));
  EXPECT_EQ(look(driver(), actor.actor).checkpoint.number, 0U);
}

TEST_F(HeadCheckpoints, AHeadThatDiesBetweenFileAndRowKeepsTheOneBefore) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(worker, actor));
  state = "two";
  store.commits_left = 0;
  EXPECT_FALSE(store_state(worker, actor));
  EXPECT_THAT(kept(), testing::UnorderedElementsAre(hash_of("one"), hash_of("two")));
  restart_head();
  EXPECT_TRUE(eventually_kept({hash_of("one")}));
  return_worker(worker);
  ASSERT_TRUE(wait_alive(driver(), actor.actor, 1));
  EXPECT_EQ(worker.started.back().checkpoint.number, 1U);
  EXPECT_EQ(worker.started.back().checkpoint.hash, hash_of("one"));
}

TEST_F(HeadCheckpoints, AnActorThatMovesIsAskedForItsLastState) {
  start_head();
  FakeWorker& leaves = add_keeper();
  const auto actor = create_actor();
  FakeWorker& stays = add_keeper();
  ASSERT_TRUE(store_state(leaves, actor));
  leaves.hold_stops = true;
  drain(leaves);
  ASSERT_TRUE(simulation.run_until([&] { return !leaves.stopped.empty(); }, 5s));
  EXPECT_TRUE(leaves.stopped[0].save);
  EXPECT_GE(leaves.stopped[0].grace_us, 60'000'000U) << "the state may be large";
  state = "two";
  EXPECT_EQ(store_state(leaves, actor).value().number, 2U);
  EXPECT_TRUE(stays.started.empty());
  leaves.let_go();
  ASSERT_TRUE(wait_alive(driver(), actor.actor, actor.incarnation));
  EXPECT_EQ(stays.started.back().checkpoint.number, 2U);
  EXPECT_EQ(fetch(stays, actor.actor, hash_of("two")).value(), "two");
  EXPECT_EQ(code_of(store_state(leaves, actor)), Code::conflict);
  ASSERT_TRUE(kill(driver(), actor.actor));
  ASSERT_TRUE(simulation.run_until([&] { return !stays.stopped.empty(); }, 5s));
  EXPECT_FALSE(stays.stopped[0].save);
}

TEST_F(HeadCheckpoints, OfADeadActorItGoes) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto killed = create_actor();
  ASSERT_TRUE(store_state(worker, killed));
  const auto peer = driver();
  ASSERT_TRUE(kill(peer, killed.actor));
  EXPECT_TRUE(eventually_kept({}));
  EXPECT_EQ(look(peer, killed.actor).checkpoint.number, 0U);
  const JobId job = begin_job(peer);
  protocol::ActorSpec spec = actor_spec();
  spec.job = job;
  ASSERT_TRUE(create(peer, spec));
  ASSERT_TRUE(store_state(worker, wait_alive(peer, spec.actor).value()));
  EXPECT_EQ(kept().size(), 1U);
  ASSERT_TRUE(ask<Empty>(peer, Method::end_job, protocol::EndJob{job, true, {}}));
  EXPECT_TRUE(eventually_kept({}));
}

TEST_F(HeadCheckpoints, ActorsWithEqualStatesShareAFileUntilTheLastIsGone) {
  start_head();
  FakeWorker& worker = add_keeper(2);
  const auto one = create_actor();
  const auto two = create_actor();
  ASSERT_TRUE(store_state(worker, one));
  ASSERT_TRUE(store_state(worker, two));
  const auto peer = driver();
  ASSERT_TRUE(kill(peer, one.actor));
  simulation.run_for(1s);
  EXPECT_EQ(fetch(worker, two.actor, hash_of("one")).value(), "one");
  ASSERT_TRUE(kill(peer, two.actor));
  EXPECT_TRUE(eventually_kept({}));
}

TEST_F(HeadCheckpoints, AMissingFileIsDataLossThatNamesIt) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(worker, actor));
  fs::remove(folder / "checkpoints" / hash_of("one"));
  const auto missing = fetch(worker, actor.actor, hash_of("one"));
  EXPECT_EQ(code_of(missing), Code::data_loss);
  EXPECT_THAT(missing.error().message(), HasSubstr("checkpoint 1 of actor"));
  EXPECT_THAT(missing.error().message(), HasSubstr(hash_of("one")));
  EXPECT_THAT(missing.error().message(), HasSubstr("not at this head"));
  // The next one mends it.
  ASSERT_TRUE(store_state(worker, actor));
  EXPECT_EQ(fetch(worker, actor.actor, hash_of("one")).value(), "one");
}

TEST_F(HeadCheckpoints, ADamagedFileIsDataLoss) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(worker, actor));
  std::ofstream{folder / "checkpoints" / hash_of("one")} << "onf";
  const auto damaged = fetch(worker, actor.actor, hash_of("one"));
  EXPECT_EQ(code_of(damaged), Code::data_loss);
  EXPECT_THAT(damaged.error().message(), HasSubstr(hash_of("one")));
}

TEST_F(HeadCheckpoints, AFullDiskSaysSoAndKeepsTheOneBefore) {
  start_head();
  FakeWorker& worker = add_keeper();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(worker, actor));
  state = std::string(10'000, 'x');
  const rlimit small{4096, RLIM_INFINITY};
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto failed = store_state(worker, actor);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old);
  EXPECT_EQ(code_of(failed), Code::exhausted);
  EXPECT_THAT(failed.error().message(), HasSubstr("free space"));
  EXPECT_TRUE(eventually_kept({hash_of("one")}));
  EXPECT_EQ(look(driver(), actor.actor).checkpoint.number, 1U);
}

TEST_F(HeadCheckpoints, OneForWhichTheDiskHasNoRoomIsRefusedBeforeItIsFetched) {
  start_head();
  FakeWorker& worker = add_keeper(2);
  const auto one = create_actor();
  const auto two = create_actor();
  store.set_free(FailingStore::promises_bytes + 15);
  state = std::string(16, 'x');
  const auto refused = store_state(worker, one);
  EXPECT_EQ(code_of(refused), Code::exhausted);
  EXPECT_THAT(refused.error().message(), HasSubstr("the disk is full"));
  EXPECT_THAT(kept(), testing::IsEmpty());
  // Together with what is on its way.
  state = std::string(10, 'x');
  stops = true;
  const auto storing =
      begin<Checkpoint>(worker.head, Method::store_checkpoint, request_of(worker, one));
  ASSERT_TRUE(simulation.run_until([&] { return kept().size() == 1; }, 10s));
  EXPECT_EQ(code_of(store_state(worker, two)), Code::exhausted);
  stops = false;
  ASSERT_TRUE(simulation.run_until([&] { return storing->has_value(); }, 10s));
  EXPECT_TRUE(**storing);
  EXPECT_TRUE(store_state(worker, two));
}

TEST_F(HeadCheckpoints, AnIntervalIsNotTooShort) {
  start_head();
  protocol::ActorSpec spec = actor_spec();
  spec.checkpoint_interval_us = 9'999;
  const auto refused = create(driver(), spec);
  EXPECT_EQ(code_of(refused), Code::invalid);
  EXPECT_THAT(refused.error().message(), HasSubstr("10 ms"));
}

}  // namespace
}  // namespace troupe::head
