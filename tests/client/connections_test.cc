// The connections of a process: one a peer, made once, made again when it broke.
#include "tests/client/client_fixture.h"

namespace troupe::client {
namespace {

class ConnectionsTest : public ClientTest {
 protected:
  Result<std::shared_ptr<Peer>> reach(const protocol::ProcessAddress& address,
                                      Duration budget = 10s) {
    auto peer = await(client->peer_of(address, in(budget)), budget + 1s);
    simulation.run_for(10ms);  // The other side learns of it, too.
    return peer;
  }
  Result<std::shared_ptr<Peer>> dial_client(sim::SimHost& from, const protocol::Hello& self) {
    return await(dial(from, self));
  }

  transport::Router nothing;

 private:
  Async<Result<std::shared_ptr<Peer>>> dial(sim::SimHost& from, protocol::Hello self) {
    Endpoint endpoint;
    endpoint.unix_path = client->address().unix_path;
    auto connection = co_await from.connect(endpoint, in(5s));
    if (!connection) co_return connection.error();
    co_return co_await Peer::start(scope, simulation.environment(from), std::move(*connection),
                                   nothing, self, in(5s));
  }
};

TEST_F(ConnectionsTest, StartedClientKnowsItsNodeAndWhereItIsReached) {
  start_client();
  EXPECT_TRUE(client->started().is_set());
  EXPECT_EQ(client->address().node, attached.node);
  EXPECT_EQ(client->address().host, "10.0.1.1");
  EXPECT_NE(client->address().port, 0);
  EXPECT_EQ(client->address().unix_path.find("/simulated/"), 0u);
}

TEST_F(ConnectionsTest, StartWithoutAWorkerIsUnavailable) {
  EXPECT_EQ(code_of(try_start()), Code::unavailable);
  EXPECT_FALSE(client->started().is_set());
}

TEST_F(ConnectionsTest, SecondCallerUsesTheSameConnection) {
  start_client();
  FakeProcess& process = add_process();
  const auto first = reach(process.address);
  const auto second = reach(process.address);
  ASSERT_TRUE(first && second);
  EXPECT_EQ(*first, *second);
  EXPECT_EQ(process.peers.size(), 1u);
}

TEST_F(ConnectionsTest, CallersAtOnceShareOneDial) {
  start_client();
  FakeProcess& process = add_process();
  const auto first = begin(client->peer_of(process.address, in(10s)));
  const auto second = begin(client->peer_of(process.address, in(10s)));
  simulation.run_for(1s);
  ASSERT_TRUE(first->has_value() && second->has_value());
  EXPECT_EQ((*first)->value(), (*second)->value());
  EXPECT_EQ(process.peers.size(), 1u);
}

TEST_F(ConnectionsTest, ConnectionThatBrokeIsMadeAnew) {
  start_client();
  FakeProcess& process = add_process();
  const auto first = reach(process.address);
  ASSERT_TRUE(first);
  process.peers.at(0)->close();
  simulation.run_for(100ms);
  const auto second = reach(process.address);
  ASSERT_TRUE(second);
  EXPECT_NE(*first, *second);
  EXPECT_TRUE((*second)->is_open());
}

TEST_F(ConnectionsTest, NobodyListeningIsUnavailable) {
  start_client();
  FakeProcess& process = add_process();
  process.stop_listening();
  EXPECT_EQ(code_of(reach(process.address)), Code::unavailable);
}

TEST_F(ConnectionsTest, FailedDialIsTriedAnewByTheNextCaller) {
  start_client();
  FakeProcess& process = add_process();
  process.stop_listening();
  ASSERT_FALSE(reach(process.address));
  Endpoint endpoint;
  endpoint.unix_path = process.address.unix_path;
  process.listen(endpoint);
  EXPECT_EQ(code_of(reach(process.address)), Code::ok);
}

TEST_F(ConnectionsTest, AnotherProcessAtTheAddressIsUnavailable) {
  start_client();
  FakeProcess& process = add_process();
  protocol::ProcessAddress gone = process.address;
  gone.process = ProcessId::random(simulation.random());
  EXPECT_EQ(code_of(reach(gone)), Code::unavailable);
  simulation.run_for(100ms);
  ASSERT_EQ(process.peers.size(), 1u);
  EXPECT_FALSE(process.peers[0]->is_open()) << "nobody uses it";
}

TEST_F(ConnectionsTest, AddressWithoutAProcessIsInvalid) {
  start_client();
  FakeProcess& process = add_process();
  protocol::ProcessAddress nameless = process.address;
  nameless.process = {};
  EXPECT_EQ(code_of(reach(nameless)), Code::invalid);
  EXPECT_TRUE(process.peers.empty()) << "it would be taken for the head";
}

TEST_F(ConnectionsTest, CallerWaitsNoLongerThanItsDeadline) {
  start_client();
  simulation.network().partition("machine", "head");
  const Instant before = simulation.clock().now();
  EXPECT_EQ(code_of(await(client->head(in(2s)))), Code::deadline_exceeded);
  EXPECT_EQ(since(before), 2s);
}

TEST_F(ConnectionsTest, DialGoesOnForThoseWhoWaitLonger) {
  start_client();
  simulation.network().partition("machine", "head");
  const auto hasty = begin(client->head(in(1s)));
  const auto patient = begin(client->head(in(9s)));
  simulation.run_for(2s);
  ASSERT_EQ(code_of(hasty->value()), Code::deadline_exceeded);
  simulation.network().heal();
  simulation.run_for(5s);
  ASSERT_TRUE(patient->has_value());
  EXPECT_EQ(code_of(**patient), Code::ok);
}

TEST_F(ConnectionsTest, ProcessOfTheNodeIsReachedOverItsUnixSocket) {
  start_client();
  const auto peer = reach(add_process().address);
  ASSERT_TRUE(peer);
  EXPECT_TRUE((*peer)->identity().local);
}

TEST_F(ConnectionsTest, ProcessOfAnotherNodeIsReachedOverTls) {
  start_client();
  FakeProcess& process = add_process();
  process.address.node = NodeId::random(simulation.random());
  process.address.host = "10.0.1.2";
  process.address.port = 9000;
  process.listen({"", "10.0.1.2", 9000});
  const auto peer = reach(process.address);
  ASSERT_TRUE(peer);
  EXPECT_FALSE((*peer)->identity().local);
}

TEST_F(ConnectionsTest, WorkerIsReachedOverItsOwnConnection) {
  start_client();
  const auto peer = reach(worker.self.address);
  ASSERT_TRUE(peer);
  EXPECT_EQ(*peer, client->worker());
}

TEST_F(ConnectionsTest, ConnectionThatWasAcceptedServesBothWays) {
  start_client();
  FakeProcess& process = add_process();
  ASSERT_TRUE(dial_client(process.host, process.self));
  process.stop_listening();
  simulation.run_for(100ms);
  EXPECT_EQ(code_of(reach(process.address)), Code::ok);
}

TEST_F(ConnectionsTest, RefusesAPeerOfAnotherCluster) {
  start_client();
  protocol::Hello self;
  self.cluster = ClusterId::random(simulation.random());
  const auto peer = dial_client(add_host("stranger", "machine"), self);
  simulation.run_for(100ms);
  EXPECT_TRUE(!peer || !(*peer)->is_open());
}

// Each on a machine of its own; the first is the fixture's.
class SeveralHeads : public ConnectionsTest {
 protected:
  FakeHead& add_head() {
    const std::string number = std::to_string(others_.size() + 2);
    const std::string name = "head-" + number;
    others_.push_back(
        std::make_unique<FakeHead>(simulation, scope, add_host(name, name, Role::head)));
    attached.heads.push_back("10.0.0." + number + ":7000");
    others_.back()->listen(Endpoint::parse(attached.heads.back()).value());
    return *others_.back();
  }
  void cut_off(const FakeHead& cut) { simulation.network().partition("machine", cut.host.name()); }
  bool reaches(const FakeHead& wanted, Duration budget) {
    auto peer = await(client->head(in(budget)), budget + 1s);
    return peer && (*peer)->is_open() && (*peer)->identity().name == wanted.host.name();
  }

