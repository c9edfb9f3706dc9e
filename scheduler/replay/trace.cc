#include "scheduler/replay/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <set>

#include "scheduler/resources.h"

namespace troupe::scheduler {
namespace {

using std::chrono::seconds;

constexpr std::array<std::string_view, 9> our_columns = {"id",       "submit_s",  "duration_s",
                                                         "num_gpus", "vc",        "user",
                                                         "priority", "cpu_milli", "memory_mib"};
constexpr std::array<std::string_view, 11> alibaba_columns = {
    "name", "cpu_milli", "memory_mib",    "num_gpu",       "gpu_milli",     "gpu_spec",
    "qos",  "pod_phase", "creation_time", "deletion_time", "scheduled_time"};
constexpr int64_t seconds_max = int64_t{1} << 32;

std::vector<std::string_view> cells_of(std::string_view line) {
  std::vector<std::string_view> cells;
  for (;;) {
    const size_t comma = line.find(',');
    cells.push_back(line.substr(0, comma));
    if (comma == line.npos) return cells;
    line.remove_prefix(comma + 1);
  }
}

// One line, by the names of its columns.
class Row {
 public:
  Row(const std::vector<std::string_view>& columns, std::vector<std::string_view> cells,
      size_t line)
      : columns_(columns), cells_(std::move(cells)), line_(line) {}

  Status check() const {
    if (cells_.size() == columns_.size()) return ok();
    return wrong(fmt::format("{} columns instead of {}", cells_.size(), columns_.size()));
  }
  // Empty if there is no such column.
  std::string_view text(std::string_view column) const {
    const auto found = std::ranges::find(columns_, column);
    if (found == columns_.end()) return "";
    return cells_[static_cast<size_t>(found - columns_.begin())];
  }
  // A whole number from 0 to `most`; `otherwise` if the cell is empty.
  Result<int64_t> number(std::string_view column, int64_t most,
                         std::optional<int64_t> otherwise) const {
    TROUPE_TRY(const int64_t value, signed_number(column, otherwise));
    if (value >= 0 && value <= most) return value;
    return wrong(fmt::format("{} is {}: 0 to {} possible", column, value, most));
  }
  Result<int64_t> signed_number(std::string_view column, std::optional<int64_t> otherwise) const {
    const std::string_view cell = text(column);
    if (cell.empty() && otherwise) return *otherwise;
    // Some traces have times as 12.0.
    const std::string_view whole = cell.substr(0, cell.find('.'));
    int64_t value = 0;
    const auto [end, failed] = std::from_chars(whole.data(), whole.data() + whole.size(), value);
    const std::string_view rest = cell.substr(std::min(whole.size() + 1, cell.size()));
    const bool is_number = failed == std::errc{} && end == whole.data() + whole.size() &&
                           rest.find_first_not_of("0123456789") == rest.npos;
    if (is_number) return value;
    return wrong(fmt::format("{} is '{}', which is no number", column, cell));
  }
  Error wrong(const std::string& what) const {
    return error(Code::invalid, fmt::format("line {} of the trace: {}", line_, what));
  }

