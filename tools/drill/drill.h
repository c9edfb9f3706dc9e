// The drills: each starts a cluster of its own, makes a fault in it, measures how long the cluster
// takes to say so and to be whole again, and looks whether it has kept what it had promised.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/status.h"

namespace troupe::drill {

struct Plan {
  std::filesystem::path state;  // Of the cluster.
  int rounds = 1;
};

struct Report {
  // From the fault, of the slowest round: until the cluster says so, and until it is whole.
  double detect_s = 0;
  double recover_s = 0;
  uint64_t acknowledged = 0;  // Promises and calls.
  uint64_t lost = 0;          // Of those.
  std::vector<std::string> complaints;

  void measured(double detect, double recover);
  // Keeps the first few.
  void complain(std::string text);
};

// Errors: the drill could not be held to its end.
Status head_kill(const Plan& plan, Report& report);
Status worker_kill(const Plan& plan, Report& report);
Status partition(const Plan& plan, Report& report);
Status disk_full(const Plan& plan, Report& report);
Status restore(const Plan& plan, Report& report);

}  // namespace troupe::drill
