// Actors that must not overlap, on nodes that are cut off.
#include <gtest/gtest.h>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

Outcome cut_off(const std::string& limit_ms) {
  Cluster cluster;
  const Outcome up =
      cluster.up({"--workers", "3", "--cpus", "1", "--gateway-port", "-1", "--label",
                  "worker-0:n=0", "--label", "worker-1:n=1", "--label", "worker-2:n=2"});
  EXPECT_EQ(up.status, 0) << up.err;
  return cluster.program("isolation", {(cluster.folder() / "marks").string(), limit_ms});
}

TEST(IsolationSystem, TheNextIncarnationStartsOnceTheOneBeforeHasEnded) {
  const Outcome outcome = cut_off("3000");
  EXPECT_EQ(outcome.out, "alone\n") << outcome.err;
}

TEST(IsolationSystem, WithoutALimitBothRun) {
  const Outcome outcome = cut_off("0");
  EXPECT_EQ(outcome.out, "overlaps\n") << outcome.err;
}

}  // namespace
}  // namespace troupe::test
