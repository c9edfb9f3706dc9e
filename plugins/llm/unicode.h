// UTF-8 one character at a time, and the three classes of characters that word splitting needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace troupe::llm {

enum class CharClass : uint8_t { other, letter, number, space };

// Letters are category L*, numbers N*, spaces White_Space; Unicode 16.
CharClass char_class(char32_t code_point);

struct Utf8Char {
  enum class State : uint8_t {
    valid,
    invalid,     // `size_bytes` bytes that no valid character starts with: one U+FFFD.
    incomplete,  // The text ends inside a character; `size_bytes` bytes of it are there.
  };
  char32_t code_point = 0;  // Only if valid.
  uint8_t size_bytes = 1;
  State state = State::invalid;
};

// The first character of `text`, which must not be empty. Overlong forms, surrogates and anything
// over U+10FFFF are invalid.
Utf8Char first_char(std::string_view text);

void append_utf8(std::string& text, char32_t code_point);

// Moves all complete characters from the front of `bytes` to the end of `text`; what is invalid
// becomes U+FFFD, one for each longest piece that could have begun a character (as WHATWG and Rust
// do). Up to 3 bytes of an incomplete character stay in `bytes`.
void move_complete_chars(std::string& bytes, std::string& text);

}  // namespace troupe::llm