 private:
  std::vector<std::unique_ptr<FakeHead>> others_;
};

TEST_F(SeveralHeads, ThoseThatSayNothingArePassedOver) {
  FakeHead& second = add_head();
  FakeHead& third = add_head();
  start_client();
  cut_off(head);
  cut_off(second);
  EXPECT_TRUE(reaches(third, 1s));
}

TEST_F(SeveralHeads, ACallerThatGivesUpEarlyTakesNoTurn) {
  FakeHead& second = add_head();
  start_client();
  cut_off(head);
  const auto hasty = begin(client->head(in(100ms)));
  simulation.run_for(150ms);
  ASSERT_TRUE(hasty->has_value());
  EXPECT_EQ(code_of(**hasty), Code::deadline_exceeded);
  EXPECT_TRUE(reaches(second, 1s));
}

TEST_F(SeveralHeads, OneThatFallsSilentIsLeftThoughNobodyAsksIt) {
  FakeHead& second = add_head();
  start_client();
  ASSERT_TRUE(reaches(head, 1s));
  cut_off(head);
  simulation.run_for(3s);
  EXPECT_EQ(second.peers.size(), 1u) << "a driver that no head hears of is taken for gone";
  EXPECT_TRUE(reaches(second, 1ms));
}

TEST_F(SeveralHeads, TwoRequestsWithoutAnAnswerAreOneTurn) {
  FakeHead& second = add_head();
  start_client();
  head.silent = true;
  const auto ask = [&] {
    return begin(client->ask_head<protocol::ClusterInfo>(Method::cluster_info, Empty{}, 20s));
  };
  const auto one = ask();
  const auto other = ask();
  simulation.run_for(15s);
  ASSERT_TRUE(one->has_value() && other->has_value());
  EXPECT_EQ(code_of(**one), Code::ok);
  EXPECT_EQ(code_of(**other), Code::ok);
  EXPECT_EQ(head.asked, 2);
  EXPECT_EQ(second.asked, 2);
  head.changed.pulse();
  head.silent = false;
}

TEST_F(ConnectionsTest, StoppedClientIsGoneForItsPeers) {
  start_client();
  FakeProcess& process = add_process();
  ASSERT_TRUE(reach(process.address));
  stop_client();
  simulation.run_for(100ms);
  EXPECT_FALSE(process.peers.at(0)->is_open());
}

}  // namespace
}  // namespace troupe::client
