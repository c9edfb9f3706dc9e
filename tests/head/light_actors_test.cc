// Batches of actors, and light ones, which start and stop together.
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

class LightActors : public HeadTest {
 protected:
  protocol::ActorSpec light_spec() {
    auto spec = actor_spec(0);
    spec.module = "/tmp/module";
    spec.shared = true;
    return spec;
  }
  protocol::ActorSpecs light_specs(size_t count) {
    protocol::ActorSpecs specs;
    for (size_t i = 0; i < count; ++i) specs.items.push_back(light_spec());
    return specs;
  }
  static protocol::ActorIds ids_of(const protocol::ActorSpecs& specs) {
    protocol::ActorIds ids;
    for (const auto& spec : specs.items) ids.actors.push_back(spec.actor);
    return ids;
  }
  Result<protocol::ActorResults> create_many(const std::shared_ptr<Peer>& peer,
                                             const protocol::ActorSpecs& specs) {
    return ask<protocol::ActorResults>(peer, Method::create_actors, specs);
  }
  size_t count_alive(const protocol::ActorResults& results) {
    size_t alive = 0;
    for (const auto& result : results.items) alive += result.info.state == "alive" ? 1 : 0;
    return alive;
  }
};

TEST_F(LightActors, ABatchComesAliveAndStopsInFewRequests) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto specs = light_specs(2500);
  const auto created = create_many(client, specs);
  ASSERT_TRUE(created);
  ASSERT_EQ(created->items.size(), 2500u);
  EXPECT_EQ(created->items[7].info.actor, specs.items[7].actor);
  const auto alive = ask<protocol::ActorResults>(client, Method::get_actors, ids_of(specs));
  ASSERT_TRUE(alive);
  EXPECT_EQ(count_alive(*alive), 2500u);
  EXPECT_TRUE(worker.started.empty());
  EXPECT_LE(worker.batches_started.size(), 10u);
  ASSERT_TRUE(ask<Empty>(client, Method::kill_actors, ids_of(specs)));
  simulation.run_for(1s);
  EXPECT_TRUE(worker.stopped.empty());
  EXPECT_LE(worker.batches_stopped.size(), 10u);
  EXPECT_EQ(look(client, specs.items[2499].actor).state, "dead");
}

TEST_F(LightActors, EachOfABatchHasItsOwnOutcome) {
  start_head();
  add_worker(4);
  const auto client = driver();
  auto specs = light_specs(3);
  specs.items[0].name = specs.items[1].name = "one";
  specs.items[2].max_restarts = -2;
  const auto created = create_many(client, specs);
  ASSERT_TRUE(created);
  EXPECT_EQ(created->items[0].error.code, 0u);
  EXPECT_EQ(protocol::from_info(created->items[1].error).code(), Code::conflict);
  EXPECT_EQ(protocol::from_info(created->items[2].error).code(), Code::invalid);
}

TEST_F(LightActors, AnActorThatFailsToStartHarmsNoOther) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto specs = light_specs(20);
  worker.batch_failures.emplace(specs.items[5].actor, error(Code::invalid, "no such class"));
  ASSERT_TRUE(create_many(client, specs));
  const auto results = ask<protocol::ActorResults>(client, Method::get_actors, ids_of(specs));
  ASSERT_TRUE(results);
  EXPECT_EQ(count_alive(*results), 19u);
  EXPECT_EQ(results->items[5].info.state, "dead");
  EXPECT_NE(results->items[5].info.reason.find("no such class"), std::string::npos);
}

TEST_F(LightActors, WhatAStreamDidNotTellIsAskedAgain) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.batch_outcomes_max = 7;
  const auto client = driver();
  const auto specs = light_specs(20);
  ASSERT_TRUE(create_many(client, specs));
  const auto results = ask<protocol::ActorResults>(client, Method::get_actors, ids_of(specs));
  ASSERT_TRUE(results);
  EXPECT_EQ(count_alive(*results), 20u);
  ASSERT_EQ(worker.batches_started.size(), 3u);
  EXPECT_EQ(worker.batches_started[2].items.size(), 6u);
}

TEST_F(LightActors, AStartThatWasCutOffGoesOnOnceTheWorkerIsBack) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.hold_starts = true;
  const auto client = driver();
  const auto specs = light_specs(5);
  ASSERT_TRUE(create_many(client, specs));
  simulation.run_until([&] { return !worker.batches_started.empty(); }, 1s);
  worker.head->close();
  worker.let_go();
  return_worker(worker);
  const auto results = ask<protocol::ActorResults>(client, Method::get_actors, ids_of(specs));
  ASSERT_TRUE(results);
  EXPECT_EQ(count_alive(*results), 5u);
}

