#include "troupe/trace_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

namespace troupe::tools {

namespace {

constexpr size_t buffer_bytes = 256 << 10;
// A worker sends no more of one process, and this memory is ours.
constexpr size_t events_max = 2 * timeline_records_max;
constexpr Duration instant_length = std::chrono::nanoseconds(100);  // Of what has none.
// Rows of a thread beyond its first, for what overlaps.
constexpr uint64_t row_stride = uint64_t{1} << 22;

// The length of the UTF-8 character at the beginning; 0: there is none.
size_t character_bytes(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(0);
  const size_t length = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  if (length > text.size()) return 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  // Written longer than needed, surrogates, beyond the last.
  if (first == 0xe0 && byte(1) < 0xa0) return 0;
  if (first == 0xed && byte(1) >= 0xa0) return 0;
  if (first == 0xf0 && byte(1) < 0x90) return 0;
  if (first == 0xf4 && byte(1) >= 0x90) return 0;
  return length;
}

const char* category_of(TimelineKind kind) {
  switch (kind) {
    case TimelineKind::submitted:
      return "submit";
    case TimelineKind::queued:
      return "queue";
    case TimelineKind::run:
      return "run";
    case TimelineKind::waited:
      return "wait";
    case TimelineKind::stored:
    case TimelineKind::spilled:
    case TimelineKind::restored:
      return "object";
    case TimelineKind::pulled:
      return "transfer";
    case TimelineKind::process_started:
    case TimelineKind::actor_started:
      return "start";
    case TimelineKind::none:
    case TimelineKind::clock:
      break;
  }
  return "other";
}

// "bytes" of what moves them; null: an amount is nothing to people.
const char* amount_name(TimelineKind kind) {
  switch (kind) {
    case TimelineKind::stored:
    case TimelineKind::pulled:
    case TimelineKind::spilled:
    case TimelineKind::restored:
      return "bytes";
    case TimelineKind::run:
      return "queued_ns";
    case TimelineKind::actor_started:
      return "incarnation";
    default:
      return nullptr;
  }
}

// What goes before the name.
const char* doing(const TimelineEvent& event) {
  switch (event.kind) {
    case TimelineKind::submitted:
      return "submit ";
    case TimelineKind::process_started:
      return "start ";
    case TimelineKind::actor_started:
      return event.amount > 1 ? "restart " : "start ";
    default:
      return "";
  }
}

std::string microseconds(Duration time) {
  const int64_t ns = time.count();
  return fmt::format("{}.{:03}", ns / 1000, ns % 1000);
}
std::string microseconds(Instant when) {
  return microseconds(std::max(when.time_since_epoch(), Duration::zero()));
}

}  // namespace

std::string json_string(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const size_t bytes = character_bytes(text);
    if (bytes == 0) {
      out += "\\ufffd";
    } else if (text[0] == '"' || text[0] == '\\') {
      out += '\\';
      out += text[0];
    } else if (static_cast<uint8_t>(text[0]) < 0x20 || text[0] == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(text[0]));
    } else {
      out += text.substr(0, bytes);
    }
    text.remove_prefix(std::max<size_t>(bytes, 1));
  }
  return out + '"';
}

// One line of a thread: spans that lie in one another or apart.
struct TraceWriter::Row {
  uint64_t number = 0;
  std::vector<Instant> ends;  // Of the spans that are open at the present one's begin.

  bool takes(Instant start, Instant end) {
    while (!ends.empty() && ends.back() <= start) ends.pop_back();
    if (!ends.empty() && end > ends.back()) return false;
    ends.push_back(end);
    return true;
  }
};

TraceWriter::TraceWriter(std::FILE* file) : file_(file) {
  out_ = "{\"displayTimeUnit\":\"ns\",\"traceEvents\":[";
}

