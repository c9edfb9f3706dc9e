// The first half of byte-level BPE: splitting text into words, inside which merges happen, and the
// printable alphabet in which vocabularies spell bytes. Both as in GPT-2.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace troupe::llm {

// The size of the first word of `text`, which must not be empty; at least 1. The words are those of
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// Bytes that are not UTF-8 count as characters that are neither letter, number nor space.
size_t first_word_bytes(std::string_view text);

// The character that stands for a byte in vocabularies: itself if printable Latin-1, otherwise
// U+0100 and up.
char32_t byte_symbol(uint8_t byte);

std::string spell_bytes(std::string_view bytes);
// The inverse; nothing if `spelling` has a character that stands for no byte.
std::optional<std::string> bytes_of_spelling(std::string_view spelling);

}  // namespace troupe::llm
