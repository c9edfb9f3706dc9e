#include "llm/gpt2.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <thread>
#include <vector>

#include "llm/optimizer.h"

namespace troupe::llm {
namespace {

constexpr Gpt2Config small{
    .vocab_size = 31, .n_positions = 12, .n_embd = 16, .n_layer = 2, .n_head = 2};

struct Data {
  std::vector<int32_t> tokens, targets;
  int64_t batch, length;

  TokenBatch view() const { return {batch, length, tokens, targets}; }
  // The sequences [first, first + count) alone.
  TokenBatch part(int64_t first, int64_t count) const {
    const auto offset = static_cast<size_t>(first * length);
    const auto size = static_cast<size_t>(count * length);
    return {count, length, std::span(tokens).subspan(offset, size),
            std::span(targets).subspan(offset, size)};
  }
};

Data random_data(int64_t batch, int64_t length, int64_t vocab, uint64_t seed) {
  SeededRandom random(seed);
  Data data{{}, {}, batch, length};
  for (int64_t i = 0; i < batch * length; ++i) {
    data.tokens.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab))));
    data.targets.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(vocab))));
  }
  return data;
}

template <class Real>
Gpt2<Real> make(const Gpt2Config& config, const Gpt2Options& options = {}) {
  return Gpt2<Real>::create(config, options).value();
}

// Parameters of a size at which every term of the gradient matters: fresh ones leave attention
// nearly uniform and biases at zero.
template <class Real>
void fill_lively(Gpt2<Real>& model, uint64_t seed) {
  SeededRandom random(seed);
  for (const Parameter& p : model.layout().parameters()) {
    const bool is_norm = p.name.find("ln_") != std::string::npos && p.name.ends_with(".weight");
    for (Real& x : model.parameters().subspan(p.offset, p.count)) {
      x = static_cast<Real>((is_norm ? 1.0 : 0.0) + 0.8 * (random.uniform() - 0.5));
    }
  }
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  }
  return largest;
}

double norm(std::span<const float> a) {
  double sum = 0;
  for (const float x : a) sum += double{x} * double{x};
  return std::sqrt(sum);
}

// Relative to the whole, for single elements may be near zero.
double relative_difference(std::span<const float> a, std::span<const float> b) {
  std::vector<float> difference(a.begin(), a.end());
  for (size_t i = 0; i < b.size(); ++i) difference[i] -= b[i];
  return norm(difference) / norm(b);
}

TEST(Gpt2, GradientOfEveryTensorMatchesFiniteDifferences) {
  auto model = make<double>(small);
  fill_lively(model, 1);
  Data data = random_data(2, 7, small.vocab_size, 2);
  data.targets[3] = -1;  // Nothing to learn there.
  ASSERT_TRUE(model.forward_backward(data.view()));

  SeededRandom random(3);
  const auto loss = [&] { return model.loss(data.view()).value(); };
  for (const Parameter& p : model.layout().parameters()) {
    double error = 0;
    double size = 0;
    for (int sample = 0; sample < 6; ++sample) {
      const size_t i = p.offset + random.below(p.count);
      double& x = model.parameters()[i];
      const double at = x;
      const double h = 1e-3;
      const auto at_offset = [&](double offset) {
        x = at + offset;
        return loss();
      };
      // Fourth-order central difference.
      const double slope =
          (8 * (at_offset(h) - at_offset(-h)) - (at_offset(2 * h) - at_offset(-2 * h))) / (12 * h);
      x = at;
      error += std::pow(slope - model.gradients()[i], 2);
      size += std::pow(slope, 2);
    }
    EXPECT_LT(std::sqrt(error), 1e-6 * std::sqrt(size) + 1e-11) << p.name;
  }
}

TEST(Gpt2, SingleAgreesWithDouble) {
  auto exact = make<double>(small);
  fill_lively(exact, 4);
  auto model = make<float>(small);
  std::ranges::transform(exact.parameters(), model.parameters().begin(),
                         [](double x) { return static_cast<float>(x); });
  const Data data = random_data(3, 11, small.vocab_size, 5);
  const double expected = exact.forward_backward(data.view()).value();
  EXPECT_NEAR(model.forward_backward(data.view()).value(), expected, 1e-5);
  const std::vector<float> gradient(exact.gradients().begin(), exact.gradients().end());
  EXPECT_LT(relative_difference(model.gradients(), gradient), 1e-5);
}

