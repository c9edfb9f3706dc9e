#include "object_store/object_table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "object_store/segment.h"

namespace troupe::object_store {
namespace {

constexpr uint64_t capacity = 64 * page_bytes;

JobId job_id(uint64_t n) {
  return JobId{{1, n}};
}
ProcessId process_id(uint64_t n) {
  return ProcessId{{2, n}};
}
ObjectId object_id(uint64_t n) {
  return ObjectId{{3, n}};
}
template <class T>
Code code_of(const Result<T>& result) {
  return result ? Code::ok : result.error().code();
}

class ObjectTableTest : public testing::Test {
 protected:
  ObjectTableTest() {
    for (const Caller& caller : {producer, reader, stranger}) EXPECT_TRUE(table.attach(caller));
    segment = table.add_segment(producer, 4 * capacity).value();
  }

  Result<Block> create(ObjectId id, uint64_t size = 100) {
    return table.create(producer, {.object = id, .owner = owner, .size_bytes = size}, Instant{});
  }
  Block create_sealed(ObjectId id, uint64_t size = 100) {
    const Block block = create(id, size).value();
    EXPECT_TRUE(table.seal(producer, id));
    return block;
  }
  // The table after all that could hold something has gone.
  void expect_all_goes() {
    for (const ProcessId id : {producer.process, reader.process, stranger.process, owner}) {
      table.process_died(id);
    }
    for (const SegmentId id : table.take_dropped()) EXPECT_TRUE(table.segment_closed(id));
    const Stats stats = table.stats();
    EXPECT_EQ(stats.used_bytes, 0U);
    EXPECT_EQ(stats.committed_bytes, 0U);
    EXPECT_EQ(stats.objects, 0U);
    EXPECT_EQ(stats.unsealed_objects, 0U);
    EXPECT_EQ(stats.pinned_objects, 0U);
    EXPECT_EQ(stats.pinned_bytes, 0U);
    EXPECT_EQ(stats.segments, 0U);
    EXPECT_TRUE(stats.processes.empty());
  }

