// GPT-2 as a Hugging Face directory: config.json, generation_config.json, model.safetensors, and
// beside them what training needs to go on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "llm/gpt2_config.h"
#include "llm/optimizer.h"

namespace troupe::llm {

struct Gpt2Checkpoint {
  Gpt2Config config;
  std::vector<float> parameters;  // Flat, in the order of Gpt2Layout(config).
};

// What training keeps beside a model.
struct TrainingState {
  AdamWState optimizer;
  std::map<std::string, std::string> progress;  // The trainer's own words: step, seed, ...
};

// What a saved checkpoint may hold besides the model.
struct Gpt2SaveExtras {
  std::optional<int32_t> eos_token_id;       // Where generation stops.
  const TrainingState* training = nullptr;   // Written as optimizer.safetensors.
  std::map<std::string, std::string> files;  // More files by name, e.g. tokenizer.json.
};

// Reads config.json alone. Blocks, like all of these.
// Errors: not_found, invalid (no JSON, not GPT-2, or a variant that this model does not compute).
Result<Gpt2Config> load_gpt2_config(const std::filesystem::path& directory);

// Reads a model that GPT2LMHeadModel or GPT2Model saved; f32, f16 and bf16 become f32.
// Errors: as above and those of SafetensorsFile::open; invalid for the first tensor that is
// missing, unknown, or not of the config's shape, naming the tensor, the expected and found shape.
Result<Gpt2Checkpoint> load_gpt2(const std::filesystem::path& directory);

// Errors: not_found, data_loss, invalid (not a training state).
Result<TrainingState> load_training_state(const std::filesystem::path& directory);

// Writes the directory so that `transformers` and load_gpt2 read it. All files are written and
// synced beside it, then the directories change places: readers and crashes see the whole old
// checkpoint or the whole new one. Other files of an old directory stay in it. One writer at a
// time a directory.
// Errors: exhausted (the disk is full), conflict (the directory holds something that is no
// checkpoint's, such as folders), invalid (sizes, file names), denied, unavailable. After an
// error the old checkpoint is whole.
Status save_gpt2(const std::filesystem::path& directory, const Gpt2Config& config,
                 std::span<const float> parameters, const Gpt2SaveExtras& extras = {});

}  // namespace troupe::llm
