#include "inference/generate_request.h"

#include <fmt/format.h>

#include "inference/fields.h"

namespace troupe::inference {
namespace json = boost::json;

namespace {

constexpr size_t stops_max = 4;
constexpr size_t stop_bytes_max = 512;
constexpr int64_t logprobs_max = 20;

void read_prompt(Fields& fields, const llm::Tokenizer& tokenizer, GenerateRequest& request) {
  const json::value* tokens = fields.find("prompt_tokens");
  const std::optional<std::string> text = fields.text("prompt");
  if (tokens != nullptr && text) {
    return fields.fail("'prompt' and 'prompt_tokens' exclude each other.");
  }
  if (tokens == nullptr && !text) return fields.fail("Missing required parameter: 'prompt'.");
  if (text) {
    request.prompt = tokenizer.encode(*text);
  } else {
    auto ids = read_token_ids(fields, "prompt_tokens", tokenizer.vocab_size());
    if (!ids) return fields.fail(ids.error().message());
    request.prompt = std::move(*ids);
  }
  if (request.prompt.empty()) fields.fail("Invalid 'prompt': it has no tokens.");
  if (fields.flag("echo")) request.echo = text ? *text : tokenizer.decode(request.prompt);
}

void read_stops(Fields& fields, GenerateRequest& request) {
  const json::value* value = fields.find("stop");
  if (value == nullptr) return;
  if (!value->is_array()) return fields.fail_type("stop", "an array of strings");
  const json::array& stops = value->get_array();
  if (stops.size() > stops_max) {
    return fields.fail(
        fmt::format("Invalid 'stop': array too long. Expected an array with maximum "
                    "length {}, but got an array with length {} instead.",
                    stops_max, stops.size()));
  }
  for (const json::value& stop : stops) {
    if (!stop.is_string() || stop.get_string().empty() ||
        stop.get_string().size() > stop_bytes_max) {
      return fields.fail(fmt::format("Invalid 'stop[{}]': expected a string of 1 to {} bytes.",
                                     request.stops.size(), stop_bytes_max));
    }
    request.stops.emplace_back(stop.get_string());
  }
}

void read_sampling(Fields& fields, GenerateRequest& request) {
  llm::SamplingParams& out = request.sampling;
  const auto number = [&](std::string_view name, float& value) {
    if (const auto given = fields.number(name)) value = static_cast<float>(*given);
  };
  number("temperature", out.temperature);
  number("top_p", out.top_p);
  number("presence_penalty", out.presence_penalty);
  number("frequency_penalty", out.frequency_penalty);
  // Clients say "all" as 0 or -1.
  if (const auto k = fields.integer("top_k", {.min = -1, .max = INT32_MAX}); k && *k > 0) {
    out.top_k = static_cast<int32_t>(*k);
  }
  const json::value* seed = fields.find("seed");
  if (seed != nullptr && seed->is_uint64()) {
    out.seed = seed->get_uint64();
    request.seeded = true;
  } else if (const auto given = fields.integer("seed", {})) {
    out.seed = static_cast<uint64_t>(*given);
    request.seeded = true;
  }
}

}  // namespace

Result<GenerateRequest> parse_generate_request(std::string_view text,
                                               const llm::Tokenizer& tokenizer) {
  TROUPE_TRY(Fields fields, Fields::parse(text, "the request"));
  GenerateRequest request;
  read_prompt(fields, tokenizer, request);
  if (const auto most = fields.integer("max_tokens", {.min = 1})) request.tokens_max = *most;
  read_sampling(fields, request);
  read_stops(fields, request);
  if (const auto count = fields.integer("logprobs", {.min = 0, .max = logprobs_max})) {
    request.logprobs = static_cast<int32_t>(*count);
  }
  request.ignore_eos = fields.flag("ignore_eos");
  request.request_id = fields.text("request_id").value_or("");
  TROUPE_CHECK(fields.status());
  TROUPE_CHECK(llm::validate(request.sampling, tokenizer.vocab_size()));
  return request;
}

}  // namespace troupe::inference
