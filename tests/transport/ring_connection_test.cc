#include "transport/ring_connection.h"

#include "tests/transport/two_processes.h"
#include "transport/real_environment.h"
#include "transport/router.h"

namespace troupe::transport {
namespace {

// Two peers of one loop that talk through rings.
class RingConnectionTest : public testing::Test {
 protected:
  void SetUp() override {
    server.on_message(Method::invoke,
                      [](Message message, CallContext) { return echo(std::move(message)); });
    server.on_message(Method::stop_process,
                      [this](Message, CallContext context) { return hang(std::move(context)); });
    server.on_stream(Method::read_log,
                     [this](Message, CallContext, OutgoingStream& out) { return count(out); });
  }

  static Async<Result<Message>> echo(Message message) {
    Message reply{std::move(message.body), {}};
    co_return reply;
  }
  Async<Result<Message>> hang(CallContext context) {
    co_await context.cancelled->wait();
    ++cancelled;
    co_return error(Code::cancelled, "told to stop");
  }
  Async<Status> count(OutgoingStream& out) {
    for (uint32_t i = 0; i < 3000; ++i) {
      Bytes item(1000 + i);
      item[0] = static_cast<uint8_t>(i);
      const auto sent = co_await out.send(std::move(item));
      if (!sent) co_return sent;
      ++items_sent;
    }
    co_return ok();
  }

  Async<void> receive_one(Channel channel) {
    RingConnection connection{real.io().get_executor(), channel, {}};
    auto frame = co_await connection.receive();
    EXPECT_EQ(frame.error().code(), Code::invalid);
    EXPECT_FALSE(channel->is_open());
  }

  // Runs `body` with the client's end, then closes everything.
  void with_client(std::function<Async<void>(std::shared_ptr<Peer>)> body) {
    spawn(scope, run(std::move(body)));
    real.io().run();
  }
  Async<void> run(std::function<Async<void>(std::shared_ptr<Peer>)> body) {
    auto keep_running = boost::asio::make_work_guard(real.io());
    const auto rings = open_rings(*client_process.port, 1, *server_process.port, 2);
    spawn(scope, serve(rings.right));
    auto peer = co_await start(rings.left, client, "client");
    co_await body(peer);
    peer->close();
    co_await peer->closed().wait();
    if (server_peer) co_await server_peer->closed().wait();
    server_peer.reset();
    co_await scope_of_peers.stop();
  }
  Async<void> serve(Channel channel) {
    auto peer = co_await start(std::move(channel), server, "server");
    server_peer = peer;
  }
  Async<std::shared_ptr<Peer>> start(Channel channel, Service& service, std::string kind) {
    PeerIdentity identity;
    identity.name = kind;
    identity.local = true;
    auto connection = std::make_unique<RingConnection>(real.io().get_executor(), std::move(channel),
                                                       std::move(identity));
    protocol::Hello self;
    self.kind = std::move(kind);
    auto peer = co_await Peer::start(scope_of_peers, real.environment(), std::move(connection),
                                     service, self, in(5s));
    co_return peer.value();
  }

  // Greets as a build of that version, and stays until the connection ends.
  Async<void> greet(Channel channel, Service& service, uint32_t version) {
    auto connection =
        std::make_unique<RingConnection>(real.io().get_executor(), channel, PeerIdentity{});
    protocol::Hello self;
    self.protocol_version = version;
    auto peer = co_await Peer::start(scope_of_peers, real.environment(), std::move(connection),
                                     service, self, in(5s));
    if (peer) {
      co_await peer.value()->closed().wait();
    } else {
      refusal = peer.error();
    }
    EXPECT_FALSE(channel->is_open());
  }
  Async<void> meet(uint32_t server_version) {
    auto keep_running = boost::asio::make_work_guard(real.io());
    const auto rings = open_rings(*client_process.port, 1, *server_process.port, 2);
    Scope other_side{real.io().get_executor()};
    spawn(other_side, greet(rings.right, server, server_version));
    co_await greet(rings.left, client, protocol::version);
    co_await other_side.join();  // A peer that greets in a stopped scope never hears of its end.
    co_await scope_of_peers.stop();
  }

