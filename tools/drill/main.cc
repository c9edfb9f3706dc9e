// troupe-drill NAME STATE ROUNDS: holds one drill on a cluster in the folder STATE and prints what
// came of it as JSON. `troupe drill` starts it, and cleans up after it however it ends.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdlib>
#include <map>

#include "drill/drill.h"

namespace troupe::drill {

namespace {
constexpr size_t complaints_max = 5;
}

void Report::measured(double detect, double recover) {
  detect_s = std::max(detect_s, detect);
  recover_s = std::max(recover_s, recover);
}

void Report::complain(std::string text) {
  if (complaints.size() < complaints_max) complaints.push_back(std::move(text));
}

}  // namespace troupe::drill

int main(int argc, char** argv) {
  using namespace troupe::drill;
  const std::map<std::string, troupe::Status (*)(const Plan&, Report&)> drills{
      {"head-kill", &head_kill},
      {"worker-kill", &worker_kill},
      {"partition", &partition},
      {"disk-full", &disk_full},
      {"restore", &restore}};
  const auto drill = argc == 4 ? drills.find(argv[1]) : drills.end();
  if (drill == drills.end()) {
    fmt::print(stderr, "usage: troupe-drill NAME STATE ROUNDS (see 'troupe drill')\n");
    return 2;
  }
  Report report;
  const auto held = drill->second({argv[2], std::atoi(argv[3])}, report);
  if (!held) report.complain("the drill broke off: " + held.error().to_string());
  fmt::print("{}\n", boost::json::serialize(boost::json::object{
                         {"detect_s", report.detect_s},
                         {"recover_s", report.recover_s},
                         {"acknowledged", report.acknowledged},
                         {"lost", report.lost},
                         {"complaints", boost::json::value_from(report.complaints)}}));
  return report.complaints.empty() && report.lost == 0 ? 0 : 1;
}
