// Large arrays without copies: built in the store, shared by tasks, read in place.
#include <troupe/troupe.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <numeric>
#include <vector>

using Samples = std::vector<float>;

// The ref comes as it is, for the parameter is a ref: the task views the array where it lies.
double mean_of(const troupe::ObjectRef<Samples>& ref) {
  const auto samples = ref.view().value();
  return std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size());
}
TROUPE_TASK(mean_of);

double largest_of(const troupe::ObjectRef<Samples>& ref) {
  const auto samples = ref.view().value();
  return *std::max_element(samples.begin(), samples.end());
}
TROUPE_TASK(largest_of);

int main(int argc, char** argv) try {
  const size_t count = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 10'000'000;
  const troupe::Session session = troupe::connect().value();

  auto building = session.create<float>(count).value();
  std::iota(building.span().begin(), building.span().end(), 0.0f);
  auto ref = building.seal().value();
  std::atomic<bool> freed = false;
  ref.on_out_of_scope([&freed] {
       freed = true;
       freed.notify_all();
     })
      .value();

  const std::vector results{session.submit(mean_of, ref), session.submit(largest_of, ref)};
  const auto values = session.get(results).value();
  std::cout << "mean " << values[0] << ", largest " << values[1] << "\n";

  ref = {};  // The last ref: the array's memory is used again.
  freed.wait(false);
  std::cout << "freed\n";
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
