// What clients of the OpenAI API send: read, checked, and turned into the engine's arguments.
#pragma once

#include <boost/json/object.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/status.h"

namespace troupe::gateway {

// An answer that is no success, as OpenAI's clients expect it.
struct ApiError {
  int status = 500;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;  // Empty: null.
  std::string code;   // Empty: null.
  std::optional<int> retry_after_seconds;
};
std::string to_json(const ApiError& failure);
// The HTTP status of a Status of the runtime.
ApiError to_api_error(const Error& failure);

struct Prompt {
  std::string text;
  std::vector<int32_t> tokens;  // Used when not empty.
};

// One request of /v1/completions or /v1/chat/completions. Each prompt gives n choices.
struct ApiRequest {
  bool chat = false;
  std::string model;
  std::vector<Prompt> prompts;
  uint32_t n = 1;
  bool stream = false;
  bool include_usage = false;
  bool echo = false;
  bool logprobs = false;
  std::optional<int64_t> seed;
  boost::json::object parameters;  // The engine's, but for prompt, seed and request_id.

  size_t choices() const { return prompts.size() * n; }
};

inline constexpr size_t choices_max = 64;

std::variant<ApiRequest, ApiError> parse_completion(std::string_view body);
// Messages become one prompt: "System: ...", "User: ..." and "Assistant: ..." paragraphs and, at
// the end, "Assistant:". Without a stop of the client's own, "\nUser:" ends the answer. It needs no
// special tokens, so it suits any model; one with a template of its own wants /v1/completions.
std::variant<ApiRequest, ApiError> parse_chat(std::string_view body);

// The engine's argument for one choice.
std::string engine_arguments(const ApiRequest& request, size_t choice,
                             const std::string& request_id);

}  // namespace troupe::gateway
