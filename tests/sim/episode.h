// One cluster's life under faults, from a seed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/clock.h"
#include "tests/sim/faults.h"

namespace troupe::sim {

// Safety: faults until the end, and nothing bad may ever happen. Liveness: again and again the
// faults stop, and within 30 seconds all must work and agree again; then the promises are compared.
enum class Mode : uint8_t { safety, liveness };

struct EpisodeOptions {
  uint64_t seed = 1;
  bool shows_history = false;
};

struct EpisodeResult {
  Mode mode = Mode::liveness;
  uint64_t hash = 0;  // Of all that happened.
  Duration simulated{};
  size_t heads = 1;
  std::vector<std::string> violations;
  FaultCounts faults;
  uint64_t succeeded = 0;
  uint64_t failed = 0;
  uint64_t calls_run = 0;
  uint64_t leases = 0;
  uint64_t grants = 0;
};

EpisodeResult run_episode(const EpisodeOptions& options);

}  // namespace troupe::sim
