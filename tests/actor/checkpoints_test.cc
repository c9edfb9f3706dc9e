// States of this process's actors on their way to a worker that takes, holds or refuses them.
#include "actor/checkpoints.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "actor/host_table.h"
#include "actor/module.h"
#include "packages/archive.h"
#include "tests/client/client_fixture.h"
#include "transport/real_environment.h"

namespace troupe::actor {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using client::CallContext;
using client::Message;
using client::Method;
using testing::ElementsAre;
using testing::UnorderedElementsAre;

// No instance here asks the cluster for anything.
class NoServices final : public Services {
 public:
  Result<ObjectId> put(BytesView, std::stop_token) override { return nothing(); }
  Result<client::ObjectBytes> get(ObjectId, std::stop_token) override { return nothing(); }
  Result<client::ObjectBytes> call_actor(client::ActorCallSpec, std::stop_token) override {
    return nothing();
  }
  Result<std::unique_ptr<Channel>> open_channel(GroupSpec, std::stop_token) override {
    return nothing();
  }

 private:
  static Error nothing() { return error(Code::unimplemented, "not here"); }
};

class ActorCheckpoints : public client::ClientTest {
 protected:
  struct Hosted {
    protocol::AssignActor assignment;
    CheckpointPlan plan;
    std::shared_ptr<Instance> instance;
  };
  struct Stored {
    ActorId actor;
    uint32_t incarnation = 0;
    std::string state;
  };

  ActorCheckpoints() {
    std::string pattern = "/tmp/troupe-states-XXXXXX";
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    worker.on_message(Method::store_checkpoint,
                      [this](Message message, CallContext) { return store(std::move(message)); });
  }
  ~ActorCheckpoints() override { fs::remove_all(folder); }
  void SetUp() override {
    start_client();
    checkpoints.emplace(*client);
  }
  void TearDown() override {
    for (const auto& one : hosted_) {
      if (!one->instance->has_started()) continue;
      one->instance->request_stop();
      EXPECT_TRUE(eventually([&] { return one->instance->ended().is_set(); }));
    }
    client::ClientTest::TearDown();
    hosted_.clear();
  }

  // One that runs nothing until it is started.
  Hosted& add_instance(ActorId id, uint32_t incarnation, uint64_t counter = 0) {
    Hosted& one = *hosted_.emplace_back(std::make_unique<Hosted>());
    one.assignment.spec.actor = id;
    one.assignment.spec.checkpoint_interval_us = 1'000'000;
    one.assignment.incarnation = incarnation;
    one.assignment.checkpoint_folder = folder / "states";
    one.plan = checkpoints->plan(one.assignment, [&one] { return one.instance; });
    InstanceSpec spec;
    spec.type = Module::load("echo", {TROUPE_TEST_MODULES}, host_table())
                    .value()
                    .find_class("quiet")
                    .value();
    spec.identity = {id, job, "the quiet one", "node-1", incarnation};
    spec.checkpoints = one.plan;
    spec.mailbox_calls_max = 1;
    auto argument = std::make_shared<Bytes>(sizeof counter);
    std::memcpy(argument->data(), &counter, sizeof counter);
    spec.arguments.push_back({*argument, argument});
    // Its thread reads the clock whenever it likes, which the simulation's is not made for.
    const transport::Environment simulated = simulation.environment(host);
    const transport::Environment mixed{simulated.loop, simulated.blocking,
                                       real_.environment().clock, simulated.random,
                                       simulated.network};
    one.instance = std::make_shared<Instance>(mixed, services, std::move(spec), InstanceOptions{});
    return one;
  }
  Hosted& add_instance() { return add_instance(ActorId::random(simulation.random()), 1); }
  Hosted& start_instance(uint64_t counter = 0) {
    Hosted& one = add_instance(ActorId::random(simulation.random()), 1, counter);
    created_ = false;
    spawn(scope, start(one.instance));
    EXPECT_TRUE(eventually([&] { return created_; }));
    return one;
  }
  static std::shared_ptr<Call> submit(const Hosted& one, std::string method) {
    CallRequest request;
    request.method = std::move(method);
    auto call = one.instance->make_call(std::move(request), nullptr);
    const Status put = one.instance->submit(call);
    if (!put) call->finish(put.error());
    return call;
  }
  void run_to_its_end(const Hosted& one, const std::string& method) {
    const auto call = submit(one, method);
    EXPECT_TRUE(eventually([&] { return call->is_finished(); })) << method;
  }
  static std::vector<std::string> waiting(const Hosted& one) {
    std::vector<std::string> methods;
    one.instance->for_each_waiting(
        [&](const auto& call) { methods.push_back(call->request().method); });
    return methods;
  }