void TraceWriter::add(protocol::ProcessTimeline part) {
  if (part.kind == "missing") {
    missing_.emplace_back(part.node_name, part.names.empty() ? "" : part.names.front());
    return;
  }
  auto events = events_of(part.records);
  if (part.kind == "clock") {
    flush();
    about_ = {};
    if (events.size() != 1 || events[0].kind != TimelineKind::clock) return;
    Clock& clock = clocks_[part.process.node];
    clock.at = Instant{Duration{static_cast<int64_t>(events[0].id)}};
    clock.behind = clock.at - events[0].start;
    clock.doubt = events[0].duration;
    return;
  }
  const bool is_more = part.process.process == about_.process.process && part.names.empty();
  if (!is_more || events_.size() + events.size() > events_max) {
    flush();
    part.records.clear();
    if (!is_more) about_ = std::move(part);
  }
  std::move(events.begin(), events.end(), std::back_inserter(events_));
}

std::string_view TraceWriter::name_of(const TimelineEvent& event) const {
  if (event.name == 0 || event.name >= about_.names.size()) return "(other)";
  return about_.names[event.name];
}

// What has not ended lasts until the process ended, or until it was asked.
Duration TraceWriter::length_of(const TimelineEvent& event) const {
  if (!event.is_open) return std::max(event.duration, instant_length);
  const auto clock = clocks_.find(about_.process.node);
  Instant until = event.start + instant_length;
  if (!about_.ended && clock != clocks_.end()) {
    until = std::max(until, clock->second.at);
  } else {
    for (const TimelineEvent& other : events_)
      until = std::max(until, other.start + other.duration);
  }
  return until - event.start;
}

void TraceWriter::flush() {
  if (about_.process.process.is_nil()) return;
  if (about_.kind != "worker") ++processes_;
  events_count_ += events_.size();
  ++number_;
  const auto clock = clocks_.find(about_.process.node);
  std::string name = fmt::format("{} {} {}", about_.kind, about_.pid, about_.node_name);
  if (about_.ended) name += " (ended)";
  write_metadata("process_name", 0, name);
  if (about_.lost > 0) {
    write_metadata("process_labels", 0, fmt::format("{} older records lost", about_.lost));
  }
  if (clock != clocks_.end()) {
    for (TimelineEvent& event : events_) event.start += clock->second.behind;
  }
  add_rows();
  events_.clear();
  pass_on();
}

void TraceWriter::add_rows() {
  std::ranges::stable_sort(events_, [](const auto& a, const auto& b) {
    return std::pair(a.start, b.duration) < std::pair(b.start, a.duration);
  });
  std::map<uint32_t, std::vector<Row>> threads;
  for (const TimelineEvent& event : events_) {
    if (event.kind == TimelineKind::clock) continue;
    if (event.kind == TimelineKind::queued) {
      write_async(event, event.start, event.duration, "queued");
      continue;
    }
    std::vector<Row>& rows = threads[event.thread];
    const Instant end = event.start + length_of(event);
    auto row = std::ranges::find_if(rows, [&](Row& one) { return one.takes(event.start, end); });
    if (row == rows.end()) {
      row = rows.insert(row, Row{event.thread + rows.size() * row_stride, {end}});
      write_metadata("thread_name", row->number,
                     event.thread == about_.pid ? "main" : fmt::format("thread {}", event.thread));
    }
    write_event(event, row->number);
  }
}

void TraceWriter::write_event(const TimelineEvent& event, uint64_t row) {
  const bool is_run = event.kind == TimelineKind::run;
  write_span(event, row);
  if (event.id != 0 && (is_run || event.kind == TimelineKind::submitted)) {
    write_flow(event, row, !is_run);
  }
  if (!is_run) return;
  const Duration waited{static_cast<int64_t>(event.amount)};
  if (waited > Duration::zero()) write_async(event, event.start - waited, waited, "in mailbox");
}

void TraceWriter::open_event() {
  out_ += std::exchange(is_first_, false) ? "\n" : ",\n";
}

