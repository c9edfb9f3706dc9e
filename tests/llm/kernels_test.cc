// Every instruction set that this processor has, against the kernels in double or a plain loop.
#include "llm/cpu/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "base/random.h"
#include "llm/cpu/buffer.h"

namespace troupe::llm::cpu {
namespace {

// Odd sizes: no row fills its vectors.
constexpr int64_t rows = 7;
constexpr int64_t C = 37;

struct Input {
  std::vector<double> exact;
  std::vector<float> single;
};

// Values that float holds exactly, so that both sides start from the same.
Input random_input(int64_t count, uint64_t seed, double scale = 2) {
  Input input;
  SeededRandom random(seed);
  for (int64_t i = 0; i < count; ++i) {
    input.single.push_back(static_cast<float>(scale * (random.uniform() - 0.5)));
    input.exact.push_back(double{input.single.back()});
  }
  return input;
}

template <class T>
std::vector<T> zeros(int64_t count) {
  return std::vector<T>(static_cast<size_t>(count));
}

template <class Operand>
constexpr double tolerance = std::is_same_v<Operand, bf16> ? 1.0 / 256 : 4e-6;

// Relative to 1 or the value, whichever is larger.
template <class T>
void expect_near(const std::vector<T>& values, const std::vector<double>& expected,
                 double bound = tolerance<T>) {
  ASSERT_EQ(values.size(), expected.size());
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(to_float(values[i]), expected[i], bound * std::max(1.0, std::abs(expected[i])))
        << i;
  }
}

// Each test's body takes a set; this runs it over all of them, with both kinds of operands.
template <class Body>
void for_each_set(const Body& body) {
  for (const auto& set : kernel_sets<float, float>()) {
    SCOPED_TRACE(std::string("f32 on ") + set.name);
    body(set, float{});
  }
  for (const auto& set : kernel_sets<float, bf16>()) {
    SCOPED_TRACE(std::string("bf16 on ") + set.name);
    body(set, bf16{});
  }
}

const RowKernels<double, double>& reference() {
  return best_kernels<double, double>().rows;
}

TEST(Kernels, LayerNormAndItsGradient) {
  const Input x = random_input(rows * C, 1);
  const Input delta = random_input(rows * C, 2);
  const Input weight = random_input(C, 3);
  const Input bias = random_input(C, 4);
  const Input dy = random_input(rows * C, 5);
  const Input dx_before = random_input(rows * C, 6);
  auto sum = zeros<double>(rows * C), out = zeros<double>(rows * C);
  auto mean = zeros<double>(rows), rstd = zeros<double>(rows);
  auto dx = dx_before.exact, dx_copy = zeros<double>(rows * C);
  auto dweight = zeros<double>(C), dbias = zeros<double>(C);
  reference().add_layer_norm(sum.data(), out.data(), mean.data(), rstd.data(), x.exact.data(),
                             delta.exact.data(), weight.exact.data(), bias.exact.data(), rows, C,
                             1e-5);
  reference().layer_norm_backward(dx.data(), dx_copy.data(), dweight.data(), dbias.data(),
                                  dy.exact.data(), sum.data(), mean.data(), rstd.data(),
                                  weight.exact.data(), rows, C);
  for_each_set([&](const auto& set, auto operand) {
    using Operand = decltype(operand);
    auto s = zeros<float>(rows * C), m = zeros<float>(rows), r = zeros<float>(rows);
    auto o = zeros<Operand>(rows * C), again = zeros<Operand>(rows * C);
    set.rows.add_layer_norm(s.data(), o.data(), m.data(), r.data(), x.single.data(),
                            delta.single.data(), weight.single.data(), bias.single.data(), rows, C,
                            1e-5f);
    expect_near(s, sum);
    expect_near(o, out);
    expect_near(m, mean);
    expect_near(r, rstd);
    set.rows.layer_norm(again.data(), m.data(), r.data(), s.data(), weight.single.data(),
                        bias.single.data(), rows, C, 1e-5f);
    EXPECT_EQ(std::memcmp(again.data(), o.data(), o.size() * sizeof(Operand)), 0);

    auto d = dx_before.single;
    auto copy = zeros<Operand>(rows * C);
    auto dw = zeros<float>(C), db = zeros<float>(C);
    set.rows.layer_norm_backward(d.data(), copy.data(), dw.data(), db.data(), dy.single.data(),
                                 s.data(), m.data(), r.data(), weight.single.data(), rows, C);
    expect_near(d, dx);
    expect_near(copy, dx_copy);
    expect_near(dw, dweight);
    expect_near(db, dbias);
  });
}

TEST(Kernels, GeluAndItsGradient) {
  Input x = random_input(rows * C, 7, 12);
  for (const float edge : {0.0f, -0.0f, 40.0f, -40.0f, 1e4f, -1e4f}) {
    x.single.push_back(edge);
    x.exact.push_back(double{edge});
  }
  const auto count = static_cast<int64_t>(x.exact.size());
  const Input dy = random_input(count, 8);
  // The published form, not the kernel's own.
  std::vector<double> out;
  for (const double v : x.exact) {
    out.push_back(0.5 * v *
                  (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v))));
  }
  auto dx = zeros<double>(count);
  reference().gelu_backward(dx.data(), x.exact.data(), dy.exact.data(), count);
  for_each_set([&](const auto& set, auto operand) {
    using Operand = decltype(operand);
    auto o = zeros<Operand>(count), d = zeros<Operand>(count);
    set.rows.gelu(o.data(), x.single.data(), count);
    expect_near(o, out);
    set.rows.gelu_backward(d.data(), x.single.data(), dy.single.data(), count);
    expect_near(d, dx);
  });
}

