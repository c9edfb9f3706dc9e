// What the gate measured, against what it did before.
#pragma once

#include <map>
#include <ostream>
#include <string>
#include <vector>

namespace bench {

// Instructions, by the row's name.
using Figures = std::map<std::string, double>;

inline constexpr double growth_max = 1.10;

// Prints the rows. Returns what is wrong, a line each: rows that grew by more than a tenth, or that
// one side alone has.
std::vector<std::string> compare(const Figures& figures, const Figures& baseline,
                                 std::ostream& rows);

}  // namespace bench
