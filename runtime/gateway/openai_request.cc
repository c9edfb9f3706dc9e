#include "gateway/openai_request.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <cmath>

namespace troupe::gateway {
namespace json = boost::json;

namespace {

constexpr int64_t tokens_max = 1 << 20;
constexpr size_t stops_max = 4;  // As the API documents, and as many as engines take.
constexpr size_t stop_bytes_max = 512;
constexpr size_t messages_max = 4096;

ApiError bad(std::string param, std::string message, std::string code = {}) {
  ApiError failure;
  failure.status = 400;
  failure.param = std::move(param);
  failure.message = std::move(message);
  failure.code = std::move(code);
  return failure;
}

// The fields of a JSON object. The first wrong one is kept as the error; null means absent.
class Fields {
 public:
  explicit Fields(const json::object& object) : object_(object) {}

  const json::value* get(std::string_view name) const {
    const json::value* value = object_.if_contains(name);
    return value != nullptr && value->is_null() ? nullptr : value;
  }
  void fail(std::string_view name, std::string message, std::string code = {}) {
    if (!failure_) failure_ = bad(std::string(name), std::move(message), std::move(code));
  }
  bool flag(std::string_view name, bool otherwise = false) {
    const json::value* value = get(name);
    if (value == nullptr) return otherwise;
    if (!value->is_bool()) {
      fail(name, fmt::format("'{}' must be a boolean", name), "invalid_type");
      return otherwise;
    }
    return value->get_bool();
  }
  std::optional<int64_t> integer(std::string_view name, int64_t least, int64_t most) {
    const json::value* value = get(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_int64()) {
      const bool large = value->is_uint64();
      fail(name,
           large ? fmt::format("'{}' must be at most {}", name, most)
                 : fmt::format("'{}' must be an integer", name),
           large ? "integer_above_max_value" : "invalid_type");
      return std::nullopt;
    }
    const int64_t number = value->get_int64();
    if (number < least || number > most) {
      fail(name, fmt::format("'{}' must be between {} and {}, not {}", name, least, most, number),
           number < least ? "integer_below_min_value" : "integer_above_max_value");
      return std::nullopt;
    }
    return number;
  }
  std::optional<double> number(std::string_view name, double least, double most) {
    const json::value* value = get(name);
    if (value == nullptr) return std::nullopt;
    boost::system::error_code failed;
    const double number = value->is_number() ? value->to_number<double>(failed) : std::nan("");
    if (failed || !std::isfinite(number)) {
      fail(name, fmt::format("'{}' must be a number", name), "invalid_type");
      return std::nullopt;
    }
    if (number < least || number > most) {
      fail(name, fmt::format("'{}' must be between {} and {}, not {}", name, least, most, number),
           number < least ? "decimal_below_min_value" : "decimal_above_max_value");
      return std::nullopt;
    }
    return number;
  }
  std::string text(std::string_view name, bool required) {
    const json::value* value = get(name);
    if (value == nullptr) {
      if (required) fail(name, fmt::format("'{}' is required", name), "missing_required_parameter");
      return {};
    }
    if (!value->is_string()) {
      fail(name, fmt::format("'{}' must be a string", name), "invalid_type");
      return {};
    }
    return std::string(value->get_string());
  }
  // A feature that the gateway lacks: refused, rather than quietly ignored.
  void refuse(std::string_view name) {
    const json::value* value = get(name);
    if (value == nullptr) return;
    const bool empty = (value->is_array() && value->get_array().empty()) ||
                       (value->is_object() && value->get_object().empty()) ||
                       (value->is_bool() && !value->get_bool()) ||
                       (value->is_string() && value->get_string().empty());
    if (!empty) fail(name, fmt::format("'{}' is not supported", name), "unsupported_parameter");
  }
  const std::optional<ApiError>& failure() const { return failure_; }

