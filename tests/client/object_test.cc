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
    process.on(Method::resolve_objects, *this, &ObjectTest::resolve);
    process.on(Method::free_objects, *this, &ObjectTest::free);
    process.on_stream(Method::wait_objects,
                      [this](Message message, CallContext context, transport::OutgoingStream& out) {
                        return wait(std::move(message), std::move(context), out);
                      });
    process.on(Method::add_borrow, *this, &ObjectTest::add_borrow);
    process.on(Method::remove_borrow, *this, &ObjectTest::remove_borrow);
  }
  ObjectName object_of(const FakeProcess& process) {
    return {ObjectId::random(simulation.random()), process.address};
  }
  Status tell(FakeProcess& process, Method method, ObjectId object) {
    protocol::ObjectIds notice{{object}};
    auto told = await(transport::call<Empty>(process.peers.at(0), method, notice, 5s));
    if (!told) return told.error();
    return ok();
  }

  std::vector<ObjectId> borrowed;
  std::vector<ObjectId> let_go;
  std::vector<ObjectId> freed;
  std::vector<size_t> questions;  // How many objects each asked for.
  ObjectId failed;                // Of theirs: without a value.
  int notices = 0;
  int let_go_notices = 0;
  int waits_ended = 0;
  bool hold = false;

 private:
  // Two at most in an answer.
  Async<Result<protocol::ObjectValues>> resolve(protocol::ResolveObjects asked,
                                                CallContext context) {
    questions.push_back(asked.objects.size());
    while (hold) co_await context.cancelled->wait();
    protocol::ObjectValues values;
    for (const ObjectId id : asked.objects) {
      protocol::ObjectValue& value = values.items.emplace_back();
      if (id == failed) {
        value.error = protocol::to_info(error(Code::conflict, "theirs failed"));
        break;
      }
      value.inline_value = to_bytes("theirs");
      if (values.items.size() == 2) break;
    }
    co_return values;
  }
  Async<Status> wait(Message message, CallContext context, transport::OutgoingStream& out) {
    auto asked = protocol::decode<protocol::ObjectIds>(message.body);
    for (const ObjectId id : asked.value().objects) {
      if (id == failed) continue;  // Never ready.
      protocol::ObjectIds ready{{id}};
      TROUPE_CO_CHECK(co_await out.send(protocol::encode(ready)));
    }
    co_await context.cancelled->wait();
    ++waits_ended;
    co_return ok();
  }
  Async<Result<Empty>> free(protocol::ObjectIds ids, CallContext) {
    freed = std::move(ids.objects);
    co_return Empty{};
  }
  Async<Result<Empty>> add_borrow(protocol::ObjectIds notice, CallContext) {
    ++notices;
    borrowed.insert(borrowed.end(), notice.objects.begin(), notice.objects.end());
    co_return Empty{};
  }
  Async<Result<Empty>> remove_borrow(protocol::ObjectIds notice, CallContext) {
    ++let_go_notices;
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

TEST_F(ObjectTest, BorrowOfAProcessThatIsGoneDoesNotCount) {
  start_client();
  FakeProcess& borrower = add_process();
  connect_back(borrower);
  CallContext context;
  context.peer = await(client->peer_of(borrower.address, in(5s))).value();
  const ObjectName object = put("value");
  borrower.die();
  simulation.run_for(1s);
  // It was read from the connection just before its end.
  protocol::ObjectIds notice{{object.id}};
  EXPECT_EQ(code_of(await(client->objects().add_borrow(notice, context))), Code::unavailable);
  client->drop_reference(object);
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
    protocol::ResolveObjects request{{object.id}, reader};
    const auto values = await(transport::call<protocol::ObjectValues>(
                                  borrower.peers.at(0), Method::resolve_objects, request, 5s))
                            .value();
    const protocol::ObjectValue& value = values.items.at(0);
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
        Method::release_blocks,
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

TEST_F(ObjectTest, AnExplicitFreeTakesTheCopiesAlong) {
  start_client();
  std::vector<ProcessId> told;
  std::vector<FakeProcess*> nodes;
  for (int i = 0; i < 2; ++i) {
    nodes.push_back(&add_process());
    nodes.back()->on_message(
        Method::release_blocks,
        [&told, node = nodes.back()](Message, CallContext) -> Async<Result<Message>> {
          told.push_back(node->address.process);
          return empty_reply();
        });
    connect_back(*nodes.back());
  }
  const auto stored = client->objects().make();
  const ObjectName object = client->objects().publish(stored);
  client->objects().set_stored(stored, nodes[0]->address, 1000);
  protocol::ObjectCopied notice{object.id, nodes[1]->address, false};
  const auto copied = [&] {
    return code_of(
        await(transport::call<Empty>(nodes[1]->peers.at(0), Method::object_copied, notice, 5s)));
  };
  EXPECT_EQ(copied(), Code::ok);
  client->objects().discard(stored);
  simulation.run_for(100ms);
  std::vector<ProcessId> expected{nodes[0]->address.process, nodes[1]->address.process};
  std::ranges::sort(expected);
  std::ranges::sort(told);
  EXPECT_EQ(told, expected);
  // One that arrives later is not wanted, though there is a ref.
  EXPECT_EQ(copied(), Code::not_found);
  told.clear();
  client->drop_reference(object);
  simulation.run_for(100ms);
  EXPECT_TRUE(told.empty());
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

TEST_F(ObjectTest, OwnerHearsOfManyRefsInOneMessage) {
  start_client();
  FakeProcess& owner = add_process();
  connect_back(owner);
  std::vector<ObjectName> objects;
  for (int i = 0; i < 1000; ++i) objects.push_back(object_of(owner));
  client->objects().hold(objects);
  EXPECT_FALSE(client->objects().borrows().settled());
  auto settle = [](Client& of) -> Async<Result<Empty>> {
    co_await of.objects().borrows().settle();
    co_return Empty{};
  };
  ASSERT_TRUE(await(settle(*client)));
  EXPECT_TRUE(client->objects().borrows().settled());
  EXPECT_EQ(borrowed.size(), 1000u);
  EXPECT_EQ(notices, 1);
}

TEST_F(ObjectTest, OwnerHearsNothingOfARefThatIsTakenAgainAtOnce) {
  start_client();
  FakeProcess& owner = add_process();
  connect_back(owner);
  const ObjectName object = object_of(owner);
  client->add_reference(object);
  for (int i = 0; i < 20; ++i) {
    simulation.run_for(5ms);
    client->drop_reference(object);
    client->add_reference(object);
  }
  simulation.run_for(100ms);
  EXPECT_EQ(borrowed, std::vector<ObjectId>{object.id});
  EXPECT_TRUE(let_go.empty());
}

TEST_F(ObjectTest, ProducerHearsOfManyResultsThatGoInOneMessage) {
  start_client();
  FakeProcess& producer = add_actor();
  connect_back(producer);
  producer.on_message(Method::invoke, [](Message message, CallContext) -> Async<Result<Message>> {
    const auto call = protocol::decode<protocol::Invoke>(message.body);
    protocol::InvokeReply reply;
    reply.borrowed.push_back(call.value().result);  // It holds refs inside.
    Message answer{protocol::encode(reply), {}};
    co_return answer;
  });
  std::vector<ObjectName> results;
  for (int i = 0; i < 100; ++i) results.push_back(client->submit_call(call_of("x")));
  for (const ObjectName& result : results) ASSERT_TRUE(get(result));
  EXPECT_TRUE(let_go.empty());
  for (const ObjectName& result : results) client->drop_reference(result);
  simulation.run_for(1s);
  EXPECT_EQ(let_go.size(), 100u);
  EXPECT_LE(let_go_notices, 2);
}

TEST_F(ObjectTest, AProcessIsNeededWhileOthersHaveRefsToWhatItOwns) {
  start_client();
  FakeProcess& borrower = add_process();
  connect_back(borrower);
  const ObjectName object = put("value");
  EXPECT_FALSE(client->objects().is_needed()) << "its own refs do not count";
  ASSERT_TRUE(tell(borrower, Method::add_borrow, object.id));
  EXPECT_TRUE(client->objects().is_needed());
  ASSERT_TRUE(tell(borrower, Method::remove_borrow, object.id));
  EXPECT_FALSE(client->objects().is_needed());
}

TEST_F(ObjectTest, RefsHeldForAResultAreToldToItsOwnerAlone) {
  start_client();
  FakeProcess& owner = add_process();
  FakeProcess& other = add_process();
  connect_back(owner);
  connect_back(other);
  const ObjectName inside = put("value");
  const ObjectId result = ObjectId::random(simulation.random());
  client->objects().hold_for_result(result, owner.address.process, {inside});
  EXPECT_TRUE(client->objects().is_needed());
  const auto ask = [&](FakeProcess& process) {
    const protocol::ObjectIds asked{{result, ObjectId::random(simulation.random())}};
    return await(
        transport::call<protocol::HeldRefs>(process.peers.at(0), Method::list_held, asked, 5s));
  };
  EXPECT_TRUE(ask(other).value().items.empty());
  const auto refs = ask(owner).value();
  ASSERT_EQ(refs.items.size(), 1u);
  EXPECT_EQ(refs.items[0].result, result);
  EXPECT_EQ(refs.items[0].object, inside.id);
  EXPECT_EQ(refs.items[0].owner.process, client->address().process);
  ASSERT_TRUE(tell(owner, Method::remove_borrow, result));
  EXPECT_FALSE(client->objects().is_needed());
}

TEST_F(ObjectTest, BorrowsSettleThoughTheirOwnerIsGone) {
  start_client();
  FakeProcess& owner = add_process();
  owner.die();
  client->add_reference(object_of(owner));
  EXPECT_FALSE(client->objects().borrows().settled());
  simulation.run_for(1min);
  EXPECT_TRUE(client->objects().borrows().settled());
}

TEST_F(ObjectTest, ManyObjectsOfAnOwnerAreAskedForTogether) {
  start_client();
  FakeProcess& owner = add_process();
  connect_back(owner);
  std::vector<ObjectName> objects;
  for (int i = 0; i < 5; ++i) objects.push_back(object_of(owner));
  objects.insert(objects.begin() + 2, put("ours"));
  auto get_many = [](Client& of, std::vector<ObjectName> names,
                     Instant deadline) -> Async<Result<std::vector<Result<ObjectBytes>>>> {
    co_return co_await of.objects().get_many(std::move(names), deadline);
  };
  const auto values = await(get_many(*client, objects, in(5s))).value();
  ASSERT_EQ(values.size(), 6u);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(as_text(values[i].value().bytes), i == 2 ? "ours" : "theirs");
  }
  EXPECT_EQ(questions, (std::vector<size_t>{5, 3, 1}));
  // The first that failed says why; what is behind it is not fetched.
  failed = objects[4].id;
  const auto again = await(get_many(*client, objects, in(5s))).value();
  EXPECT_TRUE(again[3]);
  EXPECT_EQ(code_of(again[4]), Code::conflict);
  EXPECT_EQ(code_of(again[5]), Code::cancelled);
}

TEST_F(ObjectTest, OwnersSayWhichOfTheirObjectsAreReady) {
  start_client();
  FakeProcess& owner = add_process();
  connect_back(owner);
  FakeProcess& dead = add_process();
  dead.die();
  struct Noted : ReadyHook {
    void ready(uint32_t index) override { indexes.push_back(index); }
    std::vector<uint32_t> indexes;
  };
  const std::vector<ObjectName> objects{object_of(owner), object_of(owner), object_of(dead)};
  failed = objects[0].id;
  const auto noted = std::make_shared<Noted>();
  const auto enough = std::make_shared<Event>(simulation.executor());
  client->objects().watch(objects, {10, 11, 12}, noted, enough);
  simulation.run_for(1min);
  std::ranges::sort(noted->indexes);
  // Reading the object whose owner is gone says so.
  EXPECT_EQ(noted->indexes, (std::vector<uint32_t>{11, 12}));
  EXPECT_EQ(waits_ended, 0);
  enough->set();
  simulation.run_for(1s);
  EXPECT_EQ(waits_ended, 1);
  EXPECT_EQ(noted->indexes.size(), 2u);
}

TEST_F(ObjectTest, FreedObjectIsNotFoundThoughThereAreRefs) {
  start_client();
  FakeProcess& owner = add_process();
  connect_back(owner);
  const ObjectName ours = put("value");
  const ObjectName theirs = object_of(owner);
  std::vector<ObjectName> both{ours, theirs};
  auto free = [](Client& of, std::vector<ObjectName> names) -> Async<Result<Empty>> {
    TROUPE_CO_CHECK(co_await of.objects().free(std::move(names)));
    co_return Empty{};
  };
  ASSERT_TRUE(await(free(*client, both)));
  const auto gone = get(ours);
  EXPECT_EQ(code_of(gone), Code::not_found);
  EXPECT_NE(gone.error().message().find("explicit free"), std::string::npos);
  EXPECT_EQ(freed, std::vector<ObjectId>{theirs.id});
  // One that is not there yet: who waits for it hears at once.
  const ObjectName pending = client->submit_task(task_of("hello"));
  const auto waits = begin(client->get(pending, 1min));
  simulation.run_for(10ms);
  ASSERT_TRUE(await(free(*client, {pending})));
  simulation.run_for(10ms);
  ASSERT_TRUE(waits->has_value());
  EXPECT_EQ(code_of(**waits), Code::not_found);
  owner.die();
  EXPECT_EQ(code_of(await(free(*client, {theirs}))), Code::data_loss);
}

TEST_F(ObjectTest, ObjectSaysWhenItIsFreed) {
  start_client();
  int called = 0;
  auto object = client->objects().make();
  client->objects().set_value(object, to_bytes("value"));
  object->on_freed([&called] { ++called; });
  const std::weak_ptr<Object> left = object;
  {
    const ObjectName name = client->objects().publish(object);
    FakeProcess& borrower = add_process();
    connect_back(borrower);
    ASSERT_TRUE(tell(borrower, Method::add_borrow, name.id));
    client->objects().drop_reference(object);
    simulation.run_for(1s);
    ASSERT_TRUE(tell(borrower, Method::remove_borrow, name.id));
    EXPECT_EQ(code_of(get(name)), Code::not_found);
  }
  EXPECT_EQ(called, 0);  // This test still has it.
  object.reset();
  EXPECT_TRUE(left.expired());
  EXPECT_EQ(called, 1);
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
