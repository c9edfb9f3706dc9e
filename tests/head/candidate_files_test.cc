// The files that the rows of several heads name: whoever leads has what was promised.
#include <gmock/gmock.h>

#include <fstream>

#include "packages/archive.h"
#include "packages/transfer.h"
#include "security/digest.h"
#include "tests/head/candidate_fixture.h"
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

namespace fs = std::filesystem;
using protocol::Checkpoint;
using testing::HasSubstr;

// A worker with an actor whose state is kept, and a driver with a package; both follow the lead.
class CandidateFiles : public CandidateTest {
 protected:
  CandidateFiles() {
    std::string pattern = "/tmp/troupe-heads-XXXXXX";
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    own_ = packages::Folder::open(folder / "own").value();
    worker.registration.address.node = worker.node;
    worker.registration.address.process = ProcessId::random(simulation.random());
    worker.registration.name = "worker";
    worker.registration.total = {{"cpu", 100'000}};
    const auto answer = [this](transport::Message, transport::CallContext,
                               transport::OutgoingStream& out) { return give(out); };
    worker.on_stream(Method::get_package, answer);
    driver.on_stream(Method::get_package, answer);
  }
  ~CandidateFiles() override { packages::remove_unpacked(folder); }

  void SetUp() override {
    CandidateTest::SetUp();
    transport::PeerIdentity identity;
    identity.role = Role::node;
    identity.name = worker.node.to_string();
    worker.host = &simulation.network().add_host({"worker", "worker", identity});
    spawn(scope, beat());
  }

  static std::string hash_of(const std::string& text) {
    return security::to_hex(security::sha256(as_bytes(text)));
  }

  // --- What is asked of the head that leads.

  template <class Reply, class Request>
  Result<Reply> ask(std::shared_ptr<Peer> peer, Method method, Request request,
                    Duration budget = 20s) {
    auto slot = std::make_shared<std::optional<Result<Reply>>>();
    spawn(scope, ask_into<Reply>(slot, std::move(peer), method, std::move(request), budget));
    simulation.run_until([&] { return slot->has_value(); }, budget + 1s);
    return slot->has_value() ? std::move(**slot) : error(Code::internal, "no answer");
  }
  void connect_to_leader() {
    ASSERT_TRUE(await_leader());
    ASSERT_TRUE(simulation.run(greet(*leader()), 10s));
    auto registered =
        ask<protocol::NodeRegistered>(worker.head, Method::register_node, worker.registration);
    ASSERT_TRUE(registered) << registered.error().to_string();
    worker.epoch = registered->epoch;
  }
  protocol::ActorInfo wait_alive(ActorId actor, uint32_t after = 0) {
    protocol::GetActor request;
    request.actor = actor;
    request.after = after;
    auto info = ask<protocol::ActorInfo>(to_leader, Method::get_actor, request);
    EXPECT_TRUE(info) << info.error().to_string();
    return info ? *info : protocol::ActorInfo{};
  }
  protocol::ActorInfo create_actor(JobId job = {}, bool detached = false) {
    protocol::ActorSpec spec;
    spec.actor = ActorId::random(simulation.random());
    spec.module = "module";
    spec.class_name = "Counter";
    spec.demand = {{"cpu", 1000}};
    spec.max_restarts = -1;
    spec.job = job;
    spec.detached = detached;
    const auto created = ask<protocol::ActorInfo>(to_leader, Method::create_actor, spec);
    EXPECT_TRUE(created) << created.error().to_string();
    return wait_alive(spec.actor);
  }
  void kill_actor(ActorId actor) {
    EXPECT_TRUE(ask<Empty>(to_leader, Method::kill_actor, protocol::KillActor{actor, {}}));
  }
  Pending<Checkpoint> begin_store(const protocol::ActorInfo& actor) {
    protocol::StoreCheckpoint request;
    request.node = worker.node;
    request.epoch = worker.epoch;
    request.actor = actor.actor;
    request.incarnation = actor.incarnation;
    request.hash = hash_of(state);
    request.size_bytes = state.size();
    auto slot = std::make_shared<std::optional<Result<Checkpoint>>>();
    spawn(scope, ask_into<Checkpoint>(slot, worker.head, Method::store_checkpoint, request, 20s));
    return slot;
  }
  Result<Checkpoint> store_state(const protocol::ActorInfo& actor) {
    const auto slot = begin_store(actor);
    simulation.run_until([&] { return slot->has_value(); }, 21s);
    return slot->has_value() ? std::move(**slot) : error(Code::internal, "no answer");
  }
  // A job whose package is `state`.
  JobId begin_job() {
    protocol::BeginJob request;
    request.job = JobId::random(simulation.random());
    request.environment.packages = {{hash_of(state), "module", "/bin/module.so", state.size()}};
    EXPECT_TRUE(ask<Empty>(to_leader, Method::begin_job, request));
    return request.job;
  }
  // As a worker does before it starts something.
  Result<std::string> fetch(const protocol::GetPackage& request) {
    auto slot = std::make_shared<std::optional<Result<packages::PackageFilePointer>>>();
    spawn(scope, fetch_into(slot, request));
    simulation.run_until([&] { return slot->has_value(); }, 1min);
    if (!*slot) return error(Code::internal, "no answer");
    if (!**slot) return (*slot)->error();
    const auto bytes = packages::read_chunk(****slot, 0).value();
    return std::string(as_text(bytes));
  }

  // --- What heads have.

  static std::set<std::string> names_in(const fs::path& path) {
    std::set<std::string> names;
    std::error_code failed;
    for (const auto& entry : fs::directory_iterator(path, failed)) {
      names.insert(entry.path().filename());
    }
    return names;
  }
  testing::AssertionResult all_keep(const std::set<std::string>& checkpoints,
                                    const std::set<std::string>& packages) {
    std::string other;
    const auto keep = [&] {
      for (size_t i = 0; i < heads; ++i) {
        const auto has = std::pair{names_in(checkpoints_of(i)), names_in(packages_of(i))};
        other = name_of(i) + " has " + testing::PrintToString(has);
        if (has != std::pair{checkpoints, packages}) return false;
      }
      return true;
    };
    if (simulation.run_until(keep, 10s)) return testing::AssertionSuccess();
    return testing::AssertionFailure() << other;
  }
  void lose_machine(size_t i) {
    kill(i);
    machines[i] = std::make_unique<Machine>(cluster);
    packages::remove_unpacked(folder / name_of(i));
  }
  std::set<std::string> all_heads() const { return {"head-0", "head-1", "head-2"}; }

  FakeWorker worker{simulation, NodeId::random(simulation.random())};
  transport::Router driver;
  std::shared_ptr<Peer> to_leader;
  std::string state = "one";  // What worker and driver have to give.

 private:
  Async<Status> give(transport::OutgoingStream& out) {
    const size_t size = state.size();
    for (size_t at = 0; at < size; at += packages::chunk_bytes) {
      protocol::PackageChunk chunk;
      chunk.data = to_bytes(state.substr(at, packages::chunk_bytes));
      chunk.offset_bytes = at;
      chunk.total_bytes = size;
      TROUPE_CO_CHECK(co_await out.send(protocol::encode(chunk)));
    }
    co_return ok();
  }
  Async<void> greet(size_t to) {
    protocol::Hello as_worker;
    as_worker.kind = "worker";
    as_worker.address = worker.registration.address;
    protocol::Hello as_driver;
    as_driver.kind = "driver";
    as_driver.address.process = driver_process_;
    co_await greet_as(*worker.host, worker, as_worker, to, &worker.head);
    co_await greet_as(*client, driver, as_driver, to, &to_leader);
  }
  Async<void> greet_as(sim::SimHost& host, transport::Service& service, protocol::Hello hello,
                       size_t to, std::shared_ptr<Peer>* connected) {
    const Instant deadline = simulation.clock().now() + 5s;
    auto connection = co_await host.connect(endpoint_of(to), deadline);
    if (!connection) co_return;
    auto peer = co_await Peer::start(scope, simulation.environment(host), std::move(*connection),
                                     service, std::move(hello), deadline);
    if (peer) *connected = *peer;
  }
  template <class Reply, class Request>
  Async<void> ask_into(Pending<Reply> slot, std::shared_ptr<Peer> peer, Method method,
                       Request request, Duration budget) {
    auto answer = co_await transport::call<Reply>(std::move(peer), method, request, budget);
    slot->emplace(std::move(answer));
  }
  Async<void> fetch_into(Pending<packages::PackageFilePointer> slot, protocol::GetPackage request) {
    packages::FetchOptions options;
    options.request = std::move(request);
    options.silence_max = 1min;
    options.folder = &*own_;
    auto fetched = co_await packages::fetch(simulation.environment(*worker.host), worker.head,
                                            std::move(options));
    slot->emplace(std::move(fetched));
  }
  Async<void> beat() {
    for (;;) {
      co_await sleep_for(simulation.clock(), 500ms);
      if (!worker.head || !worker.head->is_open()) continue;
      protocol::Heartbeat beat;
      beat.node = worker.node;
      beat.epoch = worker.epoch;
      (void)co_await transport::call<protocol::HeartbeatReply>(worker.head, Method::heartbeat, beat,
                                                               1s);
    }
  }
  const ProcessId driver_process_ = ProcessId::random(simulation.random());
  std::optional<packages::Folder> own_;
};

TEST_F(CandidateFiles, ACheckpointThatWasAnsweredOutlivesTheMachineOfTheLeader) {
  start_all();
  connect_to_leader();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(actor));
  state = "the second";
  const auto second = store_state(actor);
  ASSERT_TRUE(second) << second.error().to_string();
  for (size_t i = 0; i < heads; ++i) {
    EXPECT_TRUE(names_in(checkpoints_of(i)).contains(hash_of(state))) << i;
  }
  lose_machine(*leader());
  connect_to_leader();  // Its actor's process died meanwhile.
  EXPECT_EQ(wait_alive(actor.actor, 1).state, "alive");
  EXPECT_EQ(worker.started.back().checkpoint.number, 2U);
  protocol::GetPackage request;
  request.actor = actor.actor;
  request.hash = hash_of(state);
  const auto bytes = fetch(request);
  ASSERT_TRUE(bytes) << bytes.error().to_string();
  EXPECT_EQ(*bytes, state);
}

TEST_F(CandidateFiles, PackagesOfAJobWhoseDriverEndedOutliveTheMachineOfTheLeader) {
  start_all();
  connect_to_leader();
  state = std::string(3 << 20, 'x');
  const JobId job = begin_job();
  const auto actor = create_actor(job, true);
  ASSERT_TRUE(ask<Empty>(to_leader, Method::end_job, protocol::EndJob{job, true, {}}));
  const protocol::GetPackage request{job, hash_of(state), 0};
  state = "something else";  // It can be had from nobody else any more.
  lose_machine(*leader());
  connect_to_leader();
  EXPECT_EQ(wait_alive(actor.actor, 1).state, "alive");
  const auto bytes = fetch(request);
  ASSERT_TRUE(bytes) << bytes.error().to_string();
  EXPECT_EQ(bytes->size(), packages::chunk_bytes);
  start(0);
  ASSERT_TRUE(await_in_sync(all_heads()));
  EXPECT_TRUE(all_keep({}, {request.hash}));
}

TEST_F(CandidateFiles, AHeadThatWasAwayHasTheFilesBeforeItIsInSync) {
  start_all();
  connect_to_leader();
  const auto one = create_actor();
  const auto other = create_actor();
  ASSERT_TRUE(store_state(one));
  kill(2);
  state = "two";
  ASSERT_TRUE(store_state(one));
  state = "of the other";
  ASSERT_TRUE(store_state(other));
  const std::set<std::string> all{hash_of("two"), hash_of(state)};
  std::set<std::string> had;
  model.on_change([&](const LeadRecord& record) {
    const bool is_back = std::ranges::find(record.in_sync, "head-2") != record.in_sync.end();
    if (is_back && had.empty()) had = names_in(checkpoints_of(2));
  });
  start(2);
  ASSERT_TRUE(await_in_sync(all_heads()));
  EXPECT_THAT(had, testing::IsSupersetOf(all));
  EXPECT_TRUE(all_keep(all, {}));
  // The same without anything to begin with.
  lose_machine(2);
  ASSERT_TRUE(await_in_sync({"head-0", "head-1"}));
  had.clear();
  start(2);
  ASSERT_TRUE(await_in_sync(all_heads()));
  EXPECT_EQ(had, all);
  lose_machine(0);
  lose_machine(1);
  ASSERT_TRUE(await_leader());
  EXPECT_EQ(leader(), 2U);
  connect_to_leader();
  EXPECT_EQ(wait_alive(other.actor, 1).state, "alive");
  protocol::GetPackage request;
  request.actor = other.actor;
  request.hash = hash_of(state);
  EXPECT_EQ(fetch(request).value(), state);
}

TEST_F(CandidateFiles, OneThatTakesLongKeepsNoOtherPromiseWaitingAndNobodyOut) {
  start_all();
  connect_to_leader();
  const auto actor = create_actor();
  simulation.network().slow_down("machine-head-2", 100ms);
  state = std::string(16 << 20, 'x');
  const Instant began = simulation.clock().now();
  const auto storing = begin_store(actor);
  while (!storing->has_value() && simulation.clock().now() < began + 20s) {
    const Instant since = simulation.clock().now();
    promise_many(1);
    EXPECT_LT(simulation.clock().now() - since, 500ms);
    EXPECT_EQ(in_sync(), all_heads());
  }
  ASSERT_TRUE(storing->has_value() && **storing);
  EXPECT_GT(simulation.clock().now() - began, 1s);
  EXPECT_TRUE(names_in(checkpoints_of(2)).contains(hash_of(state)));
}

// It is recorded as in sync all the while, and hears of the file from its row alone.
TEST_F(CandidateFiles, AHeadThatMissedTheNewsOfAFileTakesNoRowWithoutIt) {
  start_all();
  connect_to_leader();
  const auto actor = create_actor();
  simulation.network().slow_down("machine-head-1", 50ms);
  state = std::string(4 << 20, 'x');
  kill(1);
  const auto storing = begin_store(actor);
  start(1);
  ASSERT_TRUE(simulation.run_until([&] { return storing->has_value(); }, 10s));
  ASSERT_TRUE(**storing);
  EXPECT_EQ(in_sync(), all_heads());
  EXPECT_TRUE(names_in(checkpoints_of(1)).contains(hash_of(state)));
}

TEST_F(CandidateFiles, AHeadWithoutRoomForFilesIsNotWaitedForAndComesBack) {
  start_all();
  connect_to_leader();
  const auto actor = create_actor();
  machines[1]->store.set_free(0);
  const Instant since = simulation.clock().now();
  const auto stored = store_state(actor);
  ASSERT_TRUE(stored) << stored.error().to_string();
  EXPECT_LT(simulation.clock().now() - since, 2s);
  EXPECT_EQ(in_sync(), (std::set<std::string>{"head-0", "head-2"}));
  promise_many(5);
  simulation.run_for(30s);
  EXPECT_EQ(in_sync(), (std::set<std::string>{"head-0", "head-2"}));
  // It has all rows, though.
  EXPECT_TRUE(simulation.run_until([&] { return all_hashes_agree(); }, 5s));
  machines[1]->store.set_free(UINT64_MAX);
  ASSERT_TRUE(await_in_sync(all_heads()));
  EXPECT_TRUE(all_keep({hash_of(state)}, {}));
}

TEST_F(CandidateFiles, AHeadWhoseFolderFailsIsNotWaitedForAndComesBack) {
  start_all();
  connect_to_leader();
  const auto actor = create_actor();
  fs::remove_all(checkpoints_of(1));
  ASSERT_TRUE(store_state(actor));
  EXPECT_EQ(in_sync(), (std::set<std::string>{"head-0", "head-2"}));
  simulation.run_for(5s);
  EXPECT_EQ(in_sync(), (std::set<std::string>{"head-0", "head-2"}));
  fs::create_directory(checkpoints_of(1));
  ASSERT_TRUE(await_in_sync(all_heads()));
  EXPECT_TRUE(all_keep({hash_of(state)}, {}));
}

TEST_F(CandidateFiles, AHeadThatDoesNotFetchInTimeIsNotWaitedFor) {
  start_all();
  connect_to_leader();
  const auto actor = create_actor();
  machines[1]->host->pause();
  const Instant since = simulation.clock().now();
  ASSERT_TRUE(store_state(actor));
  EXPECT_LT(simulation.clock().now() - since, 7s);
  EXPECT_EQ(in_sync(), (std::set<std::string>{"head-0", "head-2"}));
  machines[1]->host->resume();
  ASSERT_TRUE(await_in_sync(all_heads()));
  EXPECT_TRUE(all_keep({hash_of(state)}, {}));
}

TEST_F(CandidateFiles, AFileThatNoRowNamesAnyMoreGoesEverywhere) {
  start_all();
  connect_to_leader();
  const JobId job = begin_job();
  const std::string package = hash_of(state);
  const auto actor = create_actor(job, true);
  const auto other = create_actor();
  state = "first";
  ASSERT_TRUE(store_state(actor));
  ASSERT_TRUE(store_state(other));  // They share it.
  EXPECT_TRUE(all_keep({hash_of("first")}, {package}));
  state = "second";
  ASSERT_TRUE(store_state(actor));
  EXPECT_TRUE(all_keep({hash_of("first"), hash_of("second")}, {package}));
  kill_actor(other.actor);
  EXPECT_TRUE(all_keep({hash_of("second")}, {package}));
  ASSERT_TRUE(ask<Empty>(to_leader, Method::end_job, protocol::EndJob{job, true, {}}));
  simulation.run_for(1s);
  EXPECT_TRUE(all_keep({hash_of("second")}, {package}));
  kill_actor(actor.actor);
  EXPECT_TRUE(all_keep({}, {}));
}

// Announced, and then its worker gave it up.
TEST_F(CandidateFiles, AFileThatNoRowComesToNameGoes) {
  start_all();
  connect_to_leader();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(actor));
  std::ofstream{checkpoints_of(1) / hash_of("nobody's")} << "nobody's";
  kill(1);
  start(1);
  ASSERT_TRUE(await_in_sync(all_heads()));
  EXPECT_TRUE(all_keep({hash_of(state)}, {}));
}