TEST(Gpt2, Bf16ProductsAgreeWithinTheirPrecision) {
  if (!bf16_supported()) {
    const auto refused = Gpt2<float>::create(small, {.precision = Precision::bf16});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code(), Code::unimplemented);
    GTEST_SKIP() << "no bf16 products on this processor";
  }
  auto exact = make<float>(small);
  auto model = make<float>(small, {.precision = Precision::bf16});
  fill_lively(exact, 4);
  fill_lively(model, 4);
  const Data data = random_data(3, 11, small.vocab_size, 5);
  const float expected = exact.forward_backward(data.view()).value();
  EXPECT_NEAR(model.forward_backward(data.view()).value(), expected, 0.02);
  EXPECT_LT(relative_difference(model.gradients(), exact.gradients()), 0.03);
  EXPECT_NE(model.gradients()[0], exact.gradients()[0]);  // It did use bf16.
}

TEST(Gpt2, HalfBatchesAverageToTheWholeBatch) {
  auto whole = make<float>(small);
  auto halves = make<float>(small);
  fill_lively(whole, 6);
  fill_lively(halves, 6);
  const Data data = random_data(4, 12, small.vocab_size, 7);
  const float loss = whole.forward_backward(data.view()).value();
  const float first = halves.forward_backward(data.part(0, 2), 0.5f).value();
  const float second = halves.forward_backward(data.part(2, 2), 0.5f).value();
  EXPECT_NEAR((first + second) / 2, loss, 1e-6);
  EXPECT_LT(largest_difference(halves.gradients(), whole.gradients()), 1e-6);
}

TEST(Gpt2, ThreadsDoNotChangeTheResultBeyondRounding) {
  // Enough work for a second thread, and an odd number of heads and sequences to share.
  constexpr Gpt2Config larger{
      .vocab_size = 101, .n_positions = 33, .n_embd = 96, .n_layer = 2, .n_head = 3};
  auto one = make<float>(larger);
  auto two = make<float>(larger, {.threads = 2});
  SeededRandom first(8), second(8);
  initialize_gpt2(larger, first, one.parameters());
  initialize_gpt2(larger, second, two.parameters());
  const Data data = random_data(3, 33, larger.vocab_size, 9);
  EXPECT_NEAR(one.forward_backward(data.view()).value(), two.forward_backward(data.view()).value(),
              1e-6);
  EXPECT_LT(largest_difference(one.gradients(), two.gradients()), 1e-6);
}

// Text of 'a'..'z' and space, as tokens.
Data text_data(std::string_view text, int64_t length) {
  Data data{{}, {}, static_cast<int64_t>(text.size() - 1) / length, length};
  const auto token = [](char c) { return c == ' ' ? 26 : c - 'a'; };
  for (size_t i = 0; i < static_cast<size_t>(data.batch * length); ++i) {
    data.tokens.push_back(token(text[i]));
    data.targets.push_back(token(text[i + 1]));
  }
  return data;
}

struct TrainingRun {
  float loss;
  std::vector<float> parameters;
};

TrainingRun train(uint64_t seed, int steps, Precision precision) {
  const Gpt2Config config{
      .vocab_size = 27, .n_positions = 16, .n_embd = 32, .n_layer = 2, .n_head = 4};
  auto model = make<float>(config, {.precision = precision});
  SeededRandom random(seed);
  initialize_gpt2(config, random, model.parameters());
  AdamW optimizer(model.layout(), {});
  const CosineSchedule schedule{.peak = 1e-2f,
                                .floor = 1e-3f,
                                .warmup_steps = 5,
                                .total_steps = static_cast<uint64_t>(steps)};
  const Data data = text_data("the quick brown fox jumps over the lazy dog and naps", 16);
  float loss = 0;
  for (int i = 0; i < steps; ++i) {
    model.zero_gradients();
    loss = model.forward_backward(data.view()).value();
    if (i == 0) {
      EXPECT_NEAR(loss, std::log(27.0f), 0.1f);  // It knows nothing yet.
    }
    const float rate = schedule.learning_rate(static_cast<uint64_t>(i));
    EXPECT_TRUE(optimizer.step(model.parameters(), model.gradients(), rate));
  }
  return {loss, {model.parameters().begin(), model.parameters().end()}};
}

