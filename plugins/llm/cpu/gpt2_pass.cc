#include "llm/cpu/gpt2_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "llm/cpu/threads.h"

namespace troupe::llm::cpu {
namespace {

// The logits of a whole batch may not fit in memory, and a piece of this size stays in cache.
constexpr int64_t logits_piece_elements = int64_t{1} << 19;

}  // namespace

template <class Real, class Operand>
Gpt2Pass<Real, Operand>::Gpt2Pass(const Gpt2Config& config, const Gpt2Layout& layout, int threads)
    : config_(config),
      layout_(layout),
      threads_max_(threads),
      threads_(threads),
      kernels_(best_kernels<Real, Operand>().rows),
      C_(config.n_embd),
      H_(config.n_head),
      D_(config.head_dim()),
      V_(config.vocab_size),
      blocks_(static_cast<size_t>(config.n_layer)) {}

template <class Real, class Operand>
Result<double> Gpt2Pass<Real, Operand>::run(const Real* parameters, const TokenBatch& batch,
                                            Real gradient_scale, Real* gradients) {
  choose_threads(batch, gradients != nullptr);
  const ThreadScope scope(threads_);
  resize(batch.batch, batch.length);
  load_weights(parameters);
  forward(batch);
  const double loss = head(batch, gradient_scale, gradients);
  if (gradients != nullptr) backward(batch, gradients);
  TROUPE_CHECK(matmul_.take_status());
  return loss;
}

template <class Real, class Operand>
Status Gpt2Pass<Real, Operand>::logits(const Real* parameters, const TokenBatch& batch, Real* out) {
  choose_threads(batch, false);
  const ThreadScope scope(threads_);
  resize(batch.batch, batch.length);
  load_weights(parameters);
  forward(batch);
  matmul_({.m = N_, .n = V_, .k = C_, .transpose_b = true}, final_norm_.data(),
          weights_ + layout_.wte(), out);
  return matmul_.take_status();
}

template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::choose_threads(const TokenBatch& batch, bool backward) {
  const double all = gpt2_training_flops(config_, batch.batch, batch.length);
  threads_ = threads_for(backward ? all : all / 3, threads_max_);
}

template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::resize(int64_t batch, int64_t length) {
  B_ = batch;
  T_ = length;
  N_ = B_ * T_;
  for (Block& block : blocks_) {
    block.input.resize(N_ * C_);
    block.ln_1.resize(N_ * C_);
    block.mean_1.resize(N_);
    block.rstd_1.resize(N_);
    block.qkv.resize(3 * N_ * C_);
    block.attention.resize(B_ * H_ * T_ * T_);
    block.heads.resize(N_ * C_);
    block.middle.resize(N_ * C_);
    block.ln_2.resize(N_ * C_);
    block.mean_2.resize(N_);
    block.rstd_2.resize(N_);
    block.fc.resize(4 * N_ * C_);
    block.gelu.resize(4 * N_ * C_);
  }
  final_input_.resize(N_ * C_);
  final_norm_.resize(N_ * C_);
  final_mean_.resize(N_);
  final_rstd_.resize(N_);
  wide_.resize(4 * N_ * C_);
  narrow_.resize(N_ * C_);
  scores_.resize(H_ * T_ * T_);
  residual_gradient_.resize(N_ * C_);
  heads_operand_.resize(N_ * C_);
  norm_gradients_.resize(2 * C_ * threads_);
  if constexpr (!std::is_same_v<Real, Operand>) {
    residual_operand_.resize(N_ * C_);
    wide_operand_.resize(4 * N_ * C_);
    scores_operand_.resize(H_ * T_ * T_);
  }
}

template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::load_weights(const Real* parameters) {
  parameters_ = parameters;
  if constexpr (std::is_same_v<Real, Operand>) {
    weights_ = parameters;
  } else {
    converted_.resize(layout_.total());
    parallel_parts(threads_, static_cast<int64_t>(layout_.total()),
                   [&](int64_t begin, int64_t end, int64_t) {
                     kernels_.convert(converted_.data() + begin, parameters + begin, end - begin);
                   });
    weights_ = converted_.data();
  }
}

template <class Real, class Operand>
Operand* Gpt2Pass<Real, Operand>::in_place(Buffer<Real>& buffer, Buffer<Operand>& other) {
  if constexpr (std::is_same_v<Real, Operand>) {
    return buffer.data();
  } else {
    return other.data();
  }
}

// --- Parts of layers -----------------------------------------------------------------------------

template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::linear(Real* y, const Operand* x, size_t weight, size_t bias,
                                     int64_t in, int64_t out) {
  matmul_({.m = N_, .n = out, .k = in}, x, weights_ + weight, y, parameters_ + bias);
}

template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::linear_backward(Real* dx, Real* dweight, Real* dbias,
                                              const Operand* dy, const Operand* x, size_t weight,
                                              int64_t in, int64_t out) {
  parallel_parts(threads_, out, [&](int64_t begin, int64_t end, int64_t) {
    kernels_.add_column_sums(dbias, dy, N_, out, begin, end);
  });
  matmul_({.m = in, .n = out, .k = N_, .transpose_a = true, .accumulate = true}, x, dy, dweight);
  matmul_({.m = N_, .n = in, .k = out, .transpose_b = true}, dy, weights_ + weight, dx);
}

template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::layer_norm(Operand* out, Buffer<Real>& mean, Buffer<Real>& rstd,
                                         const Real* x, size_t weight, size_t bias) {
  const auto epsilon = static_cast<Real>(config_.layer_norm_epsilon);
  parallel_parts(threads_, N_, [&](int64_t begin, int64_t end, int64_t) {
    kernels_.layer_norm(out + begin * C_, mean.data() + begin, rstd.data() + begin, x + begin * C_,
                        parameters_ + weight, parameters_ + bias, end - begin, C_, epsilon);
  });
}

template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::add_layer_norm(Real* sum, Operand* out, Buffer<Real>& mean,
                                             Buffer<Real>& rstd, const Real* x, const Real* delta,
                                             size_t weight, size_t bias) {
  const auto epsilon = static_cast<Real>(config_.layer_norm_epsilon);
  parallel_parts(threads_, N_, [&](int64_t begin, int64_t end, int64_t) {
    kernels_.add_layer_norm(sum + begin * C_, out + begin * C_, mean.data() + begin,
                            rstd.data() + begin, x + begin * C_, delta + begin * C_,
                            parameters_ + weight, parameters_ + bias, end - begin, C_, epsilon);
  });
}

// Adds to the residual stream's gradient, and gives it as `dx_operand` too.
template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::layer_norm_backward(Operand* dx_operand, Real* gradients,
                                                  const Real* dy, const Real* x,
                                                  const Buffer<Real>& mean,
                                                  const Buffer<Real>& rstd, size_t weight,
                                                  size_t bias) {
  std::fill_n(norm_gradients_.data(), norm_gradients_.size(), Real{0});
  // Where Real is Operand, the gradient itself is the operand.
  constexpr bool converts = !std::is_same_v<Real, Operand>;
  Real* dx = residual_gradient_.data();
  parallel_parts(threads_, N_, [&](int64_t begin, int64_t end, int64_t part) {
    Real* partial = norm_gradients_.data() + part * 2 * C_;
    kernels_.layer_norm_backward(dx + begin * C_, converts ? dx_operand + begin * C_ : nullptr,
                                 partial, partial + C_, dy + begin * C_, x + begin * C_,
                                 mean.data() + begin, rstd.data() + begin, parameters_ + weight,
                                 end - begin, C_);
  });
  for (int part = 0; part < threads_; ++part) {
    const Real* partial = norm_gradients_.data() + part * 2 * C_;
    kernels_.add(gradients + weight, gradients + weight, partial, C_);
    kernels_.add(gradients + bias, gradients + bias, partial + C_, C_);
  }
}

// --- Forward -------------------------------------------------------------------------------------

template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::embed(const int32_t* tokens) {
  Real* out = blocks_.front().input.data();
  const Real* wte = parameters_ + layout_.wte();
  const Real* wpe = parameters_ + layout_.wpe();
  parallel_parts(threads_, N_, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = begin; i < end; ++i) {
      kernels_.add(out + i * C_, wte + tokens[i] * C_, wpe + i % T_ * C_, C_);
    }
  });
}

