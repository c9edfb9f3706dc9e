// The JSON between the gateway and an engine: the streaming call "generate" of actor class
// "engine".
//
// Argument: {"prompt": text | "prompt_tokens": [ids], "max_tokens", "temperature", "top_p",
// "top_k",
//   "seed", "stop": [texts], "logprobs": count of alternatives, "presence_penalty",
//   "frequency_penalty", "ignore_eos", "request_id"}. What the client left out is left out.
// Items: {"text", "tokens": [ids], "finish_reason": null | "stop" | "length", "prompt_tokens" (on
// the
//   first), "completion_tokens" (so far), "logprobs": [{"token", "logprob",
//   "top": [{"token", "logprob"}]}], one a token}. The last one has a finish_reason.
#pragma once

#include <string_view>

#include "gateway/backend.h"

namespace troupe::gateway {

inline constexpr std::string_view engine_method = "generate";

// Errors: internal (the engine breaks the contract).
Result<Chunk> parse_chunk(std::string_view item);

}  // namespace troupe::gateway
