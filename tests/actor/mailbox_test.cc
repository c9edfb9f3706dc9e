#include "actor/mailbox.h"

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <thread>

#include "transport/ring_port.h"

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

// With and without rings that the waiting thread reads.
class MailboxTest : public testing::TestWithParam<bool> {
 protected:
  std::shared_ptr<Call> call(std::string method) {
    CallRequest request;
    request.method = std::move(method);
    return std::make_shared<Call>(std::move(request), RingOrigin{&outcomes, nullptr, 0, {}});
  }

  Outcomes outcomes;
  boost::asio::io_context loop;
  std::unique_ptr<transport::RingPort> port =
      transport::RingPort::create(loop.get_executor()).value();
  Mailbox mailbox{3, GetParam() ? port.get() : nullptr, [] { return true; }};
};

TEST_P(MailboxTest, KeepsOrderAndRefusesWhatIsTooMuch) {
  for (const char* method : {"a", "b", "c"}) EXPECT_TRUE(mailbox.put(call(method)));
  const auto full = mailbox.put(call("d"));
  EXPECT_EQ(full.error().code(), Code::exhausted);
  EXPECT_TRUE(full.error().retry_after());
  mailbox.wait();
  for (const char* method : {"a", "b", "c"}) EXPECT_EQ(mailbox.take()->request().method, method);
  EXPECT_EQ(mailbox.take(), nullptr);
}

TEST_P(MailboxTest, EachPutOfManyThreadsIsTaken) {
  constexpr int threads_count = 3;
  constexpr int calls = 5000;
  std::vector<std::thread> threads;
  for (int t = 0; t < threads_count; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < calls;) {
        if (mailbox.put(call("x"))) {
          ++i;
        } else {
          std::this_thread::yield();
        }
      }
    });
  }
  for (int taken = 0; taken < threads_count * calls;) {
    mailbox.wait();
    while (mailbox.take()) ++taken;
  }
  for (auto& thread : threads) thread.join();
}

TEST_P(MailboxTest, CloseEndsTheWaitAndLeavesWhatIsInside) {
  std::thread waits([&] { mailbox.wait(); });
  mailbox.close();
  waits.join();
  EXPECT_EQ(mailbox.put(call("late")).error().code(), Code::unavailable);

  Mailbox other{3, GetParam() ? port.get() : nullptr, [] { return true; }};
  EXPECT_TRUE(other.put(call("in time")));
  other.close();
  other.wait();
  EXPECT_EQ(other.take()->request().method, "in time");
}

TEST_P(MailboxTest, ACallOfARingHasOneOutcome) {
  const auto made = call("x");
  EXPECT_FALSE(made->is_finished());
  EXPECT_TRUE(made->finish_value({}));
  EXPECT_FALSE(made->finish_value({}));
  EXPECT_FALSE(made->finish(error(Code::internal, "late")));
  EXPECT_TRUE(made->is_finished());
  EXPECT_EQ(outcomes.count, 1);
  EXPECT_EQ(outcomes.last, Code::ok);
  const auto failed = call("y");
  EXPECT_TRUE(failed->finish(error(Code::conflict, "no")));
  EXPECT_FALSE(failed->finish(Bytes{}));
  EXPECT_EQ(outcomes.count, 2);
  EXPECT_EQ(outcomes.last, Code::conflict);
}

INSTANTIATE_TEST_SUITE_P(WithAndWithoutRings, MailboxTest, testing::Bool());

}  // namespace
}  // namespace troupe::actor
