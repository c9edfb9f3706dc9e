#include "transport/semaphore.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "transport/real_environment.h"

namespace troupe {
namespace {

using testing::ElementsAre;

class SemaphoreTest : public testing::Test {
 protected:
  // Holds a permit until `end` is set.
  Async<void> hold(int number) {
    const auto permit = co_await semaphore.acquire();
    holders.push_back(number);
    co_await ends[static_cast<size_t>(number)].wait();
  }
  Executor executor() { return real.io().get_executor(); }
  void poll() {
    real.io().restart();
    real.io().poll();
  }

  transport::RealEnvironment real;
  Semaphore semaphore{real.io().get_executor(), 2};
  Event ends[5] = {Event{executor()}, Event{executor()}, Event{executor()}, Event{executor()},
                   Event{executor()}};
  std::vector<int> holders;
  Scope scope{real.io().get_executor()};
};

TEST_F(SemaphoreTest, GivesItsPermitsInTheOrderOfWhoAsks) {
  for (int i = 0; i < 5; ++i) spawn(scope, hold(i));
  poll();
  EXPECT_THAT(holders, ElementsAre(0, 1));
  ends[1].set();
  poll();
  EXPECT_THAT(holders, ElementsAre(0, 1, 2));
  for (Event& end : ends) end.set();
  poll();
  EXPECT_THAT(holders, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_EQ(scope.size(), 0U);
}

TEST_F(SemaphoreTest, WhoIsUnwoundTakesNone) {
  Scope others{real.io().get_executor()};
  for (int i = 0; i < 2; ++i) spawn(scope, hold(i));
  poll();
  for (int i = 2; i < 4; ++i) spawn(others, hold(i));
  poll();
  spawn(scope, hold(4));
  poll();
  // One of those that wait has just been given a permit when all of them are unwound.
  ends[0].set();
  others.cancel();
  poll();
  EXPECT_EQ(others.size(), 0U);
  EXPECT_EQ(holders.back(), 4);
  for (Event& end : ends) end.set();
  poll();
  EXPECT_EQ(scope.size(), 0U);
}

}  // namespace
}  // namespace troupe
