// What lay with a node that is lost, or drained.
#include <gtest/gtest.h>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

class LineageSystem : public testing::TestWithParam<const char*> {};

TEST_P(LineageSystem, Holds) {
  Cluster cluster;
  std::vector<std::string> arguments{"--workers", "3", "--cpus", "2", "--gateway-port", "-1"};
  for (const char* n : {"0", "1", "2"}) {
    const std::string worker = std::string("worker-") + n;
    arguments.insert(arguments.end(),
                     {"--label", worker + ":n=" + n, "--resource", worker + ":license=1"});
  }
  ASSERT_EQ(cluster.up(arguments).status, 0);
  const Outcome outcome = cluster.program("lineage", {GetParam(), TROUPE_BIN "/troupe"});
  EXPECT_EQ(outcome.status, 0) << outcome.err << outcome.out;
}

INSTANTIATE_TEST_SUITE_P(All, LineageSystem,
                         testing::Values("chain", "parts", "readers", "several", "shrinking",
                                         "refused", "drained", "last_one", "wrapped", "idle"),
                         [](const auto& chosen) { return std::string(chosen.param); });

}  // namespace
}  // namespace troupe::test
