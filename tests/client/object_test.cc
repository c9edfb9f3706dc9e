// Objects of this process and of others: how long they live, and what a reader hears of a failure.
#include <algorithm>

#include "tests/client/client_fixture.h"

namespace troupe::client {
namespace {

Async<Result<Message>> empty_reply() {
  Message reply{protocol::encode(Empty{}), {}};
  co_return reply;
}

class ObjectTest : public ClientTest {
 protected:
  // Another process, which owns or borrows.
  void connect_back(FakeProcess& process) {
    peer_ = await(client->peer_of(process.address, in(5s))).value();
    simulation.run_for(10ms);  // The other side learns of it, too.
    process.on(Method::resolve_object, *this, &ObjectTest::resolve);
    process.on(Method::add_borrow, *this, &ObjectTest::add_borrow);
    process.on(Method::remove_borrow, *this, &ObjectTest::remove_borrow);
  }
  ObjectName object_of(const FakeProcess& process) {
    return {ObjectId::random(simulation.random()), process.address};
  }
  Status tell(FakeProcess& process, Method method, ObjectId object) {
    protocol::BorrowObjects notice{{object}};
    auto told = await(transport::call<Empty>(process.peers.at(0), method, notice, 5s));
    if (!told) return told.error();
    return ok();
  }

  std::vector<ObjectId> borrowed;
  std::vector<ObjectId> let_go;
  bool hold = false;

