// Refs inside items of streams: the producer keeps their objects until the receiver has read the
// refs, or does without.
#include <algorithm>

#include "client/actor_caller.h"
#include "client/item_source.h"
#include "tests/client/client_fixture.h"

namespace troupe::client {
namespace {

// The ids by which what a producer holds for an item is let go of.
ObjectId item_of(const protocol::ProcessAddress& producer, uint32_t number) {
  ObjectId id;
  id.high = producer.process.high;
  id.low = producer.process.low + number;
  return id;
}

class HeldRefsTest : public ClientTest {
 protected:
  // What these tell the client, and are told, goes into one list.
  void listen_to(FakeProcess& process) {
    process.on(Method::add_borrow, *this, &HeldRefsTest::add_borrow);
    process.on(Method::remove_borrow, *this, &HeldRefsTest::remove_borrow);
  }
  // An actor whose calls give items of these numbers, and end when `open_end` is not set.
  FakeProcess& add_producer() {
    FakeProcess& process = add_actor();
    listen_to(process);
    process.on_stream(Method::invoke_stream,
                      [this](Message, CallContext context, transport::OutgoingStream& out) {
                        return give_items(std::move(context), out);
                      });
    return process;
  }
  std::shared_ptr<ItemSource> stream(ObjectName* call = nullptr) {
    auto items = std::make_shared<ItemSource>(simulation.executor(), client->objects());
    auto extras = std::make_shared<ActorCallExtras>();
    extras->items = items;
    ActorCallSpec spec = call_of("x");
    spec.extras = std::move(extras);
    const ObjectName made = client->submit_call(std::move(spec));
    if (call != nullptr) *call = made;
    return items;
  }
  std::optional<Item> next(ItemSource& items) { return await(items.next()).value(); }

  std::vector<uint32_t> numbers;  // Of the items; 0: holds nothing.
  bool open_end = false;
  int given = 0;
  std::vector<ObjectId> borrowed;
  std::vector<ObjectId> let_go;
  int let_go_messages = 0;
  std::vector<std::string> told;  // In order.

