#include "worker/ring_broker.h"

#include <fcntl.h>

#include "tests/worker/fixture.h"

namespace troupe::worker {
namespace {

using transport::DoorbellPage;
using transport::NodePage;
using transport::RingMemory;
using transport::RingPairControl;
using transport::SharedPage;

size_t open_descriptors() {
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    (void)entry;
    ++count;
  }
  return count;
}

FileDescriptor copy_of(const FileDescriptor& file) {
  return FileDescriptor{::fcntl(file.get(), F_DUPFD_CLOEXEC, 0)};
}

class RingBrokerTest : public WorkerTest {
 protected:
  // A process of this node as the broker sees it.
  struct Process {
    ProcessId id;
    std::shared_ptr<Peer> peer;
    SharedPage doorbell = SharedPage::create("test-doorbell").value();
    DoorbellPage& page() const { return doorbell.as<DoorbellPage>(); }
    bool is_rung(uint32_t index) const {
      return (page().ready[index / 64].load() >> (index % 64) & 1) != 0;
    }
  };
  struct Opened {
    protocol::RingOffer offer;
    std::vector<FileDescriptor> descriptors;
    RingMemory map() const { return RingMemory::open(copy_of(descriptors[0])).value(); }
  };

  RingBrokerTest() {
    client_service.on_message(Method::accept_ring, [this](Message message, CallContext) {
      return accept(std::move(message));
    });
  }

  Async<std::shared_ptr<Process>> start_process() {
    auto process = std::make_shared<Process>();
    process->id = ProcessId::random(random);
    process->peer = co_await connect(process->id, job);
    co_return process;
  }
  Async<Result<Message>> attach(std::shared_ptr<Process> process) {
    Message request;
    request.descriptors.push_back(copy_of(process->doorbell.file()));
    co_return co_await process->peer->call(Method::attach_rings, std::move(request), 5s);
  }
  Async<std::shared_ptr<Process>> start_attached() {
    auto process = co_await start_process();
    auto answer = co_await attach(process);
    EXPECT_EQ(answer.value().descriptors.size(), 1u);
    node.emplace(SharedPage::open(std::move(answer->descriptors.at(0))).value());
    co_return process;
  }
  Async<Result<Opened>> open(std::shared_ptr<Process> process, ProcessId other) {
    protocol::OpenRing request{other};
    Message message{protocol::encode(request), {}};
    auto answer = co_await process->peer->call(Method::open_ring, std::move(message), 10s);
    if (!answer) co_return std::move(answer).error();
    TROUPE_CO_TRY(auto offer, protocol::decode<protocol::RingOffer>(answer->body));
    Opened opened{std::move(offer), std::move(answer->descriptors)};
    co_return opened;
  }
  Async<Result<Message>> accept(Message message) {
    if (refuses) co_return error(Code::exhausted, "no memory");
    auto offer = protocol::decode<protocol::RingOffer>(message.body);
    accepted.push_back({std::move(offer).value(), std::move(message.descriptors)});
    if (!on_accept) co_return Message{};
    on_accept();
    co_await sleep_for(environment().clock, 1ms);
    co_return Message{};
  }
  // Ends the process's connection, and waits until its rings were closed.
  Async<void> end(std::shared_ptr<Process> process, const RingMemory& rings) {
    process->peer->close();
    const Instant deadline = environment().clock.now() + 20s;
    while (rings.control().closed.load() == 0 && environment().clock.now() < deadline) {
      co_await sleep_for(environment().clock, 1ms);
    }
    EXPECT_EQ(rings.control().closed.load(), 1u);
  }

  Async<void> ask_from_afar(RingBroker& broker, std::unique_ptr<transport::Connection> connection) {
    protocol::Hello self;
    const Instant deadline = environment().clock.now() + 5s;
    auto peer = co_await Peer::start(scope, environment(), std::move(connection), client_service,
                                     self, deadline);
    CallContext context;
    context.peer = peer.value();
    auto attached = co_await broker.attach(Message(), context);
    EXPECT_EQ(attached.error().code(), Code::denied);
    auto opened = co_await broker.open(Message(), context);
    EXPECT_EQ(opened.error().code(), Code::denied);
  }