TEST_F(CandidateFiles, WhatTheLeaderLacksKeepsNobodyOut) {
  start_all();
  connect_to_leader();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(actor));
  fs::remove(checkpoints_of(0) / hash_of(state));
  lose_machine(2);
  ASSERT_TRUE(await_in_sync({"head-0", "head-1"}));
  start(2);
  ASSERT_TRUE(await_in_sync(all_heads()));
  EXPECT_EQ(names_in(checkpoints_of(2)).size(), 0U);
  // Another head has it, and leads after this one.
  auto outcome = std::make_shared<std::optional<Result<protocol::TransferLead>>>();
  const auto hand_over = [&]() -> Async<void> {
    protocol::TransferLead request;
    request.to = "head-1";
    auto handed = co_await machines[0]->candidate->replicator()->hand_over(std::move(request));
    *outcome = std::move(handed);
  };
  ASSERT_TRUE(simulation.run(hand_over(), 10s));
  ASSERT_TRUE(simulation.run_until([&] { return leader() == 1U; }, 1s));
  end(0, true);
  start(0);
  ASSERT_TRUE(await_in_sync(all_heads()));
  EXPECT_TRUE(all_keep({hash_of(state)}, {}));
}

TEST_F(CandidateFiles, AHeadWhoseDiskLostAFileFetchesItBeforeItIsInSyncAgain) {
  start_all();
  connect_to_leader();
  const auto actor = create_actor();
  ASSERT_TRUE(store_state(actor));
  kill(1);
  std::ofstream{checkpoints_of(1) / hash_of(state)} << "half of it";
  start(1);
  ASSERT_TRUE(simulation.run_until(
      [&] { return fs::file_size(checkpoints_of(1) / hash_of(state)) == state.size(); }, 10s));
  ASSERT_TRUE(await_in_sync(all_heads()));
  kill(0);
  kill(2);
  ASSERT_TRUE(await_leader());
  connect_to_leader();
  EXPECT_EQ(wait_alive(actor.actor, 1).state, "alive");
  protocol::GetPackage request;
  request.actor = actor.actor;
  request.hash = hash_of(state);
  EXPECT_EQ(fetch(request).value(), state);
}

}  // namespace
}  // namespace troupe::head
