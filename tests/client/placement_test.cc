#include "client/placement.h"

#include <gtest/gtest.h>

namespace troupe::client {
namespace {

const PlacementGroupId group{{1, 2}};

TEST(ClientPlacement, CapturesOnlyWhatChoosesNoPlaceItself) {
  protocol::PlacementSpec free;
  capture(free, group);
  EXPECT_EQ(free.group, group);
  protocol::PlacementSpec outside;
  outside.outside = true;
  capture(outside, group);
  EXPECT_TRUE(outside.group.is_nil());
  protocol::PlacementSpec labelled;
  labelled.selectors = {{"zone", "in", {"a"}}};
  capture(labelled, group);
  EXPECT_TRUE(labelled.group.is_nil());
  protocol::PlacementSpec elsewhere;
  elsewhere.group = PlacementGroupId{{3, 4}};
  capture(elsewhere, group);
  EXPECT_NE(elsewhere.group, group);
}

TEST(ClientPlacement, TasksOfDifferentPlacesShareNoSlots) {
  protocol::PlacementSpec anywhere;
  EXPECT_EQ(placement_key(anywhere), "");
  protocol::PlacementSpec first;
  first.group = group;
  first.bundle = 1;
  protocol::PlacementSpec second = first;
  EXPECT_EQ(placement_key(first), placement_key(second));
  second.bundle = 2;
  EXPECT_NE(placement_key(first), placement_key(second));
  protocol::PlacementSpec labelled;
  labelled.selectors = {{"zone", "in", {"a"}}};
  EXPECT_NE(placement_key(labelled), "");
  protocol::PlacementSpec softer = labelled;
  softer.selectors[0].soft = true;
  EXPECT_NE(placement_key(labelled), placement_key(softer));
}

}  // namespace
}  // namespace troupe::client