TEST(Kernels, CausalSoftmaxAndItsGradient) {
  constexpr int64_t T = 21;
  constexpr int64_t count = 2 * T;  // Two heads.
  Input scores = random_input(count * T, 9, 60);
  const Input dp = random_input(count * T, 10);
  auto p = zeros<double>(count * T), ds = zeros<double>(count * T);
  reference().causal_softmax(p.data(), scores.exact.data(), 0, count, T, 0.25);
  reference().causal_softmax_backward(ds.data(), p.data(), dp.exact.data(), 0, count, T, 0.25);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = i % T + 1; j < T; ++j) {
      ASSERT_EQ(p[static_cast<size_t>(i * T + j)], 0);
      // What is masked may be anything.
      scores.single[static_cast<size_t>(i * T + j)] = std::numeric_limits<float>::quiet_NaN();
    }
  }
  for_each_set([&](const auto& set, auto operand) {
    using Operand = decltype(operand);
    auto q = zeros<Operand>(count * T), d = zeros<Operand>(count * T);
    set.rows.causal_softmax(q.data(), scores.single.data(), 0, 5, T, 0.25f);
    set.rows.causal_softmax(q.data(), scores.single.data(), 5, count, T, 0.25f);
    expect_near(q, p);
    set.rows.causal_softmax_backward(d.data(), q.data(), dp.single.data(), 0, count, T, 0.25f);
    expect_near(d, ds);
  });
}

TEST(Kernels, CrossEntropyIgnoresRowsWithoutATarget) {
  const Input logits = random_input(rows * C, 11, 40);
  const int32_t targets[rows] = {0, 36, -1, 5, 5, -7, 20};
  double expected = 0;
  auto gradient = zeros<double>(rows * C);
  for (int64_t i = 0; i < rows; ++i) {
    if (targets[i] < 0) continue;
    const double* x = logits.exact.data() + i * C;
    double sum = 0;
    for (int64_t j = 0; j < C; ++j) sum += std::exp(x[j]);
    expected += std::log(sum) - x[targets[i]];
    for (int64_t j = 0; j < C; ++j) {
      gradient[static_cast<size_t>(i * C + j)] =
          0.5 * (std::exp(x[j]) / sum - (j == targets[i] ? 1 : 0));
    }
  }
  for_each_set([&](const auto& set, auto operand) {
    auto d = zeros<decltype(operand)>(rows * C);
    EXPECT_NEAR(set.rows.cross_entropy(d.data(), logits.single.data(), targets, rows, C, 0.5f),
                expected, 1e-5 * expected);
    expect_near(d, gradient);
    EXPECT_NEAR(set.rows.cross_entropy(nullptr, logits.single.data(), targets, rows, C, 1.0f),
                expected, 1e-5 * expected);
  });
}

