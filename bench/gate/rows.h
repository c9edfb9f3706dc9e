// What the gate measures: paths that every call, task or object takes, run in one thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

namespace bench {

struct Row {
  std::string_view name;
  uint64_t times = 0;  // Runs that are counted; an eighth as many go before them.
  // Sets up the row; what it returns runs the path once.
  std::function<std::function<void()>()> make;
};
std::vector<Row> gate_rows();

}  // namespace bench
