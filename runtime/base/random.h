// Randomness comes from the environment that a component was given, so that a seed replays a run.
#pragma once

#include <cstdint>

namespace troupe {

class Random {
 public:
  virtual ~Random() = default;
  virtual uint64_t next() = 0;

  // Uniform in [0, bound); bound > 0. Unbiased by rejection.
  uint64_t below(uint64_t bound);
  // Uniform in [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  bool chance(double probability) { return uniform() < probability; }
};

// xoshiro256** (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2021),
// seeded by SplitMix64. The same seed gives the same numbers on every machine.
class SeededRandom final : public Random {
 public:
  explicit SeededRandom(uint64_t seed);
  uint64_t next() override;

 private:
  uint64_t state_[4];
};

// The system's own randomness (getrandom). Thread-safe. Fit for ids and secrets.
class SystemRandom final : public Random {
 public:
  uint64_t next() override;
};

}  // namespace troupe
