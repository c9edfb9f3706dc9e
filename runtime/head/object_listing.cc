#include "head/object_listing.h"

#include <fmt/format.h>

#include <unordered_map>

#include "protocol/object_list.h"

namespace troupe::head {

using protocol::ObjectEntry;
using protocol::ObjectList;

namespace {

// Its owner knows of refs; a store only that it is held, and whether it is in memory.
bool is_of_owner(const ObjectEntry& entry) {
  return !entry.owner_kind.empty();
}

void merge(ObjectEntry& into, ObjectEntry&& from) {
  const uint32_t pins = into.pins + from.pins;
  const bool spilled = into.state == "spilled" || from.state == "spilled";
  if (is_of_owner(from)) {
    const NodeId node = from.node.is_nil() ? into.node : from.node;
    into = std::move(from);
    into.node = node;
  } else if (into.node.is_nil()) {
    into.node = from.node;
  }
  into.pins = pins;
  if (spilled) into.state = "spilled";
}

}  // namespace

ObjectList merge_objects(std::vector<ObjectList> lists, uint32_t limit) {
  ObjectList merged;
  std::unordered_map<ObjectId, size_t> places;
  for (ObjectList& list : lists) {
    merged.total += list.total;
    for (ObjectEntry& entry : list.items) {
      const auto [known, is_new] = places.try_emplace(entry.object, merged.items.size());
      if (is_new) {
        merged.items.push_back(std::move(entry));
      } else {
        merge(merged.items[known->second], std::move(entry));
        --merged.total;
      }
    }
  }
  for (ObjectEntry& entry : merged.items) {
    if (entry.pins == 0) continue;
    entry.why += fmt::format("{}{} pins", entry.why.empty() ? "" : ", ", entry.pins);
  }
  protocol::keep_largest(merged, limit);
  return merged;
}

}  // namespace troupe::head
