#include "transport/ring_port.h"

#include <dirent.h>
#include <sys/mman.h>

#include <fstream>
#include <set>

#include "tests/transport/two_processes.h"

namespace troupe::transport {
namespace {

Bytes number_bytes(uint64_t number, size_t bytes = sizeof(uint64_t)) {
  Bytes value(bytes);
  std::memcpy(value.data(), &number, sizeof number);
  return value;
}

uint64_t number_of(BytesView bytes) {
  uint64_t number = 0;
  std::memcpy(&number, bytes.data(), sizeof number);
  return number;
}

size_t open_descriptors() {
  size_t count = 0;
  DIR* folder = ::opendir("/proc/self/fd");
  while (::readdir(folder) != nullptr) ++count;
  ::closedir(folder);
  return count;
}

size_t ring_mappings() {
  std::ifstream maps{"/proc/self/maps"};
  size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:troupe") != std::string::npos) ++count;
  }
  return count;
}

// Keeps the calls that arrive until the test answers them.
class HeldCalls {
 public:
  explicit HeldCalls(RingProcess& process) {
    process.on_call = [this](const AnyChannel& channel, uint64_t call, BytesView payload) {
      const std::lock_guard lock{mutex_};
      held_[number_of(payload)] = {channel, call};
      count_ = held_.size();
    };
  }
  size_t count() const { return count_; }
  void answer(uint64_t number) {
    const std::lock_guard lock{mutex_};
    const auto& [channel, call] = held_.at(number);
    RingProcess::answer(channel, call, number_bytes(number));
  }
  void clear() {
    const std::lock_guard lock{mutex_};
    held_.clear();
  }

 private:
  std::mutex mutex_;
  std::map<uint64_t, std::pair<AnyChannel, uint64_t>> held_;
  std::atomic<size_t> count_ = 0;
};

class RingPortTest : public testing::Test {
 protected:
  void join_node() {
    ASSERT_TRUE(left.port->join_node(copy_of(node.file())));
    ASSERT_TRUE(right.port->join_node(copy_of(node.file())));
  }
  void open() { rings = open_rings(*left.port, 3, *right.port, 70); }
  // Calls and waits, again and again; how many answers were wrong.
  static uint64_t call_many(RingPort& port, const Channel& channel, uint64_t first, int count) {
    uint64_t wrong = 0;
    for (int i = 0; i < count; ++i) {
      const Bytes sent = number_bytes(first + static_cast<uint64_t>(i), 8 + i % 3000);
      const auto call = begin_call(channel, sent);
      if (!call || !call->wait(port, in(30s)) || call->is_lost() || call->value() != sent) ++wrong;
    }
    return wrong;
  }

  SharedPage node = SharedPage::create("test-node").value();
  boost::asio::io_context loop;
  RingProcess left{loop.get_executor()};
  RingProcess right{loop.get_executor()};
  RingPair rings;
};

TEST_F(RingPortTest, AnswersCallsOfSeveralThreadsBothWays) {
  join_node();
  open();
  std::atomic<uint64_t> wrong = 0;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] { wrong += call_many(*left.port, rings.left, t << 32, 1500); });
    threads.emplace_back([&, t] { wrong += call_many(*right.port, rings.right, t << 40, 1500); });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
}

TEST_F(RingPortTest, SeveralChannelsOfOnePortAreReadByOneLeader) {
  join_node();
  std::vector<RingPair> pairs;
  for (uint32_t i = 0; i < 100; ++i) {
    pairs.push_back(open_rings(*left.port, i * 10, *right.port, 999 - i));
  }
  std::vector<CallState> calls;
  for (uint64_t i = 0; i < 5000; ++i) {
    calls.push_back(begin_call(pairs[i % pairs.size()].left, number_bytes(i)));
  }
  for (uint64_t i = 0; i < calls.size(); ++i) {
    ASSERT_TRUE(calls[i]->wait(*left.port, in(30s)));
    EXPECT_EQ(number_of(calls[i]->value()), i);
  }
}

