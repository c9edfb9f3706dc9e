#include "troupe/node_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

namespace troupe::tools {

namespace {

// Where "zone=a" begins in "worker-1:zone=a".
size_t begin_of(const std::string& text) {
  const size_t colon = text.find(':');
  const size_t equals = text.find('=');
  return colon != text.npos && colon < equals ? colon + 1 : 0;
}

std::string name_in(const std::string& text) {
  return text.substr(0, text.find('='));
}

}  // namespace

Result<NamedAmount> parse_resource(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == text.npos || equals == 0) {
    return error(Code::invalid, "--resource takes NAME=AMOUNT, not '" + text + "'");
  }
  NamedAmount resource{text.substr(0, equals), 0};
  const std::string amount = text.substr(equals + 1);
  char* end = nullptr;
  resource.amount = std::strtod(amount.c_str(), &end);
  if (amount.empty() || *end != '\0' || !(resource.amount >= 0) || resource.amount > 1e9) {
    return error(Code::invalid, "an amount of " + resource.name + " is a number from 0 to 1e9");
  }
  if (resource.name == "cpu" || resource.name == "gpu" || resource.name == "memory") {
    return error(Code::invalid, "cpus, gpus and memory have options of their own");
  }
  return resource;
}

Result<KeyValue> parse_label(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == text.npos || equals == 0) {
    return error(Code::invalid, "--label takes KEY=VALUE, not '" + text + "'");
  }
  return KeyValue{text.substr(0, equals), text.substr(equals + 1)};
}

std::vector<std::string> meant_for(const std::string& worker,
                                   const std::vector<std::string>& texts) {
  std::vector<std::string> mine;
  const auto take = [&](const std::string& text) {
    std::erase_if(mine, [&](const auto& other) { return name_in(other) == name_in(text); });
    mine.push_back(text);
  };
  for (const std::string& text : texts) {
    if (begin_of(text) == 0) take(text);
  }
  for (const std::string& text : texts) {
    const size_t begin = begin_of(text);
    if (begin > 0 && text.substr(0, begin - 1) == worker) take(text.substr(begin));
  }
  return mine;
}

namespace {

// "worker-1:zone=b" is for one of the workers.
Status check_worker(const std::string& text, size_t workers) {
  const size_t begin = begin_of(text);
  if (begin == 0) return ok();
  const std::string worker = text.substr(0, begin - 1);
  for (size_t i = 0; i < workers; ++i) {
    if (worker == fmt::format("worker-{}", i)) return ok();
  }
  return error(
      Code::invalid,
      fmt::format("'{}' is for {}, which is none of the {} workers: they are numbered from "
                  "worker-0",
                  text, worker, workers));
}

}  // namespace

Status check_node_options(const std::vector<std::string>& resources,
                          const std::vector<std::string>& labels, size_t workers) {
  for (const std::string& text : resources) {
    TROUPE_CHECK(check_worker(text, workers));
    TROUPE_CHECK(parse_resource(text.substr(begin_of(text))));
  }
  for (const std::string& text : labels) {
    TROUPE_CHECK(check_worker(text, workers));
    TROUPE_CHECK(parse_label(text.substr(begin_of(text))));
  }
  return ok();
}

}  // namespace troupe::tools
