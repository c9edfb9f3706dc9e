// Who belongs to the cluster, and when the head takes a worker for dead.
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

using Membership = HeadTest;

TEST_F(Membership, ListsARegisteredNodeWithWhatItHas) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto info = look(driver(), worker.node);
  EXPECT_EQ(info.state, "alive");
  EXPECT_EQ(info.name, "worker-1");
  ASSERT_EQ(info.total.size(), 1u);
  EXPECT_EQ(info.total[0].milli, 4000);
}

TEST_F(Membership, TellsANodeTheClusterAndTheEpoch) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto registered = register_worker(worker);
  ASSERT_TRUE(registered);
  EXPECT_EQ(registered->cluster, cluster);
  EXPECT_EQ(registered->epoch, head->epoch());
  EXPECT_EQ(registered->window_us, 5'000'000u);
}

TEST_F(Membership, RefusesANodeThatDescribesItselfBadly) {
  start_head();
  FakeWorker& worker = add_stranger(4);
  const protocol::RegisterNode good = worker.registration;
  const auto refuses = [&](const char* what,
                           const std::function<void(protocol::RegisterNode&)>& spoil) {
    SCOPED_TRACE(what);
    worker.registration = good;
    spoil(worker.registration);
    EXPECT_EQ(code_of(register_worker(worker)), Code::invalid);
  };
  refuses("long name", [](auto& request) { request.name.assign(257, 'x'); });
  refuses("many labels", [](auto& request) { request.labels.resize(65); });
  refuses("negative", [](auto& request) { request.total = {{"cpu", -1}}; });
  refuses("named twice", [](auto& request) { request.total = {{"cpu", 1}, {"cpu", 1}}; });
  refuses("half a GPU", [](auto& request) { request.total = {{"gpu", 500}}; });
  refuses("label twice", [](auto& request) { request.labels = {{"zone", "a"}, {"zone", "b"}}; });
  EXPECT_EQ(cluster_info(driver()).nodes, 0u);
}

TEST_F(Membership, AnOlderRegistrationThatComesLateSaysNothing) {
  start_head();
  FakeWorker& worker = add_stranger(4);
  worker.registration.sequence = 2;
  ASSERT_TRUE(register_worker(worker));
  const auto cpus = [&] { return look(driver(), worker.node).total.at(0).milli; };
  worker.registration.total = {{"cpu", 1000}};
  for (const uint64_t sequence : {uint64_t{1}, uint64_t{2}}) {
    worker.registration.sequence = sequence;
    const auto late = register_worker(worker);
    ASSERT_TRUE(late) << "its sender may have asked twice";
    EXPECT_EQ(late->epoch, head->epoch());
    EXPECT_EQ(cpus(), 4000);
  }
  worker.registration.sequence = 3;
  ASSERT_TRUE(register_worker(worker));
  EXPECT_EQ(cpus(), 1000);
  // A worker that was started anew counts anew.
  worker.registration.sequence = 1;
  worker.registration.total = {{"cpu", 2000}};
  return_worker(worker);
  EXPECT_EQ(cpus(), 2000);
}

// A machine that was lost and is back may have answered with its last breath.
TEST_F(Membership, AnswerOverAConnectionThatWasReplacedDoesNotCount) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = actor_spec();
  worker.hold_starts = true;
  ASSERT_TRUE(create(client, spec));
  simulation.run_until([&] { return worker.started.size() == 1; }, 1s);
  const auto before = worker.head;  // Neither side has closed it.
  return_worker(worker);
  worker.let_go();
  ASSERT_TRUE(wait_alive(client, spec.actor));
  EXPECT_EQ(worker.started.size(), 2u) << "the present one was not asked";
}

TEST_F(Membership, RefusesMoreNodesThanTheLimit) {
  options.nodes_max = 1;
  start_head();
  FakeWorker& worker = add_worker(4);
  EXPECT_EQ(code_of(register_worker(add_stranger(4))), Code::exhausted);
  EXPECT_EQ(code_of(register_worker(worker)), Code::ok) << "it is one of them";
}