void TraceWriter::write_span(const TimelineEvent& event, uint64_t row) {
  open_event();
  const std::string shown = fmt::format("{}{}", doing(event), name_of(event));
  fmt::format_to(std::back_inserter(out_),
                 R"({{"ph":"X","name":{},"cat":"{}","pid":{},"tid":{},"ts":{},"dur":{},"args":{{)",
                 json_string(shown), category_of(event.kind), number_, row,
                 microseconds(event.start), microseconds(length_of(event)));
  std::string_view comma;
  const auto add = [&](std::string_view key, const std::string& value) {
    fmt::format_to(std::back_inserter(out_), R"({}"{}":{})", comma, key, value);
    comma = ",";
  };
  if (event.id != 0) add("id", fmt::format("\"{:016x}\"", event.id));
  if (const char* amount = amount_name(event.kind)) add(amount, std::to_string(event.amount));
  if (event.sampled_log2 > 0) {
    add("sampled", fmt::format("\"1 of {}\"", 1u << event.sampled_log2));
  }
  if (event.has_failed) add("failed", "true");
  if (event.is_open) {
    add("unfinished", about_.ended ? "\"its process ended\"" : "\"it still runs\"");
  }
  out_ += "}}";
  pass_on();
}

void TraceWriter::write_async(const TimelineEvent& event, Instant from, Duration length,
                              const char* what) {
  for (const bool is_begin : {true, false}) {
    open_event();
    fmt::format_to(std::back_inserter(out_),
                   R"({{"ph":"{}","name":{},"cat":"{}","id2":{{"local":"{:x}"}},"pid":{},"tid":{},)"
                   R"("ts":{}}})",
                   is_begin ? "b" : "e", json_string(fmt::format("{} {}", what, name_of(event))),
                   what, event.id, number_, event.thread,
                   microseconds(is_begin ? from : from + length));
  }
}

// From a submission to its run, which a viewer draws as an arrow.
void TraceWriter::write_flow(const TimelineEvent& event, uint64_t row, bool is_begin) {
  open_event();
  fmt::format_to(
      std::back_inserter(out_),
      R"({{"ph":"{}",{}"name":"call","cat":"call","id":"{:x}","pid":{},"tid":{},"ts":{}}})",
      is_begin ? "s" : "f", is_begin ? "" : R"("bp":"e",)", event.id, number_, row,
      microseconds(event.start));
}

void TraceWriter::write_metadata(const char* what, uint64_t row, std::string_view value) {
  open_event();
  const std::string_view key = std::string_view(what).ends_with("labels") ? "labels" : "name";
  fmt::format_to(std::back_inserter(out_),
                 R"({{"ph":"M","name":"{}","pid":{},"tid":{},"args":{{"{}":{}}}}})", what, number_,
                 row, key, json_string(value));
}

void TraceWriter::pass_on() {
  if (out_.size() < buffer_bytes) return;
  if (!has_failed_ && std::fwrite(out_.data(), 1, out_.size(), file_) != out_.size()) {
    has_failed_ = true;
  }
  out_.clear();
}

Status TraceWriter::finish() {
  flush();
  out_ += "\n],\"otherData\":{\"clock\":\"microseconds of the head's machine\"";
  for (const auto& [node, clock] : clocks_) {
    if (clock.doubt == Duration::zero()) continue;
    fmt::format_to(std::back_inserter(out_), R"(,"node {} is wrong by at most us":{})",
                   node.short_string(), microseconds(clock.doubt));
  }
  out_ += "}}\n";
  errno = 0;
  const bool written = !has_failed_ &&
                       std::fwrite(out_.data(), 1, out_.size(), file_) == out_.size() &&
                       std::fflush(file_) == 0;
  if (written) return ok();
  return error(Code::exhausted, fmt::format("the trace could not be written whole: {}",
                                            std::strerror(errno != 0 ? errno : EIO)));
}

}  // namespace troupe::tools
