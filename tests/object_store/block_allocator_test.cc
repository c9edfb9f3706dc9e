#include "object_store/block_allocator.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "base/random.h"

namespace troupe::object_store {
namespace {

using Block = BlockAllocator::Block;

// Sizes spread evenly over the octaves from 1 byte to 2^bits, as objects' are.
uint64_t random_size(Random& random, uint64_t bits) {
  return 1 + random.below(uint64_t{1} << random.below(bits + 1));
}

TEST(BlockAllocator, AlignsAndFillsToTheLastByte) {
  BlockAllocator allocator{64 * 10 + 63};
  for (uint64_t i = 0; i < 10; ++i) {
    const auto block = allocator.allocate(i == 0 ? 0 : 1 + i);
    ASSERT_TRUE(block);
    EXPECT_EQ(block->offset_bytes, 64 * i);
    EXPECT_EQ(block->size_bytes, 64U);
  }
  EXPECT_FALSE(allocator.can_fit(1));
  EXPECT_FALSE(allocator.allocate(1));
  EXPECT_EQ(allocator.used_bytes(), 640U);
  EXPECT_FALSE(allocator.allocate(UINT64_MAX));
  EXPECT_FALSE(allocator.can_fit(UINT64_MAX));
}

TEST(BlockAllocator, HandsOutTheHottestBlockOfASizeFirst) {
  BlockAllocator allocator{1 << 20};
  std::vector<Block> blocks;
  for (int i = 0; i < 6; ++i) blocks.push_back(*allocator.allocate(1000));
  // No two neighbours, so that none coalesce.
  for (const size_t i : {0, 4, 2}) allocator.free(blocks[i].handle);
  for (const size_t i : {2, 4, 0}) {
    EXPECT_EQ(allocator.allocate(1000)->offset_bytes, blocks[i].offset_bytes);
  }
}

TEST(BlockAllocator, PrefersMemoryThatWasTouched) {
  BlockAllocator allocator{1 << 20};
  const auto first = allocator.allocate(100'000);
  (void)allocator.allocate(64);
  const uint64_t touched = allocator.touched_bytes();
  allocator.free(first->handle);
  for (int i = 0; i < 90; ++i) ASSERT_TRUE(allocator.allocate(1000));
  EXPECT_EQ(allocator.touched_bytes(), touched);
}

TEST(BlockAllocator, CarvesALiveBlockIntoLiveOnes) {
  BlockAllocator allocator{1 << 20};
  const auto first = allocator.allocate(64);
  const auto whole = allocator.allocate(640);
  const auto pieces = allocator.carve(whole->handle, 64 + 128, 256);
  ASSERT_TRUE(pieces.before && pieces.behind);
  EXPECT_EQ(pieces.before->offset_bytes, 64U);
  EXPECT_EQ(pieces.before->size_bytes, 128U);
  EXPECT_EQ(pieces.range.offset_bytes, 192U);
  EXPECT_EQ(pieces.range.size_bytes, 256U);
  EXPECT_EQ(pieces.behind->offset_bytes, 448U);
  EXPECT_EQ(pieces.behind->size_bytes, 256U);
  EXPECT_TRUE(allocator.consistent());
  EXPECT_EQ(allocator.blocks(), 4U);
  EXPECT_EQ(allocator.used_bytes(), 704U);
  const auto all = allocator.carve(pieces.range.handle, 192, 256);
  EXPECT_FALSE(all.before || all.behind);
  // Each goes by itself, and what is free together is one again.
  for (const uint32_t handle : {all.range.handle, pieces.behind->handle, pieces.before->handle}) {
    allocator.free(handle);
    EXPECT_TRUE(allocator.consistent());
  }
  EXPECT_EQ(allocator.allocate(640)->offset_bytes, 64U);
  allocator.free(first->handle);
}

TEST(BlockAllocator, GrowsTheFreeRangeBelowTheTop) {
  BlockAllocator allocator{1 << 20};
  (void)allocator.allocate(64);
  const auto last = allocator.allocate(640);
  allocator.free(last->handle);
  EXPECT_EQ(allocator.allocate(6400)->offset_bytes, 64U);
  EXPECT_EQ(allocator.touched_bytes(), 6464U);
}

TEST(BlockAllocator, KeepsBelowTheTouchedBound) {
  BlockAllocator allocator{1 << 20};
  EXPECT_FALSE(allocator.allocate(4097, 4096));
  const auto block = allocator.allocate(4096, 4096);
  ASSERT_TRUE(block);
  EXPECT_FALSE(allocator.can_fit(1, 4096));
  EXPECT_FALSE(allocator.can_fit(1, 100));  // A bound that has moved below what is touched.
  allocator.free(block->handle);
  EXPECT_TRUE(allocator.allocate(1, 100));  // Touched already.
}

TEST(BlockAllocator, FreeingTwiceIsABug) {
  BlockAllocator allocator{1 << 20};
  const auto block = allocator.allocate(64);
  allocator.free(block->handle);
  EXPECT_DEATH(allocator.free(block->handle), "freed twice");
}

// Finds a hole smaller than its class's probes would: the last resort is an exhaustive look.
TEST(BlockAllocator, FindsTheOneHoleThatFitsAmongManyThatDoNot) {
  constexpr uint64_t small = 64 * 128, large = 64 * 135;  // One size class.
  BlockAllocator allocator{100 * (small + 64) + large + 64};
  std::vector<Block> holes;
  holes.push_back(*allocator.allocate(large));
  (void)allocator.allocate(64);
  for (int i = 0; i < 100; ++i) {
    holes.push_back(*allocator.allocate(small));
    (void)allocator.allocate(64);
  }
  for (const Block& hole : holes) allocator.free(hole.handle);  // The large one is the coldest.
  EXPECT_TRUE(allocator.can_fit(large));
  const auto found = allocator.allocate(large);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->offset_bytes, 0U);
  EXPECT_TRUE(allocator.consistent());
}

TEST(BlockAllocator, AgreesWithANaiveModelOverRandomHistories) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(fmt::format("TROUPE_SEED={}", seed));
    SeededRandom random{seed};
    constexpr uint64_t size = 1 << 20;
    BlockAllocator allocator{size};
    std::map<uint64_t, Block> live;  // By offset.
    uint64_t used = 0;
    const auto largest_hole = [&] {
      uint64_t end = 0, hole = 0;
      for (const auto& [offset, block] : live) {
        hole = std::max(hole, offset - end);
        end = offset + block.size_bytes;
      }
      return std::max(hole, size - end);
    };
    for (int step = 0; step < 10'000; ++step) {
      // Phases that fill and phases that drain.
      const bool grow = random.chance((step / 1000) % 2 == 0 ? 0.65 : 0.4);
      if (grow || live.empty()) {
        const uint64_t wanted = random_size(random, 17);
        const bool fits = block_bytes(wanted) <= largest_hole();
        ASSERT_EQ(allocator.can_fit(wanted), fits);
        const auto block = allocator.allocate(wanted);
        ASSERT_EQ(block.has_value(), fits);
        if (!block) continue;
        ASSERT_EQ(block->size_bytes, block_bytes(wanted));
        ASSERT_EQ(block->offset_bytes % block_alignment_bytes, 0U);
        const auto [place, fresh] = live.emplace(block->offset_bytes, *block);
        ASSERT_TRUE(fresh);
        if (place != live.begin()) {
          const Block& below = std::prev(place)->second;
          ASSERT_LE(below.offset_bytes + below.size_bytes, block->offset_bytes);
        }
        const auto above = std::next(place);
        const uint64_t end = block->offset_bytes + block->size_bytes;
        ASSERT_LE(end, above == live.end() ? size : above->first);
        used += block->size_bytes;
      } else {
        auto victim = live.lower_bound(random.below(size));
        if (victim == live.end()) victim = live.begin();
        used -= victim->second.size_bytes;
        allocator.free(victim->second.handle);
        live.erase(victim);
      }
      ASSERT_EQ(allocator.used_bytes(), used);
      ASSERT_EQ(allocator.blocks(), live.size());
      if (step % 50 == 0) {
        ASSERT_TRUE(allocator.consistent());
      }
    }
    for (const auto& [offset, block] : live) allocator.free(block.handle);
    ASSERT_TRUE(allocator.consistent());
    ASSERT_TRUE(allocator.empty());
    ASSERT_EQ(allocator.used_bytes(), 0U);
    ASSERT_TRUE(allocator.allocate(size));  // All of it is one range again.
  }
}

