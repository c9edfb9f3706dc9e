#include "llm/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <set>

namespace troupe::llm {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr float infinity = std::numeric_limits<float>::infinity();

std::vector<float> logs(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  // Logits may have any offset.
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + 3));
  return logits;
}

Sampler make(const SamplingParams& params, size_t vocab_size) {
  auto sampler = Sampler::make(params, static_cast<int32_t>(vocab_size));
  TROUPE_ASSERT(sampler, "valid parameters");
  return *sampler;
}

std::vector<int32_t> sample_many(Sampler& sampler, const std::vector<float>& logits, int count) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(*sampler.sample(logits));
  return tokens;
}

std::set<int32_t> set_of(const SamplingParams& params, const std::vector<float>& logits) {
  Sampler sampler = make(params, logits.size());
  const auto tokens = sample_many(sampler, logits, 2000);
  return {tokens.begin(), tokens.end()};
}

// Pearson's statistic must stay below what chance exceeds once in a thousand draws; the seed is
// fixed, so the outcome is too.
void expect_distribution(const SamplingParams& params, const std::vector<float>& logits,
                         const std::vector<double>& probabilities) {
  constexpr int draws = 100'000;
  Sampler sampler = make(params, logits.size());
  std::vector<int> counts(logits.size());
  for (const int32_t token : sample_many(sampler, logits, draws)) {
    ++counts[static_cast<size_t>(token)];
  }
  const double total = std::accumulate(probabilities.begin(), probabilities.end(), 0.0);
  double statistic = 0;
  int free = -1;
  for (size_t i = 0; i < counts.size(); ++i) {
    const double expected = draws * probabilities[i] / total;
    if (expected == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i;
      continue;
    }
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    ++free;
  }
  // 0.999 quantiles of chi-square for 1 to 5 degrees of freedom.
  constexpr double limits[] = {10.83, 13.82, 16.27, 18.47, 20.52};
  ASSERT_TRUE(free >= 1 && free <= 5);
  EXPECT_LT(statistic, limits[free - 1]);
}

const std::vector<double> skewed{0.5, 0.02, 0.25, 0.03, 0.15, 0.05};

TEST(Sampler, FollowsTheModelsDistribution) {
  expect_distribution({.seed = 1}, logs(skewed), skewed);
}

TEST(Sampler, TemperatureIsAPowerOfTheProbabilities) {
  for (const float temperature : {0.5F, 0.7F, 2.0F}) {
    std::vector<double> expected;
    for (const double p : skewed) expected.push_back(std::pow(p, 1 / temperature));
    expect_distribution({.temperature = temperature, .seed = 2}, logs(skewed), expected);
  }
}

TEST(Sampler, FiltersKeepTheProportions) {
  expect_distribution({.top_k = 3, .seed = 3}, logs(skewed), {0.5, 0, 0.25, 0, 0.15, 0});
  expect_distribution({.top_p = 0.85F, .seed = 4}, logs(skewed), {0.5, 0, 0.25, 0, 0.15, 0});
  expect_distribution({.min_p = 0.08F, .seed = 5}, logs(skewed), {0.5, 0, 0.25, 0, 0.15, 0.05});
}

