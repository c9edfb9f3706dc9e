// What a person sees while training runs, and the files that stay of it.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "training/driver/loss_chart.h"

namespace troupe::training {

// One line on standard error, rewritten in place on a terminal, now and then a new one otherwise.
class ProgressLine {
 public:
  explicit ProgressLine(bool quiet);
  // `share` in [0, 1].
  void show(std::string_view text, double share);
  // Leaves the last line standing and writes one that someone should read.
  void say(std::string_view text);
  // Goes to the next line if the last one is open.
  void end();

 private:
  using SteadyTime = std::chrono::steady_clock::time_point;
  bool quiet_, terminal_;
  bool open_ = false;  // A line without its end is on the terminal.
  SteadyTime last_{};
};

// The trainer's words about one step.
struct StepReport {
  uint64_t step = 0;
  double loss = 0, tokens_per_s = 0, model_flops_per_s = 0, elapsed_s = 0;
  std::optional<double> validation_loss;

  // Errors: invalid (no such item).
  static Result<StepReport> from_json(std::string_view text);
};

// metrics.jsonl and loss.svg of a run. The files are opened anew for each write, for checkpoints
// replace the directory around them.
class RunRecord {
 public:
  // Keeps what an earlier part of a resumed run wrote up to `from_step`.
  // Errors: those of writing files.
  static Result<RunRecord> open(const std::filesystem::path& directory, uint64_t from_step);
  // `line` is the item as it came.
  Status add(const StepReport& report, std::string_view line);
  // Forgets the steps after `step`, which a restart runs anew.
  Status rewind(uint64_t step);
  Status draw(const std::string& title) const;
  std::optional<double> last_validation_loss() const;

 private:
  explicit RunRecord(std::filesystem::path directory) : directory_(std::move(directory)) {}

  std::filesystem::path directory_;
  std::vector<LossPoint> train_, validation_;
};

}  // namespace troupe::training
