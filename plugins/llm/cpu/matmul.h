// Matrix products. The one place that knows oneDNN.
#pragma once

#include <cstdint>
#include <memory>

#include "base/status.h"
#include "llm/cpu/bf16.h"

namespace troupe::llm::cpu {

// c[i] = op(a[i]) * op(b[i]) (+ bias) (+ c[i]), for i in [0, batch). All are row-major and dense:
// a is [batch, m, k], or [batch, k, m] if transposed; b is [batch, k, n], or [batch, n, k];
// c is [batch, m, n]; bias is [n].
struct MatmulShape {
  int64_t batch = 1;
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;

  bool operator==(const MatmulShape&) const = default;
};

// Runs products with OpenMP's present number of threads, and keeps what it prepared for each
// shape. Not thread-safe. The first error sticks, like a stream's, so that a pass checks once.
class Matmul {
 public:
  Matmul();
  ~Matmul();
  Matmul(Matmul&&) noexcept;
  Matmul& operator=(Matmul&&) noexcept;

  // `bias` may be null. A product with a dimension of 0 must not be asked for.
  void operator()(const MatmulShape& shape, const float* a, const float* b, float* c,
                  const float* bias = nullptr);
  void operator()(const MatmulShape& shape, const bf16* a, const bf16* b, float* c,
                  const float* bias = nullptr);
  // A plain loop: the reference.
  void operator()(const MatmulShape& shape, const double* a, const double* b, double* c,
                  const double* bias = nullptr);

  // internal, with the first failure's text, if any product failed since the last call.
  Status take_status();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Whether oneDNN multiplies bf16 with instructions of this processor's own.
bool has_bf16_products();

}  // namespace troupe::llm::cpu
