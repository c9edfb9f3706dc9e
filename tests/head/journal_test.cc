// When the head's journal syncs, on a disk whose syncs take as long as a test says.
#include "head/journal.h"

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>

#include "metadata/map_store.h"
#include "tests/sim/simulation.h"

namespace troupe::head {
namespace {

using namespace std::chrono_literals;

class JournalTest : public testing::Test {
 protected:
  ~JournalTest() override {
    is_over_ = true;
    while (disk_.poll() > 0 || durable_ < written_) simulation_.run_for(10ms);
    EXPECT_TRUE(simulation_.run(journal_.stop(), 1s));
    EXPECT_TRUE(simulation_.run(scope_.stop(), 1s));
  }
  // Writes again a moment after it was answered, until the test is over.
  void add_client() { spawn(scope_, be_client()); }
  // Writes that are followed by none.
  void write_once(int count) {
    for (int i = 0; i < count; ++i) spawn(scope_, write());
  }
  // Lets so much time pass and ends the sync that runs by then. How many writes are durable with
  // it.
  int sync_after(Duration time) {
    simulation_.run_for(time);
    const int before = durable_;
    EXPECT_EQ(disk_.poll(), 1u);
    simulation_.run_for(1us);
    return durable_ - before;
  }

  sim::Simulation simulation_{1};
  boost::asio::io_context disk_;
  bool is_over_ = false;
  int written_ = 0;
  int durable_ = 0;

 private:
  Async<void> write() {
    ++written_;
    const auto ticket =
        journal_.write(Batch{}.put(Table::names, std::to_string(written_), "value"));
    const Status settled = co_await journal_.settled(ticket);
    EXPECT_TRUE(settled);
    ++durable_;
  }
  Async<void> be_client() {
    while (!is_over_) {
      co_await write();
      co_await sleep_for(simulation_.clock(), 100us);
    }
  }
  transport::Environment environment() {
    auto& host = simulation_.network().add_host({"head", "machine", {}});
    const auto base = simulation_.environment(host);
    return {base.loop, disk_.get_executor(), base.clock, base.random, base.network};
  }

  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> work_{
      disk_.get_executor()};
  Scope scope_{simulation_.executor()};

 protected:
  MapStore store_{MapOptions{ClusterId{RawId{1, 2}}, false}};
  Journal journal_{environment(), scope_, store_, 1};
};

TEST_F(JournalTest, OnASlowDiskThoseWhoWereAnsweredShareTheNextSync) {
  for (int i = 0; i < 5; ++i) add_client();
  simulation_.run_for(1ms);
  for (int i = 0; i < 5; ++i) add_client();  // During the others' first sync.
  for (int i = 0; i < 2; ++i) EXPECT_EQ(sync_after(3ms), 5);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(sync_after(3ms), 10);
}

TEST_F(JournalTest, AFastDiskIsNotWaitedFor) {
  for (int i = 0; i < 5; ++i) add_client();
  simulation_.run_for(300us);
  for (int i = 0; i < 5; ++i) add_client();
  for (int i = 0; i < 10; ++i) EXPECT_EQ(sync_after(500us), 5);
}

TEST_F(JournalTest, OneClientAloneIsNotHeldBack) {
  add_client();
  for (int i = 0; i < 10; ++i) EXPECT_EQ(sync_after(3ms), 1);
  simulation_.run_for(200us);
  write_once(1);  // Too late for the sync that runs since the client came back.
  EXPECT_EQ(sync_after(3ms), 1);
}

TEST_F(JournalTest, ThoseWhoDoNotComeBackAreNotWaitedFor) {
  for (int i = 0; i < 8; ++i) add_client();
  for (int i = 0; i < 3; ++i) (void)sync_after(3ms);
  EXPECT_EQ(sync_after(3ms), 8);
  is_over_ = true;
  write_once(8);
  int held_back = 0;
  for (int i = 0; i < 20; ++i) {
    const int waiting = written_ - durable_;
    simulation_.run_for(200us);
    write_once(1);  // In time if the sync is held back.
    simulation_.run_for(2ms);
    write_once(8);
    if (sync_after(1ms) > waiting) ++held_back;
  }
  EXPECT_LE(held_back, 2);  // At first they seem to come back.
}

TEST_F(JournalTest, AfterASyncThatTookASecondNobodyWaitsAsLong) {
  for (int i = 0; i < 5; ++i) add_client();
  for (int i = 0; i < 3; ++i) (void)sync_after(1s);
  is_over_ = true;
  write_once(1);
  EXPECT_EQ(sync_after(10ms), 1);
}

TEST_F(JournalTest, OnAFullDiskNothingIsPromisedAndNothingIsLost) {
  EXPECT_TRUE(journal_.admits());
  store_.set_free(0);
  const Status refused = journal_.admits();
  EXPECT_EQ(refused.error().code(), Code::exhausted);
  EXPECT_NE(refused.error().message().find("the disk is full"), std::string::npos);
  EXPECT_TRUE(journal_.keeps_up());  // Events are still noted.
  write_once(3);                     // What follows from events.
  simulation_.run_for(1s);
  EXPECT_EQ(disk_.poll(), 0u) << "a commit was tried that would have failed for good";
  EXPECT_EQ(durable_, 0);
  store_.set_free(uint64_t{1} << 30);
  EXPECT_TRUE(journal_.admits());
  EXPECT_EQ(sync_after(200ms), 3);
}

TEST_F(JournalTest, APromiseLeavesRoomForEventsAndForItsFiles) {
  store_.set_free(uint64_t{64} << 20);
  EXPECT_TRUE(journal_.admits());
  EXPECT_EQ(journal_.admits(1).error().code(), Code::exhausted);
  store_.set_free((uint64_t{64} << 20) + 1000);
  EXPECT_TRUE(journal_.admits(1000));
  EXPECT_EQ(journal_.admits(1001).error().code(), Code::exhausted);
  store_.set_free((uint64_t{64} << 20) - 1);
  EXPECT_EQ(journal_.admits().error().code(), Code::exhausted);
  write_once(3);  // What follows from events.
  EXPECT_EQ(sync_after(1ms), 3);
}

}  // namespace
}  // namespace troupe::head
