#include "transport/peer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>

#include "transport/real_environment.h"
#include "transport/router.h"

namespace troupe::transport {
namespace {

using namespace std::chrono_literals;

class ClientSide : public Router {
 public:
  void item_dropped(Peer&, uint32_t held) override { dropped.push_back(held); }
  std::vector<uint32_t> dropped;
};

// Two ends of one Unix socket in one loop.
class PeerTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = "/tmp/troupe-peer-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    server.on_message(Method::invoke, [this](Message m, CallContext c) {
      return echo(std::move(m), std::move(c));
    });
    server.on_message(Method::stop_process,
                      [this](Message, CallContext c) { return hang(std::move(c)); });
    server.on_message(Method::kill_actor, [](Message, CallContext) { return fail(); });
    server.on_message(Method::get_block, [](Message, CallContext) { return give_descriptor(); });
    server.on_stream(Method::read_log, [this](Message m, CallContext, OutgoingStream& out) {
      return count(std::move(m), out);
    });
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  Async<Result<Message>> echo(Message message, CallContext context) {
    last_peer = context.peer;
    Message reply{std::move(message.body), {}};
    co_return reply;
  }
  Async<Result<Message>> hang(CallContext context) {
    co_await context.cancelled->wait();
    ++cancelled;
    co_return error(Code::cancelled, "told to stop");
  }
  static Async<Result<Message>> fail() {
    co_return error(Code::conflict, "no such luck").at("the server");
  }
  static Async<Result<Message>> give_descriptor() {
    Message reply;
    reply.descriptors.emplace_back(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
    co_return reply;
  }
  static Async<Result<Message>> give_bulk(Bytes body, std::shared_ptr<const Bytes> bytes) {
    Message reply{std::move(body), {}};
    reply.bulk = {*bytes, bytes};
    co_return reply;
  }
  Async<Status> count(Message message, OutgoingStream& out) {
    const int total = message.body[0] * 100;
    for (int i = 0; i < total; ++i) {
      Bytes item{static_cast<uint8_t>(i & 0xff)};
      const auto sent = co_await out.send(std::move(item));
      if (!sent) {
        stream_end = sent.error().code();
        co_return sent;
      }
      ++items_sent;
    }
    co_return ok();
  }

  static Async<Status> give_held(OutgoingStream& out) {
    for (uint32_t held = 1; held <= 4; ++held) {
      TROUPE_CO_CHECK(co_await out.send(Bytes(1), held));
    }
    TROUPE_CO_CHECK(co_await out.send(Bytes(1)));
    co_return ok();
  }

  // Runs `body(client peer)` to its end, then closes everything.
  void with_client(std::function<Async<void>(std::shared_ptr<Peer>)> body) {
    spawn(scope, run(std::move(body)));
    real.io().run();
  }

  Async<void> run(std::function<Async<void>(std::shared_ptr<Peer>)> body) {
    Endpoint endpoint{folder + "/s", "", 0};
    auto listener = real.environment().network.listen(endpoint).value();
    spawn(scope, serve_one(*listener));
    const Instant deadline = real.environment().clock.now() + 5s;
    auto connection = co_await real.environment().network.connect(endpoint, deadline);
    protocol::Hello self;
    self.kind = "client";
    auto peer = co_await Peer::start(scope, real.environment(), std::move(connection).value(),
                                     client, self, deadline);
    co_await body(peer.value());
    peer.value()->close();
    co_await peer.value()->closed().wait();
    co_await listener->stop();
    last_peer.reset();
  }

  Async<void> serve_one(Listener& listener) {
    auto connection = co_await listener.accept();
    protocol::Hello self;
    self.kind = "server";
    self.protocol_version = server_version;
    auto peer = co_await Peer::start(scope, real.environment(), std::move(connection).value(),
                                     server, self, real.environment().clock.now() + 5s);
    if (!peer) server_outcome = peer.error();
  }

  // What becomes of a client of this version that meets the server, on both sides.
  Async<void> meet(uint32_t client_version) {
    Endpoint endpoint{folder + "/s", "", 0};
    auto listener = real.environment().network.listen(endpoint).value();
    spawn(scope, serve_one(*listener));
    const Instant deadline = real.environment().clock.now() + 5s;
    auto connection = co_await real.environment().network.connect(endpoint, deadline);
    protocol::Hello self;
    self.kind = "client";
    self.protocol_version = client_version;
    auto peer = co_await Peer::start(scope, real.environment(), std::move(connection).value(),
                                     client, self, deadline);
    if (peer) {  // The other side says it, and ends the connection.
      co_await peer.value()->closed().wait();
    } else {
      client_outcome = peer.error();
    }
    co_await listener->stop();
  }
  void run_meeting(uint32_t client_version) {
    spawn(scope, meet(client_version));
    real.io().run();
    real.io().restart();
  }

  std::string folder;
  RealEnvironment real;
  Scope scope{real.io().get_executor()};
  Router server;
  ClientSide client;
  std::shared_ptr<Peer> last_peer;
  int cancelled = 0;
  int items_sent = 0;
  uint32_t server_version = protocol::version;
  std::optional<Error> server_outcome;  // Why it refused the client.
  std::optional<Error> client_outcome;
  Code stream_end = Code::ok;
};