 private:
  const std::vector<std::string_view>& columns_;
  std::vector<std::string_view> cells_;
  size_t line_;
};

Result<TraceJob> our_job(const Row& row) {
  TraceJob job;
  TROUPE_TRY(const int64_t submitted, row.number("submit_s", seconds_max, {}));
  TROUPE_TRY(const int64_t run_time, row.number("duration_s", seconds_max, {}));
  TROUPE_TRY(const int64_t gpus, row.number("num_gpus", amount_max / whole_gpu_milli, {}));
  TROUPE_TRY(job.cpu_milli, row.number("cpu_milli", amount_max, 0));
  TROUPE_TRY(job.memory_mib, row.number("memory_mib", amount_max, 0));
  TROUPE_TRY(const int64_t priority, row.signed_number("priority", 0));
  if (priority < INT32_MIN || priority > INT32_MAX) return row.wrong("priority is out of range");
  job.submitted = seconds(submitted);
  job.run_time = seconds(run_time);
  job.gpu_milli = gpus * whole_gpu_milli;
  job.priority = static_cast<int32_t>(priority);
  job.group = row.text("vc");
  return job;
}

// Nothing: a pod that never ran.
Result<std::optional<TraceJob>> alibaba_job(const Row& row) {
  TraceJob job;
  TROUPE_TRY(job.cpu_milli, row.number("cpu_milli", amount_max, {}));
  TROUPE_TRY(job.memory_mib, row.number("memory_mib", amount_max, {}));
  TROUPE_TRY(const int64_t gpus, row.number("num_gpu", amount_max / whole_gpu_milli, {}));
  TROUPE_TRY(const int64_t share, row.number("gpu_milli", whole_gpu_milli, whole_gpu_milli));
  if (gpus > 1 && share != whole_gpu_milli && share != 0) {
    return row.wrong("several GPUs are whole ones: gpu_milli is 1000 then");
  }
  job.gpu_milli = gpus == 1 && share > 0 ? share : gpus * whole_gpu_milli;
  TROUPE_TRY(const int64_t created, row.number("creation_time", seconds_max, {}));
  if (row.text("deletion_time").empty()) return std::optional<TraceJob>{};
  TROUPE_TRY(const int64_t deleted, row.number("deletion_time", seconds_max, {}));
  TROUPE_TRY(const int64_t began, row.number("scheduled_time", seconds_max, created));
  if (began < created || deleted < began) {
    return row.wrong("creation, scheduling and deletion are not in this order");
  }
  job.submitted = seconds(created);
  job.run_time = seconds(deleted - began);
  job.group = row.text("qos");
  return std::optional{std::move(job)};
}

template <size_t count>
Status check_columns(const std::vector<std::string_view>& columns,
                     const std::array<std::string_view, count>& known) {
  std::set<std::string_view> seen;
  for (const std::string_view column : columns) {
    if (std::ranges::find(known, column) == known.end()) {
      return error(Code::invalid, fmt::format("line 1 of the trace: unknown column '{}'", column));
    }
    if (!seen.insert(column).second) {
      return error(Code::invalid, fmt::format("line 1 of the trace: column {} twice", column));
    }
  }
  return ok();
}

Status check_there(const std::vector<std::string_view>& columns,
                   std::initializer_list<std::string_view> needed) {
  for (const std::string_view column : needed) {
    if (std::ranges::find(columns, column) != columns.end()) continue;
    return error(Code::invalid, fmt::format("line 1 of the trace: column {} is missing", column));
  }
  return ok();
}

std::string_view take_line(std::string_view& text) {
  const size_t end = text.find('\n');
  std::string_view line = text.substr(0, end);
  text.remove_prefix(end == text.npos ? text.size() : end + 1);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

}  // namespace

Result<std::vector<TraceJob>> read_trace(std::string_view text) {
  if (text.empty())
    return error(Code::invalid, "the trace is empty: its first line names the columns");
  const std::vector<std::string_view> columns = cells_of(take_line(text));
  const bool is_alibaba = std::ranges::find(columns, "creation_time") != columns.end();
  if (is_alibaba) {
    TROUPE_CHECK(check_columns(columns, alibaba_columns));
    TROUPE_CHECK(check_there(columns, {"name", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli",
                                       "creation_time", "deletion_time"}));
  } else {
    TROUPE_CHECK(check_columns(columns, our_columns));
    TROUPE_CHECK(check_there(columns, {"submit_s", "duration_s", "num_gpus"}));
  }
  const std::string_view id_column = is_alibaba ? "name" : "id";
  std::vector<TraceJob> jobs;
  std::set<std::string_view> ids;
  for (size_t line = 2; !text.empty(); ++line) {
    const std::string_view content = take_line(text);
    if (content.empty()) continue;
    const Row row{columns, cells_of(content), line};
    TROUPE_CHECK(row.check());
    const std::string_view id = row.text(id_column);
    if (!id.empty() && !ids.insert(id).second) {
      return row.wrong(fmt::format("id {} is there twice", id));
    }
    if (is_alibaba) {
      TROUPE_TRY(auto job, alibaba_job(row));
      if (job) jobs.push_back(std::move(*job));
    } else {
      TROUPE_TRY(jobs.emplace_back(), our_job(row));
    }
  }
  std::ranges::stable_sort(jobs, {}, &TraceJob::submitted);
  if (jobs.empty()) return jobs;
  const Duration first = jobs.front().submitted;
  for (TraceJob& job : jobs) job.submitted -= first;
  return jobs;
}

}  // namespace troupe::scheduler
