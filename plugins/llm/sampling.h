// Chooses the next token of a sequence from the model's logits.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/random.h"
#include "base/status.h"

namespace troupe::llm {

// Names, meanings and bounds are those of OpenAI's API; top_k, min_p and repetition_penalty are
// those of Hugging Face. The defaults sample from the model's own distribution.
struct SamplingParams {
  float temperature = 1;         // 0: always the likeliest token.
  int32_t top_k = 0;             // Only the k likeliest tokens; 0: all.
  float top_p = 1;               // Only the likeliest that together reach this probability.
  float min_p = 0;               // Only those with this share of the likeliest's probability.
  float repetition_penalty = 1;  // Shrinks logits of tokens in the prompt or sampled before.
  float presence_penalty = 0;    // Taken off the logit of each token that was sampled before,
  float frequency_penalty = 0;   // and this for each time that it was.
  std::map<int32_t, float> logit_bias;  // Added to the logits of these tokens.
  uint64_t seed = 0;                    // The same seed, logits and history give the same token.
};

// Errors: invalid, in the words of OpenAI's API, naming the parameter.
Status validate(const SamplingParams& params, int32_t vocab_size);

// The state of one sequence.
class Sampler {
 public:
  // Errors: those of validate().
  static Result<Sampler> make(SamplingParams params, int32_t vocab_size);

  // Tokens of the prompt, for repetition_penalty. Ids outside the vocabulary are ignored.
  void observe_prompt(std::span<const int32_t> tokens);
  // Brings a new sampler to where one is that sampled these tokens, so that a sequence that is
  // moved or recomputed goes on as it would have. Call after observe_prompt().
  void resume(std::span<const int32_t> sampled);

  // In this order: penalties, bias, temperature, then min_p, top_k and top_p (which counts in the
  // probabilities that top_k and min_p left). Ties are won by the lower id. A logit of -infinity
  // bans its token. Draws one number, or none if temperature is 0.
  // Errors: invalid (not one logit a token), internal (a logit is NaN or +infinity, or all tokens
  // are banned: the model or its weights are broken); the sampler is then unchanged.
  Result<int32_t> sample(std::span<const float> logits);

 private:
  struct Seen {
    bool in_prompt = false;
    int32_t sampled = 0;
  };

  Sampler(SamplingParams params, int32_t vocab_size);
  bool changes_logits() const;
  void change_logits(std::span<float> logits) const;
  int32_t draw(std::span<const float> logits, float logit_max);

  SamplingParams params_;
  int32_t vocab_size_;
  SeededRandom random_;
  std::unordered_map<int32_t, Seen> seen_;
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;  // Natural logarithm; at least -9999, which stands for impossible.
};

struct Logprobs {
  TokenLogprob chosen;
  std::vector<TokenLogprob> top;  // Descending; ties: the lower id first.
};

// Log-softmax of the model's own logits, before penalties and temperature, as OpenAI reports it;
// `top_count` is cut to the vocabulary.
// Errors: invalid (chosen is no token, top_count < 0), internal (as in sample()).
Result<Logprobs> logprobs(std::span<const float> logits, int32_t chosen, int32_t top_count);

}  // namespace troupe::llm
