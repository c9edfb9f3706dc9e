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

// What a module was told, in order.
struct Told {
  static void run(void* argument, uint32_t why) {
    static_cast<Told*>(argument)->all.push_back(why);
  }
  std::vector<uint32_t> all;
};

TEST(Call, TellsItsModuleToEndAndLastThatItIsFinished) {
  Outcomes outcomes;
  Told told;
  const auto call = std::make_shared<Call>(CallRequest{}, RingOrigin{&outcomes, nullptr, 0, {}});
  call->on_stop(std::make_shared<const StopHook>(&Told::run, &told));
  EXPECT_FALSE(call->should_stop());
  call->overrun();
  EXPECT_TRUE(call->should_stop());
  EXPECT_FALSE(call->is_cancelled());
  call->cancel();
  call->cancel();  // No news.
  EXPECT_TRUE(call->finish_value({}));
  call->cancel();  // Too late.
  EXPECT_EQ(told.all, (std::vector<uint32_t>{TROUPE_STOP_TIME_LIMIT,
                                             TROUPE_STOP_CANCELLED | TROUPE_STOP_CHILDREN, 0}));
}

TEST(Call, TellsAModuleThatAsksLateAtOnce) {
  Outcomes outcomes;
  Told told;
  const auto call = std::make_shared<Call>(CallRequest{}, RingOrigin{&outcomes, nullptr, 0, {}});
  call->cancel(protocol::cancel_spares_children);
  call->on_stop(std::make_shared<const StopHook>(&Told::run, &told));
  EXPECT_EQ(told.all, std::vector<uint32_t>{TROUPE_STOP_CANCELLED});
  EXPECT_TRUE(call->finish(error(Code::cancelled, "told to")));
  call->on_stop(std::make_shared<const StopHook>(&Told::run, &told));
  EXPECT_EQ(told.all, (std::vector<uint32_t>{TROUPE_STOP_CANCELLED, 0, 0}));
}

}  // namespace
}  // namespace troupe::actor
