// When a node that is drained is said to be: every owner was asked, and nothing begins there.
#include "tests/head/head_fixture.h"

namespace troupe::head {
namespace {

class HeadEvacuation : public HeadTest {
 protected:
  void SetUp() override {
    start_head();
    admin = connect_admin();
  }
  // A worker whose processes are asked to move what they own, and do.
  FakeWorker& add_owner() {
    FakeWorker& worker = add_worker(1);
    worker.on(Method::evacuate, *this, &HeadEvacuation::evacuate);
    return worker;
  }
  void drain(const FakeWorker& worker) {
    ASSERT_TRUE(ask<Empty>(admin, Method::drain_node, protocol::DrainNode{worker.node}));
  }
  std::string state_of(const FakeWorker& worker) {
    const auto list = ask<protocol::NodeList>(admin, Method::list_nodes, Empty{});
    for (const auto& node : list.value().items) {
      if (node.address.node == worker.node) return node.state;
    }
    return "unknown";
  }
  bool becomes_drained(const FakeWorker& worker) {
    for (int i = 0; i < 50 && state_of(worker) != "drained"; ++i) simulation.run_for(100ms);
    return state_of(worker) == "drained";
  }
  std::shared_ptr<Peer> connect_admin() {
    protocol::Hello self;
    self.kind = "tool";
    const std::string name = "admin-" + std::to_string(++admins_);
    return connect(add_host(name, name, Role::admin), nothing_, self).value();
  }

  std::shared_ptr<Peer> admin;
  std::vector<protocol::Evacuate> asked;

 private:
  Async<Result<Empty>> evacuate(protocol::Evacuate request, CallContext) {
    asked.push_back(std::move(request));
    co_return Empty{};
  }

  transport::Router nothing_;
  int admins_ = 0;
};

TEST_F(HeadEvacuation, AllOwnersAreAskedAndToldWhereTo) {
  FakeWorker& leaves = add_owner();
  FakeWorker& stays = add_owner();
  drain(leaves);
  EXPECT_TRUE(becomes_drained(leaves));
  ASSERT_EQ(asked.size(), 2U);
  for (const auto& request : asked) {
    EXPECT_EQ(request.node, leaves.node);
    EXPECT_EQ(request.worker, leaves.registration.address.process);
    ASSERT_EQ(request.targets.size(), 1U);
    EXPECT_EQ(request.targets[0].node, stays.node);
  }
}

TEST_F(HeadEvacuation, ALaterHeadWaitsForOwnersThatAreNotBackYet) {
  FakeWorker& leaves = add_owner();
  FakeWorker& stays = add_owner();
  drain(leaves);
  restart_head();
  admin = connect_admin();
  return_worker(leaves);
  asked.clear();
  simulation.run_for(1s);
  EXPECT_EQ(state_of(leaves), "draining");
  return_worker(stays);
  EXPECT_TRUE(becomes_drained(leaves));
  EXPECT_GE(asked.size(), 2U);
}

TEST_F(HeadEvacuation, AnActorThatStillStartsThereIsWaitedFor) {
  FakeWorker& leaves = add_owner();
  leaves.hold_starts = true;
  const auto peer = driver();
  const auto spec = actor_spec();  // Without restarts: it is not moved.
  ASSERT_TRUE(create(peer, spec));
  ASSERT_TRUE(simulation.run_until([&] { return !leaves.started.empty(); }, 5s));
  add_owner();
  drain(leaves);
  simulation.run_for(2s);
  EXPECT_EQ(state_of(leaves), "draining");
  leaves.let_go();
  ASSERT_TRUE(wait_alive(peer, spec.actor));
  ASSERT_TRUE(ask<Empty>(peer, Method::kill_actor, protocol::KillActor{spec.actor, "over"}));
  EXPECT_TRUE(becomes_drained(leaves));
}

}  // namespace
}  // namespace troupe::head