// How full a store is when it turns a block away, in a long life at the brim with mixed sizes and
// lifetimes that sizes say nothing about: hard on any allocator that cannot move blocks. Best fit
// reaches 0.85 on average here; what the order by heat costs must stay small.
TEST(BlockAllocator, FillsTheStoreBeforeItTurnsBlocksAway) {
  double sum = 0, worst = 1;
  uint64_t failures = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    SeededRandom random{seed};
    constexpr uint64_t size = 64 << 20;
    BlockAllocator allocator{size};
    std::vector<Block> live;
    for (int step = 0; step < 50'000; ++step) {
      const uint64_t wanted = random_size(random, 20);  // Up to a 64th of the store.
      auto block = allocator.allocate(wanted);
      if (!block) {
        const double fill = static_cast<double>(allocator.used_bytes()) / size;
        sum += fill;
        worst = std::min(worst, fill);
        ++failures;
      }
      while (!block) {
        std::swap(live[random.below(live.size())], live.back());
        allocator.free(live.back().handle);
        live.pop_back();
        block = allocator.allocate(wanted);
      }
      live.push_back(*block);
    }
  }
  ASSERT_GT(failures, 100U);
  RecordProperty("mean_fill", fmt::format("{:.3f}", sum / static_cast<double>(failures)));
  RecordProperty("worst_fill", fmt::format("{:.3f}", worst));
  EXPECT_GT(sum / static_cast<double>(failures), 0.80);
  EXPECT_GT(worst, 0.4);
}

}  // namespace
}  // namespace troupe::object_store