  bool wait_stored(const Hosted& one, Duration budget) {
    auto arrived = std::make_shared<std::optional<bool>>();
    spawn(scope, wait_stored_into(arrived, one.assignment, in(budget)));
    EXPECT_TRUE(simulation.run_until([&] { return arrived->has_value(); }, budget + 1s));
    return arrived->value_or(false);
  }

  // As the instance's thread does that has written its state.
  void save(const Hosted& one, const std::string& state) {
    const fs::path path = folder / "states" / fmt::format("{}", ++written_);
    fs::create_directories(path);
    std::ofstream{path / "counter"} << state;
    one.plan.saved(path, [this, state](Result<Bytes> outcome) {
      EXPECT_TRUE(outcomes.emplace(state, std::move(outcome)).second) << state << " ended twice";
    });
    simulation.run_for(10ms);
  }
  std::vector<std::string> on_disk() const {
    std::vector<std::string> states;
    for (const auto& entry : fs::directory_iterator(folder / "states")) {
      std::string& state = states.emplace_back();
      std::getline(std::ifstream{entry.path() / "counter"}, state);
    }
    return states;
  }
  std::vector<std::string> states_stored() const {
    std::vector<std::string> states;
    for (const Stored& one : stored) states.push_back(one.state);
    return states;
  }
  void answer(size_t how_many) {
    answers += how_many;
    worker.changed.pulse();
    simulation.run_for(100ms);
  }

  // For what threads do, which take no virtual time.
  template <class Condition>
  bool eventually(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + 60s;
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      simulation.run_for(1ms);
      std::this_thread::yield();
    }
    return true;
  }

  fs::path folder;
  std::vector<Stored> stored;    // By the worker, in the order in which they came.
  size_t answers = 0;            // It answers so many, the first ones first...
  std::optional<Error> refusal;  // with this, or that it is stored.
  std::map<std::string, Result<Bytes>> outcomes;
  NoServices services;
  std::optional<Checkpoints> checkpoints;

 private:
  Async<void> start(std::shared_ptr<Instance> instance) {
    const Status started = co_await instance->start();
    EXPECT_TRUE(started);
    created_ = true;
  }
  Async<void> wait_stored_into(std::shared_ptr<std::optional<bool>> arrived,
                               protocol::AssignActor assignment, Instant deadline) {
    const bool stored_all =
        co_await checkpoints->wait_stored(assignment.spec.actor, assignment.incarnation, deadline);
    *arrived = stored_all;
  }
  Async<Result<Message>> store(Message message) {
    const auto request = protocol::decode<protocol::StoreCheckpoint>(message.body).value();
    const auto archive =
        packages::adopt(std::move(message.descriptors.at(0)), request.hash).value();
    EXPECT_EQ(archive->size_bytes, request.size_bytes);
    const std::string place = folder / fmt::format("stored-{}", stored.size());
    EXPECT_TRUE(packages::unpack(*archive, place, packages::checkpoint_archive()));
    std::string state;
    std::getline(std::ifstream{place + "/counter"}, state);
    packages::remove_unpacked(place);
    stored.push_back({request.actor, request.incarnation, std::move(state)});
    const size_t mine = stored.size();
    while (mine > answers) co_await worker.changed.wait();
    if (refusal) co_return *refusal;
    Message kept{to_bytes("kept"), {}};
    co_return kept;
  }