TEST_F(PeerTest, EchoesSmallAndLargeBodies) {
  with_client([](std::shared_ptr<Peer> peer) -> Async<void> {
    for (const size_t size : {size_t{0}, size_t{1}, size_t{70'000}, size_t{20'000'000}}) {
      Bytes body(size);
      for (size_t i = 0; i < size; ++i) body[i] = static_cast<uint8_t>(i * 31);
      Message request{body, {}};
      auto reply = co_await peer->call(Method::invoke, std::move(request), 20s);
      EXPECT_EQ(reply.value().body, body);
    }
    EXPECT_EQ(peer->remote().kind, "server");
    EXPECT_TRUE(peer->identity().local);
  });
}

TEST_F(PeerTest, APeerOfAnotherVersionIsRefusedByEitherSide) {
  const auto named = [](const std::optional<Error>& refusal, uint32_t theirs) {
    ASSERT_TRUE(refusal);
    EXPECT_EQ(refusal->code(), Code::conflict);
    EXPECT_EQ(refusal->message(),
              fmt::format("the peer speaks protocol {}, this build speaks {}: upgrade the older "
                          "side",
                          theirs, protocol::version));
  };
  const auto open_files = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {});
  };
  server_version = protocol::version + 1;
  run_meeting(protocol::version);  // What the loop opens once.
  const auto before = open_files();
  for (const uint32_t other : {protocol::version - 1, protocol::version + 1}) {
    client_outcome = server_outcome = std::nullopt;
    server_version = other;
    run_meeting(protocol::version);
    named(client_outcome, other);
    server_version = protocol::version;
    run_meeting(other);
    named(server_outcome, other);
  }
  EXPECT_EQ(open_files(), before);
}

TEST_F(PeerTest, ErrorsKeepCodeMessageAndPlace) {
  with_client([](std::shared_ptr<Peer> peer) -> Async<void> {
    auto refused = co_await peer->call(Method::kill_actor, Message(), 5s);
    EXPECT_EQ(refused.error().to_string(), "conflict: no such luck (at the server)");
    auto unknown = co_await peer->call(Method::deploy, Message(), 5s);
    EXPECT_EQ(unknown.error().code(), Code::unimplemented);
  });
}

TEST_F(PeerTest, AnExpiredBudgetReachesTheCallee) {
  with_client([this](std::shared_ptr<Peer> peer) -> Async<void> {
    auto late = co_await peer->call(Method::stop_process, Message(), 2ms);
    EXPECT_EQ(late.error().code(), Code::deadline_exceeded);
    auto after = co_await peer->call(Method::invoke, Message(), 5s);  // Ordered behind the cancel.
    EXPECT_TRUE(after);
    EXPECT_EQ(cancelled, 1);
  });
}

TEST_F(PeerTest, ACloseEndsPendingCallsAsOutcomeUnknown) {
  with_client([this](std::shared_ptr<Peer> peer) -> Async<void> {
    (void)co_await peer->call(Method::invoke, Message(), 5s);
    last_peer->close();
    auto lost = co_await peer->call(Method::stop_process, Message(), 5s);
    EXPECT_EQ(lost.error().code(), Code::outcome_unknown);
    auto refused = co_await peer->call(Method::invoke, Message(), 5s);
    EXPECT_EQ(refused.error().code(), Code::unavailable);
  });
}

TEST_F(PeerTest, StreamsDeliverInOrderWithBackPressure) {
  with_client([this](std::shared_ptr<Peer> peer) -> Async<void> {
    Message request{Bytes{20}, {}};
    auto stream = peer->open_stream(Method::read_log, std::move(request), {}).value();
    (void)co_await peer->call(Method::invoke, Message(), 5s);
    EXPECT_LE(items_sent, 256);  // The reader has taken nothing, so the window is shut.
    int received = 0;
    for (;;) {
      auto item = (co_await stream->next()).value();
      if (!item) break;
      EXPECT_EQ((*item)[0], received & 0xff);
      ++received;
    }
    EXPECT_EQ(received, 2000);
  });
}

TEST_F(PeerTest, DroppingAStreamCancelsItsHandler) {
  with_client([this](std::shared_ptr<Peer> peer) -> Async<void> {
    Message request{Bytes{20}, {}};
    auto stream = peer->open_stream(Method::read_log, std::move(request), {}).value();
    EXPECT_TRUE((co_await stream->next()).value());
    stream.reset();
    (void)co_await peer->call(Method::invoke, Message(), 5s);
    (void)co_await peer->call(Method::invoke, Message(), 5s);
    EXPECT_EQ(stream_end, Code::cancelled);
  });
}

