// GPT-2 on the CPU for inference: paged KV cache, prefill and batched decode.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/status.h"
#include "llm/gpt2.h"
#include "llm/gpt2_config.h"

namespace troupe::llm {

inline constexpr int64_t kv_block_tokens = 16;

// Hands out the KV blocks of one model. Counts references, so that sequences with a common prefix
// may share its full blocks. Not thread-safe.
class KvBlockAllocator {
 public:
  explicit KvBlockAllocator(uint32_t block_count);

  // Errors: exhausted (none is free).
  Result<uint32_t> allocate();
  void retain(uint32_t block);   // One more reference to an allocated block.
  void release(uint32_t block);  // One less; the last one frees it.

  uint32_t references(uint32_t block) const;  // 0 if it is free.
  uint32_t free_count() const { return static_cast<uint32_t>(free_.size()); }
  uint32_t total_count() const { return static_cast<uint32_t>(references_.size()); }

 private:
  std::vector<uint32_t> free_;  // Used as a stack: the hottest block is reused first.
  std::vector<uint32_t> references_;
};

// A sequence's place in the cache. A plain value: who drops it must release its blocks first.
struct KvSequence {
  std::vector<uint32_t> blocks;  // Block i holds the tokens [16 i, 16 i + 16).
  int64_t length = 0;            // Tokens whose keys and values are in the cache.
};

// The tokens that one forward pass appends to one sequence: a prompt or a chunk of it (prefill),
// or a single token (decode). One pass may mix both.
struct SequenceChunk {
  KvSequence* sequence = nullptr;
  std::span<const int32_t> tokens;
};

struct InferenceOptions {
  int threads = 1;  // As in Gpt2Options.
  Precision precision = Precision::f32;
  uint32_t kv_blocks = 1024;
};

// Not thread-safe. Owns its weights and the cache, both in the products' precision.
class InferenceModel {
 public:
  // Copies `parameters` (flat, as in gpt2_config.h).
  // Errors: invalid (config, options or size), unimplemented (bf16 on this processor), exhausted
  // (memory).
  static Result<InferenceModel> create(const Gpt2Config& config, std::span<const float> parameters,
                                       const InferenceOptions& options);
  InferenceModel(InferenceModel&&) noexcept;
  InferenceModel& operator=(InferenceModel&&) noexcept;
  ~InferenceModel();

  const Gpt2Config& config() const;
  KvBlockAllocator& kv_blocks();
  // Bytes of keys and values that one block holds, over all layers.
  size_t kv_block_bytes() const;

  // Makes sure that `sequence` has blocks for `tokens` more tokens.
  // Errors: exhausted (too few blocks are free: nothing was taken).
  Status reserve(KvSequence& sequence, int64_t tokens);
  // Gives all blocks of the sequence back and empties it.
  void release(KvSequence& sequence);

  // Appends each chunk to its sequence and writes the logits after its last token to row i of
  // `logits` ([chunks.size(), vocab_size]). Reserves blocks itself. Chunks name distinct
  // sequences; a block that takes new tokens must not be shared.
  // Errors: invalid (empty chunk, token out of range, longer than n_positions, sizes), exhausted
  // (KV blocks), internal. After an error no sequence has grown.
  Status forward(std::span<const SequenceChunk> chunks, std::span<float> logits);

  // forward() of one sequence; `logits` is [vocab_size].
  Status prefill(KvSequence& sequence, std::span<const int32_t> tokens, std::span<float> logits);
  // forward() of one token a sequence; `logits` is [sequences.size(), vocab_size].
  Status decode(std::span<KvSequence* const> sequences, std::span<const int32_t> tokens,
                std::span<float> logits);

 private:
  struct Impl;
  explicit InferenceModel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::llm
