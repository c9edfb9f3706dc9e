// Tokens a second, time to the first token and the engine's own cost, as JSON rows.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string_view>

#include "inference/engine.h"
#include "llm/bpe_trainer.h"
#include "llm/gpt2_config.h"
#include "tests/inference/fake_host.h"

namespace troupe::inference {
namespace {

using Timer = std::chrono::steady_clock;

constexpr int64_t prompt_tokens = 64;
constexpr int64_t answer_tokens = 64;

double seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

struct Setup {
  llm::Gpt2Config model;
  EngineConfig engine;
};

Engine make_engine(const Setup& setup, const llm::Tokenizer& tokenizer) {
  std::vector<float> parameters(llm::Gpt2Layout(setup.model).total());
  SeededRandom random(1);
  llm::initialize_gpt2<float>(setup.model, random, parameters);
  auto model =
      llm::InferenceModel::create(
          setup.model, parameters,
          {.threads = setup.engine.threads, .precision = setup.engine.precision, .kv_blocks = 512})
          .value();
  return Engine({std::move(model), tokenizer, std::nullopt}, setup.engine,
                std::make_unique<SeededRandom>(1));
}

void run(const Setup& setup, const llm::Tokenizer& tokenizer, size_t requests) {
  Engine engine = make_engine(setup, tokenizer);
  std::vector<std::unique_ptr<troupe_call>> calls;
  std::vector<double> first_token_s(requests);
  const auto begin = Timer::now();
  for (size_t i = 0; i < requests; ++i) {
    calls.push_back(std::make_unique<troupe_call>());
    GenerateRequest request;
    request.prompt.assign(prompt_tokens, static_cast<int32_t>(1 + i));
    request.tokens_max = answer_tokens;
    request.sampling.temperature = 0;
    request.ignore_eos = true;
    engine.submit(std::move(request), plugin::Call(calls.back().get()));
  }
  for (bool more = true; more;) {
    more = engine.iterate().value();
    const double now = seconds(Timer::now() - begin);
    for (size_t i = 0; i < requests; ++i) {
      if (first_token_s[i] == 0 && !calls[i]->items.empty()) first_token_s[i] = now;
    }
  }
  const double total_s = seconds(Timer::now() - begin);
  const EngineCounters& counters = engine.counters();
  const auto tokens = static_cast<double>(counters.tokens_generated);
  double first_sum_s = 0;
  for (const double first : first_token_s) first_sum_s += first;
  const auto row = [&](std::string_view name, double value, std::string_view unit) {
    fmt::print("{{\"name\":\"inference/{}x{}.{}.{}t.{}.{}\",\"value\":{:.4g},\"unit\":\"{}\"}}\n",
               setup.model.n_layer, setup.model.n_embd,
               setup.engine.precision == llm::Precision::f32 ? "f32" : "bf16", setup.engine.threads,
               requests, name, value, unit);
  };
  row("tokens", tokens / total_s, "token/s");
  row("first_token_mean", 1e3 * first_sum_s / static_cast<double>(requests), "ms");
  row("first_token_max", 1e3 * *std::ranges::max_element(first_token_s), "ms");
  row("forward", 1e6 * seconds(counters.forward) / tokens, "us/token");
  row("overhead", 1e6 * seconds(counters.busy - counters.forward) / tokens, "us/token");
}

}  // namespace
}  // namespace troupe::inference

int main(int count, char** values) {
  using namespace troupe;
  if (count != 1 && count != 5) {
    fmt::print(stderr, "usage: inference_bench [layers width threads f32|bf16]\n");
    return 2;
  }
  plugin::detail::host = &inference::fake_host();
  std::string corpus;
  for (int i = 0; i < 20000; ++i) corpus += fmt::format("word{} ", (i * 7919) % 5000);
  const auto tokenizer = llm::train_bpe(corpus, {.vocab_size = 4096}).value();
  inference::Setup setup;
  const bool given = count == 5;
  setup.model = {.vocab_size = tokenizer.vocab_size(),
                 .n_positions = 256,
                 .n_embd = given ? std::atoi(values[2]) : 256,
                 .n_layer = given ? std::atoi(values[1]) : 6,
                 .n_head = 8};
  setup.engine.threads = given ? std::atoi(values[3]) : 1;
  if (given && std::string_view(values[4]) == "bf16") {
    setup.engine.precision = llm::Precision::bf16;
  }
  for (const size_t requests : {1u, 8u, 32u}) inference::run(setup, tokenizer, requests);
  return 0;
}
