// GPT-2 as a Hugging Face directory: config.json, generation_config.json, model.safetensors.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "base/status.h"
#include "llm/gpt2_config.h"
#include "llm/optimizer.h"

namespace troupe::llm {

struct Gpt2Checkpoint {
  Gpt2Config config;
  std::vector<float> parameters;  // Flat, in the order of Gpt2Layout(config).
};

// Reads config.json alone.
// Errors: not_found, invalid (no JSON, not GPT-2, or a variant that this model does not compute).
Result<Gpt2Config> load_gpt2_config(const std::filesystem::path& directory);

// Reads a model of the type GPT2LMHeadModel or GPT2Model; f32, f16 and bf16 become f32.
// Errors: as above, and invalid for the first tensor that is missing or whose shape is not the
// config's, naming the tensor, the expected and the found shape.
Result<Gpt2Checkpoint> load_gpt2(const std::filesystem::path& directory);

// Writes the three files so that `transformers` and load_gpt2 read them. Each file is replaced
// atomically, the model last: after an error or a crash the old model file is whole.
// Errors: exhausted (the disk is full), invalid, internal (I/O).
Status save_gpt2(const std::filesystem::path& directory, const Gpt2Config& config,
                 std::span<const float> parameters);

// The optimizer's state as `optimizer.safetensors` in the same directory. Errors as above.
Status save_optimizer(const std::filesystem::path& directory, const AdamWState& state);
Result<AdamWState> load_optimizer(const std::filesystem::path& directory);

}  // namespace troupe::llm
