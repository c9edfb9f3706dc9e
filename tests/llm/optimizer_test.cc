#include "llm/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "llm/gpt2.h"

namespace troupe::llm {
namespace {

constexpr Gpt2Config small{
    .vocab_size = 31, .n_positions = 12, .n_embd = 16, .n_layer = 2, .n_head = 2};

std::vector<float> random_values(size_t count, uint64_t seed) {
  SeededRandom random(seed);
  std::vector<float> values(count);
  for (float& x : values) x = static_cast<float>(random.uniform() - 0.5);
  return values;
}

// The paper's algorithm, one element at a time in double.
struct Reference {
  std::vector<double> p, m, v;
  int step = 0;

  void update(const Gpt2Layout& layout, std::span<const float> g, const AdamWOptions& o,
              double rate) {
    double norm = 0;
    for (const float x : g) norm += double{x} * double{x};
    norm = std::sqrt(norm);
    const double clip = norm > o.gradient_norm_max ? o.gradient_norm_max / norm : 1;
    ++step;
    for (const Parameter& parameter : layout.parameters()) {
      for (size_t i = parameter.offset; i < parameter.offset + parameter.count; ++i) {
        const double gradient = g[i] * clip;
        m[i] = o.beta1 * m[i] + (1 - o.beta1) * gradient;
        v[i] = o.beta2 * v[i] + (1 - o.beta2) * gradient * gradient;
        const double m_hat = m[i] / (1 - std::pow(o.beta1, step));
        const double v_hat = v[i] / (1 - std::pow(o.beta2, step));
        const double decay = parameter.shape.size() == 2 ? o.weight_decay : 0;
        p[i] -= rate * (m_hat / (std::sqrt(v_hat) + o.epsilon) + decay * p[i]);
      }
    }
  }
};

TEST(AdamW, FollowsTheReference) {
  const Gpt2Layout layout(small);
  for (const int threads : {1, 2}) {
    const AdamWOptions options{.threads = threads};
    AdamW optimizer(layout, options);
    std::vector<float> p = random_values(layout.total(), 1);
    Reference reference{
        {p.begin(), p.end()}, std::vector<double>(p.size()), std::vector<double>(p.size())};
    for (uint64_t step = 0; step < 10; ++step) {
      std::vector<float> g = random_values(layout.total(), 2 + step);
      if (step % 2 == 0) {
        for (float& x : g) x *= 1e-3f;  // Below the clipping norm.
      }
      ASSERT_TRUE(optimizer.step(p, g, 1e-2f));
      reference.update(layout, g, options, double{1e-2f});
    }
    for (size_t i = 0; i < p.size(); ++i) ASSERT_NEAR(p[i], reference.p[i], 2e-6) << i;
  }
}

TEST(AdamW, DecaysMatricesOnly) {
  const Gpt2Layout layout(small);
  AdamW optimizer(layout, {.weight_decay = 0.5f});
  std::vector<float> p(layout.total(), 1.0f);
  const std::vector<float> g(layout.total(), 0.0f);
  EXPECT_EQ(optimizer.step(p, g, 0.1f).value(), 0);
  for (const Parameter& parameter : layout.parameters()) {
    EXPECT_FLOAT_EQ(p[parameter.offset], parameter.shape.size() == 2 ? 0.95f : 1.0f)
        << parameter.name;
    EXPECT_EQ(p[parameter.offset], p[parameter.offset + parameter.count - 1]);
  }
}

TEST(AdamW, ReturnsTheNormBeforeClipping) {
  const Gpt2Layout layout(small);
  AdamW optimizer(layout, {});
  std::vector<float> p(layout.total());
  std::vector<float> g(layout.total());
  g[5] = 30;
  g[700] = -40;
  EXPECT_FLOAT_EQ(optimizer.step(p, g, 0.1f).value(), 50);
}

TEST(AdamW, RestoredStateGoesOnBitForBit) {
  const Gpt2Layout layout(small);
  AdamW straight(layout, {});
  std::vector<float> p = random_values(layout.total(), 3);
  for (uint64_t i = 0; i < 3; ++i) {
    ASSERT_TRUE(straight.step(p, random_values(layout.total(), 10 + i), 1e-2f));
  }
  std::vector<float> q = p;
  AdamW resumed(layout, {});
  ASSERT_TRUE(resumed.restore(straight.state()));
  for (uint64_t i = 3; i < 6; ++i) {
    const std::vector<float> g = random_values(layout.total(), 10 + i);
    ASSERT_TRUE(straight.step(p, g, 1e-2f));
    ASSERT_TRUE(resumed.step(q, g, 1e-2f));
  }
  EXPECT_EQ(p, q);
  EXPECT_EQ(resumed.state().step, 6u);
}

TEST(AdamW, RefusesStateOfAnotherModel) {
  AdamW optimizer(Gpt2Layout(small), {});
  const auto restored = optimizer.restore({.step = 4, .m = {1}, .v = {1}});
  ASSERT_FALSE(restored);
  EXPECT_EQ(restored.error().code(), Code::invalid);
  EXPECT_EQ(optimizer.state().step, 0u);
}

TEST(AdamW, AnInfiniteGradientChangesNothing) {
  const Gpt2Layout layout(small);
  AdamW optimizer(layout, {});
  std::vector<float> p = random_values(layout.total(), 4);
  const std::vector<float> before = p;
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> g(layout.total());
    g[77] = bad;
    const auto result = optimizer.step(p, g, 1e-2f);
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code(), Code::invalid);
  }
  EXPECT_EQ(p, before);
  EXPECT_EQ(optimizer.state().step, 0u);
}

TEST(CosineSchedule, WarmsUpThenFallsToTheFloor) {
  const CosineSchedule schedule{
      .peak = 1.0f, .floor = 0.2f, .warmup_steps = 10, .total_steps = 110};
  EXPECT_FLOAT_EQ(schedule.learning_rate(0), 0.1f);
  EXPECT_FLOAT_EQ(schedule.learning_rate(9), 1.0f);
  EXPECT_FLOAT_EQ(schedule.learning_rate(10), 1.0f);
  EXPECT_FLOAT_EQ(schedule.learning_rate(60), 0.6f);
  EXPECT_FLOAT_EQ(schedule.learning_rate(110), 0.2f);
  EXPECT_FLOAT_EQ(schedule.learning_rate(1000), 0.2f);
  for (uint64_t step = 10; step < 110; ++step) {
    EXPECT_GE(schedule.learning_rate(step), schedule.learning_rate(step + 1));
  }
}

TEST(CosineSchedule, AllWarmUpIsNoDivisionByZero) {
  const CosineSchedule schedule{.peak = 1.0f, .floor = 0.0f, .warmup_steps = 5, .total_steps = 5};
  EXPECT_FLOAT_EQ(schedule.learning_rate(4), 1.0f);
  EXPECT_FLOAT_EQ(schedule.learning_rate(5), 0.0f);
}

}  // namespace
}  // namespace troupe::llm
