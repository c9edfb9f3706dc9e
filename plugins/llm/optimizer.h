// AdamW over a model's flat buffers, and the learning rate over a training run.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "llm/gpt2_config.h"

namespace troupe::llm {

struct AdamWOptions {
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0.1f;       // Decoupled; on matrices only.
  float gradient_norm_max = 1.0f;  // The global norm is clipped to this; 0 leaves it alone.
  int threads = 1;
};

// What a checkpoint keeps so that training goes on bit for bit.
struct AdamWState {
  uint64_t step = 0;  // Updates done.
  std::vector<float> m;
  std::vector<float> v;
};

// Loshchilov and Hutter, "Decoupled weight decay regularization", 2019. Not thread-safe.
class AdamW {
 public:
  AdamW(const Gpt2Layout& layout, const AdamWOptions& options);

  // One update of `parameters` from `gradients` (both `layout.total()` elements), which it leaves
  // as they are. Returns the gradient's global norm before clipping.
  // Errors: invalid (the norm is not finite: nothing was changed).
  Result<float> step(std::span<float> parameters, std::span<const float> gradients,
                     float learning_rate);

  const AdamWState& state() const { return state_; }
  // Errors: invalid (sizes do not match this layout: nothing was changed).
  Status restore(AdamWState state);

 private:
  struct Range {
    size_t begin, end;
    bool decays;
  };
  AdamWOptions options_;
  std::vector<Range> ranges_;  // The flat buffer, cut where decay begins or ends.
  AdamWState state_;
};

// Linear warm-up from 0 to `peak` over `warmup_steps`, then a half cosine down to `floor` at
// `total_steps`, and `floor` from there on.
struct CosineSchedule {
  float peak = 6e-4f;
  float floor = 6e-5f;
  uint64_t warmup_steps = 0;
  uint64_t total_steps = 1;

  // The rate of the update number `step`, counted from 0; the first one is never 0.
  float learning_rate(uint64_t step) const;
};

}  // namespace troupe::llm
