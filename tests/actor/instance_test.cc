#include "actor/instance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <future>

#include "actor/host_table.h"
#include "actor/module.h"
#include "transport/real_environment.h"

namespace troupe::actor {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

Bytes number(uint64_t value) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(&value);
  return {bytes, bytes + sizeof value};
}
uint64_t number(const Bytes& bytes) {
  uint64_t value = 0;
  EXPECT_EQ(bytes.size(), sizeof value);
  std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
  return value;
}

// Objects in memory.
class MemoryServices final : public Services {
 public:
  Result<ObjectId> put(BytesView value, std::stop_token) override {
    const ObjectId id = ObjectId::random(random_);
    objects_[id] = std::make_shared<Bytes>(value.begin(), value.end());
    return id;
  }
  Result<client::ObjectBytes> get(ObjectId object, std::stop_token) override {
    const auto found = objects_.find(object);
    if (found == objects_.end()) return error(Code::not_found, "no such object");
    return client::ObjectBytes{*found->second, found->second};
  }
  Result<client::ObjectBytes> call_actor(client::ActorCallSpec, std::stop_token) override {
    return error(Code::unimplemented, "not here");
  }
  Result<std::unique_ptr<Channel>> open_channel(GroupSpec, std::stop_token) override {
    return error(Code::unimplemented, "not here");
  }

 private:
  SystemRandom random_;
  std::map<ObjectId, std::shared_ptr<Bytes>> objects_;
};

client::ObjectBytes owned(Bytes bytes) {
  auto kept = std::make_shared<Bytes>(std::move(bytes));
  return {*kept, kept};
}

// The body of a test is a coroutine on the loop, as the host is.
class InstanceTest : public testing::Test {
 protected:
  void run(std::function<Async<void>(Instance&)> body, InstanceOptions options = {},
           Bytes argument = number(uint64_t{0})) {
    InstanceSpec spec;
    spec.type = Module::load("echo", {TROUPE_TEST_MODULES}, host_table())
                    .value()
                    .find_class(class_name)
                    .value();
    spec.concurrency = concurrency;
    spec.checkpoints = plan;
    spec.identity = {ActorId{RawId{1, 2}}, JobId{RawId{3, 4}}, "the echo", "node-1", 1};
    spec.arguments.push_back(owned(std::move(argument)));
    Instance instance{real.environment(), services, std::move(spec), options};
    spawn(scope, drive(instance, std::move(body)));
    real.io().run();
    real.io().restart();
  }

  Async<void> drive(Instance& instance, std::function<Async<void>(Instance&)> body) {
    started = co_await instance.start();
    if (!instance.has_started()) co_return;
    if (started) co_await body(instance);
    instance.request_stop();
    const bool ended = co_await instance.wait_ended(Instant::max());
    EXPECT_TRUE(ended);
  }

  std::shared_ptr<Call> submit(Instance& instance, std::string method, Bytes argument = {},
                               bool streams = false,
                               std::shared_ptr<transport::CancelEvent> abandoned = nullptr,
                               Instant deadline = Instant::max()) {
    CallRequest request{std::move(method), 0, {}, deadline, streams};
    request.arrived = real.environment().clock.now();
    request.arguments.push_back(owned(std::move(argument)));
    auto call = instance.make_call(std::move(request), std::move(abandoned));
    const Status put = instance.submit(call);
    if (!put) call->finish(put.error());
    return call;
  }

  transport::RealEnvironment real;
  Scope scope{real.io().get_executor()};
  MemoryServices services;
  Status started = ok();
  std::string class_name = "echo";
  uint32_t concurrency = 0;
  CheckpointPlan plan;
};

