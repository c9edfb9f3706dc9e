#include "llm/gpt2_json.h"

#include <fmt/format.h>

#include <array>
#include <boost/json.hpp>

namespace troupe::llm {
namespace {

namespace json = boost::json;

Error bad(std::string_view key, std::string_view what) {
  return error(Code::invalid, fmt::format("config.json: {}: {}", key, what));
}

Result<int64_t> integer(const json::object& object, std::string_view key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr) return bad(key, "is missing");
  json::error_code failed;
  const auto number = value->to_number<int64_t>(failed);
  if (failed) return bad(key, "is not an integer");
  return number;
}

// A key may be absent; if it is there, it must say what this model computes.
Status expect(const json::object& object, std::string_view key, const json::value& only) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr || *value == only) return ok();
  return bad(key, fmt::format("only {} is computed here, not {}", json::serialize(only),
                              json::serialize(*value)));
}

Status expect_variant(const json::object& object, const Gpt2Config& config) {
  if (const json::value* inner = object.if_contains("n_inner"); inner && !inner->is_null()) {
    TROUPE_CHECK(expect(object, "n_inner", 4 * config.n_embd));
  }
  if (const json::value* name = object.if_contains("activation_function");
      name && *name != "gelu_pytorch_tanh") {  // gelu_new by another name.
    TROUPE_CHECK(expect(object, "activation_function", "gelu_new"));
  }
  TROUPE_CHECK(expect(object, "tie_word_embeddings", true));
  TROUPE_CHECK(expect(object, "scale_attn_weights", true));
  TROUPE_CHECK(expect(object, "scale_attn_by_inverse_layer_idx", false));
  return expect(object, "add_cross_attention", false);
}

json::value token_or_null(std::optional<int32_t> token) {
  return token ? json::value(*token) : json::value(nullptr);
}

// One key a line, for people.
std::string pretty(const json::object& object) {
  std::string text = "{\n";
  for (size_t i = 0; const auto& [key, value] : object) {
    text += fmt::format("  {}: {}{}\n", json::serialize(key), json::serialize(value),
                        ++i < object.size() ? "," : "");
  }
  return text + "}\n";
}

}  // namespace

Result<Gpt2Config> gpt2_config_from_json(std::string_view text) {
  json::error_code failed;
  const json::value parsed = json::parse({text.data(), text.size()}, failed);
  if (failed) return error(Code::invalid, "config.json: not JSON: " + failed.message());
  const json::object* object = parsed.if_object();
  if (object == nullptr) return error(Code::invalid, "config.json: not an object");
  if (!object->contains("model_type")) return bad("model_type", "is missing");
  TROUPE_CHECK(expect(*object, "model_type", "gpt2"));

  Gpt2Config config;
  TROUPE_TRY(config.vocab_size, integer(*object, "vocab_size"));
  TROUPE_TRY(config.n_positions, integer(*object, "n_positions"));
  TROUPE_TRY(config.n_embd, integer(*object, "n_embd"));
  TROUPE_TRY(config.n_layer, integer(*object, "n_layer"));
  TROUPE_TRY(config.n_head, integer(*object, "n_head"));
  if (const json::value* epsilon = object->if_contains("layer_norm_epsilon")) {
    config.layer_norm_epsilon = epsilon->to_number<double>(failed);
    if (failed) return bad("layer_norm_epsilon", "is not a number");
  }
  if (Status valid = config.validate(); !valid) {
    return std::move(valid).error().context("config.json");
  }
  TROUPE_CHECK(expect_variant(*object, config));
  return config;
}

std::string gpt2_config_to_json(const Gpt2Config& config, std::optional<int32_t> eos_token_id) {
  return pretty({{"architectures", json::array{"GPT2LMHeadModel"}},
                 {"model_type", "gpt2"},
                 {"vocab_size", config.vocab_size},
                 {"n_positions", config.n_positions},
                 {"n_ctx", config.n_positions},
                 {"n_embd", config.n_embd},
                 {"n_layer", config.n_layer},
                 {"n_head", config.n_head},
                 {"n_inner", nullptr},
                 {"activation_function", "gelu_new"},
                 {"layer_norm_epsilon", config.layer_norm_epsilon},
                 {"tie_word_embeddings", true},
                 {"scale_attn_weights", true},
                 {"attn_pdrop", 0.0},
                 {"embd_pdrop", 0.0},
                 {"resid_pdrop", 0.0},
                 {"initializer_range", 0.02},
                 {"bos_token_id", token_or_null(eos_token_id)},
                 {"eos_token_id", token_or_null(eos_token_id)},
                 {"torch_dtype", "float32"},
                 {"use_cache", true}});
}

std::string generation_config_to_json(std::optional<int32_t> eos_token_id) {
  return pretty({{"bos_token_id", token_or_null(eos_token_id)},
                 {"eos_token_id", token_or_null(eos_token_id)}});
}

}  // namespace troupe::llm
