// How a training run ended, in rank 0's words.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace troupe::training {

struct RunSummary {
  uint64_t step = 0;
  bool stopped = false;  // Before the last step.
  double loss = 0, elapsed_s = 0, parameters = 0;
  std::optional<double> validation_loss;

  // Errors: internal (no such summary).
  static Result<RunSummary> from_json(std::string_view text);
};

// The summary in a trainer's answer to `status`, as JSON.
// Errors: internal (no run has ended since the actor was made).
Result<std::string> summary_in_status(std::string_view status);

// Whether the program did what it was asked to: ok unless others stopped the run.
// Errors: cancelled.
Status outcome_of(const RunSummary& summary, uint64_t steps_wanted, bool interrupted);

}  // namespace troupe::training
