#include "training/driver/run_summary.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <utility>

namespace troupe::training {
namespace {

namespace json = boost::json;

Result<json::object> parse(std::string_view text) {
  json::error_code failed;
  json::value parsed = json::parse({text.data(), text.size()}, failed);
  if (failed || !parsed.is_object()) {
    return error(Code::internal, "the trainer ended without a summary");
  }
  return std::move(parsed.get_object());
}

std::optional<double> number(const json::object& fields, std::string_view name) {
  const json::value* value = fields.if_contains(name);
  if (value == nullptr || !value->is_number()) return std::nullopt;
  return value->to_number<double>();
}

}  // namespace

Result<RunSummary> RunSummary::from_json(std::string_view text) {
  TROUPE_TRY(const json::object fields, parse(text));
  RunSummary summary;
  summary.step = static_cast<uint64_t>(number(fields, "step").value_or(0));
  const json::value* stopped = fields.if_contains("stopped");
  summary.stopped = stopped != nullptr && stopped->is_bool() && stopped->get_bool();
  summary.loss = number(fields, "loss").value_or(0);
  summary.elapsed_s = number(fields, "elapsed_s").value_or(0);
  summary.parameters = number(fields, "parameters").value_or(0);
  summary.validation_loss = number(fields, "val_loss");
  return summary;
}

Result<std::string> summary_in_status(std::string_view status) {
  TROUPE_TRY(const json::object fields, parse(status));
  const json::value* summary = fields.if_contains("summary");
  if (summary == nullptr || !summary->is_object()) {
    return error(Code::internal, "the trainer ended without a summary");
  }
  return json::serialize(*summary);
}

Status outcome_of(const RunSummary& summary, uint64_t steps_wanted, bool interrupted) {
  if (!summary.stopped || interrupted) return ok();
  return error(Code::cancelled, fmt::format("the trainers were stopped at step {} of {}; go on "
                                            "with --resume",
                                            summary.step, steps_wanted));
}

}  // namespace troupe::training