  bool refuses = false;
  std::function<void()> on_accept;
  std::vector<Opened> accepted;
  std::optional<SharedPage> node;
};

TEST_F(RingBrokerTest, OpensAPairWhoseEndsMeet) {
  with_worker([this]() -> Async<void> {
    auto one = co_await start_attached();
    auto other = co_await start_attached();
    auto opened = co_await open(one, other->id);
    EXPECT_EQ(accepted.size(), 1u);
    const auto mine = opened.value().offer;
    const auto theirs = accepted.at(0).offer;
    EXPECT_EQ(mine.process, other->id);
    EXPECT_EQ(theirs.process, one->id);
    EXPECT_NE(mine.side, theirs.side);
    EXPECT_EQ(mine.index, theirs.peer_index);
    EXPECT_EQ(mine.peer_index, theirs.index);
    // One memory, mapped by both.
    const RingMemory here = opened->map();
    const RingMemory there = accepted[0].map();
    transport::RingWriter writer{here, static_cast<int>(mine.side)};
    transport::RingReader reader{there, static_cast<int>(mine.side)};
    std::memset(writer.reserve(3), 7, 3);
    writer.publish({3, 1, 0, 0});
    EXPECT_EQ(reader.next().value()->payload.size(), 3u);
    // Each has the other's doorbell.
    transport::Doorbell bell{SharedPage::open(copy_of(opened->descriptors.at(1))).value()};
    bell.ring(mine.peer_index);
    EXPECT_TRUE(other->is_rung(theirs.index));
    transport::Doorbell back{SharedPage::open(copy_of(accepted[0].descriptors.at(1))).value()};
    back.ring(theirs.peer_index);
    EXPECT_TRUE(one->is_rung(mine.index));
    // A second pair has other numbers.
    auto second = co_await open(other, one->id);
    EXPECT_NE(second.value().offer.index, theirs.index);
    EXPECT_NE(second->offer.peer_index, mine.index);
  });
}

TEST_F(RingBrokerTest, RefusesToAttachTwiceOrWithoutADoorbell) {
  with_worker([this]() -> Async<void> {
    auto process = co_await start_process();
    auto none = co_await process->peer->call(Method::attach_rings, Message(), 5s);
    EXPECT_EQ(none.error().code(), Code::invalid);
    Message unsealed;
    unsealed.descriptors.emplace_back(::open("/dev/zero", O_RDWR | O_CLOEXEC));
    auto refused = co_await process->peer->call(Method::attach_rings, std::move(unsealed), 5s);
    EXPECT_EQ(refused.error().code(), Code::invalid);
    EXPECT_TRUE(co_await attach(process));
    auto twice = co_await attach(process);
    EXPECT_EQ(twice.error().code(), Code::conflict);
  });
}

TEST_F(RingBrokerTest, OpensNothingToTheUnknownTheUnattachedOrOneself) {
  with_worker([this]() -> Async<void> {
    auto process = co_await start_attached();
    auto bare = co_await start_process();
    for (const ProcessId other : {ProcessId::random(random), bare->id, process->id, ProcessId{}}) {
      auto refused = co_await open(process, other);
      EXPECT_EQ(refused.error().code(), Code::not_found);
    }
    auto refused = co_await open(bare, process->id);
    EXPECT_EQ(refused.error().code(), Code::not_found);
    EXPECT_TRUE(accepted.empty());
  });
}

TEST_F(RingBrokerTest, ARefusedRingLeavesNothingBehind) {
  with_worker([this]() -> Async<void> {
    auto one = co_await start_attached();
    auto other = co_await start_attached();
    refuses = true;
    const size_t descriptors = open_descriptors();
    for (int i = 0; i < 5; ++i) {
      auto refused = co_await open(one, other->id);
      EXPECT_EQ(refused.error().code(), Code::exhausted);
    }
    EXPECT_EQ(open_descriptors(), descriptors);
    refuses = false;
    // A number rests before it is used again.
    auto opened = co_await open(one, other->id);
    EXPECT_EQ(opened.value().offer.index, 5u);
  });
}

TEST_F(RingBrokerTest, AProcessThatEndsClosesItsRingsAndWakesItsPeers) {
  with_worker([this]() -> Async<void> {
    auto one = co_await start_attached();
    auto other = co_await start_attached();
    auto third = co_await start_attached();
    auto opened = co_await open(one, other->id);
    auto beside = co_await open(one, third->id);
    const RingMemory rings = opened.value().map();
    // Its peer sleeps, though the state says that it is awake: who rang it last has died.
    one->page().state = transport::Doorbell::watched;
    const uint32_t watcher = one->page().watcher;
    node->as<NodePage>().awake = 5;
    other->page().awake = 2;
    co_await end(other, rings);
    EXPECT_TRUE(one->is_rung(opened->offer.index));
    EXPECT_NE(one->page().watcher.load(), watcher);
    EXPECT_EQ(node->as<NodePage>().awake.load(), 3);
    EXPECT_EQ(beside.value().map().control().closed.load(), 0u) << "another's ring";
    auto refused = co_await open(one, other->id);
    EXPECT_EQ(refused.error().code(), Code::not_found);
    // It may come back, as another connection of the process.
    other->peer = co_await connect(other->id, job);
    EXPECT_TRUE(co_await attach(other));
    EXPECT_TRUE(co_await open(one, other->id));
  });
}

TEST_F(RingBrokerTest, StrangeCountsOfAwakeThreadsAreNotTakenBack) {
  with_worker([this]() -> Async<void> {
    auto one = co_await start_attached();
    auto other = co_await start_attached();
    auto opened = co_await open(one, other->id);
    node->as<NodePage>().awake = 5;
    other->page().awake = 0x80000001u;
    co_await end(other, opened.value().map());
    EXPECT_EQ(node->as<NodePage>().awake.load(), 5);
  });
}

TEST_F(RingBrokerTest, AProcessThatEndsWhileItsRingIsOpenedLeavesNothingBehind) {
  with_worker([this]() -> Async<void> {
    auto one = co_await start_attached();
    auto other = co_await start_attached();
    auto third = co_await start_attached();
    const size_t descriptors = open_descriptors();
    on_accept = [one] { one->peer->close(); };
    auto lost = co_await open(one, other->id);
    EXPECT_FALSE(lost);
    on_accept = nullptr;
    co_await end(one, accepted.at(0).map());
    accepted.clear();
    EXPECT_LE(open_descriptors(), descriptors);
    EXPECT_TRUE(co_await open(third, other->id));
  });
}

TEST_F(RingBrokerTest, ThePairsAreWithoutDescriptorsInTheWorker) {
  with_worker([this]() -> Async<void> {
    auto one = co_await start_attached();
    auto other = co_await start_attached();
    const size_t descriptors = open_descriptors();
    for (int i = 0; i < 10; ++i) {
      EXPECT_TRUE(co_await open(one, other->id));
    }
    accepted.clear();
    EXPECT_EQ(open_descriptors(), descriptors);
  });
}

TEST_F(RingBrokerTest, AProcessHasSoManyRingsAtMost) {
  with_worker([this]() -> Async<void> {
    auto one = co_await start_attached();
    auto other = co_await start_attached();
    for (uint32_t i = 0; i < transport::rings_max; ++i) {
      auto opened = co_await open(one, other->id);
      if (!opened) ADD_FAILURE() << i << opened.error().to_string();
      accepted.clear();
    }
    auto third = co_await start_attached();
    auto refused = co_await open(third, one->id);
    EXPECT_EQ(refused.error().code(), Code::exhausted);
  });
}

TEST_F(RingBrokerTest, AnotherNodesProcessIsDenied) {
  // As its connection would be over TLS: not local.
  RingBroker broker{environment()};
  struct Remote final : transport::Connection {
    transport::PeerIdentity identity;
    const transport::PeerIdentity& peer() const override { return identity; }
    Async<Result<transport::Frame>> receive() override {
      transport::Frame frame;
      protocol::Hello hello;
      frame.header.kind = protocol::FrameKind::request;
      frame.header.method = Method::hello;
      frame.body = protocol::encode(hello);
      if (std::exchange(greeted, true)) co_return error(Code::unavailable, "closed");
      co_return frame;
    }
    Status send(transport::Frame) override { return ok(); }
    Async<void> writable() override { co_return; }
    bool is_writable() const override { return true; }
    void close() override {}
    bool greeted = false;
  };
  spawn(scope, ask_from_afar(broker, std::make_unique<Remote>()));
  real.io().run();
}

}  // namespace
}  // namespace troupe::worker
