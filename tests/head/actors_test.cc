// The directory of actors: promises, names, restarts, and what a new head makes of the old one's.
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

using Actors = HeadTest;

TEST_F(Actors, CreatedActorComesAliveOnAWorker) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  const auto info = wait_alive(client, spec.actor);
  ASSERT_TRUE(info);
  EXPECT_EQ(info->state, "alive");
  EXPECT_EQ(info->incarnation, 1u);
  EXPECT_EQ(info->address.node, worker.node);
  EXPECT_FALSE(info->address.process.is_nil());
}

TEST_F(Actors, CreateIsAnsweredThoughNothingCanRunIt) {
  start_head();
  const auto client = driver();
  const auto info = create(client, actor_spec());
  ASSERT_TRUE(info);
  EXPECT_EQ(info->state, "pending");
  EXPECT_NE(info->reason, "");
}

TEST_F(Actors, SameCreateAgainStartsNothingMore) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(create(client, spec));
  simulation.run_for(1s);
  EXPECT_EQ(worker.started.size(), 1u);
}

TEST_F(Actors, IdOfAnotherActorIsAConflict) {
  start_head();
  const auto client = driver();
  auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  spec.class_name = "Other";
  EXPECT_EQ(code_of(create(client, spec)), Code::conflict);
}

TEST_F(Actors, RefusesABadSpec) {
  start_head();
  const auto client = driver();
  const auto refuses = [&](const char* what,
                           const std::function<void(protocol::ActorSpec&)>& spoil) {
    SCOPED_TRACE(what);
    auto spec = actor_spec();
    spoil(spec);
    EXPECT_EQ(code_of(create(client, spec)), Code::invalid);
  };
  refuses("no id", [](auto& spec) { spec.actor = {}; });
  refuses("no module", [](auto& spec) { spec.module.clear(); });
  refuses("long name", [](auto& spec) { spec.name.assign(257, 'x'); });
  refuses("zero byte", [](auto& spec) { spec.name = std::string("a\0b", 3); });
  refuses("long path", [](auto& spec) { spec.module.assign(4097, 'x'); });
  refuses("many arguments", [](auto& spec) { spec.arguments.resize(257); });
  refuses("large arguments", [](auto& spec) {
    spec.arguments.resize(1);
    spec.arguments[0].inline_value.resize((1 << 20) + 1);
  });
  refuses("restarts", [](auto& spec) { spec.max_restarts = -2; });
  refuses("strategy", [](auto& spec) { spec.strategy = "random"; });
  refuses("negative demand", [](auto& spec) { spec.demand = {{"cpu", -1}}; });
  refuses("one and a half GPUs", [](auto& spec) { spec.demand = {{"gpu", 1500}}; });
  EXPECT_EQ(cluster_info(client).actors, 0u);
}

TEST_F(Actors, RefusesMoreActorsThanTheLimit) {
  options.actors_max = 1;
  start_head();
  const auto client = driver();
  const auto first = actor_spec();
  ASSERT_TRUE(create(client, first));
  EXPECT_EQ(code_of(create(client, actor_spec())), Code::exhausted);
  ASSERT_TRUE(kill(client, first.actor));
  EXPECT_EQ(code_of(create(client, actor_spec())), Code::ok) << "the dead do not count";
}

TEST_F(Actors, RefusesAnActorOfAJobThatDidNotBegin) {
  start_head();
  auto spec = actor_spec();
  spec.job = JobId::random(simulation.random());
  EXPECT_EQ(code_of(create(driver(), spec)), Code::not_found);
}

TEST_F(Actors, FailedWriteIsNoPromise) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  store.commits_left = 0;
  EXPECT_NE(code_of(create(client, actor_spec())), Code::ok);
  simulation.run_for(1s);
  EXPECT_TRUE(worker.started.empty()) << "a start left the head though nothing was written";
  EXPECT_TRUE(head->broken().is_set());
}

TEST_F(Actors, HeadThatCannotWritePromisesNothingMore) {
  start_head();
  const auto client = driver();
  store.commits_left = 0;
  EXPECT_NE(code_of(create(client, actor_spec())), Code::ok);
  EXPECT_EQ(code_of(create(client, actor_spec())), Code::unavailable);
}

// --- Names.

