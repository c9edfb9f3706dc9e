#include "bench/gate/compare.h"

#include <fmt/format.h>

namespace bench {

std::vector<std::string> compare(const Figures& figures, const Figures& baseline,
                                 std::ostream& rows) {
  std::vector<std::string> wrong;
  for (const auto& [name, value] : figures) {
    const auto before = baseline.find(name);
    const double ratio = before == baseline.end() ? 0 : value / before->second;
    rows << fmt::format(
        R"({{"name":"{}","value":{:.0f},"unit":"instructions","to_baseline":{:.3f}}})", name, value,
        ratio);
    rows << "\n";
    if (before == baseline.end()) {
      wrong.push_back(name + " is not in the baseline: add it with --write");
    } else if (ratio > growth_max) {
      wrong.push_back(fmt::format("{} takes {:.0f} instructions, {:.0f} before: {:.1f} % more",
                                  name, value, before->second, (ratio - 1) * 100));
    }
  }
  for (const auto& [name, value] : baseline) {
    if (figures.contains(name)) continue;
    wrong.push_back(name + " is in the baseline, but nothing measures it: drop it with --write");
  }
  return wrong;
}

}  // namespace bench
