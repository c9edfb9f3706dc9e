#include "llm/sampling.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

namespace troupe::llm {
namespace {

// Below this many tokens, sorting beats halving.
constexpr size_t sort_max = 64;
constexpr float impossible_logprob = -9999;

struct Bounds {
  float min;
  float max;
};

Status check_bounds(std::string_view name, float value, Bounds bounds) {
  const auto refuse = [&](std::string_view side, std::string_view sign, float bound) {
    return error(Code::invalid,
                 fmt::format("Invalid '{}': decimal {} value. Expected a value {} {}, "
                             "but got {} instead.",
                             name, side, sign, bound, value));
  };
  if (value < bounds.min) return refuse("below minimum", ">=", bounds.min);
  if (value > bounds.max) return refuse("above maximum", "<=", bounds.max);
  if (!std::isfinite(value)) {
    return error(Code::invalid,
                 fmt::format("Invalid '{}': expected a number, but got {} instead.", name, value));
  }
  return ok();
}

// The largest logit; an error for those that no choice can be made from.
Result<float> checked_max(std::span<const float> logits) {
  float max = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    // False for NaN and for +infinity.
    if (!(logits[i] <= std::numeric_limits<float>::max())) [[unlikely]] {
      return error(Code::internal,
                   fmt::format("the model gave the logit {} for token {}; check its "
                               "weights",
                               logits[i], i));
    }
    max = std::max(max, logits[i]);
  }
  if (max == -std::numeric_limits<float>::infinity()) {
    return error(Code::internal, "the logits of all tokens are -infinity: none can be chosen");
  }
  return max;
}

struct Candidate {
  float value;  // Its logit; then its weight: its probability divided by the likeliest one's.
  int32_t token;
};

// A total order, so that what is kept does not depend on the sorting algorithm.
bool likelier(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.token < b.token;
}

double total_weight(std::span<const Candidate> candidates) {
  double total = 0;
  for (const Candidate& candidate : candidates) total += static_cast<double>(candidate.value);
  return total;
}

// For small k the heap of partial_sort() passes over nearly all tokens with one comparison each.
void keep_top_k(std::vector<Candidate>& candidates, size_t k) {
  k = std::min(k, candidates.size());
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<long>(k), candidates.end(),
                    likelier);
  candidates.resize(k);
}

// Halves the range in which the kept ones end until sorting it is cheap: linear time, where sorting
// all tokens takes milliseconds.
void keep_top_p(std::vector<Candidate>& candidates, float top_p) {
  const double total = total_weight(candidates);
  const double wanted = static_cast<double>(top_p) * total;
  // Tokens below an even share of what may be dropped cannot add up to it: drop them unsorted.
  const double dropped = (total - wanted) / static_cast<double>(candidates.size());
  std::erase_if(candidates, [&](const Candidate& candidate) {
    return static_cast<double>(candidate.value) < dropped;
  });
  const auto at = [&](size_t i) { return candidates.begin() + static_cast<long>(i); };
  size_t low = 0;  // All before it are likelier than those after it, and are kept.
  size_t high = candidates.size();
  double reached = 0;
  while (high - low > sort_max) {
    const size_t middle = low + (high - low) / 2;
    std::nth_element(at(low), at(middle), at(high), likelier);
    const double half = total_weight(std::span(candidates).subspan(low, middle - low));
    if (reached + half >= wanted) {
      high = middle;
    } else {
      reached += half;
      low = middle;
    }
  }
  std::sort(at(low), at(high), likelier);
  // The token that crosses the line is kept, so there is always one.
  while (low < high && reached < wanted) reached += static_cast<double>(candidates[low++].value);
  candidates.resize(std::max(low, size_t{1}));
  std::sort(candidates.begin(), candidates.end(), likelier);
}

}  // namespace

Status validate(const SamplingParams& params, int32_t vocab_size) {
  constexpr float no_max = std::numeric_limits<float>::max();
  TROUPE_CHECK(check_bounds("temperature", params.temperature, {0, 2}));
  TROUPE_CHECK(check_bounds("top_p", params.top_p, {0, 1}));
  TROUPE_CHECK(check_bounds("min_p", params.min_p, {0, 1}));
  TROUPE_CHECK(check_bounds("presence_penalty", params.presence_penalty, {-2, 2}));
  TROUPE_CHECK(check_bounds("frequency_penalty", params.frequency_penalty, {-2, 2}));
  TROUPE_CHECK(check_bounds("repetition_penalty", params.repetition_penalty, {0.01F, no_max}));
  if (params.top_k < 0) {
    return error(Code::invalid,
                 fmt::format("Invalid 'top_k': integer below minimum value. Expected "
                             "a value >= 0, but got {} instead.",
                             params.top_k));
  }
  for (const auto& [token, bias] : params.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      return error(Code::invalid,
                   fmt::format("Invalid key in 'logit_bias': {}. Expected a token id "
                               "from 0 to {}.",
                               token, vocab_size - 1));
    }
    TROUPE_CHECK(check_bounds("logit_bias", bias, {-100, 100}));
  }
  return ok();
}

