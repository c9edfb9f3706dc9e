#include "training/driver/display.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>
#include <fstream>
#include <utility>

namespace troupe::training {
namespace {

namespace json = boost::json;
using std::chrono::steady_clock;

constexpr size_t bar_cells = 24;

std::string bar(double share) {
  const auto full = static_cast<size_t>(std::clamp(share, 0.0, 1.0) * bar_cells);
  return "[" + std::string(full, '#') + std::string(bar_cells - full, '.') + "]";
}

size_t terminal_columns() {
  winsize size{};
  if (::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return size.ws_col;
}

// In place: the file may have another name beside this one while a checkpoint is exchanged.
Status write_in_place(const std::filesystem::path& path, std::string_view text,
                      std::ios::openmode mode) {
  std::ofstream file(path, std::ios::binary | mode);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.flush();
  if (!file) return error(Code::unavailable, fmt::format("cannot write {}", path.string()));
  return ok();
}

}  // namespace

ProgressLine::ProgressLine(bool quiet) : quiet_(quiet), terminal_(::isatty(STDERR_FILENO) == 1) {}

void ProgressLine::show(std::string_view text, double share) {
  if (quiet_) return;
  const auto now = steady_clock::now();
  if (now - last_ < (terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(5))) return;
  last_ = now;
  if (!terminal_) {
    fmt::print(stderr, "{:3.0f} % {}\n", share * 100, text);
    return;
  }
  std::string line = fmt::format("{} {}", bar(share), text);
  line.resize(std::min(line.size(), terminal_columns() - 1));
  fmt::print(stderr, "\r{}\033[K", line);
  std::fflush(stderr);
  open_ = true;
}

void ProgressLine::say(std::string_view text) {
  if (quiet_) return;
  end();
  fmt::print(stderr, "{}\n", text);
  last_ = {};
}

void ProgressLine::end() {
  if (std::exchange(open_, false)) fmt::print(stderr, "\n");
}

Result<StepReport> StepReport::from_json(std::string_view text) {
  json::error_code failed;
  const json::value parsed = json::parse({text.data(), text.size()}, failed);
  const auto* fields = failed ? nullptr : parsed.if_object();
  if (fields == nullptr || !fields->contains("step") || !fields->contains("loss")) {
    return error(Code::invalid, "not a report of a step");
  }
  const auto number = [&](const char* name) {
    const auto* value = fields->if_contains(name);
    return value != nullptr && value->is_number() ? value->to_number<double>() : 0.0;
  };
  StepReport report{.step = static_cast<uint64_t>(std::max(number("step"), 0.0)),
                    .loss = number("loss"),
                    .tokens_per_s = number("tokens_per_s"),
                    .model_flops_per_s = number("model_flops_per_s"),
                    .elapsed_s = number("elapsed_s")};
  if (fields->contains("val_loss")) report.validation_loss = number("val_loss");
  return report;
}

Result<RunRecord> RunRecord::open(const std::filesystem::path& directory, uint64_t from_step) {
  RunRecord record{directory};
  TROUPE_CHECK(record.rewind(from_step));
  TROUPE_CHECK(record.draw("training"));
  return record;
}

Status RunRecord::rewind(uint64_t step) {
  const auto path = directory_ / "metrics.jsonl";
  train_.clear();
  validation_.clear();
  std::ifstream file(path);
  std::string kept;
  for (std::string line; step > 0 && std::getline(file, line);) {
    const auto report = StepReport::from_json(line);
    if (!report || report->step > step) continue;
    kept += line + "\n";
    train_.push_back({report->step, report->loss});
    if (report->validation_loss) validation_.push_back({report->step, *report->validation_loss});
  }
  return write_in_place(path, kept, std::ios::trunc);
}

Status RunRecord::add(const StepReport& report, std::string_view line) {
  train_.push_back({report.step, report.loss});
  if (report.validation_loss) validation_.push_back({report.step, *report.validation_loss});
  return write_in_place(directory_ / "metrics.jsonl", std::string(line) + "\n", std::ios::app);
}

Status RunRecord::draw(const std::string& title) const {
  return write_in_place(directory_ / "loss.svg", loss_chart_svg(train_, validation_, title),
                        std::ios::trunc);
}

std::optional<double> RunRecord::last_validation_loss() const {
  if (validation_.empty()) return std::nullopt;
  return validation_.back().loss;
}

}  // namespace troupe::training
