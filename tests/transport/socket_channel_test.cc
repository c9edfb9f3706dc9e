// Calls over TLS that are made, sent, read and answered by other threads than the loops'.
#include "transport/socket_channel.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/use_future.hpp>

#include "tests/security/security_fixture.h"
#include "tests/transport/two_processes.h"
#include "transport/real_environment.h"
#include "transport/router.h"

namespace troupe::transport {
namespace {

using security::issue_pem;
using security::make_authority;

// A process of a node of its own: a loop on a thread, a port to wait in, and a handler that answers
// each call with its own bytes unless told otherwise.
class TlsProcess : public CallHandler {
 public:
  explicit TlsProcess(const security::Authority& authority, Role role = Role::client)
      : credentials_(security::Credentials::load(issue_pem(authority, role, "name")).value()) {
    real_.set_credentials(credentials_.get());
    EXPECT_TRUE(real_.enable_rings());
    EXPECT_TRUE(port().join_node(copy_of(node_.file())));
    port().set_handler(this);
    router.on_message(protocol::Method::invoke, [this](Message message, CallContext) {
      ++frames;
      return echo(std::move(message));
    });
    loop_ = std::thread([this] { real_.io().run(); });
  }
  // Runs a coroutine on the loop, and waits for it.
  template <class Body>
  auto run(Body body) {
    auto token = boost::asio::use_future;
    return boost::asio::co_spawn(real_.io(), std::move(body), token).get();
  }
  ~TlsProcess() override {
    run([&]() -> Async<void> {
      if (listener_) co_await listener_->stop();
      if (peer) peer->close();
      port().stop();
      co_await scope_.stop();
    });
    peer.reset();
    listener_.reset();
    guard_.reset();
    loop_.join();
  }

  RingPort& port() { return *real_.environment().rings; }
  std::shared_ptr<CallChannel> channel() { return peer->channel(); }
  template <class Body>
  void on_loop(Body body) {
    run([body = std::move(body)]() -> Async<void> {
      body();
      co_return;
    });
  }

  Endpoint listen() {
    Endpoint endpoint;
    endpoint.host = "127.0.0.1";
    on_loop([&] { listener_ = real_.environment().network.listen(endpoint).value(); });
    spawn(scope_, accept());
    return listener_->endpoint();
  }
  void connect(const Endpoint& endpoint) {
    run([&]() -> Async<void> {
      auto connection = co_await real_.environment().network.connect(endpoint, in(30s));
      co_await greet(std::move(connection).value());
    });
  }
  // The TLS stream itself, for what no peer of ours would send.
  std::unique_ptr<ByteStream> connect_raw(const Endpoint& endpoint) {
    return run([&]() -> Async<std::unique_ptr<ByteStream>> {
      boost::asio::ip::tcp::socket socket{real_.io()};
      const boost::asio::ip::tcp::endpoint target{boost::asio::ip::make_address(endpoint.host),
                                                  endpoint.port};
      auto token = boost::asio::use_awaitable;
      co_await socket.async_connect(target, token);
      auto secured =
          co_await tls_connect(std::move(socket), *credentials_, std::make_shared<BulkThreads>());
      co_return std::move(secured->stream);
    });
  }

  void take_call(const AnyChannel& channel, uint64_t call, BytesView payload) override {
    channel->count_call();
    if (on_call) {
      on_call(channel, call, payload);
    } else {
      RingProcess::answer(channel, call, payload);
    }
  }
  void cancel_call(const AnyChannel&, uint64_t call, uint8_t how) override {
    last_cancelled = call;
    last_how = how;
  }
  void recall_calls(const AnyChannel&) override { ++recalled; }
  void channel_closed(const AnyChannel&) override { ++closed; }

  std::function<void(const AnyChannel&, uint64_t, BytesView)> on_call;  // Before calls come.
  std::atomic<uint64_t> last_cancelled = 0;
  std::atomic<int> last_how = 0;
  std::atomic<int> recalled = 0;
  std::atomic<int> closed = 0;
  std::atomic<int> frames = 0;
  std::atomic<bool> greeted = false;
  std::atomic<int> refused = 0;
  Router router;
  std::shared_ptr<Peer> peer;  // Once greeted.

