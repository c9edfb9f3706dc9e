#include "actor/collectives.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <thread>

#include "actor/inbox.h"
#include "base/random.h"

namespace troupe::actor {
namespace {

using namespace std::chrono_literals;

// The inboxes of a world in one process. Each rank is a thread.
struct World {
  explicit World(uint32_t ranks) : inboxes(ranks) {
    for (auto& inbox : inboxes) inbox = std::make_unique<Inbox>();
  }
  std::vector<std::unique_ptr<Inbox>> inboxes;
  std::stop_source stop;
};

class MemoryChannel final : public Channel {
 public:
  MemoryChannel(World& world, uint32_t rank, Duration timeout)
      : world_(world), rank_(rank), timeout_(timeout) {}
  void begin_operation() override {}
  Status send(uint32_t rank, uint64_t tag, BytesView bytes) override {
    ReceivedChunk chunk{{bytes.begin(), bytes.end()}, 0};
    while (world_.inboxes[rank]->offer(rank_, tag, chunk) == Inbox::Outcome::full) {
      std::this_thread::yield();
    }
    return ok();
  }
  Result<ReceivedChunk> receive(uint32_t rank, uint64_t tag) override {
    return world_.inboxes[rank_]->take(rank, tag, timeout_, world_.stop.get_token());
  }
  Status flush() override { return ok(); }

