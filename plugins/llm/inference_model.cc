#include "llm/inference_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <new>
#include <variant>

#include "llm/cpu/inference_pass.h"

namespace troupe::llm {
namespace {

constexpr int threads_max = 1024;
constexpr uint32_t kv_blocks_max = 1u << 24;

int64_t blocks_for(int64_t tokens) {
  return (tokens + kv_block_tokens - 1) / kv_block_tokens;
}

// How many blocks `sequence` lacks to hold `tokens` more.
int64_t missing_blocks(const KvSequence& sequence, int64_t tokens) {
  const auto have = static_cast<int64_t>(sequence.blocks.size());
  return std::max<int64_t>(0, blocks_for(sequence.length + tokens) - have);
}

}  // namespace

KvBlockAllocator::KvBlockAllocator(uint32_t block_count) : references_(block_count) {
  for (uint32_t i = block_count; i > 0; --i) free_.push_back(i - 1);
}

Result<uint32_t> KvBlockAllocator::allocate() {
  if (free_.empty()) {
    return error(Code::exhausted, fmt::format("all {} KV blocks are in use", total_count()));
  }
  const uint32_t block = free_.back();
  free_.pop_back();
  references_[block] = 1;
  return block;
}

void KvBlockAllocator::retain(uint32_t block) {
  TROUPE_ASSERT(references(block) > 0, "retain of a free KV block");
  ++references_[block];
}

void KvBlockAllocator::release(uint32_t block) {
  TROUPE_ASSERT(references(block) > 0, "release of a free KV block");
  if (--references_[block] == 0) free_.push_back(block);
}

uint32_t KvBlockAllocator::references(uint32_t block) const {
  TROUPE_ASSERT(block < references_.size(), "no such KV block");
  return references_[block];
}

struct InferenceModel::Impl {
  using Pass = std::variant<cpu::InferencePass<float>, cpu::InferencePass<cpu::bf16>>;

  Impl(const Gpt2Config& c, std::span<const float> parameters, const InferenceOptions& options)
      : config(c),
        blocks(options.kv_blocks),
        pass(options.precision == Precision::f32
                 ? Pass(std::in_place_index<0>, c, parameters, options)
                 : Pass(std::in_place_index<1>, c, parameters, options)) {}

  Status check(std::span<const SequenceChunk> chunks, std::span<float> logits) const;
  Status check_chunk(const SequenceChunk& chunk) const;

