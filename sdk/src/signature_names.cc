#include "signature_names.h"

#include <fmt/format.h>

#include <mutex>
#include <vector>

#include "troupe/signature.h"

namespace troupe::detail {
namespace {

// Before a hash of 16 digits.
constexpr std::string_view mark = "signature #";
constexpr size_t digits = 16;

struct Noted {
  uint64_t (*hash)();
  std::string (*text)();
};

// Static initialisers of modules fill it, also in threads that load modules.
struct Registry {
  std::mutex mutex;
  std::vector<Noted> all;
};

Registry& registry() {
  static Registry instance;
  return instance;
}

std::string marked(uint64_t hash) {
  return fmt::format("{}{:016x}", mark, hash);
}

// Empty: it is not known here.
std::string text_of(std::string_view reference) {
  Registry& known = registry();
  const std::lock_guard lock{known.mutex};
  for (const Noted& noted : known.all) {
    if (marked(noted.hash()) == reference) return noted.text();
  }
  return {};
}

}  // namespace

std::string tidy_type_name(std::string_view name) {
  std::string text{name};
  const auto replace = [&text](std::string_view from, std::string_view to) {
    for (size_t at; (at = text.find(from)) != text.npos;) text.replace(at, from.size(), to);
  };
  replace("std::__cxx11::basic_string<char>", "std::string");
  replace(" >", ">");
  return text;
}

bool note_signature(uint64_t (*hash)(), std::string (*text)()) {
  Registry& known = registry();
  const std::lock_guard lock{known.mutex};
  known.all.push_back({hash, text});
  return true;
}

std::string signatures_differ(std::string_view here, uint64_t of_caller, size_t argument_count) {
  const std::string there =
      of_caller == 0 ? fmt::format("{} opaque arguments", argument_count) : marked(of_caller);
  return fmt::format(
      "the caller's and the module's signatures differ: called as {}, the module has {}: build "
      "both from the same source",
      there, here);
}

Error with_signatures(Error error) {
  std::string message = error.message();
  bool changed = false;
  for (size_t at = 0; (at = message.find(mark, at)) != message.npos; at += mark.size()) {
    const std::string reference = message.substr(at, mark.size() + digits);
    const std::string text = text_of(reference);
    if (text.empty()) continue;
    message.replace(at, reference.size(), text);
    changed = true;
  }
  if (!changed) return error;
  Error named = Error{error.code(), std::move(message)}.at(error.where());
  if (error.retry_after()) return std::move(named).after(*error.retry_after());
  return named;
}

}  // namespace troupe::detail
