// Reads a JSON object member by member and keeps the first thing that is wrong with it.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace troupe::inference {

// Errors are worded as OpenAI's API words them. A member that is null counts as absent.
class Fields {
 public:
  struct IntegerBounds {
    int64_t min = INT64_MIN;
    int64_t max = INT64_MAX;
  };

  // Errors: invalid (no JSON object). `what` names the text in messages.
  static Result<Fields> parse(std::string_view text, std::string_view what);

  const boost::json::value* find(std::string_view name) const;
  const boost::json::object& object() const { return object_; }

  std::optional<std::string> text(std::string_view name);
  std::optional<int64_t> integer(std::string_view name, IntegerBounds bounds);
  std::optional<double> number(std::string_view name);
  bool flag(std::string_view name);  // False if absent.

  void fail(std::string message);
  void fail_type(std::string_view name, std::string_view expected);
  Status status() const;

 private:
  explicit Fields(boost::json::object object) : object_(std::move(object)) {}

  boost::json::object object_;
  std::optional<Error> failure_;
};

// The member `name`: ids below `vocab_size`. Errors: invalid (absent, no ids).
Result<std::vector<int32_t>> read_token_ids(Fields& fields, std::string_view name,
                                            int32_t vocab_size);

}  // namespace troupe::inference
