#include "tests/sim/planted.h"

#include <string>

namespace troupe::sim {
namespace {

// The one global of the simulator: the copies of the sources ask for it from everywhere.
std::string& planted() {
  static std::string name;
  return name;
}

}  // namespace

bool is_planted(std::string_view bug) {
  return planted() == bug;
}

void plant(std::string_view bug) {
  planted() = bug;
}

}  // namespace troupe::sim
