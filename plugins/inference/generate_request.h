// The argument of "generate".
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "llm/sampling.h"
#include "llm/tokenizer.h"

namespace troupe::inference {

struct GenerateRequest {
  std::vector<int32_t> prompt;  // Not empty, tokens of the tokenizer.
  std::string echo;             // The prompt's text if the answer is to begin with it.
  int64_t tokens_max = 16;      // To generate.
  llm::SamplingParams sampling;
  bool seeded = false;              // Whether sampling.seed was asked for.
  std::vector<std::string> stops;   // At most 4.
  std::optional<int32_t> logprobs;  // Alternatives to report with each token.
  bool ignore_eos = false;
  std::string request_id;  // For logs.
};

// Members that this build does not know are ignored: a newer gateway may send them.
// Errors: invalid, in the words of OpenAI's API.
Result<GenerateRequest> parse_generate_request(std::string_view text,
                                               const llm::Tokenizer& tokenizer);

}  // namespace troupe::inference