 private:
  static Async<Result<Message>> echo(Message message) {
    Message reply{std::move(message.body), {}};
    co_return reply;
  }
  Async<void> accept() {
    for (;;) {
      auto connection = co_await listener_->accept();
      if (!connection) co_return;
      co_await greet(std::move(*connection));
    }
  }
  Async<void> greet(std::unique_ptr<Connection> connection) {
    protocol::Hello self;
    self.address.process = ProcessId::random(random_);
    auto started = co_await Peer::start(scope_, real_.environment(), std::move(connection), router,
                                        self, in(30s));
    if (started) {
      peer = *started;
      greeted = true;
    } else {
      ++refused;
    }
  }

  SystemRandom random_;
  SharedPage node_ = SharedPage::create("test-node").value();
  std::unique_ptr<security::Credentials> credentials_;
  RealEnvironment real_;
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> guard_ =
      boost::asio::make_work_guard(real_.io());
  Scope scope_{real_.io().get_executor()};
  std::unique_ptr<Listener> listener_;
  std::thread loop_;
};

class SocketChannelTest : public testing::Test {
 protected:
  void connect() {
    endpoint = right.listen();
    left.connect(endpoint);
    ASSERT_TRUE(eventually([&] { return right.greeted.load(); }));
    ASSERT_TRUE(left.channel());
    ASSERT_TRUE(right.channel());
  }
  // Calls and waits, again and again; how many answers were wrong.
  static uint64_t call_many(TlsProcess& from, uint64_t first, int count) {
    uint64_t wrong = 0;
    for (int i = 0; i < count; ++i) {
      const Bytes sent = bytes_of(first + static_cast<uint64_t>(i), 8 + i % 3000);
      const auto call = begin_call(from.channel(), sent);
      if (!call || !call->wait(from.port(), in(30s)) || call->is_lost() || call->value() != sent) {
        ++wrong;
      }
    }
    return wrong;
  }
  static Bytes bytes_of(uint64_t seed, size_t size) {
    Bytes bytes(size);
    for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<uint8_t>(seed * 31 + i * 7 + i / 251);
    return bytes;
  }

  security::Authority authority = make_authority();
  TlsProcess left{authority};
  TlsProcess right{authority};
  Endpoint endpoint;
};

TEST_F(SocketChannelTest, CallsAreAnsweredInBothDirections) {
  connect();
  EXPECT_EQ(call_many(left, 1, 500), 0U);
  EXPECT_EQ(call_many(right, 1000, 500), 0U);
}

TEST_F(SocketChannelTest, CallsFromManyThreadsAmongFramesAreAllAnswered) {
  connect();
  std::atomic<uint64_t> wrong = 0;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] { wrong += call_many(left, t << 20, 300); });
    threads.emplace_back([&, t] { wrong += call_many(right, t << 24, 300); });
  }
  const auto asks = [&](TlsProcess& from) {
    for (size_t i = 0; i < 100; ++i) {
      const Bytes body = bytes_of(i, 1 + 5000 * (i % 100));  // Some are larger than a read.
      const auto reply = from.run([&]() -> Async<Result<Message>> {
        Message request{body, {}};
        co_return co_await from.peer->call(protocol::Method::invoke, std::move(request), 30s);
      });
      if (!reply || reply->body != body) ++wrong;
    }
  };
  threads.emplace_back([&] { asks(left); });
  asks(right);
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0U);
  EXPECT_EQ(left.frames, 100);
  EXPECT_EQ(right.frames, 100);
}

TEST_F(SocketChannelTest, ManyAtOnceKeepTheirOrder) {
  std::vector<uint8_t> order;
  right.on_call = [&](const AnyChannel& channel, uint64_t call, BytesView payload) {
    order.push_back(payload[0]);  // One thread at a time reads.
    RingProcess::answer(channel, call, payload);
  };
  connect();
  constexpr int count = 20'000;
  std::vector<CallState> calls;
  for (int i = 0; i < count; ++i) {
    calls.push_back(begin_call(left.channel(), Bytes(1 + i % 97, static_cast<uint8_t>(i))));
  }
  for (int i = 0; i < count; ++i) {
    ASSERT_TRUE(calls[static_cast<size_t>(i)]->wait(left.port(), in(30s)));
    ASSERT_FALSE(calls[static_cast<size_t>(i)]->is_lost());
  }
  ASSERT_EQ(order.size(), static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    ASSERT_EQ(order[static_cast<size_t>(i)], static_cast<uint8_t>(i));
  }
}

