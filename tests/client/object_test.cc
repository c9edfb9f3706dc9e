// Objects of this process and of others: how long they live, and what a reader hears of a failure.
#include "tests/client/client_fixture.h"

namespace troupe::client {
namespace {

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
