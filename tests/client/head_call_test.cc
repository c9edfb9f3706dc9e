// Requests to the head: asked again while it is away, final once it has answered.
#include "tests/client/client_fixture.h"

namespace troupe::client {
namespace {

class HeadCallTest : public ClientTest {
 protected:
  Status ask(Duration budget = 10s) {
    auto answer =
        await(client->ask_head<protocol::ClusterInfo>(Method::cluster_info, Empty{}, budget),
              budget + 10s);
    if (!answer) return answer.error();
    return ok();
  }
};

TEST_F(HeadCallTest, AnsweredRequestIsAskedOnce) {
  start_client();
  ASSERT_EQ(code_of(ask()), Code::ok);
  EXPECT_EQ(head.asked, 1);
}

TEST_F(HeadCallTest, AsksAgainWhileTheHeadIsUnavailable) {
  start_client();
  head.failures = {error(Code::unavailable, "not the leader"),
                   error(Code::unavailable, "not the leader")};
  EXPECT_EQ(code_of(ask()), Code::ok);
  EXPECT_EQ(head.asked, 3);
}

TEST_F(HeadCallTest, AsksAgainWhenTheConnectionBreaksBeforeTheAnswer) {
  start_client();
  head.silent = true;
  const auto answer =
      begin(client->ask_head<protocol::ClusterInfo>(Method::cluster_info, Empty{}, 10s));
  simulation.run_for(1s);
  ASSERT_EQ(head.asked, 1);
  head.silent = false;
  head.peers.at(0)->close();
  simulation.run_for(1s);
  ASSERT_TRUE(answer->has_value());
  EXPECT_EQ(code_of(**answer), Code::ok);
  EXPECT_EQ(head.asked, 2);
}

TEST_F(HeadCallTest, AsksAgainWhenARequestIsLost) {
  start_client();
  head.silent = true;
  const auto answer =
      begin(client->ask_head<protocol::ClusterInfo>(Method::cluster_info, Empty{}, 20s));
  simulation.run_for(4s);
  head.silent = false;  // The first stays without an answer: nobody is woken.
  simulation.run_for(2s);
  ASSERT_TRUE(answer->has_value());
  EXPECT_EQ(code_of(**answer), Code::ok);
}

TEST_F(HeadCallTest, RefusalIsFinal) {
  start_client();
  for (const Code code : {Code::invalid, Code::not_found, Code::conflict, Code::denied,
                          Code::exhausted, Code::unimplemented, Code::internal}) {
    head.asked = 0;
    head.failures = {error(code, "no")};
    EXPECT_EQ(code_of(ask()), code);
    EXPECT_EQ(head.asked, 1) << code_name(code);
  }
}

TEST_F(HeadCallTest, GivesUpOnAnUnreachableHeadWithinTheBudget) {
  start_client();
  head.die();
  const Instant before = simulation.clock().now();
  EXPECT_EQ(code_of(ask(3s)), Code::unavailable);
  EXPECT_LE(since(before), 3s);
  EXPECT_GE(since(before), 1s);
}

TEST_F(HeadCallTest, GivesUpOnASilentHeadWithinTheBudget) {
  start_client();
  simulation.network().partition("machine", "head");
  const Instant before = simulation.clock().now();
  EXPECT_EQ(code_of(ask(7s)), Code::deadline_exceeded);
  EXPECT_LE(since(before), 7s);
}

TEST_F(HeadCallTest, PausesGrowWhileTheHeadIsAway) {
  start_client();
  const size_t connections = simulation.network().counts().refused;
  head.die();
  EXPECT_EQ(code_of(ask(30s)), Code::unavailable);
  const size_t tries = simulation.network().counts().refused - connections;
  EXPECT_GE(tries, 120u);  // A quarter of a second in the end.
  EXPECT_LE(tries, 130u);
}

// Else the new head would take a driver that asks nothing for gone, and end its job.
TEST_F(HeadCallTest, DriverReturnsToANewHeadByItself) {
  start_client();
  ASSERT_TRUE(ask());
  head.die();
  simulation.run_for(1s);
  FakeHead next{simulation, scope, add_host("next-head", "head", Role::head)};
  next.listen(head_endpoint());
  simulation.run_for(2s);
  EXPECT_EQ(next.peers.size(), 1u);
  EXPECT_TRUE(simulation.run(scope.stop(), 1min));  // Before `next` goes.
}

TEST_F(HeadCallTest, FindsTheHeadThatTookItsPlace) {
  start_client();
  ASSERT_TRUE(ask());
  head.die();
  simulation.run_for(1s);
  FakeHead next{simulation, scope, add_host("next-head", "head", Role::head)};
  next.listen(head_endpoint());
  EXPECT_EQ(code_of(ask()), Code::ok);
  EXPECT_EQ(next.asked, 1);
  EXPECT_TRUE(simulation.run(scope.stop(), 1min));  // Before `next` goes.
}

TEST_F(HeadCallTest, CreateIsRepeatedUnderTheSameId) {
  start_client();
  head.failures = {error(Code::unavailable, "not the leader")};
  ASSERT_TRUE(await(client->create_actor({}, 10s)));
  ASSERT_EQ(head.created.size(), 2u);
  EXPECT_FALSE(head.created[0].actor.is_nil());
  EXPECT_EQ(head.created[0].actor, head.created[1].actor);
}

TEST_F(HeadCallTest, CreatedActorBelongsToTheClientsJob) {
  start_client();
  ASSERT_TRUE(await(client->create_actor({}, 10s)));
  EXPECT_EQ(head.created.at(0).job, job);
}

TEST_F(HeadCallTest, DeadActorIsUnavailableWithItsReason) {
  start_client();
  head.actor.actor = actor;
  head.actor.state = "dead";
  head.actor.reason = "it was killed";
  const auto info = await(client->locate_actor(actor, 0, 10s));
  ASSERT_EQ(code_of(info), Code::unavailable);
  EXPECT_NE(info.error().message().find("it was killed"), std::string::npos);
}

TEST_F(HeadCallTest, LastTryIsLongEnoughForAnAnswer) {
  start_client();
  head.failures.assign(1000, error(Code::deadline_exceeded, "actor is pending: no room"));
  simulation.network().set_faults({.delay_min = 20ms, .delay_max = 20ms});
  ASSERT_FALSE(await(client->locate_actor(actor, 0, 100ms)));  // From here on it is connected.
  // The tries begin after 0, 50, 110, 190, 310 and 510 ms, and each takes 40.
  for (const Duration budget : {515ms, 525ms, 535ms, 545ms}) {
    const auto info = await(client->locate_actor(actor, 0, budget));
    ASSERT_FALSE(info);
    EXPECT_NE(info.error().message().find("actor is pending: no room"), std::string::npos)
        << budget / 1ms << ": " << info.error().message();
  }
}

TEST_F(HeadCallTest, HeadsLastWordIsWhatTheCallerHears) {
  start_client();
  head.failures.assign(100, error(Code::deadline_exceeded, "actor is pending: no room"));
  const auto info = await(client->locate_actor(actor, 0, 2s));
  ASSERT_EQ(code_of(info), Code::deadline_exceeded);
  EXPECT_NE(info.error().message().find("actor is pending: no room"), std::string::npos);
}

}  // namespace
}  // namespace troupe::client
