#include "metadata/group_commit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>
#include <thread>

#include "metadata/map_store.h"
#include "tests/metadata/metadata_fixture.h"

namespace troupe {
namespace {

namespace asio = boost::asio;
using testing::Each;
using testing::ElementsAre;

// The loop and the blocking executor are both turned by hand, so each order of events is a test's
// own choice.
class GroupCommitTest : public testing::Test {
 protected:
  // Begins a commit; its result lands in results_ under `index`, which starts as nothing.
  void begin(Batch batch) {
    const size_t index = results_.size();
    results_.emplace_back();
    asio::co_spawn(loop_, waiting(std::move(batch), index), asio::detached);
  }
  void begin_put(std::string key, std::string value) {
    begin(Batch{}.put(Table::names, std::move(key), std::move(value)));
  }
  Async<void> waiting(Batch batch, size_t index) {
    Status status = co_await commits_->commit(std::move(batch));
    results_[index] = status ? Code::ok : status.error().code();
  }
  void turn_loop() { loop_.poll(); }
  // Runs the write that is queued, if any.
  bool write_once() { return blocking_.poll_one() > 0; }
  void settle() {
    do turn_loop();
    while (write_once());
  }
  std::string value(std::string_view key) {
    return store_.get(Table::names, key).value().value_or("none");
  }