TEST_F(LightActors, OneKilledWhileItStartsDoesNotComeAlive) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.hold_starts = true;
  const auto client = driver();
  const auto specs = light_specs(2);
  ASSERT_TRUE(create_many(client, specs));
  simulation.run_until([&] { return !worker.batches_started.empty(); }, 1s);
  ASSERT_TRUE(kill(client, specs.items[0].actor));
  worker.let_go();
  ASSERT_TRUE(wait_alive(client, specs.items[1].actor));
  EXPECT_EQ(look(client, specs.items[0].actor).state, "dead");
  ASSERT_EQ(worker.batches_stopped.size(), 1u);
  EXPECT_EQ(worker.batches_stopped[0].items.at(0).actor, specs.items[0].actor);
}

TEST_F(LightActors, WhatItHoldsIsFreeOnceItHasStopped) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto specs = light_specs(2);
  for (auto& spec : specs.items) spec.demand = {{"cpu", 2000}};
  ASSERT_TRUE(create_many(client, specs));
  ASSERT_TRUE(wait_alive(client, specs.items[1].actor));
  EXPECT_EQ(cpu_free(client, worker.node), 0);
  worker.hold_stops = true;
  ASSERT_TRUE(ask<Empty>(client, Method::kill_actors, ids_of(specs)));
  simulation.run_for(1s);
  EXPECT_EQ(cpu_free(client, worker.node), 0);
  worker.let_go();
  simulation.run_for(1s);
  EXPECT_EQ(cpu_free(client, worker.node), 4);
}

TEST_F(LightActors, RestartsAfterItsProcessEnded) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto specs = light_specs(3);
  for (auto& spec : specs.items) spec.max_restarts = 1;
  ASSERT_TRUE(create_many(client, specs));
  for (const auto& spec : specs.items) {
    const auto info = wait_alive(client, spec.actor);
    ASSERT_TRUE(info);
    ASSERT_TRUE(report_exit(worker, *info));
  }
  for (const auto& spec : specs.items) {
    const auto info = wait_alive(client, spec.actor, 1);
    ASSERT_TRUE(info);
    EXPECT_EQ(info->incarnation, 2u);
  }
}

TEST_F(LightActors, AStopSaysHowLongTheActorMayTake) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  auto specs = light_specs(1);
  specs.items[0].exit_grace_us = 12'345;
  ASSERT_TRUE(create_many(client, specs));
  ASSERT_TRUE(wait_alive(client, specs.items[0].actor));
  auto own = actor_spec();
  own.exit_grace_us = 54'321;
  ASSERT_TRUE(create(client, own));
  ASSERT_TRUE(wait_alive(client, own.actor));
  ASSERT_TRUE(kill(client, specs.items[0].actor));
  ASSERT_TRUE(kill(client, own.actor));
  simulation.run_for(1s);
  EXPECT_EQ(worker.batches_stopped.at(0).items.at(0).grace_us, 12'345u);
  EXPECT_EQ(worker.stopped.at(0).grace_us, 54'321u);
}

TEST_F(LightActors, NeitherAPluginNorADeviceIsShared) {
  start_head();
  const auto client = driver();
  auto plugin = light_spec();
  plugin.module = "inference";
  EXPECT_EQ(code_of(create(client, plugin)), Code::invalid);
  auto gpu = light_spec();
  gpu.demand = {{"gpu", 500}};
  EXPECT_EQ(code_of(create(client, gpu)), Code::invalid);
  auto patient = light_spec();
  patient.exit_grace_us = 3'600'000'001;
  EXPECT_EQ(code_of(create(client, patient)), Code::invalid);
}

TEST_F(LightActors, ANewHeadStartsThoseThatStillStarted) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.hold_starts = true;
  const auto client = driver();
  const auto specs = light_specs(4);
  ASSERT_TRUE(create_many(client, specs));
  simulation.run_until([&] { return !worker.batches_started.empty(); }, 1s);
  restart_head();
  worker.let_go();
  return_worker(worker);
  const auto again = driver();
  const auto results = ask<protocol::ActorResults>(again, Method::get_actors, ids_of(specs));
  ASSERT_TRUE(results);
  EXPECT_EQ(count_alive(*results), 4u);
}

}  // namespace
}  // namespace troupe::head
