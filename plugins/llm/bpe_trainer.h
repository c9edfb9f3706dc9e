// Trains a byte-level BPE vocabulary from text.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "llm/tokenizer.h"

namespace troupe::llm {

struct BpeTrainerOptions {
  // Special tokens, 256 bytes and merges together. A text with too few pairs gives fewer.
  int32_t vocab_size = 4096;
  // They take the ids from 0 up. Where they occur in the text, they part it and are not learnt.
  std::vector<std::string> special_tokens{"<|endoftext|>"};
  // Called now and then with the tokens so far, on the calling thread. May be empty.
  std::function<void(int32_t tokens_done, int32_t tokens_total)> progress;
};

// Blocks: splitting the text takes most of the time. Memory: a few times its distinct words.
// Deterministic: the same text gives the same tokenizer, and the one that BpeTrainer of Hugging
// Face `tokenizers` makes of it (but for special tokens in the text, which that learns as text).
// Errors: invalid (vocab_size under 256 + special tokens, special tokens that clash).
Result<Tokenizer> train_bpe(std::string_view text, const BpeTrainerOptions& options);

}  // namespace troupe::llm