TEST_F(Membership, NodeRegistersUnderNoOtherId) {
  start_head();
  FakeWorker& worker = add_worker(4);
  FakeWorker& impostor = add_stranger(8);
  impostor.registration.address.node = worker.node;
  EXPECT_EQ(code_of(register_worker(impostor)), Code::denied);
  EXPECT_EQ(look(driver(), worker.node).name, "worker-1");
}

TEST_F(Membership, NodeReportsNoOtherNodesProcesses) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(wait_alive(client, spec.actor));
  FakeWorker& impostor = add_worker(4);
  protocol::ProcessExited news;
  news.node = worker.node;
  news.actor = spec.actor;
  news.incarnation = 1;
  EXPECT_EQ(code_of(ask<Empty>(impostor.head, Method::process_exited, news)), Code::denied);
  EXPECT_EQ(look(client, spec.actor).state, "alive");
}

TEST_F(Membership, NodeBeatsForNoOther) {
  start_head();
  FakeWorker& worker = add_worker(4);
  protocol::Heartbeat beat;
  beat.node = worker.node;
  EXPECT_EQ(code_of(ask<protocol::HeartbeatReply>(add_worker(4).head, Method::heartbeat, beat)),
            Code::denied);
}

TEST_F(Membership, OnlyNodesMaySpeakForNodes) {
  start_head();
  const auto client = driver();
  for (const Method method : {Method::register_node, Method::heartbeat, Method::process_exited}) {
    EXPECT_EQ(code_of(ask<Empty>(client, method, Empty{})), Code::denied)
        << protocol::method_name(method);
  }
}

TEST_F(Membership, OnlyAdminsMayHaveABackupWritten) {
  start_head();
  const auto answer = [&](Role role, const std::string& folder) {
    const auto peer = connect(add_host("asker", "asker", role), nothing, {}).value();
    return code_of(ask<protocol::BackedUp>(peer, Method::back_up, protocol::BackUp{folder, 0}));
  };
  for (const Role role : {Role::node, Role::client, Role::gateway}) {
    EXPECT_EQ(answer(role, "/backups"), Code::denied);
  }
  EXPECT_EQ(answer(Role::admin, "backups"), Code::invalid) << "relative to what?";
  EXPECT_EQ(answer(Role::admin, "/backups"), Code::unimplemented) << "a store in memory has none";
}

TEST_F(Membership, RefusesAPeerOfAnotherCluster) {
  start_head();
  protocol::Hello self;
  self.cluster = ClusterId::random(simulation.random());
  const auto peer = connect(add_host("stranger", "stranger", Role::node), nothing, self);
  simulation.run_for(100ms);
  EXPECT_TRUE(!peer || !(*peer)->is_open());
}

TEST_F(Membership, SilentNodeIsSuspectAfterHalfAWindow) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.beats = false;
  simulation.run_for(2s);
  EXPECT_EQ(look(driver(), worker.node).state, "alive");
  simulation.run_for(1s);
  EXPECT_EQ(look(driver(), worker.node).state, "suspect");
}

TEST_F(Membership, SilentNodeIsDeadAfterAWindow) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.beats = false;
  simulation.run_for(4500ms);
  EXPECT_EQ(look(driver(), worker.node).state, "suspect");
  simulation.run_for(1500ms);
  EXPECT_EQ(look(driver(), worker.node).state, "dead");
}

TEST_F(Membership, NodeThatBeatsStaysAlive) {
  start_head();
  FakeWorker& worker = add_worker(4);
  simulation.run_for(1min);
  EXPECT_EQ(look(driver(), worker.node).state, "alive");
}

TEST_F(Membership, NodeWhoseConnectionClosedIsSuspectAtOnce) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.head->close();
  simulation.run_for(100ms);
  EXPECT_EQ(look(driver(), worker.node).state, "suspect");
}

