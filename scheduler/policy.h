// The order in which requests that wait are tried: strategies behind one interface.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <string_view>

#include "base/clock.h"
#include "base/ids.h"

namespace troupe::scheduler {

// Lower goes first. Requests of equal rank go in the order of their arrival.
struct Rank {
  int64_t major = 0;
  int64_t minor = 0;
  auto operator<=>(const Rank&) const = default;
};

// What a policy may look at.
struct Applicant {
  JobId job;
  std::string_view scheduling_class;  // Empty for actors and gangs.
  int32_t priority = 0;
  bool restart = false;
  Instant arrival;
};

// Pure: the same applicant gets the same rank, for a rank is fixed when the request comes.
class Policy {
 public:
  virtual ~Policy() = default;
  virtual std::string_view name() const = 0;
  virtual Rank rank(const Applicant& applicant) const = 0;
};

// Strict priority, restarts before first starts, then first come, first served.
std::unique_ptr<Policy> make_priority_policy();

}  // namespace troupe::scheduler
