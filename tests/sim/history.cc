#include "tests/sim/history.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <iterator>

namespace troupe::sim {

History::History() : state_(XXH3_createState()) {
  XXH3_64bits_reset(state_);
}

History::~History() {
  XXH3_freeState(state_);
}

void History::add(Instant when, std::string_view line) {
  fmt::memory_buffer entry;
  fmt::format_to(std::back_inserter(entry), "{:>14} {}\n", when.time_since_epoch().count(), line);
  XXH3_64bits_update(state_, entry.data(), entry.size());
  ++lines_;
  if (keep_) text_.emplace_back(entry.data(), entry.size());
}

uint64_t History::hash() const {
  return XXH3_64bits_digest(state_);
}

}  // namespace troupe::sim
