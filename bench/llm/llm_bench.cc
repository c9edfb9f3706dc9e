// How fast a training step is, and how near its matrix products come to oneDNN alone.
// One JSON object a line: {"name", "value", "unit"}. Usage: llm_bench [products|step|serve].
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <chrono>
#include <dnnl.hpp>
#include <string_view>
#include <vector>

#include "llm/cpu/buffer.h"
#include "llm/cpu/matmul.h"
#include "llm/cpu/threads.h"
#include "llm/gpt2.h"
#include "llm/inference_model.h"
#include "llm/optimizer.h"

namespace troupe::llm {
namespace {

constexpr Gpt2Config config{
    .vocab_size = 1024, .n_positions = 256, .n_embd = 256, .n_layer = 4, .n_head = 4};
constexpr int64_t batch = 8;
constexpr int64_t length = 256;

void print(std::string_view name, double value, std::string_view unit) {
  fmt::print("{{\"name\": \"llm/{}\", \"value\": {:.4g}, \"unit\": \"{}\"}}\n", name, value, unit);
}

// The fastest of some runs: the machine may be busy with others, and this is about the code.
template <class Body>
double seconds(const Body& body) {
  using Clock = std::chrono::steady_clock;
  body();
  double best = 1e9;
  double total = 0;
  for (int i = 0; i < 200 && (total < 0.3 || i < 5); ++i) {
    const auto start = Clock::now();
    body();
    const double took = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, took);
    total += took;
  }
  return best;
}

template <class T>
cpu::Buffer<T> values(int64_t count) {
  cpu::Buffer<T> buffer(static_cast<size_t>(count));
  SeededRandom random(1);
  for (int64_t i = 0; i < count; ++i) {
    cpu::from_float(buffer.data()[i], static_cast<float>(random.uniform() - 0.5));
  }
  return buffer;
}

// oneDNN with every layout of its own choice, prepared in advance.
template <class T>
double onednn_alone(const cpu::MatmulShape& s) {
  using dnnl::memory;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const auto type = std::is_same_v<T, float> ? memory::data_type::f32 : memory::data_type::bf16;
  const auto desc = [&](int64_t rows, int64_t columns, memory::data_type t) {
    return s.batch == 1 ? memory::desc({rows, columns}, t, memory::format_tag::any)
                        : memory::desc({s.batch, rows, columns}, t, memory::format_tag::any);
  };
  const dnnl::matmul::primitive_desc made(
      {desc(s.m, s.k, type), desc(s.k, s.n, type), desc(s.m, s.n, memory::data_type::f32)}, engine);
  const dnnl::matmul product(made);
  const memory a(made.src_desc(), engine);
  const memory b(made.weights_desc(), engine);
  const memory c(made.dst_desc(), engine);
  const auto fill = [](const memory& m) {
    auto* at = static_cast<T*>(m.get_data_handle());
    for (size_t i = 0; i < m.get_desc().get_size() / sizeof(T); ++i) {
      cpu::from_float(at[i], 0.5f);
    }
  };
  fill(a);
  fill(b);
  return seconds([&] {
    product.execute(stream, {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}});
    stream.wait();
  });
}

template <class T>
void bench_product(std::string_view name, const cpu::MatmulShape& s, double& total_ours,
                   double& total_alone) {
  const auto a = values<T>(s.batch * s.m * s.k);
  const auto b = values<T>(s.batch * s.k * s.n);
  auto c = values<float>(s.batch * s.m * s.n);
  cpu::Matmul matmul;
  const double ours = seconds([&] { matmul(s, a.data(), b.data(), c.data()); });
  const double alone = onednn_alone<T>(s);
  total_ours += ours;
  total_alone += alone;
  const double gflop = 2e-9 * static_cast<double>(s.batch * s.m * s.n * s.k);
  print(fmt::format("{}.ours", name), gflop / ours, "GFLOP/s");
  print(fmt::format("{}.onednn", name), gflop / alone, "GFLOP/s");
  print(fmt::format("{}.ratio", name), alone / ours, "of oneDNN alone");
}

template <class T>
void bench_products(std::string_view type, int threads) {
  const cpu::ThreadScope scope(threads);
  const int64_t N = batch * length;
  const int64_t C = config.n_embd;
  const int64_t H = config.n_head;
  const int64_t D = config.head_dim();
  const int64_t V = config.vocab_size;
  const int64_t T_ = length;
  double ours = 0;
  double alone = 0;
  const auto product = [&](std::string_view name, const cpu::MatmulShape& shape) {
    bench_product<T>(fmt::format("matmul.{}.{}t.{}", type, threads, name), shape, ours, alone);
  };
  const auto linear = [&](std::string_view name, int64_t in, int64_t out) {
    product(fmt::format("{}.forward", name), {.m = N, .n = out, .k = in});
    product(fmt::format("{}.dx", name), {.m = N, .n = in, .k = out, .transpose_b = true});
    product(fmt::format("{}.dw", name),
            {.m = in, .n = out, .k = N, .transpose_a = true, .accumulate = true});
  };
  linear("c_attn", C, 3 * C);
  linear("attn_proj", C, C);
  linear("fc", C, 4 * C);
  linear("proj", 4 * C, C);
  const int64_t rows = 512;  // The piece in which the head computes logits.
  product("logits.forward", {.m = rows, .n = V, .k = C, .transpose_b = true});
  product("logits.dx", {.m = rows, .n = C, .k = V});
  product("logits.dw", {.m = V, .n = C, .k = rows, .transpose_a = true, .accumulate = true});
  product("scores", {.batch = H, .m = T_, .n = T_, .k = D, .transpose_b = true});
  product("values", {.batch = H, .m = T_, .n = D, .k = T_});
  product("values_t", {.batch = H, .m = T_, .n = D, .k = T_, .transpose_a = true});
  print(fmt::format("matmul.{}.{}t.all.ratio", type, threads), alone / ours, "of oneDNN alone");
}

