#include "object_store/transfer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

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
  ChunkLedger ledger{plan};
  EXPECT_TRUE(ledger.complete());
  EXPECT_FALSE(ledger.take());
  EXPECT_TRUE(ledger.has(0, 0));
}

TEST(ChunkPlan, HugeSizesDoNotWrap) {
  const auto plan = ChunkPlan::make(UINT64_MAX, 2).value();
  EXPECT_EQ(plan.count(), (uint64_t{1} << 63));
  EXPECT_EQ(plan.at(plan.count() - 1).value(), (Chunk{plan.count() - 1, UINT64_MAX - 1, 1}));
}

Result<PackedChunk> pack(const Bytes& bytes, bool compress) {
  return pack_chunk([&]() -> Result<BytesView> { return BytesView{bytes}; }, compress);
}
std::string_view codec_of(const PackedChunk& packed) {
  return packed.compressed ? chunk_codec : "";
}
BytesView travelling(const PackedChunk& packed) {
  return packed.compressed ? BytesView{*packed.compressed} : packed.raw;
}

TEST(ChunkLedger, HandsOutEachChunkUntilItHasCome) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(fmt::format("TROUPE_SEED={}", seed));
    SeededRandom random{seed};
    const uint64_t size = random.below(20'000);
    ChunkLedger ledger{ChunkPlan::make(size, 1 + random.below(1000)).value()};
    std::vector<Chunk> asked;
    uint64_t arrived = 0;
    while (!ledger.complete()) {
      if (const auto chunk = ledger.take()) asked.push_back(*chunk);
      ASSERT_FALSE(asked.empty()) << "a chunk was lost";
      if (random.chance(0.5)) continue;
      const auto one = asked.begin() + static_cast<std::ptrdiff_t>(random.below(asked.size()));
      const Chunk chunk = *one;
      asked.erase(one);
      if (random.chance(0.3)) {
        ledger.give_back(chunk);
        ASSERT_FALSE(ledger.has(chunk.offset_bytes, chunk.size_bytes));
        continue;
      }
      ASSERT_TRUE(ledger.arrived(chunk));
      ASSERT_FALSE(ledger.arrived(chunk));  // Twice counts once.
      ledger.give_back(chunk);              // What has come is not asked for again.
      arrived += chunk.size_bytes;
      ASSERT_EQ(ledger.arrived_bytes(), arrived);
      ASSERT_TRUE(ledger.has(chunk.offset_bytes, chunk.size_bytes));
    }
    ASSERT_EQ(arrived, size);
    ASSERT_FALSE(ledger.take());
    ASSERT_TRUE(ledger.has(0, size));
    ASSERT_FALSE(ledger.has(0, size + ledger.plan().chunk_bytes() + 1));
  }
}

TEST(ChunkPacking, BytesComeAsTheyWere) {
  SeededRandom random{1};
  const Bytes noise = random_bytes(random, 300'000);
  const Bytes zeros(300'000);
  for (const Bytes* object : {&noise, &zeros}) {
    for (const bool compress : {false, true}) {
      const auto packed = pack(*object, compress).value();
      EXPECT_EQ(packed.compressed != nullptr, compress && object == &zeros);
      Bytes target(object->size());
      ASSERT_TRUE(unpack_chunk(codec_of(packed), packed.checksum, travelling(packed), target));
      EXPECT_EQ(target, *object);
    }
  }
  EXPECT_LT(pack(zeros, true).value().compressed->size(), zeros.size() / 10);
  Bytes none;
  EXPECT_TRUE(unpack_chunk("", pack(none, true).value().checksum, {}, none));
}

TEST(ChunkPacking, DamageIsRefused) {
  const Bytes object(100'000, 7);
  const auto raw = pack(object, false).value();
  const auto packed = pack(object, true).value();
  Bytes target(object.size());
  EXPECT_EQ(unpack_chunk("", raw.checksum ^ 1, raw.raw, target).error().code(), Code::data_loss);
  EXPECT_EQ(unpack_chunk("", raw.checksum, raw.raw.first(3), target).error().code(), Code::invalid);
  EXPECT_EQ(unpack_chunk("zip", raw.checksum, raw.raw, target).error().code(), Code::invalid);
  Bytes damaged = *packed.compressed;
  damaged[damaged.size() / 2] ^= 0x55;
  EXPECT_EQ(unpack_chunk(chunk_codec, packed.checksum, damaged, target).error().code(),
            Code::data_loss);
  const BytesView cut = BytesView{*packed.compressed}.first(packed.compressed->size() / 2);
  EXPECT_EQ(unpack_chunk(chunk_codec, packed.checksum, cut, target).error().code(),
            Code::data_loss);
  Bytes smaller(object.size() - 1);
  EXPECT_FALSE(unpack_chunk(chunk_codec, packed.checksum, *packed.compressed, smaller));
}

// It lands where it is wanted, so nothing is to be copied.
TEST(ChunkPacking, WhatLiesInPlaceIsOnlyChecked) {
  Bytes object(1000, 7);
  const uint64_t checksum = chunk_checksum(object);
  EXPECT_TRUE(unpack_chunk("", checksum, object, object));
  object[5] = 8;
  EXPECT_EQ(unpack_chunk("", checksum, object, object).error().code(), Code::data_loss);
}

// The checksum crosses between nodes of different builds: it may not change.
TEST(ChunkChecksum, IsFixed) {
  EXPECT_EQ(chunk_checksum({}), 0x2d06800538d394c2U);
  EXPECT_NE(chunk_checksum(as_bytes("a")), chunk_checksum(as_bytes("b")));
}

}  // namespace
}  // namespace troupe::object_store
