// A model directory made ready to run.
#pragma once

#include <optional>
#include <string>

#include "base/status.h"
#include "inference/engine_config.h"
#include "llm/inference_model.h"
#include "llm/tokenizer.h"

namespace troupe::inference {

struct LoadedModel {
  llm::InferenceModel model;
  llm::Tokenizer tokenizer;  // Its vocabulary is the model's, but for padding of the model's.
  std::optional<int32_t> eos;
};

// Blocks. Errors: those of load_gpt2, Tokenizer::load and InferenceModel::create; invalid (model
// and tokenizer do not belong together).
Result<LoadedModel> load_model(const EngineConfig& config);

}  // namespace troupe::inference
