// What the instruction gate complains about.
#include <gtest/gtest.h>

#include <sstream>

#include "bench/gate/compare.h"

namespace bench {
namespace {

std::vector<std::string> complaints(const Figures& figures, const Figures& baseline) {
  std::ostringstream rows;
  return compare(figures, baseline, rows);
}

TEST(Gate, RowsWithinATenthPass) {
  EXPECT_TRUE(complaints({{"a", 1000}, {"b", 1100}, {"c", 10}},  //
                         {{"a", 1000}, {"b", 1000}, {"c", 1000}})
                  .empty());
}

TEST(Gate, ARowThatGrewByMoreThanATenthFails) {
  const auto wrong = complaints({{"a", 1000}, {"b", 1101}}, {{"a", 1000}, {"b", 1000}});
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_EQ(wrong[0], "b takes 1101 instructions, 1000 before: 10.1 % more");
}

TEST(Gate, ARowThatTheBaselineLacksFails) {
  const auto wrong = complaints({{"a", 1000}, {"b", 1}}, {{"a", 1000}});
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_TRUE(wrong[0].starts_with("b is not in the baseline"));
}

TEST(Gate, ARowThatNothingMeasuresAnyMoreFails) {
  const auto wrong = complaints({{"a", 1000}}, {{"a", 1000}, {"b", 1000}});
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_TRUE(wrong[0].starts_with("b is in the baseline"));
}

TEST(Gate, WithoutABaselineEveryRowFails) {
  EXPECT_EQ(complaints({{"a", 1}, {"b", 1}}, {}).size(), 2u);
}

TEST(Gate, PrintsEachRowWithItsGrowth) {
  std::ostringstream rows;
  (void)compare({{"a", 1100}}, {{"a", 1000}}, rows);
  EXPECT_EQ(rows.str(), R"({"name":"a","value":1100,"unit":"instructions","to_baseline":1.100})"
                        "\n");
}

}  // namespace
}  // namespace bench