TEST(Kernels, HeadsSplitAndMerge) {
  const HeadShape shape{.B = 2, .T = 3, .H = 2, .D = 5, .parts = 3};
  const Input together = random_input(2 * 3 * 3 * 2 * 5, 12);
  for_each_set([&](const auto& set, auto operand) {
    using Operand = decltype(operand);
    auto apart = zeros<Operand>(static_cast<int64_t>(together.exact.size()));
    set.rows.split_heads(apart.data(), together.single.data(), shape, 0, 1);
    set.rows.split_heads(apart.data(), together.single.data(), shape, 1, 2);
    // v of sequence 1, head 1, token 2, channel 4.
    EXPECT_NEAR(to_float(apart[((2 * 2 + 1) * 2 + 1) * 15 + 2 * 5 + 4]),
                together.exact[((1 * 3 + 2) * 3 + 2) * 10 + 1 * 5 + 4], 0.01);
    std::vector<float> wide;
    for (const Operand x : apart) wide.push_back(to_float(x));
    auto merged = zeros<Operand>(static_cast<int64_t>(together.exact.size()));
    set.rows.merge_heads(merged.data(), wide.data(), shape, 0, 2);
    expect_near(merged, together.exact);
  });
}

TEST(Kernels, SumsAndConversions) {
  const Input x = random_input(rows * C, 13);
  const Input y = random_input(rows * C, 14);
  for_each_set([&](const auto& set, auto operand) {
    using Operand = decltype(operand);
    auto converted = zeros<Operand>(rows * C);
    set.rows.convert(converted.data(), x.single.data(), rows * C);
    expect_near(converted, x.exact);
    std::vector<float> sums(C, 1.0f);
    set.rows.add_column_sums(sums.data(), converted.data(), rows, C, 0, 10);
    set.rows.add_column_sums(sums.data(), converted.data(), rows, C, 10, C);
    for (int64_t j = 0; j < C; ++j) {
      double expected = 1;
      for (int64_t i = 0; i < rows; ++i) {
        expected += double{to_float(converted[static_cast<size_t>(i * C + j)])};
      }
      ASSERT_NEAR(sums[static_cast<size_t>(j)], expected, 1e-5);
    }
    auto total = zeros<float>(rows * C);
    set.rows.add(total.data(), x.single.data(), y.single.data(), rows * C);
    for (size_t i = 0; i < total.size(); ++i) {
      ASSERT_EQ(total[i], x.single[i] + y.single[i]);
    }
    double squares = 0;
    for (const double v : x.exact) squares += v * v;
    EXPECT_NEAR(set.optimizer.sum_of_squares(x.single.data(), rows * C), squares, 1e-9);
  });
}

TEST(Kernels, Bf16RoundsToNearestEvenAndKeepsNan) {
  const struct {
    uint32_t from;
    uint16_t to;
  } cases[] = {{0x3f800000, 0x3f80}, {0x3f808000, 0x3f80},  // A tie goes to even,
               {0x3f818000, 0x3f82},                        // upwards too.
               {0x3f808001, 0x3f81}, {0xbf80ffff, 0xbf81},
               {0x7f7fffff, 0x7f80},  // Beyond the largest: infinity.
               {0x7f800000, 0x7f80}, {0xff800000, 0xff80},
               {0x00000000, 0},      {0x80000000, 0x8000}};
  for_each_set([&](const auto& set, auto operand) {
    if constexpr (std::is_same_v<decltype(operand), bf16>) {
      for (const auto& c : cases) {
        const float from = __builtin_bit_cast(float, c.from);
        bf16 to{};
        set.rows.convert(&to, &from, 1);
        EXPECT_EQ(to.bits, c.to) << std::hex << c.from;
      }
      const float nan = __builtin_bit_cast(float, 0x7f800001u);
      bf16 to{};
      set.rows.convert(&to, &nan, 1);
      EXPECT_TRUE(std::isnan(to_float(to)));
    }
  });
}