TEST_F(Actors, TakenNameIsAConflict) {
  start_head();
  const auto client = driver();
  auto first = actor_spec();
  first.name = "counter";
  ASSERT_TRUE(create(client, first));
  auto second = actor_spec();
  second.name = "counter";
  EXPECT_EQ(code_of(create(client, second)), Code::conflict);
}

TEST_F(Actors, NameIsFreeInAnotherNamespace) {
  start_head();
  const auto client = driver();
  auto first = actor_spec();
  first.name = "counter";
  ASSERT_TRUE(create(client, first));
  auto second = actor_spec();
  second.name = "counter";
  second.name_space = "other";
  EXPECT_EQ(code_of(create(client, second)), Code::ok);
}

TEST_F(Actors, GetIfExistsGivesTheNamesake) {
  start_head();
  const auto client = driver();
  auto first = actor_spec();
  first.name = "counter";
  ASSERT_TRUE(create(client, first));
  auto second = actor_spec();
  second.name = "counter";
  second.get_if_exists = true;
  const auto info = create(client, second);
  ASSERT_TRUE(info);
  EXPECT_EQ(info->actor, first.actor);
}

TEST_F(Actors, DeathFreesTheName) {
  start_head();
  const auto client = driver();
  auto first = actor_spec();
  first.name = "counter";
  ASSERT_TRUE(create(client, first));
  ASSERT_TRUE(kill(client, first.actor));
  auto second = actor_spec();
  second.name = "counter";
  EXPECT_EQ(code_of(create(client, second)), Code::ok);
}

TEST_F(Actors, GetFindsAnActorByItsName) {
  start_head();
  add_worker(4);
  const auto client = driver();
  auto spec = actor_spec();
  spec.name = "counter";
  spec.name_space = "mine";
  ASSERT_TRUE(create(client, spec));
  protocol::GetActor request;
  request.name = "counter";
  request.name_space = "mine";
  const auto info = ask<protocol::ActorInfo>(client, Method::get_actor, request);
  ASSERT_TRUE(info);
  EXPECT_EQ(info->actor, spec.actor);
}

// --- Waiting for one.

TEST_F(Actors, GetOfAnUnknownActorIsNotFound) {
  start_head();
  EXPECT_EQ(code_of(wait_alive(driver(), ActorId::random(simulation.random()))), Code::not_found);
}

TEST_F(Actors, GetSaysWhatItWaitedForWhenTimeIsUp) {
  start_head();
  add_worker(1);
  const auto client = driver();
  const auto spec = actor_spec(2);
  ASSERT_TRUE(create(client, spec));
  protocol::GetActor request;
  request.actor = spec.actor;
  const auto info = ask<protocol::ActorInfo>(client, Method::get_actor, request, 1s);
  ASSERT_EQ(code_of(info), Code::deadline_exceeded);
  EXPECT_NE(info.error().message().find("is pending: "), std::string::npos)
      << info.error().message();
}

TEST_F(Actors, GetAfterAnIncarnationWaitsForTheNext) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = 1;
  ASSERT_TRUE(create(client, spec));
  const auto first = wait_alive(client, spec.actor);
  ASSERT_TRUE(first);
  protocol::GetActor request;
  request.actor = spec.actor;
  request.after = 1;
  const auto second = begin<protocol::ActorInfo>(client, Method::get_actor, request);
  simulation.run_for(1s);
  EXPECT_FALSE(second->has_value());
  ASSERT_TRUE(report_exit(worker, *first));
  simulation.run_for(1s);
  ASSERT_TRUE(second->has_value());
  EXPECT_EQ((*second)->value().incarnation, 2u);
}

// --- Death and restart.

TEST_F(Actors, KilledActorIsDeadAndItsProcessIsStopped) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(wait_alive(client, spec.actor));
  ASSERT_TRUE(kill(client, spec.actor));
  simulation.run_for(100ms);
  EXPECT_EQ(look(client, spec.actor).state, "dead");
  ASSERT_EQ(worker.stopped.size(), 1u);
  EXPECT_EQ(worker.stopped[0].actor, spec.actor);
  EXPECT_EQ(worker.stopped[0].incarnation, 1u);
}

TEST_F(Actors, KillOfAnUnknownActorIsNotFound) {
  start_head();
  EXPECT_EQ(code_of(kill(driver(), ActorId::random(simulation.random()))), Code::not_found);
}

