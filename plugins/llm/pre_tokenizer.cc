#include "llm/pre_tokenizer.h"

#include <array>

#include "llm/unicode.h"

namespace troupe::llm {
namespace {

struct ClassedChar {
  CharClass char_class;
  uint8_t size_bytes;
};

ClassedChar classed_char(std::string_view text) {
  const Utf8Char c = first_char(text);
  const bool is_valid = c.state == Utf8Char::State::valid;
  return {is_valid ? char_class(c.code_point) : CharClass::other, c.size_bytes};
}

// Where the characters of `wanted` that start at `position` end.
size_t run_end(std::string_view text, size_t position, CharClass wanted) {
  while (position < text.size()) {
    const ClassedChar c = classed_char(text.substr(position));
    if (c.char_class != wanted) break;
    position += c.size_bytes;
  }
  return position;
}

size_t contraction_bytes(std::string_view text) {
  for (const std::string_view suffix : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
    if (text.starts_with(suffix)) return suffix.size();
  }
  return 0;
}

// A run of spaces leaves its last one to the word that follows it, unless it has no other.
size_t space_run_bytes(std::string_view text) {
  size_t last = 0;
  size_t position = 0;
  while (position < text.size()) {
    const ClassedChar c = classed_char(text.substr(position));
    if (c.char_class != CharClass::space) break;
    last = position;
    position += c.size_bytes;
  }
  return position == text.size() || last == 0 ? position : last;
}

constexpr bool stands_for_itself(unsigned byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
}

struct Alphabet {
  std::array<char32_t, 256> symbols{};
  std::array<int16_t, 0x144> bytes{};  // By symbol; -1 where there is none.

  constexpr Alphabet() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (unsigned byte = 0; byte < 256; ++byte) {
      symbols[byte] = stands_for_itself(byte) ? byte : next++;
      bytes[symbols[byte]] = static_cast<int16_t>(byte);
    }
  }
};

constexpr Alphabet alphabet;

}  // namespace

size_t first_word_bytes(std::string_view text) {
  if (text[0] == '\'') {
    if (const size_t size = contraction_bytes(text); size > 0) return size;
  }
  const size_t start = text[0] == ' ' ? 1 : 0;
  if (start < text.size()) {
    const ClassedChar c = classed_char(text.substr(start));
    if (c.char_class != CharClass::space) {
      return run_end(text, start + c.size_bytes, c.char_class);
    }
  }
  return space_run_bytes(text);
}

char32_t byte_symbol(uint8_t byte) {
  return alphabet.symbols[byte];
}

std::string spell_bytes(std::string_view bytes) {
  std::string spelling;
  for (const char byte : bytes) append_utf8(spelling, byte_symbol(static_cast<uint8_t>(byte)));
  return spelling;
}

std::optional<std::string> bytes_of_spelling(std::string_view spelling) {
  std::string bytes;
  while (!spelling.empty()) {
    const Utf8Char c = first_char(spelling);
    if (c.state != Utf8Char::State::valid || c.code_point >= alphabet.bytes.size()) return {};
    const int16_t byte = alphabet.bytes[c.code_point];
    if (byte < 0) return {};
    bytes.push_back(static_cast<char>(byte));
    spelling.remove_prefix(c.size_bytes);
  }
  return bytes;
}

}  // namespace troupe::llm
