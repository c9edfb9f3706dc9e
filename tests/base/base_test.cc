#include <gtest/gtest.h>

#include "base/clock.h"
#include "base/ids.h"
#include "base/log.h"
#include "base/random.h"
#include "base/service_time.h"
#include "base/status.h"

namespace troupe {
namespace {

Result<int> half(int n) {
  if (n % 2 != 0) return error(Code::invalid, "odd");
  return n / 2;
}

Result<int> quarter(int n) {
  TROUPE_TRY(const int h, half(n));
  TROUPE_TRY(const int q, half(h));
  return q;
}

Status check(int n) {
  TROUPE_CHECK(quarter(n));
  return ok();
}

TEST(Result, TryPassesTheValueOnAndTheErrorOut) {
  EXPECT_EQ(quarter(8).value(), 2);
  EXPECT_EQ(quarter(6).error().code(), Code::invalid);
  EXPECT_TRUE(check(4));
  EXPECT_FALSE(check(2));
}

TEST(Result, ValueThrowsTheError) {
  try {
    (void)half(3).value();
    FAIL() << "must throw";
  } catch (const Error& caught) {
    EXPECT_EQ(caught.code(), Code::invalid);
    EXPECT_STREQ(caught.what(), "odd");
  }
}

TEST(Error, NamesCodeMessageAndPlace) {
  const Error e = error(Code::not_found, "no actor").at("node a").context("call");
  EXPECT_EQ(e.to_string(), "not_found: call: no actor (at node a)");
  EXPECT_FALSE(e.retriable());
  EXPECT_TRUE(error(Code::exhausted, "full").retriable());
}

TEST(Error, UnknownNumberBecomesInternal) {
  EXPECT_EQ(code_from_number(200), Code::internal);
  for (uint32_t i = 0; i <= 12; ++i) EXPECT_EQ(static_cast<uint32_t>(code_from_number(i)), i);
}

TEST(Id, RoundTripsThroughTextAndBytes) {
  SeededRandom random{7};
  for (int i = 0; i < 100; ++i) {
    const auto id = ActorId::random(random);
    EXPECT_EQ(ActorId::parse(id.to_string()).value(), id);
    uint8_t bytes[16];
    id.to_bytes(bytes);
    EXPECT_EQ(ActorId::from_bytes(bytes), id);
  }
  EXPECT_FALSE(ActorId::parse("xyz"));
  EXPECT_FALSE(ActorId::parse(std::string(32, 'g')));
  EXPECT_TRUE(ActorId::from_bytes(as_bytes("short")).is_nil());
}

TEST(Random, SameSeedSameNumbersAndBelowStaysBelow) {
  SeededRandom a{42};
  SeededRandom b{42};
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(a.next(), b.next());
  for (uint64_t bound : {1u, 2u, 3u, 1000u}) {
    for (int i = 0; i < 1000; ++i) EXPECT_LT(a.below(bound), bound);
  }
}

TEST(ServiceTime, WorkIsLateWhenWhatIsLeftIsLessThanItMostLikelyTakes) {
  using std::chrono::milliseconds;
  ServiceTime time;
  for (int i = 0; i < 7; ++i) time.note(milliseconds(10));
  EXPECT_FALSE(time.is_late(milliseconds(99), milliseconds(1)));  // Too little was seen.
  for (int i = 0; i < 50; ++i) time.note(milliseconds(10));
  EXPECT_TRUE(time.is_late(milliseconds(95), milliseconds(5)));
  EXPECT_FALSE(time.is_late(milliseconds(85), milliseconds(15)));
  // Not what came late already, or has a short time.
  EXPECT_FALSE(time.is_late(milliseconds(1), milliseconds(5)));
  // The less even, the more has to be left.
  for (int i = 0; i < 50; ++i) time.note(milliseconds(i % 2 == 0 ? 5 : 15));
  EXPECT_TRUE(time.is_late(milliseconds(980), milliseconds(20)));
  EXPECT_FALSE(time.is_late(milliseconds(960), milliseconds(40)));
}

}  // namespace
}  // namespace troupe