TEST_F(Actors, KilledActorIsNotRestartedWhenItsProcessEnds) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = -1;
  ASSERT_TRUE(create(client, spec));
  const auto alive = wait_alive(client, spec.actor);
  ASSERT_TRUE(kill(client, spec.actor));
  ASSERT_TRUE(report_exit(worker, *alive));
  simulation.run_for(1s);
  EXPECT_EQ(look(client, spec.actor).state, "dead");
  EXPECT_EQ(worker.started.size(), 1u);
}

TEST_F(Actors, FailedWriteOfADeathStopsNoProcess) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(wait_alive(client, spec.actor));
  store.commits_left = 0;
  EXPECT_NE(code_of(kill(client, spec.actor)), Code::ok);
  simulation.run_for(1s);
  EXPECT_TRUE(worker.stopped.empty());
}

TEST_F(Actors, ProcessThatEndsIsReplacedByTheNextIncarnation) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = 1;
  ASSERT_TRUE(create(client, spec));
  const auto first = wait_alive(client, spec.actor);
  ASSERT_TRUE(report_exit(worker, *first));
  const auto second = wait_alive(client, spec.actor, 1);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->incarnation, 2u);
  EXPECT_NE(second->address.process, first->address.process);
}

// That it ends is no promise of the head's.
TEST_F(Actors, ProcessThatEndsIsReplacedThoughTheDiskTakesNoNewPromise) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = 1;
  ASSERT_TRUE(create(client, spec));
  const auto first = wait_alive(client, spec.actor).value();
  store.set_free(FailingStore::promises_bytes - 1);
  EXPECT_EQ(code_of(create(client, actor_spec())), Code::exhausted);
  EXPECT_EQ(code_of(report_exit(worker, first)), Code::ok);
  const auto second = wait_alive(client, spec.actor, 1);
  ASSERT_TRUE(second) << second.error().to_string();
  EXPECT_EQ(second->incarnation, 2u);
}

TEST_F(Actors, ActorIsDeadOnceItsRestartsAreSpent) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = 1;
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(report_exit(worker, wait_alive(client, spec.actor).value()));
  ASSERT_TRUE(report_exit(worker, wait_alive(client, spec.actor, 1).value()));
  const auto info = look(client, spec.actor);
  EXPECT_EQ(info.state, "dead");
  EXPECT_EQ(info.reason, "it crashed (after 1 restarts)");
}

TEST_F(Actors, LateNewsOfAnOldIncarnationChangesNothing) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = -1;
  ASSERT_TRUE(create(client, spec));
  const auto first = wait_alive(client, spec.actor);
  ASSERT_TRUE(report_exit(worker, *first));
  ASSERT_TRUE(wait_alive(client, spec.actor, 1));
  ASSERT_TRUE(report_exit(worker, *first));
  const auto info = look(client, spec.actor);
  EXPECT_EQ(info.state, "alive");
  EXPECT_EQ(info.incarnation, 2u);
}

TEST_F(Actors, NewsFromAnotherNodeChangesNothing) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  const auto alive = wait_alive(client, spec.actor);
  FakeWorker& other = add_worker(4);
  ASSERT_NE(alive->address.node, other.node);
  ASSERT_TRUE(report_exit(other, *alive));
  EXPECT_EQ(look(client, spec.actor).state, "alive");
  EXPECT_EQ(worker.started.size(), 1u);
}

TEST_F(Actors, ActorThatKeepsFailingIsStartedLessAndLessOften) {
  options.backoff_min = 1s;
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = -1;
  ASSERT_TRUE(create(client, spec));
  const auto seconds_to_restart = [&](uint32_t incarnation) {
    const auto alive = wait_alive(client, spec.actor, incarnation - 1);
    const Instant before = simulation.clock().now();
    EXPECT_TRUE(report_exit(worker, *alive));
    EXPECT_TRUE(wait_alive(client, spec.actor, incarnation));
    return (simulation.clock().now() - before) / 1s;
  };
  EXPECT_EQ(seconds_to_restart(1), 0) << "the first failure costs no wait";
  EXPECT_EQ(seconds_to_restart(2), 1);
  EXPECT_EQ(seconds_to_restart(3), 2);
  EXPECT_EQ(seconds_to_restart(4), 4);
}

TEST_F(Actors, StartThatCannotSucceedIsNotTriedAgain) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.start_failure = error(Code::not_found, "no such module");
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = -1;
  ASSERT_TRUE(create(client, spec));
  simulation.run_for(1min);
  const auto info = look(client, spec.actor);
  EXPECT_EQ(info.state, "dead");
  EXPECT_EQ(info.reason, "it did not start: no such module");
  EXPECT_EQ(worker.started.size(), 1u);
}