 private:
  const json::object& object_;
  std::optional<ApiError> failure_;
};

void read_stop(Fields& fields, ApiRequest& request) {
  const json::value* value = fields.get("stop");
  json::array stops;
  if (value != nullptr && value->is_string()) {
    stops.push_back(*value);
  } else if (value != nullptr && value->is_array()) {
    stops = value->get_array();
  } else if (value != nullptr) {
    fields.fail("stop", "'stop' must be a string or an array of strings", "invalid_type");
  }
  if (stops.size() > stops_max) {
    fields.fail("stop", fmt::format("'stop' may have at most {} entries", stops_max),
                "array_above_max_length");
  }
  for (const json::value& stop : stops) {
    if (!stop.is_string() || stop.get_string().empty() ||
        stop.get_string().size() > stop_bytes_max) {
      fields.fail("stop",
                  fmt::format("each of 'stop' must be a string of 1 to {} bytes", stop_bytes_max),
                  "invalid_value");
    }
  }
  if (!stops.empty()) request.parameters["stop"] = std::move(stops);
}

// What both routes share.
void read_common(Fields& fields, ApiRequest& request) {
  request.model = fields.text("model", true);
  request.n =
      static_cast<uint32_t>(fields.integer("n", 1, static_cast<int64_t>(choices_max)).value_or(1));
  request.stream = fields.flag("stream");
  if (const json::value* options = fields.get("stream_options")) {
    if (!options->is_object()) {
      fields.fail("stream_options", "'stream_options' must be an object", "invalid_type");
    } else if (!request.stream) {
      fields.fail("stream_options", "'stream_options' needs 'stream': true", "invalid_value");
    } else if (const auto* usage = options->get_object().if_contains("include_usage")) {
      if (!usage->is_bool()) {
        fields.fail("stream_options", "'include_usage' must be a boolean", "invalid_type");
      } else {
        request.include_usage = usage->get_bool();
      }
    }
  }
  json::object& out = request.parameters;
  if (const auto value = fields.number("temperature", 0, 2)) out["temperature"] = *value;
  if (const auto value = fields.number("top_p", 0, 1)) out["top_p"] = *value;
  if (const auto value = fields.integer("top_k", -1, tokens_max); value && *value > 0) {
    out["top_k"] = *value;
  }
  if (const auto value = fields.number("presence_penalty", -2, 2)) out["presence_penalty"] = *value;
  if (const auto value = fields.number("frequency_penalty", -2, 2)) {
    out["frequency_penalty"] = *value;
  }
  if (fields.flag("ignore_eos")) out["ignore_eos"] = true;
  request.seed = fields.integer("seed", INT64_MIN, INT64_MAX);
  read_stop(fields, request);
  for (const char* name : {"logit_bias", "tools", "functions", "suffix", "audio", "prediction"}) {
    fields.refuse(name);
  }
  if (const json::value* format = fields.get("response_format")) {
    const json::object* object = format->if_object();
    const json::value* type = object != nullptr ? object->if_contains("type") : nullptr;
    if (type == nullptr || !type->is_string() || type->get_string() != "text") {
      fields.fail("response_format", "only the response format 'text' is supported",
                  "unsupported_parameter");
    }
  }
}

bool read_tokens(const json::array& ids, Prompt& prompt) {
  for (const json::value& id : ids) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > INT32_MAX) return false;
    prompt.tokens.push_back(static_cast<int32_t>(id.get_int64()));
  }
  return !prompt.tokens.empty();
}

void read_prompts(Fields& fields, ApiRequest& request) {
  const json::value* value = fields.get("prompt");
  if (value == nullptr) {
    fields.fail("prompt", "'prompt' is required", "missing_required_parameter");
    return;
  }
  const auto wrong = [&] {
    fields.fail(
        "prompt",
        "'prompt' must be a string, an array of strings, an array of token ids, or an array "
        "of those",
        "invalid_type");
  };
  if (value->is_string()) {
    request.prompts.push_back({std::string(value->get_string()), {}});
    return;
  }
  if (!value->is_array() || value->get_array().empty()) return wrong();
  const json::array& entries = value->get_array();
  if (entries.front().is_number()) {
    Prompt prompt;
    if (!read_tokens(entries, prompt)) return wrong();
    request.prompts.push_back(std::move(prompt));
    return;
  }
  if (entries.size() > choices_max) {
    fields.fail("prompt", fmt::format("at most {} prompts in one request", choices_max),
                "array_above_max_length");
    return;
  }
  for (const json::value& entry : entries) {
    Prompt prompt;
    if (entry.is_string()) {
      prompt.text = std::string(entry.get_string());
    } else if (!entry.is_array() || !read_tokens(entry.get_array(), prompt)) {
      return wrong();
    }
    request.prompts.push_back(std::move(prompt));
  }
}

