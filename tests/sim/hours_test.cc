// Simulated clusters by the hour, as the test suite runs them; cluster_sim says which seed failed.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace troupe::sim {
namespace {

// True if it ends with 0. What it says goes where this program's output goes.
bool run(const std::string& program, const std::string& arguments) {
  return std::system((program + " " + arguments + " 2>&1").c_str()) == 0;
}

// TROUPE_SIMULATED_HOURS: how many.
TEST(ClusterSim, EveryKindOfFaultFiresAndWhatMustHoldHolds) {
  const char* hours = std::getenv("TROUPE_SIMULATED_HOURS");
  EXPECT_TRUE(run(CLUSTER_SIM, std::string("--hours ") +
                                   (hours != nullptr ? hours : SIMULATED_HOURS) + EVERY_FAULT));
}

TEST(ClusterSim, ASeedReplaysExactly) {
  EXPECT_TRUE(run(CLUSTER_SIM, std::string("--twice --seeds ") + REPLAYED_SEEDS));
}

#ifdef CLUSTER_SIM_PLANTED
// Other ones each day; all of them by tools/nightly.sh.
TEST(ClusterSim, PlantedBugsAreFound) {
  EXPECT_TRUE(run(CLUSTER_SIM_PLANTED, "--bugs 5 --seconds 30"));
}
#endif

}  // namespace
}  // namespace troupe::sim