TEST_F(Actors, FailedStartIsRepeatedOnceItsProcessIsSurelyGone) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.start_failure = error(Code::internal, "it hangs");
  worker.hold_stops = true;
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = -1;
  ASSERT_TRUE(create(client, spec));
  simulation.run_for(3s);
  EXPECT_EQ(worker.started.size(), 1u) << "two incarnations might run";
  ASSERT_EQ(worker.stopped.size(), 1u);
  worker.start_failure.reset();
  worker.let_go();
  const auto alive = wait_alive(client, spec.actor);
  ASSERT_TRUE(alive);
  EXPECT_EQ(alive->incarnation, 2u);
}

// --- Resources.

TEST_F(Actors, ActorWaitsUntilThereIsRoom) {
  start_head();
  add_worker(1);
  const auto client = driver();
  const auto first = actor_spec();
  const auto second = actor_spec();
  ASSERT_TRUE(create(client, first));
  ASSERT_TRUE(wait_alive(client, first.actor));
  ASSERT_TRUE(create(client, second));
  simulation.run_for(1s);
  EXPECT_EQ(look(client, second.actor).state, "pending");
  ASSERT_TRUE(kill(client, first.actor));
  EXPECT_EQ(code_of(wait_alive(client, second.actor)), Code::ok);
}

TEST_F(Actors, ResourcesOfAKilledActorAreFreeOnceItsProcessHasStopped) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.hold_stops = true;
  const auto client = driver();
  const auto spec = actor_spec(3);
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(wait_alive(client, spec.actor));
  ASSERT_TRUE(kill(client, spec.actor));
  simulation.run_for(1s);
  EXPECT_EQ(cpu_free(client, worker.node), 1);
  worker.let_go();
  simulation.run_for(100ms);
  EXPECT_EQ(cpu_free(client, worker.node), 4);
}

TEST_F(Actors, KillDuringAFailedStartFreesNothingBeforeTheProcessHasStopped) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.start_failure = error(Code::internal, "it hangs");
  worker.hold_stops = true;
  const auto client = driver();
  auto spec = actor_spec(3);
  spec.max_restarts = -1;
  ASSERT_TRUE(create(client, spec));
  simulation.run_for(1s);
  ASSERT_EQ(worker.stopped.size(), 1u);
  ASSERT_TRUE(kill(client, spec.actor));
  simulation.run_for(1s);
  EXPECT_EQ(cpu_free(client, worker.node), 1) << "its process may still run";
  worker.let_go();
  simulation.run_for(1s);
  EXPECT_EQ(cpu_free(client, worker.node), 4);
}

// --- Lost nodes.

TEST_F(Actors, ActorOfALostNodeRestartsElsewhere) {
  start_head();
  FakeWorker& first = add_worker(4);
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = 1;
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(wait_alive(client, spec.actor));
  FakeWorker& second = add_worker(4);
  first.beats = false;
  simulation.run_for(6s);
  const auto info = wait_alive(client, spec.actor, 1);
  ASSERT_TRUE(info);
  EXPECT_EQ(info->address.node, second.node);
}

TEST_F(Actors, ActorThatMayNotRestartDiesWithItsNode) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(wait_alive(client, spec.actor));
  worker.beats = false;
  simulation.run_for(6s);
  const auto info = look(client, spec.actor);
  EXPECT_EQ(info.state, "dead");
  EXPECT_NE(info.reason.find("was not heard of"), std::string::npos) << info.reason;
}

TEST_F(Actors, LossOfItsNodeCostsNoBackOff) {
  options.backoff_min = 1min;
  options.backoff_max = 1h;
  start_head();
  FakeWorker& first = add_worker(4);
  const auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = -1;
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(report_exit(first, wait_alive(client, spec.actor).value()));
  ASSERT_TRUE(wait_alive(client, spec.actor, 1));  // A second failure of its own would cost.
  add_worker(4);
  first.beats = false;
  simulation.run_for(6s);
  EXPECT_EQ(code_of(wait_alive(client, spec.actor, 2)), Code::ok);
}