TEST(Kernels, NanIsNotHidden) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for_each_set([&](const auto& set, auto operand) {
    std::vector<float> x(C, 1.0f);
    x[20] = nan;
    auto out = zeros<decltype(operand)>(C);
    set.rows.gelu(out.data(), x.data(), C);
    EXPECT_TRUE(std::isnan(to_float(out[20])));
    EXPECT_FALSE(std::isnan(to_float(out[21])));
    const int32_t target = 3;
    EXPECT_TRUE(std::isnan(set.rows.cross_entropy(nullptr, x.data(), &target, 1, C, 1.0f)));
  });
}

// Pages in a shuffled order, full of NaN where nothing was stored.
TEST(Kernels, PagedAttentionReadsOnlyWhatIsVisible) {
  constexpr int64_t H = 3;
  constexpr int64_t D = 20;  // Padded to 32.
  constexpr int64_t T = 43;
  const std::vector<uint32_t> blocks{4, 0, 2};
  const Input q = random_input(T * H * D, 15, 4);
  const Input k = random_input(T * H * D, 16, 4);
  const Input v = random_input(T * H * D, 17, 4);
  auto expected = zeros<double>(T * H * D);
  const double scale = 0.3;
  for (int64_t i = 0; i < T; ++i) {
    for (int64_t h = 0; h < H; ++h) {
      const auto at = [&](int64_t t) { return static_cast<size_t>((t * H + h) * D); };
      std::vector<double> weights;
      double sum = 0;
      for (int64_t t = 0; t <= i; ++t) {
        double dot = 0;
        for (size_t d = 0; d < D; ++d) dot += q.exact[at(i) + d] * k.exact[at(t) + d];
        weights.push_back(std::exp(scale * dot));
        sum += weights.back();
      }
      for (int64_t t = 0; t <= i; ++t) {
        for (size_t d = 0; d < D; ++d) {
          expected[at(i) + d] += weights[static_cast<size_t>(t)] / sum * v.exact[at(t) + d];
        }
      }
    }
  }
  for_each_set([&](const auto& set, auto operand) {
    using Element = decltype(operand);
    PagedKv<Element> kv{nullptr, nullptr, H, D};
    Buffer<Element> keys(static_cast<size_t>(5 * kv.key_block()));
    Buffer<Element> values(static_cast<size_t>(5 * kv.value_block()));
    for (auto* buffer : {&keys, &values}) {
      for (Element& x : buffer->span()) from_float(x, std::numeric_limits<float>::quiet_NaN());
    }
    kv.keys = keys.data();
    kv.values = values.data();
    Buffer<float> scratch(size_t{4 * (T + 16)});
    // In runs of several lengths, as chunks of a prompt and single tokens come.
    auto out = zeros<float>(T * H * D);
    for (int64_t first = 0, count = 1; first < T; first += count, count = count % 7 + 2) {
      count = std::min(count, T - first);
      for (int64_t t = first; t < first + count; ++t) {
        set.attention.store(kv, blocks.data(), t, k.single.data() + t * H * D,
                            v.single.data() + t * H * D);
      }
      for (int64_t h = 0; h < H; ++h) {
        const int64_t at = (first * H + h) * D;
        set.attention.attend(out.data() + at, H * D, q.single.data() + at, H * D, count, kv,
                             blocks.data(), h, first, static_cast<float>(scale), scratch.data());
      }
    }
    // Keys in bf16 move scores of this size by some percent.
    expect_near(out, expected, std::is_same_v<Element, bf16> ? 0.05 : 1e-5);
  });
}

}  // namespace
}  // namespace troupe::llm::cpu
