// An object that a call in a ring makes.
#include "client/object.h"

#include <atomic>
#include <thread>

#include "tests/transport/two_processes.h"

namespace troupe::client {
namespace {

using namespace transport;

class OwnedObject : public testing::Test {
 protected:
  OwnedObject() {
    callee.on_call = [](const transport::AnyChannel&, uint64_t, BytesView) {};  // It never answers.
    rings = open_rings(*caller.port, 0, *callee.port, 0);
    call = begin_call(rings.left, to_bytes("x"));
  }

  boost::asio::io_context loop;
  Executor executor = loop.get_executor();
  RingProcess caller{executor};
  RingProcess callee{executor};
  RingPair rings;
  CallState call;
  ObjectHome home{executor, {}, {}};
  std::shared_ptr<Object> object =
      std::make_shared<Object>(ObjectId{RawId{1, 2}}, home, Object::Maker::task);
};

TEST_F(OwnedObject, TellsItsCallThatItWasCancelled) {
  object->on_cancel(rings.left, call->number);
  object->cancel(error(Code::cancelled, "no more"));
  EXPECT_TRUE(eventually([&] { return callee.cancelled == 1; }));
  EXPECT_EQ(callee.last_cancelled, call->number);
}

// Cancelled after the call was sent, and before it was noted who makes the object.
TEST_F(OwnedObject, CancelledWhileItsCallWasSentTellsTheCallToo) {
  object->cancel(error(Code::cancelled, "no more"));
  object->on_cancel(rings.left, call->number);
  EXPECT_TRUE(eventually([&] { return callee.cancelled == 1; }));
  EXPECT_EQ(callee.last_cancelled, call->number);
}

TEST_F(OwnedObject, ThatHasAValueCancelsNothing) {
  object->set_value(to_bytes("ok"));
  object->on_cancel(rings.left, call->number);
  object->cancel(error(Code::cancelled, "no more"));
  // Records keep their order: once this call is there, a cancel before it would be, too.
  const auto later = begin_call(rings.left, to_bytes("y"));
  rings.left->cancel(later->number);
  EXPECT_TRUE(eventually([&] { return callee.cancelled > 0; }));
  EXPECT_EQ(callee.cancelled, 1);
  EXPECT_EQ(callee.last_cancelled, later->number);
}

struct Noted : ReadyHook {
  void ready(uint32_t index) override { indexes.push_back(index); }
  std::vector<uint32_t> indexes;
};

TEST_F(OwnedObject, TellsItsWatchAndItsHooksThatItIsReady) {
  ReadyWatches& watches = home.watches;
  Noted first, second;
  const auto hook = std::make_shared<Noted>();
  Object watched{ObjectId{RawId{1, 3}}, home, Object::Maker::none};
  const uint64_t name = watches.open(first);
  const uint64_t other = watches.open(second);
  EXPECT_EQ(watched.watch(name | 5), Object::Watch::watched);
  EXPECT_EQ(watched.watch(other | 6), Object::Watch::taken);
  EXPECT_EQ(watched.watch(name | 7), Object::Watch::taken);
  EXPECT_TRUE(watched.add_hook(hook, 8));
  watched.set_value(to_bytes("ok"));
  EXPECT_EQ(first.indexes, std::vector<uint32_t>{5});
  EXPECT_TRUE(second.indexes.empty());
  EXPECT_EQ(hook->indexes, std::vector<uint32_t>{8});
  EXPECT_FALSE(watched.add_hook(hook, 9));
  watched.unwatch(name | 5);
  EXPECT_EQ(watched.watch(other | 6), Object::Watch::ready);
}

TEST_F(OwnedObject, TellsNoWatchThatHasEnded) {
  ReadyWatches& watches = home.watches;
  Noted ended, next;
  const auto hook = std::make_shared<Noted>();
  Object watched{ObjectId{RawId{1, 3}}, home, Object::Maker::none};
  const uint64_t name = watches.open(ended);
  EXPECT_EQ(watched.watch(name | 1), Object::Watch::watched);
  EXPECT_TRUE(watched.add_hook(hook, 2));
  watches.close(name);
  watched.unwatch(name | 1);
  watched.remove_hook(*hook);
  const uint64_t later = watches.open(next);
  EXPECT_NE(later, name);
  EXPECT_EQ(watched.watch(later | 3), Object::Watch::watched);
  watched.unwatch(name | 1);  // No longer its.
  watched.set_error(error(Code::conflict, "no"));
  EXPECT_TRUE(ended.indexes.empty());
  EXPECT_TRUE(hook->indexes.empty());
  EXPECT_EQ(next.indexes, std::vector<uint32_t>{3});
}

// Whichever comes last of the two sees the other.
TEST_F(OwnedObject, WatchedWhileItBecomesReadyIsNotMissed) {
  struct Counted : ReadyHook {
    void ready(uint32_t) override { ++count; }
    std::atomic<int> count = 0;
  };
  ReadyWatches& watches = home.watches;
  for (int round = 0; round < 2000; ++round) {
    Counted counted;
    Object watched{ObjectId{RawId{1, 3}}, home, Object::Maker::none};
    std::atomic<bool> go = false;
    std::thread makes([&] {
      while (!go) {
      }
      watched.set_value({});
    });
    const uint64_t name = watches.open(counted);
    go = true;
    const auto outcome = watched.watch(name);
    makes.join();
    watches.close(name);
    EXPECT_TRUE(outcome == Object::Watch::ready || counted.count == 1);
  }
}

}  // namespace
}  // namespace troupe::client
