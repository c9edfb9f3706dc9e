// Placement groups: promised once, granted whole, and what runs in them takes from them alone.
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

class Groups : public HeadTest {
 protected:
  protocol::PlacementGroupSpec spec_of(std::vector<int64_t> cpus,
                                       const std::string& strategy = "") {
    protocol::PlacementGroupSpec spec;
    spec.group = PlacementGroupId::random(simulation.random());
    spec.strategy = strategy;
    for (const int64_t cpu : cpus) spec.bundles.push_back({{{"cpu", cpu * 1000}}});
    return spec;
  }
  std::vector<protocol::ErrorInfo> create(const std::shared_ptr<Peer>& peer,
                                          std::vector<protocol::PlacementGroupSpec> specs) {
    auto results = ask<protocol::PlacementGroupResults>(
        peer, Method::create_placement_groups, protocol::PlacementGroupSpecs{std::move(specs)});
    EXPECT_EQ(code_of(results), Code::ok);
    return results ? results->items : std::vector<protocol::ErrorInfo>{};
  }
  Code created(const std::shared_ptr<Peer>& peer, const protocol::PlacementGroupSpec& spec) {
    const auto results = create(peer, {spec});
    return results.size() == 1 ? protocol::from_info(results[0]).code() : Code::internal;
  }
  void make(const std::shared_ptr<Peer>& peer, const protocol::PlacementGroupSpec& spec) {
    EXPECT_EQ(create(peer, {spec}).at(0).code, 0u);
  }
  Pending<protocol::PlacementGroupInfo> begin_wait(const std::shared_ptr<Peer>& peer,
                                                   PlacementGroupId group, Duration budget = 10s) {
    return begin<protocol::PlacementGroupInfo>(peer, Method::get_placement_group,
                                               protocol::GetPlacementGroup{group, {}, {}, true},
                                               budget);
  }
  Result<protocol::PlacementGroupInfo> get(const std::shared_ptr<Peer>& peer,
                                           PlacementGroupId group) {
    return ask<protocol::PlacementGroupInfo>(peer, Method::get_placement_group,
                                             protocol::GetPlacementGroup{group, {}, {}, false});
  }
  void remove(const std::shared_ptr<Peer>& peer, std::vector<PlacementGroupId> groups) {
    EXPECT_EQ(code_of(ask<Empty>(peer, Method::remove_placement_groups,
                                 protocol::RemovePlacementGroups{std::move(groups)})),
              Code::ok);
  }
  protocol::ActorSpec actor_in(PlacementGroupId group, uint32_t bundle = 0, int64_t cpu = 1) {
    protocol::ActorSpec spec = actor_spec(cpu);
    spec.placement.group = group;
    spec.placement.bundle = bundle;
    return spec;
  }
  protocol::RequestLease lease_in(PlacementGroupId group, uint32_t slots) {
    protocol::RequestLease request;
    request.lease = LeaseId::random(simulation.random());
    request.module = "module";
    request.demand = {{"cpu", 1000}};
    request.slots = slots;
    request.placement.group = group;
    return request;
  }
  void lose(FakeWorker& worker) {
    worker.beats = false;
    simulation.run_for(options.window + options.heartbeat + 1s);
  }
};

TEST_F(Groups, ArePlacedWholeAndSayWhere) {
  start_head();
  FakeWorker& first = add_worker(2);
  FakeWorker& second = add_worker(2);
  const auto client = driver();
  const auto spec = spec_of({2, 2}, "strict_spread");
  make(client, spec);
  const auto info = get(client, spec.group);
  ASSERT_TRUE(info);
  EXPECT_EQ(info->state, "placed");
  ASSERT_EQ(info->places.size(), 2u);
  EXPECT_NE(info->places[0].node, info->places[1].node);
  EXPECT_EQ(cpu_free(client, first.node), 0);
  EXPECT_EQ(cpu_free(client, second.node), 0);
  remove(client, {spec.group});
  EXPECT_EQ(cpu_free(client, first.node), 2);
  EXPECT_EQ(code_of(get(client, spec.group)), Code::not_found);
}