TEST_F(Membership, NodeThatAnswersHasTwoWindowsToComeBack) {
  start_head();
  FakeWorker& worker = add_stranger(4);
  transport::Endpoint here;
  here.host = "10.0.9.1";
  const auto listener = worker.host->listen(here);
  ASSERT_TRUE(listener);
  worker.registration.address.host = here.host;
  worker.registration.address.port = (*listener)->endpoint().port;
  ASSERT_TRUE(register_worker(worker));
  worker.beats = false;
  worker.head->close();
  simulation.run_for(14s);  // And the window after what it answered last.
  EXPECT_EQ(look(driver(), worker.node).state, "suspect");
  simulation.run_for(2s);
  EXPECT_EQ(look(driver(), worker.node).state, "dead");
}

TEST_F(Membership, OldConnectionsEndDoesNotTouchTheNodesNewOne) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto old = worker.head;
  connect_worker(worker);
  ASSERT_TRUE(register_worker(worker));
  old->close();
  simulation.run_for(100ms);
  EXPECT_EQ(look(driver(), worker.node).state, "alive");
}

TEST_F(Membership, BeatOfAnUnknownNodeAsksItToRegister) {
  start_head();
  FakeWorker& stranger = add_stranger(4);
  protocol::Heartbeat beat;
  beat.node = stranger.node;
  beat.epoch = head->epoch();
  const auto reply = ask<protocol::HeartbeatReply>(stranger.head, Method::heartbeat, beat);
  ASSERT_TRUE(reply);
  EXPECT_TRUE(reply->register_again);
}

TEST_F(Membership, BeatUnderAnOlderEpochAsksTheNodeToRegister) {
  start_head();
  FakeWorker& worker = add_worker(4);
  protocol::Heartbeat beat;
  beat.node = worker.node;
  beat.epoch = head->epoch() - 1;
  const auto reply = ask<protocol::HeartbeatReply>(worker.head, Method::heartbeat, beat);
  ASSERT_TRUE(reply);
  EXPECT_TRUE(reply->register_again);
}

TEST_F(Membership, BeatOverAnotherConnectionAsksTheNodeToRegister) {
  start_head();
  FakeWorker& worker = add_worker(4);
  connect_worker(worker);
  protocol::Heartbeat beat;
  beat.node = worker.node;
  beat.epoch = worker.epoch;
  const auto reply = ask<protocol::HeartbeatReply>(worker.head, Method::heartbeat, beat);
  ASSERT_TRUE(reply);
  EXPECT_TRUE(reply->register_again);
}

TEST_F(Membership, DeadNodeThatReturnsIsListedOnce) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.beats = false;
  simulation.run_for(6s);
  worker.beats = true;
  return_worker(worker);
  const auto list = ask<protocol::NodeList>(driver(), Method::list_nodes, Empty{});
  ASSERT_TRUE(list);
  ASSERT_EQ(list->items.size(), 1u);
  EXPECT_EQ(list->items[0].state, "alive");
}

TEST_F(Membership, RestartedHeadHasAHigherEpoch) {
  start_head();
  const uint64_t before = head->epoch();
  restart_head();
  EXPECT_GT(head->epoch(), before);
}

TEST_F(Membership, RestartedHeadGivesTheNodesThatItKnewAWindow) {
  start_head();
  FakeWorker& worker = add_worker(4);
  restart_head();
  simulation.run_for(4s);
  EXPECT_EQ(look(driver(), worker.node).state, "suspect");
  simulation.run_for(2s);
  EXPECT_EQ(look(driver(), worker.node).state, "dead");
}

TEST_F(Membership, LostNodeIsForgottenByTheNextHead) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.beats = false;
  simulation.run_for(6s);
  restart_head();
  EXPECT_EQ(look(driver(), worker.node).state, "");
}

TEST_F(Membership, DoesNotRegisterANodeThatItCannotWriteDown) {
  start_head();
  FakeWorker& worker = add_worker(4);
  store.commits_left = 0;
  EXPECT_NE(code_of(register_worker(worker)), Code::ok);
  EXPECT_TRUE(head->broken().is_set());
}

}  // namespace
}  // namespace troupe::head
