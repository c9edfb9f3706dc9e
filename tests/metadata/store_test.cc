// The conformance suite: what every Store does, whatever it stands on.
#include "metadata/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <optional>

#include "base/random.h"
#include "metadata/map_store.h"
#include "tests/metadata/metadata_fixture.h"

namespace troupe {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

// A store and the disk under it.
class Bench {
 public:
  virtual ~Bench() = default;
  virtual Store& store() = 0;
  // What a new head finds after the old one died.
  virtual void reopen() = 0;
};

class MapBench final : public Bench {
 public:
  Store& store() override { return store_; }
  void reopen() override { store_.crash(); }

 private:
  MapStore store_{MapOptions{.cluster_id = test_cluster()}};
};

class RocksBench final : public Bench {
 public:
  RocksBench() { reopen(); }
  Store& store() override { return *store_; }
  void reopen() override {
    store_.reset();
    store_ = open_or_create(directory_ / "metadata");
  }

 private:
  ScratchDirectory directory_;
  std::unique_ptr<Store> store_;
};

using MakeBench = std::unique_ptr<Bench> (*)();

class StoreConformance : public testing::TestWithParam<MakeBench> {
 protected:
  Store& store() { return bench_->store(); }
  void reopen() { bench_->reopen(); }
  std::optional<std::string> row(Table table, std::string_view key) {
    return store().get(table, key).value();
  }

 private:
  const std::unique_ptr<Bench> bench_ = GetParam()();
};

TEST_P(StoreConformance, ANewStoreHoldsItsOwnRowsOnly) {
  for (const Table table : tables) {
    if (table == Table::meta) continue;
    EXPECT_THAT(store().scan(table, "").value(), IsEmpty());
  }
  EXPECT_THAT(store().scan(Table::meta, "").value(),
              ElementsAre(Pair(cluster_key, test_cluster().to_string()), Pair(schema_key, "1")));
  EXPECT_EQ(store().epoch(), 0U);
  EXPECT_EQ(store().cluster_id(), test_cluster());
  EXPECT_TRUE(store().health());
}

TEST_P(StoreConformance, ACommitIsReadBackAndSurvivesReopening) {
  Batch batch;
  batch.put(Table::jobs, "a", "1").put(Table::nodes, "a", "2").put(Table::jobs, "", "empty key");
  ASSERT_TRUE(store().commit(batch, 1));
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(row(Table::jobs, "a"), "1");
    EXPECT_EQ(row(Table::nodes, "a"), "2");
    EXPECT_EQ(row(Table::jobs, ""), "empty key");
    EXPECT_EQ(row(Table::actors, "a"), std::nullopt);
    reopen();
  }
}

TEST_P(StoreConformance, ALaterMutationOfABatchWins) {
  Batch batch;
  batch.put(Table::names, "a", "1").erase(Table::names, "a").put(Table::names, "a", "2");
  batch.put(Table::names, "b", "1").erase(Table::names, "b").erase(Table::names, "never there");
  ASSERT_TRUE(store().commit(batch, 1));
  EXPECT_THAT(store().scan(Table::names, "").value(), ElementsAre(Pair("a", "2")));
}

TEST_P(StoreConformance, AnEmptyValueIsARow) {
  ASSERT_TRUE(store().commit(Batch{}.put(Table::users, "a", ""), 1));
  EXPECT_EQ(row(Table::users, "a"), "");
}

TEST_P(StoreConformance, KeysAndValuesAreBytes) {
  const std::string key{"\0\xff\n", 3};
  ASSERT_TRUE(store().commit(Batch{}.put(Table::users, key, key), 1));
  reopen();
  EXPECT_EQ(row(Table::users, key), key);
}

TEST_P(StoreConformance, AScanGivesThePrefixInOrderOfBytes) {
  Batch batch;
  for (const char* key : {"a", "ab", "a\xff", "b", "A", "a/1", "a/10", "a/2"}) {
    batch.put(Table::events, key, "");
  }
  batch.put(Table::placement_groups, "a/3", "");  // A neighbour in another table.
  ASSERT_TRUE(store().commit(batch, 1));
  EXPECT_THAT(store().scan(Table::events, "a/").value(),
              ElementsAre(Pair("a/1", ""), Pair("a/10", ""), Pair("a/2", "")));
  EXPECT_EQ(store().scan(Table::events, "a").value().size(), 6U);
  EXPECT_EQ(store().scan(Table::events, "").value().size(), 8U);
  EXPECT_THAT(store().scan(Table::events, "c").value(), IsEmpty());
}

TEST_P(StoreConformance, AScanGoesOnAfterAPage) {
  Batch batch;
  for (int i = 10; i < 35; ++i) batch.put(Table::events, "e" + std::to_string(i), "");
  ASSERT_TRUE(store().commit(batch, 1));
  Rows all;
  for (Page page{.after = {}, .rows_max = 10};;) {
    const Rows part = store().scan(Table::events, "e", page).value();
    all.insert(all.end(), part.begin(), part.end());
    if (part.size() < page.rows_max) break;
    page.after = part.back().first;
  }
  EXPECT_EQ(all, store().scan(Table::events, "e").value());
  // Between rows, before the prefix and behind it.
  EXPECT_EQ(store().scan(Table::events, "e", {.after = "e119"}).value().front().first, "e12");
  EXPECT_EQ(store().scan(Table::events, "e", {.after = "a"}).value().size(), 25U);
  EXPECT_THAT(store().scan(Table::events, "e", {.after = "f"}).value(), IsEmpty());
  EXPECT_THAT(store().scan(Table::events, "e", {.rows_max = 0}).value(), IsEmpty());
}

