// Elementwise and row-wise arithmetic of a transformer, in the best form for this processor.
//
// Real is the type of arithmetic and of sums; Operand that of matrix products' inputs. A kernel
// whose result goes only into a product writes it as Operand, so that bf16 costs no extra pass.
// Each works on the rows or elements that it is given: the caller splits work over threads.
// Pointers do not overlap unless it says so.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include "llm/cpu/bf16.h"

namespace troupe::llm::cpu {

// Where the heads of a batch lie: `parts` is 3 for q, k, v side by side, else 1.
//   together: [B, T, parts, H, D]       apart: [parts, B, H, T, D]
struct HeadShape {
  int64_t B, T, H, D, parts;
};

struct AdamWStep {
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  float gradient_scale;              // From clipping.
  float m_correction, v_correction;  // 1 / (1 - beta^step).
};

template <class Real, class Operand>
struct RowKernels {
  // out = (x - mean) * rstd * weight + bias; keeps mean and rstd of each row. x: [rows, C].
  void (*layer_norm)(Operand* out, Real* mean, Real* rstd, const Real* x, const Real* weight,
                     const Real* bias, int64_t rows, int64_t C, Real epsilon);
  // sum = x + delta, and layer_norm of the sum. sum may be x or delta.
  void (*add_layer_norm)(Real* sum, Operand* out, Real* mean, Real* rstd, const Real* x,
                         const Real* delta, const Real* weight, const Real* bias, int64_t rows,
                         int64_t C, Real epsilon);
  // dx += the gradient through the norm; dx_operand (may be null) = the new dx; dweight, dbias +=.
  void (*layer_norm_backward)(Real* dx, Operand* dx_operand, Real* dweight, Real* dbias,
                              const Real* dy, const Real* x, const Real* mean, const Real* rstd,
                              const Real* weight, int64_t rows, int64_t C);

  // Gaussian error linear unit, tanh form (Hendrycks and Gimpel, 2016).
  void (*gelu)(Operand* out, const Real* x, int64_t count);
  void (*gelu_backward)(Operand* dx, const Real* x, const Real* dy, int64_t count);

  // Softmax of scale * scores over the keys that row i may see: [0, i % T]; the rest becomes 0.
  // Rows [begin, end) of [.., T, T]. out may be scores.
  void (*causal_softmax)(Operand* out, const Real* scores, int64_t begin, int64_t end, int64_t T,
                         Real scale);
  // dscores from the softmax's result p and its gradient dp. dscores may be dp.
  void (*causal_softmax_backward)(Operand* dscores, const Operand* p, const Real* dp, int64_t begin,
                                  int64_t end, int64_t T, Real scale);

  // Returns the sum of the rows' cross-entropies; dlogits (may be null, may be logits) =
  // scale * (softmax(logits) - onehot(target)). Rows with a negative target count nothing.
  double (*cross_entropy)(Operand* dlogits, const Real* logits, const int32_t* targets,
                          int64_t rows, int64_t V, Real scale);

  // For the sequences [begin, end) of the batch; `together` to `apart` and back.
  void (*split_heads)(Operand* apart, const Real* together, const HeadShape& shape, int64_t begin,
                      int64_t end);
  void (*merge_heads)(Operand* together, const Real* apart, const HeadShape& shape, int64_t begin,
                      int64_t end);

  // out[j] += the sum of x[i][j] over all rows, for columns j in [begin, end). x: [rows, C].
  void (*add_column_sums)(Real* out, const Operand* x, int64_t rows, int64_t C, int64_t begin,
                          int64_t end);
  // out = a + b; out may be either.
  void (*add)(Real* out, const Real* a, const Real* b, int64_t count);
  void (*convert)(Operand* out, const Real* x, int64_t count);
};

// Over the flat buffers of the optimizer.
struct OptimizerKernels {
  void (*adamw)(float* p, float* m, float* v, const float* g, int64_t count, const AdamWStep& step);
  double (*sum_of_squares)(const float* x, int64_t count);
};

// One layer's keys and values in pages of `page` tokens: the lane of a vector is a token in the
// keys, and a channel in the values, so that neither product ever sums across a vector.
//   keys: [blocks, H, D, page]       values: [blocks, H, page, D_padded]
template <class Element>
struct PagedKv {
  static constexpr int64_t page = 16;

  Element* keys;
  Element* values;
  int64_t H, D;

  int64_t D_padded() const { return (D + 15) / 16 * 16; }
  int64_t key_block() const { return H * D * page; }  // Elements of one block.
  int64_t value_block() const { return H * D_padded() * page; }
};

// Arithmetic is in float whatever the cache keeps: float or bf16.
template <class Element>
struct AttentionKernels {
  // Puts one token's k and v ([H, D] each) at `position` of the sequence with these blocks.
  void (*store)(const PagedKv<Element>& kv, const uint32_t* blocks, int64_t position,
                const float* k, const float* v);
  // Causal attention of one head for `queries` consecutive tokens from `position` on, whose keys
  // and values are stored. q and out point to the first token's head; their tokens lie q_stride
  // and out_stride apart. scratch: 4 * (position + queries + page) floats, 64-byte aligned.
  void (*attend)(float* out, int64_t out_stride, const float* q, int64_t q_stride, int64_t queries,
                 const PagedKv<Element>& kv, const uint32_t* blocks, int64_t head, int64_t position,
                 float scale, float* scratch);
};

// The kernels in the form of one instruction set.
template <class Real, class Operand>
struct KernelSet {
  // What the cache keeps beside such operands.
  using CacheElement = std::conditional_t<std::is_same_v<Operand, bf16>, bf16, float>;

  const char* name;  // "avx512", "avx2", "baseline".
  RowKernels<Real, Operand> rows;
  AttentionKernels<CacheElement> attention;
  OptimizerKernels optimizer;
};

// Those that this processor runs, the best first. In double there is the baseline only: that is
// the reference. Instantiated for <float, float>, <float, bf16> and <double, double>.
template <class Real, class Operand>
std::span<const KernelSet<Real, Operand>> kernel_sets();

template <class Real, class Operand>
const KernelSet<Real, Operand>& best_kernels() {
  return kernel_sets<Real, Operand>().front();
}

}  // namespace troupe::llm::cpu