TEST_F(Groups, ThatDoNotFitWaitAndSayWhy) {
  start_head();
  add_worker(2);
  const auto client = driver();
  const auto spec = spec_of({2, 2}, "strict_pack");
  make(client, spec);
  EXPECT_EQ(get(client, spec.group)->state, "pending");
  EXPECT_NE(get(client, spec.group)->reason.find("infeasible"), std::string::npos);
  ASSERT_EQ(cluster_info(client).pending.size(), 1u);
  EXPECT_EQ(cluster_info(client).pending[0].kind, "placement group");
  const auto waits = begin_wait(client, spec.group);
  simulation.run_for(1s);
  EXPECT_FALSE(waits->has_value());
  add_worker(4);
  simulation.run_until([&] { return waits->has_value(); }, 5s);
  EXPECT_EQ((*waits)->value().state, "placed");
}

TEST_F(Groups, AWaitThatIsTooLongSaysWhatItWaitedFor) {
  start_head();
  add_worker(2);
  const auto client = driver();
  const auto spec = spec_of({3});
  make(client, spec);
  const auto waited = begin_wait(client, spec.group, 2s);
  simulation.run_until([&] { return waited->has_value(); }, 3s);
  ASSERT_TRUE(waited->has_value());
  EXPECT_EQ(code_of(**waited), Code::deadline_exceeded);
  EXPECT_NE((**waited).error().message().find("short of cpu"), std::string::npos)
      << (**waited).error().message();
}

TEST_F(Groups, ManyAtOnceAreOneWrite) {
  start_head();
  add_worker(100);
  const auto client = driver();
  simulation.run_for(1s);
  std::vector<protocol::PlacementGroupSpec> specs;
  for (int i = 0; i < 100; ++i) specs.push_back(spec_of({1}));
  specs.push_back(spec_of({}));
  store.commits_left = 1;
  const auto results = create(client, specs);
  ASSERT_EQ(results.size(), 101u);
  EXPECT_EQ(results[99].code, 0u);
  EXPECT_EQ(protocol::from_info(results[100]).code(), Code::invalid);
  EXPECT_EQ(cluster_info(client).placement_groups, 100u);
  std::vector<PlacementGroupId> ids;
  for (const auto& spec : specs) ids.push_back(spec.group);
  store.commits_left = 1;
  remove(client, ids);
  EXPECT_EQ(cluster_info(client).placement_groups, 0u);
}

TEST_F(Groups, AreNotPromisedWithoutADisk) {
  start_head();
  add_worker(2);
  const auto client = driver();
  simulation.run_for(1s);
  store.commits_left = 0;
  const protocol::PlacementGroupSpecs specs{{spec_of({1})}};
  EXPECT_NE(code_of(ask<protocol::PlacementGroupResults>(client, Method::create_placement_groups,
                                                         specs, 2s)),
            Code::ok);
}

TEST_F(Groups, AreRefusedWhenMalformedOrTaken) {
  start_head();
  const auto client = driver();
  EXPECT_EQ(created(client, spec_of({})), Code::invalid);
  EXPECT_EQ(created(client, spec_of({0})), Code::invalid);
  EXPECT_EQ(created(client, spec_of({1}, "tight")), Code::invalid);
  auto named = spec_of({1});
  named.name = "mine";
  make(client, named);
  make(client, named);  // A retry.
  auto namesake = spec_of({1});
  namesake.name = "mine";
  EXPECT_EQ(created(client, namesake), Code::conflict);
  auto other = named;
  other.bundles.push_back(other.bundles[0]);
  EXPECT_EQ(created(client, other), Code::conflict);
  const protocol::GetPlacementGroup by_name{{}, "mine", {}, false};
  EXPECT_EQ(ask<protocol::PlacementGroupInfo>(client, Method::get_placement_group, by_name)
                .value()
                .spec.group,
            named.group);
  remove(client, {named.group});
  EXPECT_EQ(created(client, named), Code::conflict) << "a late request makes no group anew";
  make(client, namesake);
}

