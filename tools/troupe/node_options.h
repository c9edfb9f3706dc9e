// What an operator says of a node: resources and labels of his own.
#pragma once

#include <string>
#include <vector>

#include "base/status.h"

namespace troupe::tools {

struct NamedAmount {
  std::string name;
  double amount = 0;
};
// "license=2.5". Errors: invalid (also for cpu, gpu and memory, which have options of their own).
Result<NamedAmount> parse_resource(const std::string& text);

struct KeyValue {
  std::string key;
  std::string value;
};
// "zone=a"; the value may be empty. Errors: invalid.
Result<KeyValue> parse_label(const std::string& text);

// Of texts like "zone=a" and "worker-1:zone=b" those for this worker, with what stands for it alone
// last; one that repeats a name replaces the earlier one.
std::vector<std::string> meant_for(const std::string& worker,
                                   const std::vector<std::string>& texts);

// All of them can be read, and those for one worker name one of so many. Errors: invalid.
Status check_node_options(const std::vector<std::string>& resources,
                          const std::vector<std::string>& labels, size_t workers);

}  // namespace troupe::tools