TEST_F(InstanceTest, EchoesAndKnowsWhoItIs) {
  run([this](Instance& instance) -> Async<void> {
    auto call = submit(instance, "echo", to_bytes("hello"));
    const auto echoed = co_await call->outcome();
    EXPECT_EQ(echoed.value(), to_bytes("hello"));
    auto asked = submit(instance, "name");
    const auto name = co_await asked->outcome();
    EXPECT_EQ(name.value(), to_bytes("the echo"));
    EXPECT_EQ(instance.gauges().read().at("queue_depth"), 3.5);
    auto stored = submit(instance, "put_get", to_bytes("object"));
    const auto got = co_await stored->outcome();
    EXPECT_EQ(got.value(), to_bytes("object"));
    auto unknown = submit(instance, "nothing");
    const auto refused = co_await unknown->outcome();
    EXPECT_EQ(refused.error().code(), Code::not_found);
  });
}

TEST_F(InstanceTest, GivesTheErrorOfCreate) {
  run([](Instance&) -> Async<void> { co_return; }, {}, to_bytes("fail"));
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code(), Code::conflict);
  EXPECT_EQ(started.error().message(), "told to fail");
}

TEST_F(InstanceTest, RunsCallsInTheOrderOfTheirArrival) {
  run([this](Instance& instance) -> Async<void> {
    std::shared_ptr<Call> last;
    for (uint8_t digit = 1; digit <= 9; ++digit) last = submit(instance, "append", {digit});
    const auto outcome = co_await last->outcome();
    EXPECT_EQ(number(outcome.value()), 123456789u);
  });
}

TEST_F(InstanceTest, RunsDeferredWorkBeforeTheCallsThatWait) {
  run([this](Instance& instance) -> Async<void> {
    auto abandoned = std::make_shared<transport::CancelEvent>(real.io().get_executor());
    auto busy = submit(instance, "until_cancelled", {}, false, abandoned);
    auto waiting = submit(instance, "increment");
    std::promise<bool> was_finished;
    EXPECT_TRUE(instance.defer([&] { was_finished.set_value(waiting->is_finished()); }));
    abandoned->set();
    const auto stopped = co_await busy->outcome();
    EXPECT_EQ(stopped.error().code(), Code::cancelled);
    const auto outcome = co_await waiting->outcome();
    EXPECT_TRUE(outcome);
    EXPECT_FALSE(was_finished.get_future().get());
    instance.request_stop();
    EXPECT_FALSE(instance.defer([] {}));
  });
}

TEST_F(InstanceTest, RefusesWhenTheMailboxIsFull) {
  run(
      [this](Instance& instance) -> Async<void> {
        auto abandoned = std::make_shared<transport::CancelEvent>(real.io().get_executor());
        auto busy = submit(instance, "until_cancelled", {}, false, abandoned);
        // The mailbox holds four; the thread takes the first whenever it likes, which makes room
        // for one more. Behind it nothing ends but what was refused.
        std::vector<std::shared_ptr<Call>> calls;
        for (int i = 0; i < 6; ++i) calls.push_back(submit(instance, "increment"));
        const auto is_refused = [](const auto& call) { return call->is_finished(); };
        EXPECT_GE(std::count_if(calls.begin(), calls.end(), is_refused), 2);
        const auto full = *std::find_if(calls.begin(), calls.end(), is_refused);
        const auto refused = co_await full->outcome();
        EXPECT_EQ(refused.error().code(), Code::exhausted);
        EXPECT_TRUE(refused.error().retry_after().has_value());
        abandoned->set();
        const auto seen = co_await busy->outcome();
        EXPECT_EQ(seen.error().code(), Code::cancelled);
        const auto first = co_await calls.front()->outcome();
        EXPECT_EQ(number(first.value()), 1u);
      },
      {.mailbox_calls_max = 4});
}