TEST_F(RingPortTest, TheLeaderHandsTheLeadToAFollower) {
  join_node();
  HeldCalls held{right};
  open();
  const auto first = begin_call(rings.left, number_bytes(1));
  const auto second = begin_call(rings.left, number_bytes(2));
  const auto third = begin_call(rings.left, number_bytes(3));
  ASSERT_TRUE(eventually([&] { return held.count() == 3; }));
  std::atomic<int> armed = 0;
  std::vector<std::thread> threads;
  for (const auto& call : {first, second, third}) {
    const int before = armed;
    threads.emplace_back([&, call] { EXPECT_TRUE(call->wait(*left.port, in(30s), &armed)); });
    ASSERT_TRUE(eventually([&] { return armed > before; }));  // So the first leads.
  }
  held.answer(2);  // A follower's: the leader reads it.
  threads[1].join();
  held.answer(1);  // The leader's own: the last follower leads from then on.
  threads[0].join();
  held.answer(3);
  threads[2].join();
  held.clear();
}

TEST_F(RingPortTest, WhileNoThreadWaitsTheWatcherReads) {
  join_node();
  open();
  for (uint64_t i = 0; i < 200; ++i) {
    // Neither end waits in its port: the watchers carry it.
    const auto call = begin_call(rings.left, number_bytes(i));
    ASSERT_TRUE(eventually([&] { return call->is_settled(); }));
    // And after a thread has led.
    const auto next = begin_call(rings.left, number_bytes(i));
    ASSERT_TRUE(next->wait(*left.port, in(30s)));
  }
}

TEST_F(RingPortTest, ALazyWaiterIsSignalledByTheWatcherOrByALeader) {
  join_node();
  HeldCalls held{right};
  open();
  constexpr auto lazy = RingPort::Waiter::Kind::lazy;
  for (const uint64_t number : {1, 2, 3}) {
    const auto call = begin_call(rings.left, number_bytes(number));
    std::atomic<int> armed = 0;
    std::thread waits{[&] { EXPECT_TRUE(call->wait(*left.port, in(30s), &armed, lazy)); }};
    ASSERT_TRUE(eventually([&] { return armed == 1 && held.count() == number; }));
    held.answer(number);  // It reads nothing itself, so the watcher does.
    waits.join();
  }
  const auto first = begin_call(rings.left, number_bytes(4));
  const auto second = begin_call(rings.left, number_bytes(5));
  std::atomic<int> armed = 0;
  std::thread waits{[&] { EXPECT_TRUE(first->wait(*left.port, in(30s), &armed, lazy)); }};
  ASSERT_TRUE(eventually([&] { return armed == 1; }));
  std::thread leads{[&] { EXPECT_TRUE(second->wait(*left.port, in(30s), &armed)); }};
  ASSERT_TRUE(eventually([&] { return armed == 2 && held.count() == 5; }));
  held.answer(4);
  waits.join();
  held.answer(5);
  leads.join();
  const auto never = begin_call(rings.left, number_bytes(6));
  EXPECT_FALSE(never->wait(*left.port, in(3ms), nullptr, lazy));
  ASSERT_TRUE(eventually([&] { return held.count() == 6; }));
  held.answer(6);
  EXPECT_TRUE(never->wait(*left.port, in(30s)));
  held.clear();
}

TEST_F(RingPortTest, AWaitEndsAtItsDeadline) {
  join_node();
  HeldCalls held{right};
  open();
  const auto call = begin_call(rings.left, number_bytes(1));
  const Instant until = in(3ms);
  EXPECT_FALSE(call->wait(*left.port, until));
  EXPECT_GE(in(0s), until);
  EXPECT_FALSE(call->wait(*left.port, in(-1s))) << "a deadline that has passed";
  ASSERT_TRUE(eventually([&] { return held.count() == 1; }));
  held.answer(1);
  EXPECT_TRUE(call->wait(*left.port, in(30s)));
  held.clear();
}