 private:
  Async<Status> give_items(CallContext context, transport::OutgoingStream& out) {
    for (const uint32_t number : numbers) {
      TROUPE_CO_CHECK(co_await out.send(to_bytes("item"), number));
      ++given;
    }
    if (open_end) co_await context.cancelled->wait();
    co_return ok();
  }
  Async<Result<Empty>> add_borrow(protocol::ObjectIds notice, CallContext) {
    borrowed.insert(borrowed.end(), notice.objects.begin(), notice.objects.end());
    told.emplace_back("borrowed");
    co_return Empty{};
  }
  Async<Result<Empty>> remove_borrow(protocol::ObjectIds notice, CallContext) {
    let_go.insert(let_go.end(), notice.objects.begin(), notice.objects.end());
    ++let_go_messages;
    told.emplace_back("let go");
    co_return Empty{};
  }
};

TEST_F(HeldRefsTest, ItemIsLetGoOfOnceItsRefsAreReadAndKnownToTheirOwner) {
  start_client();
  const FakeProcess& producer = add_producer();
  FakeProcess& owner = add_process();
  listen_to(owner);
  numbers = {7};
  open_end = true;
  const auto items = stream();
  auto item = next(*items);
  simulation.run_for(1s);
  EXPECT_TRUE(told.empty());
  const ObjectName ref{ObjectId::random(simulation.random()), owner.address};
  client->add_reference(ref);
  item.reset();
  simulation.run_for(1s);
  EXPECT_EQ(told, (std::vector<std::string>{"borrowed", "let go"}));
  EXPECT_EQ(borrowed, std::vector<ObjectId>{ref.id});
  EXPECT_EQ(let_go, std::vector<ObjectId>{item_of(producer.address, 7)});
}

TEST_F(HeldRefsTest, ItemsWithoutRefsCostNoMessage) {
  start_client();
  add_producer();
  numbers = std::vector<uint32_t>(1000);
  auto items = stream();
  for (int i = 0; i < 500; ++i) EXPECT_EQ(next(*items)->keep_alive.use_count(), 0);
  items.reset();
  simulation.run_for(1s);
  EXPECT_TRUE(told.empty());
}

TEST_F(HeldRefsTest, UnreadItemsAreLetGoOfWithTheirStream) {
  start_client();
  const FakeProcess& producer = add_producer();
  for (uint32_t i = 1; i <= 200; ++i) numbers.push_back(i);
  auto items = stream();
  (void)next(*items);
  simulation.run_for(1s);
  EXPECT_EQ(let_go, std::vector<ObjectId>{item_of(producer.address, 1)});
  items.reset();
  simulation.run_for(1s);
  EXPECT_EQ(let_go.size(), 200u);
  std::ranges::sort(let_go);
  EXPECT_TRUE(std::ranges::adjacent_find(let_go) == let_go.end());
  EXPECT_LE(let_go_messages, 3);
}

TEST_F(HeldRefsTest, ItemsOnTheirWayToACancelledCallAreLetGoOf) {
  start_client();
  FakeProcess& producer = add_producer();
  numbers = {1};
  open_end = true;
  ObjectName call;
  auto items = stream(&call);
  auto first = next(*items);
  ASSERT_TRUE(first);
  // Those behind it come when nobody knows of the stream any more.
  numbers = {2, 3, 4};
  open_end = false;
  auto late = stream(&call);
  simulation.run_until([&] { return given == 4; }, 1s);
  client->cancel(call.id);
  late.reset();
  simulation.run_for(1s);
  std::ranges::sort(let_go);
  EXPECT_EQ(let_go,
            (std::vector<ObjectId>{item_of(producer.address, 2), item_of(producer.address, 3),
                                   item_of(producer.address, 4)}));
  first.reset();
  simulation.run_for(1s);
  EXPECT_EQ(let_go.back(), item_of(producer.address, 1));
}

// --- The producer's end.

class ProducerTest : public HeldRefsTest {
 protected:
  FakeProcess& add_receiver() {
    FakeProcess& process = add_process();
    (void)await(client->peer_of(process.address, in(5s))).value();
    simulation.run_for(10ms);
    return process;
  }
  Status tell(FakeProcess& process, ObjectId object) {
    protocol::ObjectIds notice{{object}};
    auto told =
        await(transport::call<Empty>(process.peers.at(0), Method::remove_borrow, notice, 5s));
    if (!told) return told.error();
    return ok();
  }
  // An object that is only held for an item from now on.
  ObjectName held_for(const FakeProcess& receiver, uint32_t* number) {
    const ObjectName object = put("value");
    *number = client->objects().hold_for_item(receiver.address.process, {object});
    client->drop_reference(object);
    return object;
  }
};

TEST_F(ProducerTest, WhatAnItemHoldsLivesUntilItsReceiverLetsGo) {
  start_client();
  FakeProcess& receiver = add_receiver();
  FakeProcess& other = add_receiver();
  uint32_t first = 0;
  uint32_t second = 0;
  const ObjectName object = held_for(receiver, &first);
  const ObjectName later = held_for(receiver, &second);
  EXPECT_NE(first, second);
  ASSERT_TRUE(tell(other, item_of(client->address(), first)));
  EXPECT_EQ(code_of(get(object)), Code::ok);
  ASSERT_TRUE(tell(receiver, item_of(client->address(), first)));
  EXPECT_EQ(code_of(get(object)), Code::not_found);
  EXPECT_EQ(code_of(get(later)), Code::ok);
  client->objects().let_go_for_item(second);
  EXPECT_EQ(code_of(get(later)), Code::not_found);
}

TEST_F(ProducerTest, WhatAnItemHoldsGoesWithItsReceiver) {
  start_client();
  FakeProcess& receiver = add_receiver();
  uint32_t number = 0;
  const ObjectName object = held_for(receiver, &number);
  simulation.run_for(1s);
  EXPECT_EQ(code_of(get(object)), Code::ok);
  receiver.die();
  simulation.run_for(1s);
  EXPECT_EQ(code_of(get(object)), Code::not_found);
}

}  // namespace
}  // namespace troupe::client