TEST_F(InstanceTest, CallsThatWouldBeLateAreNotRunWhileOthersWait) {
  run([this](Instance& instance) -> Async<void> {
    const auto begin = [&](auto left) {
      return submit(instance, "slow", number(uint64_t{100}), false, nullptr,
                    real.environment().clock.now() + left);
    };
    for (int i = 0; i < 8; ++i) {
      auto call = begin(10s);
      (void)co_await call->outcome();
    }
    // Those behind the fifth or so are in vain.
    std::vector<std::shared_ptr<Call>> calls;
    for (int i = 0; i < 20; ++i) calls.push_back(begin(500ms));
    size_t done = 0, refused = 0;
    for (const auto& call : calls) {
      const auto outcome = co_await call->outcome();
      if (outcome) {
        ++done;
      } else if (outcome.error().message().find("the rest is less") != std::string::npos) {
        ++refused;
      }
    }
    EXPECT_GE(done, 1u);
    EXPECT_LE(done, 6u);  // The last is tried, for nothing waits behind it.
    EXPECT_GE(refused, 1u);
  });
}

// Names come from callers: of more than so many methods it is not known how long they take.
TEST_F(InstanceTest, OnlySoManyMethodsAreTimed) {
  run([this](Instance& instance) -> Async<void> {
    const auto begin = [&](std::string method, auto left) {
      return submit(instance, std::move(method), number(uint64_t{20}), false, nullptr,
                    real.environment().clock.now() + left);
    };
    std::vector<std::shared_ptr<Call>> calls;
    for (int i = 0; i < 1024; ++i) calls.push_back(begin("unknown " + std::to_string(i), 60s));
    for (int i = 0; i < 8; ++i) calls.push_back(begin("slow", 60s));
    for (const auto& call : calls) (void)co_await call->outcome();
    calls.clear();
    for (int i = 0; i < 20; ++i) calls.push_back(begin("slow", 100ms));
    for (const auto& call : calls) {
      const auto outcome = co_await call->outcome();
      if (outcome) continue;
      EXPECT_THAT(outcome.error().message(), HasSubstr("past its deadline"));
    }
  });
}

TEST_F(InstanceTest, DropsCallsThatAreLateOrAbandoned) {
  run([this](Instance& instance) -> Async<void> {
    auto late = submit(instance, "increment", {}, false, nullptr, Instant{});
    auto abandoned = std::make_shared<transport::CancelEvent>(real.io().get_executor());
    auto busy = submit(instance, "until_cancelled", {}, false, abandoned);
    auto gone = submit(instance, "increment");
    gone->cancel();
    auto fine = submit(instance, "increment");
    const auto too_late = co_await late->outcome();
    EXPECT_EQ(too_late.error().code(), Code::deadline_exceeded);
    abandoned->set();
    const auto stopped = co_await busy->outcome();
    EXPECT_EQ(stopped.error().code(), Code::cancelled);
    const auto dropped = co_await gone->outcome();
    EXPECT_THAT(dropped.error().message(), HasSubstr("before the call was run"));
    const auto first = co_await fine->outcome();
    EXPECT_EQ(number(first.value()), 1u);  // Neither of the dropped ones ran.
  });
}

TEST_F(InstanceTest, FinishesCallsLateFromAnyThreadAndOnceOnly) {
  run([this](Instance& instance) -> Async<void> {
    auto kept = submit(instance, "keep");
    auto finisher = submit(instance, "finish_kept");
    const auto first = co_await kept->outcome();
    EXPECT_EQ(number(first.value()), 5u);
    const auto second = co_await finisher->outcome();
    EXPECT_EQ(number(second.value()), 6u);
    auto late = submit(instance, "late");
    const auto from_thread = co_await late->outcome();
    EXPECT_EQ(number(from_thread.value()), 77u);
    auto twice = submit(instance, "finish_twice");
    const auto once = co_await twice->outcome();
    EXPECT_EQ(number(once.value()), 1u);
    // A handle that was finished twice does not finish the calls after it.
    auto after = submit(instance, "increment");
    const auto counted = co_await after->outcome();
    EXPECT_EQ(number(counted.value()), 1u);
  });
}

