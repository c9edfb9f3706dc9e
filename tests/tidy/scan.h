// Just enough reading of C++ to check rules on it: what is code, what is a comment or a string.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace troupe::tidy {

// The text with comments and the insides of string and character literals blanked. Offsets and
// lines stay the same.
std::string code_only(std::string_view text);

struct Include {
  std::string path;  // Without quotes or brackets.
  bool quoted = false;
  int line = 0;
};
// Those in comments and raw strings do not count.
std::vector<Include> includes(std::string_view text);

int line_of(std::string_view text, size_t offset);
bool is_word(char c);
// The offset of the bracket that closes the one at `open`; text.size() if none does.
size_t closing(std::string_view code, size_t open);
// The offsets of a whole word.
std::vector<size_t> find_words(std::string_view code, std::string_view word);
size_t skip_space(std::string_view code, size_t at);
// The offset of the last character before `at` that is no space; npos if there is none.
size_t before_space(std::string_view code, size_t at);

}  // namespace troupe::tidy