TEST_F(Actors, GaugesOfTheLivingIncarnationAreShown) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(wait_alive(client, spec.actor));
  const auto tell = [&](uint32_t incarnation, double value) {
    protocol::Heartbeat beat;
    beat.node = worker.node;
    beat.epoch = worker.epoch;
    beat.gauges = {{spec.actor, incarnation, {{"depth", value}}}};
    EXPECT_EQ(code_of(ask<protocol::HeartbeatReply>(worker.head, Method::heartbeat, beat)),
              Code::ok);
  };
  tell(1, 2.5);
  tell(2, 7);
  const auto shown = look(client, spec.actor).gauges;
  ASSERT_EQ(shown.size(), 1u);
  EXPECT_EQ(shown[0].name, "depth");
  EXPECT_EQ(shown[0].value, 2.5);
}

TEST_F(Actors, IsolatedProcessIsStoppedWhenItsNodeReturns) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(client, spec));
  const auto alive = wait_alive(client, spec.actor);
  worker.beats = false;
  simulation.run_for(6s);
  ASSERT_EQ(look(client, spec.actor).state, "dead");
  worker.registration.actors = {{spec.actor, 1, alive->address, 1}};
  return_worker(worker);
  simulation.run_for(100ms);
  ASSERT_EQ(worker.stopped.size(), 1u);
  EXPECT_EQ(worker.stopped[0].actor, spec.actor);
}

TEST_F(Actors, WhatAnOldIncarnationHoldsIsFreeOnceItHasStopped) {
  start_head();
  FakeWorker& first = add_worker(4);
  const auto client = driver();
  auto spec = actor_spec(3);
  spec.max_restarts = -1;
  ASSERT_TRUE(create(client, spec));
  const auto alive = wait_alive(client, spec.actor);
  FakeWorker& second = add_worker(4);
  first.beats = false;
  simulation.run_for(6s);
  ASSERT_TRUE(wait_alive(client, spec.actor, 1));
  first.registration.actors = {{spec.actor, 1, alive->address, 1}};
  first.hold_stops = true;
  first.beats = true;
  return_worker(first);
  simulation.run_for(100ms);
  EXPECT_EQ(cpu_free(client, first.node), 1);
  first.let_go();
  simulation.run_for(100ms);
  EXPECT_EQ(cpu_free(client, first.node), 4);
  EXPECT_EQ(cpu_free(client, second.node), 1) << "the present incarnation keeps what it holds";
}

TEST_F(Actors, AnOldIncarnationThatStillStartsIsStoppedAsWell) {
  start_head();
  FakeWorker& first = add_worker(4);
  first.hold_starts = true;
  const auto client = driver();
  auto spec = actor_spec(3);
  spec.max_restarts = -1;
  ASSERT_TRUE(create(client, spec));
  simulation.run_for(100ms);
  ASSERT_EQ(first.started.size(), 1u);
  FakeWorker& second = add_worker(4);
  first.beats = false;
  simulation.run_for(6s);
  ASSERT_TRUE(wait_alive(client, spec.actor, 1));
  first.registration.starting = {{spec.actor, 1, {}, 0}};
  first.hold_stops = true;
  first.beats = true;
  return_worker(first);
  simulation.run_for(100ms);
  ASSERT_EQ(first.stopped.size(), 1u);
  EXPECT_EQ(first.stopped[0].incarnation, 1u);
  EXPECT_EQ(cpu_free(client, first.node), 1);
  first.let_go();
  simulation.run_for(100ms);
  EXPECT_EQ(cpu_free(client, first.node), 4);
  EXPECT_EQ(cpu_free(client, second.node), 1);
}

// --- A new head.

TEST_F(Actors, NewHeadWaitsForAnActorThatStillStarts) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.hold_starts = true;
  const auto spec = actor_spec();
  ASSERT_TRUE(create(driver(), spec));
  simulation.run_for(100ms);
  restart_head();
  worker.registration.starting = {{spec.actor, 1, {}, 0}};
  return_worker(worker);
  simulation.run_for(100ms);
  EXPECT_TRUE(worker.stopped.empty());
  EXPECT_EQ(worker.started.size(), 2u) << "it is asked for again";
  worker.let_go();
  const auto alive = wait_alive(driver(), spec.actor);
  ASSERT_TRUE(alive);
  EXPECT_EQ(alive->incarnation, 1u);
}

