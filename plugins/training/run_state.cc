#include "training/run_state.h"

#include <fmt/format.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "base/random.h"
#include "llm/checkpoint.h"
#include "llm/tokenizer.h"

namespace troupe::training {
namespace {

llm::AdamWOptions adamw_options(const TrainerConfig& config) {
  return {.weight_decay = static_cast<float>(config.weight_decay),
          .gradient_norm_max = static_cast<float>(config.gradient_norm_max),
          .threads = config.threads};
}

// What must not change for a run to go on as it would have.
std::map<std::string, std::string> fixed_settings(const TrainerConfig& config) {
  return {{"seed", std::to_string(config.seed)},
          {"batch", std::to_string(config.batch)},
          {"sequence_length", std::to_string(config.sequence_length)}};
}

Result<std::string> read_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) return error(Code::not_found, fmt::format("cannot read {}", path.string()));
  return text;
}

}  // namespace

llm::Precision precision_of(PrecisionChoice choice) {
  if (choice == PrecisionChoice::bf16) return llm::Precision::bf16;
  const bool use = choice == PrecisionChoice::automatic && llm::bf16_supported();
  return use ? llm::Precision::bf16 : llm::Precision::f32;
}

RunState::RunState(const TrainerConfig& config, llm::Gpt2<float> model)
    : config_(config),
      model_(std::move(model)),
      optimizer_(model_.layout(), adamw_options(config)) {}

Result<RunState> RunState::create(const TrainerConfig& config) {
  TROUPE_TRY(auto model,
             llm::Gpt2<float>::create(config.model, {.threads = config.threads,
                                                     .precision = precision_of(config.precision)}));
  RunState made{config, std::move(model)};
  if (!config.tokenizer.empty()) {
    TROUPE_TRY(const auto tokenizer, llm::Tokenizer::load(config.tokenizer));
    if (tokenizer.vocab_size() != config.model.vocab_size) {
      return error(Code::invalid,
                   fmt::format("{} has {} tokens, the model {}: give vocab_size {}, or the "
                               "tokenizer that belongs to the model",
                               config.tokenizer, tokenizer.vocab_size(), config.model.vocab_size,
                               tokenizer.vocab_size()));
    }
    made.eos_token_id_ = tokenizer.eos_id().value_or(-1);
    TROUPE_TRY(made.tokenizer_json_, read_text(config.tokenizer));
  }
  made.start_over();
  return made;
}

void RunState::start_over() {
  SeededRandom random{config_.seed};
  llm::initialize_gpt2<float>(config_.model, random, model_.parameters());
  optimizer_ = llm::AdamW{model_.layout(), adamw_options(config_)};
}

Status RunState::load(const std::filesystem::path& directory) {
  TROUPE_TRY(auto checkpoint, llm::load_gpt2(directory));
  auto loaded = llm::load_training_state(directory);
  if (!loaded && loaded.error().code() == Code::not_found) {
    return error(Code::conflict, fmt::format("{} holds a model without the optimizer's state, so "
                                             "training cannot go on from it",
                                             directory.string()));
  }
  TROUPE_TRY(auto training, std::move(loaded));
  if (checkpoint.config != config_.model) {
    return error(Code::conflict, fmt::format("{} holds a model of another shape than this run's; "
                                             "give the same shape or start anew elsewhere",
                                             directory.string()));
  }
  for (const auto& [name, value] : fixed_settings(config_)) {
    if (const std::string& was = training.progress[name]; was != value) {
      return error(Code::conflict,
                   fmt::format("{} was trained with {} {}, this run has {}: give the same to "
                               "resume it",
                               directory.string(), name, was.empty() ? "unknown" : was, value));
    }
  }
  TROUPE_CHECK(optimizer_.restore(std::move(training.optimizer)));
  std::copy(checkpoint.parameters.begin(), checkpoint.parameters.end(),
            model_.parameters().begin());
  return ok();
}

Status RunState::save(const std::filesystem::path& directory) const {
  const llm::TrainingState training{optimizer_.state(), fixed_settings(config_)};
  llm::Gpt2SaveExtras extras;
  if (eos_token_id_ >= 0) extras.eos_token_id = eos_token_id_;
  extras.training = &training;
  if (!tokenizer_json_.empty()) extras.files["tokenizer.json"] = tokenizer_json_;
  return llm::save_gpt2(directory, config_.model, model_.parameters(), extras);
}

Result<float> RunState::update(float learning_rate) {
  return optimizer_.step(model_.parameters(), model_.gradients(), learning_rate);
}

uint64_t RunState::hash() const {
  // FNV-1a over words: it is to notice ranks that drifted apart, not enemies.
  constexpr uint64_t prime = 0x100000001b3;
  uint64_t hash = 0xcbf29ce484222325 ^ step();
  for (const float& value : model_.parameters()) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    hash = (hash ^ bits) * prime;
  }
  return hash;
}

}  // namespace troupe::training
