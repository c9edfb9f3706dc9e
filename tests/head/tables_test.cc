// The rows of the head's tables, as the next head finds them.
#include "head/tables.h"

#include <gtest/gtest.h>

#include <atomic>

#include "base/random.h"
#include "metadata/map_store.h"

namespace troupe::head {
namespace {

// More than are read at a time, so that several threads read: every third holds devices, whose row
// may be the first of a page.
constexpr uint32_t many = 10'000;

class CountingStore final : public Store {
 public:
  Result<std::optional<std::string>> get(Table table, std::string_view key) override {
    return inner_.get(table, key);
  }
  Result<Rows> scan(Table table, std::string_view prefix, const Page& page) override {
    if (table == Table::actors) ++actor_scans;
    return inner_.scan(table, prefix, page);
  }
  Result<std::unique_ptr<Snapshot>> snapshot() override { return inner_.snapshot(); }
  Status commit(const Batch& batch, uint64_t epoch) override { return inner_.commit(batch, epoch); }
  uint64_t epoch() const override { return inner_.epoch(); }
  ClusterId cluster_id() const override { return inner_.cluster_id(); }
  Status health() const override { return inner_.health(); }

  std::atomic<int> actor_scans = 0;

 private:
  MapStore inner_{MapOptions{}};
};

class HeadTables : public testing::Test {
 protected:
  void fill(uint32_t actors) {
    SeededRandom random{5};
    Batch batch;
    for (uint32_t i = 1; i <= actors; ++i) {
      StoredActor actor;
      actor.record.info.actor = actor.record.spec.actor = ActorId::random(random);
      actor.record.info.incarnation = i;
      actor.record.info.state = "alive";
      if (i % 3 == 0) {
        actor.devices = {i};
        actor.bundle = i + 1;
        actor.grant = i + 2;
      }
      put_actor(batch, actor);
    }
    ASSERT_TRUE(store.commit(batch, 1));
  }

  // The next head finds all of them.
  void expect_loaded(uint32_t actors);

  CountingStore store;
};

void HeadTables::expect_loaded(uint32_t actors) {
  const auto state = load(store);
  ASSERT_TRUE(state) << state.error().message();
  uint32_t count = 0;
  uint64_t sum = 0;
  ActorId before{};
  for (const auto& page : state->actors) {
    EXPECT_FALSE(page.empty());
    for (const StoredActor& actor : page) {
      const uint32_t i = actor.record.info.incarnation;
      ++count;
      sum += i;
      EXPECT_LT(before, actor.record.info.actor);
      before = actor.record.info.actor;
      EXPECT_EQ(actor.devices, i % 3 == 0 ? std::vector<uint32_t>{i} : std::vector<uint32_t>{});
      EXPECT_EQ(actor.bundle, i % 3 == 0 ? i + 1 : 0);
      EXPECT_EQ(actor.grant, i % 3 == 0 ? i + 2 : 0);
    }
  }
  EXPECT_EQ(count, actors);
  EXPECT_EQ(sum, uint64_t{actors} * (actors + 1) / 2);
}

TEST_F(HeadTables, ManyActorsAreLoadedInOrderEachWithItsDevices) {
  fill(many);
  expect_loaded(many);
}

TEST_F(HeadTables, FewActorsAreReadOnce) {
  expect_loaded(0);
  EXPECT_EQ(store.actor_scans, 1);
  fill(3000);  // With their devices 4,000 rows, of 4,096 in a page.
  expect_loaded(3000);
  EXPECT_EQ(store.actor_scans, 2);
}

TEST_F(HeadTables, ARowThatCannotBeReadIsNamedAmongMany) {
  fill(many);
  const std::string key(32, 'c');
  ASSERT_TRUE(store.commit(Batch{}.put(Table::actors, key, "no message"), 1));
  const auto state = load(store);
  ASSERT_FALSE(state);
  EXPECT_EQ(state.error().code(), Code::data_loss);
  EXPECT_NE(state.error().message().find(key), std::string::npos) << state.error().message();
}

}  // namespace
}  // namespace troupe::head
