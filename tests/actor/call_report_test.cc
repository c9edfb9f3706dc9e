// What is told of the calls of an instance: those that run, that wait in the mailbox, that wait for
// others.
#include "actor/call_report.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>

#include "actor/host_table.h"
#include "actor/module.h"
#include "client/blocked_waits.h"
#include "transport/real_environment.h"

namespace troupe::actor {
namespace {

using namespace std::chrono_literals;
using client::wait_state::queued;
using client::wait_state::waiting;
using client::wait_state::waiting_for_any;
using protocol::Explanation;

class NoServices final : public Services {
 public:
  Result<ObjectId> put(BytesView, std::stop_token) override { return refusal(); }
  Result<client::ObjectBytes> get(ObjectId, std::stop_token) override { return refusal(); }
  Result<client::ObjectBytes> call_actor(client::ActorCallSpec, std::stop_token) override {
    return refusal();
  }
  Result<std::unique_ptr<Channel>> open_channel(GroupSpec, std::stop_token) override {
    return refusal();
  }

 private:
  static Error refusal() { return error(Code::unimplemented, "not here"); }
};

class HeldWait final : public client::BlockedWait {
 public:
  HeldWait(const void* call, std::vector<uint64_t> objects)
      : BlockedWait(call, true), objects_(std::move(objects)) {}
  client::WaitFacts facts() override {
    client::WaitFacts told{"get", {}, needs, deadline};
    for (const uint64_t object : objects_) {
      told.subjects.push_back({"object", RawId{5, object}, {}, {}});
    }
    return told;
  }
  void fail(const Error&) override {}

  client::WaitFacts::Needs needs = client::WaitFacts::Needs::all;
  Instant deadline = Instant::max();

 private:
  const std::vector<uint64_t> objects_;
};

// The body of a test is a coroutine on the loop, as the host is. Its instance runs
// "until_cancelled" on each of its threads.
class CallReportTest : public testing::Test {
 protected:
  void run(uint32_t threads, std::function<void(Instance&)> body) {
    InstanceSpec spec;
    // Without steps, for which an actor has one thread alone.
    const auto echo = Module::load("echo", {TROUPE_TEST_MODULES}, host_table());
    troupe_actor_class type = **echo.value().find_class("echo");
    type.step = nullptr;
    spec.type = &type;
    spec.identity = {actor, JobId{RawId{3, 4}}, "left", "node-1", 1};
    spec.concurrency = threads;
    spec.arguments.push_back({BytesView{zero}, nullptr});
    Instance instance{real.environment(), services, std::move(spec), {}};
    spawn(scope, drive(instance, threads, std::move(body)));
    real.io().run();
  }
  std::shared_ptr<Call> submit(Instance& instance, uint64_t id, const std::string& method,
                               Instant deadline = Instant::max()) {
    CallRequest request{method, 0, {}, deadline};
    auto call = instance.make_call(std::move(request), nullptr, ObjectId{RawId{8, id}});
    EXPECT_TRUE(instance.submit(call));
    return call;
  }
  static TaskId task(uint64_t id) { return TaskId{RawId{8, id}}; }
  Reported reported(Instance& instance) const { return {instance, actor, "Desk", "left"}; }
  Explanation report(Instance& instance, uint64_t id) {
    CallReports found;
    report_calls(client, std::array{reported(instance)}, {task(id)}, found);
    if (found.size() == 1 && found.begin()->first == task(id)) return found.begin()->second;
    ADD_FAILURE() << found.size() << " reports of call " << id;
    return {};
  }
  TaskId call_of(Instance& instance, client::BlockedWait& wait) const {
    return calls_of(std::array{reported(instance)}, std::array{&wait}).at(0);
  }
  const void* handle_of(Instance& instance, uint64_t id) {
    const void* handle = nullptr;
    instance.for_each_running([&](const troupe_call* one, const std::shared_ptr<Call>& call) {
      if (task_of(*call) == task(id)) handle = one;
    });
    return handle;
  }

  transport::RealEnvironment real;
  Scope scope{real.io().get_executor()};
  NoServices services;
  client::Client client{real.environment(), {}};
  const ActorId actor{RawId{1, 2}};

 private:
  Async<void> drive(Instance& instance, uint32_t threads, std::function<void(Instance&)> body) {
    const Status started = co_await instance.start();
    EXPECT_TRUE(started);
    std::vector<std::shared_ptr<Call>> calls;
    for (uint64_t id = 1; id <= threads; ++id) {
      calls.push_back(submit(instance, id, "until_cancelled"));
    }
    size_t running = 0;
    while (running < threads) {
      running = 0;
      instance.for_each_running(
          [&](const troupe_call*, const std::shared_ptr<Call>&) { ++running; });
      co_await sleep_for(real.environment().clock, 1ms);
    }
    body(instance);
    for (const auto& call : calls) call->cancel();
    instance.request_stop();
    const bool ended = co_await instance.wait_ended(Instant::max());
    EXPECT_TRUE(ended);
    HeldWait late{this, {}};
    EXPECT_TRUE(call_of(instance, late).is_nil());
  }

