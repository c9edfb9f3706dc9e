#include "object_store/transfer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "base/random.h"

namespace troupe::object_store {
namespace {

Bytes random_bytes(Random& random, uint64_t size) {
  Bytes bytes(size);
  for (auto& byte : bytes) byte = static_cast<uint8_t>(random.next());
  return bytes;
}

TEST(ChunkPlan, CutsWholeChunksAndAShorterLastOne) {
  const auto plan = ChunkPlan::make(2 * transfer_chunk_bytes + 5).value();
  EXPECT_EQ(plan.count(), 3U);
  EXPECT_EQ(plan.at(1).value(), (Chunk{1, transfer_chunk_bytes, transfer_chunk_bytes}));
  EXPECT_EQ(plan.at(2).value(), (Chunk{2, 2 * transfer_chunk_bytes, 5}));
  EXPECT_EQ(plan.at(3).error().code(), Code::invalid);
  EXPECT_EQ(plan.at(UINT64_MAX).error().code(), Code::invalid);
  EXPECT_EQ(ChunkPlan::make(transfer_chunk_bytes).value().count(), 1U);
  EXPECT_EQ(ChunkPlan::make(1, 0).error().code(), Code::invalid);
}

TEST(ChunkPlan, AnEmptyObjectHasNoChunksAndIsComplete) {
  const auto plan = ChunkPlan::make(0).value();
  EXPECT_EQ(plan.count(), 0U);
  const auto assembler = ChunkAssembler::make(plan, {}).value();
  EXPECT_TRUE(assembler.complete());
  EXPECT_FALSE(assembler.next_missing());
}

TEST(ChunkPlan, HugeSizesDoNotWrap) {
  const auto plan = ChunkPlan::make(UINT64_MAX, 2).value();
  EXPECT_EQ(plan.count(), (uint64_t{1} << 63));
  EXPECT_EQ(plan.at(plan.count() - 1).value(), (Chunk{plan.count() - 1, UINT64_MAX - 1, 1}));
}

TEST(ChunkAssembler, BuildsTheObjectFromChunksInAnyOrder) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(fmt::format("TROUPE_SEED={}", seed));
    SeededRandom random{seed};
    const Bytes object = random_bytes(random, random.below(20'000));
    const auto plan = ChunkPlan::make(object.size(), 1 + random.below(1000)).value();
    Bytes target(object.size());
    auto assembler = ChunkAssembler::make(plan, target).value();
    std::vector<uint64_t> order(plan.count());
    std::iota(order.begin(), order.end(), uint64_t{0});
    for (uint64_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    uint64_t arrived = 0;
    for (const uint64_t index : order) {
      ASSERT_FALSE(assembler.complete());
      const auto sent = cut_chunk(plan, object, index).value();
      Bytes data{sent.data.begin(), sent.data.end()};
      if (random.chance(0.3)) {  // Damage on the way: refused, nothing written, still missing.
        data[random.below(data.size())] ^= static_cast<uint8_t>(1 + random.below(255));
        ASSERT_EQ(assembler.accept(index, sent.checksum, data).error().code(), Code::data_loss);
        ASSERT_EQ(assembler.next_missing(index)->index, index);
      }
      ASSERT_EQ(assembler.accept(index, sent.checksum, sent.data).value(), Arrival::fresh);
      arrived += sent.chunk.size_bytes;
      ASSERT_EQ(assembler.arrived_bytes(), arrived);
      if (random.chance(0.3)) {
        ASSERT_EQ(assembler.accept(index, sent.checksum, sent.data).value(), Arrival::duplicate);
        ASSERT_EQ(assembler.arrived_bytes(), arrived);
      }
    }
    ASSERT_TRUE(assembler.complete());
    ASSERT_EQ(target, object);
  }
}

TEST(ChunkAssembler, RefusedChunksWriteNothing) {
  const Bytes object(10, 7);
  Bytes target(10, 1);
  const auto plan = ChunkPlan::make(10, 4).value();
  auto assembler = ChunkAssembler::make(plan, target).value();
  const auto chunk = cut_chunk(plan, object, 0).value();
  EXPECT_EQ(assembler.accept(0, chunk.checksum ^ 1, chunk.data).error().code(), Code::data_loss);
  EXPECT_EQ(assembler.accept(0, chunk.checksum, chunk.data.first(3)).error().code(), Code::invalid);
  EXPECT_EQ(assembler.accept(2, chunk.checksum, chunk.data).error().code(), Code::invalid);
  EXPECT_EQ(assembler.accept(3, chunk.checksum, chunk.data).error().code(), Code::invalid);
  EXPECT_EQ(assembler.accept(UINT64_MAX, 0, {}).error().code(), Code::invalid);
  EXPECT_EQ(target, Bytes(10, 1));
  EXPECT_EQ(assembler.arrived_bytes(), 0U);
}

TEST(ChunkAssembler, ALateDamagedDuplicateDoesNotTouchWhatArrived) {
  const Bytes object(8, 7);
  Bytes target(8);
  const auto plan = ChunkPlan::make(8, 4).value();
  auto assembler = ChunkAssembler::make(plan, target).value();
  const auto chunk = cut_chunk(plan, object, 1).value();
  ASSERT_TRUE(assembler.accept(1, chunk.checksum, chunk.data));
  const Bytes damaged(4, 9);
  EXPECT_EQ(assembler.accept(1, chunk.checksum, damaged).value(), Arrival::duplicate);
  EXPECT_EQ(target, (Bytes{0, 0, 0, 0, 7, 7, 7, 7}));
  EXPECT_EQ(assembler.next_missing()->index, 0U);
  EXPECT_FALSE(assembler.next_missing(1));
  EXPECT_FALSE(assembler.next_missing(UINT64_MAX));
}

TEST(ChunkAssembler, PlanAndBytesMustAgree) {
  Bytes bytes(9);
  const auto plan = ChunkPlan::make(10).value();
  EXPECT_EQ(ChunkAssembler::make(plan, bytes).error().code(), Code::invalid);
  EXPECT_EQ(cut_chunk(plan, bytes, 0).error().code(), Code::invalid);
  EXPECT_EQ(cut_chunk(plan, Bytes(10), 1).error().code(), Code::invalid);
}

// The checksum crosses between nodes of different builds: it may not change.
TEST(ChunkChecksum, IsFixed) {
  EXPECT_EQ(chunk_checksum({}), 0x2d06800538d394c2U);
  EXPECT_NE(chunk_checksum(as_bytes("a")), chunk_checksum(as_bytes("b")));
}

}  // namespace
}  // namespace troupe::object_store
