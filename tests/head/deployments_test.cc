// Deployments: as many replicas as were asked for, of the present version, or a reason why not.
#include <algorithm>

#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

class Deployments : public HeadTest {
 protected:
  protocol::DeploymentSpec spec_of(const std::string& name, uint32_t replicas) {
    protocol::DeploymentSpec spec;
    spec.name = name;
    spec.module = "plugin";
    spec.class_name = "Engine";
    spec.config = "{}";
    spec.replicas = replicas;
    spec.demand = {{"cpu", 1000}};
    return spec;
  }
  Result<protocol::DeploymentInfo> deploy(const std::shared_ptr<Peer>& peer,
                                          const protocol::DeploymentSpec& spec) {
    return ask<protocol::DeploymentInfo>(peer, Method::deploy, spec);
  }
  Result<Empty> undeploy(const std::shared_ptr<Peer>& peer, const std::string& name) {
    return ask<Empty>(peer, Method::undeploy, protocol::NameOf{name});
  }
  protocol::DeploymentInfo look_at(const std::shared_ptr<Peer>& peer, const std::string& name) {
    const auto list =
        ask<protocol::DeploymentList>(peer, Method::list_deployments, Empty{}).value();
    for (const auto& info : list.items) {
      if (info.spec.name == name) return info;
    }
    return {};
  }
  size_t living(const std::shared_ptr<Peer>& peer) { return cluster_info(peer).actors; }
  Async<void> follow(std::shared_ptr<transport::IncomingStream> stream,
                     std::shared_ptr<std::vector<std::string>> states) {
    for (;;) {
      auto item = co_await stream->next();
      if (!item || !*item) co_return;
      const auto list = protocol::decode<protocol::DeploymentList>(**item).value();
      states->push_back(list.items.empty() ? "none" : list.items[0].state);
    }
  }
};

TEST_F(Deployments, IsReadyOnceAllItsReplicasAreAlive) {
  start_head();
  add_worker(4);
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 2)));
  simulation.run_for(1s);
  const auto info = look_at(client, "chat");
  EXPECT_EQ(info.state, "ready");
  EXPECT_EQ(info.replicas.size(), 2u);
}

TEST_F(Deployments, IsDegradedWhileSomeReplicasHaveNoRoom) {
  start_head();
  add_worker(1);
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 2)));
  simulation.run_for(1s);
  const auto info = look_at(client, "chat");
  EXPECT_EQ(info.state, "degraded");
  EXPECT_NE(info.reason, "");
}

TEST_F(Deployments, RefusesABadSpec) {
  start_head();
  const auto client = driver();
  const auto refuses = [&](const char* what,
                           const std::function<void(protocol::DeploymentSpec&)>& spoil) {
    SCOPED_TRACE(what);
    auto spec = spec_of("chat", 1);
    spoil(spec);
    EXPECT_EQ(code_of(deploy(client, spec)), Code::invalid);
  };
  refuses("no name", [](auto& spec) { spec.name.clear(); });
  refuses("long name", [](auto& spec) { spec.name.assign(129, 'x'); });
  refuses("odd name", [](auto& spec) { spec.name = "a b"; });
  refuses("no module", [](auto& spec) { spec.module.clear(); });
  refuses("no class", [](auto& spec) { spec.class_name.clear(); });
  refuses("no replica", [](auto& spec) { spec.replicas = 0; });
  refuses("many replicas", [](auto& spec) { spec.replicas = 1001; });
  refuses("large config", [](auto& spec) { spec.config.assign((256 << 10) + 1, 'x'); });
  refuses("negative demand", [](auto& spec) { spec.demand = {{"cpu", -1}}; });
}

TEST_F(Deployments, RefusesMoreDeploymentsThanTheLimit) {
  options.deployments_max = 1;
  start_head();
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  EXPECT_EQ(code_of(deploy(client, spec_of("other", 1))), Code::exhausted);
}

TEST_F(Deployments, AReplicaThatWasRefusedIsTriedAgain) {
  options.actors_max = 1;
  start_head();
  add_worker(4);
  const auto client = driver();
  const auto other = actor_spec();
  ASSERT_TRUE(create(client, other));
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  simulation.run_for(3s);
  EXPECT_EQ(look_at(client, "chat").state, "starting");
  ASSERT_EQ(code_of(ask<Empty>(client, Method::kill_actor, protocol::KillActor{other.actor, ""})),
            Code::ok);
  simulation.run_for(2s);
  EXPECT_EQ(look_at(client, "chat").state, "ready");
}

TEST_F(Deployments, SameDeployAgainChangesNothing) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  const auto first = deploy(client, spec_of("chat", 2));
  simulation.run_for(1s);
  const auto second = deploy(client, spec_of("chat", 2));
  simulation.run_for(1s);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(second->version, first->version);
  EXPECT_EQ(worker.started.size(), 2u);
}

TEST_F(Deployments, ScalingUpAddsReplicasAndKeepsTheOthers) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  simulation.run_for(1s);
  ASSERT_TRUE(deploy(client, spec_of("chat", 3)));
  simulation.run_for(1s);
  EXPECT_EQ(look_at(client, "chat").state, "ready");
  EXPECT_EQ(worker.started.size(), 3u);
  EXPECT_TRUE(worker.stopped.empty());
}

TEST_F(Deployments, ScalingDownStopsTheReplicasThatAreTooMany) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 3)));
  simulation.run_for(1s);
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  simulation.run_for(1s);
  EXPECT_EQ(look_at(client, "chat").replicas.size(), 1u);
  EXPECT_EQ(worker.stopped.size(), 2u);
}

