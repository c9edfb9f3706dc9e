// tokenizer.json as `tokenizers` and `transformers` read and write it.
#pragma once

#include <string>
#include <string_view>

#include "llm/tokenizer.h"

namespace troupe::llm {

// Errors: invalid (not such a file), unimplemented (parts that would change the ids).
Result<BpeVocabulary> parse_tokenizer_json(std::string_view text);

// Tokens that are not spelled in the byte alphabet (added ones) must be UTF-8.
std::string write_tokenizer_json(const BpeVocabulary& vocabulary);

}  // namespace troupe::llm
