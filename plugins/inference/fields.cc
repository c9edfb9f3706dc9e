#include "inference/fields.h"

#include <fmt/format.h>

#include <cmath>

namespace troupe::inference {
namespace json = boost::json;

namespace {

std::string_view kind_name(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return "a boolean";
    case json::kind::int64:
    case json::kind::uint64:
      return "an integer";
    case json::kind::double_:
      return "a decimal";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "an array";
    default:
      return "an object";
  }
}

}  // namespace

Result<Fields> Fields::parse(std::string_view text, std::string_view what) {
  boost::system::error_code failed;
  json::value value = json::parse(text, failed);
  if (failed) {
    return error(Code::invalid, fmt::format("{} is no valid JSON: {}", what, failed.message()));
  }
  if (!value.is_object()) {
    return error(Code::invalid, fmt::format("{} must be a JSON object", what));
  }
  return Fields(std::move(value.get_object()));
}

const json::value* Fields::find(std::string_view name) const {
  const json::value* value = object_.if_contains(name);
  return value != nullptr && !value->is_null() ? value : nullptr;
}

std::optional<std::string> Fields::text(std::string_view name) {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) {
    fail_type(name, "a string");
    return std::nullopt;
  }
  return std::string(value->get_string());
}

std::optional<int64_t> Fields::integer(std::string_view name, IntegerBounds bounds) {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_int64() && !value->is_uint64()) {
    fail_type(name, "an integer");
    return std::nullopt;
  }
  // The parser says uint64 only of what no int64 holds.
  if (value->is_uint64() || value->get_int64() > bounds.max) {
    fail(
        fmt::format("Invalid '{}': integer above maximum value. Expected a value <= {}, but got {} "
                    "instead.",
                    name, bounds.max, json::serialize(*value)));
    return std::nullopt;
  }
  if (value->get_int64() < bounds.min) {
    fail(
        fmt::format("Invalid '{}': integer below minimum value. Expected a value >= {}, but got {} "
                    "instead.",
                    name, bounds.min, value->get_int64()));
    return std::nullopt;
  }
  return value->get_int64();
}

std::optional<double> Fields::number(std::string_view name) {
  const json::value* value = find(name);
  if (value == nullptr) return std::nullopt;
  boost::system::error_code failed;
  const double number = value->is_number() ? value->to_number<double>(failed) : std::nan("");
  if (failed || !std::isfinite(number)) {
    fail_type(name, "a decimal");
    return std::nullopt;
  }
  return number;
}

bool Fields::flag(std::string_view name) {
  const json::value* value = find(name);
  if (value == nullptr) return false;
  if (!value->is_bool()) fail_type(name, "a boolean");
  return value->is_bool() && value->get_bool();
}

void Fields::fail(std::string message) {
  if (!failure_) failure_ = error(Code::invalid, std::move(message));
}

void Fields::fail_type(std::string_view name, std::string_view expected) {
  const json::value* value = object_.if_contains(name);
  fail(fmt::format("Invalid type for '{}': expected {}, but got {} instead.", name, expected,
                   value != nullptr ? kind_name(*value) : "nothing"));
}

Status Fields::status() const {
  if (failure_) return *failure_;
  return ok();
}

Result<std::vector<int32_t>> read_token_ids(Fields& fields, std::string_view name,
                                            int32_t vocab_size) {
  const json::value* value = fields.find(name);
  if (value == nullptr) {
    return error(Code::invalid, fmt::format("Missing required parameter: '{}'.", name));
  }
  if (!value->is_array()) {
    return error(Code::invalid, fmt::format("Invalid type for '{}': expected an array of integers, "
                                            "but got {} instead.",
                                            name, kind_name(*value)));
  }
  std::vector<int32_t> tokens;
  for (const json::value& token : value->get_array()) {
    const int64_t id = token.is_int64() ? token.get_int64() : -1;
    if (id < 0 || id >= vocab_size) {
      return error(Code::invalid,
                   fmt::format("Invalid '{}[{}]': {} is no token id of this model: 0 to {}.", name,
                               tokens.size(), json::serialize(token), vocab_size - 1));
    }
    tokens.push_back(static_cast<int32_t>(id));
  }
  return tokens;
}

}  // namespace troupe::inference