TEST_F(Groups, ActorsTakeFromTheirBundle) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto spec = spec_of({1, 2});
  make(client, spec);
  const auto actor = actor_in(spec.group, 2, 2);
  ASSERT_TRUE(HeadTest::create(client, actor));
  ASSERT_TRUE(wait_alive(client, actor.actor));
  EXPECT_EQ(cpu_free(client, worker.node), 1);
  EXPECT_EQ(worker.started.back().spec.placement.bundle, 2u);
  // The bundle is full: the node's free core does not help.
  const auto late = actor_in(spec.group, 2);
  ASSERT_TRUE(HeadTest::create(client, late));
  EXPECT_EQ(look(client, late.actor).state, "pending");
  EXPECT_NE(look(client, late.actor).reason.find("no room in bundle 1"), std::string::npos);
  ASSERT_TRUE(kill(client, actor.actor));
  EXPECT_TRUE(wait_alive(client, late.actor));
  auto nowhere = actor_in(spec.group, 3);
  EXPECT_EQ(code_of(HeadTest::create(client, nowhere)), Code::invalid);
  nowhere.placement.group = PlacementGroupId::random(simulation.random());
  EXPECT_EQ(code_of(HeadTest::create(client, nowhere)), Code::not_found);
}

TEST_F(Groups, RemovalEndsWhatRunsThereAndFreesItWhenItHasEnded) {
  start_head();
  FakeWorker& worker = add_worker(3);
  const auto client = driver();
  const auto spec = spec_of({1, 1, 1});
  make(client, spec);
  const auto actor = actor_in(spec.group, 1);
  ASSERT_TRUE(HeadTest::create(client, actor));
  ASSERT_TRUE(wait_alive(client, actor.actor));
  auto lease = lease_in(spec.group, 1);
  lease.placement.bundle = 2;
  ASSERT_TRUE(ask<protocol::LeaseGranted>(client, Method::request_lease, lease));
  lease.lease = LeaseId::random(simulation.random());
  const auto waits = begin<protocol::LeaseGranted>(client, Method::request_lease, lease);
  simulation.run_for(100ms);
  worker.hold_stops = true;
  remove(client, {spec.group});
  EXPECT_EQ(look(client, actor.actor).state, "dead");
  EXPECT_NE(look(client, actor.actor).reason.find("was removed"), std::string::npos);
  simulation.run_until([&] { return waits->has_value(); }, 1s);
  ASSERT_TRUE(waits->has_value());
  EXPECT_EQ(code_of(**waits), Code::not_found);
  EXPECT_NE((**waits).error().message().find("was removed"), std::string::npos);
  EXPECT_EQ(cpu_free(client, worker.node), 1) << "bundles in use are not free yet";
  ASSERT_EQ(worker.slots_stopped.size(), 1u);
  EXPECT_TRUE(worker.slots_stopped[0].end_tasks);
  worker.let_go();
  simulation.run_for(1s);
  EXPECT_EQ(cpu_free(client, worker.node), 3);
}

TEST_F(Groups, EndWithTheirJobUnlessTheyAreDetached) {
  start_head();
  add_worker(4);
  const auto client = driver();
  auto bound = spec_of({1});
  auto detached = spec_of({1});
  bound.job = detached.job = begin_job(client);
  detached.detached = true;
  make(client, bound);
  make(client, detached);
  EXPECT_EQ(code_of(ask<Empty>(client, Method::end_job, protocol::EndJob{bound.job, true, {}})),
            Code::ok);
  EXPECT_EQ(code_of(get(client, bound.group)), Code::not_found);
  EXPECT_EQ(get(client, detached.group)->state, "placed");
}

TEST_F(Groups, AreGrantedAnewWholeAfterANodesDeath) {
  start_head();
  FakeWorker& first = add_worker(2);
  FakeWorker& second = add_worker(2);
  const auto client = driver();
  const auto spec = spec_of({2, 2}, "strict_spread");
  make(client, spec);
  std::vector<protocol::ActorSpec> actors;
  for (uint32_t bundle = 1; bundle <= 2; ++bundle) {
    actors.push_back(actor_in(spec.group, bundle));
    actors.back().max_restarts = -1;
    ASSERT_TRUE(HeadTest::create(client, actors.back()));
    ASSERT_TRUE(wait_alive(client, actors.back().actor));
  }
  lose(second);
  EXPECT_EQ(get(client, spec.group)->state, "rescheduling");
  EXPECT_NE(get(client, spec.group)->reason.find("it lost node"), std::string::npos);
  for (const auto& actor : actors) EXPECT_EQ(look(client, actor.actor).state, "restarting");
  EXPECT_EQ(first.stopped.size(), 1u) << "what ran in the other bundle ends, too";
  FakeWorker& third = add_worker(2);
  const auto placed = begin_wait(client, spec.group);
  simulation.run_until([&] { return placed->has_value(); }, 5s);
  EXPECT_EQ((*placed)->value().grant, 1u);
  for (const auto& actor : actors) EXPECT_TRUE(wait_alive(client, actor.actor, 1));
  EXPECT_EQ(first.started.size() + third.started.size(), 3u);
}

