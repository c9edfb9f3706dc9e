#include "client/log_repeats.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::client {

std::vector<std::string> LogRepeats::take(Instant now, ProcessId process, std::string_view prefix,
                                          std::string_view line) {
  std::vector<std::string> out = due(now);
  const auto found = by_line_.find(line);
  if (found == by_line_.end()) {
    if (seen_.size() >= lines_max) drop_oldest(out);
    seen_.push_back({std::string(line), process, {}, now + window, 0});
    by_line_.emplace(seen_.back().line, std::prev(seen_.end()));
    out.push_back(fmt::format("{} {}", prefix, line));
    return out;
  }
  Seen& seen = *found->second;
  if (seen.repeats == 0 && seen.first == process) {
    // One process alone may say the same again.
    out.push_back(fmt::format("{} {}", prefix, line));
    return out;
  }
  if (seen.repeats++ == 0) ++held_back_;
  seen.prefix = prefix;
  return out;
}

std::vector<std::string> LogRepeats::due(Instant now) {
  std::vector<std::string> out;
  while (!seen_.empty() && seen_.front().until <= now) drop_oldest(out);
  return out;
}

std::vector<std::string> LogRepeats::finish() {
  std::vector<std::string> out;
  while (!seen_.empty()) drop_oldest(out);
  return out;
}

std::optional<Instant> LogRepeats::next() const {
  if (held_back_ == 0) return std::nullopt;
  const auto first = std::ranges::find_if(seen_, [](const Seen& seen) { return seen.repeats > 0; });
  return first->until;
}

void LogRepeats::drop_oldest(std::vector<std::string>& out) {
  const Seen& oldest = seen_.front();
  if (oldest.repeats > 0) {
    --held_back_;
    out.push_back(fmt::format("{} {} [repeated {}x across the cluster]", oldest.prefix, oldest.line,
                              oldest.repeats));
  }
  by_line_.erase(oldest.line);
  seen_.pop_front();
}

}  // namespace troupe::client
