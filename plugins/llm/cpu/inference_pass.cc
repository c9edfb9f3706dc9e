#include "llm/cpu/inference_pass.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "llm/cpu/threads.h"

namespace troupe::llm::cpu {

static_assert(PagedKv<float>::page == kv_block_tokens);

template <class Operand>
InferencePass<Operand>::InferencePass(const Gpt2Config& config, std::span<const float> parameters,
                                      const InferenceOptions& options)
    : config_(config),
      layout_(config),
      threads_max_(options.threads),
      threads_(options.threads),
      block_count_(options.kv_blocks),
      kernels_(best_kernels<float, Operand>().rows),
      attention_(best_kernels<float, Operand>().attention),
      parameters_(parameters.size()) {
  std::ranges::copy(parameters, parameters_.data());
  if constexpr (std::is_same_v<Operand, float>) {
    weights_ = parameters_.data();
  } else {
    converted_.resize(parameters.size());
    kernels_.convert(converted_.data(), parameters.data(), static_cast<int64_t>(parameters.size()));
    weights_ = converted_.data();
  }
  const PagedKv<Element> layer = layer_cache(0);
  const int64_t blocks = config_.n_layer * block_count_;
  keys_.resize(blocks * layer.key_block());
  values_.resize(blocks * layer.value_block());
  scratch_stride_ = 4 * (config_.n_positions + 2 * kv_block_tokens) / 16 * 16;
  scratch_.resize(threads_max_ * scratch_stride_);
}

template <class Operand>
size_t InferencePass<Operand>::block_bytes(const Gpt2Config& config) {
  const PagedKv<Element> kv{nullptr, nullptr, config.n_head, config.head_dim()};
  return static_cast<size_t>(config.n_layer * (kv.key_block() + kv.value_block())) *
         sizeof(Element);
}

template <class Operand>
auto InferencePass<Operand>::layer_cache(int64_t layer) -> PagedKv<Element> {
  PagedKv<Element> kv{nullptr, nullptr, config_.n_head, config_.head_dim()};
  kv.keys = keys_.data() + layer * block_count_ * kv.key_block();
  kv.values = values_.data() + layer * block_count_ * kv.value_block();
  return kv;
}

template <class Operand>
void InferencePass<Operand>::resize(int64_t rows, int64_t chunks) {
  const int64_t C = config_.n_embd;
  // The last layer norm sees one row a chunk, in buffers of the same shape.
  rows_ = rows;
  rows = std::max(rows, chunks);
  stream_.resize(rows * C);
  delta_.resize(rows * C);
  norm_.resize(rows * C);
  wide_.resize(4 * rows * C);
  gelu_.resize(4 * rows * C);
  heads_.resize(rows * C);
  mean_.resize(rows);
  rstd_.resize(rows);
}

template <class Operand>
Status InferencePass<Operand>::run(std::span<const SequenceChunk> chunks, float* logits) {
  const int64_t C = config_.n_embd;
  const auto count = static_cast<int64_t>(chunks.size());
  firsts_.clear();
  int64_t rows = 0;
  for (const SequenceChunk& chunk : chunks) {
    firsts_.push_back(rows);
    rows += static_cast<int64_t>(chunk.tokens.size());
  }
  const double flops = 2.0 * static_cast<double>(layout_.total()) * static_cast<double>(rows);
  threads_ = threads_for(flops, threads_max_);
  const ThreadScope scope(threads_);
  resize(rows, count);
  embed(chunks);
  for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
    const Gpt2BlockOffsets& at = layout_.block(layer);
    add_layer_norm(norm_.data(), at.ln_1_weight, at.ln_1_bias);
    linear(wide_.data(), norm_.data(), at.attn_weight, at.attn_bias, C, 3 * C);
    attend(chunks, layer);
    linear(delta_.data(), heads_.data(), at.attn_proj_weight, at.attn_proj_bias, C, C);
    add_layer_norm(norm_.data(), at.ln_2_weight, at.ln_2_bias);
    linear(wide_.data(), norm_.data(), at.fc_weight, at.fc_bias, C, 4 * C);
    parallel_parts(threads_, 4 * rows * C, [&](int64_t begin, int64_t end, int64_t) {
      kernels_.gelu(gelu_.data() + begin, wide_.data() + begin, end - begin);
    });
    linear(delta_.data(), gelu_.data(), at.proj_weight, at.proj_bias, 4 * C, C);
  }
  // Only each chunk's last row predicts. Rows move forward, so one buffer does.
  for (int64_t i = 0; i < count; ++i) {
    const auto size = static_cast<int64_t>(chunks[static_cast<size_t>(i)].tokens.size());
    const int64_t row = firsts_[static_cast<size_t>(i)] + size - 1;
    std::copy_n(stream_.data() + row * C, C, stream_.data() + i * C);
    std::copy_n(delta_.data() + row * C, C, delta_.data() + i * C);
  }
  rows_ = count;
  add_layer_norm(norm_.data(), layout_.ln_f_weight(), layout_.ln_f_bias());
  matmul_({.m = count, .n = config_.vocab_size, .k = C, .transpose_b = true}, norm_.data(),
          weights_ + layout_.wte(), logits);
  return matmul_.take_status();
}

