// How long it is known how results were made.
#include "client/lineage.h"

#include <gtest/gtest.h>

namespace troupe::client {
namespace {

ObjectId id_of(uint64_t number) {
  ObjectId id;
  id.high = 1;
  id.low = number * 1000;
  return id;
}

class LineageTest : public testing::Test {
 protected:
  // Of the results it makes those in `stored` are there.
  Lineage::RecipePointer add(uint64_t first, const std::vector<ObjectId>& stored,
                             std::vector<uint64_t> parents = {}, uint32_t results = 1) {
    auto recipe = std::make_shared<Lineage::Recipe>();
    auto traits = std::make_shared<TaskTraits>();
    traits->results = results;
    recipe->traits = std::move(traits);
    recipe->first = id_of(first);
    recipe->bytes = 100;
    recipe->kept = {{id_of(first + 500), {}}};
    for (const uint64_t parent : parents) {
      lineage.use(id_of(parent));
      recipe->parents.push_back(id_of(parent));
    }
    lineage.add(recipe, stored);
    return recipe;
  }
  bool knows(uint64_t result) const { return lineage.find(id_of(result)) != nullptr; }
  size_t dropped() { return lineage.take_dropped().size(); }

  Lineage lineage{1000};
};

TEST_F(LineageTest, ARecipeGoesWithTheLastOfItsResults) {
  add(1, {id_of(1), result_id(id_of(1), 2)}, {}, 3);
  EXPECT_EQ(lineage.bytes(), 100u);
  lineage.disuse(id_of(1));
  EXPECT_TRUE(lineage.find(result_id(id_of(1), 1)));
  EXPECT_EQ(dropped(), 0u);
  lineage.disuse(result_id(id_of(1), 2));
  EXPECT_FALSE(knows(1));
  EXPECT_FALSE(lineage.find(result_id(id_of(1), 1)));
  EXPECT_EQ(lineage.bytes(), 0u);
  EXPECT_EQ(dropped(), 1u);
}

TEST_F(LineageTest, ARecipeStaysForThoseMadeOfItsResults) {
  add(1, {id_of(1)});
  add(2, {id_of(2)}, {1, 1});
  add(3, {id_of(3)}, {2, 1});
  lineage.disuse(id_of(1));
  lineage.disuse(id_of(2));
  EXPECT_TRUE(knows(1));
  EXPECT_TRUE(knows(2));
  lineage.disuse(id_of(3));
  EXPECT_FALSE(knows(1));
  EXPECT_FALSE(knows(2));
  EXPECT_FALSE(knows(3));
  EXPECT_EQ(dropped(), 3u);
}

TEST_F(LineageTest, AResultThatIsWantedAgainCounts) {
  add(1, {id_of(1)});
  add(2, {id_of(2)}, {1});
  lineage.disuse(id_of(1));
  lineage.use(id_of(1));
  lineage.disuse(id_of(2));
  EXPECT_TRUE(knows(1));
  lineage.disuse(id_of(1));
  EXPECT_FALSE(knows(1));
}

TEST_F(LineageTest, TheOldestGoOverTheLimit) {
  for (uint64_t i = 1; i <= 10; ++i) add(i, {id_of(i)});
  EXPECT_TRUE(knows(1));
  add(11, {id_of(11)}, {2});
  EXPECT_FALSE(knows(1));
  EXPECT_TRUE(knows(2));
  add(12, {id_of(12)});
  EXPECT_FALSE(knows(2));
  EXPECT_EQ(lineage.bytes(), 1000u);
  EXPECT_EQ(dropped(), 2u);
  // What was made of it, and its own result, go later.
  lineage.disuse(id_of(2));
  lineage.disuse(id_of(11));
  EXPECT_FALSE(knows(11));
  EXPECT_EQ(lineage.bytes(), 900u);
}

TEST_F(LineageTest, ALongChainGoesAtOnce) {
  Lineage all{uint64_t{1} << 40};
  constexpr uint64_t length = 200'000;
  for (uint64_t i = 1; i <= length; ++i) {
    auto recipe = std::make_shared<Lineage::Recipe>();
    recipe->traits = std::make_shared<TaskTraits>();
    recipe->first = id_of(i);
    if (i > 1) {
      all.use(id_of(i - 1));
      recipe->parents.push_back(id_of(i - 1));
    }
    all.add(recipe, {id_of(i)});
    if (i > 1) all.disuse(id_of(i - 1));
  }
  EXPECT_TRUE(all.find(id_of(1)));
  all.disuse(id_of(length));
  EXPECT_FALSE(all.find(id_of(1)));
  EXPECT_FALSE(all.find(id_of(length)));
}

}  // namespace
}  // namespace troupe::client
