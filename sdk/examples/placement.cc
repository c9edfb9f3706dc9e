// A placement group: two workers beside each other, and a task that runs in one's bundle.
#include <troupe/troupe.h>

#include <iostream>
#include <string>
#include <vector>

class Half {
 public:
  explicit Half(int64_t first) : next_(first) {}
  // Adds up `count` numbers, every second one.
  int64_t sum(int64_t count) {
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i, next_ += 2) sum += next_;
    return sum;
  }

 private:
  int64_t next_;
};
TROUPE_ACTOR(Half(int64_t), sum);

int64_t add(int64_t a, int64_t b) {
  return a + b;
}
TROUPE_TASK(add);

int main() try {
  const troupe::Session session = troupe::connect().value();
  // Both bundles or neither; on one node, where the two can talk through its memory.
  const auto group = session
                         .create_placement_group({.bundles = {{.cpu = 0.5}, {.cpu = 0.5}},
                                                  .strategy = troupe::GroupStrategy::strict_pack})
                         .value();
  const auto placed = group.wait(std::chrono::seconds(30)).value();
  const bool together = placed.places[0].node == placed.places[1].node;
  std::cout << "two bundles on " << (together ? "one node" : "two nodes") << "\n";

  std::vector<troupe::ObjectRef<int64_t>> sums;
  for (uint32_t bundle = 0; bundle < 2; ++bundle) {
    const troupe::ActorOptions options{.resources = {.cpu = 0.25},
                                       .placement = group.bundle(bundle)};
    const auto half = session.create<Half>(options, int64_t{bundle}).value();
    sums.push_back(half.call<&Half::sum>(500));
  }
  // What is left of the bundles is enough for a small task.
  const auto total = session.submit({.resources = {.cpu = 0.25}, .placement = group.any_bundle()},
                                    add, sums[0], sums[1]);
  std::cout << "the first thousand numbers make " << total.get().value() << "\n";
  group.remove().value();  // The actors end with it.
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