// Whoever holds something for an item hears of it whatever becomes of the item.
TEST_F(PeerTest, ItemsThatNobodyReadsAreToldOf) {
  server.on_stream(Method::read_log,
                   [](Message, CallContext, OutgoingStream& out) { return give_held(out); });
  with_client([this](std::shared_ptr<Peer> peer) -> Async<void> {
    auto stream = peer->open_stream(Method::read_log, Message(), {}).value();
    const auto taken = (co_await stream->next_item()).value();
    EXPECT_EQ(taken->held, 1u);  // Its reader tells.
    EXPECT_EQ(taken->bytes.size(), 1u);
    EXPECT_TRUE((co_await stream->next()).value());
    EXPECT_EQ(client.dropped, std::vector<uint32_t>{2});
    (void)co_await stream->ended();
    stream.reset();
    EXPECT_EQ(client.dropped, (std::vector<uint32_t>{2, 3, 4}));
  });
}

TEST_F(PeerTest, DescriptorsTravelBesideMessages) {
  with_client([](std::shared_ptr<Peer> peer) -> Async<void> {
    auto reply = (co_await peer->call(Method::get_block, Message(), 5s)).value();
    EXPECT_EQ(reply.descriptors.size(), 1u);
    struct stat status {};
    EXPECT_EQ(::fstat(reply.descriptors[0].get(), &status), 0);
    EXPECT_TRUE(S_ISCHR(status.st_mode));
  });
}

// Bulk is written where the caller wants it, between messages that keep their order.
TEST_F(PeerTest, BulkLandsWhereItIsWanted) {
  auto sent = std::make_shared<Bytes>(3 << 20);
  for (size_t i = 0; i < sent->size(); ++i) (*sent)[i] = static_cast<uint8_t>(i * 7 >> 3);
  const std::weak_ptr<Bytes> watch = sent;
  server.on_message(Method::fetch_chunk, [&](Message message, CallContext) {
    return give_bulk(std::move(message.body), sent);
  });
  with_client([&](std::shared_ptr<Peer> peer) -> Async<void> {
    auto target = std::make_shared<Bytes>(sent->size() + 10);
    std::vector<OutgoingCall> calls;
    for (int i = 0; i < 3; ++i) {
      Message request{Bytes(1, static_cast<uint8_t>(i)), {}};
      calls.push_back(peer->begin_call(Method::fetch_chunk, std::move(request), 5s).value());
    }
    Landing right{*target, target};
    calls[0].land(std::move(right));
    Landing small{std::span{*target}.first(100), target};
    calls[1].land(std::move(small));
    for (int i = 0; i < 3; ++i) {
      auto reply = (co_await calls[static_cast<size_t>(i)].reply()).value();
      EXPECT_EQ(reply.body[0], i);
      EXPECT_TRUE(std::ranges::equal(reply.bulk.bytes, *sent));
      // Without room for it, it lies in memory of its own.
      EXPECT_EQ(reply.bulk.bytes.data() == target->data(), i == 0);
    }
    Message plain{Bytes(1, 9), {}};
    auto echoed = co_await peer->call(Method::invoke, std::move(plain), 5s);
    EXPECT_TRUE(echoed.value().bulk.bytes.empty());
    calls.clear();
    sent.reset();
    EXPECT_EQ(target.use_count(), 1);
  });
  EXPECT_TRUE(watch.expired()) << "what was sent is still held";
}

TEST_F(PeerTest, BulkOverTheLimitIsRefused) {
  auto large = std::make_shared<Bytes>(protocol::bulk_bytes_max + 1);
  server.on_message(Method::fetch_chunk, [&](Message message, CallContext) {
    return give_bulk(std::move(message.body), large);
  });
  with_client([&](std::shared_ptr<Peer> peer) -> Async<void> {
    auto reply = co_await peer->call(Method::fetch_chunk, Message(), 5s);
    EXPECT_EQ(reply.error().code(), Code::invalid);
    EXPECT_TRUE(co_await peer->call(Method::invoke, Message(), 5s));
  });
}

// Who gave up must not find its memory written later: the bulk goes elsewhere.
TEST_F(PeerTest, BulkOfACallThatWasGivenUpLandsNowhere) {
  auto sent = std::make_shared<Bytes>(1 << 20, uint8_t{5});
  server.on_message(Method::fetch_chunk, [&](Message message, CallContext) {
    return give_bulk(std::move(message.body), sent);
  });
  with_client([&](std::shared_ptr<Peer> peer) -> Async<void> {
    Bytes target(sent->size());
    {
      auto call = peer->begin_call(Method::fetch_chunk, Message(), 5s).value();
      Landing landing{target, sent};
      call.land(std::move(landing));
    }
    EXPECT_TRUE(co_await peer->call(Method::invoke, Message(), 5s));
    EXPECT_EQ(target, Bytes(target.size()));
  });
}

}  // namespace
}  // namespace troupe::transport
