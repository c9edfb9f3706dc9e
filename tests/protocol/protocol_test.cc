#include <gtest/gtest.h>

#include "base/random.h"
#include "protocol/codec.h"
#include "protocol/frame.h"

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

TEST(Codec, ListsOfIdsAndNumbersRoundTrip) {
  SeededRandom random{12};
  ReturnLease lease{LeaseId::random(random),
                    {ProcessId::random(random), ProcessId::random(random)}};
  EXPECT_EQ(decode<ReturnLease>(encode(lease)).value().processes, lease.processes);
  StartSlots slots;
  slots.devices = {1, 7};
  EXPECT_EQ(decode<StartSlots>(encode(slots)).value().devices, slots.devices);
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