// The text of a message: a string, or parts of type text.
std::optional<std::string> content_of(const json::value* content) {
  if (content == nullptr) return std::nullopt;
  if (content->is_string()) return std::string(content->get_string());
  if (!content->is_array()) return std::nullopt;
  std::string text;
  for (const json::value& part : content->get_array()) {
    const json::object* object = part.if_object();
    const json::value* type = object != nullptr ? object->if_contains("type") : nullptr;
    const json::value* piece = object != nullptr ? object->if_contains("text") : nullptr;
    if (type == nullptr || !type->is_string() || type->get_string() != "text") return std::nullopt;
    if (piece == nullptr || !piece->is_string()) return std::nullopt;
    text += std::string_view(piece->get_string());
  }
  return text;
}

std::string_view speaker_of(std::string_view role) {
  if (role == "system" || role == "developer") return "System";
  if (role == "user") return "User";
  if (role == "assistant") return "Assistant";
  return {};
}

void read_messages(Fields& fields, ApiRequest& request) {
  const json::value* value = fields.get("messages");
  if (value == nullptr || !value->is_array() || value->get_array().empty() ||
      value->get_array().size() > messages_max) {
    fields.fail("messages", fmt::format("'messages' must be an array of 1 to {}", messages_max),
                value == nullptr ? "missing_required_parameter" : "invalid_type");
    return;
  }
  std::string prompt;
  size_t index = 0;
  for (const json::value& entry : value->get_array()) {
    const std::string place = fmt::format("messages[{}]", index++);
    const json::object* message = entry.if_object();
    const json::value* role = message != nullptr ? message->if_contains("role") : nullptr;
    const std::string_view speaker =
        role != nullptr && role->is_string() ? speaker_of(role->get_string()) : std::string_view{};
    if (speaker.empty()) {
      fields.fail(place, place + ": 'role' must be system, user or assistant", "invalid_value");
      return;
    }
    const auto content = content_of(message->if_contains("content"));
    if (!content) {
      fields.fail(place, place + ": 'content' must be text", "invalid_type");
      return;
    }
    prompt += fmt::format("{}: {}\n\n", speaker, *content);
  }
  prompt += "Assistant:";
  request.prompts.push_back({std::move(prompt), {}});
}

std::variant<json::object, ApiError> parse_object(std::string_view body) {
  boost::system::error_code failed;
  json::value parsed = json::parse(body, failed);
  if (failed) return bad({}, "the body is no valid JSON: " + failed.message(), "invalid_json");
  if (!parsed.is_object()) return bad({}, "the body must be a JSON object", "invalid_json");
  return std::move(parsed.get_object());
}

}  // namespace

std::string to_json(const ApiError& failure) {
  const auto or_null = [](const std::string& text) {
    return text.empty() ? json::value(nullptr) : json::value(text);
  };
  return json::serialize(json::object{{"error", json::object{{"message", failure.message},
                                                             {"type", failure.type},
                                                             {"param", or_null(failure.param)},
                                                             {"code", or_null(failure.code)}}}});
}