TEST_F(Groups, ANewHeadTakesThemOverWithWhatRunsInThem) {
  start_head();
  FakeWorker& first = add_worker(3);
  FakeWorker& second = add_worker(3);
  auto client = driver();
  auto spec = spec_of({2, 2}, "strict_spread");
  spec.detached = true;
  make(client, spec);
  const auto waiting = spec_of({9});
  make(client, waiting);
  const auto places = get(client, spec.group)->places;
  FakeWorker& holder = places[0].node == first.node ? first : second;
  FakeWorker& other = places[0].node == first.node ? second : first;
  const auto actor = actor_in(spec.group, 1, 2);
  ASSERT_TRUE(HeadTest::create(client, actor));
  const auto alive = wait_alive(client, actor.actor);
  ASSERT_TRUE(alive);
  auto lease = lease_in(spec.group, 1);
  lease.placement.bundle = 2;
  const auto granted = ask<protocol::LeaseGranted>(client, Method::request_lease, lease);
  ASSERT_TRUE(granted);

  restart_head();
  client = driver();
  holder.registration.actors = {{actor.actor, 1, alive->address, 1}};
  return_worker(holder);
  // A group that is not whole again takes nothing in.
  const auto late = actor_in(spec.group, 2);
  ASSERT_TRUE(HeadTest::create(client, late));
  EXPECT_NE(look(client, late.actor).reason.find("is not whole"), std::string::npos);
  protocol::RunningSlot slot;
  slot.lease = lease.lease;
  slot.demand = lease.demand;
  slot.address = granted->slots[0].address;
  slot.placement = other.slots_started.back().placement;
  slot.placement.bundle = other.slots_started.back().slots[0].bundle;
  other.registration.slots = {slot};
  return_worker(other);
  EXPECT_TRUE(wait_alive(client, late.actor));
  EXPECT_EQ(look(client, actor.actor).incarnation, 1u);
  EXPECT_EQ(cpu_free(client, holder.node), 1);
  EXPECT_EQ(cpu_free(client, other.node), 1);
  EXPECT_EQ(get(client, waiting.group)->state, "pending");
  // The lease's slot is in its bundle: there is no room for another.
  const auto third = actor_in(spec.group, 2);
  ASSERT_TRUE(HeadTest::create(client, third));
  EXPECT_NE(look(client, third.actor).reason.find("no room in bundle 1"), std::string::npos);
  EXPECT_TRUE(
      ask<protocol::LeaseGranted>(client, Method::renew_lease, protocol::RenewLease{lease.lease}));
}

// Else a head that starts then may place the group elsewhere, and what runs here has no place.
TEST_F(Groups, NoSlotStartsInABundleBeforeItsPlaceIsDurable) {
  start_head();
  const auto client = driver();
  const auto spec = spec_of({1});
  make(client, spec);
  const auto granted =
      begin<protocol::LeaseGranted>(client, Method::request_lease, lease_in(spec.group, 1));
  simulation.run_for(1s);
  store.commits_left = 0;
  FakeWorker& worker = add_stranger(4);
  begin<protocol::NodeRegistered>(worker.head, Method::register_node, worker.registration);
  simulation.run_for(1s);
  EXPECT_TRUE(worker.slots_started.empty());
}

