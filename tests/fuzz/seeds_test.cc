// The fuzz targets, each given its seeds and what a few thousand faults make of them: that they
// still build and find nothing in that. libFuzzer looks further: tools/fuzz.sh.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/random.h"
#include "tests/fuzz/seeds.h"

#define TROUPE_FUZZ_TARGETS(X) \
  X(archive)                   \
  X(call_record)               \
  X(credential)                \
  X(frame_header)              \
  X(gateway)                   \
  X(invoke)                    \
  X(invoke_reply)              \
  X(message)                   \
  X(reply_record)              \
  X(ring)                      \
  X(sdk_reader)                \
  X(socket)                    \
  X(timeline)

// Each target's own function, under a name of its own: see CMakeLists.txt.
#define TROUPE_DECLARE(name) extern "C" int fuzz_##name(const uint8_t* data, size_t size);
TROUPE_FUZZ_TARGETS(TROUPE_DECLARE)
#undef TROUPE_DECLARE

namespace troupe::fuzz {
namespace {

using Target = int (*)(const uint8_t*, size_t);

std::map<std::string, Target> targets() {
#define TROUPE_ENTRY(name) {#name, &fuzz_##name},
  return {TROUPE_FUZZ_TARGETS(TROUPE_ENTRY)};
#undef TROUPE_ENTRY
}

// Cut off, or with some bytes changed.
Bytes damaged(Bytes input, Random& random) {
  if (input.empty()) return input;
  if (random.below(4) == 0) input.resize(random.below(input.size()));
  for (uint64_t i = random.below(4); i > 0 && !input.empty(); --i) {
    input[random.below(input.size())] = static_cast<uint8_t>(random.below(256));
  }
  return input;
}

TEST(FuzzSeeds, EveryTargetTakesItsSeedsAndDamagedOnes) {
  const auto known = targets();
  std::map<std::string, int> tried;
  SeededRandom random{7};
  for (const auto& [target, input] : make_seeds()) {
    const auto found = known.find(target);
    ASSERT_NE(found, known.end()) << target;
    EXPECT_EQ(found->second(input.data(), input.size()), 0);
    for (int i = 0; i < 200; ++i) {
      const Bytes worse = damaged(input, random);
      found->second(worse.data(), worse.size());
    }
    ++tried[target];
  }
  for (const auto& [name, target] : known) EXPECT_GT(tried[name], 0) << name << " has no seed";
}

}  // namespace
}  // namespace troupe::fuzz
