#include "llm/unicode.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <span>

namespace troupe::llm {
namespace {

struct CodePointRange {
  uint32_t first;
  uint32_t last;
};

#include "llm/unicode_tables.inc"

constexpr bool contains(std::span<const CodePointRange> ranges, char32_t code_point) {
  const auto after = std::upper_bound(
      ranges.begin(), ranges.end(), code_point,
      [](char32_t value, const CodePointRange& range) { return value < range.first; });
  return after != ranges.begin() && code_point <= std::prev(after)->last;
}

constexpr CharClass search_class(char32_t code_point) {
  if (contains(letter_ranges, code_point)) return CharClass::letter;
  if (contains(number_ranges, code_point)) return CharClass::number;
  if (contains(space_ranges, code_point)) return CharClass::space;
  return CharClass::other;
}

constexpr auto ascii_classes = [] {
  std::array<CharClass, 128> classes{};
  for (char32_t c = 0; c < classes.size(); ++c) classes[c] = search_class(c);
  return classes;
}();

// What may follow a lead byte: how many bytes, and the bounds of the first of them.
struct Lead {
  uint8_t size_bytes;
  uint8_t second_min;
  uint8_t second_max;
};

constexpr Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xc2) return {0, 0, 0};
  if (byte < 0xe0) return {2, 0x80, 0xbf};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};
  if (byte < 0xf0) return {3, 0x80, 0xbf};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte < 0xf4) return {4, 0x80, 0xbf};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {0, 0, 0};
}

}  // namespace

CharClass char_class(char32_t code_point) {
  return code_point < ascii_classes.size() ? ascii_classes[code_point] : search_class(code_point);
}

Utf8Char first_char(std::string_view text) {
  using State = Utf8Char::State;
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const Lead lead = lead_of(byte(0));
  if (lead.size_bytes == 1) return {byte(0), 1, State::valid};
  if (lead.size_bytes == 0) return {0, 1, State::invalid};
  char32_t code_point = byte(0) & (0x7fU >> lead.size_bytes);
  for (uint8_t i = 1; i < lead.size_bytes; ++i) {
    if (i == text.size()) return {0, i, State::incomplete};
    const uint8_t low = i == 1 ? lead.second_min : 0x80;
    const uint8_t high = i == 1 ? lead.second_max : 0xbf;
    if (byte(i) < low || byte(i) > high) return {0, i, State::invalid};
    code_point = code_point << 6 | (byte(i) & 0x3fU);
  }
  return {code_point, lead.size_bytes, State::valid};
}

void append_utf8(std::string& text, char32_t code_point) {
  const auto put = [&](char32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (code_point < 0x80) return put(code_point);
  if (code_point < 0x800) {
    put(0xc0 | code_point >> 6);
  } else {
    if (code_point < 0x10000) {
      put(0xe0 | code_point >> 12);
    } else {
      put(0xf0 | code_point >> 18);
      put(0x80 | (code_point >> 12 & 0x3f));
    }
    put(0x80 | (code_point >> 6 & 0x3f));
  }
  put(0x80 | (code_point & 0x3f));
}

void move_complete_chars(std::string& bytes, std::string& text) {
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const Utf8Char c = first_char(rest);
    if (c.state == Utf8Char::State::incomplete) break;
    if (c.state == Utf8Char::State::valid) {
      text.append(rest.substr(0, c.size_bytes));
    } else {
      append_utf8(text, 0xfffd);
    }
    rest.remove_prefix(c.size_bytes);
  }
  bytes.erase(0, bytes.size() - rest.size());
}

}  // namespace troupe::llm
