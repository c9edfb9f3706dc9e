// What this process owns moves away from a node that is drained.
#include <gmock/gmock.h>

#include <set>

#include "tests/client/client_fixture.h"

namespace troupe::client {
namespace {

class Evacuation : public ClientTest {
 protected:
  Evacuation() {
    worker.on_message(Method::attach_segment, [](Message, CallContext) { return attach_store(); });
    worker.on(Method::reserve_extent, *this, &Evacuation::reserve);
    worker.on(Method::seal_blocks, *this, &Evacuation::seal);
    other.self.kind = "worker";
    other.self.address.process = ProcessId::random(simulation.random());
    other.self.address.node = NodeId::random(simulation.random());
    other.self.address.host = "10.0.2.1";
    other.self.address.port = 7000;
    other.on(Method::adopt_objects, *this, &Evacuation::adopt);
  }
  void SetUp() override {
    start_client();
    other.listen({"", other.self.address.host, other.self.address.port});
  }

  // Too large to be its own memory.
  ObjectId put_large() { return put(std::string(100'000, 'x')).id; }
  // As one that was made before the node's worker was started anew.
  ObjectId lost_with_the_worker_before() {
    const auto object = client->objects().make();
    protocol::ProcessAddress before = worker.self.address;
    before.process = ProcessId::random(simulation.random());
    client->objects().set_stored(object, before, 100'000);
    return client->objects().publish(object).id;
  }
  Status evacuate() {
    protocol::Evacuate request;
    request.node = attached.node;
    request.targets = {other.self.address};
    request.worker = worker.self.address.process;
    auto moved =
        await(transport::call<Empty>(worker.peers.at(0), Method::evacuate, request, 1min), 2min);
    if (!moved) return moved.error();
    return ok();
  }
  ProcessId place_of(ObjectId object) { return client->objects().find(object)->node()->process; }

  FakeServer other{simulation, scope, add_host("other worker", "other machine")};
  std::set<ObjectId> known;    // To the node's worker.
  std::set<ObjectId> adopted;  // By the other one.

 private:
  static Async<Result<Message>> attach_store() {
    Message attached{protocol::encode(protocol::SegmentAttached{1}), {}};
    co_return attached;
  }
  Async<Result<protocol::Block>> reserve(protocol::ReserveExtent, CallContext) {
    co_return protocol::Block{1, 0, 1 << 20};
  }
  Async<Result<Empty>> seal(protocol::SealBlocks request, CallContext) {
    for (const auto& block : request.items) known.insert(block.object);
    co_return Empty{};
  }
  // It gets them from the node's worker, which has only what it knows.
  Async<Result<protocol::ObjectIds>> adopt(protocol::AdoptObjects request, CallContext) {
    EXPECT_EQ(request.source.process, worker.self.address.process);
    protocol::ObjectIds there;
    for (const ObjectId object : request.objects) {
      if (known.contains(object)) there.objects.push_back(object);
    }
    adopted.insert(there.objects.begin(), there.objects.end());
    co_return there;
  }
};

TEST_F(Evacuation, WhatNobodyHasAskedForMovesToo) {
  const std::set<ObjectId> objects{put_large(), put_large(), put_large()};
  ASSERT_TRUE(known.empty()) << "the worker was told before anyone asked";
  const Status moved = evacuate();
  EXPECT_TRUE(moved) << moved.error().to_string();
  EXPECT_EQ(adopted, objects);
  for (const ObjectId object : objects) EXPECT_EQ(place_of(object), other.self.address.process);
}

TEST_F(Evacuation, WhatAnEarlierWorkerOfTheNodeHadDoesNotHoldItUp) {
  const ObjectId lost = lost_with_the_worker_before();
  const Status nothing_to_move = evacuate();
  EXPECT_TRUE(nothing_to_move) << nothing_to_move.error().to_string();
  const ObjectId present = put_large();
  const Status moved = evacuate();
  EXPECT_TRUE(moved) << moved.error().to_string();
  EXPECT_THAT(adopted, testing::ElementsAre(present));
  EXPECT_NE(place_of(lost), other.self.address.process);
}

// Results on the node with a ref each, whose objects another process owns.
class RefsInResults : public Evacuation {
 protected:
  void SetUp() override {
    Evacuation::SetUp();
    owner = &add_process();
    owner->on(Method::add_borrow, *this, &RefsInResults::add_borrow);
    producer = &add_process();
    producer->on(Method::list_held, *this, &RefsInResults::list_held);
    producer->on(Method::remove_borrow, *this, &RefsInResults::remove_borrow);
  }
  ObjectId add_result() {
    const auto result = client->objects().make();
    protocol::InvokeReply reply;
    reply.inline_value = to_bytes("a ref");
    reply.borrowed = {result->id()};
    client->objects().set_reply(result, std::move(reply), producer->address);
    return result->id();
  }

  FakeProcess* owner = nullptr;
  FakeProcess* producer = nullptr;
  std::vector<size_t> asked;
  std::set<ObjectId> borrowed;
  std::set<ObjectId> let_go;
  size_t let_go_unknown = 0;  // Before the owner heard of so many.

 private:
  Async<Result<protocol::HeldRefs>> list_held(protocol::ObjectIds question, CallContext) {
    asked.push_back(question.objects.size());
    protocol::HeldRefs refs;
    for (const ObjectId result : question.objects) {
      refs.items.push_back({result, ObjectId::random(simulation.random()), owner->address});
    }
    co_return refs;
  }
  Async<Result<Empty>> add_borrow(protocol::ObjectIds notice, CallContext) {
    borrowed.insert(notice.objects.begin(), notice.objects.end());
    co_return Empty{};
  }
  Async<Result<Empty>> remove_borrow(protocol::ObjectIds notice, CallContext) {
    let_go.insert(notice.objects.begin(), notice.objects.end());
    if (let_go.size() > borrowed.size()) let_go_unknown = let_go.size() - borrowed.size();
    co_return Empty{};
  }
};

TEST_F(RefsInResults, AreTakenFromTheirProducerInParts) {
  std::set<ObjectId> results;
  while (results.size() < 2001) results.insert(add_result());
  simulation.run_for(1s);
  const Status moved = evacuate();
  ASSERT_TRUE(moved) << moved.error().to_string();
  EXPECT_THAT(asked, testing::ElementsAre(1000, 1000, 1));
  simulation.run_for(1s);
  EXPECT_EQ(borrowed.size(), 2001u);
  EXPECT_EQ(let_go, results);
  EXPECT_EQ(let_go_unknown, 0u);
}

TEST_F(Evacuation, WhatStaysBehindIsSaid) {
  put_large();
  simulation.network().kill(other.host);
  const Status failed = evacuate();
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code(), Code::unavailable);
  EXPECT_THAT(failed.error().message(), testing::HasSubstr("1 objects of process"));
}

}  // namespace
}  // namespace troupe::client