TEST_F(InstanceTest, StreamsItemsFromStepsUnderBackPressure) {
  run([this](Instance& instance) -> Async<void> {
    constexpr uint64_t total = 5 * stream_items_max;
    auto stream = submit(instance, "emit", number(total), true);
    uint64_t expected = total;
    for (;;) {
      const auto item = co_await stream->next_item();
      if (!item) break;
      EXPECT_EQ(number(item->bytes), expected--);
    }
    EXPECT_EQ(expected, 0u);
    const auto end = co_await stream->outcome();
    EXPECT_TRUE(end);
  });
}

TEST_F(InstanceTest, BoundsTheItemsOfAStream) {
  run([this](Instance& instance) -> Async<void> {
    auto small = submit(instance, "emit_until_full", to_bytes("x"), true);
    const auto by_count = co_await small->outcome();
    EXPECT_EQ(number(by_count.value()), stream_items_max);
    auto large = submit(instance, "emit_until_full", Bytes(3u << 20), true);
    const auto by_bytes = co_await large->outcome();
    EXPECT_EQ(number(by_bytes.value()), 2u);
    auto giant = submit(instance, "emit_until_full", Bytes(9u << 20), true);
    const auto alone = co_await giant->outcome();
    EXPECT_EQ(number(alone.value()), 1u);
    auto single = submit(instance, "emit_until_full", to_bytes("x"), false);
    const auto refused = co_await single->outcome();
    EXPECT_EQ(refused.error().code(), Code::invalid);
  });
}

TEST_F(InstanceTest, EndsAStreamWhoseReceiverIsGone) {
  run([this](Instance& instance) -> Async<void> {
    auto abandoned = std::make_shared<transport::CancelEvent>(real.io().get_executor());
    auto stream = submit(instance, "emit", number(uint64_t{1} << 40), true, abandoned);
    const auto first = co_await stream->next_item();
    EXPECT_TRUE(first);
    abandoned->set();
    const auto end = co_await stream->outcome();
    EXPECT_EQ(end.error().code(), Code::cancelled);
  });
}

TEST_F(InstanceTest, LooksAtTheMailboxBetweenSteps) {
  run([this](Instance& instance) -> Async<void> {
    auto work = submit(instance, "work", number(uint64_t{1} << 40));
    const auto begun = co_await work->outcome();
    EXPECT_TRUE(begun);
    auto look = submit(instance, "steps_left");
    const auto first = co_await look->outcome();
    auto again = submit(instance, "steps_left");
    const auto second = co_await again->outcome();
    EXPECT_LE(number(second.value()), number(first.value()));
    EXPECT_GT(number(second.value()), 0u);
  });  // The stop ends a loop of steps that would go on for years.
}

TEST_F(InstanceTest, FailsWhatIsUnfinishedAtTheEnd) {
  std::shared_ptr<Call> kept;
  std::shared_ptr<Call> running;
  std::shared_ptr<Call> waiting;
  run([&](Instance& instance) -> Async<void> {
    kept = submit(instance, "keep");
    auto barrier = submit(instance, "increment");
    const auto passed = co_await barrier->outcome();
    EXPECT_TRUE(passed);
    running = submit(instance, "until_stop");
    waiting = submit(instance, "increment");
    instance.request_stop();
    const auto unfinished = co_await kept->outcome();
    EXPECT_EQ(unfinished.error().code(), Code::cancelled);
    const auto stopped = co_await running->outcome();
    const bool ran = stopped.error().code() == Code::cancelled;
    EXPECT_TRUE(ran || stopped.error().code() == Code::unavailable);
    const auto not_run = co_await waiting->outcome();
    EXPECT_EQ(not_run.error().code(), Code::unavailable);
    auto refused = submit(instance, "increment");
    const auto too_late = co_await refused->outcome();
    EXPECT_EQ(too_late.error().code(), Code::unavailable);
  });
}

TEST_F(InstanceTest, DiesOfAStepThatFails) {
  run([this](Instance& instance) -> Async<void> {
    auto call = submit(instance, "die");
    const auto outcome = co_await call->outcome();
    EXPECT_EQ(outcome.error().code(), Code::outcome_unknown);
    const bool ended = co_await instance.wait_ended(Instant::max());
    EXPECT_TRUE(ended);
    EXPECT_EQ(instance.death().value().code(), Code::data_loss);
    EXPECT_EQ(instance.death().value().message(), "told to die");
  });
}

