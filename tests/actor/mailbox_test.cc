#include "actor/mailbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "transport/real_environment.h"

namespace troupe::actor {
namespace {

using namespace std::chrono_literals;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr auto long_enough = 60s;

std::shared_ptr<Call> make_call(std::string method = "call") {
  return std::make_shared<Call>(CallRequest{std::move(method)}, RingOrigin{});
}

// With the parameter the threads that wait read the process's rings, too.
class MailboxTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    const Status enabled = GetParam() ? real_.enable_rings() : ok();
    ASSERT_TRUE(enabled);
  }
  std::unique_ptr<Mailbox> make(size_t calls_max = 100) {
    return make(calls_max, {{[this] { return admits_.load(); }, 0}});
  }
  std::unique_ptr<Mailbox> make(size_t calls_max, std::vector<Mailbox::Lane> lanes) {
    return std::make_unique<Mailbox>(calls_max, real_.environment().rings, std::move(lanes));
  }
  // On a thread that has waited.
  template <class Take>
  auto after_wait(Mailbox& mailbox, Take take) {
    return std::async(std::launch::async, [&mailbox, take] {
      mailbox.wait();
      return take();
    });
  }

  std::atomic<bool> admits_ = true;

 private:
  transport::RealEnvironment real_;
};

TEST_P(MailboxTest, GivesCallsInTheOrderOfTheirArrival) {
  const auto mailbox = make();
  EXPECT_EQ(mailbox->take(), nullptr);
  EXPECT_FALSE(mailbox->take_deferred());
  for (const char* method : {"a", "b", "c"}) EXPECT_TRUE(mailbox->put(make_call(method)));
  std::vector<std::string> seen;
  mailbox->for_each([&](const auto& call) { seen.push_back(call->request().method); });
  EXPECT_THAT(seen, ElementsAre("a", "b", "c"));
  EXPECT_EQ(mailbox->take()->request().method, "a");
  EXPECT_EQ(mailbox->take_any()->request().method, "b");
  EXPECT_EQ(mailbox->take()->request().method, "c");
  EXPECT_EQ(mailbox->take(), nullptr);
}

TEST_P(MailboxTest, RefusesCallsAndNoDeferredWorkWhenItIsFull) {
  const auto mailbox = make(2);
  EXPECT_TRUE(mailbox->put(make_call()));
  EXPECT_TRUE(mailbox->put(make_call()));
  const Status full = mailbox->put(make_call());
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code(), Code::exhausted);
  EXPECT_THAT(full.error().message(), HasSubstr("2 calls wait"));
  EXPECT_TRUE(full.error().retry_after().has_value());
  EXPECT_TRUE(mailbox->defer([] {}));
  EXPECT_FALSE(mailbox->put(make_call()));
  EXPECT_NE(mailbox->take(), nullptr);
  EXPECT_TRUE(mailbox->put(make_call()));
  EXPECT_FALSE(mailbox->put(make_call()));
}

TEST_P(MailboxTest, TakesTheRuntimesOwnCallsThoughItIsFull) {
  const auto mailbox = make(1);
  ASSERT_TRUE(mailbox->put(make_call("first")));
  EXPECT_EQ(mailbox->put(make_call("refused")).error().code(), Code::exhausted);
  EXPECT_TRUE(mailbox->put_beyond_limit(make_call("own"), 0));
  EXPECT_EQ(mailbox->take()->request().method, "first");
  EXPECT_EQ(mailbox->take()->request().method, "own");
  ASSERT_TRUE(mailbox->put(make_call("after")));
  mailbox->close();
  EXPECT_EQ(mailbox->put_beyond_limit(make_call(), 0).error().code(), Code::unavailable);
}

