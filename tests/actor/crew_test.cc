#include "actor/crew.h"

#include <gtest/gtest.h>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>

#include "transport/real_environment.h"

namespace troupe::actor {
namespace {

using namespace std::chrono_literals;
using After = Crew::Member::After;

constexpr auto long_enough = 60s;
// For what must not happen: if it happens later, a check shows nothing but breaks nothing.
constexpr auto moment = 100ms;

class Member final : public Crew::Member {
 public:
  explicit Member(std::function<After()> turn) : turn_(std::move(turn)) {}
  After turn() noexcept override {
    EXPECT_EQ(running_.fetch_add(1), 0) << "two turns at once";
    const After after = turn_();
    running_.fetch_sub(1);
    return after;
  }

 private:
  const std::function<After()> turn_;
  std::atomic<int> running_ = 0;
};

// Counts what happened; the test waits for a number of it.
class Count {
 public:
  void add() {
    const std::lock_guard lock{mutex_};
    ++count_;
    changed_.notify_all();
  }
  bool reaches(int number, std::chrono::nanoseconds within = long_enough) {
    std::unique_lock lock{mutex_};
    return changed_.wait_for(lock, within, [&] { return count_ >= number; });
  }
  int now() {
    const std::lock_guard lock{mutex_};
    return count_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;
};

// With the parameter the threads that wait read the process's rings, too.
class CrewTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    const Status enabled = GetParam() ? real_.enable_rings() : ok();
    ASSERT_TRUE(enabled);
    scope_.emplace(real_.io().get_executor());
    work_.emplace(real_.io().get_executor());
    loop_ = std::thread([this] { real_.io().run(); });
  }
  void TearDown() override { finish(); }
  // Ends the crew, before the members that it may still run.
  void finish() {
    if (!loop_.joinable()) return;
    boost::asio::post(real_.io(), [this] { scope_->cancel(); });
    work_.reset();
    loop_.join();
    crew_.reset();
    scope_.reset();
  }
  Crew& make(CrewOptions options = {}) {
    crew_ = std::make_unique<Crew>(real_.environment(), *scope_, options);
    return *crew_;
  }

 private:
  using WorkGuard = boost::asio::executor_work_guard<boost::asio::io_context::executor_type>;
  transport::RealEnvironment real_;
  std::optional<Scope> scope_;
  std::optional<WorkGuard> work_;
  std::thread loop_;
  std::unique_ptr<Crew> crew_;
};

TEST_P(CrewTest, GivesATurnToEachThatIsReady) {
  Crew& crew = make();
  Count turns;
  std::deque<Member> members;
  for (int i = 0; i < 100; ++i) {
    members.emplace_back([&] {
      turns.add();
      return After::idle;
    });
  }
  for (Member& member : members) crew.ready(member);
  EXPECT_TRUE(turns.reaches(100));
  finish();
}

TEST_P(CrewTest, GivesAnotherTurnToOneThatBecameReadyInItsTurn) {
  Crew& crew = make();
  Count turns;
  std::optional<Member> member;
  member.emplace([&] {
    turns.add();
    if (turns.now() == 1) crew.ready(*member);
    return After::idle;
  });
  crew.ready(*member);
  EXPECT_TRUE(turns.reaches(2));
  finish();
}

TEST_P(CrewTest, GivesTurnsForAsLongAsThereIsMoreToDo) {
  Crew& crew = make();
  Count turns;
  Member busy{[&] {
    turns.add();
    return turns.now() < 50 ? After::again : After::idle;
  }};
  crew.ready(busy);
  EXPECT_TRUE(turns.reaches(50));
  finish();
}

TEST_P(CrewTest, ReadyFromManyThreadsIsNeverLost) {
  Crew& crew = make();
  std::atomic<int> work = 0;
  Count done;
  Member member{[&] {
    while (work.load() > 0) {
      --work;
      done.add();
    }
    return After::idle;
  }};
  constexpr int each = 2000;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < each; ++n) {
        ++work;
        crew.ready(member);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(done.reaches(4 * each));
  finish();
}

TEST_P(CrewTest, AddsThreadsWhileAllTurnsWaitForTheNextInLine) {
  Crew& crew = make();
  constexpr int count = 40;
  Count arrived;
  std::deque<Member> members;
  for (int i = 0; i < count; ++i) {
    members.emplace_back([&] {
      arrived.add();
      EXPECT_TRUE(arrived.reaches(count));
      return After::idle;
    });
  }
  for (Member& member : members) crew.ready(member);
  EXPECT_TRUE(arrived.reaches(count));
  EXPECT_GE(crew.threads(), size_t{1});
  finish();
}

TEST_P(CrewTest, KeepsToItsMostThreads) {
  Crew& crew = make({.threads_max = 2});
  Count arrived;
  Count released;
  std::deque<Member> members;
  for (int i = 0; i < 6; ++i) {
    members.emplace_back([&] {
      arrived.add();
      EXPECT_TRUE(released.reaches(1));
      return After::idle;
    });
  }
  for (Member& member : members) crew.ready(member);
  EXPECT_TRUE(arrived.reaches(2));
  EXPECT_FALSE(arrived.reaches(3, moment));
  EXPECT_EQ(crew.threads(), size_t{2});
  released.add();
  EXPECT_TRUE(arrived.reaches(6));
  finish();
}

// The sanitizers would see it touched afterwards.
class EndsItself final : public Crew::Member {
 public:
  explicit EndsItself(Count& gone) : gone_(gone) {}
  After turn() noexcept override {
    Count& gone = gone_;
    delete this;
    gone.add();
    return After::gone;
  }

 private:
  Count& gone_;
};

TEST_P(CrewTest, DoesNotTouchOneThatIsGone) {
  Crew& crew = make();
  Count gone;
  constexpr int count = 200;
  for (int i = 0; i < count; ++i) crew.ready(*new EndsItself{gone});
  EXPECT_TRUE(gone.reaches(count));
  finish();
}

INSTANTIATE_TEST_SUITE_P(AloneAndWithRings, CrewTest, testing::Bool(),
                         [](const auto& which) { return which.param ? "Rings" : "Alone"; });

}  // namespace
}  // namespace troupe::actor
