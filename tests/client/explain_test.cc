// What a process tells of the objects that it owns, and what it does about its own waits.
#include <algorithm>

#include "client/blocked_waits.h"
#include "client/explainer.h"
#include "tests/client/client_fixture.h"

namespace troupe::client {
namespace {

using protocol::Explanation;

class ExplainTest : public ClientTest {
 protected:
  // As another process asks.
  Explanation explain(ObjectId object) {
    protocol::ObjectIds request{{object}};
    auto told = ask<protocol::Explanations>(Method::explain_objects, std::move(request));
    if (!told || told->items.size() != 1) {
      ADD_FAILURE() << "no answer";
      return {};
    }
    return told->items[0];
  }
  template <class Reply, class Request>
  Result<Reply> ask(Method method, Request request) {
    return await(call<Reply, Request>(worker.peers.at(0), method, std::move(request)));
  }
  template <class Reply, class Request>
  static Async<Result<Reply>> call(std::shared_ptr<Peer> peer, Method method, Request request) {
    co_return co_await transport::call<Reply>(peer, method, std::move(request), 5s);
  }
};

TEST_F(ExplainTest, ReadyFailedFreedAndUnknownObjectsAreToldApart) {
  start_client();
  FakeProcess& process = add_actor();
  const ObjectName ready = put("value");
  EXPECT_EQ(explain(ready.id).state, "ready");
  process.failures.push_back(error(Code::invalid, "no such thing").at("echo"));
  const ObjectName failed = client->submit_call(call_of("x"));
  ASSERT_FALSE(get(failed));
  EXPECT_EQ(explain(failed.id).state, "failed");
  EXPECT_NE(explain(failed.id).why.find("no such thing"), std::string::npos);
  EXPECT_EQ(explain(ObjectId{RawId{1, 2}}).state, "unknown");
}

TEST_F(ExplainTest, ACallThatWasSentIsAtItsProcess) {
  start_client();
  FakeProcess& process = add_actor();
  process.hold = true;
  auto spec = call_of("x");
  spec.budget = 1h;
  const ObjectName result = client->submit_call(std::move(spec));
  simulation.run_for(1s);
  const Explanation told = explain(result.id);
  EXPECT_EQ(told.state, wait_state::sent);
  ASSERT_EQ(told.waits_for.size(), 1u);
  EXPECT_EQ(told.waits_for[0].kind, "call");
  EXPECT_EQ(told.waits_for[0].id, result.id);
  EXPECT_EQ(told.waits_for[0].at.process, process.address.process);
  EXPECT_GT(told.deadline_us, 3'500'000'000u);
  EXPECT_LT(told.deadline_us, 3'600'000'000u);
}

TEST_F(ExplainTest, ACallWhoseActorIsNotThereWaitsForTheActor) {
  start_client();
  head.silent = true;
  const ObjectName first = client->submit_call(call_of("x"));
  const ObjectName second = client->submit_call(call_of("y"));
  simulation.run_for(1s);
  const Explanation told = explain(second.id);
  EXPECT_EQ(told.state, "not sent");
  EXPECT_NE(told.why.find("behind 1 others"), std::string::npos) << told.why;
  ASSERT_EQ(told.waits_for.size(), 1u);
  EXPECT_EQ(told.waits_for[0].kind, "actor");
  EXPECT_EQ(told.waits_for[0].id, actor);
  EXPECT_TRUE(told.waits_for[0].at.process.is_nil());
  EXPECT_EQ(told.deadline_us, 0u);
  head.silent = false;
  head.changed.pulse();
}

TEST_F(ExplainTest, ATaskWithoutASlotWaitsForItsLease) {
  start_client();
  head.silent = true;
  auto spec = task_of("x");
  spec.demand = {{"cpu", 2500}, {"gpu", 1000}};
  spec.budget = 10min;
  const ObjectName first = client->submit_task(spec);
  const ObjectName second = client->submit_task(spec);
  simulation.run_for(1s);
  ASSERT_FALSE(head.leases.empty());
  const Explanation told = explain(second.id);
  EXPECT_EQ(told.state, wait_state::queued);
  EXPECT_NE(told.why.find("a slot with cpu 2.5, gpu 1, behind 1 others"), std::string::npos)
      << told.why;
  ASSERT_EQ(told.waits_for.size(), 1u);
  EXPECT_EQ(told.waits_for[0].kind, "lease");
  EXPECT_EQ(told.waits_for[0].id, head.leases.back().lease);
  EXPECT_GT(told.deadline_us, 0u);
  head.silent = false;
  head.changed.pulse();
}

TEST_F(ExplainTest, ATaskThatRunsOrWaitsForItsNextTryIsToldSo) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  auto spec = task_of("x");
  spec.retry = {.retries = 3, .on = {Code::invalid}, .delay_first = 5s};
  const ObjectName result = client->submit_task(spec);
  simulation.run_for(1s);
  const Explanation sent = explain(result.id);
  EXPECT_EQ(sent.state, wait_state::sent);
  ASSERT_EQ(sent.waits_for.size(), 1u);
  EXPECT_EQ(sent.waits_for[0].at.process, slot.address.process);
  slot.failures.push_back(error(Code::invalid, "not now").at("echo"));
  slot.hold = false;
  slot.changed.pulse();
  simulation.run_for(1s);
  const Explanation later = explain(result.id);
  EXPECT_EQ(later.state, "backing off");
  EXPECT_NE(later.why.find("its retry 1 begins in 4.0 s"), std::string::npos) << later.why;
  add_slot();  // The other one has been given back.
  ASSERT_TRUE(get(result));
}

TEST_F(ExplainTest, EachOfSeveralResultsWaitsForItsCall) {
  start_client();
  FakeProcess& slot = add_slot();
  slot.hold = true;
  auto spec = task_of("x");
  spec.results = 3;
  Client::Objects more;
  const auto first = client->start_task(spec, &more);
  ASSERT_EQ(more.size(), 2u);
  const ObjectName last = client->objects().publish(more[1]);
  simulation.run_for(1s);
  const Explanation told = explain(last.id);
  EXPECT_EQ(told.state, wait_state::sent);
  ASSERT_EQ(told.waits_for.size(), 1u);
  EXPECT_EQ(told.waits_for[0].id, first->id());
  slot.hold = false;
  slot.changed.pulse();
}

TEST_F(ExplainTest, QuestionsHaveABoundAndDriversRunNoCalls) {
  start_client();
  protocol::ObjectIds many{std::vector<ObjectId>(5000, ObjectId{RawId{1, 2}})};
  EXPECT_EQ(code_of(ask<protocol::Explanations>(Method::explain_objects, many)), Code::invalid);
  protocol::ExplainCalls calls{{}, {TaskId{RawId{1, 2}}}};
  EXPECT_EQ(code_of(ask<protocol::Explanations>(Method::explain_calls, calls)), Code::not_found);
}

// --- Waits

class TestWait final : public BlockedWait {
 public:
  TestWait(const void* call, ObjectName object) : BlockedWait(call, true), object_(object) {}
  WaitFacts facts() override {
    ++asked;
    return {"get", {as_subject(object_)}, WaitFacts::Needs::all, deadline};
  }
  void fail(const Error& why) override { failure = why; }

  Instant deadline = Instant::max();
  std::optional<Error> failure;
  int asked = 0;

 private:
  const ObjectName object_;
};

// A process whose one call waits for its own next one.
class Busy final : public InvocationHandler {
 public:
  Async<Result<protocol::InvokeReply>> invoke(protocol::Invoke, CallContext) override {
    co_return error(Code::unimplemented, "not here");
  }
  Async<Status> invoke_stream(protocol::Invoke, CallContext, transport::OutgoingStream&) override {
    co_return error(Code::unimplemented, "not here");
  }
  protocol::Explanations explain_calls(const protocol::ExplainCalls& asked) override {
    ++questions;
    protocol::Explanations told;
    for (const TaskId task : asked.tasks) {
      Explanation& one = told.items.emplace_back();
      one.name = task == waiting.id ? "A.f" : "A.g";
      if (dissolves && questions > 2) {
        one.state = "running";
      } else if (task == waiting.id) {
        one.state = wait_state::waiting;
        one.waits_for.push_back({"object", awaited.id, {}, awaited.owner});
      } else {
        one.state = wait_state::queued;
        one.waits_for.push_back({"call", waiting.id, {}, awaited.owner});
      }
    }
    return told;
  }
  std::vector<TaskId> calls_of(std::span<BlockedWait* const> waits) override {
    std::vector<TaskId> calls;
    for (const BlockedWait* wait : waits) {
      calls.push_back(wait->call() == this ? waiting.id : TaskId{});
    }
    return calls;
  }

  struct {
    TaskId id;
  } waiting;
  ObjectName awaited;
  bool dissolves = false;
  int questions = 0;
};

class BlockedWaitsTest : public ExplainTest {
 protected:
  BlockedWaitsTest() { busy.waiting.id = TaskId{RawId{7, 7}}; }

  // With a call that was sent to a process that holds it. What it waits for is told to be at this
  // process.
  ObjectName begin_call() {
    FakeProcess& process = add_actor();
    process.hold = true;
    process.on(Method::explain_calls, *this, &BlockedWaitsTest::explain_calls);
    client->set_invocation_handler(&busy);
    const ObjectName result = client->submit_call(call_of("x"));
    busy.awaited = result;
    simulation.run_for(1s);
    return result;
  }
  Async<Result<protocol::Explanations>> explain_calls(protocol::ExplainCalls asked, CallContext) {
    co_return busy.explain_calls(asked);
  }

  Busy busy;
};

TEST_F(BlockedWaitsTest, AWaitThatWaitsForItselfFails) {
  start_client();
  TestWait wait{&busy, begin_call()};
  const InBlockedWaits listed{client->waits(), wait};
  simulation.run_for(900ms);
  EXPECT_EQ(wait.asked, 0);  // Most waits are over by now.
  simulation.run_for(1500ms);
  ASSERT_TRUE(wait.failure);
  EXPECT_EQ(wait.failure->code(), Code::conflict);
  EXPECT_NE(wait.failure->message().find("deadlock: A.f waits for A.g, which is queued behind A.f"),
            std::string::npos)
      << wait.failure->message();
}

TEST_F(BlockedWaitsTest, ACircleThatDissolvesBetweenTwoLooksIsNone) {
  start_client();
  busy.dissolves = true;
  TestWait wait{&busy, begin_call()};
  const InBlockedWaits listed{client->waits(), wait};
  simulation.run_for(1min);
  EXPECT_GT(busy.questions, 2);
  EXPECT_FALSE(wait.failure);
}

TEST_F(BlockedWaitsTest, AWaitOfNoCallIsNoPartOfACircle) {
  start_client();
  TestWait wait{nullptr, begin_call()};
  const InBlockedWaits listed{client->waits(), wait};
  simulation.run_for(1min);
  EXPECT_FALSE(wait.failure);
  EXPECT_EQ(busy.questions, 0);
}

TEST_F(BlockedWaitsTest, LooksComeLessAndLessOften) {
  start_client();
  busy.dissolves = true;
  TestWait wait{&busy, begin_call()};
  const InBlockedWaits listed{client->waits(), wait};
  simulation.run_for(10min);
  EXPECT_GE(wait.asked, 5);
  EXPECT_LE(wait.asked, 15);
}

TEST_F(BlockedWaitsTest, NothingIsLookedAtOnceTheWaitsAreOver) {
  start_client();
  TestWait wait{&busy, begin_call()};
  {
    const InBlockedWaits listed{client->waits(), wait};
    simulation.run_for(500ms);
  }
  simulation.run_for(1min);
  EXPECT_EQ(wait.asked, 0);
}

TEST(BlockedLog, ItsTimeIsANumberOfSeconds) {
  EXPECT_EQ(blocked_log_after(nullptr), 10s);
  EXPECT_EQ(blocked_log_after("3"), 3s);
  EXPECT_EQ(blocked_log_after("0"), 0s);
  for (const char* wrong : {"", "-1", "soon", "3s", "99999999999999999999"}) {
    EXPECT_EQ(blocked_log_after(wrong), 10s) << wrong;
  }
}

}  // namespace
}  // namespace troupe::client