TEST_F(Groups, ANewHeadCountsWhatRunsInABundleThereIfItsClientAsksAgain) {
  start_head();
  FakeWorker& lost = add_worker(4);
  auto client = driver();
  auto spec = spec_of({2});
  spec.detached = true;
  make(client, spec);
  FakeWorker& worker = add_worker(4);
  lose(lost);  // A client does not know which grant it is by now.
  const auto lease = lease_in(spec.group, 1);
  const auto granted = ask<protocol::LeaseGranted>(client, Method::request_lease, lease);
  ASSERT_TRUE(granted);

  restart_head();
  client = driver();
  const auto again = begin<protocol::LeaseGranted>(client, Method::request_lease, lease);
  simulation.run_for(100ms);
  protocol::RunningSlot slot;
  slot.lease = lease.lease;
  slot.demand = lease.demand;
  slot.address = granted->slots[0].address;
  slot.placement = worker.slots_started.back().placement;
  slot.placement.bundle = worker.slots_started.back().slots[0].bundle;
  worker.registration.slots = {slot};
  return_worker(worker);
  simulation.run_until([&] { return again->has_value(); }, 10s);
  ASSERT_TRUE(again->has_value());
  ASSERT_TRUE(**again);
  EXPECT_EQ(cpu_free(client, worker.node), 2);
  const auto too_large = actor_in(spec.group, 1, 2);
  ASSERT_TRUE(HeadTest::create(client, too_large));
  EXPECT_EQ(code_of(wait_alive(client, too_large.actor)), Code::deadline_exceeded);
}

TEST_F(Groups, OfANodeThatDoesNotComeBackAreGrantedAnewByANewHead) {
  start_head();
  FakeWorker& first = add_worker(2);
  add_worker(2);
  auto client = driver();
  auto spec = spec_of({2, 2}, "strict_spread");
  spec.detached = true;
  make(client, spec);
  restart_head();
  client = driver();
  return_worker(first);
  simulation.run_for(options.window + 1s);
  EXPECT_EQ(get(client, spec.group)->state, "rescheduling");
  EXPECT_EQ(cpu_free(client, first.node), 2);
  add_worker(2);
  simulation.run_for(1s);
  EXPECT_EQ(get(client, spec.group)->state, "placed");
}

TEST_F(Groups, TellWhetherTheyCaptureAndWhichGrantItIs) {
  start_head();
  FakeWorker& worker = add_worker(2);
  const auto client = driver();
  auto spec = spec_of({2});
  spec.capture = true;
  make(client, spec);
  const auto actor = actor_in(spec.group);
  ASSERT_TRUE(HeadTest::create(client, actor));
  ASSERT_TRUE(wait_alive(client, actor.actor));
  EXPECT_TRUE(worker.started[0].spec.placement.capture);
  EXPECT_EQ(worker.started[0].spec.placement.bundle, 1u);
  ASSERT_TRUE(ask<protocol::LeaseGranted>(client, Method::request_lease, lease_in(spec.group, 1)));
  EXPECT_TRUE(worker.slots_started[0].placement.capture);
  EXPECT_EQ(worker.slots_started[0].slots.at(0).bundle, 1u);
}

TEST_F(Groups, LabelsAndNodesOfTasksAndActorsAreHeeded) {
  start_head();
  FakeWorker& plain = add_worker(1);
  FakeWorker& fast = add_stranger(1);
  fast.registration.labels = {{"disk", "ssd"}};
  ASSERT_TRUE(register_worker(fast));
  const auto client = driver();
  auto soft = actor_spec();
  soft.placement.selectors = {{"disk", "in", {"ssd"}, true}};
  ASSERT_TRUE(HeadTest::create(client, soft));
  EXPECT_EQ(wait_alive(client, soft.actor)->address.node, fast.node);
  auto hard = actor_spec();
  hard.placement.selectors = {{"disk", "exists", {}, false}};
  ASSERT_TRUE(HeadTest::create(client, hard));
  EXPECT_NE(look(client, hard.actor).reason.find("only where disk"), std::string::npos);
  protocol::RequestLease lease = lease_in({}, 1);
  lease.placement.node = fast.node;
  lease.placement.node_soft = true;
  ASSERT_TRUE(ask<protocol::LeaseGranted>(client, Method::request_lease, lease));
  EXPECT_EQ(plain.slots_started.size(), 1u) << "the node that it prefers is full";
  auto wrong = actor_spec();
  wrong.placement.selectors = {{"disk", "like", {"ssd"}, false}};
  EXPECT_EQ(code_of(HeadTest::create(client, wrong)), Code::invalid);
}

}  // namespace
}  // namespace troupe::head