  std::vector<std::unique_ptr<Hosted>> hosted_;
  transport::RealEnvironment real_;
  bool created_ = false;
  int written_ = 0;
};

TEST_F(ActorCheckpoints, AWishPassesAFullMailbox) {
  const Hosted& one = add_instance();
  submit(one, "increment");
  const auto refused = submit(one, "increment");
  ASSERT_TRUE(refused->is_finished()) << "the mailbox has room";
  one.plan.wished();
  simulation.run_for(1ms);
  EXPECT_THAT(waiting(one), ElementsAre("increment", TROUPE_CHECKPOINT_METHOD));
}

TEST_F(ActorCheckpoints, AnIntervalPassesAFullMailbox) {
  const Hosted& one = start_instance();
  answers = SIZE_MAX;
  const auto busy = submit(one, "until_cancelled");
  ASSERT_TRUE(eventually([&] { return one.instance->has_changed(); })) << "the call has not begun";
  const auto counted = submit(one, "increment");
  ASSERT_TRUE(submit(one, "increment")->is_finished()) << "the mailbox has room";
  checkpoints->begin(one.assignment.spec, one.instance);
  simulation.run_for(1s);
  EXPECT_THAT(waiting(one), ElementsAre("increment", TROUPE_CHECKPOINT_METHOD));
  busy->cancel();
  ASSERT_TRUE(eventually([&] { return stored.size() == 1; }));
  EXPECT_TRUE(counted->is_finished());
  EXPECT_EQ(stored[0].actor, one.assignment.spec.actor);
  EXPECT_EQ(stored[0].state.at(0), 1) << "not of after the call before it";
}

TEST_F(ActorCheckpoints, AWishThatTheWorkerRefusesDoesNotDisableTheNext) {
  const Hosted& one = start_instance();
  answers = SIZE_MAX;
  refusal = error(Code::invalid, "it is too large");
  run_to_its_end(one, "wish");
  // Nothing has changed once it is on its way, and something has again when it was refused.
  ASSERT_TRUE(eventually([&] { return stored.size() == 1 && one.instance->has_changed(); }));
  run_to_its_end(one, "wish");
  EXPECT_TRUE(eventually([&] { return stored.size() == 2; }));
}

TEST_F(ActorCheckpoints, AWishWhoseStateCannotBeWrittenDoesNotDisableTheNext) {
  const Hosted& one = start_instance(666);
  answers = SIZE_MAX;
  run_to_its_end(one, "wish");
  // The thread makes it and then asks the module, which refuses.
  ASSERT_TRUE(eventually([&] { return fs::exists(folder / "states"); }));
  run_to_its_end(one, "increment");
  EXPECT_TRUE(stored.empty());
  run_to_its_end(one, "wish");
  EXPECT_TRUE(eventually([&] { return stored.size() == 1; }));
}

TEST_F(ActorCheckpoints, OneThatIsSavedAtItsEndIsAwaited) {
  const Hosted& one = start_instance();
  run_to_its_end(one, "increment");
  one.instance->request_stop(true);
  ASSERT_TRUE(eventually([&] { return stored.size() == 1; }));
  EXPECT_EQ(stored[0].state.at(0), 1);
  ASSERT_TRUE(eventually([&] { return one.instance->ended().is_set(); }));
  EXPECT_FALSE(wait_stored(one, 1s)) << "its worker has not answered";
  answer(1);
  EXPECT_TRUE(wait_stored(one, 1s));
}

