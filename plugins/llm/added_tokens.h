// Finds added tokens such as "<|endoftext|>" in a text.
#pragma once

#include <array>
#include <cstddef>
#include <string_view>
#include <utility>
#include <vector>

#include "llm/tokenizer.h"

namespace troupe::llm {

// Thread-safe when const.
class AddedTokenFinder {
 public:
  // Its content must not be empty.
  void add(AddedToken token);

  // The leftmost token at or after `from`, the longest of those there, and its position; npos and
  // nullptr if there is none.
  std::pair<size_t, const AddedToken*> find(std::string_view text, size_t from) const;

 private:
  std::vector<AddedToken> tokens_;  // The longest first, so that it wins over its own prefixes.
  std::array<bool, 256> starts_{};  // The first bytes of all tokens.
};

}  // namespace troupe::llm