TEST_F(Deployments, ChangedSpecReplacesEveryReplica) {
  start_head();
  FakeWorker& worker = add_worker(8);
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 2)));
  simulation.run_for(1s);
  auto changed = spec_of("chat", 2);
  changed.config = "{\"model\": 2}";
  ASSERT_TRUE(deploy(client, changed));
  simulation.run_for(1s);
  const auto info = look_at(client, "chat");
  EXPECT_EQ(info.version, 2u);
  EXPECT_EQ(info.state, "ready");
  EXPECT_EQ(worker.stopped.size(), 2u);
  ASSERT_EQ(worker.started.size(), 4u);
  EXPECT_EQ(as_text(worker.started[3].spec.arguments[0].inline_value), changed.config);
}

TEST_F(Deployments, ReplicaWhoseProcessEndsComesBack) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  simulation.run_for(1s);
  ASSERT_TRUE(report_exit(worker, look_at(client, "chat").replicas.at(0)));
  simulation.run_for(1s);
  const auto info = look_at(client, "chat");
  EXPECT_EQ(info.state, "ready");
  EXPECT_EQ(info.replicas.at(0).incarnation, 2u);
}

TEST_F(Deployments, ReplicaThatIsKilledIsReplaced) {
  start_head();
  add_worker(4);
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  simulation.run_for(1s);
  const ActorId first = look_at(client, "chat").replicas.at(0).actor;
  ASSERT_TRUE(kill(client, first));
  simulation.run_for(1s);
  const auto info = look_at(client, "chat");
  EXPECT_EQ(info.state, "ready");
  EXPECT_NE(info.replicas.at(0).actor, first);
}

TEST_F(Deployments, IsFailedAfterAReplicaFailedQuicklyThreeTimes) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.start_failure = error(Code::invalid, "no such model");
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  simulation.run_for(1min);
  const auto info = look_at(client, "chat");
  EXPECT_EQ(info.state, "failed");
  EXPECT_EQ(info.reason, "it did not start: no such model");
  EXPECT_EQ(worker.started.size(), 3u);
  EXPECT_EQ(living(client), 0u);
}

TEST_F(Deployments, FailedOneIsTriedAgainWhenItIsDeployedAgain) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.start_failure = error(Code::invalid, "no such model");
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  simulation.run_for(1min);
  worker.start_failure.reset();
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  simulation.run_for(1s);
  EXPECT_EQ(look_at(client, "chat").state, "ready");
}

TEST_F(Deployments, UndeployStopsEveryReplica) {
  start_head();
  FakeWorker& worker = add_worker(4);
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 3)));
  simulation.run_for(1s);
  ASSERT_TRUE(undeploy(client, "chat"));
  simulation.run_for(1s);
  EXPECT_EQ(worker.stopped.size(), 3u);
  EXPECT_EQ(living(client), 0u);
  EXPECT_EQ(look_at(client, "chat").spec.name, "");
}

TEST_F(Deployments, UndeployOfAnUnknownOneIsNotFound) {
  start_head();
  EXPECT_EQ(code_of(undeploy(driver(), "chat")), Code::not_found);
}

TEST_F(Deployments, LeavesReplicasOfOthersAlone) {
  start_head();
  add_worker(4);
  const auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  ASSERT_TRUE(deploy(client, spec_of("other", 1)));
  simulation.run_for(1s);
  ASSERT_TRUE(undeploy(client, "chat"));
  simulation.run_for(1s);
  EXPECT_EQ(look_at(client, "other").state, "ready");
}

TEST_F(Deployments, HeadThatDiesAmidAnUndeployLeavesNoReplicaBehind) {
  start_head();
  add_worker(4);
  auto client = driver();
  ASSERT_TRUE(deploy(client, spec_of("chat", 3)));
  simulation.run_for(1s);
  store.commits_left = 1;  // The first is on disk, no later one.
  (void)undeploy(client, "chat");
  restart_head();
  simulation.run_for(10s);
  client = driver();
  const bool gone = look_at(client, "chat").spec.name.empty();
  EXPECT_EQ(living(client), gone ? 0u : 3u);
}

TEST_F(Deployments, NewHeadGoesOnWhereTheOldOneStopped) {
  start_head();
  ASSERT_TRUE(deploy(driver(), spec_of("chat", 2)));
  restart_head();
  add_worker(4);
  simulation.run_for(1s);
  const auto info = look_at(driver(), "chat");
  EXPECT_EQ(info.state, "ready");
  EXPECT_EQ(info.replicas.size(), 2u);
}

TEST_F(Deployments, NewHeadStillKnowsThatOneFailed) {
  start_head();
  FakeWorker& worker = add_worker(4);
  worker.start_failure = error(Code::invalid, "no such model");
  ASSERT_TRUE(deploy(driver(), spec_of("chat", 1)));
  simulation.run_for(1min);
  restart_head();
  simulation.run_for(10s);
  const auto info = look_at(driver(), "chat");
  EXPECT_EQ(info.state, "failed");
  EXPECT_EQ(info.reason, "it did not start: no such model");
  EXPECT_EQ(living(driver()), 0u);
}

TEST_F(Deployments, WatcherIsToldOfEachChange) {
  start_head();
  add_worker(4);
  const auto client = driver();
  const auto stream = client->open_stream(Method::watch_deployments, {}, 0s).value();
  const auto states = std::make_shared<std::vector<std::string>>();
  spawn(scope, follow(stream, states));
  simulation.run_for(100ms);
  ASSERT_TRUE(deploy(client, spec_of("chat", 1)));
  simulation.run_for(1s);
  ASSERT_TRUE(undeploy(client, "chat"));
  simulation.run_for(1s);
  states->erase(std::unique(states->begin(), states->end()), states->end());
  EXPECT_EQ(*states, (std::vector<std::string>{"none", "starting", "ready", "none"}));
}

}  // namespace
}  // namespace troupe::head