TEST_P(MailboxTest, GivesDeferredWorkInOrderAndApartFromCalls) {
  const auto mailbox = make();
  std::vector<int> ran;
  EXPECT_TRUE(mailbox->put(make_call()));
  EXPECT_TRUE(mailbox->defer([&] { ran.push_back(1); }));
  EXPECT_TRUE(mailbox->defer([&] { ran.push_back(2); }));
  mailbox->wait();
  while (const auto work = mailbox->take_deferred()) work();
  EXPECT_THAT(ran, ElementsAre(1, 2));
  EXPECT_NE(mailbox->take(), nullptr);
}

TEST_P(MailboxTest, KeepsCallsUntilTheyAreAdmitted) {
  const auto mailbox = make();
  admits_ = false;
  EXPECT_TRUE(mailbox->put(make_call("held")));
  EXPECT_EQ(mailbox->take(), nullptr);
  // It would take nothing if wait() returned before.
  auto taken = after_wait(*mailbox, [&] { return mailbox->take(); });
  EXPECT_TRUE(mailbox->put(make_call("behind")));
  admits_ = true;
  mailbox->admit();
  ASSERT_EQ(taken.wait_for(long_enough), std::future_status::ready);
  const auto call = taken.get();
  ASSERT_NE(call, nullptr);
  EXPECT_EQ(call->request().method, "held");
}

// A coroutine goes on by deferred work, and it may be what makes room for the calls.
TEST_P(MailboxTest, GivesDeferredWorkWhileNoCallIsAdmitted) {
  const auto mailbox = make();
  admits_ = false;
  EXPECT_TRUE(mailbox->put(make_call()));
  auto taken = after_wait(*mailbox, [&] { return mailbox->take_deferred(); });
  EXPECT_TRUE(mailbox->defer([this] { admits_ = true; }));
  ASSERT_EQ(taken.wait_for(long_enough), std::future_status::ready);
  const auto work = taken.get();
  ASSERT_TRUE(work);
  EXPECT_EQ(mailbox->take(), nullptr);
  work();
  EXPECT_NE(mailbox->take(), nullptr);
}

TEST_P(MailboxTest, GivesWhatIsInsideToTakeAnyAloneOnceItIsClosed) {
  const auto mailbox = make();
  admits_ = false;
  EXPECT_TRUE(mailbox->put(make_call("a")));
  EXPECT_TRUE(mailbox->put(make_call("b")));
  mailbox->close();
  mailbox->wait();
  EXPECT_EQ(mailbox->put(make_call()).error().code(), Code::unavailable);
  EXPECT_FALSE(mailbox->defer([] {}));
  EXPECT_EQ(mailbox->take(), nullptr);
  EXPECT_EQ(mailbox->take_any()->request().method, "a");
  EXPECT_EQ(mailbox->take_any()->request().method, "b");
  EXPECT_EQ(mailbox->take_any(), nullptr);
}

TEST_P(MailboxTest, GivesCallsOfALaneToItsThreadsAlone) {
  const auto mailbox = make(100, {{{}, 0}, {{}, 1}});
  auto first = std::async(std::launch::async, [&] {
    mailbox->wait(0);
    return mailbox->take(0);
  });
  auto second = std::async(std::launch::async, [&] {
    mailbox->wait(1);
    return mailbox->take(1);
  });
  ASSERT_TRUE(mailbox->put(make_call("b"), 1));
  EXPECT_EQ(second.get()->request().method, "b");
  EXPECT_FALSE(mailbox->has_something(0));
  ASSERT_TRUE(mailbox->put(make_call("a"), 0));
  EXPECT_EQ(first.get()->request().method, "a");
}

TEST_P(MailboxTest, LetsNoLaneOfOneThreadStarveAnother) {
  const auto mailbox = make(100, {{{}, 0}, {{}, 0}});
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(mailbox->put(make_call("a"), 0));
  ASSERT_TRUE(mailbox->put(make_call("b"), 1));
  std::vector<std::string> taken;
  for (int i = 0; i < 3; ++i) taken.push_back(mailbox->take()->request().method);
  EXPECT_THAT(taken, testing::Contains("b"));
}

