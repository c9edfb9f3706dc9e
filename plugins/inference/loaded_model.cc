#include "inference/loaded_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "inference/fields.h"
#include "inference/iteration_plan.h"
#include "llm/checkpoint.h"

namespace troupe::inference {
namespace {

namespace fs = std::filesystem;

// Models pad their embedding to whole tiles; more than that is another tokenizer's.
constexpr int64_t vocab_padding_max = 127;
constexpr uintmax_t settings_bytes_max = 16u << 20;

Status check_vocabulary(const llm::Gpt2Config& config, const llm::Tokenizer& tokenizer) {
  const int64_t padding = config.vocab_size - tokenizer.vocab_size();
  if (padding >= 0 && padding <= vocab_padding_max) return ok();
  return error(Code::invalid,
               fmt::format("the tokenizer has {} tokens, the model {}: they do not belong together",
                           tokenizer.vocab_size(), config.vocab_size));
}

// What the file says of "eos_token_id": a number, or several of which the first counts.
std::optional<int32_t> eos_in(const fs::path& path, int32_t vocab_size) {
  std::error_code failed;
  const uintmax_t size = fs::file_size(path, failed);
  if (failed || size > settings_bytes_max) return std::nullopt;
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto fields = Fields::parse(text, "it");
  const auto* value = fields ? fields->find("eos_token_id") : nullptr;
  if (value != nullptr && value->is_array()) {
    value = value->get_array().empty() ? nullptr : &value->get_array().front();
  }
  if (value == nullptr || !value->is_int64()) return std::nullopt;
  const int64_t id = value->get_int64();
  if (id < 0 || id >= vocab_size) return std::nullopt;
  return static_cast<int32_t>(id);
}

std::optional<int32_t> eos_of(const fs::path& directory, const llm::Tokenizer& tokenizer) {
  for (const char* name : {"generation_config.json", "config.json"}) {
    if (const auto id = eos_in(directory / name, tokenizer.vocab_size())) return id;
  }
  return tokenizer.eos_id();
}

uint32_t kv_blocks_of(const EngineConfig& config, const llm::Gpt2Config& model) {
  if (config.kv_blocks) return *config.kv_blocks;
  const int64_t element_bytes = config.precision == llm::Precision::f32 ? 4 : 2;
  const int64_t block_bytes =
      2 * model.n_layer * model.n_embd * llm::kv_block_tokens * element_bytes;
  const int64_t whole_context = blocks_of(model.n_positions);
  // No more than can ever be in use, no less than one whole context.
  const int64_t blocks = std::min(static_cast<int64_t>(kv_bytes_default) / block_bytes,
                                  config.sequences_max * whole_context);
  return static_cast<uint32_t>(std::max(blocks, whole_context));
}

Result<LoadedModel> load(const EngineConfig& config) {
  const fs::path directory = config.model;
  TROUPE_TRY(llm::Tokenizer tokenizer, llm::Tokenizer::load(directory / "tokenizer.json"));
  TROUPE_TRY(const llm::Gpt2Config sizes, llm::load_gpt2_config(directory));
  TROUPE_CHECK(check_vocabulary(sizes, tokenizer));
  TROUPE_TRY(const llm::Gpt2Checkpoint checkpoint, llm::load_gpt2(directory));
  TROUPE_TRY(auto model, llm::InferenceModel::create(checkpoint.config, checkpoint.parameters,
                                                     {.threads = config.threads,
                                                      .precision = config.precision,
                                                      .kv_blocks = kv_blocks_of(config, sizes)}));
  const auto eos = eos_of(directory, tokenizer);
  return LoadedModel{std::move(model), std::move(tokenizer), eos};
}

}  // namespace

Result<LoadedModel> load_model(const EngineConfig& config) {
  auto loaded = load(config);
  if (!loaded) return std::move(loaded).error().context("load model " + config.model);
  return loaded;
}

}  // namespace troupe::inference
