#include "actor/call.h"

#include <gtest/gtest.h>

namespace troupe::actor {
namespace {

// Takes outcomes where a test has no ring.
class Outcomes final : public CallSink {
 public:
  void finished(const std::shared_ptr<Call>&, Result<BytesView> outcome) override {
    ++count;
    last = outcome ? Code::ok : outcome.error().code();
  }
  int count = 0;
  Code last = Code::ok;
};

TEST(Call, OfARingHasOneOutcome) {
  Outcomes outcomes;
  const auto made = std::make_shared<Call>(CallRequest{}, RingOrigin{&outcomes, nullptr, 0, {}});
  EXPECT_FALSE(made->is_finished());
  EXPECT_TRUE(made->finish_value({}));
  EXPECT_FALSE(made->finish_value({}));
  EXPECT_FALSE(made->finish(error(Code::internal, "late")));
  EXPECT_TRUE(made->is_finished());
  EXPECT_EQ(outcomes.count, 1);
  EXPECT_EQ(outcomes.last, Code::ok);
  const auto failed = std::make_shared<Call>(CallRequest{}, RingOrigin{&outcomes, nullptr, 0, {}});
  EXPECT_TRUE(failed->finish(error(Code::conflict, "no")));
  EXPECT_FALSE(failed->finish(Bytes{}));
  EXPECT_EQ(outcomes.count, 2);
  EXPECT_EQ(outcomes.last, Code::conflict);
}

// Whoever withdraws a call and whoever begins it cannot both succeed.
TEST(Call, IsBegunOrWithdrawn) {
  Outcomes outcomes;
  const auto begun = std::make_shared<Call>(CallRequest{}, RingOrigin{&outcomes, nullptr, 0, {}});
  EXPECT_TRUE(begun->begin(Instant{} + std::chrono::seconds(1)));
  EXPECT_FALSE(begun->withdraw());
  EXPECT_EQ(begun->ran_ns(Instant{} + std::chrono::seconds(1) + std::chrono::nanoseconds(7)), 7u);
  const auto withdrawn =
      std::make_shared<Call>(CallRequest{}, RingOrigin{&outcomes, nullptr, 0, {}});
  EXPECT_TRUE(withdrawn->withdraw());
  EXPECT_FALSE(withdrawn->begin(Instant{} + std::chrono::seconds(1)));
  EXPECT_FALSE(withdrawn->finish_value({}));
  EXPECT_EQ(outcomes.count, 0);
}

}  // namespace
}  // namespace troupe::actor