TEST_F(RingPortTest, ASignalOfAnotherThreadEndsAWait) {
  for (const bool with_leader : {false, true}) {
    std::atomic<int> armed = 0;
    RingCallState leads;
    RingCallState::Pending lead_pending{std::shared_ptr<RingCallState>(&leads, [](auto*) {})};
    std::thread leader;
    if (with_leader) {
      leader = std::thread([&] { EXPECT_TRUE(leads.wait(*left.port, in(30s), &armed)); });
      ASSERT_TRUE(eventually([&] { return armed == 1; }));
    }
    const auto state = std::make_shared<RingCallState>();
    const int before = armed;
    std::thread waits([&] { EXPECT_TRUE(state->wait(*left.port, in(30s), &armed)); });
    ASSERT_TRUE(eventually([&] { return armed > before; }));
    RingCallState::Pending{state}.reply({});
    waits.join();
    lead_pending.reply({});
    if (with_leader) leader.join();
  }
}

TEST_F(RingPortTest, ManySignalsAndWaitsMissNone) {
  open();
  // Pairs of threads that wake each other, beside leaders and followers that come and go.
  std::vector<std::thread> threads;
  for (int pair = 0; pair < 3; ++pair) {
    auto calls = std::make_shared<std::vector<CallState>>();
    for (int i = 0; i < 4000; ++i) calls->push_back(std::make_shared<RingCallState>());
    threads.emplace_back([this, calls] {
      for (size_t i = 0; i + 1 < calls->size(); i += 2) {
        RingCallState::Pending{(*calls)[i]}.reply({});
        ASSERT_TRUE((*calls)[i + 1]->wait(*left.port, in(30s)));
      }
    });
    threads.emplace_back([this, calls] {
      for (size_t i = 0; i + 1 < calls->size(); i += 2) {
        ASSERT_TRUE((*calls)[i]->wait(*left.port, in(30s)));
        RingCallState::Pending{(*calls)[i + 1]}.reply({});
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST_F(RingPortTest, CallsBeyondTheRingAreQueuedAndKeepTheirOrder) {
  std::atomic<uint64_t> next = 0;
  std::atomic<bool> ordered = true;
  right.on_call = [&](const AnyChannel& channel, uint64_t call, BytesView payload) {
    if (number_of(payload) != next++) ordered = false;
    RingProcess::answer(channel, call, payload);
  };
  open();
  std::vector<CallState> calls;  // 40 MB through a ring of 64 KiB; the replies the same way back.
  for (uint64_t i = 0; i < 20'000; ++i) {
    calls.push_back(begin_call(rings.left, number_bytes(i, 2000)));
  }
  for (uint64_t i = 0; i < calls.size(); ++i) {
    ASSERT_TRUE(calls[i]->wait(*left.port, in(60s)));
    ASSERT_EQ(number_of(calls[i]->value()), i);
  }
  EXPECT_TRUE(ordered);
  EXPECT_TRUE(eventually([&] { return rings.left->queued_bytes() == 0; }));
}

TEST_F(RingPortTest, ACallOverTheSizeLimitIsRefusedAlone) {
  open();
  const auto state = std::make_shared<RingCallState>();
  const auto refused = rings.left->call(std::make_unique<RingCallState::Pending>(state),
                                        size_t{1} << 30, [](uint8_t*) { FAIL(); });
  EXPECT_EQ(refused.error().code(), Code::invalid);
  EXPECT_FALSE(state->is_settled());
  EXPECT_EQ(call_many(*left.port, rings.left, 1, 1), 0u);
}

TEST_F(RingPortTest, CancelReachesTheCalleeBehindItsCall) {
  HeldCalls held{right};
  open();
  const auto call = begin_call(rings.left, number_bytes(5));
  rings.left->cancel(call->number);
  ASSERT_TRUE(eventually([&] { return right.cancelled == 1; }));
  EXPECT_EQ(right.last_cancelled, call->number);
  EXPECT_EQ(held.count(), 1u);
  EXPECT_FALSE(call->is_settled()) << "the reply is still awaited";
  held.answer(5);
  EXPECT_TRUE(call->wait(*left.port, in(30s)));
  held.clear();
}

TEST_F(RingPortTest, AReplyToNobodyIsIgnored) {
  open();
  rings.right->reply(77, 0, [](uint8_t*) {});
  const auto call = begin_call(rings.left, number_bytes(5));
  ASSERT_TRUE(call->wait(*left.port, in(30s)));
  rings.right->reply(call->number, 0, [](uint8_t*) {});  // A second one.
  const auto next = begin_call(rings.left, number_bytes(6));
  ASSERT_TRUE(next->wait(*left.port, in(30s)));
  EXPECT_NE(next->number, call->number) << "a slot's next call has another number";
  EXPECT_EQ(call->settled_times(), 1);
}

// --- Ends.

TEST_F(RingPortTest, ClosingTellsEachPendingCallOnce) {
  for (const int who : {0, 1, 2, 3}) {
    RingProcess caller{loop.get_executor()};
    RingProcess callee{loop.get_executor()};
    HeldCalls held{callee};
    const auto pair = open_rings(*caller.port, 0, *callee.port, 0);
    std::vector<CallState> calls;
    for (uint64_t i = 0; i < 1000; ++i) calls.push_back(begin_call(pair.left, number_bytes(i)));
    std::atomic<int> armed = 0;
    std::thread waits([&] { EXPECT_TRUE(calls[7]->wait(*caller.port, in(30s), &armed)); });
    ASSERT_TRUE(eventually([&] { return armed == 1 && held.count() == 1000; }));
    if (who == 0) pair.left->abandon();
    if (who == 1) pair.right->abandon();
    if (who == 2) caller.port->stop();
    if (who == 3) callee.port->stop();
    waits.join();
    for (const auto& call : calls) {
      ASSERT_TRUE(eventually([&] { return call->is_settled(); }));
      EXPECT_TRUE(call->is_lost());
      EXPECT_EQ(call->settled_times(), 1);
    }
    EXPECT_EQ(begin_call(pair.left, {}), nullptr) << "a closed channel refuses";
    EXPECT_FALSE(pair.left->is_open());
    ASSERT_TRUE(eventually([&] { return !pair.right->is_open(); }));
    // A port that stops tells its own handler nothing more.
    EXPECT_TRUE(eventually([&] { return callee.closed == (who < 3 ? 1 : 0); }));
    held.clear();
  }
}

TEST_F(RingPortTest, ClosingBesideThreadsThatCallTellsEachCallOnce) {
  for (int round = 0; round < 20; ++round) {
    RingProcess caller{loop.get_executor()};
    RingProcess callee{loop.get_executor()};
    const auto pair = open_rings(*caller.port, 0, *callee.port, 0);
    std::atomic<int> started = 0;
    std::vector<std::vector<CallState>> made(3);
    std::vector<std::thread> threads;
    for (auto& calls : made) {
      threads.emplace_back([&] {
        while (auto call = begin_call(pair.left, number_bytes(1))) {
          calls.push_back(std::move(call));
          ++started;
          if (calls.size() % 64 == 0) (void)calls.back()->wait(*caller.port, in(30s));
        }
      });
    }
    ASSERT_TRUE(eventually([&] { return started > 500; }));
    switch (round % 4) {
      case 0:
        pair.left->abandon();
        break;
      case 1:
        pair.right->abandon();
        break;
      case 2:
        caller.port->stop();
        break;
      default:
        pair.left->close();
    }
    for (auto& thread : threads) thread.join();
    for (const auto& calls : made) {
      for (const auto& call : calls) {
        ASSERT_TRUE(eventually([&] { return call->is_settled(); })) << round;
      }
    }
    caller.port->stop();
    callee.port->stop();
    for (const auto& calls : made) {
      for (const auto& call : calls) EXPECT_EQ(call->settled_times(), 1);
    }
  }
}

TEST_F(RingPortTest, StopTellsPendingCallsThoughTheRingIsNeverEmpty) {
  for (int round = 0; round < 20; ++round) {
    RingProcess caller{loop.get_executor()};
    RingProcess callee{loop.get_executor()};
    HeldCalls held{callee};
    const auto pair = open_rings(*caller.port, 0, *callee.port, 0);
    const auto call = begin_call(pair.left, number_bytes(1));
    std::atomic<bool> stop = false;
    std::thread floods([&] {
      while (!stop) pair.right->cancel(1);
    });
    // One that reads, beside the watcher and stop().
    const auto other = std::make_shared<RingCallState>();
    std::thread reads([&] { EXPECT_TRUE(other->wait(*caller.port, in(30s))); });
    ASSERT_TRUE(eventually([&] { return caller.cancelled > 1000; }));
    caller.port->stop();
    EXPECT_TRUE(call->is_lost());
    stop = true;
    floods.join();
    RingCallState::Pending{other}.reply({});
    reads.join();
    callee.port->stop();  // It may not have taken the call yet, and would hold it for ever.
    held.clear();
  }
}

TEST_F(RingPortTest, StopBesideAThreadThatWaitsLeavesItToItsSignal) {
  open();
  std::atomic<int> armed = 0;
  const auto state = std::make_shared<RingCallState>();
  std::thread waits([&] { EXPECT_TRUE(state->wait(*left.port, in(30s), &armed)); });
  ASSERT_TRUE(eventually([&] { return armed == 1; }));
  left.port->stop();
  RingCallState::Pending{state}.reply({});
  waits.join();
}

TEST_F(RingPortTest, CloseSendsWhatIsQueuedFirst) {
  std::atomic<uint64_t> arrived = 0;
  right.on_call = [&](const AnyChannel&, uint64_t, BytesView) { ++arrived; };
  open();
  for (uint64_t i = 0; i < 3000; ++i) (void)begin_call(rings.left, number_bytes(i, 1000));
  rings.left->close();
  EXPECT_EQ(begin_call(rings.left, {}), nullptr);
  ASSERT_TRUE(eventually([&] { return right.closed == 1; }));
  EXPECT_EQ(arrived, 3000u);
}

TEST_F(RingPortTest, APortThatIsDroppedClosesItsChannels) {
  open();
  left.port.reset();
  ASSERT_TRUE(eventually([&] { return right.closed == 1; }));
  EXPECT_FALSE(rings.right->is_open());
  // What is left of it does no harm.
  EXPECT_EQ(begin_call(rings.left, {}), nullptr);
  rings.left->cancel(1);
  rings.left->close();
  rings.left->abandon();
  EXPECT_EQ(begin_call(rings.right, {}), nullptr);
}

TEST_F(RingPortTest, NumbersAreCheckedAndTaken) {
  open();
  const auto offer = [&](uint32_t index, uint32_t peer_index, int side) {
    RingPort::Offer made;
    made.memory = create_ring_file(ring_bytes_min).value();
    made.peer_doorbell = right.port->share_doorbell().value();
    made.index = index;
    made.peer_index = peer_index;
    made.side = side;
    return left.port->open(std::move(made));
  };
  EXPECT_EQ(offer(3, 0, 0).error().code(), Code::conflict);
  EXPECT_EQ(offer(rings_max, 0, 0).error().code(), Code::invalid);
  EXPECT_EQ(offer(0, rings_max, 0).error().code(), Code::invalid);
  EXPECT_EQ(offer(0, 0, 2).error().code(), Code::invalid);
  EXPECT_EQ(offer(0, 0, -1).error().code(), Code::invalid);
  EXPECT_TRUE(offer(rings_max - 1, rings_max - 1, 1));
  RingPort::Offer unsealed;
  unsealed.memory = FileDescriptor{::memfd_create("test", MFD_CLOEXEC)};
  unsealed.peer_doorbell = right.port->share_doorbell().value();
  EXPECT_EQ(left.port->open(std::move(unsealed)).error().code(), Code::invalid);
  rings.left->abandon();
  // The number is free once the closing was told.
  ASSERT_TRUE(eventually([&] { return offer(3, 0, 0).has_value(); }));
  left.port->stop();
  EXPECT_EQ(offer(5, 0, 0).error().code(), Code::cancelled);
}

TEST_F(RingPortTest, NothingIsLeftOfPortsAndChannels) {
  const size_t descriptors = open_descriptors();
  const size_t mappings = ring_mappings();
  for (int round = 0; round < 3; ++round) {
    RingProcess one{loop.get_executor()};
    RingProcess other{loop.get_executor()};
    std::vector<RingPair> pairs;
    for (uint32_t i = 0; i < 40; ++i) {
      pairs.push_back(open_rings(*one.port, i, *other.port, i));
      (void)begin_call(pairs.back().left, number_bytes(i));
    }
    EXPECT_EQ(open_descriptors(), descriptors + 2) << "one a doorbell, none a channel";
    for (uint32_t i = 0; i < 20; ++i) pairs[i].left->abandon();
    one.port.reset();
  }
  EXPECT_EQ(open_descriptors(), descriptors);
  EXPECT_EQ(ring_mappings(), mappings);
}

// --- Peers that break the rules, and such as die.

// The memory of a ring's other side, as a hostile peer has it.
struct HostilePeer {
  explicit HostilePeer(RingPort& port, uint32_t index)
      : doorbell(SharedPage::open(port.share_doorbell().value()).value()) {
    const FileDescriptor file = create_ring_file(ring_bytes_min).value();
    memory.emplace(RingMemory::open(copy_of(file)).value());
    RingPort::Offer offer;
    offer.memory = copy_of(file);
    offer.peer_doorbell = copy_of(own.file());
    offer.index = index;
    channel = port.open(std::move(offer)).value();
  }
  SharedPage own = SharedPage::create("test-doorbell").value();
  Doorbell doorbell;
  std::optional<RingMemory> memory;
  Channel channel;
};

TEST_F(RingPortTest, ARingWhoseWriterBreaksTheRulesIsClosed) {
  HostilePeer peer{*left.port, 9};
  const auto call = begin_call(peer.channel, number_bytes(1));
  peer.memory->control().ring[1].written.store(~uint64_t{0});
  peer.doorbell.ring(9);
  ASSERT_TRUE(call->wait(*left.port, in(30s)));
  EXPECT_TRUE(call->is_lost());
  EXPECT_TRUE(eventually([&] { return left.closed == 1; }));
  EXPECT_EQ(peer.memory->control().closed.load(), 1u);
}

TEST_F(RingPortTest, ARingWhoseReaderBreaksTheRulesIsClosed) {
  HostilePeer peer{*left.port, 9};
  peer.memory->control().ring[0].read.store(uint64_t{1} << 50);
  std::vector<CallState> calls;
  while (auto call = begin_call(peer.channel, number_bytes(1, 1000))) {
    calls.push_back(std::move(call));
    ASSERT_LT(calls.size(), 1000u) << "it is queued without end";
  }
  for (const auto& call : calls) {
    ASSERT_TRUE(call->wait(*left.port, in(30s)));
    EXPECT_TRUE(call->is_lost());
  }
}

TEST_F(RingPortTest, AWaitEndsAtItsDeadlineThoughTheRingIsNeverEmpty) {
  // Whoever reads a record finds the next one: the peer writes it meanwhile.
  std::optional<HostilePeer> peer;
  std::optional<RingWriter> writer;
  std::mutex writing;  // Several threads of this process write for the peer.
  const auto write = [&] {
    const std::lock_guard lock{writing};
    if (writer->reserve(0) == nullptr) return;
    writer->publish({0, RingChannel::call_cancel, 0, 1});
    peer->doorbell.ring(9);
  };
  const Instant end = in(10s);  // Of the peer, lest a failure lasts for ever.
  left.on_cancel = [&] {
    if (in(0s) < end) write();
  };
  peer.emplace(*left.port, 9);
  writer.emplace(*peer->memory, 1);
  const auto never = std::make_shared<RingCallState>();
  std::thread waits([&] { EXPECT_FALSE(never->wait(*left.port, in(50ms))); });
  write();
  waits.join();
  EXPECT_LT(in(0s), end) << "it waited for the peer to fall silent";
  left.port->stop();
  EXPECT_LT(in(0s), end) << "it stopped when the peer fell silent";
}

TEST_F(RingPortTest, PiecesWithoutEndCloseTheRing) {
  HostilePeer peer{*left.port, 9};
  RingWriter writer{*peer.memory, 1};
  const auto call = begin_call(peer.channel, number_bytes(1));
  std::thread reads([&] { EXPECT_TRUE(call->wait(*left.port, in(60s))); });
  const size_t piece = writer.payload_max();
  size_t sent = 0;
  const size_t enough = protocol::header_bytes_max + protocol::body_bytes_max + 2 * piece;
  while (peer.channel->is_open() && sent < enough) {
    if (writer.reserve(piece) == nullptr) {
      std::this_thread::yield();
      continue;
    }
    writer.publish({static_cast<uint32_t>(piece), RingChannel::frame, 1, 0});
    peer.doorbell.ring(9);
    sent += piece;
  }
  reads.join();
  EXPECT_TRUE(call->is_lost());
  EXPECT_FALSE(peer.channel->is_open());
}

TEST_F(RingPortTest, AStrangeDoorbellHarmsNobodyElse) {
  open();
  const auto page = SharedPage::open(left.port->share_doorbell().value()).value();
  auto& bell = page.as<DoorbellPage>();
  for (auto& word : bell.ready) word.store(~uint64_t{0});
  bell.watcher.fetch_add(1);
  futex_wake(bell.watcher);
  EXPECT_EQ(call_many(*left.port, rings.left, 1, 100), 0u);
}

TEST_F(RingPortTest, APeerThatDiedWhileItRangIsRungFor) {
  join_node();
  HostilePeer peer{*left.port, 9};
  auto& state = peer.doorbell.page().state;
  // The leader sleeps; the peer wrote that it is awake, and died before it woke it.
  const auto call = begin_call(peer.channel, number_bytes(1));
  std::thread waits([&] { EXPECT_TRUE(call->wait(*left.port, Instant::max())); });
  ASSERT_TRUE(eventually([&] {
    uint32_t asleep = Doorbell::leader_sleeps;
    return state.compare_exchange_strong(asleep, Doorbell::watched);
  }));
  // Here it may not sleep yet, and then look once more: both are well.
  peer.memory->control().closed.store(1);
  peer.doorbell.ring_for_dead(9);
  waits.join();
  EXPECT_TRUE(call->is_lost());
}

TEST_F(RingPortTest, AWatcherWhosePeerDiedWhileItRangIsRungFor) {
  HostilePeer peer{*left.port, 9};
  auto& state = peer.doorbell.page().state;
  const auto call = begin_call(peer.channel, number_bytes(1));
  ASSERT_TRUE(eventually([&] {
    uint32_t asleep = Doorbell::watcher_sleeps;
    return state.compare_exchange_strong(asleep, Doorbell::watched);
  }));
  peer.memory->control().closed.store(1);
  peer.doorbell.ring_for_dead(9);
  EXPECT_TRUE(eventually([&] { return call->is_settled(); }));
}

TEST_F(RingPortTest, AwakeThreadsAreCountedOnceAndNotAfterTheProcessLeft) {
  auto& awake = node.as<NodePage>().awake;
  const auto wait_on = [](RingPort& port) {
    RingCallState never;
    EXPECT_FALSE(never.wait(port, in(1ms)));
  };
  const auto counted = [](RingPort& port) -> std::atomic<uint32_t>& {
    static std::vector<SharedPage> pages;  // Mapped for as long as they are looked at.
    pages.push_back(SharedPage::open(port.share_doorbell().value()).value());
    return pages.back().as<DoorbellPage>().awake;
  };
  join_node();
  auto& of_left = counted(*left.port);
  auto& of_right = counted(*right.port);
  std::thread([&] {
    wait_on(*left.port);
    EXPECT_EQ(awake, 1);
    EXPECT_EQ(of_left, 1u);
    // The worker takes back what a process counted that left: here, a session that was closed.
    awake -= static_cast<int32_t>(of_left.exchange(0));
    EXPECT_EQ(awake, 0);
    wait_on(*right.port);  // The next session of the program.
    EXPECT_EQ(awake, 1);
    EXPECT_EQ(of_left, 0u);
    EXPECT_EQ(of_right, 1u);
    wait_on(*left.port);
    EXPECT_EQ(awake, 1);
    EXPECT_EQ(of_right, 0u);
  }).join();
  EXPECT_EQ(awake, 0);
  EXPECT_EQ(of_left, 0u);
}

// --- Frames.

class Sink final : public FrameSink {
 public:
  void frame(Bytes payload) override {
    const std::lock_guard lock{mutex};
    frames.push_back(std::move(payload));
    count = frames.size();
  }
  void drained() override {}
  void closed() override { ++closings; }
  std::mutex mutex;
  std::vector<Bytes> frames;
  std::atomic<size_t> count = 0;
  std::atomic<int> closings = 0;
};

Bytes filled(size_t bytes, uint64_t seed) {
  Bytes frame(bytes);
  for (size_t i = 0; i < bytes; ++i) frame[i] = static_cast<uint8_t>(i * 7 + i / 251 + seed);
  return frame;
}

TEST_F(RingPortTest, FramesLargerThanTheRingArriveWhole) {
  open();
  const auto sink = std::make_shared<Sink>();
  std::vector<Bytes> sent;
  for (const size_t bytes : {size_t{0}, ring_bytes_min / 2, ring_bytes_min / 2 + 1, ring_bytes_min,
                             size_t{5'000'000}, size_t{1}, size_t{0}, size_t{777'777}}) {
    sent.push_back(filled(bytes, bytes));
    EXPECT_TRUE(rings.left->send_frame(sent.back()));
    if (sent.size() == 3) rings.right->set_frame_sink(sink);  // What came before comes, too.
  }
  ASSERT_TRUE(eventually([&] { return sink->count == sent.size(); }));
  EXPECT_EQ(sink->frames, sent);
  rings.right->set_frame_sink(nullptr);
}

TEST_F(RingPortTest, FramesBothWaysWithBothRingsFullArriveInOrder) {
  open();
  const auto at_left = std::make_shared<Sink>();
  const auto at_right = std::make_shared<Sink>();
  rings.left->set_frame_sink(at_left);
  rings.right->set_frame_sink(at_right);
  constexpr size_t count = 150;
  const auto send_all = [&](const Channel& channel, uint64_t seed) {
    for (size_t i = 0; i < count; ++i) {
      EXPECT_TRUE(channel->send_frame(filled(1000 * i, seed + i)));
    }
  };
  std::thread other([&] { send_all(rings.right, 100); });
  send_all(rings.left, 0);
  other.join();
  ASSERT_TRUE(eventually([&] { return at_left->count == count && at_right->count == count; }));
  for (size_t i = 0; i < count; ++i) {
    EXPECT_EQ(at_right->frames[i], filled(1000 * i, i));
    EXPECT_EQ(at_left->frames[i], filled(1000 * i, 100 + i));
  }
  rings.left->close();
  EXPECT_TRUE(eventually([&] { return at_left->closings == 1 && at_right->closings == 1; }));
}

// What had not begun when the callee died surely did not run, and can be sent elsewhere.
TEST_F(RingPortTest, SaysOfALostCallWhetherItHadBegun) {
  std::atomic<int> taken = 0;
  right.on_call = [&](const AnyChannel& channel, uint64_t, BytesView) {
    const uint64_t ordinal = channel->count_call();
    if (++taken <= 2) channel->begin(ordinal);
  };
  open();
  std::vector<CallState> calls;
  for (int i = 0; i < 4; ++i) calls.push_back(begin_call(rings.left, number_bytes(1, 8)));
  ASSERT_TRUE(eventually([&] { return taken == 4; }));
  rings.right->abandon();
  for (const auto& call : calls) ASSERT_TRUE(call->wait(*left.port, in(30s)));
  for (size_t i = 0; i < calls.size(); ++i) {
    EXPECT_TRUE(calls[i]->is_lost());
    EXPECT_EQ(calls[i]->may_have_run(), i < 2) << i;
  }
}

TEST_F(RingPortTest, RecallReachesTheCallee) {
  open();
  rings.left->recall();
  EXPECT_TRUE(eventually([&] { return right.recalled == 1; }));
}

}  // namespace
}  // namespace troupe::transport
