#include "base/status.h"

#include <array>
#include <cstdio>
#include <cstdlib>

namespace troupe {
namespace {

constexpr std::array<std::string_view, 13> code_names = {
    "ok",       "unavailable", "deadline_exceeded", "exhausted", "invalid",         "not_found",
    "conflict", "denied",      "unimplemented",     "cancelled", "outcome_unknown", "data_loss",
    "internal"};

}  // namespace

std::string_view code_name(Code code) {
  const auto index = static_cast<size_t>(code);
  return index < code_names.size() ? code_names[index] : "internal";
}

Code code_from_number(uint32_t number) {
  return number < code_names.size() ? static_cast<Code>(number) : Code::internal;
}

bool Error::retriable() const {
  return code_ == Code::unavailable || code_ == Code::deadline_exceeded || code_ == Code::exhausted;
}

std::string Error::to_string() const {
  std::string text{code_name(code_)};
  text += ": ";
  text += message_;
  if (!where_.empty()) text += " (at " + where_ + ")";
  return text;
}

void throw_exception_from_error(const Error& error, const boost::source_location&) {
  throw error;
}

void assert_failed(const char* condition, const char* file, int line, std::string_view message) {
  std::fprintf(stderr, "%s:%d: broken invariant: %s: %.*s\n", file, line, condition,
               static_cast<int>(message.size()), message.data());
  std::abort();
}

}  // namespace troupe
