#include "head/object_listing.h"

#include <gtest/gtest.h>

namespace troupe::head {
namespace {

using protocol::ObjectEntry;
using protocol::ObjectList;

ObjectEntry entry(uint64_t id, uint64_t size_bytes) {
  ObjectEntry made;
  made.object = ObjectId{RawId{1, id}};
  made.size_bytes = size_bytes;
  return made;
}

TEST(ObjectListing, OwnersSayWhyAndStoresWhere) {
  const NodeId here{RawId{2, 1}};
  ObjectEntry stored = entry(1, 100);
  stored.node = here;
  stored.pins = 2;
  stored.why = "its owner holds it";
  ObjectEntry owned = entry(1, 100);
  owned.owner_kind = "driver";
  owned.references = 3;
  owned.why = "3 refs in its owner";
  for (const bool owner_first : {true, false}) {
    ObjectList one{{owner_first ? owned : stored}, 1};
    ObjectList other{{owner_first ? stored : owned}, 1};
    const ObjectList merged = merge_objects({one, other}, 0);
    ASSERT_EQ(merged.items.size(), 1u);
    EXPECT_EQ(merged.total, 1u);
    EXPECT_EQ(merged.items[0].references, 3u);
    EXPECT_EQ(merged.items[0].node, here);
    EXPECT_EQ(merged.items[0].pins, 2u);
    EXPECT_EQ(merged.items[0].why, "3 refs in its owner, 2 pins");
  }
}

TEST(ObjectListing, AStoreSaysWhatIsSpilled) {
  ObjectEntry out = entry(1, 100);
  out.state = "spilled";
  ObjectEntry owned = entry(1, 100);
  owned.state = "stored";
  owned.owner_kind = "driver";
  for (const bool owner_first : {true, false}) {
    ObjectList one{{owner_first ? owned : out}, 1};
    ObjectList other{{owner_first ? out : owned}, 1};
    EXPECT_EQ(merge_objects({one, other}, 0).items.at(0).state, "spilled");
  }
}

TEST(ObjectListing, TheLargestComeFirst) {
  const ObjectList list{{entry(1, 10), entry(2, 30), entry(3, 20)}, 3};
  const ObjectList merged = merge_objects({list}, 2);
  ASSERT_EQ(merged.items.size(), 2u);
  EXPECT_EQ(merged.items[0].size_bytes, 30u);
  EXPECT_EQ(merged.items[1].size_bytes, 20u);
  EXPECT_EQ(merged.total, 3u);
}

}  // namespace
}  // namespace troupe::head