 private:
  Async<Result<protocol::ObjectValue>> resolve(protocol::ResolveObject, CallContext context) {
    while (hold) co_await context.cancelled->wait();
    protocol::ObjectValue value;
    value.inline_value = to_bytes("theirs");
    co_return value;
  }
  Async<Result<Empty>> add_borrow(protocol::BorrowObjects notice, CallContext) {
    borrowed.insert(borrowed.end(), notice.objects.begin(), notice.objects.end());
    co_return Empty{};
  }
  Async<Result<Empty>> remove_borrow(protocol::BorrowObjects notice, CallContext) {
    let_go.insert(let_go.end(), notice.objects.begin(), notice.objects.end());
    co_return Empty{};
  }
  std::shared_ptr<Peer> peer_;
};

TEST_F(ObjectTest, PutValueIsReadBack) {
  start_client();
  const auto value = get(put("value"));
  ASSERT_TRUE(value);
  EXPECT_EQ(*value, "value");
}

TEST_F(ObjectTest, ObjectGoesWithItsLastRef) {
  start_client();
  const ObjectName object = put("value");
  client->add_reference(object);
  client->drop_reference(object);
  EXPECT_EQ(code_of(get(object)), Code::ok);
  client->drop_reference(object);
  EXPECT_EQ(code_of(get(object)), Code::not_found);
}

TEST_F(ObjectTest, FailedObjectGivesItsFailure) {
  start_client();
  const auto failed = client->objects().make();
  client->objects().set_error(failed, error(Code::data_loss, "gone"));
  const ObjectName object = client->objects().publish(failed);
  EXPECT_EQ(code_of(get(object)), Code::data_loss);
}

TEST_F(ObjectTest, ObjectThatIsNotReadyInTimeIsDeadlineExceeded) {
  start_client();
  const ObjectName object = client->submit_task(task_of("hello"));
  const Instant before = simulation.clock().now();
  EXPECT_EQ(code_of(get(object, 2s)), Code::deadline_exceeded);
  EXPECT_EQ(since(before), 2s);
}

TEST_F(ObjectTest, BorrowerKeepsAnObjectThatItsOwnerLetGo) {
  start_client();
  FakeProcess& borrower = add_process();
  connect_back(borrower);
  const ObjectName object = put("value");
  ASSERT_TRUE(tell(borrower, Method::add_borrow, object.id));
  client->drop_reference(object);
  EXPECT_EQ(code_of(get(object)), Code::ok);
  ASSERT_TRUE(tell(borrower, Method::remove_borrow, object.id));
  EXPECT_EQ(code_of(get(object)), Code::not_found);
}

TEST_F(ObjectTest, DeadBorrowerKeepsNothing) {
  start_client();
  FakeProcess& borrower = add_process();
  connect_back(borrower);
  const ObjectName object = put("value");
  ASSERT_TRUE(tell(borrower, Method::add_borrow, object.id));
  client->drop_reference(object);
  borrower.die();
  simulation.run_for(100ms);
  EXPECT_EQ(code_of(get(object)), Code::not_found);
}

TEST_F(ObjectTest, BorrowOfAFreedObjectIsNotFound) {
  start_client();
  FakeProcess& borrower = add_process();
  connect_back(borrower);
  const ObjectName object = put("value");
  client->drop_reference(object);
  EXPECT_EQ(code_of(tell(borrower, Method::add_borrow, object.id)), Code::not_found);
}

TEST_F(ObjectTest, BorrowedObjectIsReadFromItsOwner) {
  start_client();
  FakeProcess& owner = add_process();
  connect_back(owner);
  const auto value = get(object_of(owner));
  ASSERT_TRUE(value);
  EXPECT_EQ(*value, "theirs");
}

// Each reader is sent to its parent in a binary tree of those before it, then up to the object's
// node, then to others: so no node is asked by more than two, and all go on when one is lost.
TEST_F(ObjectTest, ReadersOfAStoredObjectFormATree) {
  start_client();
  FakeProcess& borrower = add_process();
  connect_back(borrower);
  std::vector<protocol::ProcessAddress> workers;
  for (int i = 0; i < 8; ++i) {
    protocol::ProcessAddress worker;
    worker.process = ProcessId::random(simulation.random());
    worker.node = NodeId::random(simulation.random());
    workers.push_back(worker);
  }
  const auto stored = client->objects().make();
  const ObjectName object = client->objects().publish(stored);
  client->objects().set_stored(stored, workers[0], 1000);
  const auto holders = [&](const protocol::ProcessAddress& reader) {
    protocol::ResolveObject request{object.id, reader};
    const auto value = await(transport::call<protocol::ObjectValue>(
                                 borrower.peers.at(0), Method::resolve_object, request, 5s))
                           .value();
    EXPECT_EQ(value.node.process, workers[0].process);
    std::vector<size_t> order;
    for (const auto& copy : value.copies) {
      const auto found =
          std::ranges::find(workers, copy.process, &protocol::ProcessAddress::process);
      order.push_back(static_cast<size_t>(found - workers.begin()));
    }
    return order;
  };
  EXPECT_EQ(holders({}), (std::vector<size_t>{}));
  EXPECT_EQ(holders(workers[0]), (std::vector<size_t>{}));  // It has the object.
  EXPECT_EQ(holders(workers[1]), (std::vector<size_t>{0}));
  EXPECT_EQ(holders(workers[2]), (std::vector<size_t>{0, 1}));
  EXPECT_EQ(holders(workers[3]), (std::vector<size_t>{1, 0, 2}));
  EXPECT_EQ(holders(workers[4]), (std::vector<size_t>{1, 0, 2, 3}));
  EXPECT_EQ(holders(workers[5]), (std::vector<size_t>{2, 0, 1, 3, 4}));
  EXPECT_EQ(holders(workers[6]), (std::vector<size_t>{2, 0, 1, 3, 4, 5}));
  EXPECT_EQ(holders(workers[7]), (std::vector<size_t>{3, 1, 0, 2, 4, 5}));
  // Who asks again is never sent to itself.
  for (const size_t other : holders(workers[1])) EXPECT_NE(other, 1u);
}

TEST_F(ObjectTest, CopiesAreFreedWithTheirObject) {
  start_client();
  std::vector<ProcessId> freed;
  std::vector<FakeProcess*> nodes;
  for (int i = 0; i < 4; ++i) {
    nodes.push_back(&add_process());
    nodes.back()->on_message(
        Method::release_block,
        [&freed, node = nodes.back()](Message, CallContext) -> Async<Result<Message>> {
          freed.push_back(node->address.process);
          return empty_reply();
        });
    connect_back(*nodes.back());
  }
  const auto stored = client->objects().make();
  const ObjectName object = client->objects().publish(stored);
  client->objects().set_stored(stored, nodes[0]->address, 1000);
  const auto copied = [&](FakeProcess& from, const FakeProcess& node, bool dropped) {
    protocol::ObjectCopied notice{object.id, node.address, dropped};
    return code_of(
        await(transport::call<Empty>(from.peers.at(0), Method::object_copied, notice, 5s)));
  };
  EXPECT_EQ(copied(*nodes[1], *nodes[1], false), Code::ok);
  EXPECT_EQ(copied(*nodes[1], *nodes[1], false), Code::ok);  // Told twice, counted once.
  EXPECT_EQ(copied(*nodes[2], *nodes[2], false), Code::ok);
  EXPECT_EQ(copied(*nodes[1], *nodes[2], true), Code::denied);
  EXPECT_EQ(copied(*nodes[3], *nodes[3], false), Code::ok);
  EXPECT_EQ(copied(*nodes[3], *nodes[3], true), Code::ok);
  client->drop_reference(object);
  simulation.run_for(100ms);
  std::vector<ProcessId> expected{nodes[0]->address.process, nodes[1]->address.process,
                                  nodes[2]->address.process};
  std::ranges::sort(expected);
  std::ranges::sort(freed);
  EXPECT_EQ(freed, expected);
  // One that comes too late hears that nobody wants it.
  EXPECT_EQ(copied(*nodes[1], *nodes[1], false), Code::not_found);
}

TEST_F(ObjectTest, OwnerHearsOfTheFirstRefAndOfTheLast) {
  start_client();
  FakeProcess& owner = add_process();
  connect_back(owner);
  const ObjectName object = object_of(owner);
  client->add_reference(object);
  client->add_reference(object);
  simulation.run_for(100ms);
  EXPECT_EQ(borrowed, std::vector<ObjectId>{object.id});
  client->drop_reference(object);
  simulation.run_for(100ms);
  EXPECT_TRUE(let_go.empty());
  client->drop_reference(object);
  simulation.run_for(100ms);
  EXPECT_EQ(let_go, std::vector<ObjectId>{object.id});
}

TEST_F(ObjectTest, ObjectOfAnOwnerThatIsGoneIsLost) {
  start_client();
  FakeProcess& owner = add_process();
  owner.die();
  EXPECT_EQ(code_of(get(object_of(owner))), Code::data_loss);
}

TEST_F(ObjectTest, ObjectWhoseOwnerDiesBeforeItAnswersIsLost) {
  start_client();
  FakeProcess& owner = add_process();
  connect_back(owner);
  hold = true;
  const auto value = begin(client->get(object_of(owner), 1min));
  simulation.run_for(1s);
  hold = false;
  owner.die();
  simulation.run_for(1s);
  ASSERT_TRUE(value->has_value());
  EXPECT_EQ(code_of(**value), Code::data_loss);
}

}  // namespace
}  // namespace troupe::client
