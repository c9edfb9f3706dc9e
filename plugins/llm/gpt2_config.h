// What a GPT-2 model is: its sizes, and where each named tensor lies in one flat buffer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "base/status.h"

namespace troupe::llm {

// Names and meanings of Hugging Face's GPT2Config. The activation is always gelu_new (the tanh
// form), positions are learned, lm_head shares the token embedding, n_inner is 4 * n_embd.
struct Gpt2Config {
  int64_t vocab_size = 50257;
  int64_t n_positions = 1024;
  int64_t n_embd = 768;
  int64_t n_layer = 12;
  int64_t n_head = 12;
  double layer_norm_epsilon = 1e-5;

  int64_t head_dim() const { return n_embd / n_head; }
  bool operator==(const Gpt2Config&) const = default;
  // Errors: invalid (a size that is not positive or absurd, n_embd not a multiple of n_head).
  Status validate() const;
};

// One tensor of the model. Linear weights are [in, out], as Hugging Face's Conv1D keeps them.
struct Parameter {
  std::string name;  // Of GPT2LMHeadModel, e.g. "transformer.h.0.attn.c_attn.weight".
  std::vector<int64_t> shape;
  size_t offset = 0;  // In elements, into the flat buffer.
  size_t count = 0;

  // Weight decay is for matrices; biases and layer norms stay free.
  bool is_matrix() const { return shape.size() == 2; }
};

// Offsets of one transformer block's tensors.
struct Gpt2BlockOffsets {
  size_t ln_1_weight, ln_1_bias;
  size_t attn_weight, attn_bias;            // [C, 3C], [3C]: q, k, v side by side.
  size_t attn_proj_weight, attn_proj_bias;  // [C, C], [C]
  size_t ln_2_weight, ln_2_bias;
  size_t fc_weight, fc_bias;      // [C, 4C], [4C]
  size_t proj_weight, proj_bias;  // [4C, C], [C]
};

// The flat layout of all parameters, without gaps: parameters, gradients and optimizer state of
// the same config are parallel buffers of `total()` elements. Immutable, so safe to share.
class Gpt2Layout {
 public:
  explicit Gpt2Layout(const Gpt2Config& config);  // The config must be valid.

  size_t total() const { return total_; }
  std::span<const Parameter> parameters() const { return parameters_; }
  const Parameter* find(std::string_view name) const;  // Null if there is none.

  size_t wte() const { return wte_; }  // [vocab_size, n_embd]; also lm_head.
  size_t wpe() const { return wpe_; }  // [n_positions, n_embd]
  const Gpt2BlockOffsets& block(int64_t i) const { return blocks_[static_cast<size_t>(i)]; }
  size_t ln_f_weight() const { return ln_f_weight_; }
  size_t ln_f_bias() const { return ln_f_bias_; }

 private:
  size_t add(std::string name, std::vector<int64_t> shape);

  std::vector<Parameter> parameters_;
  std::vector<Gpt2BlockOffsets> blocks_;
  size_t wte_ = 0, wpe_ = 0, ln_f_weight_ = 0, ln_f_bias_ = 0;
  size_t total_ = 0;
};

// Fresh parameters into `out` (`total()` elements): weights from N(0, 0.02^2), projections into
// the residual stream from N(0, 0.02^2 / (2 n_layer)), layer norm weights 1, biases 0.
template <class Real>
void initialize_gpt2(const Gpt2Config& config, Random& random, std::span<Real> out);

// Floating-point operations of one training step's forward and backward pass over `batch`
// sequences of `length` tokens: 6 a weight used in a product and a token, plus causal attention.
double gpt2_training_flops(const Gpt2Config& config, int64_t batch, int64_t length);

}  // namespace troupe::llm
