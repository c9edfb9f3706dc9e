// Lines that many processes write alike are shown once, and then how often. Pure: time is given.
#pragma once

#include <list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"

namespace troupe::client {

class LogRepeats {
 public:
  // How long after a line the same line of another process counts as its repetition.
  static constexpr Duration window = std::chrono::seconds(5);
  // So many different lines are remembered at once.
  static constexpr size_t lines_max = 10'000;

  // What to show of a line now: the line itself, or nothing of a repetition; before it whatever
  // became due. `prefix` says who wrote it.
  std::vector<std::string> take(Instant now, ProcessId process, std::string_view prefix,
                                std::string_view line);
  // What became due: "PREFIX LINE [repeated 31x across the cluster]".
  std::vector<std::string> due(Instant now);
  // All that is held back; nothing is afterwards.
  std::vector<std::string> finish();
  // When due() has something to give; none while nothing is held back.
  std::optional<Instant> next() const;

 private:
  struct Seen {
    std::string line;
    ProcessId first;
    std::string prefix;  // Of the latest repetition.
    Instant until;
    uint64_t repeats = 0;
  };
  using Order = std::list<Seen>;  // The oldest first, so in the order of their ends.

  void drop_oldest(std::vector<std::string>& out);

  Order seen_;
  std::map<std::string_view, Order::iterator> by_line_;
  size_t held_back_ = 0;  // Of `seen_`, those with repeats.
};

}  // namespace troupe::client
