#include "transport/small_mutex.h"

#include <gtest/gtest.h>

#include <mutex>
#include <thread>
#include <vector>

namespace troupe::transport {
namespace {

TEST(SmallMutex, LetsOneThreadInAtATimeAndWakesThoseThatWait) {
  static_assert(sizeof(SmallMutex) == 4);
  SmallMutex mutex;
  int64_t count = 0;  // Guarded.
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 50'000; ++round) {
        const std::lock_guard lock{mutex};
        ++count;
        if (round % 5'000 == 0) std::this_thread::yield();  // Others find it held, and sleep.
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(count, 200'000);
}

}  // namespace
}  // namespace troupe::transport
