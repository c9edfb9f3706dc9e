#include "base/random.h"

#include <sys/random.h>

#include <bit>

#include "base/status.h"

namespace troupe {

uint64_t Random::below(uint64_t bound) {
  TROUPE_ASSERT(bound > 0, "empty range");
  const uint64_t reject_below = (0 - bound) % bound;
  for (;;) {
    const uint64_t value = next();
    if (value >= reject_below) return value % bound;
  }
}

SeededRandom::SeededRandom(uint64_t seed) {
  for (uint64_t& word : state_) {
    seed += 0x9e3779b97f4a7c15;
    uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    word = z ^ (z >> 31);
  }
}

uint64_t SeededRandom::next() {
  const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  const uint64_t shifted = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

uint64_t SystemRandom::next() {
  uint64_t value = 0;
  TROUPE_ASSERT(getrandom(&value, sizeof value, 0) == sizeof value, "getrandom failed");
  return value;
}

}  // namespace troupe
