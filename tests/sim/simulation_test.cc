#include "tests/sim/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <optional>

#include "transport/router.h"

namespace troupe::sim {
namespace {

using namespace std::chrono_literals;
using transport::CallContext;
using transport::Connection;
using transport::Endpoint;
using transport::Frame;
using transport::Message;
using transport::Method;
using transport::Peer;

TEST(SimClock, FiresInOrderOfTimeThenOfMaking) {
  SimClock clock;
  std::vector<int> order;
  const Instant start = clock.now();
  clock.call_at(start + 2s, [&] { order.push_back(3); });
  clock.call_at(start + 1s, [&] { order.push_back(1); });
  clock.call_at(start + 1s, [&] { order.push_back(2); });
  const auto cancelled = clock.call_at(start + 1s, [&] { order.push_back(9); });
  clock.cancel(cancelled);
  while (clock.next()) clock.fire_next();
  EXPECT_THAT(order, testing::ElementsAre(1, 2, 3));
  EXPECT_EQ(clock.now(), start + 2s);
  EXPECT_EQ(clock.wall_now().time_since_epoch(), 1'767'225'602s);
}

TEST(Simulation, SleepsTakeNoRealTimeAndKeepVirtualTime) {
  Simulation sim{1};
  std::vector<int> order;
  for (int i = 3; i > 0; --i) {
    spawn(sim.scope(), [](Simulation& s, int hours, std::vector<int>& out) -> Async<void> {
      co_await sleep_for(s.clock(), std::chrono::hours(hours));
      out.push_back(hours);
    }(sim, i, order));
  }
  const Instant start = sim.clock().now();
  int steps = 0;
  sim.on_step([&] { ++steps; });
  sim.run_for(150min);
  EXPECT_THAT(order, testing::ElementsAre(1, 2));
  EXPECT_EQ(sim.clock().now(), start + 150min);
  EXPECT_EQ(steps, 2);
  EXPECT_TRUE(sim.run_until([&] { return order.size() == 3; }, 1h));
  EXPECT_FALSE(sim.run_until([] { return false; }, 1h));
}

// Two hosts of one machine and one of another, with raw connections between them.
class SimNetworkTest : public testing::Test {
 protected:
  void open(uint64_t seed, NetworkFaults faults = {}) {
    sim.emplace(seed);
    sim->network().set_faults(std::move(faults));
    a = &sim->network().add_host({"a", "left", identity("node-a")});
    b = &sim->network().add_host({"b", "right", identity("node-b")});
    listener = b->listen({"", "10.0.0.2", 0}).value();
    connect(*a, *listener, &near, &far);
  }
  void TearDown() override {
    near.reset();
    far.reset();
    listener.reset();
  }
  static transport::PeerIdentity identity(std::string name) {
    transport::PeerIdentity made;
    made.role = transport::Role::node;
    made.name = std::move(name);
    return made;
  }

  void connect(SimHost& from, transport::Listener& to, std::unique_ptr<Connection>* near_end,
               std::unique_ptr<Connection>* far_end) {
    const Instant deadline = sim->clock().now() + 5s;
    spawn(sim->scope(),
          [](SimHost& host, Endpoint endpoint, Instant by,
             std::unique_ptr<Connection>* out) -> Async<void> {
            auto made = co_await host.connect(endpoint, by);
            if (made) *out = std::move(*made);
          }(from, to.endpoint(), deadline, near_end));
    spawn(sim->scope(),
          [](transport::Listener& where, std::unique_ptr<Connection>* out) -> Async<void> {
            auto made = co_await where.accept();
            if (made) *out = std::move(*made);
          }(to, far_end));
    ASSERT_TRUE(sim->run_until([&] { return *near_end && *far_end; }, 5s));
  }

  // Sends calls 1..count, then collects what arrives.
  std::vector<uint64_t> send_and_collect(uint64_t count) {
    for (uint64_t call = 1; call <= count; ++call) {
      Frame frame;
      frame.header.kind = protocol::FrameKind::request;
      frame.header.method = Method::invoke;
      frame.header.call = call;
      frame.body = Bytes(1, static_cast<uint8_t>(call));
      EXPECT_TRUE(near->send(std::move(frame)));
    }
    near->close();
    std::vector<uint64_t> calls;
    last = std::nullopt;
    EXPECT_TRUE(sim->run(collect(*far, calls, last), 1min));
    return calls;
  }
  static Async<void> collect(Connection& from, std::vector<uint64_t>& calls,
                             std::optional<Error>& end) {
    for (;;) {
      auto frame = co_await from.receive();
      if (!frame) {
        end = std::move(frame).error();
        co_return;
      }
      EXPECT_EQ(frame->body, Bytes(1, static_cast<uint8_t>(frame->header.call)));
      calls.push_back(frame->header.call);
    }
  }

  std::optional<Simulation> sim;
  SimHost* a = nullptr;
  SimHost* b = nullptr;
  std::unique_ptr<transport::Listener> listener;
  std::unique_ptr<Connection> near, far;
  std::optional<Error> last;
};

std::vector<uint64_t> one_to(uint64_t count) {
  std::vector<uint64_t> all(count);
  for (uint64_t i = 0; i < count; ++i) all[i] = i + 1;
  return all;
}

TEST_F(SimNetworkTest, KeepsOrderAndDelaysWithoutFaults) {
  open(1, {.delay_min = 10ms, .delay_max = 20ms});
  const Instant start = sim->clock().now();
  EXPECT_EQ(send_and_collect(200), one_to(200));
  EXPECT_GE(sim->clock().now() - start, 10ms);
  EXPECT_LE(sim->clock().now() - start, 20ms);
  EXPECT_EQ(last->code(), Code::unavailable);
  EXPECT_EQ(sim->network().counts().delivered, 200u);
  EXPECT_EQ(sim->network().counts().overtaken, 0u);
}

TEST_F(SimNetworkTest, IdentitiesAreThoseOfTheOtherEnd) {
  open(1);
  EXPECT_EQ(near->peer().name, "node-b");
  EXPECT_EQ(far->peer().name, "node-a");
  EXPECT_EQ(far->peer().role, transport::Role::node);
  EXPECT_FALSE(far->peer().local);
  Endpoint path;
  path.unix_path = "/run/a.sock";
  auto local = a->listen(path).value();
  EXPECT_EQ(b->listen(path).error().code(), Code::conflict);
  SimHost& beside = sim->network().add_host({"c", "left", {}});
  std::unique_ptr<Connection> one, other;
  connect(beside, *local, &one, &other);
  EXPECT_TRUE(other->peer().local);
  EXPECT_EQ(other->peer().role, transport::Role::client);
  // Another machine has other files.
  std::optional<Code> refused;
  EXPECT_TRUE(sim->run(
      [](SimHost& host, Endpoint where, Instant by, std::optional<Code>& out) -> Async<void> {
        auto made = co_await host.connect(where, by);
        out = made.error().code();
      }(*b, path, sim->clock().now() + 5s, refused),
      10s));
  EXPECT_EQ(refused, Code::unavailable);
  EXPECT_EQ(sim->network().counts().refused, 1u);
}

TEST_F(SimNetworkTest, DropsAreLostAndCounted) {
  open(2, {.drop = 0.2});
  const auto arrived = send_and_collect(1000);
  EXPECT_TRUE(std::is_sorted(arrived.begin(), arrived.end()));
  EXPECT_EQ(arrived.size() + sim->network().counts().dropped, 1000u);
  EXPECT_GT(sim->network().counts().dropped, 120u);
  EXPECT_LT(sim->network().counts().dropped, 280u);
}

TEST_F(SimNetworkTest, HeldUpFramesAreOvertaken) {
  open(3, {.reorder = 0.2});
  auto arrived = send_and_collect(1000);
  EXPECT_FALSE(std::is_sorted(arrived.begin(), arrived.end()));
  EXPECT_GT(sim->network().counts().overtaken, 50u);
  std::sort(arrived.begin(), arrived.end());
  EXPECT_EQ(arrived, one_to(1000));
}

TEST_F(SimNetworkTest, DuplicatesArriveTwiceWhereAllowed) {
  open(4, {.duplicate = 0.5, .may_duplicate = [](const auto& h) { return h.call > 100; }});
  auto arrived = send_and_collect(200);
  std::sort(arrived.begin(), arrived.end());
  const auto twice = std::adjacent_find(arrived.begin(), arrived.end());
  ASSERT_NE(twice, arrived.end());
  EXPECT_GT(*twice, 100u);
  EXPECT_EQ(arrived.size(), 200 + sim->network().counts().duplicated);
}

TEST_F(SimNetworkTest, AResetEndsBothSides) {
  open(5, {.reset = 1});
  Frame frame;
  frame.header.kind = protocol::FrameKind::request;
  frame.header.method = Method::invoke;
  EXPECT_TRUE(near->send(std::move(frame)));
  EXPECT_EQ(near->send({}).error().code(), Code::unavailable);
  std::vector<uint64_t> none;
  EXPECT_TRUE(sim->run(collect(*near, none, last), 1s));
  EXPECT_EQ(last->message(), "the connection was reset");
  EXPECT_TRUE(sim->run(collect(*far, none, last), 1s));
  EXPECT_TRUE(none.empty());
  EXPECT_EQ(sim->network().counts().resets, 1u);
}

TEST_F(SimNetworkTest, APartitionSwallowsFramesAndHoldsUpTheClose) {
  open(6);
  sim->network().partition("right", "left");
  Frame frame;
  frame.header.kind = protocol::FrameKind::request;
  frame.header.method = Method::invoke;
  EXPECT_TRUE(near->send(std::move(frame)));
  near->close();
  std::vector<uint64_t> calls;
  EXPECT_FALSE(sim->run(collect(*far, calls, last), 1min));
  EXPECT_EQ(sim->network().counts().cut, 1u);
  sim->network().heal();
  EXPECT_TRUE(sim->run_until([&] { return last.has_value(); }, 1s));
  EXPECT_TRUE(calls.empty());
}

TEST_F(SimNetworkTest, ConnectsWaitForTheEndOfAPartition) {
  open(7);
  sim->network().partition("left", "right");
  std::optional<Code> outcome;
  const auto attempt = [](SimHost& host, Endpoint where, Instant by,
                          std::optional<Code>& out) -> Async<void> {
    auto made = co_await host.connect(where, by);
    out = made ? Code::ok : made.error().code();
  };
  const Endpoint where = listener->endpoint();
  EXPECT_TRUE(sim->run(attempt(*a, where, sim->clock().now() + 3s, outcome), 4s));
  EXPECT_EQ(outcome, Code::deadline_exceeded);
  spawn(sim->scope(), attempt(*a, where, sim->clock().now() + 3s, outcome));
  outcome.reset();
  sim->run_for(1s);
  EXPECT_FALSE(outcome);
  sim->network().heal();
  EXPECT_TRUE(sim->run_until([&] { return outcome.has_value(); }, 1s));
  EXPECT_EQ(outcome, Code::ok);
}

TEST_F(SimNetworkTest, AKilledHostIsGone) {
  open(8);
  sim->network().kill(*b);
  std::vector<uint64_t> none;
  EXPECT_TRUE(sim->run(collect(*near, none, last), 1s));
  EXPECT_EQ(last->code(), Code::unavailable);
  EXPECT_EQ(far->send({}).error().code(), Code::unavailable);
  EXPECT_EQ(b->listen({"", "10.0.0.2", 1}).error().code(), Code::unavailable);
  std::optional<Code> accepted;
  EXPECT_TRUE(sim->run(
      [](transport::Listener& where, std::optional<Code>& out) -> Async<void> {
        auto made = co_await where.accept();
        out = made.error().code();
      }(*listener, accepted),
      1s));
  EXPECT_EQ(accepted, Code::unavailable);
}

// A client and a server that are real Peers.
class PeersTest {
 public:
  PeersTest(uint64_t seed, NetworkFaults faults) : sim(seed) {
    sim.history().keep_text();
    sim.network().set_faults(std::move(faults));
    server.on_message(Method::invoke,
                      [this](Message m, CallContext) { return echo(std::move(m)); });
  }
  ~PeersTest() {
    if (peer) peer->close();
    peer.reset();
    sim.run_for(1s);
  }

  Async<Result<Message>> echo(Message message) {
    ++served;
    Message reply;
    reply.descriptors = std::move(message.descriptors);
    reply.body = std::move(message.body);
    co_return reply;
  }

  void start() {
    SimHost& left = sim.network().add_host({"client", "left", {}});
    SimHost& right = sim.network().add_host({"server", "left", {}});
    auto [near, far] = sim.network().connected_pair(left, right);
    spawn(sim.scope(), serve(right, std::move(far)));
    spawn(sim.scope(), dial(left, std::move(near)));
    ASSERT_TRUE(sim.run_until([this] { return peer != nullptr; }, 5s));
  }
  Async<void> serve(SimHost& host, std::unique_ptr<Connection> connection) {
    const Instant deadline = sim.clock().now() + 5s;
    protocol::Hello self;
    (void)co_await Peer::start(sim.scope(), sim.environment(host), std::move(connection), server,
                               self, deadline);
  }
  Async<void> dial(SimHost& host, std::unique_ptr<Connection> connection) {
    const Instant deadline = sim.clock().now() + 5s;
    protocol::Hello self;
    auto made = co_await Peer::start(sim.scope(), sim.environment(host), std::move(connection),
                                     client, self, deadline);
    if (made) peer = *made;
  }
  // Tries each call until it succeeds.
  Async<void> call_all(int calls) {
    for (int i = 0; i < calls; ++i) {
      for (;;) {
        Message request{Bytes(1, static_cast<uint8_t>(i)), {}};
        auto reply = co_await peer->call(Method::invoke, std::move(request), 100ms);
        if (reply) {
          EXPECT_EQ(reply->body, Bytes(1, static_cast<uint8_t>(i)));
          break;
        }
        EXPECT_EQ(reply.error().code(), Code::deadline_exceeded);
        ++timed_out;
      }
    }
  }

  Simulation sim;
  transport::Router server, client;
  std::shared_ptr<Peer> peer;
  int served = 0;
  int timed_out = 0;
};

TEST(SimulatedPeers, ALostCallTimesOutAndSucceedsOnRetry) {
  PeersTest test{9, {.drop = 0.3}};
  test.start();
  ASSERT_TRUE(test.sim.run(test.call_all(50), 1h));
  EXPECT_GT(test.timed_out, 10);
  // A lost reply has been served all the same.
  EXPECT_GT(test.served, 50);
  EXPECT_LT(test.served, 50 + test.timed_out);
}

TEST(SimulatedPeers, DescriptorsTravelAlong) {
  PeersTest test{10, {}};
  test.start();
  ASSERT_TRUE(test.sim.run(
      [](PeersTest& t) -> Async<void> {
        Message request;
        request.descriptors.emplace_back(static_cast<int>(::syscall(SYS_memfd_create, "x", 1u)));
        struct stat before {
        }, after{};
        EXPECT_EQ(::fstat(request.descriptors[0].get(), &before), 0);
        auto reply = co_await t.peer->call(Method::invoke, std::move(request), 1s);
        EXPECT_EQ(reply->descriptors.size(), 1u);
        EXPECT_EQ(::fstat(reply->descriptors[0].get(), &after), 0);
        EXPECT_EQ(before.st_ino, after.st_ino);
      }(test),
      1s));
}

std::vector<std::string> history_of(uint64_t seed, uint64_t& hash) {
  PeersTest test{seed, {.drop = 0.1, .duplicate = 0.1, .reorder = 0.1}};
  test.start();
  EXPECT_TRUE(test.sim.run(test.call_all(30), 1h));
  test.sim.record("the end");
  hash = test.sim.history_hash();
  return test.sim.history().text();
}

TEST(SimulatedPeers, OneSeedIsOneHistoryAndAnotherIsAnother) {
  uint64_t first = 0, again = 0, other = 0;
  const auto lines = history_of(11, first);
  EXPECT_GT(lines.size(), 60u);
  EXPECT_EQ(history_of(11, again), lines);
  EXPECT_EQ(again, first);
  history_of(12, other);
  EXPECT_NE(other, first);
}

}  // namespace
}  // namespace troupe::sim