void bench_step(Precision precision, int threads) {
  auto model = Gpt2<float>::create(config, {.threads = threads, .precision = precision}).value();
  SeededRandom random(1);
  initialize_gpt2(config, random, model.parameters());
  AdamW optimizer(model.layout(), {.threads = threads});
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < batch * length; ++i) {
    tokens.push_back(static_cast<int32_t>(random.below(1024)));
  }
  const TokenBatch data{batch, length, tokens, tokens};
  const double took = seconds([&] {
    model.zero_gradients();
    (void)model.forward_backward(data).value();
    (void)optimizer.step(model.parameters(), model.gradients(), 1e-4f).value();
  });
  const double loss = seconds([&] { (void)model.loss(data).value(); });
  const double update =
      seconds([&] { (void)optimizer.step(model.parameters(), model.gradients(), 1e-4f).value(); });
  const auto name =
      fmt::format("step.{}.{}t", precision == Precision::f32 ? "f32" : "bf16", threads);
  print(name + ".time", took * 1e3, "ms");
  print(name + ".forward", loss * 1e3, "ms");
  print(name + ".optimizer", update * 1e3, "ms");
  print(name + ".tokens", static_cast<double>(batch * length) / took, "token/s");
  print(name + ".flops", gpt2_training_flops(config, batch, length) / took * 1e-9, "GFLOP/s");
}

// Prefill of one prompt, and one decode step of a batch whose sequences are half full.
void bench_serving(Precision precision, int threads) {
  std::vector<float> parameters(Gpt2Layout(config).total());
  SeededRandom random(1);
  initialize_gpt2<float>(config, random, parameters);
  auto model =
      InferenceModel::create(config, parameters,
                             {.threads = threads, .precision = precision, .kv_blocks = 1024})
          .value();
  const auto name =
      fmt::format("serve.{}.{}t", precision == Precision::f32 ? "f32" : "bf16", threads);
  const std::vector<int32_t> tokens(length, 1);
  std::vector<float> logits(64 * 1024);
  for (const int64_t prompt : {16, 128, 255}) {
    const double took = seconds([&] {
      KvSequence sequence;
      (void)model
          .prefill(sequence, std::span(tokens).first(static_cast<size_t>(prompt)),
                   std::span(logits).first(1024))
          .value();
      model.release(sequence);
    });
    print(fmt::format("{}.prefill.{}", name, prompt), static_cast<double>(prompt) / took,
          "token/s");
  }
  for (const size_t count : {1, 8, 64}) {
    std::vector<KvSequence> sequences(count);
    std::vector<KvSequence*> batch_of;
    for (KvSequence& sequence : sequences) {
      (void)model
          .prefill(sequence, std::span(tokens).first(length / 2), std::span(logits).first(1024))
          .value();
      batch_of.push_back(&sequence);
    }
    const double took = seconds([&] {
      (void)model
          .decode(batch_of, std::span(tokens).first(count), std::span(logits).first(count * 1024))
          .value();
      for (KvSequence& sequence : sequences) --sequence.length;  // The same step again.
    });
    print(fmt::format("{}.decode.{}", name, count), static_cast<double>(count) / took, "token/s");
    for (KvSequence& sequence : sequences) model.release(sequence);
  }
  // A batch size that was never met before costs the making of its products, once.
  KvSequence sequence;
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 20; i < 40; ++i) {
    (void)model.prefill(sequence, std::span(tokens).first(i), std::span(logits).first(1024))
        .value();
    model.release(sequence);
  }
  const double each =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 20;
  const double again = seconds([&] {
    (void)model.prefill(sequence, std::span(tokens).first(39), std::span(logits).first(1024))
        .value();
    model.release(sequence);
  });
  print(name + ".new_shape", (each - again) * 1e3, "ms");
}

int run(std::string_view what) {
  const bool bf16 = bf16_supported();
  const auto wanted = [&](std::string_view part) { return what.empty() || what == part; };
  for (const int threads : {1, 2}) {
    if (wanted("products")) {
      bench_products<float>("f32", threads);
      if (bf16) bench_products<cpu::bf16>("bf16", threads);
    }
    for (const Precision precision : {Precision::f32, Precision::bf16}) {
      if (precision == Precision::bf16 && !bf16) continue;
      if (wanted("step")) bench_step(precision, threads);
      if (wanted("serve")) bench_serving(precision, threads);
    }
  }
  return 0;
}

}  // namespace
}  // namespace troupe::llm

int main(int argc, char** argv) {
  return troupe::llm::run(argc > 1 ? argv[1] : "");
}