  const Gpt2Config config;
  KvBlockAllocator blocks;
  Pass pass;
};

InferenceModel::InferenceModel(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
InferenceModel::InferenceModel(InferenceModel&&) noexcept = default;
InferenceModel& InferenceModel::operator=(InferenceModel&&) noexcept = default;
InferenceModel::~InferenceModel() = default;

Result<InferenceModel> InferenceModel::create(const Gpt2Config& config,
                                              std::span<const float> parameters,
                                              const InferenceOptions& options) {
  TROUPE_CHECK(config.validate());
  if (options.threads < 1 || options.threads > threads_max || options.kv_blocks < 1 ||
      options.kv_blocks > kv_blocks_max) {
    return error(Code::invalid,
                 fmt::format("{} threads, {} KV blocks", options.threads, options.kv_blocks));
  }
  if (options.precision == Precision::bf16 && !bf16_supported()) {
    return error(Code::unimplemented, "this processor has no bf16 products (AVX512_BF16, AMX)");
  }
  if (const size_t total = Gpt2Layout(config).total(); parameters.size() != total) {
    return error(Code::invalid,
                 fmt::format("{} parameters for a model of {}", parameters.size(), total));
  }
  try {
    return InferenceModel(std::make_unique<Impl>(config, parameters, options));
  } catch (const std::bad_alloc&) {
    return error(Code::exhausted,
                 fmt::format("no memory for the weights and {} KV blocks", options.kv_blocks));
  }
}

const Gpt2Config& InferenceModel::config() const {
  return impl_->config;
}
KvBlockAllocator& InferenceModel::kv_blocks() {
  return impl_->blocks;
}

size_t InferenceModel::kv_block_bytes() const {
  return std::visit([&](const auto& p) { return p.block_bytes(impl_->config); }, impl_->pass);
}

Status InferenceModel::reserve(KvSequence& sequence, int64_t tokens) {
  const int64_t missing = missing_blocks(sequence, tokens);
  if (missing > impl_->blocks.free_count()) {
    return error(Code::exhausted, fmt::format("{} KV blocks are free, {} are needed",
                                              impl_->blocks.free_count(), missing));
  }
  for (int64_t i = 0; i < missing; ++i) {
    TROUPE_TRY(const uint32_t block, impl_->blocks.allocate());
    sequence.blocks.push_back(block);
  }
  return ok();
}

void InferenceModel::release(KvSequence& sequence) {
  for (const uint32_t block : sequence.blocks) impl_->blocks.release(block);
  sequence = {};
}

Status InferenceModel::Impl::check_chunk(const SequenceChunk& chunk) const {
  if (chunk.sequence == nullptr || chunk.tokens.empty()) {
    return error(Code::invalid, "a chunk without a sequence or tokens");
  }
  const KvSequence& sequence = *chunk.sequence;
  const auto tokens = static_cast<int64_t>(chunk.tokens.size());
  if (sequence.length < 0 || sequence.length + tokens > config.n_positions) {
    return error(Code::invalid,
                 fmt::format("a sequence of {} + {} tokens, but the model has {} positions",
                             sequence.length, tokens, config.n_positions));
  }
  for (const int32_t token : chunk.tokens) {
    if (token < 0 || token >= config.vocab_size) {
      return error(Code::invalid, fmt::format("token {} is outside the vocabulary of {}", token,
                                              config.vocab_size));
    }
  }
  const auto held = static_cast<int64_t>(sequence.blocks.size());
  if (held < blocks_for(sequence.length)) {
    return error(Code::invalid,
                 fmt::format("a sequence of {} tokens has {} KV blocks", sequence.length, held));
  }
  for (int64_t i = 0; i < held; ++i) {
    const uint32_t block = sequence.blocks[static_cast<size_t>(i)];
    if (block >= blocks.total_count() || blocks.references(block) == 0) {
      return error(Code::invalid, fmt::format("KV block {} is not allocated", block));
    }
    const bool takes_tokens = i >= sequence.length / kv_block_tokens;
    if (takes_tokens && blocks.references(block) > 1) {
      return error(Code::invalid, fmt::format("KV block {} is shared and cannot grow", block));
    }
  }
  return ok();
}

Status InferenceModel::Impl::check(std::span<const SequenceChunk> chunks,
                                   std::span<float> logits) const {
  if (chunks.empty()) return error(Code::invalid, "no chunks");
  std::vector<const KvSequence*> sequences;
  for (const SequenceChunk& chunk : chunks) {
    TROUPE_CHECK(check_chunk(chunk));
    sequences.push_back(chunk.sequence);
  }
  std::ranges::sort(sequences, std::less<>{});
  if (std::ranges::adjacent_find(sequences) != sequences.end()) {
    return error(Code::invalid, "two chunks of one sequence");
  }
  const size_t needed = chunks.size() * static_cast<size_t>(config.vocab_size);
  if (logits.size() != needed) {
    return error(Code::invalid, fmt::format("room for {} logits, not {}", logits.size(), needed));
  }
  return ok();
}

Status InferenceModel::forward(std::span<const SequenceChunk> chunks, std::span<float> logits) {
  TROUPE_CHECK(impl_->check(chunks, logits));
  int64_t missing = 0;
  for (const SequenceChunk& chunk : chunks) {
    missing += missing_blocks(*chunk.sequence, static_cast<int64_t>(chunk.tokens.size()));
  }
  // All or none: half a batch's blocks would help nobody.
  if (missing > impl_->blocks.free_count()) {
    return error(Code::exhausted, fmt::format("{} KV blocks are free, {} are needed",
                                              impl_->blocks.free_count(), missing));
  }
  for (const SequenceChunk& chunk : chunks) {
    TROUPE_CHECK(reserve(*chunk.sequence, static_cast<int64_t>(chunk.tokens.size())));
  }
  TROUPE_CHECK(std::visit([&](auto& p) { return p.run(chunks, logits.data()); }, impl_->pass));
  for (const SequenceChunk& chunk : chunks) {
    chunk.sequence->length += static_cast<int64_t>(chunk.tokens.size());
  }
  return ok();
}

Status InferenceModel::prefill(KvSequence& sequence, std::span<const int32_t> tokens,
                               std::span<float> logits) {
  const SequenceChunk chunk{&sequence, tokens};
  return forward({&chunk, 1}, logits);
}

Status InferenceModel::decode(std::span<KvSequence* const> sequences,
                              std::span<const int32_t> tokens, std::span<float> logits) {
  if (tokens.size() != sequences.size()) {
    return error(Code::invalid,
                 fmt::format("{} tokens for {} sequences", tokens.size(), sequences.size()));
  }
  std::vector<SequenceChunk> chunks;
  for (size_t i = 0; i < sequences.size(); ++i) {
    chunks.push_back({sequences[i], tokens.subspan(i, 1)});
  }
  return forward(chunks, logits);
}

}  // namespace troupe::llm
