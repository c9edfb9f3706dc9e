// The rows of the head's tables, as the next head finds them.
#include "head/tables.h"

#include <gtest/gtest.h>

#include "base/random.h"
#include "metadata/map_store.h"

namespace troupe::head {
namespace {

// More than are read at a time, so that several threads read: every third holds devices, whose row
// may be the first of a page.
constexpr uint32_t many = 10'000;

class HeadTables : public testing::Test {
 protected:
  void SetUp() override {
    SeededRandom random{5};
    Batch batch;
    for (uint32_t i = 1; i <= many; ++i) {
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

  MapStore store{MapOptions{}};
};

TEST_F(HeadTables, ManyActorsAreLoadedInOrderEachWithItsDevices) {
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
  EXPECT_EQ(count, many);
  EXPECT_EQ(sum, uint64_t{many} * (many + 1) / 2);
}

TEST_F(HeadTables, ARowThatCannotBeReadIsNamedAmongMany) {
  const std::string key(32, 'c');
  ASSERT_TRUE(store.commit(Batch{}.put(Table::actors, key, "no message"), 1));
  const auto state = load(store);
  ASSERT_FALSE(state);
  EXPECT_EQ(state.error().code(), Code::data_loss);
  EXPECT_NE(state.error().message().find(key), std::string::npos) << state.error().message();
}

}  // namespace
}  // namespace troupe::head
