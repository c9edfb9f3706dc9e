// What a trainer is told when it is created, as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/status.h"
#include "llm/gpt2_config.h"
#include "llm/optimizer.h"

namespace troupe::training {

enum class PrecisionChoice : uint8_t { automatic, f32, bf16 };  // "auto", "f32", "bf16"

// All members of a group get the same values but for `rank`. The JSON names are the members' own.
struct TrainerConfig {
  uint32_t rank = 0;
  uint32_t world = 1;

  // Token files (token_file.h). Without validation_data there are no evaluations.
  std::string train_data;
  std::string validation_data;
  // tokenizer.json, which goes into each checkpoint; may be empty.
  std::string tokenizer;

  // "vocab_size", "n_positions", "n_embd", "n_layer", "n_head". n_positions 0: sequence_length.
  llm::Gpt2Config model{.vocab_size = 0, .n_positions = 0, .n_embd = 0, .n_layer = 0, .n_head = 0};

  int64_t batch = 0;        // Sequences a step, over all ranks.
  int64_t micro_batch = 0;  // Sequences a pass on one rank; 0: all of the rank's.
  int64_t sequence_length = 0;
  uint64_t steps = 0;

  double lr_peak = 1e-3;
  double lr_floor = 1e-4;
  uint64_t warmup_steps = 0;
  double weight_decay = 0.1;
  double gradient_norm_max = 1;  // 0: no clipping.
  uint64_t seed = 1;
  PrecisionChoice precision = PrecisionChoice::automatic;
  int threads = 1;

  uint64_t eval_interval = 0;  // Steps; 0: after the last step only.
  int64_t eval_sequences = 128;
  // Written by rank 0 at the end, at each interval (0: never) and when training is stopped.
  std::string checkpoint;
  uint64_t checkpoint_interval = 0;

  int64_t rank_batch() const { return batch / world; }
  int64_t pass_batch() const { return micro_batch > 0 ? micro_batch : rank_batch(); }
  llm::CosineSchedule schedule() const {
    return {static_cast<float>(lr_peak), static_cast<float>(lr_floor), warmup_steps, steps};
  }

  // Errors: invalid (names the field and what to do).
  Status validate() const;
  // Errors: invalid (no JSON, a field that is unknown or of another type; and those of validate).
  static Result<TrainerConfig> from_json(std::string_view text);
  std::string to_json() const;
};

}  // namespace troupe::training
