#include "llm/inference_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "llm/gpt2.h"

namespace troupe::llm {
namespace {

// A head of 12 channels does not fill a vector, and 40 positions do not fill the last block.
constexpr Gpt2Config small{
    .vocab_size = 53, .n_positions = 40, .n_embd = 24, .n_layer = 2, .n_head = 2};
constexpr size_t V = 53;

// Large enough that a prompt is worth two threads.
constexpr Gpt2Config larger{
    .vocab_size = 53, .n_positions = 160, .n_embd = 96, .n_layer = 2, .n_head = 3};

std::vector<float> lively_parameters(const Gpt2Config& config) {
  const Gpt2Layout layout(config);
  std::vector<float> parameters(layout.total());
  SeededRandom random(1);
  for (const Parameter& p : layout.parameters()) {
    const bool is_norm = p.name.find("ln_") != std::string::npos && p.name.ends_with(".weight");
    for (size_t i = 0; i < p.count; ++i) {
      parameters[p.offset + i] =
          static_cast<float>((is_norm ? 1.0 : 0.0) + 0.8 * (random.uniform() - 0.5));
    }
  }
  return parameters;
}

std::vector<int32_t> random_tokens(size_t count, uint64_t seed) {
  SeededRandom random(seed);
  std::vector<int32_t> tokens(count);
  for (int32_t& t : tokens) t = static_cast<int32_t>(random.below(V));
  return tokens;
}

InferenceModel make(const InferenceOptions& options = {.kv_blocks = 32}) {
  return InferenceModel::create(small, lively_parameters(small), options).value();
}

// The logits after each token, by the training model's dense pass.
std::vector<float> dense_logits(std::span<const int32_t> tokens, const Gpt2Config& config = small) {
  auto model = Gpt2<float>::create(config).value();
  std::ranges::copy(lively_parameters(config), model.parameters().begin());
  std::vector<float> logits(tokens.size() * V);
  EXPECT_TRUE(model.logits({1, static_cast<int64_t>(tokens.size()), tokens, {}}, logits));
  return logits;
}

void expect_near(std::span<const float> a, std::span<const float> b, float tolerance) {
  ASSERT_EQ(a.size(), b.size());
  float largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  EXPECT_LT(largest, tolerance);
}

std::span<const float> row(std::span<const float> logits, size_t i) {
  return logits.subspan(i * V, V);
}

TEST(InferenceModel, PrefillAndDecodeEqualTheDensePass) {
  const auto tokens = random_tokens(40, 2);
  const auto expected = dense_logits(tokens);
  for (const size_t prompt : {1u, 7u, 16u, 17u, 39u}) {
    auto model = make({.kv_blocks = 3});
    KvSequence sequence;
    std::vector<float> logits(V);
    ASSERT_TRUE(model.prefill(sequence, std::span(tokens).first(prompt), logits));
    expect_near(logits, row(expected, prompt - 1), 2e-5f);
    for (size_t i = prompt; i < tokens.size(); ++i) {
      KvSequence* const one = &sequence;
      ASSERT_TRUE(model.decode({&one, 1}, std::span(tokens).subspan(i, 1), logits));
      expect_near(logits, row(expected, i), 2e-5f);
    }
    EXPECT_EQ(sequence.length, 40);
    EXPECT_EQ(sequence.blocks.size(), 3u);
  }
}

TEST(InferenceModel, TwoThreadsShareALongPrompt) {
  const auto tokens = random_tokens(150, 9);
  const auto expected = dense_logits(tokens, larger);
  auto model =
      InferenceModel::create(larger, lively_parameters(larger), {.threads = 2, .kv_blocks = 20})
          .value();
  KvSequence a, b;
  std::vector<float> logits(2 * V);
  const SequenceChunk chunks[] = {{&a, tokens}, {&b, std::span(tokens).first(101)}};
  ASSERT_TRUE(model.forward(chunks, logits));
  expect_near(row(logits, 0), row(expected, 149), 1e-4f);
  expect_near(row(logits, 1), row(expected, 100), 1e-4f);
}

TEST(InferenceModel, BatchedDecodeEqualsEachSequenceAlone) {
  constexpr size_t count = 7;
  auto model = make();
  std::vector<KvSequence> sequences(count);
  std::vector<std::vector<int32_t>> tokens;
  std::vector<float> logits(V);
  for (size_t i = 0; i < count; ++i) {
    tokens.push_back(random_tokens(12 + 3 * i, 10 + i));  // Each at its own position.
    ASSERT_TRUE(model.prefill(sequences[i], std::span(tokens[i]).first(2 + 3 * i), logits));
  }
  for (size_t step = 0; step < 10; ++step) {
    std::vector<KvSequence*> batch;
    std::vector<int32_t> next;
    std::vector<float> batch_logits(count * V);
    for (size_t i = 0; i < count; ++i) {
      batch.push_back(&sequences[i]);
      next.push_back(tokens[i][2 + 3 * i + step]);
    }
    ASSERT_TRUE(model.decode(batch, next, batch_logits));
    for (size_t i = 0; i < count; ++i) {
      auto alone = make();
      KvSequence sequence;
      ASSERT_TRUE(
          alone.prefill(sequence, std::span(tokens[i]).first(2 + 3 * i + step + 1), logits));
      expect_near(row(batch_logits, i), logits, 2e-5f);
    }
  }
}

TEST(InferenceModel, OnePassMixesPromptChunksAndDecodes) {
  const auto first = random_tokens(30, 20);
  const auto second = random_tokens(33, 21);
  auto model = make();
  KvSequence a, b;
  std::vector<float> logits(2 * V);
  ASSERT_TRUE(model.prefill(a, std::span(first).first(29), std::span(logits).first(V)));
  ASSERT_TRUE(model.prefill(b, std::span(second).first(13), std::span(logits).first(V)));
  const SequenceChunk chunks[] = {{&a, std::span(first).subspan(29, 1)},
                                  {&b, std::span(second).subspan(13)}};
  ASSERT_TRUE(model.forward(chunks, logits));
  expect_near(row(logits, 0), row(dense_logits(first), 29), 2e-5f);
  expect_near(row(logits, 1), row(dense_logits(second), 32), 2e-5f);
}

TEST(InferenceModel, Bf16StaysNear) {
  if (!bf16_supported()) GTEST_SKIP() << "no bf16 products on this processor";
  const auto tokens = random_tokens(20, 3);
  auto model = make({.precision = Precision::bf16, .kv_blocks = 8});
  KvSequence sequence;
  std::vector<float> logits(V);
  ASSERT_TRUE(model.prefill(sequence, tokens, logits));
  expect_near(logits, row(dense_logits(tokens), 19), 0.1f);
}

TEST(InferenceModel, ASharedPrefixServesTwoSequences) {
  const auto tokens = random_tokens(40, 4);
  auto other = tokens;
  other[17] = (other[17] + 1) % static_cast<int32_t>(V);
  auto model = make({.kv_blocks = 4});
  KvSequence a;
  std::vector<float> logits(V);
  ASSERT_TRUE(model.prefill(a, std::span(tokens).first(16), logits));
  KvSequence b = a;
  model.kv_blocks().retain(b.blocks[0]);
  ASSERT_TRUE(model.prefill(a, std::span(tokens).subspan(16, 8), logits));
  expect_near(logits, row(dense_logits(tokens), 23), 2e-5f);
  ASSERT_TRUE(model.prefill(b, std::span(other).subspan(16, 8), logits));
  expect_near(logits, row(dense_logits(other), 23), 2e-5f);
  EXPECT_EQ(model.kv_blocks().free_count(), 1u);
  model.release(a);
  model.release(b);
  EXPECT_EQ(model.kv_blocks().free_count(), 4u);

  // Half a block that is shared must not take more tokens from either side.
  ASSERT_TRUE(model.prefill(a, std::span(tokens).first(8), logits));
  b = a;
  model.kv_blocks().retain(b.blocks[0]);
  const auto refused = model.prefill(b, std::span(tokens).first(1), logits);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::invalid);
}

TEST(InferenceModel, ReusedBlocksForgetTheirFormerSequence) {
  auto model = make({.kv_blocks = 3});
  std::vector<float> logits(V);
  KvSequence sequence;
  ASSERT_TRUE(model.prefill(sequence, random_tokens(40, 5), logits));
  model.release(sequence);
  const auto tokens = random_tokens(20, 6);
  ASSERT_TRUE(model.prefill(sequence, tokens, logits));
  expect_near(logits, row(dense_logits(tokens), 19), 2e-5f);
}

TEST(InferenceModel, TooFewBlocksLeaveEverySequenceAsItWas) {
  auto model = make({.kv_blocks = 3});
  const auto tokens = random_tokens(33, 7);
  std::vector<float> logits(2 * V);
  KvSequence a, b;
  ASSERT_TRUE(model.prefill(a, std::span(tokens).first(16), std::span(logits).first(V)));
  const SequenceChunk chunks[] = {{&a, std::span(tokens).first(1)},
                                  {&b, std::span(tokens).first(17)}};
  const auto full = model.forward(chunks, logits);
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code(), Code::exhausted);
  EXPECT_EQ(a.length, 16);
  EXPECT_EQ(a.blocks.size(), 1u);
  EXPECT_TRUE(b.blocks.empty());
  EXPECT_EQ(model.kv_blocks().free_count(), 2u);
  EXPECT_FALSE(model.reserve(b, 33));
  EXPECT_TRUE(model.reserve(b, 32));
  EXPECT_EQ(model.kv_blocks().free_count(), 0u);
}