TEST_P(MailboxTest, TakesFromALaneThatAdmitsPastOneThatDoesNot) {
  const auto mailbox = make(100, {{[] { return false; }, 0}, {{}, 0}});
  ASSERT_TRUE(mailbox->put(make_call("held"), 0));
  EXPECT_FALSE(mailbox->has_something());
  ASSERT_TRUE(mailbox->put(make_call("free"), 1));
  EXPECT_TRUE(mailbox->has_something());
  EXPECT_EQ(mailbox->take()->request().method, "free");
  EXPECT_EQ(mailbox->take(), nullptr);
}

TEST_P(MailboxTest, CountsTheCallsOfAllLanes) {
  const auto mailbox = make(2, {{{}, 0}, {{}, 1}});
  ASSERT_TRUE(mailbox->put(make_call(), 0));
  ASSERT_TRUE(mailbox->put(make_call(), 1));
  EXPECT_EQ(mailbox->put(make_call(), 0).error().code(), Code::exhausted);
  ASSERT_NE(mailbox->take(1), nullptr);
  EXPECT_TRUE(mailbox->put(make_call(), 0));
}

TEST_P(MailboxTest, WakesEveryThreadWhenItIsClosed) {
  const auto mailbox = make();
  std::vector<std::future<bool>> ended;
  for (int i = 0; i < 4; ++i) ended.push_back(after_wait(*mailbox, [] { return true; }));
  mailbox->close();
  for (auto& one : ended) ASSERT_EQ(one.wait_for(long_enough), std::future_status::ready);
}

// Each of the threads keeps its call until every one has one: a wake-up that goes missing shows.
TEST_P(MailboxTest, WakesAsManyThreadsAsThereAreCalls) {
  constexpr int threads = 4;
  const auto mailbox = make();
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> held = 0;
    std::promise<void> all;
    const auto all_held = all.get_future().share();
    std::vector<std::future<bool>> ended;
    for (int i = 0; i < threads; ++i) {
      ended.push_back(std::async(std::launch::async, [&] {
        while (mailbox->take() == nullptr) mailbox->wait();
        if (++held == threads) all.set_value();
        return all_held.wait_for(long_enough) == std::future_status::ready;
      }));
    }
    for (int i = 0; i < threads; ++i) EXPECT_TRUE(mailbox->put(make_call()));
    for (auto& one : ended) ASSERT_TRUE(one.get()) << "round " << round;
  }
}

TEST_P(MailboxTest, GivesEachCallAndEachWorkOnceToManyThreads) {
  constexpr size_t producers = 3;
  constexpr size_t each = 3000;
  const auto mailbox = make(producers * each);
  std::vector<std::atomic<int>> taken(producers * each);
  std::atomic<size_t> done = 0;
  std::atomic<bool> over = false;
  std::promise<void> everything;
  const auto count = [&] {
    if (++done == 2 * producers * each) everything.set_value();
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      while (!over) {
        mailbox->wait();
        if (const auto work = mailbox->take_deferred()) work();
        if (const auto call = mailbox->take()) {
          ++taken[call->request().signature];
          count();
        }
      }
    });
  }
  for (size_t p = 0; p < producers; ++p) {
    threads.emplace_back([&, p] {
      for (size_t i = 0; i < each; ++i) {
        const auto call = make_call();
        call->request().signature = p * each + i;
        EXPECT_TRUE(mailbox->put(call));
        EXPECT_TRUE(mailbox->defer(count));
      }
    });
  }
  const auto seen = everything.get_future().wait_for(long_enough);
  over = true;
  mailbox->close();
  for (auto& thread : threads) thread.join();
  ASSERT_EQ(seen, std::future_status::ready);
  for (const auto& times : taken) EXPECT_EQ(times.load(), 1);
}

INSTANTIATE_TEST_SUITE_P(AloneAndWithRings, MailboxTest, testing::Bool(),
                         [](const auto& run) { return run.param ? "WithRings" : "Alone"; });

}  // namespace
}  // namespace troupe::actor
