// The forward and backward pass of GPT-2 over a dense batch, and the activations between them.
// Private to plugins/llm.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "llm/cpu/buffer.h"
#include "llm/cpu/kernels.h"
#include "llm/cpu/matmul.h"
#include "llm/gpt2.h"
#include "llm/gpt2_config.h"

namespace troupe::llm::cpu {

// Real and Operand as in kernels.h. Dimensions: B sequences, T tokens each, N = B T, C channels,
// H heads of D, V words. Batches must be valid: Gpt2 checks them.
template <class Real, class Operand>
class Gpt2Pass {
 public:
  Gpt2Pass(const Gpt2Config& config, const Gpt2Layout& layout, int threads);

  // The sum of the cross-entropies over `targets`. With `gradients` (may be null), adds
  // `gradient_scale` times the gradient of that sum to it.
  Result<double> run(const Real* parameters, const TokenBatch& batch, Real gradient_scale,
                     Real* gradients);
  Status logits(const Real* parameters, const TokenBatch& batch, Real* out);

 private:
  // What the backward pass needs of one block's forward pass.
  struct Block {
    Buffer<Real> input;           // [N, C], the residual stream.
    Buffer<Operand> ln_1;         // [N, C]
    Buffer<Real> mean_1, rstd_1;  // [N]
    Buffer<Operand> qkv;          // [3, B, H, T, D]
    Buffer<Operand> attention;    // [B, H, T, T], after the softmax.
    Buffer<Operand> heads;        // [N, C], the heads' outputs side by side.
    Buffer<Real> middle;          // [N, C], the residual stream after attention.
    Buffer<Operand> ln_2;         // [N, C]
    Buffer<Real> mean_2, rstd_2;  // [N]
    Buffer<Real> fc;              // [N, 4C], before gelu.
    Buffer<Operand> gelu;         // [N, 4C]
  };

  void choose_threads(const TokenBatch& batch, bool backward);
  void resize(int64_t batch, int64_t length);
  void load_weights(const Real* parameters);
  void forward(const TokenBatch& batch);
  void attend(Block& block);
  void embed(const int32_t* tokens);
  double head(const TokenBatch& batch, Real gradient_scale, Real* gradients);
  void backward(const TokenBatch& batch, Real* gradients);
  void attend_backward(Block& block);
  void embed_backward(const int32_t* tokens, Real* gradients);

  // y = x w + bias, and the gradients of a linear layer. dx may be null.
  void linear(Real* y, const Operand* x, size_t weight, size_t bias, int64_t in, int64_t out);
  void linear_backward(Real* dx, Real* dweight, Real* dbias, const Operand* dy, const Operand* x,
                       size_t weight, int64_t in, int64_t out);
  void layer_norm(Operand* out, Buffer<Real>& mean, Buffer<Real>& rstd, const Real* x,
                  size_t weight, size_t bias);
  void add_layer_norm(Real* sum, Operand* out, Buffer<Real>& mean, Buffer<Real>& rstd,
                      const Real* x, const Real* delta, size_t weight, size_t bias);
  void layer_norm_backward(Operand* dx_operand, Real* gradients, const Real* dy, const Real* x,
                           const Buffer<Real>& mean, const Buffer<Real>& rstd, size_t weight,
                           size_t bias);
  // The buffer itself where Real is Operand, else `other`.
  static Operand* in_place(Buffer<Real>& buffer, Buffer<Operand>& other);

  const Gpt2Config& config_;
  const Gpt2Layout& layout_;
  const int threads_max_;
  int threads_;  // Of the present pass.
  const RowKernels<Real, Operand>& kernels_;
  Matmul matmul_;

  int64_t B_ = 0, T_ = 0, N_ = 0;
  const int64_t C_, H_, D_, V_;
  const Real* parameters_ = nullptr;
  const Operand* weights_ = nullptr;  // The parameters as products read them.
  Buffer<Operand> converted_;

  std::vector<Block> blocks_;
  Buffer<Real> final_input_;    // [N, C]
  Buffer<Operand> final_norm_;  // [N, C]
  Buffer<Real> final_mean_, final_rstd_;
  // Used and forgotten within a layer, by both passes.
  Buffer<Real> wide_;    // [N, 4C]
  Buffer<Real> narrow_;  // [N, C]
  Buffer<Real> scores_;  // [H, T, T]
  Buffer<Real> logits_;  // [rows of a piece, V]
  Buffer<Operand> logits_operand_;
  Buffer<Real> residual_gradient_;    // [N, C]
  Buffer<Operand> residual_operand_;  // [N, C]
  Buffer<Operand> wide_operand_;      // [N, 4C]
  Buffer<Operand> scores_operand_;    // [H, T, T]
  Buffer<Operand> heads_operand_;     // [B, H, T, D]
  Buffer<Real> norm_gradients_;       // [threads, 2, C]
};

extern template class Gpt2Pass<float, float>;
extern template class Gpt2Pass<float, bf16>;
extern template class Gpt2Pass<double, double>;

}  // namespace troupe::llm::cpu
