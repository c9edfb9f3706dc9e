#include "inference/engine_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "inference/fields.h"

namespace troupe::inference {
namespace {

constexpr std::array<std::string_view, 8> known{
    "model",     "name",          "threads",     "precision",
    "kv_blocks", "max_sequences", "max_waiting", "max_batch_tokens"};
constexpr int64_t threads_max = 1024;
constexpr int64_t blocks_max = int64_t{1} << 24;
constexpr int64_t counts_max = 1 << 20;

llm::Precision read_precision(Fields& fields) {
  const std::string asked = fields.text("precision").value_or("auto");
  if (asked == "f32") return llm::Precision::f32;
  if (asked == "bf16") return llm::Precision::bf16;
  if (asked != "auto") {
    fields.fail(fmt::format("Invalid 'precision': '{}' is none of auto, f32, bf16.", asked));
  }
  return llm::bf16_supported() ? llm::Precision::bf16 : llm::Precision::f32;
}

}  // namespace

Result<EngineConfig> parse_engine_config(std::string_view text) {
  TROUPE_TRY(Fields fields, Fields::parse(text, "the engine's configuration"));
  for (const auto& member : fields.object()) {
    if (std::ranges::find(known, std::string_view(member.key())) == known.end()) {
      fields.fail(fmt::format("the engine has no setting '{}'", std::string_view(member.key())));
    }
  }
  EngineConfig config;
  config.model = fields.text("model").value_or("");
  if (config.model.empty()) fields.fail("the engine's configuration needs a 'model': a directory");
  const std::filesystem::path directory = std::filesystem::path(config.model).lexically_normal();
  config.name = fields.text("name").value_or(
      (directory.has_filename() ? directory : directory.parent_path()).filename().string());
  config.threads =
      static_cast<int>(fields.integer("threads", {.min = 1, .max = threads_max}).value_or(1));
  config.precision = read_precision(fields);
  if (const auto blocks = fields.integer("kv_blocks", {.min = 1, .max = blocks_max})) {
    config.kv_blocks = static_cast<uint32_t>(*blocks);
  }
  const auto count = [&](std::string_view name, int64_t otherwise) {
    return fields.integer(name, {.min = 1, .max = counts_max}).value_or(otherwise);
  };
  config.sequences_max = count("max_sequences", config.sequences_max);
  config.waiting_max = count("max_waiting", config.waiting_max);
  config.batch_tokens_max = count("max_batch_tokens", config.batch_tokens_max);
  if (config.batch_tokens_max < config.sequences_max) {
    fields.fail(
        fmt::format("Invalid 'max_batch_tokens': {} leaves no token an iteration for each of "
                    "{} sequences ('max_sequences').",
                    config.batch_tokens_max, config.sequences_max));
  }
  TROUPE_CHECK(fields.status());
  return config;
}

}  // namespace troupe::inference
