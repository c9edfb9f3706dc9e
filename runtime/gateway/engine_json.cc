#include "gateway/engine_json.h"

#include <boost/json.hpp>

namespace troupe::gateway {
namespace json = boost::json;

namespace {

Error broken(std::string_view what) {
  return error(Code::internal, "the engine sent a bad item: " + std::string(what));
}

Result<uint32_t> count_of(const json::value& value) {
  boost::system::error_code failed;
  const auto count = value.to_number<uint32_t>(failed);
  if (failed) return broken("a count is not a number");
  return count;
}

}  // namespace

Result<Chunk> parse_chunk(std::string_view item) {
  boost::system::error_code failed;
  const json::value parsed = json::parse(item, failed);
  const json::object* fields = failed ? nullptr : parsed.if_object();
  if (fields == nullptr) return broken("no JSON object");
  Chunk chunk;
  if (const auto* text = fields->if_contains("text")) {
    if (!text->is_string()) return broken("text is no string");
    chunk.text = std::string(text->get_string());
  }
  if (const auto* tokens = fields->if_contains("tokens")) {
    if (!tokens->is_array()) return broken("tokens is no array");
    for (const json::value& token : tokens->get_array()) {
      TROUPE_TRY(const uint32_t id, count_of(token));
      chunk.tokens.push_back(static_cast<int32_t>(id));
    }
  }
  if (const auto* reason = fields->if_contains("finish_reason"); reason && !reason->is_null()) {
    if (!reason->is_string()) return broken("finish_reason is no string");
    chunk.finish_reason = std::string(reason->get_string());
  }
  if (const auto* count = fields->if_contains("prompt_tokens"); count && !count->is_null()) {
    TROUPE_TRY(chunk.prompt_tokens, count_of(*count));
  }
  if (const auto* count = fields->if_contains("completion_tokens"); count && !count->is_null()) {
    TROUPE_TRY(chunk.completion_tokens, count_of(*count));
  }
  if (const auto* logprobs = fields->if_contains("logprobs"); logprobs && logprobs->is_array()) {
    chunk.logprobs = json::serialize(*logprobs);
  }
  return chunk;
}

}  // namespace troupe::gateway
