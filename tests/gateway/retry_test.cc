#include "gateway_fixture.h"

namespace troupe::gateway {
namespace {

// RetryingGeneration over the scripted backend, in the test's own loop.
class RetryTest : public testing::Test {
 protected:
  Async<void> read_all(RetryOptions options, bool commit) {
    GenerateRequest request{"m", "{}", 10s};
    RetryingGeneration generation{backend, real.environment().clock, options, std::move(request)};
    for (;;) {
      auto chunk = co_await generation.next();
      retries = generation.retries();
      restarted = generation.restarted() || restarted;
      if (!chunk) failure = std::move(chunk).error();
      if (failure || !chunk->has_value()) co_return;
      text += (*chunk)->text;
      if (commit) generation.commit();
    }
  }
  void run(RetryOptions options = {}, bool commit = false) {
    spawn(scope, read_all(options, commit));
    real.io().run();
  }

  transport::RealEnvironment real;
  Scope scope{real.io().get_executor()};
  FakeBackend backend{real.environment()};
  std::string text;
  std::optional<Error> failure;
  uint32_t retries = 0;
  bool restarted = false;
};

const Script lost{{}, Error{Code::unavailable, "lost"}, false};

TEST_F(RetryTest, LeavesOutTheReplicaThatFailed) {
  backend.scripts = {lost};
  run();
  EXPECT_EQ(text, "Hello");
  EXPECT_EQ(retries, 1U);
  EXPECT_THAT(backend.excluded_seen.back(), testing::ElementsAre("a"));
}

TEST_F(RetryTest, WaitsForAReplicaToComeBack) {
  backend.alive = false;
  backend.came_back = true;
  backend.on_wait = [this] { backend.alive = backend.waits == 3; };
  run();
  EXPECT_EQ(text, "Hello");
  EXPECT_EQ(backend.waits, 3);
}

TEST_F(RetryTest, GivesUpWaitingAtItsBound) {
  backend.alive = false;
  run({.replica_wait = 3ms});
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code(), Code::unavailable);
}

TEST_F(RetryTest, BoundsItsAttempts) {
  backend.scripts = std::deque<Script>(20, lost);
  backend.came_back = false;
  backend.replicas.clear();
  for (char name = 'a'; name < 'z'; ++name) backend.replicas.emplace_back(1, name);
  run({.attempts_max = 5});
  ASSERT_TRUE(failure);
  EXPECT_EQ(backend.arguments.size(), 5U);
}

TEST_F(RetryTest, DoesNotRepeatWhatWasPassedOn) {
  backend.scripts = {{{piece("Hel", 1)}, error(Code::outcome_unknown, "lost"), false}};
  run({}, true);
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code(), Code::outcome_unknown);
  EXPECT_EQ(backend.arguments.size(), 1U);
}

TEST_F(RetryTest, TellsThatItBeganAnew) {
  backend.scripts = {{{piece("Hel", 1)}, error(Code::unavailable, "lost"), false}};
  run();
  EXPECT_TRUE(restarted);
  EXPECT_EQ(text, "HelHello");
}

TEST_F(RetryTest, DoesNotRetryABadRequest) {
  backend.scripts = {{{}, error(Code::invalid, "too long"), false}};
  run();
  EXPECT_EQ(failure->code(), Code::invalid);
  EXPECT_EQ(backend.arguments.size(), 1U);
}

TEST_F(RetryTest, OffersItToAnotherWhenOneIsFull) {
  backend.scripts = {{{}, error(Code::exhausted, "full"), false}};
  run();
  EXPECT_EQ(text, "Hello");
}

TEST_F(RetryTest, PassesBackPressureOnWithoutWaitingWhenAllAreFull) {
  const Script full{{}, error(Code::exhausted, "full"), false};
  backend.scripts = {full, full};
  run();
  ASSERT_TRUE(failure);
  EXPECT_EQ(failure->code(), Code::exhausted);
  EXPECT_EQ(backend.waits, 0);
}

}  // namespace
}  // namespace troupe::gateway