template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::forward(const TokenBatch& batch) {
  embed(batch.tokens.data());
  for (int64_t i = 0; i < config_.n_layer; ++i) {
    Block& block = blocks_[static_cast<size_t>(i)];
    const Gpt2BlockOffsets& at = layout_.block(i);
    if (i == 0) {
      layer_norm(block.ln_1.data(), block.mean_1, block.rstd_1, block.input.data(), at.ln_1_weight,
                 at.ln_1_bias);
    }
    linear(wide_.data(), block.ln_1.data(), at.attn_weight, at.attn_bias, C_, 3 * C_);
    attend(block);
    linear(narrow_.data(), block.heads.data(), at.attn_proj_weight, at.attn_proj_bias, C_, C_);
    add_layer_norm(block.middle.data(), block.ln_2.data(), block.mean_2, block.rstd_2,
                   block.input.data(), narrow_.data(), at.ln_2_weight, at.ln_2_bias);
    linear(block.fc.data(), block.ln_2.data(), at.fc_weight, at.fc_bias, C_, 4 * C_);
    parallel_parts(threads_, 4 * N_ * C_, [&](int64_t begin, int64_t end, int64_t) {
      kernels_.gelu(block.gelu.data() + begin, block.fc.data() + begin, end - begin);
    });
    linear(narrow_.data(), block.gelu.data(), at.proj_weight, at.proj_bias, 4 * C_, C_);
    // The sum into the residual stream, together with the norm that reads it next.
    if (i + 1 < config_.n_layer) {
      Block& next = blocks_[static_cast<size_t>(i) + 1];
      const Gpt2BlockOffsets& next_at = layout_.block(i + 1);
      add_layer_norm(next.input.data(), next.ln_1.data(), next.mean_1, next.rstd_1,
                     block.middle.data(), narrow_.data(), next_at.ln_1_weight, next_at.ln_1_bias);
    } else {
      add_layer_norm(final_input_.data(), final_norm_.data(), final_mean_, final_rstd_,
                     block.middle.data(), narrow_.data(), layout_.ln_f_weight(),
                     layout_.ln_f_bias());
    }
  }
}

