// Which node: labels, demanded or preferred, resources of one's own, parts of GPUs. For a cluster
// of
//   troupe up --workers 2 --label zone=b --label worker-0:zone=a --resource worker-0:license=1
#include <troupe/troupe.h>

#include <cstdlib>
#include <iostream>
#include <string>

namespace label = troupe::label;

std::string node_name() {
  return troupe::connect().value().node().to_string();
}
TROUPE_TASK(node_name);

std::string visible_devices() {
  const char* devices = std::getenv("CUDA_VISIBLE_DEVICES");
  return devices == nullptr ? "none" : devices;
}
TROUPE_TASK(visible_devices);

int main(int argc, char**) try {
  const troupe::Session session = troupe::connect().value();
  const auto run = [&](const troupe::TaskOptions& options) {
    return session.submit(options, node_name).get().value();
  };
  const std::string in_a = run({.placement = {.labels = {label::equals("zone", "a")}}});
  const std::string elsewhere = run({.placement = {.labels = {label::not_equals("zone", "a")}}});
  std::cout << "another node outside of zone a: " << (elsewhere != in_a ? "yes" : "no") << "\n";

  // Two such tasks run at a time.
  const std::string licensed = run({.resources = {.custom = {{"license", 0.5}}}});
  std::cout << "the license is in zone a: " << (licensed == in_a ? "yes" : "no") << "\n";

  // No node has the label; as it is only preferred, any will do.
  (void)run({.placement = {.labels = {label::exists("no-such-label").soft()}}});
  std::cout << "preferred in vain\n";

  // With an argument, on nodes with GPUs: whoever holds a part of one sees that one alone.
  if (argc > 1) {
    const auto devices = session.submit({.resources = {.gpu = 0.5}}, visible_devices);
    std::cout << "GPU " << devices.get().value() << "\n";
  }
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