TEST_P(StoreConformance, AnOlderEpochWritesNothing) {
  ASSERT_TRUE(store().commit(Batch{}.put(Table::names, "a", "old"), 3));
  ASSERT_TRUE(store().commit(Batch{}, 5));  // Another head takes over.
  const Status refused = store().commit(Batch{}.put(Table::names, "a", "late"), 4);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::conflict);
  EXPECT_EQ(store().commit(Batch{}, 4).error().code(), Code::conflict);
  EXPECT_EQ(row(Table::names, "a"), "old");
  // A refusal is no failure: the present head goes on, also after the next restart.
  EXPECT_TRUE(store().health());
  reopen();
  EXPECT_EQ(store().epoch(), 5U);
  EXPECT_EQ(store().commit(Batch{}, 4).error().code(), Code::conflict);
  EXPECT_TRUE(store().commit(Batch{}.put(Table::names, "a", "new"), 5));
}

TEST_P(StoreConformance, TheStoresOwnRowsAreRefusedWithTheirWholeBatch) {
  for (const std::string_view key : {schema_key, cluster_key, epoch_key}) {
    Batch batch;
    batch.put(Table::names, "a", "1").put(Table::meta, std::string(key), "7");
    EXPECT_EQ(store().commit(batch, 1).error().code(), Code::invalid);
    EXPECT_EQ(store().commit(Batch{}.erase(Table::meta, std::string(key)), 1).error().code(),
              Code::invalid);
  }
  EXPECT_EQ(row(Table::names, "a"), std::nullopt);
  EXPECT_EQ(store().epoch(), 0U);
  EXPECT_TRUE(store().commit(Batch{}.put(Table::meta, "leader", "me"), 1));
}

TEST_P(StoreConformance, TheStateHashTellsContentsApart) {
  const auto hash = [this] { return store().state_hash().value(); };
  const std::string at_first = hash();
  ASSERT_TRUE(store().commit(Batch{}.put(Table::names, "ab", "c"), 0));
  const std::string joined = hash();
  EXPECT_NE(joined, at_first);
  ASSERT_TRUE(store().commit(Batch{}.erase(Table::names, "ab").put(Table::names, "a", "bc"), 0));
  EXPECT_NE(hash(), joined);
  ASSERT_TRUE(store().commit(Batch{}.erase(Table::names, "a").put(Table::users, "ab", "c"), 0));
  EXPECT_NE(hash(), joined);
  ASSERT_TRUE(store().commit(Batch{}.erase(Table::users, "ab"), 0));
  EXPECT_EQ(hash(), at_first);
  reopen();
  EXPECT_EQ(hash(), at_first);
}

INSTANTIATE_TEST_SUITE_P(Map, StoreConformance, testing::Values(+[]() -> std::unique_ptr<Bench> {
                           return std::make_unique<MapBench>();
                         }));
INSTANTIATE_TEST_SUITE_P(Rocks, StoreConformance, testing::Values(+[]() -> std::unique_ptr<Bench> {
                           return std::make_unique<RocksBench>();
                         }));

TEST(Stores, AgreeAfterRandomBatchesAndCrashes) {
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    SCOPED_TRACE("TROUPE_SEED=" + std::to_string(seed));
    SeededRandom random{seed};
    MapBench map;
    RocksBench rocks;
    uint64_t epoch = 1;
    for (int step = 0; step < 60; ++step) {
      Batch batch;
      for (uint64_t i = random.below(8); i > 0; --i) {
        const Table table = tables[random.below(tables.size())];
        const std::string key = std::to_string(random.below(20));
        if (random.chance(0.3)) {
          batch.erase(table, key);
        } else {
          batch.put(table, key, std::string(random.below(300), static_cast<char>(random.next())));
        }
      }
      epoch += random.below(2);
      const uint64_t used = random.chance(0.1) ? epoch - 1 : epoch;
      const Status first = map.store().commit(batch, used);
      const Status second = rocks.store().commit(batch, used);
      ASSERT_EQ(first.has_value(), second.has_value());
      if (random.chance(0.05)) {
        map.reopen();
        rocks.reopen();
      }
      ASSERT_EQ(map.store().epoch(), rocks.store().epoch());
      ASSERT_EQ(map.store().state_hash().value(), rocks.store().state_hash().value());
    }
  }
}

TEST(MapStore, ACrashLosesWhatALazySyncDidNotReach) {
  MapStore store{{.cluster_id = test_cluster(), .lazy_sync = true}};
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(store.commit(pair_of_rows(i), 1));
  store.sync();
  for (int i = 2; i < 5; ++i) ASSERT_TRUE(store.commit(pair_of_rows(i), 2));
  EXPECT_EQ(store.unsynced_records(), 3U);
  EXPECT_EQ(count_pairs(store), 5);
  store.crash(1);  // The disk had got as far as the first of the three.
  EXPECT_EQ(count_pairs(store), 3);
  EXPECT_EQ(store.epoch(), 2U);
  ASSERT_TRUE(store.commit(pair_of_rows(3), 2));
  store.crash();
  EXPECT_EQ(count_pairs(store), 3);
}

TEST(MapStore, AFailedCommitClosesTheStoreUntilItIsOpenedAnew) {
  MapStore store{{.cluster_id = test_cluster()}};
  store.fail_next_commit(error(Code::exhausted, "disk full"));
  EXPECT_EQ(store.commit(pair_of_rows(0), 1).error().code(), Code::exhausted);
  EXPECT_EQ(store.health().error().code(), Code::exhausted);
  EXPECT_EQ(store.commit(pair_of_rows(0), 1).error().code(), Code::unavailable);
  EXPECT_EQ(count_pairs(store), 0);
  store.crash();
  EXPECT_TRUE(store.health());
  EXPECT_TRUE(store.commit(pair_of_rows(0), 1));
}

}  // namespace
}  // namespace troupe
