// What happened, line by line, as one hash: equal histories are equal runs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"

struct XXH3_state_s;

namespace troupe::sim {

class History {
 public:
  History();
  ~History();
  History(const History&) = delete;
  History& operator=(const History&) = delete;

  // From now on lines are kept, for people and for comparing two runs line by line.
  void keep_text() { keep_ = true; }
  void add(Instant when, std::string_view line);

  uint64_t hash() const;
  uint64_t lines() const { return lines_; }
  const std::vector<std::string>& text() const { return text_; }

 private:
  XXH3_state_s* state_;
  uint64_t lines_ = 0;
  bool keep_ = false;
  std::vector<std::string> text_;
};

}  // namespace troupe::sim
