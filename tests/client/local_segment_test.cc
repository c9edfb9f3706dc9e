// The blocks that a process places by itself.
#include "client/local_segment.h"

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <cstring>
#include <thread>

namespace troupe::client {
namespace {

using Which = LocalSegment::Which;

class LocalSegmentTest : public testing::Test {
 protected:
  std::shared_ptr<LocalBlock> allocate(uint64_t size_bytes) {
    auto block = segment->allocate(size_bytes);
    EXPECT_TRUE(block);
    return block ? *block : nullptr;
  }

  boost::asio::io_context loop;
  std::vector<ObjectId> returned;  // Pins.
  int empty = 0;
  std::shared_ptr<PinReturns> pins = std::make_shared<PinReturns>(
      loop.get_executor(),
      [this](std::vector<ObjectId> objects) { returned = std::move(objects); });
  std::shared_ptr<LocalSegment> segment = std::make_shared<LocalSegment>(
      object_store::ProducerSegment::create(1 << 20).value(), 7, pins, [this] { ++empty; });
};

TEST_F(LocalSegmentTest, PlacesBlocksInItsExtentsAlone) {
  EXPECT_EQ(allocate(1), nullptr);
  segment->add_extent(4096, 8192);
  const auto first = allocate(4000);
  const auto second = allocate(4096);
  EXPECT_EQ(first->offset_bytes(), 4096u);
  EXPECT_EQ(first->offset_bytes() % 64, 0u);
  EXPECT_EQ(second->offset_bytes(), 4096u + 4032u);
  EXPECT_EQ(allocate(4096), nullptr);
  segment->add_extent(65'536, 4096);
  EXPECT_EQ(allocate(4096)->offset_bytes(), 65'536u);
  std::memset(second->bytes().data(), 1, second->bytes().size());
  EXPECT_EQ(segment->view(second->offset_bytes(), 4096).value()[4095], 1);
  EXPECT_EQ(segment->view(1 << 20, 1).error().code(), Code::invalid);
}

TEST_F(LocalSegmentTest, ADroppedBlockIsRoomAgain) {
  segment->add_extent(0, 4096);
  for (int i = 0; i < 100; ++i) EXPECT_NE(allocate(4096), nullptr);
}

TEST_F(LocalSegmentTest, WhatWasGivenAwayIsNotRoomAgain) {
  segment->add_extent(0, 4096);
  const ObjectId object{RawId{1, 2}};
  auto block = allocate(4096);
  EXPECT_TRUE(block->is_private());
  block->give_away(object, true);
  EXPECT_FALSE(block->is_private());
  block = nullptr;
  EXPECT_EQ(allocate(64), nullptr);
  // Its pin goes back, and the extent with it.
  loop.run();
  EXPECT_EQ(returned, std::vector{object});
  EXPECT_EQ(segment->take_empty(Which::all).size(), 0u);
  EXPECT_EQ(allocate(64), nullptr);
}

// The worker makes room of an object that was freed or spilled while its extent is still in use.
TEST_F(LocalSegmentTest, AnExtentMayLieInWhatWasGivenAway) {
  segment->add_extent(4096, 16'384);
  const auto first = allocate(4096);
  const auto second = allocate(4096);
  auto third = allocate(4096);
  auto last = allocate(4096);
  first->give_away(ObjectId{RawId{1, 2}}, false);
  third->give_away(ObjectId{RawId{1, 3}}, false);
  segment->add_extent(4096, 4096);  // At the same place as the first.
  const auto there = allocate(4096);
  ASSERT_NE(there, nullptr);
  EXPECT_EQ(there->offset_bytes(), 4096u);
  EXPECT_EQ(segment->take_empty(Which::all).size(), 0u);
  last = nullptr;
  second->give_away(ObjectId{RawId{1, 4}}, false);
  // Not what the second extent has, nor what the worker knows of.
  const auto back = segment->take_empty(Which::all);
  ASSERT_EQ(back.size(), 1u);
  EXPECT_EQ(back[0].offset_bytes, 4096u + 3 * 4096);
  EXPECT_EQ(back[0].size_bytes, 4096u);
}

TEST_F(LocalSegmentTest, OneThatIsAnothersHasNoPin) {
  segment->add_extent(0, 4096);
  allocate(4096)->give_away(ObjectId{RawId{1, 2}}, false);
  loop.run();
  EXPECT_TRUE(returned.empty());
}

TEST_F(LocalSegmentTest, PinsGoBackTogetherAndNotAfterTheClient) {
  for (uint64_t i = 1; i <= 3; ++i) pins->add(ObjectId{RawId{1, i}});
  loop.run();
  EXPECT_EQ(returned.size(), 3u);
  pins->add(ObjectId{RawId{2, 1}});
  pins->close();
  pins->add(ObjectId{RawId{2, 2}});
  loop.restart();
  loop.run();
  EXPECT_EQ(returned.size(), 3u);
}

TEST_F(LocalSegmentTest, IdleExtentsAreTakenOnceNothingWasPlacedThereForAWhile) {
  segment->add_extent(0, 4096);
  segment->add_extent(8192, 4096);
  auto kept = allocate(64);
  auto other = allocate(4096);
  ASSERT_TRUE(kept && other);
  EXPECT_EQ(empty, 0);
  other = nullptr;
  EXPECT_EQ(empty, 1);
  EXPECT_TRUE(segment->take_empty(Which::idle).empty());  // It was used a moment ago.
  EXPECT_TRUE(segment->has_empty());
  const auto taken = segment->take_empty(Which::idle);
  ASSERT_EQ(taken.size(), 1u);
  EXPECT_EQ(taken[0].size_bytes, 4096u);
  EXPECT_FALSE(segment->has_empty());
  EXPECT_EQ(allocate(4096), nullptr);
  kept = nullptr;
  EXPECT_EQ(empty, 2);
  EXPECT_EQ(segment->take_empty(Which::all).size(), 1u);
  segment->add_extent(0, 4096);
  segment->close();
  (void)allocate(64);
  EXPECT_EQ(empty, 2);
}

TEST_F(LocalSegmentTest, ManyThreadsBuildAtOnce) {
  segment->add_extent(0, 1 << 18);
  segment->add_extent(1 << 18, 1 << 18);
  std::vector<std::thread> threads;
  for (uint8_t t = 1; t <= 4; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 2000; ++i) {
        const auto block = segment->allocate(1 + static_cast<uint64_t>(i) % 9000).value();
        ASSERT_NE(block, nullptr);
        std::memset(block->bytes().data(), t, block->bytes().size());
        ASSERT_EQ(block->bytes().front(), t);
        ASSERT_EQ(block->bytes().back(), t);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(segment->take_empty(Which::all).size(), 2u);
}

}  // namespace
}  // namespace troupe::client
