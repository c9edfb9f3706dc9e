#include "llm/bpe_trainer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "base/random.h"

namespace troupe::llm {
namespace {

using testing::HasSubstr;

std::string training_text() {
  std::ifstream in(TROUPE_TEST_DATA "/train.txt", std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST(BpeTrainer, LearnsWhatTheReferenceLearns) {
  const auto expected = Tokenizer::load(TROUPE_TEST_DATA "/tokenizer.json");
  ASSERT_TRUE(expected);
  const auto got = train_bpe(training_text(), {.vocab_size = 1000});
  ASSERT_TRUE(got) << got.error().message();
  EXPECT_EQ(got->vocabulary().tokens, expected->vocabulary().tokens);
  EXPECT_EQ(got->vocabulary().merges, expected->vocabulary().merges);
}

TEST(BpeTrainer, MergesTheMostFrequentPairThenTheLowestIds) {
  // "ab" four times; "bc" and "cd" twice each, where b < c.
  const auto tokenizer = train_bpe("ab ab ab ab\nbc\nbc\ncd\ncd", {.vocab_size = 259});
  ASSERT_TRUE(tokenizer);
  const int32_t a = *tokenizer->token_to_id("a"), b = *tokenizer->token_to_id("b");
  EXPECT_EQ(tokenizer->vocabulary().merges.front(), std::pair(a, b));
  EXPECT_EQ(tokenizer->id_to_token(257), "ab");
  EXPECT_EQ(tokenizer->id_to_token(258), "Ġab");
}

TEST(BpeTrainer, StopsWhenNothingIsLeftToMerge) {
  const auto tokenizer = train_bpe("aaaa", {.vocab_size = 1000});
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->vocab_size(), 257 + 2);
  EXPECT_EQ(tokenizer->encode("aaaa").size(), 1U);
  const auto empty = train_bpe("", {.vocab_size = 1000});
  ASSERT_TRUE(empty);
  EXPECT_EQ(empty->vocab_size(), 257);
}

TEST(BpeTrainer, SpecialTokensPartTheText) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "word<|endoftext|>";
  const auto tokenizer = train_bpe(text, {.vocab_size = 1000});
  ASSERT_TRUE(tokenizer);
  EXPECT_EQ(tokenizer->vocab_size(), 257 + 3);
  EXPECT_EQ(tokenizer->eos_id(), 0);
  EXPECT_EQ(tokenizer->encode("word").size(), 1U);
}

TEST(BpeTrainer, TakesAnyBytesAndRoundTripsThem) {
  SeededRandom random{5};
  std::string bytes(20'000, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.below(256) & random.below(256));
  const auto tokenizer = train_bpe(bytes, {.vocab_size = 600});
  ASSERT_TRUE(tokenizer);
  const auto ids = tokenizer->encode(bytes);
  EXPECT_LT(ids.size(), bytes.size());
  EXPECT_EQ(tokenizer->decode_bytes(ids), bytes);
}

TEST(BpeTrainer, ReportsProgressUpToTheEnd) {
  std::vector<int32_t> seen;
  int32_t last_total = 0;
  const auto tokenizer =
      train_bpe(training_text(), {.vocab_size = 500, .progress = [&](int32_t done, int32_t total) {
                                    seen.push_back(done);
                                    last_total = total;
                                  }});
  ASSERT_TRUE(tokenizer);
  EXPECT_GT(seen.size(), 2U);
  EXPECT_TRUE(std::ranges::is_sorted(seen));
  EXPECT_EQ(seen.back(), 500);
  EXPECT_EQ(last_total, 500);
}

TEST(BpeTrainer, RefusesImpossibleOptions) {
  const auto message = [](const BpeTrainerOptions& options) {
    const auto result = train_bpe("text", options);
    if (result) return std::string("no error");
    EXPECT_EQ(result.error().code(), Code::invalid);
    return result.error().message();
  };
  EXPECT_THAT(message({.vocab_size = 256}), HasSubstr("take 257"));
  EXPECT_THAT(message({.vocab_size = -1}), HasSubstr("too small"));
  EXPECT_THAT(message({.special_tokens = {"<a>", "<a>"}}), HasSubstr("given twice"));
  EXPECT_THAT(message({.special_tokens = {""}}), HasSubstr("is empty"));
  EXPECT_THAT(message({.special_tokens = {"a"}}), HasSubstr("the name of a byte"));
}

}  // namespace
}  // namespace troupe::llm