TEST(InferenceModel, RefusesBadChunks) {
  auto model = make();
  KvSequence a;
  std::vector<float> logits(V);
  std::vector<float> two(2 * V);
  const auto code = [&](std::span<const SequenceChunk> chunks, std::span<float> out) {
    const auto status = model.forward(chunks, out);
    return status ? Code::ok : status.error().code();
  };
  const std::vector<int32_t> good{1, 2};
  const std::vector<int32_t> outside{53};
  const std::vector<int32_t> negative{-1};
  const auto too_long = random_tokens(41, 8);
  const SequenceChunk bad[] = {
      {&a, {}}, {nullptr, good}, {&a, outside}, {&a, negative}, {&a, too_long}};
  for (const SequenceChunk& chunk : bad) EXPECT_EQ(code({&chunk, 1}, logits), Code::invalid);
  const SequenceChunk twice[] = {{&a, good}, {&a, good}};
  EXPECT_EQ(code(twice, two), Code::invalid);
  EXPECT_EQ(code({twice, 1}, two), Code::invalid);
  EXPECT_EQ(code({}, {}), Code::invalid);
  KvSequence forged{.blocks = {31}, .length = 3};
  const SequenceChunk foreign{&forged, good};
  EXPECT_EQ(code({&foreign, 1}, logits), Code::invalid);
  EXPECT_EQ(model.kv_blocks().free_count(), 32u);
  EXPECT_EQ(code({twice, 1}, logits), Code::ok);
}

TEST(InferenceModel, RefusesAnotherModelsParameters) {
  const std::vector<float> parameters(10);
  const auto model = InferenceModel::create(small, parameters, {});
  ASSERT_FALSE(model);
  EXPECT_EQ(model.error().code(), Code::invalid);
}

TEST(KvBlockAllocator, FreesABlockWithItsLastReference) {
  KvBlockAllocator blocks(2);
  const uint32_t first = blocks.allocate().value();
  const uint32_t second = blocks.allocate().value();
  EXPECT_NE(first, second);
  const auto none = blocks.allocate();
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code(), Code::exhausted);
  blocks.retain(first);
  blocks.release(first);
  EXPECT_EQ(blocks.free_count(), 0u);
  blocks.release(first);
  EXPECT_EQ(blocks.allocate().value(), first);
}

TEST(KvBlockAllocatorDeathTest, ReleasingTwiceIsABug) {
  KvBlockAllocator blocks(2);
  const uint32_t block = blocks.allocate().value();
  blocks.release(block);
  EXPECT_DEATH(blocks.release(block), "free KV block");
}

}  // namespace
}  // namespace troupe::llm
