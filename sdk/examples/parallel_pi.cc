// Many tasks, waited for as they finish: pi by throwing darts.
#include <troupe/troupe.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <vector>

struct Throws {
  int64_t inside = 0;
  int64_t total = 0;
};

Throws throw_darts(uint64_t seed, int64_t count) {
  std::mt19937_64 random{seed};
  std::uniform_real_distribution<double> side{-1, 1};
  Throws result{.total = count};
  for (int64_t i = 0; i < count; ++i) {
    const double x = side(random);
    const double y = side(random);
    if (x * x + y * y <= 1) ++result.inside;
  }
  return result;
}
TROUPE_TASK(throw_darts);

int main(int argc, char** argv) try {
  const int tasks = argc > 1 ? std::atoi(argv[1]) : 32;
  const int64_t darts = argc > 2 ? std::atoll(argv[2]) : 200'000;
  const troupe::Session session = troupe::connect().value();

  std::vector<troupe::ObjectRef<Throws>> refs;
  for (int i = 0; i < tasks; ++i) {
    refs.push_back(session.submit(throw_darts, static_cast<uint64_t>(i), darts));
  }
  Throws sum;
  while (!refs.empty()) {
    const auto ready = session.wait(refs, {.count = 1}).value().ready;
    const auto one = refs[ready.front()].get().value();
    sum.inside += one.inside;
    sum.total += one.total;
    refs.erase(refs.begin() + static_cast<std::ptrdiff_t>(ready.front()));
  }
  std::cout << "pi is about "
            << 4.0 * static_cast<double>(sum.inside) / static_cast<double>(sum.total) << " after "
            << sum.total << " darts\n";
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
