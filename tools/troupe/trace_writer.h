// Writes what processes noted as a trace for Perfetto or chrome://tracing: one JSON object with an
// array of events, times in microseconds of the head's clock.
#pragma once

#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "base/timeline.h"
#include "protocol/messages.h"

namespace troupe::tools {

class TraceWriter {
 public:
  // Writes to `file`, which outlives it, a process at a time.
  explicit TraceWriter(std::FILE* file);

  // The messages of get_timelines in their order: a node's clock, then its processes one after the
  // other. What makes no sense is left out.
  void add(protocol::ProcessTimeline part);
  // Once, after the last. Errors: exhausted (the file could not be written).
  Status finish();

  // Names of nodes whose processes are missing, and why. Before finish().
  const std::vector<std::pair<std::string, std::string>>& missing() const { return missing_; }
  // Those of jobs and the gateway; workers do not count.
  size_t processes() const { return processes_; }
  // Those that answered.
  size_t nodes() const { return clocks_.size(); }
  // The records that were written, also of workers.
  size_t events() const { return events_count_; }

 private:
  struct Row;
  void flush();
  void begin_event(const char* phase, const TimelineEvent& event, std::string_view category);
  void add_rows();
  void write_event(const TimelineEvent& event, uint64_t row);
  void write_span(const TimelineEvent& event, uint64_t row);
  void write_async(const TimelineEvent& event, Instant from, Duration length, const char* what);
  void write_flow(const TimelineEvent& event, uint64_t row, bool is_begin);
  void write_metadata(const char* what, uint64_t row, std::string_view value);
  void open_event();
  std::string_view name_of(const TimelineEvent& event) const;
  Duration length_of(const TimelineEvent& event) const;
  void pass_on();

  std::FILE* const file_;
  std::string out_;
  bool is_first_ = true;
  bool has_failed_ = false;
  std::vector<std::pair<std::string, std::string>> missing_;
  size_t processes_ = 0;
  size_t events_count_ = 0;
  uint64_t number_ = 0;  // Of the process, in the trace.
  // What a node's clock lacks to the head's, and what the head's said then.
  struct Clock {
    Duration behind{};
    Duration doubt{};
    Instant at{};
  };
  std::map<NodeId, Clock> clocks_;
  protocol::ProcessTimeline about_;  // The present process, without records.
  std::vector<TimelineEvent> events_;
};

// As a JSON string, in quotes. Bytes that are no UTF-8 become U+FFFD.
std::string json_string(std::string_view text);

}  // namespace troupe::tools
