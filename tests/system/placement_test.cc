// Placement over a real cluster: labels, custom resources, placement groups and (fake) GPUs.
#include <gtest/gtest.h>
#include <signal.h>

#include "tests/system/cluster.h"

namespace troupe::test {
namespace {

class PlacementSystem : public testing::Test {
 protected:
  void SetUp() override {
    const Outcome started = cluster.up(
        {"--workers", "2", "--cpus", "2", "--gpus", "2", "--gateway-port", "-1", "--resource",
         "worker-0:license=1.5", "--label", "zone=b", "--label", "worker-0:zone=a"});
    ASSERT_EQ(started.status, 0) << started.err;
  }
  void check(const std::string& name) {
    const Outcome outcome = cluster.program("placement_checks", {name});
    EXPECT_EQ(outcome.status, 0) << name << ": " << outcome.err << outcome.out;
  }
  Cluster cluster;
};

TEST_F(PlacementSystem, LabelsAndCustomResourcesOfNodesAreHeeded) {
  const Outcome nodes = cluster.troupe({"list", "nodes", "-o", "json"});
  EXPECT_NE(nodes.out.find("\"license\":1.5E0"), std::string::npos) << nodes.out;
  EXPECT_NE(nodes.out.find("\"zone\":\"b\""), std::string::npos) << nodes.out;
  check("labels");
  check("custom_resources");
}

TEST_F(PlacementSystem, GroupsAreGrantedWholeAndEndWhatRunsInThem) {
  check("groups");
  check("many");
}

TEST_F(PlacementSystem, CaptureKeepsChildrenInTheGroup) {
  check("capture");
}

TEST_F(PlacementSystem, GpusAreHandedToOneOwnerAndGivenBack) {
  check("gpus");
}

TEST_F(PlacementSystem, TheExampleOfLabelsRuns) {
  const Outcome outcome = cluster.program("labels", {"with GPUs"});
  EXPECT_TRUE(
      outcome.out.starts_with("another node outside of zone a: yes\n"
                              "the license is in zone a: yes\npreferred in vain\nGPU "))
      << outcome.out << outcome.err;
  EXPECT_EQ(outcome.status, 0);
}

TEST_F(PlacementSystem, TheExampleRuns) {
  const Outcome outcome = cluster.program("placement");
  EXPECT_EQ(outcome.out, "two bundles on one node\nthe first thousand numbers make 499500\n")
      << outcome.err;
}

TEST_F(PlacementSystem, ADetachedGroupAndWhatRunsInItOutliveTheJob) {
  const Outcome left = cluster.program("placement_checks", {"leave"});
  ASSERT_EQ(left.status, 0) << left.err;
  const Outcome listed = cluster.troupe({"list", "placement-groups", "-o", "json"});
  EXPECT_NE(listed.out.find("\"name\":\"kept\""), std::string::npos) << listed.out << listed.err;
  EXPECT_EQ(cluster.describe("kept", "state"), "placed");
  const Outcome found = cluster.program("placement_checks", {"find"});
  EXPECT_EQ(found.status, 0) << found.err;
  EXPECT_EQ(found.out, left.out);
}

TEST_F(PlacementSystem, MalformedOptionsOfNodesAreRefused) {
  for (const char* wrong : {"license", "=1", "license=many", "license=-1", "cpu=4"}) {
    const Outcome outcome = cluster.troupe({"up", "--resource", wrong});
    EXPECT_NE(outcome.status, 0) << wrong;
    EXPECT_EQ(outcome.err.find("already"), std::string::npos) << outcome.err;
  }
  const Outcome label = cluster.troupe({"up", "--label", "zone"});
  EXPECT_NE(label.err.find("KEY=VALUE"), std::string::npos) << label.err;
  const Outcome nobody = cluster.troupe({"up", "--workers", "2", "--label", "worker-2:zone=a"});
  EXPECT_NE(nobody.err.find("none of the 2 workers"), std::string::npos) << nobody.err;
}

}  // namespace
}  // namespace troupe::test
