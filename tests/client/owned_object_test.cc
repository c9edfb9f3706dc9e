// An object that a call in a ring makes.
#include "client/object.h"

#include "tests/transport/two_processes.h"

namespace troupe::client {
namespace {

using namespace transport;

class OwnedObject : public testing::Test {
 protected:
  OwnedObject() {
    callee.on_call = [](const Channel&, uint64_t, BytesView) {};  // It never answers.
    rings = open_rings(*caller.port, 0, *callee.port, 0);
    call = begin_call(rings.left, to_bytes("x"));
  }

  boost::asio::io_context loop;
  Executor executor = loop.get_executor();
  RingProcess caller{executor};
  RingProcess callee{executor};
  RingPair rings;
  CallState call;
  ObjectHome home{executor, {}};
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

}  // namespace
}  // namespace troupe::client
