// Calls to actors: their order, which of them are sent again, and what ends them.
#include "client/mailbox_pace.h"
#include "tests/client/client_fixture.h"

namespace troupe::client {
namespace {

class ActorCallTest : public ClientTest {
 protected:
  static std::shared_ptr<const ActorCallExtras> retrying(RetryPolicy policy) {
    ActorCallExtras extras;
    extras.retry = std::move(policy);
    return std::make_shared<const ActorCallExtras>(std::move(extras));
  }
  static std::shared_ptr<const ActorCallExtras> waiting_for_room() {
    ActorCallExtras extras;
    extras.waits_for_room = true;
    return std::make_shared<const ActorCallExtras>(std::move(extras));
  }
  ActorCallSpec waiting_call(const std::string& argument) {
    auto spec = call_of(argument);
    spec.extras = waiting_for_room();
    return spec;
  }
  Result<std::string> call(ActorCallSpec spec) {
    const Duration limit = std::min<Duration>(spec.budget, 1min) + 1s;
    auto value = await(client->call_actor(std::move(spec)), limit);
    if (!value) return value.error();
    return std::string(as_text(value->bytes));
  }
};

TEST_F(ActorCallTest, GivesTheActorsAnswer) {
  start_client();
  FakeProcess& process = add_actor();
  const auto answer = call(call_of("hello"));
  ASSERT_TRUE(answer);
  EXPECT_EQ(*answer, "hello");
  ASSERT_EQ(process.calls.size(), 1u);
  EXPECT_EQ(process.calls[0].actor, actor);
  EXPECT_EQ(process.calls[0].incarnation, 1u);
  EXPECT_EQ(process.calls[0].job, job);
}

TEST_F(ActorCallTest, CallsAreSentInTheirOrder) {
  start_client();
  FakeProcess& process = add_actor();
  std::vector<ObjectName> results;
  for (int i = 0; i < 20; ++i) results.push_back(client->submit_call(call_of(std::to_string(i))));
  for (const ObjectName& result : results) ASSERT_TRUE(get(result));
  ASSERT_EQ(process.calls.size(), 20u);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(as_text(process.calls[static_cast<size_t>(i)].arguments[0].inline_value),
              std::to_string(i));
  }
}

TEST_F(ActorCallTest, HeadIsAskedForTheFirstCallAlone) {
  start_client();
  add_actor();
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(call(call_of("hello")));
  EXPECT_EQ(head.asked, 1);
}

TEST_F(ActorCallTest, KnownActorIsCalledThoughTheHeadIsGone) {
  start_client();
  add_actor();
  ASSERT_TRUE(call(call_of("hello")));
  head.die();
  EXPECT_EQ(code_of(call(call_of("hello"))), Code::ok);
}

TEST_F(ActorCallTest, UnknownActorIsUnavailableWhileTheHeadIsGone) {
  start_client();
  add_actor();
  head.die();
  auto spec = call_of("hello");
  spec.budget = 3s;
  EXPECT_EQ(code_of(call(spec)), Code::unavailable);
}

// --- What is sent again.

TEST_F(ActorCallTest, RefusalBeforeItRanIsSentAgain) {
  start_client();
  FakeProcess& process = add_actor();
  process.failures = {error(Code::unavailable, "this process hosts nothing yet")};
  EXPECT_EQ(code_of(call(call_of("hello"))), Code::ok);
  EXPECT_EQ(process.calls.size(), 2u);
}

TEST_F(ActorCallTest, RefusalForAnotherIncarnationIsSentAgainToTheNewOne) {
  start_client();
  FakeProcess& process = add_actor();
  ASSERT_TRUE(call(call_of("hello")));
  head.actor.incarnation = 2;
  process.failures = {error(Code::conflict, "this process hosts another incarnation")};
  EXPECT_EQ(code_of(call(call_of("hello"))), Code::ok);
  ASSERT_EQ(process.calls.size(), 3u);
  EXPECT_EQ(process.calls[2].incarnation, 2u);
}

TEST_F(ActorCallTest, FailureOfWhatRanIsNeverSentAgain) {
  start_client();
  FakeProcess& process = add_actor();
  for (const Code code : {Code::unavailable, Code::conflict, Code::outcome_unknown,
                          Code::deadline_exceeded, Code::internal}) {
    process.calls.clear();
    process.failures = {error(code, "the method says so").at("actor on node worker-1")};
    auto spec = call_of("hello");
    spec.extras = retrying({.retries = -1});
    EXPECT_EQ(code_of(call(spec)), code);
    simulation.run_for(10s);
    EXPECT_EQ(process.calls.size(), 1u) << code_name(code);
  }
}

TEST_F(ActorCallTest, ListedFailuresAreSentAgainAsOftenAsTheyMay) {
  start_client();
  FakeProcess& process = add_actor();
  const Error conflict = error(Code::conflict, "not yet").at("actor on node worker-1");
  process.failures = {conflict, conflict, conflict};
  auto spec = call_of("hello");
  spec.extras = retrying({.retries = 2, .on = {Code::conflict}});
  const auto answer = call(spec);
  ASSERT_EQ(code_of(answer), Code::conflict);
  EXPECT_EQ(answer.error().message(), "not yet (tried 3 times)");
  EXPECT_EQ(process.calls.size(), 3u);
}

TEST_F(ActorCallTest, OtherRefusalIsFinal) {
  start_client();
  FakeProcess& process = add_actor();
  for (const Code code : {Code::invalid, Code::not_found, Code::unimplemented, Code::exhausted}) {
    process.calls.clear();
    process.failures = {error(code, "no")};
    EXPECT_EQ(code_of(call(call_of("hello"))), code);
    EXPECT_EQ(process.calls.size(), 1u) << code_name(code);
  }
}

// --- Full mailboxes.

TEST_F(ActorCallTest, CallerThatWaitsForRoomIsSentAgainUntilTheMailboxHasSome) {
  start_client();
  FakeProcess& process = add_actor();
  process.failures.assign(20, error(Code::exhausted, "the mailbox is full"));
  EXPECT_EQ(code_of(call(waiting_call("hello"))), Code::ok);
  EXPECT_EQ(process.calls.size(), 21u);
}

TEST_F(ActorCallTest, ExhaustedOfWhatRanIsNeverSentAgain) {
  start_client();
  FakeProcess& process = add_actor();
  process.failures = {error(Code::exhausted, "out of paper").at("echo of actor on node worker-1")};
  EXPECT_EQ(code_of(call(waiting_call("hello"))), Code::exhausted);
  simulation.run_for(10s);
  EXPECT_EQ(process.calls.size(), 1u);
}

TEST_F(ActorCallTest, CallsThatWaitForRoomAreSentAgainInTheirOrderBeforeLaterOnes) {
  start_client();
  FakeProcess& process = add_actor();
  process.failures.assign(40, error(Code::exhausted, "the mailbox is full"));
  std::vector<ObjectName> results;
  for (int i = 0; i < 20; ++i) {
    results.push_back(client->submit_call(waiting_call(std::to_string(i))));
  }
  simulation.run_until([&] { return process.failures.size() <= 20; }, 1min);
  for (int i = 20; i < 30; ++i) {
    results.push_back(client->submit_call(waiting_call(std::to_string(i))));
  }
  for (const ObjectName& result : results) ASSERT_TRUE(get(result));
  std::vector<std::string> taken;
  for (size_t i = 40; i < process.calls.size(); ++i) {
    taken.emplace_back(as_text(process.calls[i].arguments[0].inline_value));
  }
  ASSERT_EQ(taken.size(), 30u);
  for (int i = 0; i < 30; ++i) EXPECT_EQ(taken[static_cast<size_t>(i)], std::to_string(i));
}

TEST_F(ActorCallTest, CallerWaitsForRoomNoLongerThanItsTimeAndLessAndLessOften) {
  start_client();
  FakeProcess& process = add_actor();
  process.failures.assign(10'000, error(Code::exhausted, "the mailbox is full"));
  auto spec = waiting_call("hello");
  spec.budget = 5s;
  const Instant before = simulation.clock().now();
  const auto answer = call(spec);
  EXPECT_EQ(code_of(answer), Code::deadline_exceeded);
  EXPECT_NE(answer.error().message().find("mailbox was full"), std::string::npos);
  EXPECT_EQ(since(before) / 10ms, 500);
  EXPECT_LT(process.calls.size(), 120u) << "the pauses grow";
  const size_t tries = process.calls.size();
  simulation.run_for(10s);
  EXPECT_EQ(process.calls.size(), tries);
}

TEST_F(ActorCallTest, CallCancelledWhileItWaitsForRoomIsNotSentAgain) {
  start_client();
  FakeProcess& process = add_actor();
  process.failures.assign(10'000, error(Code::exhausted, "the mailbox is full"));
  const ObjectName result = client->submit_call(waiting_call("hello"));
  simulation.run_for(1s);
  client->cancel(result.id);
  EXPECT_EQ(code_of(get(result)), Code::cancelled);
  const size_t tries = process.calls.size();
  simulation.run_for(10s);
  EXPECT_EQ(process.calls.size(), tries);
}

TEST(MailboxPaceTest, RoundsGrowWhileTheyFindRoomAndShrinkWhenTheyDoNot) {
  MailboxPace pace;
  Instant now{1h};
  EXPECT_TRUE(pace.may_send(now)) << "nothing was refused yet";
  pace.refused(now);
  EXPECT_FALSE(pace.may_send(now));
  const auto sent_in_a_round = [&] {
    now = pace.next_round();
    uint32_t sent = 0;
    while (pace.may_send(now)) ++sent;
    return sent;
  };
  EXPECT_EQ(sent_in_a_round(), 1u);
  EXPECT_EQ(sent_in_a_round(), 2u);
  EXPECT_EQ(sent_in_a_round(), 4u);
  pace.refused(now);
  EXPECT_EQ(sent_in_a_round(), 3u) << "so many had found room";
  const Instant before = now;
  for (int i = 0; i < 3; ++i) pace.refused(now);
  EXPECT_EQ(sent_in_a_round(), 1u);
  EXPECT_GT(pace.next_round() - now, now - before) << "none had";
  for (int i = 0; i < 20; ++i) (void)sent_in_a_round();
  EXPECT_EQ(sent_in_a_round(), MailboxPace::round_most);
  EXPECT_TRUE(pace.may_send(now + 1min)) << "the past says nothing any more";
  EXPECT_TRUE(pace.may_send(now + 1min));
}

TEST_F(ActorCallTest, CallThatMayHaveRunIsOutcomeUnknown) {
  start_client();
  FakeProcess& process = add_actor();
  process.hold = true;
  const ObjectName result = client->submit_call(call_of("hello"));
  simulation.run_for(1s);
  process.die();
  FakeProcess& next = add_actor(2);
  EXPECT_EQ(code_of(get(result)), Code::outcome_unknown);
  simulation.run_for(10s);
  EXPECT_TRUE(next.calls.empty());
}

TEST_F(ActorCallTest, RetriableCallThatMayHaveRunIsSentToTheNextIncarnation) {
  start_client();
  FakeProcess& process = add_actor();
  process.hold = true;
  auto spec = call_of("hello");
  spec.extras = retrying({.retries = -1});
  const ObjectName result = client->submit_call(spec);
  simulation.run_for(1s);
  process.die();
  FakeProcess& next = add_actor(2);
  EXPECT_EQ(code_of(get(result)), Code::ok);
  ASSERT_EQ(next.calls.size(), 1u);
  EXPECT_EQ(next.calls[0].incarnation, 2u);
}

TEST_F(ActorCallTest, CallsAfterADeathGoToTheNextIncarnation) {
  start_client();
  FakeProcess& process = add_actor();
  ASSERT_TRUE(call(call_of("hello")));
  process.die();
  simulation.run_for(100ms);
  FakeProcess& next = add_actor(2);
  EXPECT_EQ(code_of(call(call_of("hello"))), Code::ok);
  EXPECT_EQ(next.calls.size(), 1u);
}

TEST_F(ActorCallTest, ProcessThatTheHeadTakesForAliveIsAskedForAgain) {
  start_client();
  FakeProcess& process = add_actor();
  process.die();
  const ObjectName result = client->submit_call(call_of("hello"));
  simulation.run_for(1s);
  ASSERT_GT(head.asked, 1);
  add_actor(2);
  EXPECT_EQ(code_of(get(result)), Code::ok);
}

TEST_F(ActorCallTest, DeadActorIsUnavailableAtOnce) {
  start_client();
  head.actor.state = "dead";
  head.actor.reason = "it was killed";
  const Instant before = simulation.clock().now();
  EXPECT_EQ(code_of(call(call_of("hello"))), Code::unavailable);
  EXPECT_LT(since(before), 1s);
}

// --- Deadlines and cancellation.

TEST_F(ActorCallTest, SilentActorsCallEndsAtItsDeadline) {
  start_client();
  FakeProcess& process = add_actor();
  process.hold = true;
  auto spec = call_of("hello");
  spec.budget = 2s;
  const Instant before = simulation.clock().now();
  EXPECT_EQ(code_of(call(spec)), Code::deadline_exceeded);
  EXPECT_EQ(since(before) / 10ms, 200);
  simulation.run_for(100ms);
  EXPECT_EQ(process.cancelled, 1) << "the callee is told";
}

TEST_F(ActorCallTest, RefusalsAreNotRepeatedPastTheDeadline) {
  start_client();
  FakeProcess& process = add_actor();
  process.failures.assign(1000, error(Code::unavailable, "not now"));
  auto spec = call_of("hello");
  spec.budget = 2s;
  const Instant before = simulation.clock().now();
  EXPECT_EQ(code_of(call(spec)), Code::unavailable);
  EXPECT_LE(since(before), 2s);
  EXPECT_LT(process.calls.size(), 20u) << "the pauses grow";
}

TEST_F(ActorCallTest, CallWhoseTimeEndedBeforeItsActorWasFoundIsNotSent) {
  start_client();
  FakeProcess& process = add_actor();
  simulation.network().partition("machine", "head");
  auto spec = call_of("hello");
  spec.budget = 1s;
  EXPECT_NE(code_of(call(spec)), Code::ok);
  simulation.network().heal();
  simulation.run_for(20s);
  EXPECT_TRUE(process.calls.empty());
}

TEST_F(ActorCallTest, CancelledCallIsCancelledForItsCalleeToo) {
  start_client();
  FakeProcess& process = add_actor();
  process.hold = true;
  const ObjectName result = client->submit_call(call_of("hello"));
  simulation.run_for(1s);
  client->cancel(result.id);
  EXPECT_EQ(code_of(get(result)), Code::cancelled);
  simulation.run_for(100ms);
  EXPECT_EQ(process.cancelled, 1);
}

TEST_F(ActorCallTest, CallCancelledWhileItsActorIsSoughtIsNotSent) {
  start_client();
  FakeProcess& process = add_actor();
  head.silent = true;
  const ObjectName result = client->submit_call(call_of("hello"));
  simulation.run_for(1s);
  client->cancel(result.id);
  EXPECT_EQ(code_of(get(result)), Code::cancelled);
  head.silent = false;
  head.changed.pulse();
  simulation.run_for(10s);
  EXPECT_TRUE(process.calls.empty());
}

TEST_F(ActorCallTest, CancelledCallHoldsUpNoOther) {
  start_client();
  FakeProcess& process = add_actor();
  head.silent = true;
  const ObjectName first = client->submit_call(call_of("first"));
  const ObjectName second = client->submit_call(call_of("second"));
  simulation.run_for(1s);
  client->cancel(first.id);
  head.silent = false;
  head.changed.pulse();
  EXPECT_EQ(code_of(get(second)), Code::ok);
  ASSERT_EQ(process.calls.size(), 1u);
}

TEST_F(ActorCallTest, CancelOfAnAnsweredCallChangesNothing) {
  start_client();
  add_actor();
  const ObjectName result = client->submit_call(call_of("hello"));
  ASSERT_TRUE(get(result));
  client->cancel(result.id);
  EXPECT_EQ(code_of(get(result)), Code::ok);
}

TEST_F(ActorCallTest, StoppedClientFailsWhatWaits) {
  start_client();
  FakeProcess& process = add_actor();
  process.hold = true;
  const auto waits = begin(client->get(client->submit_call(call_of("hello")), 1h));
  simulation.run_for(1s);
  ASSERT_FALSE(waits->has_value());
  stop_client();
  ASSERT_TRUE(waits->has_value());
  EXPECT_EQ(code_of(**waits), Code::cancelled);
}

TEST_F(ActorCallTest, RefsAmongTheArgumentsLiveUntilTheAnswer) {
  start_client();
  FakeProcess& process = add_actor();
  process.hold = true;
  const ObjectName object = put("value");
  auto spec = call_of("hello");
  spec.held = {object};
  const ObjectName result = client->submit_call(spec);
  client->drop_reference(object);
  simulation.run_for(1s);
  EXPECT_EQ(code_of(get(object)), Code::ok);
  process.hold = false;
  process.changed.pulse();
  ASSERT_TRUE(get(result));
  EXPECT_EQ(code_of(get(object)), Code::not_found);
}

}  // namespace
}  // namespace troupe::client
