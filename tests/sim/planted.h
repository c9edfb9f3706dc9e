// Bugs that are in the simulator's binary alone, each switched on by its name, to show that the
// suite finds them. planted_bugs.txt has them as changes to the sources of runtime/, which the
// build applies to copies (plant_bugs.cc); those of the disk are in sim_disk.cc.
#pragma once

#include <string_view>

namespace troupe::sim {

bool is_planted(std::string_view bug);
// One at a time; empty: none.
void plant(std::string_view bug);

}  // namespace troupe::sim