  const Caller producer{process_id(1), job_id(1)};
  const Caller reader{process_id(2), job_id(1)};
  const Caller stranger{process_id(3), job_id(2)};
  const ProcessId owner = process_id(9);  // On another node.
  const ObjectId object = object_id(1);
  SeededRandom random{1};
  ObjectTable table{capacity, random};
  SegmentId segment;
};

TEST_F(ObjectTableTest, ObjectIsPendingUntilSealedAndGoesWithTheLastReference) {
  const Block block = create(object).value();
  EXPECT_EQ(block, (Block{segment, 0, 100}));
  EXPECT_EQ(table.get(reader, object).value(), std::nullopt);
  ASSERT_TRUE(table.seal(producer, object));
  EXPECT_EQ(table.get(reader, object).value(), block);
  ASSERT_TRUE(table.pin(reader, object));
  ASSERT_TRUE(table.pin(reader, object));
  ASSERT_TRUE(table.release_owner(owner, object));
  ASSERT_TRUE(table.release_owner(owner, object));  // A retry.
  ASSERT_TRUE(table.release(reader, object, 1));
  EXPECT_EQ(table.get(reader, object).value(), block);
  ASSERT_TRUE(table.release(reader, object, 1));
  EXPECT_EQ(code_of(table.get(reader, object)), Code::not_found);
  EXPECT_EQ(table.used_bytes(), 0U);
  expect_all_goes();
}

TEST_F(ObjectTableTest, CreateIsIdempotentUntilSealed) {
  const Block block = create(object).value();
  EXPECT_EQ(create(object).value(), block);
  EXPECT_EQ(table.stats().objects, 1U);
  EXPECT_EQ(table.used_bytes(), 128U);
  EXPECT_EQ(code_of(create(object, 101)), Code::conflict);
  const CreateRequest by_other{.object = object, .owner = owner, .size_bytes = 100};
  EXPECT_EQ(code_of(table.create(stranger, by_other, Instant{})), Code::conflict);
  ASSERT_TRUE(table.seal(producer, object));
  EXPECT_EQ(code_of(create(object)), Code::conflict);
  EXPECT_EQ(table.used_bytes(), 128U);
}

TEST_F(ObjectTableTest, CreateRefusesWhatCanNeverBe) {
  EXPECT_EQ(code_of(create(ObjectId{})), Code::invalid);
  EXPECT_EQ(code_of(create(object, capacity + 1)), Code::invalid);
  EXPECT_EQ(code_of(create(object, UINT64_MAX)), Code::invalid);
  const CreateRequest unowned{.object = object, .size_bytes = 1};
  EXPECT_EQ(code_of(table.create(producer, unowned, Instant{})), Code::invalid);
  const CreateRequest good{.object = object, .owner = owner, .size_bytes = page_bytes + 1};
  EXPECT_EQ(code_of(table.create(reader, good, Instant{})), Code::conflict);  // No segment.
  ASSERT_TRUE(table.add_segment(reader, page_bytes));
  EXPECT_EQ(code_of(table.create(reader, good, Instant{})), Code::invalid);
  EXPECT_EQ(code_of(table.create({process_id(1), job_id(2)}, good, Instant{})), Code::denied);
  EXPECT_EQ(code_of(table.create({process_id(77), job_id(1)}, good, Instant{})), Code::denied);
  EXPECT_EQ(table.stats().objects, 0U);
}

TEST_F(ObjectTableTest, AnEmptyObjectIsAnObject) {
  const Block block = create_sealed(object, 0);
  EXPECT_EQ(table.get(reader, object).value(), block);
  EXPECT_EQ(table.used_bytes(), block_alignment_bytes);
  expect_all_goes();
}

TEST_F(ObjectTableTest, AFullStoreIsExhaustedAndSaysWhenBytesComeBack) {
  int calls = 0;
  table.on_freed([&] { ++calls; });
  create_sealed(object, capacity - page_bytes);
  EXPECT_TRUE(table.can_fit(producer, page_bytes));
  EXPECT_FALSE(table.can_fit(producer, page_bytes + 1));
  const auto refused = create(object_id(2), page_bytes + 1);
  ASSERT_EQ(code_of(refused), Code::exhausted);
  EXPECT_NE(refused.error().message().find("needs 4160 bytes; 4096 of 262144 are free"),
            std::string::npos)
      << refused.error().message();
  ASSERT_TRUE(create(object_id(3), page_bytes));
  EXPECT_EQ(table.used_bytes(), capacity);
  EXPECT_EQ(calls, 0);
  ASSERT_TRUE(table.release_owner(owner, object));
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(create(object_id(2), page_bytes + 1));
  expect_all_goes();
}

TEST_F(ObjectTableTest, TheFreedHookMayCallIn) {
  create_sealed(object, capacity);
  Code waiting = Code::exhausted;
  table.on_freed([&] { waiting = code_of(create(object_id(2), capacity)); });
  ASSERT_TRUE(table.release_owner(owner, object));
  EXPECT_EQ(waiting, Code::ok);
  EXPECT_EQ(table.used_bytes(), capacity);
  table.on_freed({});
  expect_all_goes();
}

TEST_F(ObjectTableTest, OnlyTheProducerSealsAndAborts) {
  ASSERT_TRUE(create(object));
  for (const Caller& caller : {reader, stranger, Caller{process_id(77), job_id(1)}}) {
    EXPECT_EQ(code_of(table.seal(caller, object)), Code::denied);
    EXPECT_EQ(code_of(table.abort(caller, object)), Code::denied);
  }
  EXPECT_EQ(code_of(table.seal(producer, object_id(2))), Code::not_found);
  EXPECT_EQ(code_of(table.abort(producer, object_id(2))), Code::not_found);
  ASSERT_TRUE(table.seal(producer, object));
  ASSERT_TRUE(table.seal(producer, object));
  EXPECT_EQ(code_of(table.abort(producer, object)), Code::conflict);
}

TEST_F(ObjectTableTest, AbortFreesWhateverIsPinned) {
  ASSERT_TRUE(create(object));
  ASSERT_TRUE(table.pin(reader, object));
  ASSERT_TRUE(table.abort(producer, object));
  EXPECT_EQ(code_of(table.get(reader, object)), Code::not_found);
  EXPECT_EQ(code_of(table.release(reader, object, 1)), Code::not_found);
  EXPECT_EQ(table.stats().pinned_objects, 0U);
  expect_all_goes();
}

TEST_F(ObjectTableTest, WhatIsPutAsideLeavesItsNameAndKeepsItsBlock) {
  const ObjectId aside = object_id(7);
  ASSERT_TRUE(create(object));
  ASSERT_TRUE(table.pin(reader, object));
  EXPECT_EQ(code_of(table.put_aside(reader, object, aside)), Code::denied);
  EXPECT_EQ(code_of(table.put_aside(producer, aside, object)), Code::not_found);
  EXPECT_EQ(code_of(table.put_aside(producer, object, object)), Code::conflict);
  ASSERT_TRUE(table.put_aside(producer, object, aside));
  const uint64_t kept = table.used_bytes();
  EXPECT_GT(kept, 0U);
  ASSERT_TRUE(create(object));
  ASSERT_TRUE(table.seal(producer, object));
  EXPECT_EQ(code_of(table.put_aside(producer, object, object_id(8))), Code::conflict);
  ASSERT_TRUE(table.abort(producer, aside));
  EXPECT_EQ(table.used_bytes(), kept);
  ASSERT_TRUE(table.release_owner(owner, object));
  expect_all_goes();
}

TEST_F(ObjectTableTest, AnUnsealedObjectOutlivesItsReferences) {
  // The producer may be writing: its block must not go to another object.
  ASSERT_TRUE(create(object));
  ASSERT_TRUE(table.release_owner(owner, object));
  EXPECT_EQ(table.used_bytes(), 128U);
  ASSERT_TRUE(table.seal(producer, object));
  EXPECT_EQ(table.used_bytes(), 0U);
  EXPECT_EQ(code_of(table.get(producer, object)), Code::not_found);
}

TEST_F(ObjectTableTest, AnotherJobIsDenied) {
  create_sealed(object);
  EXPECT_EQ(code_of(table.get(stranger, object)), Code::denied);
  EXPECT_EQ(code_of(table.pin(stranger, object)), Code::denied);
  EXPECT_EQ(code_of(table.release(stranger, object, 1)), Code::not_found);
  EXPECT_EQ(code_of(table.get({process_id(77), job_id(1)}, object)), Code::denied);
  EXPECT_EQ(code_of(table.pin({process_id(77), job_id(1)}, object)), Code::denied);
  EXPECT_EQ(code_of(table.release({process_id(77), job_id(1)}, object, 1)), Code::denied);
  // A process that serves both jobs reads each as what it then is.
  ASSERT_TRUE(table.attach({stranger.process, job_id(1)}));
  EXPECT_EQ(code_of(table.get({stranger.process, job_id(1)}, object)), Code::ok);
  EXPECT_EQ(code_of(table.get(stranger, object)), Code::denied);
}

TEST_F(ObjectTableTest, OnlyTheOwnerGivesItsHoldUp) {
  create_sealed(object);
  EXPECT_EQ(code_of(table.release_owner(producer.process, object)), Code::denied);
  EXPECT_EQ(code_of(table.release_owner(owner, object_id(2))), Code::not_found);
  EXPECT_EQ(code_of(table.get(reader, object)), Code::ok);
}

TEST_F(ObjectTableTest, AnAdoptedCopyLeavesMemoryOnlyOnceItLiesOnDisk) {
  const CreateRequest request{.object = object, .owner = owner, .size_bytes = 100, .is_copy = true};
  ASSERT_TRUE(table.create(producer, request, Instant{}));
  EXPECT_EQ(code_of(table.adopt(owner, object)), Code::not_found);
  ASSERT_TRUE(table.seal(producer, object));
  EXPECT_EQ(code_of(table.adopt(reader.process, object)), Code::denied);
  ASSERT_TRUE(table.adopt(owner, object));
  ASSERT_TRUE(table.adopt(owner, object));
  EXPECT_EQ(code_of(table.evict(object)), Code::conflict);
  EXPECT_TRUE(table.evictees(producer, 100, 0).at(0).must_be_written);
  ASSERT_TRUE(table.set_spilled(object));
  EXPECT_TRUE(table.evict(object));
  EXPECT_TRUE(table.is_out(object));
  expect_all_goes();
}

TEST_F(ObjectTableTest, WhatIsSealedTwiceForItsOwnerStaysAsItWas) {
  const Block extent = table.reserve(producer, 1024).value();
  const SealedObject first{object, owner, extent.offset_bytes, 100, false};
  SealedObject again{object, owner, extent.offset_bytes + 512, 200, true};
  ASSERT_TRUE(table.seal_reserved(producer, segment, first, Instant{}));
  const Block block = table.get(reader, object).value().value();
  const uint64_t used = table.used_bytes();
  again.owner = reader.process;
  EXPECT_EQ(code_of(table.seal_reserved(producer, segment, again, Instant{})), Code::conflict);
  again.owner = owner;
  ASSERT_TRUE(table.seal_reserved(producer, segment, again, Instant{}));
  EXPECT_EQ(table.get(reader, object).value(), block);
  EXPECT_EQ(table.used_bytes(), used - block_bytes(200));
  // Its owner's word holds it again, and the producer has the pin that it asked for.
  ASSERT_TRUE(table.release_owner(owner, object));
  EXPECT_EQ(table.get(reader, object).value(), block);
  ASSERT_TRUE(table.release(producer, object, 1));
  EXPECT_EQ(code_of(table.get(reader, object)), Code::not_found);
  expect_all_goes();
}

TEST_F(ObjectTableTest, ReleaseIsAllOrNothing) {
  create_sealed(object);
  EXPECT_EQ(code_of(table.release(reader, object, 1)), Code::not_found);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(table.pin(reader, object));
  EXPECT_EQ(code_of(table.release(reader, object, 0)), Code::invalid);
  EXPECT_EQ(code_of(table.release(reader, object, 4)), Code::invalid);
  EXPECT_EQ(code_of(table.release(reader, object, std::numeric_limits<uint32_t>::max())),
            Code::invalid);
  EXPECT_EQ(table.stats().pinned_bytes, 128U);
  EXPECT_EQ(table.list(10).at(0).pins, 3U);
  EXPECT_EQ(code_of(table.release(producer, object, 1)), Code::not_found);  // Another's pins.
  ASSERT_TRUE(table.release(reader, object, 3));
  EXPECT_EQ(table.stats().pinned_objects, 0U);
  EXPECT_EQ(code_of(table.release(reader, object, 1)), Code::not_found);
}

TEST_F(ObjectTableTest, DeadProducersSealedObjectsStayForThoseWhoHoldThem) {
  const ObjectId owned = object_id(1), pinned = object_id(2), unsealed = object_id(3);
  const Block owned_block = create_sealed(owned);
  const Block pinned_block = create_sealed(pinned);
  ASSERT_TRUE(table.pin(reader, pinned));
  ASSERT_TRUE(table.release_owner(owner, pinned));
  ASSERT_TRUE(create(unsealed));
  ASSERT_TRUE(table.pin(reader, unsealed));

  table.process_died(producer.process);
  table.process_died(producer.process);
  EXPECT_EQ(table.get(reader, owned).value(), owned_block);
  EXPECT_EQ(table.get(reader, pinned).value(), pinned_block);
  EXPECT_EQ(code_of(table.get(reader, unsealed)), Code::not_found);
  EXPECT_EQ(table.used_bytes(), 256U);
  EXPECT_EQ(code_of(create(object_id(4))), Code::denied);
  EXPECT_EQ(code_of(table.seal(producer, owned)), Code::denied);
  const Stats stats = table.stats();
  const auto dead = std::ranges::find(stats.processes, producer.process, &ProcessStats::process);
  ASSERT_NE(dead, stats.processes.end());
  EXPECT_FALSE(dead->alive);
  EXPECT_EQ(dead->objects, 2U);

  EXPECT_TRUE(table.take_dropped().empty());
  ASSERT_TRUE(table.release(reader, pinned, 1));
  EXPECT_TRUE(table.take_dropped().empty());
  ASSERT_TRUE(table.release_owner(owner, owned));
  EXPECT_EQ(table.take_dropped(), std::vector{segment});
  EXPECT_TRUE(table.take_dropped().empty());
  EXPECT_EQ(table.committed_bytes(), page_bytes);  // Until the system has it back.
  ASSERT_TRUE(table.segment_closed(segment));
  EXPECT_EQ(table.committed_bytes(), 0U);
  EXPECT_EQ(code_of(table.segment_closed(segment)), Code::not_found);
  expect_all_goes();
}

TEST_F(ObjectTableTest, DeadReadersPinsAndDeadOwnersHoldsGo) {
  create_sealed(object);
  ASSERT_TRUE(table.pin(reader, object));
  ASSERT_TRUE(table.pin(reader, object));
  ASSERT_TRUE(table.release_owner(owner, object));
  table.process_died(reader.process);
  EXPECT_EQ(table.stats().objects, 0U);

  for (uint64_t n = 10; n < 20; ++n) create_sealed(object_id(n));
  ASSERT_TRUE(table.pin(producer, object_id(15)));
  table.process_died(owner);
  EXPECT_EQ(table.stats().objects, 1U);
  EXPECT_EQ(code_of(table.get(producer, object_id(15))), Code::ok);
  expect_all_goes();
}

TEST_F(ObjectTableTest, AProcessThatWasEverythingDiesCleanly) {
  const auto own = [&](uint64_t n) {
    return CreateRequest{.object = object_id(n), .owner = producer.process, .size_bytes = 1};
  };
  for (uint64_t n = 1; n <= 6; ++n) {
    ASSERT_TRUE(table.create(producer, own(n), Instant{}));
    if (n % 2 == 0) {
      ASSERT_TRUE(table.seal(producer, object_id(n)));
    }
    if (n % 3 != 0) {
      ASSERT_TRUE(table.pin(producer, object_id(n)));
    }
  }
  table.process_died(producer.process);
  EXPECT_EQ(table.stats().objects, 0U);
  EXPECT_EQ(table.take_dropped(), std::vector{segment});
  ASSERT_TRUE(table.segment_closed(segment));
  expect_all_goes();
}

TEST_F(ObjectTableTest, OneSegmentACallerAndOnlyOfPossibleSizes) {
  EXPECT_EQ(table.segment_of(producer), segment);
  EXPECT_EQ(table.segment_of(reader), std::nullopt);
  EXPECT_EQ(code_of(table.add_segment(producer, page_bytes)), Code::conflict);
  for (const uint64_t size : {uint64_t{0}, page_bytes + 1, segment_bytes_max + page_bytes}) {
    EXPECT_EQ(code_of(table.add_segment(reader, size)), Code::invalid) << size;
  }
  EXPECT_EQ(code_of(table.add_segment({process_id(77), job_id(1)}, page_bytes)), Code::denied);
  EXPECT_EQ(code_of(table.attach({ProcessId{}, job_id(1)})), Code::invalid);
  EXPECT_EQ(code_of(table.attach({process_id(77), JobId{}})), Code::invalid);
}

TEST_F(ObjectTableTest, MemoryOfEmptySegmentsCountsUntilItIsGivenBack) {
  // Freed blocks keep their pages: what a neighbour may use is less by them.
  create_sealed(object, capacity);
  ASSERT_TRUE(table.release_owner(owner, object));
  EXPECT_EQ(table.used_bytes(), 0U);
  EXPECT_EQ(table.committed_bytes(), capacity);
  EXPECT_TRUE(table.can_fit(producer, capacity));
  ASSERT_TRUE(table.add_segment(reader, capacity));
  const CreateRequest request{.object = object, .owner = owner, .size_bytes = 100};
  EXPECT_EQ(code_of(table.create(reader, request, Instant{})), Code::exhausted);
  EXPECT_FALSE(table.can_fit(reader, 100));

  int calls = 0;
  table.on_freed([&] { ++calls; });
  EXPECT_EQ(table.drop_empty_segments(0), 0U);
  EXPECT_EQ(table.drop_empty_segments(1), capacity);
  EXPECT_EQ(table.drop_empty_segments(1), 0U);
  EXPECT_EQ(code_of(table.segment_closed(segment)), Code::not_found);  // Not taken yet.
  EXPECT_EQ(table.take_dropped(), std::vector{segment});
  EXPECT_FALSE(table.can_fit(reader, 100));
  EXPECT_EQ(calls, 0);
  ASSERT_TRUE(table.segment_closed(segment));
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(table.create(reader, request, Instant{}));
  // The first producer starts anew.
  EXPECT_EQ(code_of(create(object_id(2))), Code::conflict);
  EXPECT_NE(table.add_segment(producer, capacity).value(), segment);
  EXPECT_TRUE(create(object_id(2)));
  table.on_freed({});
  expect_all_goes();
}

TEST_F(ObjectTableTest, AJobsEndTakesItsObjectsAndLeavesOthers) {
  const SegmentId other = table.add_segment(stranger, capacity).value();
  const ObjectId theirs = object_id(50);
  ASSERT_TRUE(
      table.create(stranger, {.object = theirs, .owner = owner, .size_bytes = 1}, Instant{}));
  create_sealed(object);
  ASSERT_TRUE(create(object_id(2)));
  ASSERT_TRUE(table.pin(reader, object));
  table.end_job(job_id(1));
  EXPECT_EQ(table.take_dropped(), std::vector{segment});
  EXPECT_EQ(code_of(table.get(reader, object)), Code::denied);
  EXPECT_EQ(table.stats().objects, 1U);
  EXPECT_EQ(table.stats().pinned_objects, 0U);
  EXPECT_EQ(table.segment_of(stranger), other);
  EXPECT_TRUE(table.seal(stranger, theirs));
  ASSERT_TRUE(table.segment_closed(segment));
  expect_all_goes();
}

TEST_F(ObjectTableTest, ListTellsWhoHoldsWhat) {
  const Instant now = Instant{} + std::chrono::seconds{5};
  ASSERT_TRUE(table.create(producer, {.object = object, .owner = owner, .size_bytes = 7}, now));
  ASSERT_TRUE(table.pin(reader, object));
  const ObjectInfo info = table.list(10).at(0);
  EXPECT_EQ(info.object, object);
  EXPECT_EQ(info.job, producer.job);
  EXPECT_EQ(info.producer, producer.process);
  EXPECT_EQ(info.owner, owner);
  EXPECT_EQ(info.block, (Block{segment, 0, 7}));
  EXPECT_FALSE(info.sealed);
  EXPECT_TRUE(info.owner_holds);
  EXPECT_EQ(info.pins, 1U);
  EXPECT_EQ(info.created, now);
  ASSERT_TRUE(create(object_id(2)));
  EXPECT_EQ(table.list(1).size(), 1U);
  EXPECT_EQ(table.list(10).size(), 2U);
}

// --- Pressure

TEST_F(ObjectTableTest, TheColdestUnpinnedObjectsLeaveFirst) {
  for (uint64_t n = 1; n <= 4; ++n) create_sealed(object_id(n), page_bytes);
  ASSERT_TRUE(create(object_id(5), page_bytes));  // Unsealed: it stays.
  ASSERT_TRUE(table.pin(reader, object_id(1)));
  ASSERT_TRUE(table.pin(reader, object_id(2)));
  ASSERT_TRUE(table.release(reader, object_id(2), 1));  // Used last.
  const auto all = table.evictees(producer, page_bytes, capacity);
  std::vector<ObjectId> order;
  for (const Evictee& one : all) {
    order.push_back(one.object);
    EXPECT_TRUE(one.must_be_written);
  }
  EXPECT_EQ(order, (std::vector{object_id(3), object_id(4), object_id(2)}));
  EXPECT_EQ(table.evictees(producer, page_bytes, 0).size(), 1U);
  expect_all_goes();
}

TEST_F(ObjectTableTest, ASpilledObjectLeavesMemoryAndComesBack) {
  create_sealed(object, 5000);
  EXPECT_EQ(code_of(table.evict(object)), Code::conflict);  // It lies nowhere else.
  ASSERT_TRUE(table.set_spilled(object));
  EXPECT_EQ(code_of(table.set_spilled(object)), Code::conflict);
  EXPECT_EQ(table.spilled_bytes(), 2 * page_bytes);
  EXPECT_TRUE(table.get(reader, object).value());  // In memory, too.
  ASSERT_TRUE(table.pin(reader, object));
  EXPECT_EQ(code_of(table.evict(object)), Code::conflict);  // Somebody reads it.
  ASSERT_TRUE(table.release(reader, object, 1));
  ASSERT_TRUE(table.evict(object));
  EXPECT_EQ(code_of(table.evict(object)), Code::conflict);
  EXPECT_TRUE(table.is_out(object));
  EXPECT_EQ(table.used_bytes(), 0U);
  EXPECT_EQ(table.get(reader, object).value(), std::nullopt);

  ASSERT_TRUE(table.add_segment(reader, capacity));
  ASSERT_TRUE(table.pin(reader, object));
  const Block block = table.restore(reader, object).value();
  EXPECT_EQ(block.size_bytes, 5000U);
  EXPECT_EQ(code_of(table.restore(reader, object)), Code::conflict);
  EXPECT_EQ(table.get(reader, object).value(), std::nullopt);  // Nobody reads half of it.
  ASSERT_TRUE(table.restore_failed(object));
  EXPECT_EQ(table.used_bytes(), 0U);
  ASSERT_TRUE(table.restore(reader, object));
  ASSERT_TRUE(table.restored(object));
  EXPECT_TRUE(table.get(producer, object).value());
  EXPECT_TRUE(table.take_gone().empty());
  // A second time nothing has to be written.
  ASSERT_TRUE(table.release(reader, object, 1));
  const auto again = table.evictees(reader, page_bytes, 0);
  ASSERT_EQ(again.size(), 1U);
  EXPECT_FALSE(again[0].must_be_written);

  ASSERT_TRUE(table.evict(object));
  ASSERT_TRUE(table.release_owner(owner, object));
  const auto gone = table.take_gone();
  ASSERT_EQ(gone.size(), 1U);
  EXPECT_EQ(gone[0].object, object);
  EXPECT_TRUE(gone[0].spilled);
  EXPECT_EQ(table.spilled_bytes(), 0U);
  expect_all_goes();
}

TEST_F(ObjectTableTest, WhatIsOutOnDiskGoesWithItsOwnerAndItsJob) {
  for (const uint64_t n : {1, 2}) {
    create_sealed(object_id(n), 100);
    ASSERT_TRUE(table.set_spilled(object_id(n)));
    ASSERT_TRUE(table.evict(object_id(n)));
  }
  ASSERT_TRUE(table.pin(reader, object_id(2)));  // It waits for it.
  table.process_died(owner);
  EXPECT_EQ(table.take_gone().size(), 1U);
  table.end_job(producer.job);
  EXPECT_EQ(table.take_gone().size(), 1U);
  EXPECT_EQ(table.stats().spilled_objects, 0U);
  EXPECT_EQ(table.spilled_bytes(), 0U);
  expect_all_goes();
}

TEST_F(ObjectTableTest, ACopyIsEvictedAltogether) {
  const CreateRequest request{.object = object, .owner = owner, .size_bytes = 100, .is_copy = true};
  ASSERT_TRUE(table.create(producer, request, Instant{}));
  ASSERT_TRUE(table.seal(producer, object));
  EXPECT_EQ(code_of(table.set_spilled(object)), Code::conflict);
  const auto leaving = table.evictees(producer, 100, 0);
  ASSERT_EQ(leaving.size(), 1U);
  EXPECT_FALSE(leaving[0].must_be_written);
  ASSERT_TRUE(table.evict(object));
  EXPECT_EQ(code_of(table.get(reader, object)), Code::not_found);
  const auto gone = table.take_gone();
  ASSERT_EQ(gone.size(), 1U);
  EXPECT_TRUE(gone[0].is_copy);
  EXPECT_TRUE(gone[0].owner_held);  // So it has to be told.
  expect_all_goes();
}

// A segment gives its memory back only when nothing lies in it.
TEST_F(ObjectTableTest, AnotherProcessGetsRoomByEmptyingWholeSegments) {
  create_sealed(object_id(1), capacity / 2);
  create_sealed(object_id(2), capacity / 2);
  ASSERT_TRUE(table.add_segment(reader, capacity));
  EXPECT_FALSE(table.can_fit(reader, 100));
  ASSERT_TRUE(table.pin(producer, object_id(1)));
  EXPECT_TRUE(table.evictees(reader, 100, 0).empty());  // To spill the other would be in vain.
  ASSERT_TRUE(table.release(producer, object_id(1), 1));
  const auto leaving = table.evictees(reader, 100, 0);
  ASSERT_EQ(leaving.size(), 2U);
  for (const Evictee& one : leaving) {
    ASSERT_TRUE(table.set_spilled(one.object));
    ASSERT_TRUE(table.evict(one.object));
  }
  EXPECT_GT(table.drop_empty_segments(100), 0U);
  for (const SegmentId id : table.take_dropped()) ASSERT_TRUE(table.segment_closed(id));
  EXPECT_TRUE(table.can_fit(reader, 100));
  EXPECT_EQ(table.evictees(stranger, 100, 0).size(), 0U);  // It has no segment to be placed in.
  expect_all_goes();
}

TEST(ObjectTableReserve, WhatComesBackFindsRoomBesideAPinnedSegment) {
  SeededRandom random{1};
  ObjectTable table{capacity, random};
  const Caller worker{process_id(1), job_id(1)};
  const Caller maker{process_id(2), job_id(1)};
  table.keep_room(worker.process, capacity / 8);
  for (const Caller& caller : {worker, maker}) {
    ASSERT_TRUE(table.attach(caller));
    ASSERT_TRUE(table.add_segment(caller, capacity));
  }
  const auto create = [&](const Caller& caller, uint64_t n, uint64_t size) {
    const CreateRequest request{.object = object_id(n), .owner = process_id(9), .size_bytes = size};
    return table.create(caller, request, Instant{});
  };
  EXPECT_EQ(code_of(create(maker, 1, capacity / 4)), Code::ok);
  EXPECT_EQ(code_of(create(maker, 2, capacity / 2)), Code::ok);
  EXPECT_EQ(code_of(create(maker, 3, capacity / 4)), Code::exhausted);
  EXPECT_EQ(code_of(create(maker, 3, capacity / 8)), Code::ok);
  EXPECT_EQ(code_of(create(worker, 4, capacity / 8)), Code::ok);
  EXPECT_EQ(table.committed_bytes(), capacity);
  // It is not for ever closed to what needs all of the store.
  ObjectTable empty{capacity, random};
  empty.keep_room(worker.process, capacity / 8);
  ASSERT_TRUE(empty.attach(maker));
  ASSERT_TRUE(empty.add_segment(maker, capacity));
  EXPECT_TRUE(empty.can_fit(maker, capacity));
}

}  // namespace
}  // namespace troupe::object_store
