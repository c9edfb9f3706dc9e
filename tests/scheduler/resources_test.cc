#include "scheduler/resources.h"

#include <gtest/gtest.h>

#include <limits>

namespace troupe::scheduler {
namespace {

ResourceVector gpu(int64_t milli) {
  return {.gpu_milli = milli};
}

TEST(ResourceVector, AddAndSubtractAreExactInverses) {
  ResourceVector sum{.cpu_milli = 1, .memory_mib = 2, .custom = {{"b", 3}}};
  const ResourceVector before = sum;
  const ResourceVector term{
      .cpu_milli = 999, .memory_mib = 1, .gpu_milli = 250, .custom = {{"b", 7}}};
  ASSERT_TRUE(add(sum, term));
  EXPECT_EQ(sum.cpu_milli, 1000);
  EXPECT_EQ(sum.custom_milli("b"), 10);
  ASSERT_TRUE(subtract(sum, term));
  EXPECT_EQ(sum, before);
}

TEST(ResourceVector, AddKeepsNamesInOrder) {
  ResourceVector sum{.custom = {{"b", 1}}};
  ASSERT_TRUE(add(sum, {.custom = {{"a", 2}, {"c", 3}}}));
  EXPECT_EQ(sum.custom, (std::vector<CustomAmount>{{"a", 2}, {"b", 1}, {"c", 3}}));
}

TEST(ResourceVector, OverflowAndUnderflowChangeNothing) {
  ResourceVector sum{.cpu_milli = 5, .memory_mib = std::numeric_limits<int64_t>::max()};
  const ResourceVector before = sum;
  EXPECT_EQ(add(sum, {.cpu_milli = 1, .memory_mib = 1}).error().code(), Code::exhausted);
  EXPECT_EQ(sum, before);
  EXPECT_EQ(subtract(sum, {.cpu_milli = 1, .gpu_milli = 1}).error().code(), Code::exhausted);
  EXPECT_EQ(subtract(sum, {.cpu_milli = 1, .custom = {{"x", 1}}}).error().code(), Code::exhausted);
  EXPECT_EQ(sum, before);
}

TEST(ResourceVector, TextShowsUnits) {
  const ResourceVector vector{
      .cpu_milli = 1500, .memory_mib = 512, .gpu_milli = 250, .custom = {{"license", 1000}}};
  EXPECT_EQ(vector.to_string(), "{cpu 1.5, memory 512MiB, gpu 0.25, license 1}");
  EXPECT_EQ(ResourceVector{}.to_string(), "{}");
}

TEST(ResourceVector, DemandsMustBeFractionOrWholeGpus) {
  EXPECT_TRUE(check_demand(gpu(250)));
  EXPECT_TRUE(check_demand(gpu(3000)));
  EXPECT_EQ(check_demand(gpu(1500)).error().code(), Code::invalid);
  EXPECT_EQ(check_demand({.cpu_milli = -1}).error().code(), Code::invalid);
  EXPECT_EQ(check_demand({.cpu_milli = amount_max + 1}).error().code(), Code::invalid);
  EXPECT_EQ(check_demand({.custom = {{"b", 1}, {"a", 1}}}).error().code(), Code::invalid);
  EXPECT_EQ(check_demand({.custom = {{"a", 1}, {"a", 1}}}).error().code(), Code::invalid);
  EXPECT_EQ(check_demand({.custom = {{"", 1}}}).error().code(), Code::invalid);
  EXPECT_EQ(check_total(gpu(500)).error().code(), Code::invalid);
}

TEST(NodeLedger, AFractionNeedsOneDeviceThatHasIt) {
  NodeLedger ledger(gpu(2000));
  ASSERT_TRUE(ledger.take(gpu(600)));
  ASSERT_TRUE(ledger.take(gpu(600)));
  // 0.8 are free in sum, 0.4 on each device.
  EXPECT_EQ(ledger.available().gpu_milli, 800);
  EXPECT_FALSE(ledger.fits(gpu(500)));
  EXPECT_FALSE(ledger.take(gpu(500)));
  EXPECT_TRUE(ledger.could_fit(gpu(500)));
  EXPECT_TRUE(ledger.fits(gpu(400)));
}

TEST(NodeLedger, FractionsFillTheFullestDeviceFirst) {
  NodeLedger ledger(gpu(3000));
  EXPECT_EQ(ledger.take(gpu(500)), (Devices{{0, 500}}));
  EXPECT_EQ(ledger.take(gpu(700)), (Devices{{1, 700}}));
  EXPECT_EQ(ledger.take(gpu(300)), (Devices{{1, 300}}));
  EXPECT_EQ(ledger.take(gpu(1000)), (Devices{{2, 1000}}));
  EXPECT_EQ(ledger.whole_gpus_free(), 0);
  EXPECT_EQ(ledger.largest_partial_milli(), 500);
}

TEST(NodeLedger, WholeGpusTakeUntouchedDevices) {
  NodeLedger ledger(gpu(3000));
  ASSERT_TRUE(ledger.take(gpu(100)));
  EXPECT_EQ(ledger.take(gpu(2000)), (Devices{{1, 1000}, {2, 1000}}));
  EXPECT_FALSE(ledger.fits(gpu(1000)));
  ledger.give_back(gpu(2000), {{1, 1000}, {2, 1000}});
  ledger.give_back(gpu(100), {{0, 100}});
  EXPECT_TRUE(ledger.untouched());
  EXPECT_EQ(ledger.whole_gpus_free(), 3);
}

TEST(NodeLedger, TakeExactlyRefusesWhatIsNotFree) {
  NodeLedger ledger({.cpu_milli = 1000, .gpu_milli = 2000, .custom = {{"disk", 5}}});
  const NodeLedger before = ledger;
  EXPECT_FALSE(ledger.take_exactly(gpu(1000), {{2, 1000}}));           // No such device.
  EXPECT_FALSE(ledger.take_exactly(gpu(1000), {{0, 500}, {1, 500}}));  // Not whole.
  EXPECT_FALSE(ledger.take_exactly(gpu(2000), {{0, 1000}, {0, 1000}}));
  EXPECT_FALSE(ledger.take_exactly(gpu(1000), {}));
  EXPECT_FALSE(ledger.take_exactly({.memory_mib = 1}, {}));
  EXPECT_FALSE(ledger.take_exactly({.custom = {{"disk", 6}}}, {}));
  EXPECT_EQ(ledger.available(), before.available());
  EXPECT_TRUE(ledger.take_exactly(gpu(500), {{1, 500}}));
  EXPECT_FALSE(ledger.take_exactly(gpu(1000), {{1, 1000}}));
}

// A new head may find more running than there is CPU: some of it waits, and has lent its own.
TEST(NodeLedger, TakeExactlyOwesTheCpuThatIsNotFree) {
  NodeLedger ledger({.cpu_milli = 1000});
  EXPECT_TRUE(ledger.take_exactly({.cpu_milli = 1000}, {}));
  EXPECT_TRUE(ledger.take_exactly({.cpu_milli = 1000}, {}));
  ledger.give_back({.cpu_milli = 1000}, {});
  EXPECT_EQ(ledger.available().cpu_milli, 0);
  ledger.give_back({.cpu_milli = 1000}, {});
  EXPECT_EQ(ledger.available().cpu_milli, 1000);
}

TEST(NodeLedger, CustomAmountsOfZeroNeedNoResource) {
  NodeLedger ledger({.cpu_milli = 1000});
  EXPECT_TRUE(ledger.fits({.custom = {{"license", 0}}}));
  EXPECT_FALSE(ledger.fits({.custom = {{"license", 1}}}));
}

}  // namespace
}  // namespace troupe::scheduler