Sampler::Sampler(SamplingParams params, int32_t vocab_size)
    : params_(std::move(params)), vocab_size_(vocab_size), random_(params_.seed) {}

Result<Sampler> Sampler::make(SamplingParams params, int32_t vocab_size) {
  TROUPE_CHECK(validate(params, vocab_size));
  return Sampler(std::move(params), vocab_size);
}

void Sampler::observe_prompt(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    if (token >= 0 && token < vocab_size_) seen_[token].in_prompt = true;
  }
}

void Sampler::resume(std::span<const int32_t> sampled) {
  for (const int32_t token : sampled) {
    if (token >= 0 && token < vocab_size_) ++seen_[token].sampled;
    if (params_.temperature > 0) random_.next();
  }
}

bool Sampler::changes_logits() const {
  return params_.repetition_penalty != 1 || params_.presence_penalty != 0 ||
         params_.frequency_penalty != 0 || !params_.logit_bias.empty();
}

void Sampler::change_logits(std::span<float> logits) const {
  for (const auto& [token, seen] : seen_) {
    float& logit = logits[static_cast<size_t>(token)];
    // Keskar et al., "CTRL", 2019: towards less likely whatever the sign.
    logit = logit < 0 ? logit * params_.repetition_penalty : logit / params_.repetition_penalty;
    if (seen.sampled == 0) continue;
    logit -= params_.presence_penalty;
    logit -= params_.frequency_penalty * static_cast<float>(seen.sampled);
  }
  for (const auto& [token, bias] : params_.logit_bias) logits[static_cast<size_t>(token)] += bias;
}

Result<int32_t> Sampler::sample(std::span<const float> logits) {
  if (std::cmp_not_equal(logits.size(), vocab_size_)) {
    return error(Code::invalid, fmt::format("{} logits for {} tokens", logits.size(), vocab_size_));
  }
  std::vector<float> changed;
  if (changes_logits()) {
    changed.assign(logits.begin(), logits.end());
    change_logits(changed);
    logits = changed;
  }
  TROUPE_TRY(const float max, checked_max(logits));
  const int32_t token = params_.temperature == 0
                            ? static_cast<int32_t>(std::ranges::find(logits, max) - logits.begin())
                            : draw(logits, max);
  ++seen_[token].sampled;
  return token;
}

int32_t Sampler::draw(std::span<const float> logits, float logit_max) {
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    candidates.push_back({logits[i], static_cast<int32_t>(i)});
  }
  if (params_.top_k > 0) keep_top_k(candidates, static_cast<size_t>(params_.top_k));
  for (Candidate& candidate : candidates) {
    // At most 1, and 1 for the likeliest token, however small the temperature.
    candidate.value = std::exp((candidate.value - logit_max) / params_.temperature);
  }
  std::erase_if(candidates, [&](const Candidate& candidate) {
    return candidate.value == 0 || candidate.value < params_.min_p;
  });
  if (params_.top_p < 1) keep_top_p(candidates, params_.top_p);

  double left = random_.uniform() * total_weight(candidates);
  for (const Candidate& candidate : candidates) {
    left -= static_cast<double>(candidate.value);
    if (left < 0) return candidate.token;
  }
  return candidates.back().token;  // Rounding ate the last bit.
}

Result<Logprobs> logprobs(std::span<const float> logits, int32_t chosen, int32_t top_count) {
  if (chosen < 0 || std::cmp_greater_equal(chosen, logits.size()) || top_count < 0) {
    return error(Code::invalid, fmt::format("no logprob for token {} of {}, {} likeliest", chosen,
                                            logits.size(), top_count));
  }
  TROUPE_TRY(const float max, checked_max(logits));
  double total = 0;
  for (const float logit : logits) total += static_cast<double>(std::exp(logit - max));
  const double log_total = static_cast<double>(max) + std::log(total);
  const auto logprob_of = [&](int32_t token) {
    const double logprob = static_cast<double>(logits[static_cast<size_t>(token)]) - log_total;
    return TokenLogprob{token, std::max(static_cast<float>(logprob), impossible_logprob)};
  };

  Logprobs result{logprob_of(chosen), {}};
  if (top_count == 0) return result;
  std::vector<int32_t> order(logits.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  const auto count = std::min(static_cast<size_t>(top_count), order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<long>(count), order.end(),
                    [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)];
                      const float y = logits[static_cast<size_t>(b)];
                      return x != y ? x > y : a < b;
                    });
  for (size_t i = 0; i < count; ++i) result.top.push_back(logprob_of(order[i]));
  return result;
}

}  // namespace troupe::llm