// From wide_ ([N, 3C]) to block.heads. One sequence at a time, so that scores stay in cache.
template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::attend(Block& block) {
  const HeadShape qkv_shape{B_, T_, H_, D_, 3};
  const HeadShape out_shape{B_, T_, H_, D_, 1};
  parallel_parts(threads_, B_, [&](int64_t begin, int64_t end, int64_t) {
    kernels_.split_heads(block.qkv.data(), wide_.data(), qkv_shape, begin, end);
  });
  const auto scale = static_cast<Real>(1 / std::sqrt(static_cast<double>(D_)));
  const int64_t sequence = H_ * T_ * D_;
  for (int64_t b = 0; b < B_; ++b) {
    const Operand* q = block.qkv.data() + b * sequence;
    const Operand* k = q + N_ * C_;
    const Operand* v = k + N_ * C_;
    Operand* p = block.attention.data() + b * H_ * T_ * T_;
    matmul_({.batch = H_, .m = T_, .n = T_, .k = D_, .transpose_b = true}, q, k, scores_.data());
    parallel_parts(threads_, H_ * T_, [&](int64_t begin, int64_t end, int64_t) {
      kernels_.causal_softmax(p, scores_.data(), begin, end, T_, scale);
    });
    matmul_({.batch = H_, .m = T_, .n = D_, .k = T_}, p, v, narrow_.data() + b * sequence);
  }
  parallel_parts(threads_, B_, [&](int64_t begin, int64_t end, int64_t) {
    kernels_.merge_heads(block.heads.data(), narrow_.data(), out_shape, begin, end);
  });
}

// Logits, loss, and the head's own backward pass: piece by piece, so that logits are never all in
// memory. Leaves the gradient of the final norm's output in narrow_.
template <class Real, class Operand>
double Gpt2Pass<Real, Operand>::head(const TokenBatch& batch, Real gradient_scale,
                                     Real* gradients) {
  const int64_t piece = std::clamp<int64_t>(logits_piece_elements / V_, 1, N_);
  logits_.resize(piece * V_);
  if constexpr (!std::is_same_v<Real, Operand>) logits_operand_.resize(piece * V_);
  Operand* const dlogits = gradients != nullptr ? in_place(logits_, logits_operand_) : nullptr;
  const Operand* wte = weights_ + layout_.wte();
  std::vector<double> losses(static_cast<size_t>(threads_));
  for (int64_t first = 0; first < N_; first += piece) {
    const int64_t rows = std::min(piece, N_ - first);
    const Operand* x = final_norm_.data() + first * C_;
    matmul_({.m = rows, .n = V_, .k = C_, .transpose_b = true}, x, wte, logits_.data());
    parallel_parts(threads_, rows, [&](int64_t begin, int64_t end, int64_t part) {
      losses[static_cast<size_t>(part)] += kernels_.cross_entropy(
          dlogits != nullptr ? dlogits + begin * V_ : nullptr, logits_.data() + begin * V_,
          batch.targets.data() + first + begin, end - begin, V_, gradient_scale);
    });
    if (gradients == nullptr) continue;
    matmul_({.m = rows, .n = C_, .k = V_}, dlogits, wte, narrow_.data() + first * C_);
    matmul_({.m = V_, .n = C_, .k = rows, .transpose_a = true, .accumulate = true}, dlogits, x,
            gradients + layout_.wte());
  }
  double loss = 0;
  for (const double part : losses) loss += part;
  return loss;
}

// --- Backward ------------------------------------------------------------------------------------