class InstanceCheckpoints : public InstanceTest {
 protected:
  InstanceCheckpoints() {
    std::string pattern = "/tmp/troupe-states-XXXXXX";
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    plan.folder = folder / "states";
    plan.saved = [this](const std::string& path, std::function<void(Result<Bytes>)> done) {
      saved.push_back(path);
      done(keeps ? Result<Bytes>{to_bytes("kept")} : error(Code::unavailable, "no head"));
    };
    plan.wished = [this] { ++wishes; };
  }
  ~InstanceCheckpoints() override { std::filesystem::remove_all(folder); }

  std::shared_ptr<Call> checkpoint(Instance& instance) {
    return submit(instance, TROUPE_CHECKPOINT_METHOD);
  }
  static uint64_t state_in(const std::filesystem::path& path) {
    uint64_t counter = 0;
    std::ifstream{path / "counter", std::ios::binary}.read(reinterpret_cast<char*>(&counter),
                                                           sizeof counter);
    return counter;
  }
  void keep_state(uint64_t counter) {
    plan.restore_from = folder / "kept";
    plan.number = 7;
    std::filesystem::create_directories(plan.restore_from);
    std::ofstream{plan.restore_from + "/counter", std::ios::binary}.write(
        reinterpret_cast<const char*>(&counter), sizeof counter);
  }

  std::filesystem::path folder;
  std::vector<std::string> saved;  // On the actor's thread.
  bool keeps = true;
  std::atomic<int> wishes = 0;
};

TEST_F(InstanceCheckpoints, AreTakenInTheOrderOfTheCalls) {
  run([this](Instance& instance) -> Async<void> {
    EXPECT_FALSE(instance.has_changed());
    for (int i = 0; i < 3; ++i) submit(instance, "increment");
    auto first = checkpoint(instance);
    submit(instance, "increment");
    auto second = checkpoint(instance);
    const auto kept = co_await first->outcome();
    EXPECT_EQ(kept.value(), to_bytes("kept"));
    const auto kept_again = co_await second->outcome();
    EXPECT_TRUE(kept_again);
    EXPECT_EQ(saved.size(), 2U);
    EXPECT_EQ(state_in(saved[0]), 3U);
    EXPECT_EQ(state_in(saved[1]), 4U);
  });
}

TEST_F(InstanceCheckpoints, KnowWhetherSomethingRanSinceTheLastThatWasKept) {
  class_name = "quiet";  // Steps that have work count too.
  run([this](Instance& instance) -> Async<void> {
    auto call = submit(instance, "increment");
    const auto counted = co_await call->outcome();
    EXPECT_TRUE(counted);
    EXPECT_TRUE(instance.has_changed());
    keeps = false;
    auto lost = checkpoint(instance);
    const auto refused = co_await lost->outcome();
    EXPECT_EQ(refused.error().code(), Code::unavailable);
    EXPECT_TRUE(instance.has_changed());
    keeps = true;
    auto kept = checkpoint(instance);
    const auto done = co_await kept->outcome();
    EXPECT_TRUE(done);
    EXPECT_FALSE(instance.has_changed());
  });
}

TEST_F(InstanceCheckpoints, OneThatTheModuleCannotWriteLeavesNothing) {
  run(
      [this](Instance& instance) -> Async<void> {
        auto call = checkpoint(instance);
        const auto failed = co_await call->outcome();
        EXPECT_EQ(failed.error().code(), Code::conflict);
        EXPECT_THAT(failed.error().message(), HasSubstr("told not to keep it"));
        EXPECT_TRUE(saved.empty());
        EXPECT_TRUE(std::filesystem::is_empty(plan.folder));
        EXPECT_TRUE(instance.has_changed());
        // It goes on.
        auto after = submit(instance, "increment");
        const auto counted = co_await after->outcome();
        EXPECT_EQ(number(counted.value()), 667u);
      },
      {}, number(uint64_t{666}));
}