 private:
  World& world_;
  const uint32_t rank_;
  const Duration timeout_;
};

// Runs `body(rank, group)` on one thread a rank.
template <class Body>
void on_all_ranks(World& world, Duration timeout, Body body) {
  std::vector<std::thread> threads;
  const auto ranks = static_cast<uint32_t>(world.inboxes.size());
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      Group group{rank, ranks, std::make_unique<MemoryChannel>(world, rank, timeout)};
      body(rank, group);
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST(Collectives, AllReduceSumsWithTheSameBitsOnEveryRank) {
  SeededRandom random{42};
  for (uint32_t ranks = 1; ranks <= 5; ++ranks) {
    World world{ranks};
    // Above 2 * 5 * 256 Ki values a segment has several pieces.
    const std::vector<size_t> sizes = {
        0, 1, 2, 3, 7, 101, 4097, 1 + random.below(200'000), ranks == 1 ? 11u : 1'300'001u};
    std::vector<std::vector<std::vector<float>>> values(ranks);  // [rank][case][i]
    for (auto& of_rank : values) {
      for (const size_t size : sizes) {
        auto& list = of_rank.emplace_back(size);
        for (float& value : list) value = static_cast<float>(random.uniform() - 0.5);
      }
    }
    auto sums = values;
    on_all_ranks(world, 60s, [&](uint32_t rank, Group& group) {
      for (auto& list : sums[rank]) EXPECT_TRUE(group.all_reduce(list));
    });
    for (size_t c = 0; c < sizes.size(); ++c) {
      SCOPED_TRACE(testing::Message() << ranks << " ranks, " << sizes[c] << " values");
      double worst = 0;
      for (size_t i = 0; i < sizes[c]; ++i) {
        double expected = 0;
        for (const auto& of_rank : values) expected += of_rank[c][i];
        worst = std::max(worst, std::abs(expected - sums[0][c][i]));
      }
      EXPECT_LT(worst, 1e-6);
      for (uint32_t rank = 1; rank < ranks; ++rank) {
        const auto first = std::as_bytes(std::span{sums[0][c]});
        const auto other = std::as_bytes(std::span{sums[rank][c]});
        EXPECT_TRUE(std::ranges::equal(first, other));
      }
    }
  }
}

TEST(Collectives, BroadcastReachesEveryRankFromEveryRoot) {
  for (uint32_t ranks = 1; ranks <= 5; ++ranks) {
    World world{ranks};
    on_all_ranks(world, 60s, [&](uint32_t rank, Group& group) {
      for (uint32_t root = 0; root < ranks; ++root) {
        for (const size_t size : {size_t{0}, size_t{1}, size_t{3'000'001}}) {
          Bytes data(size, static_cast<uint8_t>(rank == root ? 7 + root : 0));
          EXPECT_TRUE(group.broadcast(root, data));
          EXPECT_EQ(data, Bytes(size, static_cast<uint8_t>(7 + root)));
        }
      }
      EXPECT_EQ(group.broadcast(ranks, {}).error().code(), Code::invalid);
      EXPECT_TRUE(group.barrier());  // A refused argument does not break the group.
    });
  }
}

TEST(Collectives, BarrierWaitsForTheLast) {
  for (uint32_t ranks = 1; ranks <= 5; ++ranks) {
    World world{ranks};
    std::atomic<uint32_t> arrived = 0;
    on_all_ranks(world, 60s, [&](uint32_t, Group& group) {
      for (uint32_t round = 1; round <= 20; ++round) {
        ++arrived;
        EXPECT_TRUE(group.barrier());
        EXPECT_GE(arrived.load(), round * ranks);
      }
    });
  }
}

TEST(Collectives, DifferentSizesAreRefused) {
  World world{2};
  std::atomic<int> refused = 0;
  on_all_ranks(world, 100ms, [&](uint32_t rank, Group& group) {
    std::vector<float> values(rank == 0 ? 10 : 12);
    const Status outcome = group.all_reduce(values);
    if (!outcome && outcome.error().code() == Code::invalid) ++refused;
    EXPECT_FALSE(outcome);
    // The group stays broken.
    EXPECT_FALSE(group.barrier());
  });
  EXPECT_GE(refused.load(), 1);
}

TEST(Collectives, DifferentOperationsAreRefused) {
  World world{2};
  on_all_ranks(world, 60s, [&](uint32_t rank, Group& group) {
    std::vector<float> values(10);
    const Status outcome = rank == 0 ? group.barrier() : group.all_reduce(values);
    ASSERT_FALSE(outcome);
    EXPECT_EQ(outcome.error().code(), Code::invalid);
  });
}

TEST(Collectives, AMissingMemberEndsTheWait) {
  World world{2};
  Group alone{0, 2, std::make_unique<MemoryChannel>(world, 0, 20ms)};
  EXPECT_EQ(alone.barrier().error().code(), Code::deadline_exceeded);

  World stopped{2};
  Group asked{0, 2, std::make_unique<MemoryChannel>(stopped, 0, 60s)};
  std::thread stopper([&] { stopped.stop.request_stop(); });
  EXPECT_EQ(asked.barrier().error().code(), Code::cancelled);
  stopper.join();

  World dead{2};
  Group left{0, 2, std::make_unique<MemoryChannel>(dead, 0, 60s)};
  std::thread killer([&] { dead.inboxes[0]->fail(error(Code::unavailable, "rank 1 is gone")); });
  EXPECT_EQ(left.barrier().error().code(), Code::unavailable);
  killer.join();
}

TEST(Inbox, KeepsEarlyChunksWithinABoundAndDropsRepeatedOnes) {
  Inbox inbox{1000};
  int room = 0;
  inbox.on_room([&] { ++room; });
  const auto offer = [&](uint64_t tag, size_t size) {
    ReceivedChunk chunk{Bytes(size), 0};
    return inbox.offer(0, tag, chunk);
  };
  EXPECT_EQ(offer(1, 500), Inbox::Outcome::taken);
  EXPECT_EQ(offer(1, 500), Inbox::Outcome::repeated);
  EXPECT_EQ(offer(2, 500), Inbox::Outcome::full);
  EXPECT_TRUE(inbox.take(0, 1, 1s, {}));
  EXPECT_GE(room, 1);
  EXPECT_EQ(offer(1, 500), Inbox::Outcome::repeated);  // Taken already.
  EXPECT_EQ(offer(3, 600), Inbox::Outcome::taken);
  // The one that is waited for is taken even over the bound: nothing else would make room.
  EXPECT_EQ(inbox.take(0, 2, 0s, {}).error().code(), Code::deadline_exceeded);
  EXPECT_EQ(offer(2, 500), Inbox::Outcome::taken);
  EXPECT_TRUE(inbox.take(0, 2, 1s, {}));
  EXPECT_TRUE(inbox.take(0, 3, 1s, {}));
}

}  // namespace
}  // namespace troupe::actor
