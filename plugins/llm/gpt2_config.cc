#include "llm/gpt2_config.h"

#include <fmt/format.h>

#include <cmath>
#include <numbers>

namespace troupe::llm {
namespace {

// Far above any GPT-2, far below where a product of sizes overflows.
constexpr int64_t size_max = int64_t{1} << 20;
constexpr int64_t vocab_size_max = int64_t{1} << 24;
constexpr int64_t layers_max = int64_t{1} << 12;

Status check_size(std::string_view name, int64_t value, int64_t max) {
  if (value >= 1 && value <= max) return ok();
  return error(Code::invalid, fmt::format("{} is {}, not in [1, {}]", name, value, max));
}

// Box-Muller; both numbers of a pair are used, so the order of calls fixes the values.
class Normal {
 public:
  explicit Normal(Random& random) : random_(random) {}
  double next() {
    if (has_spare_) {
      has_spare_ = false;
      return spare_;
    }
    const double radius = std::sqrt(-2 * std::log(1 - random_.uniform()));
    const double angle = 2 * std::numbers::pi * random_.uniform();
    spare_ = radius * std::sin(angle);
    has_spare_ = true;
    return radius * std::cos(angle);
  }

 private:
  Random& random_;
  double spare_ = 0;
  bool has_spare_ = false;
};

}  // namespace

Status Gpt2Config::validate() const {
  TROUPE_CHECK(check_size("vocab_size", vocab_size, vocab_size_max));
  TROUPE_CHECK(check_size("n_positions", n_positions, size_max));
  TROUPE_CHECK(check_size("n_embd", n_embd, size_max));
  TROUPE_CHECK(check_size("n_layer", n_layer, layers_max));
  TROUPE_CHECK(check_size("n_head", n_head, size_max));
  if (n_embd % n_head != 0) {
    return error(Code::invalid,
                 fmt::format("n_embd {} is not a multiple of n_head {}", n_embd, n_head));
  }
  if (!(layer_norm_epsilon > 0 && layer_norm_epsilon < 1)) {
    return error(Code::invalid, fmt::format("layer_norm_epsilon is {}", layer_norm_epsilon));
  }
  return ok();
}

Gpt2Layout::Gpt2Layout(const Gpt2Config& config) {
  TROUPE_ASSERT(config.validate().has_value(), "Gpt2Layout of an invalid config");
  const int64_t C = config.n_embd;
  wte_ = add("transformer.wte.weight", {config.vocab_size, C});
  wpe_ = add("transformer.wpe.weight", {config.n_positions, C});
  for (int64_t i = 0; i < config.n_layer; ++i) {
    const std::string h = fmt::format("transformer.h.{}.", i);
    Gpt2BlockOffsets block{};
    block.ln_1_weight = add(h + "ln_1.weight", {C});
    block.ln_1_bias = add(h + "ln_1.bias", {C});
    block.attn_weight = add(h + "attn.c_attn.weight", {C, 3 * C});
    block.attn_bias = add(h + "attn.c_attn.bias", {3 * C});
    block.attn_proj_weight = add(h + "attn.c_proj.weight", {C, C});
    block.attn_proj_bias = add(h + "attn.c_proj.bias", {C});
    block.ln_2_weight = add(h + "ln_2.weight", {C});
    block.ln_2_bias = add(h + "ln_2.bias", {C});
    block.fc_weight = add(h + "mlp.c_fc.weight", {C, 4 * C});
    block.fc_bias = add(h + "mlp.c_fc.bias", {4 * C});
    block.proj_weight = add(h + "mlp.c_proj.weight", {4 * C, C});
    block.proj_bias = add(h + "mlp.c_proj.bias", {C});
    blocks_.push_back(block);
  }
  ln_f_weight_ = add("transformer.ln_f.weight", {C});
  ln_f_bias_ = add("transformer.ln_f.bias", {C});
}

size_t Gpt2Layout::add(std::string name, std::vector<int64_t> shape) {
  Parameter parameter{std::move(name), std::move(shape), total_, 1};
  for (const int64_t size : parameter.shape) parameter.count *= static_cast<size_t>(size);
  total_ += parameter.count;
  parameters_.push_back(std::move(parameter));
  return parameters_.back().offset;
}

const Parameter* Gpt2Layout::find(std::string_view name) const {
  for (const Parameter& parameter : parameters_) {
    if (parameter.name == name) return &parameter;
  }
  return nullptr;
}

template <class Real>
void initialize_gpt2(const Gpt2Config& config, Random& random, std::span<Real> out) {
  const Gpt2Layout layout(config);
  TROUPE_ASSERT(out.size() == layout.total(), "initialize_gpt2 into a buffer of another size");
  const double residual = 1 / std::sqrt(2.0 * static_cast<double>(config.n_layer));
  Normal normal(random);
  for (const Parameter& parameter : layout.parameters()) {
    const auto values = out.subspan(parameter.offset, parameter.count);
    const bool to_residual = parameter.name.ends_with("c_proj.weight");
    const bool is_norm_weight = !parameter.is_matrix() && parameter.name.ends_with(".weight");
    for (Real& value : values) {
      value = static_cast<Real>(parameter.is_matrix()
                                    ? normal.next() * 0.02 * (to_residual ? residual : 1.0)
                                    : (is_norm_weight ? 1.0 : 0.0));
    }
  }
}

template void initialize_gpt2(const Gpt2Config&, Random&, std::span<float>);
template void initialize_gpt2(const Gpt2Config&, Random&, std::span<double>);

double gpt2_training_flops(const Gpt2Config& config, int64_t batch, int64_t length) {
  const auto C = static_cast<double>(config.n_embd);
  const auto L = static_cast<double>(config.n_layer);
  const auto T = static_cast<double>(length);
  const double tokens = static_cast<double>(batch) * T;
  const double weights = L * 12 * C * C + static_cast<double>(config.vocab_size) * C;
  // Scores and their use: 2 products of 2 T C operations a token, half of them masked, times 3.
  const double attention = L * 6 * T * C;
  return tokens * (6 * weights + attention);
}

}  // namespace troupe::llm
