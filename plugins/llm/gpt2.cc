#include "llm/gpt2.h"

#include <fmt/format.h>

#include <algorithm>
#include <type_traits>
#include <variant>

#include "llm/cpu/buffer.h"
#include "llm/cpu/gpt2_pass.h"

namespace troupe::llm {
namespace {

constexpr int threads_max = 1024;

// Whether the precision that the options name can be had in Real.
template <class Real>
Status check_options(const Gpt2Options& options) {
  if (options.threads < 1 || options.threads > threads_max) {
    return error(Code::invalid, fmt::format("{} threads", options.threads));
  }
  if (options.precision == Precision::f32) return ok();
  if (!std::is_same_v<Real, float>) return error(Code::unimplemented, "bf16 products in double");
  if (!bf16_supported()) {
    return error(Code::unimplemented, "this processor has no bf16 products (AVX512_BF16, AMX)");
  }
  return ok();
}

Status check_words(std::string_view what, std::span<const int32_t> words, int64_t vocab_size,
                   bool may_be_negative) {
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] < vocab_size && (words[i] >= 0 || may_be_negative)) continue;
    return error(Code::invalid, fmt::format("{} {} at {} is outside the vocabulary of {}", what,
                                            words[i], i, vocab_size));
  }
  return ok();
}

Status check_tokens(const Gpt2Config& config, const TokenBatch& batch) {
  // Bounded first, so that no product below overflows.
  if (batch.batch < 1 || batch.length < 1 || batch.batch > (int64_t{1} << 24)) {
    return error(Code::invalid, fmt::format("a batch of {} x {}", batch.batch, batch.length));
  }
  if (batch.length > config.n_positions) {
    return error(Code::invalid,
                 fmt::format("sequences of {} tokens, but the model has {} positions", batch.length,
                             config.n_positions));
  }
  if (batch.tokens.size() != static_cast<size_t>(batch.batch * batch.length)) {
    return error(Code::invalid, fmt::format("{} tokens in a batch of {} x {}", batch.tokens.size(),
                                            batch.batch, batch.length));
  }
  return check_words("token", batch.tokens, config.vocab_size, false);
}

// Returns the number of targets to learn.
Result<int64_t> check_targets(const Gpt2Config& config, const TokenBatch& batch) {
  TROUPE_CHECK(check_tokens(config, batch));
  if (batch.targets.size() != batch.tokens.size()) {
    return error(Code::invalid, fmt::format("{} targets for {} tokens", batch.targets.size(),
                                            batch.tokens.size()));
  }
  TROUPE_CHECK(check_words("target", batch.targets, config.vocab_size, true));
  const int64_t count = std::ranges::count_if(batch.targets, [](int32_t t) { return t >= 0; });
  if (count == 0) return error(Code::invalid, "a batch without targets");
  return count;
}

}  // namespace

bool bf16_supported() {
  return cpu::has_bf16_products();
}

template <class Real>
struct Gpt2<Real>::Impl {
  using Pass =
      std::conditional_t<std::is_same_v<Real, float>,
                         std::variant<cpu::Gpt2Pass<float, float>, cpu::Gpt2Pass<float, cpu::bf16>>,
                         std::variant<cpu::Gpt2Pass<double, double>>>;

  Impl(const Gpt2Config& c, const Gpt2Options& options)
      : config(c),
        layout(c),
        parameters(layout.total()),
        gradients(layout.total()),
        pass(make_pass(options)) {
    std::ranges::fill(parameters.span(), Real{0});
    std::ranges::fill(gradients.span(), Real{0});
  }

  Pass make_pass(const Gpt2Options& options) {
    if constexpr (std::is_same_v<Real, float>) {
      if (options.precision == Precision::bf16) {
        return Pass(std::in_place_index<1>, config, layout, options.threads);
      }
    }
    return Pass(std::in_place_index<0>, config, layout, options.threads);
  }

  Result<Real> run(const TokenBatch& batch, Real gradient_scale, Real* gradient) {
    TROUPE_TRY(const int64_t targets, check_targets(config, batch));
    const Real mean_scale = gradient_scale / static_cast<Real>(targets);
    TROUPE_TRY(
        const double sum,
        std::visit([&](auto& p) { return p.run(parameters.data(), batch, mean_scale, gradient); },
                   pass));
    return static_cast<Real>(sum / static_cast<double>(targets));
  }

  const Gpt2Config config;
  const Gpt2Layout layout;
  cpu::Buffer<Real> parameters;
  cpu::Buffer<Real> gradients;
  Pass pass;
};

template <class Real>
Gpt2<Real>::Gpt2(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
template <class Real>
Gpt2<Real>::Gpt2(Gpt2&&) noexcept = default;
template <class Real>
Gpt2<Real>& Gpt2<Real>::operator=(Gpt2&&) noexcept = default;
template <class Real>
Gpt2<Real>::~Gpt2() = default;

template <class Real>
Result<Gpt2<Real>> Gpt2<Real>::create(const Gpt2Config& config, const Gpt2Options& options) {
  TROUPE_CHECK(config.validate());
  TROUPE_CHECK(check_options<Real>(options));
  return Gpt2(std::make_unique<Impl>(config, options));
}

template <class Real>
const Gpt2Config& Gpt2<Real>::config() const {
  return impl_->config;
}
template <class Real>
const Gpt2Layout& Gpt2<Real>::layout() const {
  return impl_->layout;
}
template <class Real>
std::span<Real> Gpt2<Real>::parameters() {
  return impl_->parameters.span();
}
template <class Real>
std::span<const Real> Gpt2<Real>::parameters() const {
  return std::as_const(impl_->parameters).span();
}
template <class Real>
std::span<Real> Gpt2<Real>::gradients() {
  return impl_->gradients.span();
}
template <class Real>
void Gpt2<Real>::zero_gradients() {
  std::ranges::fill(impl_->gradients.span(), Real{0});
}

template <class Real>
Result<Real> Gpt2<Real>::forward_backward(const TokenBatch& batch, Real gradient_scale) {
  return impl_->run(batch, gradient_scale, impl_->gradients.data());
}
template <class Real>
Result<Real> Gpt2<Real>::loss(const TokenBatch& batch) {
  return impl_->run(batch, 0, nullptr);
}

template <class Real>
Status Gpt2<Real>::logits(const TokenBatch& batch, std::span<Real> out) {
  TROUPE_CHECK(check_tokens(impl_->config, batch));
  const auto needed = batch.tokens.size() * static_cast<size_t>(impl_->config.vocab_size);
  if (out.size() != needed) {
    return error(Code::invalid, fmt::format("room for {} logits, not {}", out.size(), needed));
  }
  return std::visit([&](auto& p) { return p.logits(impl_->parameters.data(), batch, out.data()); },
                    impl_->pass);
}

template class Gpt2<float>;
template class Gpt2<double>;

}  // namespace troupe::llm