TEST(Gpt2, LearnsATinyTextByHeartInFiftySteps) {
  EXPECT_LT(train(1, 50, Precision::f32).loss, 0.1f);
  if (bf16_supported()) {
    EXPECT_LT(train(1, 50, Precision::bf16).loss, 0.1f);
  }
}

TEST(Gpt2, SameSeedSameBits) {
  const TrainingRun first = train(11, 8, Precision::f32);
  EXPECT_EQ(first.parameters, train(11, 8, Precision::f32).parameters);
  EXPECT_NE(first.parameters, train(12, 8, Precision::f32).parameters);
}

TEST(Gpt2, ModelsOnTwoThreadsDoNotDisturbEachOther) {
  const TrainingRun alone = train(11, 8, Precision::f32);
  TrainingRun first, second;
  std::thread other([&] { first = train(11, 8, Precision::f32); });
  second = train(11, 8, Precision::f32);
  other.join();
  EXPECT_EQ(first.parameters, alone.parameters);
  EXPECT_EQ(second.parameters, alone.parameters);
}

TEST(Gpt2, AShorterBatchAfterALongerOneIsTheSameAsAlone) {
  auto used = make<float>(small);
  auto fresh = make<float>(small);
  fill_lively(used, 13);
  fill_lively(fresh, 13);
  ASSERT_TRUE(used.forward_backward(random_data(4, 12, small.vocab_size, 14).view()));
  used.zero_gradients();
  const Data data = random_data(1, 5, small.vocab_size, 15);
  EXPECT_EQ(used.forward_backward(data.view()).value(),
            fresh.forward_backward(data.view()).value());
  EXPECT_EQ(largest_difference(used.gradients(), fresh.gradients()), 0);
}

TEST(Gpt2, RefusesBadBatches) {
  auto model = make<float>(small);
  const auto code = [&](const Data& data) {
    const auto result = model.forward_backward(data.view());
    return result ? Code::ok : result.error().code();
  };
  Data data = random_data(2, 5, small.vocab_size, 16);
  EXPECT_EQ(code(data), Code::ok);
  model.zero_gradients();
  data.tokens[4] = 31;
  EXPECT_EQ(code(data), Code::invalid);
  data.tokens[4] = -1;
  EXPECT_EQ(code(data), Code::invalid);
  data.tokens[4] = 0;
  data.targets[9] = 31;
  EXPECT_EQ(code(data), Code::invalid);
  std::ranges::fill(data.targets, -1);
  EXPECT_EQ(code(data), Code::invalid);
  EXPECT_EQ(code({{}, {}, 0, 5}), Code::invalid);
  EXPECT_EQ(code({{1, 2}, {1, 2}, 1, 3}), Code::invalid);
  EXPECT_EQ(code(random_data(1, 13, small.vocab_size, 17)), Code::invalid);
  EXPECT_EQ(norm(model.gradients()), 0);
}

TEST(Gpt2Config, RefusesImpossibleSizes) {
  const auto code = [](Gpt2Config config) {
    const auto model = Gpt2<float>::create(config);
    return model ? Code::ok : model.error().code();
  };
  Gpt2Config config = small;
  EXPECT_EQ(code(config), Code::ok);
  config.n_head = 3;
  EXPECT_EQ(code(config), Code::invalid);
  config = small;
  config.vocab_size = 0;
  EXPECT_EQ(code(config), Code::invalid);
  config = small;
  config.n_layer = int64_t{1} << 40;
  EXPECT_EQ(code(config), Code::invalid);
  EXPECT_FALSE(Gpt2<float>::create(small, {.threads = 0}));
}

TEST(Gpt2Layout, NamesEveryTensorOnceWithoutGaps) {
  const Gpt2Layout layout(small);
  size_t offset = 0;
  for (const Parameter& p : layout.parameters()) {
    EXPECT_EQ(p.offset, offset) << p.name;
    EXPECT_EQ(layout.find(p.name), &p);
    offset += p.count;
  }
  EXPECT_EQ(offset, layout.total());
  EXPECT_EQ(layout.parameters().size(), 4 + 12u * 2);
  EXPECT_EQ(layout.find("transformer.h.1.mlp.c_fc.weight")->shape, (std::vector<int64_t>{16, 64}));
  EXPECT_EQ(layout.find("lm_head.weight"), nullptr);
}

}  // namespace
}  // namespace troupe::llm