TEST_F(InstanceCheckpoints, AFolderThatCannotBeMadeSaysSo) {
  std::ofstream{folder / "states"} << "a file";
  run([this](Instance& instance) -> Async<void> {
    auto call = checkpoint(instance);
    const auto failed = co_await call->outcome();
    EXPECT_EQ(failed.error().code(), Code::internal);
    EXPECT_THAT(failed.error().message(), HasSubstr(plan.folder));
  });
}

TEST_F(InstanceCheckpoints, AnInstanceGoesOnFromOne) {
  keep_state(41);
  run([this](Instance& instance) -> Async<void> {
    auto call = submit(instance, "increment");
    const auto counted = co_await call->outcome();
    EXPECT_EQ(number(counted.value()), 42u);
  });
  EXPECT_TRUE(started);
}

TEST_F(InstanceCheckpoints, OneThatCannotBeRestoredFailsTheStart) {
  keep_state(667);
  run([](Instance&) -> Async<void> { co_return; });
  ASSERT_FALSE(started);
  // Not what the module said: that would mean that no start can succeed.
  EXPECT_EQ(started.error().code(), Code::data_loss);
  EXPECT_EQ(started.error().message(), "restore from checkpoint 7: told not to restore it");
}

TEST_F(InstanceCheckpoints, OnlyOfOneThreadAndWhereTheyAreKept) {
  concurrency = 2;
  const auto refused = [this](const std::string& why) {
    run([&, this](Instance& instance) -> Async<void> {
      auto call = checkpoint(instance);
      const auto outcome = co_await call->outcome();
      EXPECT_EQ(outcome.error().code(), Code::unimplemented);
      EXPECT_THAT(outcome.error().message(), HasSubstr(why));
      auto wish = submit(instance, "wish");
      const auto answer = co_await wish->outcome();
      EXPECT_EQ(number(answer.value()), static_cast<uint64_t>(TROUPE_UNIMPLEMENTED));
    });
    EXPECT_TRUE(started);
    plan.is_regular = true;
    run([](Instance&) -> Async<void> { co_return; });
    EXPECT_EQ(started.error().code(), Code::invalid);
    EXPECT_THAT(started.error().message(), HasSubstr(why));
    plan.is_regular = false;
  };
  refused("several threads");
  concurrency = 0;
  plan.folder.clear();
  refused("its node keeps no checkpoints");
  EXPECT_EQ(wishes, 0);
}

TEST_F(InstanceCheckpoints, WishesBeforeOneBeginsAreOne) {
  run([this](Instance& instance) -> Async<void> {
    for (int i = 0; i < 3; ++i) {
      auto wish = submit(instance, "wish");
      const auto answer = co_await wish->outcome();
      EXPECT_EQ(number(answer.value()), 0u);
    }
    EXPECT_EQ(wishes, 1);
    auto call = checkpoint(instance);
    const auto kept = co_await call->outcome();
    EXPECT_TRUE(kept);
    auto wish = submit(instance, "wish");
    const auto answer = co_await wish->outcome();
    EXPECT_TRUE(answer);
    EXPECT_EQ(wishes, 2);
  });
}

TEST_F(InstanceCheckpoints, OneOnItsWayFailsWhenTheInstanceEnds) {
  std::function<void(Result<Bytes>)> later;
  std::promise<void> begun;
  plan.saved = [&](const std::string&, std::function<void(Result<Bytes>)> done) {
    later = std::move(done);
    begun.set_value();
  };
  run([&](Instance& instance) -> Async<void> {
    auto call = checkpoint(instance);
    begun.get_future().wait();
    instance.request_stop();
    const auto cancelled = co_await call->outcome();
    EXPECT_EQ(cancelled.error().code(), Code::cancelled);
    later(to_bytes("too late"));
  });
}

}  // namespace
}  // namespace troupe::actor