TEST_F(ActorCheckpoints, WithoutAChangeOrAWishForItNothingIsSavedAtTheEnd) {
  const Hosted& unchanged = start_instance();
  unchanged.instance->request_stop(true);
  ASSERT_TRUE(eventually([&] { return unchanged.instance->ended().is_set(); }));
  const Hosted& killed = start_instance();
  run_to_its_end(killed, "increment");
  killed.instance->request_stop();
  ASSERT_TRUE(eventually([&] { return killed.instance->ended().is_set(); }));
  EXPECT_TRUE(wait_stored(unchanged, 1s));
  EXPECT_TRUE(wait_stored(killed, 1s));
  EXPECT_TRUE(stored.empty());
}

TEST_F(ActorCheckpoints, FourAreOnTheirWayAtATime) {
  for (int i = 1; i <= 7; ++i) save(add_instance(), fmt::format("{}", i));
  simulation.run_for(1s);
  EXPECT_THAT(states_stored(), ElementsAre("1", "2", "3", "4"));
  answer(1);
  EXPECT_THAT(states_stored(), ElementsAre("1", "2", "3", "4", "5"));
  answer(6);
  EXPECT_THAT(states_stored(), ElementsAre("1", "2", "3", "4", "5", "6", "7"));
  EXPECT_EQ(outcomes.size(), 7u);
  EXPECT_TRUE(on_disk().empty());
}

TEST_F(ActorCheckpoints, OfThoseThatWaitTheNewestIsAllAndAloneOnDisk) {
  const Hosted& one = add_instance();
  save(one, "on its way");
  for (int i = 1; i <= 3; ++i) save(add_instance(), fmt::format("other {}", i));
  // One that waits for the one before it, and one that waits for others.
  const Hosted& two = add_instance();
  for (int i = 1; i <= 3; ++i) {
    save(one, fmt::format("one {}", i));
    save(two, fmt::format("two {}", i));
    EXPECT_THAT(on_disk(),
                UnorderedElementsAre(fmt::format("one {}", i), fmt::format("two {}", i)));
  }
  refusal = error(Code::unavailable, "no head");
  answer(4);
  refusal.reset();
  EXPECT_FALSE(outcomes.at("on its way"));
  EXPECT_EQ(outcomes.count("one 1"), 0u);
  answer(2);
  EXPECT_THAT(states_stored(),
              ElementsAre("on its way", "other 1", "other 2", "other 3", "two 3", "one 3"));
  // What the newest holds has all that those before it held.
  for (const char* state : {"one 1", "one 2", "one 3", "two 1", "two 2", "two 3"}) {
    ASSERT_TRUE(outcomes.contains(state)) << state;
    EXPECT_EQ(outcomes.at(state).value(), to_bytes("kept")) << state;
  }
  EXPECT_TRUE(on_disk().empty());
}

// A process may host an actor again while the state of the incarnation before is on its way.
TEST_F(ActorCheckpoints, ThoseOfAnotherIncarnationWaitByThemselves) {
  const ActorId id = ActorId::random(simulation.random());
  const Hosted& before = add_instance(id, 1);
  const Hosted& after = add_instance(id, 2);
  save(before, "one");
  save(before, "two");
  save(after, "three");
  save(after, "four");
  EXPECT_THAT(on_disk(), UnorderedElementsAre("two", "four"));
  answer(4);
  EXPECT_EQ(outcomes.size(), 4u);
  for (const Stored& one : stored) {
    const bool is_old = one.state == "one" || one.state == "two";
    EXPECT_EQ(one.incarnation, is_old ? 1u : 2u) << one.state;
    EXPECT_EQ(one.actor, id);
  }
  EXPECT_THAT(states_stored(), UnorderedElementsAre("one", "two", "three", "four"));
}

TEST_F(ActorCheckpoints, TheStateOfAnInstanceThatIsNoMoreGoes) {
  Hosted& one = add_instance();
  const auto gone = std::exchange(one.instance, nullptr);
  save(one, "late");
  EXPECT_TRUE(on_disk().empty());
  EXPECT_TRUE(stored.empty());
  EXPECT_TRUE(outcomes.empty());
  one.plan.wished();
  one.instance = gone;
}

}  // namespace
}  // namespace troupe::actor
