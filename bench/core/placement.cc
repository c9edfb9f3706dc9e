// Placement groups, as Ray's microbenchmark has them: 100 of one bundle are created, awaited and
// removed. bench/placement looks closer.
#include <future>

#include "rows.h"

namespace bench {

void placement_rows(Harness& harness, const troupe::Session& session) {
  harness.row("placement_group_create_remove", [&] {
    constexpr size_t count = 100;
    const troupe::PlacementGroupOptions options{.bundles = {{.cpu = 0.001}}};
    harness.measure({.name = "placement_group_create_remove",
                     .unit = "groups/s",
                     .multiplier = static_cast<double>(count)},
                    [&] {
                      std::vector<std::future<troupe::Result<troupe::PlacementGroup>>> created;
                      created.reserve(count);
                      for (size_t i = 0; i < count; ++i) {
                        created.push_back(session.create_placement_group_async(options));
                      }
                      std::vector<troupe::PlacementGroup> groups;
                      groups.reserve(count);
                      for (auto& group : created) groups.push_back(group.get().value());
                      std::vector<std::future<troupe::Status>> removed;
                      removed.reserve(count);
                      for (const auto& group : groups) removed.push_back(group.remove_async());
                      for (auto& one : removed) one.get().value();
                    });
  });
}

}  // namespace bench