TEST_F(Actors, NewHeadFindsAnActorAliveThatItsWorkerStillRuns) {
  start_head();
  FakeWorker& worker = add_worker(4);
  auto client = driver();
  auto spec = actor_spec(3);
  spec.name = "counter";
  ASSERT_TRUE(create(client, spec));
  const auto before = wait_alive(client, spec.actor);
  restart_head();
  worker.registration.actors = {{spec.actor, 1, before->address, 1}};
  return_worker(worker);
  client = driver();
  const auto after = wait_alive(client, spec.actor);
  ASSERT_TRUE(after);
  EXPECT_EQ(after->incarnation, 1u);
  EXPECT_EQ(after->address.process, before->address.process);
  EXPECT_EQ(worker.started.size(), 1u);
  EXPECT_EQ(cpu_free(client, worker.node), 1) << "what it holds is not free";
}

TEST_F(Actors, NewHeadRestartsAnActorWhoseProcessIsGone) {
  start_head();
  FakeWorker& worker = add_worker(4);
  auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = 1;
  ASSERT_TRUE(create(client, spec));
  ASSERT_TRUE(wait_alive(client, spec.actor));
  restart_head();
  return_worker(worker);
  client = driver();
  const auto after = wait_alive(client, spec.actor, 1);
  ASSERT_TRUE(after);
  EXPECT_EQ(after->incarnation, 2u);
}

TEST_F(Actors, NewHeadStopsAnIncarnationThatIsNotTheCurrentOne) {
  start_head();
  FakeWorker& worker = add_worker(4);
  auto client = driver();
  auto spec = actor_spec();
  spec.max_restarts = 1;
  ASSERT_TRUE(create(client, spec));
  const auto first = wait_alive(client, spec.actor);
  ASSERT_TRUE(report_exit(worker, *first));
  const auto second = wait_alive(client, spec.actor, 1);
  restart_head();
  worker.registration.actors = {{spec.actor, 1, first->address, 1}};
  worker.stopped.clear();
  return_worker(worker);
  simulation.run_for(100ms);
  bool told = false;
  for (const auto& request : worker.stopped) {
    told |= request.actor == spec.actor && request.incarnation == 1;
  }
  EXPECT_TRUE(told);
}

TEST_F(Actors, NewHeadKeepsTheNamesOfTheLiving) {
  start_head();
  auto spec = actor_spec();
  spec.name = "counter";
  ASSERT_TRUE(create(driver(), spec));
  restart_head();
  auto second = actor_spec();
  second.name = "counter";
  EXPECT_EQ(code_of(create(driver(), second)), Code::conflict);
}

TEST_F(Actors, NewHeadPlacesWhatWaited) {
  start_head();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(driver(), spec));
  restart_head();
  add_worker(4);
  EXPECT_EQ(code_of(wait_alive(driver(), spec.actor)), Code::ok);
}

TEST_F(Actors, NewHeadLeavesTheDeadDead) {
  start_head();
  const auto spec = actor_spec();
  ASSERT_TRUE(create(driver(), spec));
  ASSERT_TRUE(kill(driver(), spec.actor));
  restart_head();
  FakeWorker& worker = add_worker(4);
  simulation.run_for(1s);
  EXPECT_EQ(look(driver(), spec.actor).state, "dead");
  EXPECT_TRUE(worker.started.empty());
}

TEST_F(Actors, NewHeadRestartsElsewhereWhatRanOnANodeThatDoesNotReturn) {
  start_head();
  add_worker(4);
  auto spec = actor_spec();
  spec.max_restarts = 1;
  ASSERT_TRUE(create(driver(), spec));
  ASSERT_TRUE(wait_alive(driver(), spec.actor));
  restart_head();
  FakeWorker& other = add_worker(4);
  simulation.run_for(4s);
  EXPECT_TRUE(other.started.empty()) << "its node still has time to return";
  const auto info = wait_alive(driver(), spec.actor, 1);
  ASSERT_TRUE(info);
  EXPECT_EQ(info->address.node, other.node);
}

TEST_F(Actors, OldestOfTheDeadAreForgotten) {
  options.history_max = 1;
  start_head();
  const auto client = driver();
  const auto first = actor_spec();
  const auto second = actor_spec();
  for (const auto& spec : {first, second}) {
    ASSERT_TRUE(create(client, spec));
    ASSERT_TRUE(kill(client, spec.actor));
  }
  EXPECT_EQ(code_of(wait_alive(client, first.actor)), Code::not_found);
  EXPECT_EQ(look(client, second.actor).state, "dead");
}

}  // namespace
}  // namespace troupe::head
