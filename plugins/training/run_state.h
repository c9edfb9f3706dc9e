// Everything of a training run that a checkpoint keeps, and its way to and from disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/status.h"
#include "llm/gpt2.h"
#include "llm/optimizer.h"
#include "training/trainer_config.h"

namespace troupe::training {

// The model, its optimizer and the step they are at. Not thread-safe.
class RunState {
 public:
  // At step 0, with the parameters that the seed gives: the same on every rank.
  // Errors: invalid, unimplemented (bf16 on this processor), not_found or invalid (the tokenizer).
  static Result<RunState> create(const TrainerConfig& config);

  void start_over();
  // Goes on from a checkpoint. Errors: those of load_gpt2 and load_training_state; conflict (it is
  // of a run with another model, data order or batch, which could not go on bit for bit). After an
  // error the state is as it was.
  Status load(const std::filesystem::path& directory);
  // Writes a Hugging Face directory with the training state and tokenizer.json beside it.
  // Errors: those of save_gpt2.
  Status save(const std::filesystem::path& directory) const;

  // Applies the model's gradients and counts the step. Returns the gradient's norm.
  // Errors: invalid (it is not finite: nothing was changed).
  Result<float> update(float learning_rate);

  llm::Gpt2<float>& model() { return model_; }
  uint64_t step() const { return optimizer_.state().step; }
  // Of the step and the parameters' bits.
  uint64_t hash() const;

 private:
  RunState(const TrainerConfig& config, llm::Gpt2<float> model);

  TrainerConfig config_;
  llm::Gpt2<float> model_;
  llm::AdamW optimizer_;
  std::string tokenizer_json_;
  int32_t eos_token_id_ = -1;
};

// Whether products shall be in bf16: as chosen, or where the processor is made for it.
llm::Precision precision_of(PrecisionChoice choice);

}  // namespace troupe::training
