// The forward pass of GPT-2 for serving: rows of many sequences, keys and values in pages.
// Private to plugins/llm.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"
#include "llm/cpu/buffer.h"
#include "llm/cpu/kernels.h"
#include "llm/cpu/matmul.h"
#include "llm/gpt2_config.h"
#include "llm/inference_model.h"

namespace troupe::llm::cpu {

// Operand as in kernels.h. Not thread-safe.
template <class Operand>
class InferencePass {
 public:
  InferencePass(const Gpt2Config& config, std::span<const float> parameters,
                const InferenceOptions& options);

  // Bytes of one KV block over all layers.
  static size_t block_bytes(const Gpt2Config& config);

  // Chunks are valid and their blocks reserved; lengths stay as they are.
  Status run(std::span<const SequenceChunk> chunks, float* logits);

 private:
  using Element = typename KernelSet<float, Operand>::CacheElement;

  void resize(int64_t rows, int64_t chunks);
  void embed(std::span<const SequenceChunk> chunks);
  void linear(float* y, const Operand* x, size_t weight, size_t bias, int64_t in, int64_t out);
  void add_layer_norm(Operand* out, size_t weight, size_t bias);
  void attend(std::span<const SequenceChunk> chunks, int64_t layer);
  PagedKv<Element> layer_cache(int64_t layer);

  const Gpt2Config config_;
  const Gpt2Layout layout_;
  const int threads_max_;
  int threads_;  // Of the present pass.
  const uint32_t block_count_;
  const RowKernels<float, Operand>& kernels_;
  const AttentionKernels<Element>& attention_;
  Matmul matmul_;
  Buffer<float> parameters_;
  Buffer<Operand> converted_;         // Empty where Operand is float.
  const Operand* weights_ = nullptr;  // The parameters as products read them.
  Buffer<Element> keys_, values_;     // Every layer's pages, layer after layer.

  int64_t rows_ = 0;             // N
  std::vector<int64_t> firsts_;  // Each chunk's first row.
  Buffer<float> stream_;         // [N, C], the residual stream.
  Buffer<float> delta_;          // [N, C], what a layer adds to it.
  Buffer<Operand> norm_;         // [N, C]
  Buffer<float> wide_;           // [N, 4C]
  Buffer<Operand> gelu_;         // [N, 4C]
  Buffer<Operand> heads_;        // [N, C]
  Buffer<float> mean_, rstd_;    // [N]; only training reads them.
  Buffer<float> scratch_;        // [threads, scratch_stride_]
  int64_t scratch_stride_ = 0;
};

extern template class InferencePass<float>;
extern template class InferencePass<bf16>;

}  // namespace troupe::llm::cpu
