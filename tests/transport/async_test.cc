#include "transport/async.h"

#include <gtest/gtest.h>

#include "transport/real_environment.h"

namespace troupe {
namespace {

using namespace std::chrono_literals;

struct Loop {
  transport::RealEnvironment real;
  Scope scope{real.io().get_executor()};
  TimerClock& clock = real.environment().clock;
  // Until every coroutine has ended.
  void run() {
    real.io().restart();
    real.io().run();
  }
  // Until nothing more can happen at this instant.
  void poll() {
    real.io().restart();
    real.io().poll();
  }
};

Async<void> wait_and_count(Event& event, int& count) {
  co_await event.wait();
  ++count;
}

TEST(Event, SetWakesAllAndLaterWaitersReturnAtOnce) {
  Loop loop;
  Event event{loop.real.io().get_executor()};
  int count = 0;
  for (int i = 0; i < 3; ++i) spawn(loop.scope, wait_and_count(event, count));
  loop.poll();
  EXPECT_EQ(count, 0);
  event.set();
  spawn(loop.scope, wait_and_count(event, count));
  loop.run();
  EXPECT_EQ(count, 4);
}

Async<void> wait_for_either(TimerClock& clock, Event& event, bool& called, bool& woken) {
  called = true;
  woken = co_await wait_until(clock, clock.now() + 10s, event);
}

TEST(Event, APulseBetweenTheCallAndTheFirstTurnOfAWaitIsNotLost) {
  Loop loop;
  Event event{loop.real.io().get_executor()};
  bool called = false;
  bool woken = false;
  spawn(loop.scope, wait_for_either(loop.clock, event, called, woken));
  // The waiter has called wait_until, but its race begins only on a later turn.
  while (!called) loop.real.io().poll_one();
  event.pulse();
  const Instant begun = loop.clock.now();
  loop.run();
  EXPECT_TRUE(woken);
  EXPECT_LT(loop.clock.now() - begun, 5s);
}

struct Unwound {
  bool& flag;
  ~Unwound() { flag = true; }
};

Async<void> wait_for_ever(Event& event, bool& unwound) {
  Unwound mark{unwound};
  co_await event.wait();
}

Async<void> stop(Scope& scope, bool& stopped) {
  co_await scope.stop();
  stopped = true;
}

TEST(Scope, StopUnwindsAndJoins) {
  Loop loop;
  Event never{loop.real.io().get_executor()};
  bool unwound = false;
  bool stopped = false;
  Scope other{loop.real.io().get_executor()};
  spawn(other, wait_for_ever(never, unwound));
  spawn(loop.scope, stop(other, stopped));
  loop.run();
  EXPECT_TRUE(unwound);
  EXPECT_TRUE(stopped);
  EXPECT_EQ(other.size(), 0u);
}

Async<void> cancel_own_scope(Scope& scope, bool& ended) {
  scope.cancel();
  ended = true;
  co_return;  // Without ever having been suspended.
}

TEST(Scope, ACoroutineThatCancelsItsScopeInItsFirstRunIsNotLost) {
  Loop loop;
  bool ended = false;
  spawn(loop.scope, cancel_own_scope(loop.scope, ended));
  loop.run();
  EXPECT_TRUE(ended);
  EXPECT_EQ(loop.scope.size(), 0u);
}

Async<Result<int>> slow_answer(TimerClock& clock, Duration delay, bool& unwound) {
  Unwound mark{unwound};
  co_await sleep_for(clock, delay);
  co_return 7;
}

Async<void> race(TimerClock& clock, Duration delay, Duration budget, bool& unwound,
                 std::optional<Result<int>>& out) {
  out = co_await with_deadline(clock, clock.now() + budget, slow_answer(clock, delay, unwound));
}

TEST(WithDeadline, GivesTheAnswerOrUnwindsTheOperation) {
  Loop loop;
  bool unwound = false;
  std::optional<Result<int>> fast;
  spawn(loop.scope, race(loop.clock, 1ms, 10s, unwound, fast));
  loop.run();
  EXPECT_EQ(fast->value(), 7);
  unwound = false;
  std::optional<Result<int>> late;
  spawn(loop.scope, race(loop.clock, 1h, 1ms, unwound, late));
  loop.run();
  EXPECT_EQ(late->error().code(), Code::deadline_exceeded);
  EXPECT_TRUE(unwound);
}

Async<void> note_winner(Event& first, Event& second, std::vector<int>& winners) {
  const bool was_first = co_await wait_either(first, second);
  winners.push_back(was_first ? 1 : 2);
}

TEST(WaitEither, SaysWhichCameFirstAndLeavesTheOther) {
  Loop loop;
  std::vector<int> winners;
  {
    Event first{loop.real.io().get_executor()};
    Event second{loop.real.io().get_executor()};
    spawn(loop.scope, note_winner(first, second, winners));
    loop.poll();
    second.pulse();
    first.pulse();
    loop.run();
    spawn(loop.scope, note_winner(first, second, winners));
    loop.poll();
    first.set();
    second.set();
    loop.run();
    spawn(loop.scope, note_winner(first, second, winners));
    loop.run();
    // The events' destructors find nobody waiting.
  }
  EXPECT_EQ(winners, (std::vector<int>{2, 1, 1}));
}

Async<void> wait_for_both(Event& first, Event& second, bool& unwound) {
  Unwound mark{unwound};
  (void)co_await wait_either(first, second);
  ADD_FAILURE() << "it went on";
}

TEST(WaitEither, UnwindsWhenItIsCancelled) {
  Loop loop;
  Event first{loop.real.io().get_executor()};
  Event second{loop.real.io().get_executor()};
  bool unwound = false;
  spawn(loop.scope, wait_for_both(first, second, unwound));
  loop.poll();
  loop.scope.cancel();
  loop.run();
  EXPECT_TRUE(unwound);
}

Async<void> wait_a_while(TimerClock& clock, Event& event, Duration budget, int& outcome) {
  outcome = co_await wait_until(clock, clock.now() + budget, event) ? 1 : 0;
}

TEST(WaitUntil, GivesUpAtTheDeadlineAndLeavesTheEvent) {
  Loop loop;
  int late = -1;
  int woken = -1;
  {
    Event event{loop.real.io().get_executor()};
    spawn(loop.scope, wait_a_while(loop.clock, event, 1ms, late));
    loop.run();
    spawn(loop.scope, wait_a_while(loop.clock, event, 1h, woken));
    loop.poll();
    event.pulse();
    loop.run();
  }
  EXPECT_EQ(late, 0);
  EXPECT_EQ(woken, 1);
}

TEST(TimerClock, RunsInOrderAndNotAfterCancel) {
  Loop loop;
  std::vector<int> order;
  const Instant now = loop.clock.now();
  loop.clock.call_at(now + 3ms, [&] { order.push_back(3); });
  loop.clock.call_at(now + 1ms, [&] { order.push_back(1); });
  const auto cancelled = loop.clock.call_at(now + 2ms, [&] { order.push_back(2); });
  loop.clock.cancel(cancelled);
  loop.run();
  EXPECT_EQ(order, (std::vector<int>{1, 3}));
}

}  // namespace
}  // namespace troupe