TEST_F(SocketChannelTest, CallsLargerThanTheBufferArrive) {
  connect();
  for (const size_t size : {size_t{0}, size_t{262'100}, size_t{262'144}, size_t{5'000'000}}) {
    const Bytes sent = bytes_of(size, size);
    for (TlsProcess* from : {&left, &right}) {
      const auto call = begin_call(from->channel(), sent);
      ASSERT_TRUE(call->wait(from->port(), in(30s)));
      ASSERT_FALSE(call->is_lost());
      EXPECT_EQ(call->value(), sent);
    }
  }
  EXPECT_EQ(begin_call(left.channel(), Bytes(300 << 20)), nullptr);
}

TEST_F(SocketChannelTest, CancelAndRecallReachTheCallee) {
  AnyChannel kept;
  std::atomic<uint64_t> number = 0;
  right.on_call = [&](const AnyChannel& channel, uint64_t call, BytesView) {
    kept = channel;
    number = call;
  };
  connect();
  const auto call = begin_call(left.channel(), bytes_of(1, 8));
  ASSERT_TRUE(eventually([&] { return number != 0; }));
  left.channel()->recall();
  left.channel()->cancel(call->number, protocol::cancel_by_force);
  EXPECT_TRUE(eventually([&] { return right.last_cancelled == number && right.recalled == 1; }));
  EXPECT_EQ(right.last_how, protocol::cancel_by_force);
  EXPECT_FALSE(call->wait(left.port(), in(5ms)));
  RingProcess::answer(kept, number, bytes_of(2, 8));
  EXPECT_TRUE(call->wait(left.port(), in(30s)));
  kept.reset();
}

TEST_F(SocketChannelTest, WhatIsUnansweredIsLostOnceWhenThePeerCloses) {
  std::atomic<int> taken = 0;
  right.on_call = [&](const AnyChannel&, uint64_t, BytesView) { ++taken; };
  connect();
  std::vector<CallState> calls;
  for (int i = 0; i < 5; ++i) calls.push_back(begin_call(left.channel(), bytes_of(1, 8)));
  ASSERT_TRUE(eventually([&] { return taken == 5; }));
  std::thread waits([&] { EXPECT_TRUE(calls[4]->wait(left.port(), in(30s))); });
  const AnyChannel channel = left.channel();
  right.on_loop([&] { right.peer->close(); });
  for (const auto& call : calls) {
    ASSERT_TRUE(eventually([&] { return call->is_settled(); }));
    EXPECT_TRUE(call->is_lost());
    EXPECT_TRUE(call->may_have_run());
    EXPECT_EQ(call->settled_times(), 1);
  }
  waits.join();
  EXPECT_EQ(begin_call(channel, bytes_of(1, 8)), nullptr);
  EXPECT_TRUE(eventually([&] { return left.closed == 1 && right.closed == 1; }));
}

TEST_F(SocketChannelTest, CallsThatALeavingPeerDidNotTakeHaveNotBegun) {
  std::atomic<int> taken = 0;
  right.on_call = [&](const AnyChannel&, uint64_t, BytesView) { ++taken; };
  connect();
  const auto before = begin_call(left.channel(), bytes_of(1, 8));
  ASSERT_TRUE(eventually([&] { return taken == 1; }));
  std::vector<CallState> after;
  left.on_loop([&] {  // It hears of nothing meanwhile.
    right.on_loop([&] { right.peer->close(); });
    for (int i = 0; i < 3; ++i) after.push_back(begin_call(left.channel(), bytes_of(1, 8)));
  });
  ASSERT_NE(after[0], nullptr);
  for (const auto& call : after) {
    if (call == nullptr) continue;  // It was found broken.
    ASSERT_TRUE(eventually([&] { return call->is_settled(); }));
    EXPECT_TRUE(call->is_lost());
    EXPECT_FALSE(call->may_have_run());
  }
  ASSERT_TRUE(eventually([&] { return before->is_settled(); }));
  EXPECT_TRUE(before->is_lost());
  EXPECT_TRUE(before->may_have_run());
  EXPECT_EQ(taken, 1);
}