TEST(Sampler, FiltersKeepExactlyTheirSets) {
  using Set = std::set<int32_t>;
  const auto logits = logs(skewed);
  EXPECT_EQ(set_of({.top_k = 1}, logits), (Set{0}));
  EXPECT_EQ(set_of({.top_k = 2}, logits), (Set{0, 2}));
  EXPECT_EQ(set_of({.top_k = 100}, logits), (Set{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(set_of({.top_p = 0}, logits), (Set{0}));
  EXPECT_EQ(set_of({.top_p = 0.49F}, logits), (Set{0}));
  EXPECT_EQ(set_of({.top_p = 0.51F}, logits), (Set{0, 2}));
  EXPECT_EQ(set_of({.top_p = 0.91F}, logits), (Set{0, 2, 4, 5}));
  EXPECT_EQ(set_of({.min_p = 1}, logits), (Set{0}));
  EXPECT_EQ(set_of({.min_p = 0.29F}, logits), (Set{0, 2, 4}));
  // top_p counts in what top_k left: 0.5 / 0.75 > 0.6.
  EXPECT_EQ(set_of({.top_k = 2, .top_p = 0.6F}, logits), (Set{0}));
  // Ties: the lower ids.
  EXPECT_EQ(set_of({.top_k = 2}, {1, 1, 1, 1}), (Set{0, 1}));
  EXPECT_EQ(set_of({.top_p = 0.7F}, {1, 1, 1, 1}), (Set{0, 1, 2}));
}

TEST(Sampler, TopPKeepsTheSmallestSetOfALargeVocabulary) {
  std::vector<float> logits;
  for (int i = 0; i < 5000; ++i) logits.push_back(static_cast<float>((i * 7919) % 5000) * 0.01F);
  std::vector<float> sorted = logits;
  std::ranges::sort(sorted, std::greater());
  double total = 0, reached = 0;
  for (const float logit : sorted) total += std::exp(static_cast<double>(logit));
  size_t size = 0;
  while (reached < 0.9 * total) reached += std::exp(static_cast<double>(sorted[size++]));
  ASSERT_GT(size, 200U);  // Several rounds of sorting.
  Sampler sampler = make({.top_p = 0.9F, .seed = 6}, logits.size());
  float lowest = infinity;
  for (const int32_t token : sample_many(sampler, logits, 8'000)) {
    lowest = std::min(lowest, logits[static_cast<size_t>(token)]);
  }
  EXPECT_EQ(lowest, sorted[size - 1]);
}

TEST(Sampler, TemperatureZeroTakesTheFirstOfTheLikeliest) {
  Sampler sampler = make({.temperature = 0, .top_k = 3}, 4);
  EXPECT_EQ(*sampler.sample(std::vector<float>{1, 5, 5, -infinity}), 1);
  // The smallest positive temperature does the same, without overflow.
  Sampler cold = make({.temperature = std::numeric_limits<float>::denorm_min()}, 4);
  EXPECT_EQ(*cold.sample(std::vector<float>{1, -3e38F, 3e38F, -infinity}), 2);
}

TEST(Sampler, TheSameSeedGivesTheSameTokens) {
  const auto logits = logs(skewed);
  Sampler a = make({.seed = 9}, 6), b = make({.seed = 9}, 6), c = make({.seed = 10}, 6);
  const auto tokens = sample_many(a, logits, 100);
  EXPECT_EQ(sample_many(b, logits, 100), tokens);
  EXPECT_NE(sample_many(c, logits, 100), tokens);
}

TEST(Sampler, AResumedSequenceGoesOnAsItWouldHave) {
  const SamplingParams params{.frequency_penalty = 0.3F, .seed = 11};
  const auto logits = logs(skewed);
  Sampler whole = make(params, 6);
  const auto first = sample_many(whole, logits, 20);
  const auto second = sample_many(whole, logits, 20);
  Sampler resumed = make(params, 6);
  resumed.resume(first);
  EXPECT_EQ(sample_many(resumed, logits, 20), second);
}

TEST(Sampler, PenaltiesCountSampledTokens) {
  // Greedy, so that each choice shows the logits: 0 leads by 1 until it has been taken often
  // enough.
  const std::vector<float> logits{2, 1, -5};
  Sampler frequency = make({.temperature = 0, .frequency_penalty = 0.4F}, 3);
  EXPECT_THAT(sample_many(frequency, logits, 6), ElementsAre(0, 0, 0, 1, 0, 1));
  Sampler presence = make({.temperature = 0, .presence_penalty = 1.5F}, 3);
  EXPECT_THAT(sample_many(presence, logits, 3), ElementsAre(0, 1, 0));
  // They do not count the prompt.
  Sampler prompted = make({.temperature = 0, .presence_penalty = 1.5F}, 3);
  prompted.observe_prompt(std::vector{0, 0, 0});
  EXPECT_EQ(*prompted.sample(logits), 0);
}

TEST(Sampler, RepetitionPenaltyCountsThePromptAndMovesBothSignsDown) {
  Sampler positive = make({.temperature = 0, .repetition_penalty = 2.5F}, 2);
  positive.observe_prompt(std::vector{0, -7, 99});  // Ids that are no token are ignored.
  EXPECT_EQ(*positive.sample(std::vector<float>{2, 1}), 1);
  Sampler negative = make({.temperature = 0, .repetition_penalty = 2.5F}, 2);
  negative.observe_prompt(std::vector{0});
  EXPECT_EQ(*negative.sample(std::vector<float>{-1, -2}), 1);
}

TEST(Sampler, LogitBiasForcesAndBans) {
  const auto logits = logs(skewed);
  EXPECT_EQ(set_of({.logit_bias = {{1, 100.0F}}}, logits), (std::set<int32_t>{1}));
  EXPECT_FALSE(set_of({.logit_bias = {{0, -100.0F}}}, logits).contains(0));
  expect_distribution({.logit_bias = {{5, std::log(2.0F)}}, .seed = 12}, logits,
                      {0.5, 0.02, 0.25, 0.03, 0.15, 0.10});
}

TEST(Sampler, BrokenLogitsAreAnErrorAndChangeNothing) {
  Sampler sampler = make({.seed = 13}, 3), other = make({.seed = 13}, 3);
  const std::vector<float> good{1, 1, 1};
  for (const std::vector<float>& bad : {std::vector<float>{1, std::nanf(""), 1},
                                        {1, infinity, 1},
                                        {-infinity, -infinity, -infinity}}) {
    EXPECT_EQ(sampler.sample(bad).error().code(), Code::internal);
    EXPECT_EQ(logprobs(bad, 0, 1).error().code(), Code::internal);
  }
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 1}).error().code(), Code::invalid);
  EXPECT_EQ(sample_many(sampler, good, 20), sample_many(other, good, 20));
}

TEST(Sampler, BannedTokensNeverCome) {
  EXPECT_EQ(set_of({}, {-infinity, 0, -infinity, 0}), (std::set<int32_t>{1, 3}));
  EXPECT_EQ(set_of({.top_k = 3}, {-infinity, 0, -infinity, 0}), (std::set<int32_t>{1, 3}));
}

TEST(Validate, NamesTheParameterAndItsBound) {
  const auto message = [](const SamplingParams& params) {
    const Status status = validate(params, 100);
    if (status) return std::string("valid");
    EXPECT_EQ(status.error().code(), Code::invalid);
    return status.error().message();
  };
  EXPECT_EQ(message({}), "valid");
  EXPECT_EQ(
      message({.temperature = 2.5F}),
      "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.5 "
      "instead.");
  EXPECT_EQ(
      message({.temperature = -0.5F}),
      "Invalid 'temperature': decimal below minimum value. Expected a value >= 0, but got -0.5 "
      "instead.");
  EXPECT_THAT(message({.temperature = std::nanf("")}),
              HasSubstr("'temperature': expected a number"));
  EXPECT_THAT(message({.top_k = -1}), HasSubstr("'top_k': integer below minimum"));
  EXPECT_THAT(message({.top_p = 1.5F}), HasSubstr("'top_p'"));
  EXPECT_THAT(message({.min_p = -0.5F}), HasSubstr("'min_p'"));
  EXPECT_THAT(message({.repetition_penalty = 0}), HasSubstr("'repetition_penalty'"));
  EXPECT_THAT(message({.repetition_penalty = infinity}), HasSubstr("'repetition_penalty'"));
  EXPECT_THAT(message({.presence_penalty = 2.5F}), HasSubstr("'presence_penalty'"));
  EXPECT_THAT(message({.frequency_penalty = -2.5F}), HasSubstr("'frequency_penalty'"));
  EXPECT_THAT(message({.logit_bias = {{5, 101.0F}}}), HasSubstr("'logit_bias'"));
  EXPECT_THAT(message({.logit_bias = {{100, 1.0F}}}),
              HasSubstr("'logit_bias': 100. Expected a token id from 0 to 99."));
  EXPECT_FALSE(Sampler::make({.top_k = -1}, 100));
}

TEST(Logprobs, AreTheLogSoftmaxInDescendingOrder) {
  const auto result = logprobs(logs(skewed), 5, 3);
  ASSERT_TRUE(result);
  EXPECT_EQ(result->chosen.token, 5);
  EXPECT_NEAR(result->chosen.logprob, std::log(0.05), 1e-5);
  ASSERT_EQ(result->top.size(), 3U);
  EXPECT_EQ(result->top[0].token, 0);
  EXPECT_EQ(result->top[1].token, 2);
  EXPECT_EQ(result->top[2].token, 4);
  EXPECT_NEAR(result->top[2].logprob, std::log(0.15), 1e-5);
}

TEST(Logprobs, HandleTheEdges) {
  EXPECT_TRUE(logprobs(logs(skewed), 0, 0)->top.empty());
  EXPECT_EQ(logprobs(logs(skewed), 0, 20)->top.size(), 6U);
  EXPECT_EQ(logprobs(std::vector<float>{0, -infinity}, 1, 0)->chosen.logprob, -9999);
  const auto ties = logprobs(std::vector<float>{1, 2, 2}, 0, 3);
  EXPECT_EQ(ties->top[0].token, 1);
  EXPECT_EQ(ties->top[1].token, 2);
  EXPECT_EQ(logprobs(logs(skewed), 6, 1).error().code(), Code::invalid);
  EXPECT_EQ(logprobs(logs(skewed), -1, 1).error().code(), Code::invalid);
  EXPECT_EQ(logprobs(logs(skewed), 0, -1).error().code(), Code::invalid);
}

}  // namespace
}  // namespace troupe::llm