  asio::io_context loop_, blocking_;
  asio::executor_work_guard<asio::io_context::executor_type> loop_work_{loop_.get_executor()};
  asio::executor_work_guard<asio::io_context::executor_type> blocking_work_{
      blocking_.get_executor()};
  MapStore store_{MapOptions{.cluster_id = test_cluster()}};
  std::unique_ptr<GroupCommit> commits_ =
      std::make_unique<GroupCommit>(loop_.get_executor(), store_, blocking_.get_executor(),
                                    GroupCommitOptions{.epoch = 7, .pending_bytes_max = 1000});
  std::vector<std::optional<Code>> results_;
};

TEST_F(GroupCommitTest, CommitsOfOneTurnShareOneSync) {
  for (int i = 0; i < 50; ++i) begin_put(std::to_string(i), "v");
  settle();
  EXPECT_THAT(results_, Each(Code::ok));
  EXPECT_EQ(commits_->syncs(), 1U);
  EXPECT_EQ(store_.scan(Table::names, "").value().size(), 50U);
  EXPECT_EQ(store_.epoch(), 7U);
}

TEST_F(GroupCommitTest, NobodyIsToldBeforeTheWriteIsDone) {
  begin_put("a", "1");
  turn_loop();
  EXPECT_EQ(results_[0], std::nullopt);
  EXPECT_EQ(value("a"), "none");
  ASSERT_TRUE(write_once());
  EXPECT_EQ(value("a"), "1");
  EXPECT_EQ(results_[0], std::nullopt);  // The write runs elsewhere; the loop resumes the waiter.
  turn_loop();
  EXPECT_EQ(results_[0], Code::ok);
}

TEST_F(GroupCommitTest, WhatArrivesDuringASyncSharesTheNext) {
  begin_put("a", "1");
  turn_loop();  // The first write is queued.
  for (int i = 0; i < 20; ++i) {
    begin_put("b", std::to_string(i));
    turn_loop();
  }
  ASSERT_TRUE(write_once());
  EXPECT_FALSE(write_once());  // Never two writes at a time.
  turn_loop();
  EXPECT_EQ(results_[0], Code::ok);
  EXPECT_EQ(results_[1], std::nullopt);
  settle();
  EXPECT_THAT(results_, Each(Code::ok));
  EXPECT_EQ(commits_->syncs(), 2U);
  EXPECT_EQ(value("b"), "19");  // In order: the last one stands.
}

TEST_F(GroupCommitTest, AFailedWriteFailsItsWholeGroupAndAllThatFollow) {
  begin_put("a", "1");
  begin_put("b", "1");
  store_.fail_next_commit(error(Code::exhausted, "disk full"));
  turn_loop();
  begin_put("c", "1");
  settle();
  EXPECT_THAT(results_, ElementsAre(Code::exhausted, Code::exhausted, Code::unavailable));
  EXPECT_EQ(store_.health().error().code(), Code::exhausted);
  begin_put("d", "1");
  settle();
  EXPECT_EQ(results_[3], Code::unavailable);
  EXPECT_TRUE(store_.scan(Table::names, "").value().empty());
}

TEST_F(GroupCommitTest, ABadBatchFailsAlone) {
  begin_put("a", "1");
  begin(Batch{}.put(Table::meta, std::string(epoch_key), "99"));
  begin_put("b", "1");
  settle();
  EXPECT_THAT(results_, ElementsAre(Code::ok, Code::invalid, Code::ok));
  EXPECT_EQ(store_.epoch(), 7U);
}

TEST_F(GroupCommitTest, AnotherHeadsHigherEpochTurnsTheGroupAway) {
  begin_put("a", "1");
  turn_loop();
  ASSERT_TRUE(store_.commit(Batch{}, 8));
  settle();
  EXPECT_EQ(results_[0], Code::conflict);
  EXPECT_EQ(value("a"), "none");
}

TEST_F(GroupCommitTest, AFullQueueAnswersExhaustedAndRecovers) {
  begin_put("a", std::string(900, 'x'));
  turn_loop();
  begin_put("b", std::string(900, 'x'));  // The first is under way, so this one fits.
  begin_put("c", std::string(900, 'x'));
  turn_loop();
  EXPECT_EQ(results_[2], Code::exhausted);
  settle();
  begin_put("c", "1");
  settle();
  EXPECT_THAT(results_, ElementsAre(Code::ok, Code::ok, Code::exhausted, Code::ok));
}

TEST_F(GroupCommitTest, StoppingWaitsForWhatIsPendingAndRefusesMore) {
  begin_put("a", "1");
  turn_loop();
  begin_put("b", "1");
  turn_loop();
  bool stopped = false;
  asio::co_spawn(loop_, commits_->stop(), [&](std::exception_ptr) { stopped = true; });
  turn_loop();
  begin_put("c", "1");
  ASSERT_TRUE(write_once());
  turn_loop();
  EXPECT_FALSE(stopped);
  settle();
  EXPECT_TRUE(stopped);
  EXPECT_THAT(results_, ElementsAre(Code::ok, Code::ok, Code::unavailable));
  stopped = false;
  asio::co_spawn(loop_, commits_->stop(), [&](std::exception_ptr) { stopped = true; });
  settle();
  EXPECT_TRUE(stopped);
}

TEST_F(GroupCommitTest, DestroyingItDropsWhatWasNotBegun) {
  begin_put("a", "1");
  turn_loop();
  begin_put("b", "1");
  turn_loop();
  commits_.reset();  // The head crashed.
  settle();
  EXPECT_EQ(value("a"), "none");
  EXPECT_EQ(value("b"), "none");
  EXPECT_THAT(results_, Each(std::nullopt));
}

TEST_F(GroupCommitTest, ACrashBetweenWriteAndAnswerKeepsTheWrite) {
  begin_put("a", "1");
  turn_loop();
  ASSERT_TRUE(write_once());
  commits_.reset();
  settle();
  EXPECT_EQ(value("a"), "1");
  EXPECT_EQ(results_[0], std::nullopt);
}

TEST_F(GroupCommitTest, CancellingDoesNotLoseTheOutcome) {
  asio::cancellation_signal signal;
  results_.emplace_back();
  asio::co_spawn(loop_, waiting(Batch{}.put(Table::names, "a", "1"), 0),
                 asio::bind_cancellation_slot(signal.slot(), asio::detached));
  turn_loop();
  signal.emit(asio::cancellation_type::terminal);
  settle();
  EXPECT_EQ(results_[0], Code::ok);
  EXPECT_EQ(value("a"), "1");
}

TEST_F(GroupCommitTest, TheLoopItselfMayBeTheBlockingExecutor) {
  commits_ = std::make_unique<GroupCommit>(loop_.get_executor(), store_, loop_.get_executor(),
                                           GroupCommitOptions{.epoch = 1});
  for (int i = 0; i < 10; ++i) begin_put(std::to_string(i), "v");
  turn_loop();
  EXPECT_THAT(results_, Each(Code::ok));
  EXPECT_EQ(commits_->syncs(), 1U);
}

// With real threads: many committers, each with its own order, over RocksDB.
struct Committers {
  Store& store;
  GroupCommit& commits;
  int running = 0;
  int failures = 0;
};

Async<void> commit_rounds(Committers& all, int who, int rounds) {
  const std::string key = std::to_string(who);
  ++all.running;
  for (int round = 0; round < rounds; ++round) {
    Batch batch;
    batch.put(Table::actors, key, std::to_string(round));
    const Status status = co_await all.commits.commit(std::move(batch));
    if (!status || all.store.get(Table::actors, key).value() != std::to_string(round)) {
      ++all.failures;
    }
  }
  if (--all.running == 0) co_await all.commits.stop();
}

TEST(GroupCommitOnThreads, EveryCommitterSeesItsCommitsDurableInOrder) {
  constexpr int committers = 32, rounds = 20;
  ScratchDirectory scratch;
  const auto store = open_or_create(scratch / "metadata");
  asio::io_context loop;
  asio::thread_pool pool{1};
  GroupCommit commits{loop.get_executor(), *store, pool.get_executor(), {.epoch = 1}};
  Committers all{*store, commits};
  for (int who = 0; who < committers; ++who) {
    asio::co_spawn(loop, commit_rounds(all, who, rounds), asio::detached);
  }
  loop.run();
  pool.join();
  EXPECT_EQ(all.failures, 0);
  EXPECT_EQ(all.running, 0);
  EXPECT_EQ(store->scan(Table::actors, "").value().size(), static_cast<size_t>(committers));
  EXPECT_GE(commits.syncs(), static_cast<uint64_t>(rounds));
  EXPECT_LE(commits.syncs(), static_cast<uint64_t>(2 * rounds));  // Not one a commit: 640.
}

}  // namespace
}  // namespace troupe