TEST_F(SocketChannelTest, WhatThePeerAnsweredIsReadThoughNothingCanBeSentToIt) {
  AnyChannel kept;
  std::atomic<uint64_t> number = 0;
  right.on_call = [&](const AnyChannel& channel, uint64_t call, BytesView) {
    kept = channel;
    number = call;
  };
  connect();
  const auto call = begin_call(left.channel(), bytes_of(1, 8));
  ASSERT_TRUE(eventually([&] { return number != 0; }));
  left.on_loop([&] {  // It reads nothing meanwhile.
    right.on_loop([&] {
      RingProcess::answer(kept, number, bytes_of(2, 8));
      right.peer->close();
    });
    ASSERT_TRUE(eventually([&] { return right.closed == 1; }));
    EXPECT_TRUE(eventually([&] { return begin_call(left.channel(), bytes_of(3, 8)) == nullptr; }));
  });
  ASSERT_TRUE(eventually([&] { return call->is_settled(); }));
  EXPECT_FALSE(call->is_lost());
  EXPECT_EQ(call->value(), bytes_of(2, 8));
  EXPECT_TRUE(eventually([&] { return left.closed == 1; }));
  kept.reset();
}

TEST_F(SocketChannelTest, AThreadThatWaitsWhenItsPortStopsIsTold) {
  right.on_call = [](const AnyChannel&, uint64_t, BytesView) {};
  connect();
  const auto call = begin_call(left.channel(), bytes_of(1, 8));
  std::atomic<int> armed = 0;
  std::thread waits([&] { EXPECT_TRUE(call->wait(left.port(), in(30s), &armed)); });
  ASSERT_TRUE(eventually([&] { return armed == 1; }));
  left.on_loop([&] { left.port().stop(); });
  waits.join();
  EXPECT_TRUE(call->is_lost());
}

// The deadline is kept though messages for others go on arriving.
TEST_F(SocketChannelTest, AWaitEndsAtItsDeadline) {
  right.on_call = [](const AnyChannel& channel, uint64_t call, BytesView payload) {
    if (!payload.empty()) RingProcess::answer(channel, call, payload);
  };
  connect();
  const auto unanswered = begin_call(left.channel(), {});
  std::atomic<bool> stop = false;
  std::thread others([&] {
    while (!stop) call_many(left, 7, 10);
  });
  EXPECT_FALSE(unanswered->wait(left.port(), in(50ms)));
  stop = true;
  others.join();
  left.on_loop([&] { left.peer->close(); });
  EXPECT_TRUE(eventually([&] { return unanswered->is_settled(); }));
}

// Its certificate is of the cluster, but it is none of ours.
TEST_F(SocketChannelTest, AnEtcdIsNobodyToSpeakWith) {
  TlsProcess etcd{authority, Role::etcd};
  etcd.connect(right.listen());
  EXPECT_EQ(etcd.refused, 1);
  EXPECT_FALSE(right.greeted);
  EXPECT_THROW(left.connect(etcd.listen()), Error);
}

// A TLS stream whose other end is a process under test: says what the test writes, byte by byte.
class RawPeer {
 public:
  RawPeer(TlsProcess& runs_on, const Endpoint& endpoint)
      : runs_on_(runs_on), stream_(runs_on.connect_raw(endpoint)) {}
  ~RawPeer() {
    runs_on_.on_loop([&] { stream_->close(); });
  }

  template <class T>
  static void put(Bytes& out, const T& number) {
    const auto* first = reinterpret_cast<const uint8_t*>(&number);
    out.insert(out.end(), first, first + sizeof number);
  }
  static Bytes frame(protocol::Method method, uint64_t call, const Bytes& body) {
    protocol::FrameHeader header;
    header.kind = protocol::FrameKind::request;
    header.method = method;
    header.call = call;
    header.budget_us = 30'000'000;
    const Bytes head = protocol::encode_header(header);
    Bytes out;
    put(out, static_cast<uint32_t>(head.size()));
    put(out, static_cast<uint32_t>(body.size()));
    out.insert(out.end(), head.begin(), head.end());
    out.insert(out.end(), body.begin(), body.end());
    return out;
  }
  static Bytes hello() {
    protocol::Hello hello;
    hello.features = 1;
    hello.address.process = ProcessId{RawId{1, 2}};
    return frame(protocol::Method::hello, 0, protocol::encode(hello));
  }
  static Bytes reply(uint64_t call, const Bytes& payload) {
    const RecordHeader record{static_cast<uint32_t>(payload.size()), CallChannel::call_reply, 0,
                              call};
    Bytes out;
    put(out, uint32_t{0});
    put(out, static_cast<uint32_t>(sizeof record + payload.size()));
    put(out, record);
    out.insert(out.end(), payload.begin(), payload.end());
    return out;
  }