  RealEnvironment real;
  RingProcess client_process{real.io().get_executor()};
  RingProcess server_process{real.io().get_executor()};
  Scope scope{real.io().get_executor()};
  Scope scope_of_peers{real.io().get_executor()};
  Router server;
  Router client;
  std::shared_ptr<Peer> server_peer;
  int cancelled = 0;
  int items_sent = 0;
  std::optional<Error> refusal;
};

TEST_F(RingConnectionTest, GreetsAndEchoesSmallAndLargeBodies) {
  with_client([](std::shared_ptr<Peer> peer) -> Async<void> {
    EXPECT_EQ(peer->remote().kind, "server");
    EXPECT_TRUE(peer->channel());
    for (const size_t size : {size_t{0}, size_t{1}, size_t{70'000}, size_t{20'000'000}}) {
      Bytes body(size);
      for (size_t i = 0; i < size; ++i) body[i] = static_cast<uint8_t>(i * 31);
      Message request{body, {}};
      auto reply = co_await peer->call(Method::invoke, std::move(request), 20s);
      EXPECT_EQ(reply.value().body, body);
    }
  });
}

// Rings have no version of their own: nobody calls through them before the greeting.
TEST_F(RingConnectionTest, APeerOfAnotherVersionIsRefused) {
  spawn(scope, meet(protocol::version + 1));
  real.io().run();
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->code(), Code::conflict);
  const std::string theirs = std::to_string(protocol::version + 1);
  EXPECT_TRUE(refusal->message().starts_with("the peer speaks protocol " + theirs))
      << refusal->message();
}

TEST_F(RingConnectionTest, StreamsDeliverInOrderWithBackPressure) {
  with_client([this](std::shared_ptr<Peer> peer) -> Async<void> {
    auto stream = peer->open_stream(Method::read_log, Message(), {}).value();
    (void)co_await peer->call(Method::invoke, Message(), 5s);
    EXPECT_LE(items_sent, 256);  // The reader has taken nothing, so the window is shut.
    uint32_t received = 0;
    for (;;) {
      auto item = (co_await stream->next()).value();
      if (!item) break;
      EXPECT_EQ((*item)[0], received & 0xff);
      EXPECT_EQ(item->size(), 1000 + received);
      ++received;
    }
    EXPECT_EQ(received, 3000u);
  });
}

TEST_F(RingConnectionTest, AnExpiredBudgetReachesTheCallee) {
  with_client([this](std::shared_ptr<Peer> peer) -> Async<void> {
    auto late = co_await peer->call(Method::stop_process, Message(), 2ms);
    EXPECT_EQ(late.error().code(), Code::deadline_exceeded);
    auto after = co_await peer->call(Method::invoke, Message(), 5s);  // Ordered behind the cancel.
    EXPECT_TRUE(after);
    EXPECT_EQ(cancelled, 1);
  });
}

TEST_F(RingConnectionTest, ACloseEndsPendingCallsAsOutcomeUnknown) {
  with_client([this](std::shared_ptr<Peer> peer) -> Async<void> {
    (void)co_await peer->call(Method::invoke, Message(), 5s);
    server_peer->close();
    auto lost = co_await peer->call(Method::stop_process, Message(), 5s);
    EXPECT_EQ(lost.error().code(), Code::outcome_unknown);
    auto refused = co_await peer->call(Method::invoke, Message(), 5s);
    EXPECT_EQ(refused.error().code(), Code::unavailable);
  });
}

TEST_F(RingConnectionTest, ADeadPeerClosesIt) {
  with_client([this](std::shared_ptr<Peer> peer) -> Async<void> {
    (void)co_await peer->call(Method::invoke, Message(), 5s);
    server_process.port->stop();
    auto lost = co_await peer->call(Method::stop_process, Message(), 5s);
    EXPECT_FALSE(lost);
    co_await peer->closed().wait();
  });
}

TEST_F(RingConnectionTest, RefusesDescriptorsAndFramesOverTheLimit) {
  with_client([](std::shared_ptr<Peer> peer) -> Async<void> {
    Message with_descriptor;
    with_descriptor.descriptors.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    auto refused = co_await peer->call(Method::invoke, std::move(with_descriptor), 5s);
    EXPECT_EQ(refused.error().code(), Code::invalid);
    Message large{Bytes(protocol::body_bytes_max + 1), {}};
    auto too_large = co_await peer->call(Method::invoke, std::move(large), 5s);
    EXPECT_EQ(too_large.error().code(), Code::invalid);
    auto after = co_await peer->call(Method::invoke, Message(), 5s);
    EXPECT_TRUE(after);
  });
}

TEST_F(RingConnectionTest, AFrameThatIsNoFrameClosesIt) {
  uint32_t number = 0;
  for (const Bytes& bad : {Bytes{}, Bytes{1, 2, 3}, Bytes{255, 255, 255, 255, 1},
                           Bytes{8, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}}) {
    real.io().restart();
    const auto rings = open_rings(*client_process.port, number, *server_process.port, number);
    ++number;
    spawn(scope, receive_one(rings.left));
    EXPECT_TRUE(rings.right->send_frame(bad));
    while (scope.size() > 0) real.io().run_one();
    EXPECT_TRUE(eventually(
        [&] { return client_process.closed == server_process.closed && !rings.right->is_open(); }));
  }
}

}  // namespace
}  // namespace troupe::transport