ApiError to_api_error(const Error& failure) {
  ApiError out;
  out.message = failure.message();
  out.code = std::string(code_name(failure.code()));
  const auto fill = [&](int status, const char* type) {
    out.status = status;
    out.type = type;
  };
  switch (failure.code()) {
    case Code::invalid:
    case Code::unimplemented:
      fill(400, "invalid_request_error");
      break;
    case Code::not_found:
      fill(404, "invalid_request_error");
      break;
    case Code::denied:
      fill(403, "permission_error");
      break;
    case Code::exhausted:
      fill(429, "rate_limit_error");
      break;
    case Code::unavailable:
    case Code::outcome_unknown:
    case Code::conflict:
    case Code::cancelled:
      fill(503, "service_unavailable");
      break;
    case Code::deadline_exceeded:
      fill(504, "timeout");
      break;
    default:
      fill(500, "server_error");
  }
  if (out.status == 429 || out.status == 503) {
    const auto wait = failure.retry_after().value_or(std::chrono::milliseconds(1000));
    out.retry_after_seconds = static_cast<int>((wait.count() + 999) / 1000);
  }
  return out;
}

std::variant<ApiRequest, ApiError> parse_completion(std::string_view body) {
  auto object = parse_object(body);
  if (auto* failure = std::get_if<ApiError>(&object)) return std::move(*failure);
  Fields fields{std::get<json::object>(object)};
  ApiRequest request;
  read_common(fields, request);
  read_prompts(fields, request);
  request.parameters["max_tokens"] = fields.integer("max_tokens", 1, tokens_max).value_or(16);
  request.echo = fields.flag("echo");
  if (const auto count = fields.integer("logprobs", 0, 20)) {
    request.logprobs = true;
    request.parameters["logprobs"] = *count;
  }
  const auto best_of = fields.integer("best_of", 1, 64);
  if (best_of && *best_of != request.n) {
    fields.fail("best_of", "'best_of' other than 'n' is not supported", "unsupported_parameter");
  }
  for (const Prompt& prompt : request.prompts) {
    if (request.echo && !prompt.tokens.empty()) {
      fields.fail("echo", "'echo' needs prompts of text", "unsupported_parameter");
    }
  }
  if (request.echo && request.logprobs) {
    fields.fail("echo", "'echo' together with 'logprobs' is not supported",
                "unsupported_parameter");
  }
  if (request.choices() > choices_max) {
    fields.fail("n", fmt::format("prompts times 'n' may be at most {}", choices_max),
                "integer_above_max_value");
  }
  if (fields.failure()) return *fields.failure();
  return request;
}

std::variant<ApiRequest, ApiError> parse_chat(std::string_view body) {
  auto object = parse_object(body);
  if (auto* failure = std::get_if<ApiError>(&object)) return std::move(*failure);
  Fields fields{std::get<json::object>(object)};
  ApiRequest request;
  request.chat = true;
  read_common(fields, request);
  read_messages(fields, request);
  auto limit = fields.integer("max_completion_tokens", 1, tokens_max);
  if (!limit) limit = fields.integer("max_tokens", 1, tokens_max);
  // Without a limit of the client's the engine stops at the end of its context.
  request.parameters["max_tokens"] = limit.value_or(tokens_max);
  request.logprobs = fields.flag("logprobs");
  const auto top = fields.integer("top_logprobs", 0, 20);
  if (top && !request.logprobs) {
    fields.fail("top_logprobs", "'top_logprobs' needs 'logprobs': true", "invalid_value");
  }
  if (request.logprobs) request.parameters["logprobs"] = top.value_or(0);
  if (!request.parameters.contains("stop")) {
    request.parameters["stop"] = json::array{"\nUser:"};
  }
  if (fields.failure()) return *fields.failure();
  return request;
}

std::string engine_arguments(const ApiRequest& request, size_t choice,
                             const std::string& request_id) {
  json::object arguments = request.parameters;
  const Prompt& prompt = request.prompts[choice / request.n];
  if (prompt.tokens.empty()) {
    arguments["prompt"] = prompt.text;
  } else {
    arguments["prompt_tokens"] = json::array(prompt.tokens.begin(), prompt.tokens.end());
  }
  // Choices of one prompt differ, and each is the same whenever it is asked for again.
  if (request.seed) {
    arguments["seed"] =
        static_cast<int64_t>(static_cast<uint64_t>(*request.seed) + choice % request.n);
  }
  arguments["request_id"] =
      request.choices() == 1 ? request_id : fmt::format("{}-{}", request_id, choice);
  return json::serialize(arguments);
}

}  // namespace troupe::gateway