  void write(const Bytes& bytes) {
    runs_on_.run([&]() -> Async<void> {
      const std::span<const FileDescriptor> none;
      (void)co_await stream_->write(bytes, none);
    });
  }
  // Reads until the other end closes.
  void drain() {
    runs_on_.run([&]() -> Async<void> {
      std::vector<FileDescriptor> none;
      Bytes room(1 << 16);
      for (;;) {
        const auto read = co_await stream_->read_some(room, none);
        if (!read) break;
      }
    });
  }

 private:
  TlsProcess& runs_on_;
  std::unique_ptr<ByteStream> stream_;
};

// A thread that finds a frame leaves it, and what lies behind it, to the loop, which cannot see
// that in the socket any more.
TEST_F(SocketChannelTest, WhatLiesBehindAFrameIsReadThoughNoMoreArrives) {
  endpoint = right.listen();
  for (int round = 0; round < 20; ++round) {
    right.greeted = false;
    RawPeer peer{left, endpoint};
    peer.write(RawPeer::hello());
    ASSERT_TRUE(eventually([&] { return right.greeted.load(); }));
    const auto channel = right.channel();
    const auto first = begin_call(channel, bytes_of(1, 8));
    const auto second = begin_call(channel, bytes_of(2, 8));
    std::atomic<int> armed = 0;
    std::thread waits([&] {
      EXPECT_TRUE(first->wait(right.port(), in(10s), &armed));
      EXPECT_TRUE(second->wait(right.port(), in(10s)));
    });
    ASSERT_TRUE(eventually([&] { return armed == 1; }));
    Bytes all = RawPeer::reply(first->number, bytes_of(1, 8));
    const Bytes frame = RawPeer::frame(protocol::Method::invoke, 7, bytes_of(3, 100));
    const Bytes last = RawPeer::reply(second->number, bytes_of(2, 8));
    all.insert(all.end(), frame.begin(), frame.end());
    all.insert(all.end(), last.begin(), last.end());
    peer.write(all);
    waits.join();
    EXPECT_TRUE(eventually([&] { return right.frames == round + 1; }));
    right.on_loop([&] { right.peer->close(); });
  }
}

// What a broken or hostile peer may send after the handshake.
class SocketChannelGarbage : public SocketChannelTest, public testing::WithParamInterface<int> {};

TEST_P(SocketChannelGarbage, ClosesTheConnectionAndNoMore) {
  endpoint = right.listen();
  Bytes bytes;
  if (GetParam() > 0) bytes = RawPeer::hello();  // So that calls are taken.
  const RecordHeader record{8, CallChannel::call_request, 0, 1};
  const uint32_t sizes[] = {
      sizeof record + 8,  // 0: a good call, without a hello.
      sizeof record + 7,  // 1: the two lengths differ.
      sizeof record - 1,  // 2: too short for a record.
      0xffff'fff0,        // 3: over every limit.
      300'000,            // 4: of the loop's, and the two lengths differ.
  };
  RawPeer::put(bytes, uint32_t{0});
  RawPeer::put(bytes, sizes[GetParam()]);
  RawPeer::put(bytes, record);
  bytes.resize(bytes.size() + 300'000);
  {
    RawPeer peer{left, endpoint};
    peer.write(bytes);
    peer.drain();  // It closes.
  }
  // And serves the next one.
  right.greeted = false;
  left.connect(endpoint);
  ASSERT_TRUE(eventually([&] { return right.greeted.load(); }));
  EXPECT_EQ(call_many(left, 1, 10), 0U);
}

INSTANTIATE_TEST_SUITE_P(Kinds, SocketChannelGarbage, testing::Range(0, 5));

}  // namespace
}  // namespace troupe::transport
