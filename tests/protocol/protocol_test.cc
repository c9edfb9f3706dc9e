#include <capnp/any.h>
#include <capnp/message.h>
#include <capnp/serialize.h>
#include <gtest/gtest.h>

#include "base/random.h"
#include "protocol/codec.h"
#include "protocol/frame.h"
#include "troupe.capnp.h"

namespace troupe::protocol {
namespace {

ActorRecord sample_record() {
  SeededRandom random{11};
  ActorRecord record;
  record.spec.actor = ActorId::random(random);
  record.spec.name = "counter";
  record.spec.module = "libcounter_module.so";
  record.spec.max_restarts = -1;
  record.spec.detached = true;
  record.spec.demand = {{"cpu", 1500}, {"gpu", 500}};
  record.spec.arguments = {{to_bytes("abc"), {}, {}}, {{}, ObjectId::random(random), {}}};
  record.spec.arguments[1].owner.port = 4321;
  record.info.actor = record.spec.actor;
  record.info.incarnation = 3;
  record.info.address.host = "127.0.0.1";
  return record;
}

TEST(Codec, NestedMessageRoundTrips) {
  const ActorRecord record = sample_record();
  const auto copy = decode<ActorRecord>(encode(record)).value();
  EXPECT_EQ(copy.spec.actor, record.spec.actor);
  EXPECT_EQ(copy.spec.name, "counter");
  EXPECT_EQ(copy.spec.max_restarts, -1);
  EXPECT_TRUE(copy.spec.detached);
  ASSERT_EQ(copy.spec.demand.size(), 2u);
  EXPECT_EQ(copy.spec.demand[1].milli, 500);
  ASSERT_EQ(copy.spec.arguments.size(), 2u);
  EXPECT_EQ(as_text(copy.spec.arguments[0].inline_value), "abc");
  EXPECT_EQ(copy.spec.arguments[1].object, record.spec.arguments[1].object);
  EXPECT_EQ(copy.spec.arguments[1].owner.port, 4321);
  EXPECT_EQ(copy.info.incarnation, 3u);
  EXPECT_EQ(encode(copy), encode(record));
}

TEST(Codec, AnActorThatAnOlderVersionWroteHasNoCheckpoint) {
  ActorInfo info;
  info.name = "counter";
  info.checkpoint.number = 3;
  info.checkpoint.hash = "abc";
  Bytes bytes = encode(info);
  EXPECT_EQ(decode<ActorInfo>(bytes).value().checkpoint.hash, "abc");
  // The root's pointers, behind the table of segments: its last field did not exist.
  constexpr size_t pointer_count_at = 8 + 6;
  --bytes[pointer_count_at];
  const auto older = decode<ActorInfo>(bytes).value();
  EXPECT_EQ(older.name, "counter");
  EXPECT_EQ(older.checkpoint.number, 0u);
  EXPECT_TRUE(older.checkpoint.hash.empty());
}

TEST(Codec, ListsOfIdsAndNumbersRoundTrip) {
  SeededRandom random{12};
  ReturnLease lease{LeaseId::random(random),
                    {ProcessId::random(random), ProcessId::random(random)}};
  EXPECT_EQ(decode<ReturnLease>(encode(lease)).value().processes, lease.processes);
  StartSlots slots;
  slots.devices = {1, 7};
  EXPECT_EQ(decode<StartSlots>(encode(slots)).value().devices, slots.devices);
}

Bytes bytes_of(capnp::MessageBuilder& message) {
  const kj::Array<capnp::word> words = capnp::messageToFlatArray(message);
  const auto bytes = words.asBytes();
  return {bytes.begin(), bytes.end()};
}

// What the schema's own classes write and read.
TEST(Codec, SpeaksAsTheSchemaDoes) {
  capnp::MallocMessageBuilder message;
  auto spec = message.initRoot<schema::ActorSpec>();
  spec.setName("theirs");
  spec.setMaxRestarts(-3);
  spec.setDetached(true);
  spec.setShared(true);
  spec.setSignature(1ull << 63);
  auto demand = spec.initDemand(2);
  demand[1].setName("gpu");
  demand[1].setMilli(-7);
  auto placement = spec.initPlacement();
  placement.setBundle(9);
  placement.initSelectors(1)[0].initValues(2).set(1, "zone");
  const auto read = decode<ActorSpec>(bytes_of(message)).value();
  EXPECT_EQ(read.name, "theirs");
  EXPECT_EQ(read.max_restarts, -3);
  EXPECT_TRUE(read.detached);
  EXPECT_FALSE(read.get_if_exists);
  EXPECT_TRUE(read.shared);
  EXPECT_EQ(read.signature, 1ull << 63);
  EXPECT_EQ(read.demand.at(1).milli, -7);
  EXPECT_EQ(read.placement.bundle, 9u);
  EXPECT_EQ(read.placement.selectors.at(0).values.at(1), "zone");

  const Bytes written = encode(read);
  kj::ArrayInputStream in{kj::arrayPtr(written.data(), written.size())};
  capnp::InputStreamMessageReader reader{in};
  const auto again = reader.getRoot<schema::ActorSpec>();
  EXPECT_STREQ(again.getName().cStr(), "theirs");
  EXPECT_EQ(again.getMaxRestarts(), -3);
  EXPECT_TRUE(again.getDetached());
  EXPECT_EQ(again.getDemand()[1].getMilli(), -7);
  EXPECT_STREQ(again.getPlacement().getSelectors()[0].getValues()[1].cStr(), "zone");
  EXPECT_FALSE(again.hasArguments());
}

// A peer of an older version: its struct ends before the fields that came later.
TEST(Codec, FieldsThatAnOlderPeerDoesNotKnowKeepTheirDefaults) {
  capnp::MallocMessageBuilder message;
  auto older = message.initRoot<schema::ErrorInfo>();
  older.setCode(5);
  older.setMessage("old");
  const auto read = decode<ActorSpec>(bytes_of(message));
  ASSERT_TRUE(read);
  EXPECT_EQ(read->mailbox_calls_max, 0u);
  EXPECT_TRUE(read->groups.empty());
  EXPECT_FALSE(read->shared);
}

TEST(Codec, AListOfAnotherKindIsRefused) {
  capnp::MallocMessageBuilder message;
  auto root = message.getRoot<capnp::AnyPointer>().initAsAnyStruct(0, 1);
  root.getPointerSection()[0].initAs<capnp::List<capnp::Void>>(1 << 28);
  EXPECT_EQ(decode<ActorSpecs>(bytes_of(message)).error().code(), Code::invalid);
}

TEST(Codec, MisalignedBytesAreReadAlike) {
  Bytes bytes = encode(sample_record());
  bytes.insert(bytes.begin(), 0);
  const auto read = decode<ActorRecord>(BytesView{bytes}.subspan(1));
  EXPECT_EQ(read.value().spec.name, "counter");
}

TEST(Codec, TruncatedAndDamagedBytesAreRefusedOrDecodedWithinBounds) {
  const Bytes whole = encode(sample_record());
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_FALSE(decode<ActorRecord>(BytesView(whole).first(length))) << length;
  }
  SeededRandom random{13};
  for (int round = 0; round < 5000; ++round) {
    Bytes damaged = whole;
    for (int flips = 0; flips < 3; ++flips) {
      damaged[random.below(damaged.size())] ^= static_cast<uint8_t>(1u << random.below(8));
    }
    (void)decode<ActorRecord>(damaged);  // Under ASan: no read outside, no crash.
  }
}

TEST(Frame, HeaderRoundTripsWithItsError) {
  FrameHeader header;
  header.kind = FrameKind::reply;
  header.call = 77;
  header.error = to_info(
      error(Code::exhausted, "mailbox full").at("actor x").after(std::chrono::milliseconds(20)));
  const auto copy = decode_header(encode_header(header)).value();
  EXPECT_EQ(copy.kind, FrameKind::reply);
  EXPECT_EQ(copy.call, 77u);
  const Error e = from_info(copy.error);
  EXPECT_EQ(e.to_string(), "exhausted: mailbox full (at actor x)");
  EXPECT_EQ(e.retry_after(), std::chrono::milliseconds(20));
}

TEST(Frame, GarbageIsRefused) {
  EXPECT_FALSE(decode_header(as_bytes("not a frame at all..........")));
  EXPECT_FALSE(decode_header({}));
}

}  // namespace
}  // namespace troupe::protocol
