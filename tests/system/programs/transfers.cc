// A driver that checks how objects move, from inside a real cluster: `transfers NAME` exits 0 if
// NAME holds.
#include <troupe/troupe.h>

#include <chrono>
#include <functional>
#include <iostream>
#include <map>
#include <numeric>
#include <string>
#include <vector>

using namespace std::chrono_literals;
using troupe::ObjectRef;
using Numbers = std::vector<int64_t>;
namespace label = troupe::label;

namespace {

#define REQUIRE(condition)                                     \
  do {                                                         \
    if (!(condition)) {                                        \
      std::cerr << __LINE__ << ": not true: " #condition "\n"; \
      std::exit(1);                                            \
    }                                                          \
  } while (false)

constexpr int64_t mib = 1 << 20;

// Not to be compressed.
Numbers noise(int64_t bytes, int64_t seed) {
  Numbers numbers(static_cast<size_t>(bytes / 8));
  auto state = static_cast<uint64_t>(seed) + 1;
  for (int64_t& number : numbers) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    number = static_cast<int64_t>(state);
  }
  return numbers;
}

}  // namespace

int64_t exclusive_or(const Numbers& numbers) {
  return std::accumulate(numbers.begin(), numbers.end(), int64_t{0}, std::bit_xor<>{});
}
TROUPE_TASK(exclusive_or);
Numbers make_noise(int64_t bytes, int64_t seed) {
  return noise(bytes, seed);
}
TROUPE_TASK(make_noise);
std::string where(const Numbers&) {
  return std::getenv("TROUPE_NODE_ID");
}
TROUPE_TASK(where);

namespace {

// Four times what the store takes.
void check_spill(const troupe::Session& session) {
  std::vector<ObjectRef<Numbers>> refs;
  for (int64_t i = 0; i < 32; ++i) refs.push_back(session.put(noise(8 * mib, i)).value());
  for (int64_t i = 31; i >= 0; --i) {
    REQUIRE(refs[static_cast<size_t>(i)].get(60s).value() == noise(8 * mib, i));
  }
}

// One object, read on four other nodes at once.
void check_broadcast(const troupe::Session& session) {
  const Numbers numbers = noise(64 * mib, 1);
  const auto ref = session.put(numbers).value();
  const int64_t expected = exclusive_or(numbers);
  std::vector<ObjectRef<int64_t>> results;
  for (int i = 1; i <= 4; ++i) {
    const troupe::TaskOptions there{
        .placement = {.labels = {label::equals("n", std::to_string(i))}}};
    results.push_back(session.submit(there, exclusive_or, ref));
  }
  for (const auto& result : results) REQUIRE(result.get(60s).value() == expected);
}

// Node 0 holds what the store of node 1, of 32 MiB, can never take.
void check_small_node(const troupe::Session& session) {
  const troupe::TaskOptions here{.placement = {.labels = {label::equals("n", "0")}}};
  const troupe::TaskOptions there{.placement = {.labels = {label::equals("n", "1")}}};
  const auto large = session.submit(here, make_noise, 80 * mib, 1);
  const auto failed = session.submit(there, exclusive_or, large).get(60s);
  REQUIRE(!failed);
  std::cerr << failed.error().to_string() << "\n";
  REQUIRE(failed.error().code() == troupe::Code::invalid);
  REQUIRE(failed.error().message().find(" of 83886") != std::string::npos);
  REQUIRE(failed.error().message().find("up to 33554432") != std::string::npos);
  // Nothing of it is left there.
  const auto fits = session.submit(here, make_noise, 24 * mib, 2);
  const int64_t expected = exclusive_or(noise(24 * mib, 2));
  REQUIRE(session.submit(there, exclusive_or, fits).get(60s).value() == expected);
  REQUIRE(session.submit(here, exclusive_or, large).get(60s).value() ==
          exclusive_or(noise(80 * mib, 1)));
}

// Tasks go where their argument is.
void check_locality(const troupe::Session& session) {
  const troupe::TaskOptions there{.placement = {.labels = {label::equals("n", "1")}}};
  const auto ref = session.submit(there, make_noise, 32 * mib, 1);
  REQUIRE(session.wait(std::vector{ref}, {.timeout = 60s}).value().ready.size() == 1);
  for (int i = 0; i < 3; ++i) {
    const std::string ran = session.submit(where, ref).get(60s).value();
    REQUIRE(ran == session.submit(there, where, ref).get(60s).value());
  }
}

}  // namespace

int main(int argc, char** argv) try {
  const std::map<std::string, std::function<void(const troupe::Session&)>> checks{
      {"spill", check_spill},
      {"broadcast", check_broadcast},
      {"small_node", check_small_node},
      {"locality", check_locality}};
  const auto found = argc > 1 ? checks.find(argv[1]) : checks.end();
  if (found == checks.end()) {
    std::cerr << "usage: transfers NAME\n";
    return 2;
  }
  const auto session = troupe::connect().value();
  found->second(session);
  std::cout << session.node().to_string() << "\n";
  return 0;
} catch (const troupe::Error& error) {
  std::cerr << error.to_string() << "\n";
  return 1;
}