  const Bytes zero = Bytes(8);
};

TEST_F(CallReportTest, TellsWhatRunsAndWhatWaitsBehindIt) {
  run(1, [this](Instance& instance) {
    submit(instance, 2, "increment");
    submit(instance, 3, "increment", real.environment().clock.now() + 1min);
    const Explanation runs = report(instance, 1);
    EXPECT_EQ(runs.kind, "call");
    EXPECT_EQ(runs.name, "Desk.until_cancelled of left");
    EXPECT_EQ(runs.state, "running");
    EXPECT_GT(runs.since_us, 0u);
    EXPECT_EQ(runs.deadline_us, 0u);
    const Explanation waits = report(instance, 3);
    EXPECT_EQ(waits.state, queued);
    EXPECT_EQ(waits.why, "number 2 in the mailbox, behind Desk.until_cancelled of left");
    EXPECT_GT(waits.deadline_us, 50'000'000u);
    ASSERT_EQ(waits.waits_for.size(), 1u);
    EXPECT_EQ(waits.waits_for[0].id, task(1));
    const Explanation all = report_actor(client, reported(instance));
    EXPECT_EQ(all.name, "left (Desk)");
    EXPECT_EQ(all.state, "busy");
    EXPECT_EQ(all.why, "1 of its calls have begun, 2 wait in its mailbox");
    EXPECT_EQ(all.waits_for.size(), 3u);
    CallReports none;
    report_calls(client, std::array{reported(instance)}, {task(77), TaskId{}}, none);
    EXPECT_TRUE(none.empty());
  });
}

TEST_F(CallReportTest, OfSeveralThreadsAnyMayTakeTheNextCall) {
  run(2, [this](Instance& instance) {
    submit(instance, 3, "increment");
    const Explanation waits = report(instance, 3);
    EXPECT_EQ(waits.why, "number 1 in the mailbox; 2 of at most 2 calls at once have begun");
    ASSERT_EQ(waits.waits_for.size(), 2u);
    EXPECT_EQ(waits.waits_for[0].id, task(1));
    EXPECT_EQ(waits.waits_for[1].id, task(2));
  });
}

TEST_F(CallReportTest, ATaskBehindAnotherIsTakenBackAndNotStuck) {
  run(1, [this](Instance& instance) {
    submit(instance, 2, "increment");
    CallReports found;
    const Reported tasks{instance, {}, "troupe.tasks", {}};
    report_calls(client, std::array{tasks}, {task(1), task(2)}, found);
    EXPECT_EQ(found.at(task(1)).name, "task until_cancelled");
    EXPECT_EQ(found.at(task(2)).state, "sent ahead");
  });
}

TEST_F(CallReportTest, ACallThatWaitsNamesWhatItWaitsFor) {
  run(1, [this](Instance& instance) {
    const void* handle = handle_of(instance, 1);
    ASSERT_NE(handle, nullptr);
    HeldWait wait{handle, {1, 2}};
    HeldWait stranger{nullptr, {9}};
    const client::InBlockedWaits listed{client.waits(), wait};
    const client::InBlockedWaits other{client.waits(), stranger};
    EXPECT_EQ(call_of(instance, wait), task(1));
    EXPECT_TRUE(call_of(instance, stranger).is_nil());
    Explanation told = report(instance, 1);
    EXPECT_EQ(told.state, waiting);
    EXPECT_EQ(told.why, "its get waits for 2 results");
    ASSERT_EQ(told.waits_for.size(), 2u);
    EXPECT_EQ(told.waits_for[1].id, (RawId{5, 2}));
    EXPECT_EQ(told.deadline_us, 0u);
    wait.needs = client::WaitFacts::Needs::any;
    EXPECT_EQ(report(instance, 1).state, waiting_for_any);
    wait.needs = client::WaitFacts::Needs::unknown;
    EXPECT_EQ(report(instance, 1).state, "waiting for many");
    wait.needs = client::WaitFacts::Needs::all;
    wait.deadline = real.environment().clock.now() + 30s;
    EXPECT_GT(report(instance, 1).deadline_us, 20'000'000u);
    wait.needs = client::WaitFacts::Needs::item;
    EXPECT_EQ(report(instance, 1).why, "its get waits for the next item of a stream");
    EXPECT_EQ(report(instance, 1).state, "waiting for an item");
  });
}

TEST_F(CallReportTest, OfSeveralWaitsOfACallAnyMayBeTheOneThatMatters) {
  run(1, [this](Instance& instance) {
    HeldWait one{handle_of(instance, 1), {1}};
    HeldWait other{handle_of(instance, 1), {2}};
    const client::InBlockedWaits first{client.waits(), one};
    const client::InBlockedWaits second{client.waits(), other};
    const Explanation told = report(instance, 1);
    EXPECT_EQ(told.state, waiting_for_any);
    EXPECT_EQ(told.waits_for.size(), 2u);
  });
}

}  // namespace
}  // namespace troupe::actor
