#include "scan.h"

#include <algorithm>
#include <cctype>
#include <cstddef>

namespace troupe::tidy {
namespace {

constexpr auto npos = std::string_view::npos;

// Where the literal that opens at `at` ends, the closing quote included. A quote that never
// closes ends with its line.
size_t end_of_literal(std::string_view text, size_t at) {
  const char quote = text[at];
  for (size_t i = at + 1; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == quote) {
      return i + 1;
    } else if (text[i] == '\n') {
      return i;
    }
  }
  return text.size();
}

bool is_raw_string(std::string_view text, size_t quote) {
  if (quote == 0 || text[quote - 1] != 'R') return false;
  size_t start = quote - 1;
  while (start > 0 && is_word(text[start - 1])) --start;
  const std::string_view prefix = text.substr(start, quote - start);
  return prefix == "R" || prefix == "u8R" || prefix == "uR" || prefix == "UR" || prefix == "LR";
}

size_t end_of_raw_string(std::string_view text, size_t quote) {
  const size_t open = text.find('(', quote);
  if (open == npos) return text.size();
  std::string close = ")";
  close += text.substr(quote + 1, open - quote - 1);
  close += '"';
  const size_t end = text.find(close, open);
  return end == npos ? text.size() : end + close.size();
}

// A quote inside a number, 1'000, opens nothing.
bool separates_digits(std::string_view text, size_t at) {
  return text[at] == '\'' && at > 0 && at + 1 < text.size() &&
         std::isxdigit(static_cast<unsigned char>(text[at - 1])) != 0 &&
         std::isxdigit(static_cast<unsigned char>(text[at + 1])) != 0;
}

void blank(std::string& text, size_t from, size_t to) {
  for (size_t i = from; i < std::min(to, text.size()); ++i)
    if (text[i] != '\n') text[i] = ' ';
}

enum class Literals : bool { keep, blank };

std::string strip(std::string_view text, Literals literals) {
  std::string result{text};
  for (size_t i = 0; i < text.size();) {
    const char c = text[i];
    if (c == '/' && text.substr(i, 2) == "//") {
      const size_t end = std::min(text.find('\n', i), text.size());
      blank(result, i, end);
      i = end;
    } else if (c == '/' && text.substr(i, 2) == "/*") {
      const size_t close = text.find("*/", i + 2);
      const size_t end = close == npos ? text.size() : close + 2;
      blank(result, i, end);
      i = end;
    } else if (c == '"' && is_raw_string(text, i)) {
      const size_t end = end_of_raw_string(text, i);
      blank(result, i + 1, end - 1);  // Raw strings span lines, so they always go.
      i = end;
    } else if ((c == '"' || c == '\'') && !separates_digits(text, i)) {
      const size_t end = end_of_literal(text, i);
      if (literals == Literals::blank && end > i + 1) blank(result, i + 1, end - 1);
      i = end;
    } else {
      ++i;
    }
  }
  return result;
}

}  // namespace

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

std::string code_only(std::string_view text) {
  return strip(text, Literals::blank);
}

std::vector<Include> includes(std::string_view text) {
  const std::string code = strip(text, Literals::keep);
  std::vector<Include> found;
  int line = 0;
  for (size_t start = 0; start < code.size();) {
    const size_t end = std::min(code.find('\n', start), code.size());
    ++line;
    size_t at = skip_space(code, start);
    start = end + 1;
    if (at >= end || code[at] != '#') continue;
    at = skip_space(code, at + 1);
    if (code.compare(at, 7, "include") != 0) continue;
    at = skip_space(code, at + 7);
    if (at >= end || (code[at] != '"' && code[at] != '<')) continue;
    const bool quoted = code[at] == '"';
    const size_t close = code.find(quoted ? '"' : '>', at + 1);
    if (close == npos || close > end) continue;
    found.push_back({code.substr(at + 1, close - at - 1), quoted, line});
  }
  return found;
}

int line_of(std::string_view text, size_t offset) {
  const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(offset, text.size()));
  return 1 + static_cast<int>(std::count(text.begin(), end, '\n'));
}

size_t closing(std::string_view code, size_t open) {
  int depth = 0;
  for (size_t i = open; i < code.size(); ++i) {
    const char c = code[i];
    if (c == '(' || c == '{' || c == '[') ++depth;
    if ((c == ')' || c == '}' || c == ']') && --depth == 0) return i;
  }
  return code.size();
}

std::vector<size_t> find_words(std::string_view code, std::string_view word) {
  std::vector<size_t> found;
  for (size_t at = code.find(word); at != npos; at = code.find(word, at + word.size())) {
    const size_t end = at + word.size();
    if ((at == 0 || !is_word(code[at - 1])) && (end == code.size() || !is_word(code[end])))
      found.push_back(at);
  }
  return found;
}

size_t skip_space(std::string_view code, size_t at) {
  while (at < code.size() && std::isspace(static_cast<unsigned char>(code[at])) != 0) ++at;
  return at;
}

size_t before_space(std::string_view code, size_t at) {
  while (at > 0) {
    --at;
    if (std::isspace(static_cast<unsigned char>(code[at])) == 0) return at;
  }
  return npos;
}

}  // namespace troupe::tidy
