// GPT-2 on the CPU for training: loss and gradient of a batch of token sequences.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "base/status.h"
#include "llm/gpt2_config.h"

namespace troupe::llm {

// The number format of the matrix products' inputs. Sums, results, all elementwise arithmetic and
// the master weights are single precision in either case.
enum class Precision : uint8_t { f32, bf16 };

// Whether this processor multiplies bf16 natively (AVX512_BF16 or AMX).
bool bf16_supported();

struct Gpt2Options {
  // At most, of this model's calls; the caller's own is one of them. Small passes use only that.
  int threads = 1;
  Precision precision = Precision::f32;  // bf16 needs bf16_supported().
};

// `batch` sequences of `length` tokens, row after row. `targets` has the same shape: the token to
// predict at each position, or a negative number where there is nothing to learn.
struct TokenBatch {
  int64_t batch = 0;
  int64_t length = 0;
  std::span<const int32_t> tokens;
  std::span<const int32_t> targets;
};

// A model's parameters, their gradient and the workspace to compute it. Real is float, or double
// for checking gradients (slow). Not thread-safe; two models are independent of each other.
// Deterministic: the same parameters, batch, options and processor give the same bits.
template <class Real>
class Gpt2 {
 public:
  // All parameters and gradients are zero; use initialize_gpt2() or load_gpt2().
  // Errors: invalid (config or options), unimplemented (bf16 on this processor or in double).
  static Result<Gpt2> create(const Gpt2Config& config, const Gpt2Options& options = {});
  Gpt2(Gpt2&&) noexcept;
  Gpt2& operator=(Gpt2&&) noexcept;
  ~Gpt2();

  const Gpt2Config& config() const;
  const Gpt2Layout& layout() const;
  // Flat buffers in the order of layout(). Write to parameters() between calls as you like.
  std::span<Real> parameters();
  std::span<const Real> parameters() const;
  std::span<Real> gradients();

  void zero_gradients();

  // Returns the mean cross-entropy over the targets and adds `gradient_scale` times its gradient
  // to gradients(): 1 for a whole batch, 1/k for each of k micro-batches of one size.
  // Errors: invalid (shape, token or target out of range, no target), internal (a product failed).
  Result<Real> forward_backward(const TokenBatch& batch, Real gradient_scale = 1);
  // The loss alone.
  Result<Real> loss(const TokenBatch& batch);
  // The logits of every position into `out` ([batch, length, vocab_size]). Targets are ignored.
  Status logits(const TokenBatch& batch, std::span<Real> out);

 private:
  struct Impl;
  explicit Gpt2(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

extern template class Gpt2<float>;
extern template class Gpt2<double>;

}  // namespace troupe::llm