// Into stream_ the words and into delta_ the positions: the first layer norm adds them.
template <class Operand>
void InferencePass<Operand>::embed(std::span<const SequenceChunk> chunks) {
  const int64_t C = config_.n_embd;
  float* words = stream_.data();
  float* positions = delta_.data();
  for (const SequenceChunk& chunk : chunks) {
    int64_t position = chunk.sequence->length;
    for (const int32_t token : chunk.tokens) {
      words = std::copy_n(parameters_.data() + layout_.wte() + token * C, C, words);
      positions = std::copy_n(parameters_.data() + layout_.wpe() + position * C, C, positions);
      ++position;
    }
  }
}

template <class Operand>
void InferencePass<Operand>::linear(float* y, const Operand* x, size_t weight, size_t bias,
                                    int64_t in, int64_t out) {
  matmul_({.m = rows_, .n = out, .k = in}, x, weights_ + weight, y, parameters_.data() + bias);
}

// Adds delta_ to the residual stream, and normalizes the sum.
template <class Operand>
void InferencePass<Operand>::add_layer_norm(Operand* out, size_t weight, size_t bias) {
  const int64_t C = config_.n_embd;
  const auto epsilon = static_cast<float>(config_.layer_norm_epsilon);
  parallel_parts(threads_, rows_, [&](int64_t begin, int64_t end, int64_t) {
    float* stream = stream_.data() + begin * C;
    kernels_.add_layer_norm(stream, out + begin * C, mean_.data() + begin, rstd_.data() + begin,
                            stream, delta_.data() + begin * C, parameters_.data() + weight,
                            parameters_.data() + bias, end - begin, C, epsilon);
  });
}

// From wide_ ([N, 3C]) to heads_, by way of the cache.
template <class Operand>
void InferencePass<Operand>::attend(std::span<const SequenceChunk> chunks, int64_t layer) {
  const int64_t C = config_.n_embd;
  const int64_t H = config_.n_head;
  const int64_t D = config_.head_dim();
  const PagedKv<Element> kv = layer_cache(layer);
  const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(D)));
  const auto count = static_cast<int64_t>(chunks.size());
  parallel_parts(threads_, count, [&](int64_t begin, int64_t end, int64_t) {
    for (int64_t c = begin; c < end; ++c) {
      const SequenceChunk& chunk = chunks[static_cast<size_t>(c)];
      const float* row = wide_.data() + firsts_[static_cast<size_t>(c)] * 3 * C;
      for (size_t i = 0; i < chunk.tokens.size(); ++i, row += 3 * C) {
        attention_.store(kv, chunk.sequence->blocks.data(),
                         chunk.sequence->length + static_cast<int64_t>(i), row + C, row + 2 * C);
      }
    }
  });
  parallel_parts(threads_, count * H, [&](int64_t begin, int64_t end, int64_t part) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t h = item % H;
      const auto c = static_cast<size_t>(item / H);
      const KvSequence& sequence = *chunks[c].sequence;
      attention_.attend(delta_.data() + firsts_[c] * C + h * D, C,
                        wide_.data() + firsts_[c] * 3 * C + h * D, 3 * C,
                        static_cast<int64_t>(chunks[c].tokens.size()), kv, sequence.blocks.data(),
                        h, sequence.length, scale, scratch_.data() + part * scratch_stride_);
    }
  });
  parallel_parts(threads_, rows_ * C, [&](int64_t begin, int64_t end, int64_t) {
    kernels_.convert(heads_.data() + begin, delta_.data() + begin, end - begin);
  });
}

template class InferencePass<float>;
template class InferencePass<bf16>;

}  // namespace troupe::llm::cpu