template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::backward(const TokenBatch& batch, Real* gradients) {
  std::fill_n(residual_gradient_.data(), N_ * C_, Real{0});
  Operand* const residual = in_place(residual_gradient_, residual_operand_);
  Operand* const wide = in_place(wide_, wide_operand_);
  layer_norm_backward(residual, gradients, narrow_.data(), final_input_.data(), final_mean_,
                      final_rstd_, layout_.ln_f_weight(), layout_.ln_f_bias());
  for (int64_t i = config_.n_layer - 1; i >= 0; --i) {
    Block& block = blocks_[static_cast<size_t>(i)];
    const Gpt2BlockOffsets& at = layout_.block(i);
    linear_backward(wide_.data(), gradients + at.proj_weight, gradients + at.proj_bias, residual,
                    block.gelu.data(), at.proj_weight, 4 * C_, C_);
    parallel_parts(threads_, 4 * N_ * C_, [&](int64_t begin, int64_t end, int64_t) {
      kernels_.gelu_backward(wide + begin, block.fc.data() + begin, wide_.data() + begin,
                             end - begin);
    });
    linear_backward(narrow_.data(), gradients + at.fc_weight, gradients + at.fc_bias, wide,
                    block.ln_2.data(), at.fc_weight, C_, 4 * C_);
    layer_norm_backward(residual, gradients, narrow_.data(), block.middle.data(), block.mean_2,
                        block.rstd_2, at.ln_2_weight, at.ln_2_bias);
    linear_backward(narrow_.data(), gradients + at.attn_proj_weight, gradients + at.attn_proj_bias,
                    residual, block.heads.data(), at.attn_proj_weight, C_, C_);
    attend_backward(block);
    // attend_backward leaves the gradient of q, k, v in block.qkv: its forward values are spent.
    linear_backward(narrow_.data(), gradients + at.attn_weight, gradients + at.attn_bias,
                    block.qkv.data(), block.ln_1.data(), at.attn_weight, C_, 3 * C_);
    layer_norm_backward(residual, gradients, narrow_.data(), block.input.data(), block.mean_1,
                        block.rstd_1, at.ln_1_weight, at.ln_1_bias);
  }
  embed_backward(batch.tokens.data(), gradients);
}

// From narrow_ (the gradient of block.heads) to block.qkv as [N, 3C].
template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::attend_backward(Block& block) {
  const HeadShape qkv_shape{B_, T_, H_, D_, 3};
  const HeadShape out_shape{B_, T_, H_, D_, 1};
  parallel_parts(threads_, B_, [&](int64_t begin, int64_t end, int64_t) {
    kernels_.split_heads(heads_operand_.data(), narrow_.data(), out_shape, begin, end);
  });
  const auto scale = static_cast<Real>(1 / std::sqrt(static_cast<double>(D_)));
  const int64_t sequence = H_ * T_ * D_;
  Operand* const dscores = in_place(scores_, scores_operand_);
  for (int64_t b = 0; b < B_; ++b) {
    const Operand* q = block.qkv.data() + b * sequence;
    const Operand* k = q + N_ * C_;
    const Operand* v = k + N_ * C_;
    const Operand* p = block.attention.data() + b * H_ * T_ * T_;
    const Operand* dout = heads_operand_.data() + b * sequence;
    Real* dq = wide_.data() + b * sequence;
    Real* dk = dq + N_ * C_;
    Real* dv = dk + N_ * C_;
    matmul_({.batch = H_, .m = T_, .n = D_, .k = T_, .transpose_a = true}, p, dout, dv);
    matmul_({.batch = H_, .m = T_, .n = T_, .k = D_, .transpose_b = true}, dout, v, scores_.data());
    parallel_parts(threads_, H_ * T_, [&](int64_t begin, int64_t end, int64_t) {
      kernels_.causal_softmax_backward(dscores, p, scores_.data(), begin, end, T_, scale);
    });
    matmul_({.batch = H_, .m = T_, .n = D_, .k = T_}, dscores, k, dq);
    matmul_({.batch = H_, .m = T_, .n = D_, .k = T_, .transpose_a = true}, dscores, q, dk);
  }
  parallel_parts(threads_, B_, [&](int64_t begin, int64_t end, int64_t) {
    kernels_.merge_heads(block.qkv.data(), wide_.data(), qkv_shape, begin, end);
  });
}

// Each thread takes some of the channels, so that no two add to one element.
template <class Real, class Operand>
void Gpt2Pass<Real, Operand>::embed_backward(const int32_t* tokens, Real* gradients) {
  const Real* dx = residual_gradient_.data();
  Real* dwte = gradients + layout_.wte();
  Real* dwpe = gradients + layout_.wpe();
  parallel_parts(threads_, C_, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t i = 0; i < N_; ++i) {
      Real* token = dwte + tokens[i] * C_ + begin;
      Real* position = dwpe + i % T_ * C_ + begin;
      kernels_.add(token, token, dx + i * C_ + begin, end - begin);
      kernels_.add(position, position, dx + i * C_ + begin, end - begin);
    }
  });
}

template class Gpt2Pass<float, float>;
template class Gpt2Pass<float, bf16>;
template class Gpt2Pass<double, double>;

}  // namespace troupe::llm::cpu
