// Byte-level byte-pair encoding as in GPT-2: text to token ids and back. Gives the same ids as
// Hugging Face `tokenizers` for the same tokenizer.json.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/status.h"

namespace troupe::llm {

// A token that is found in text as a whole, before the text is split into words.
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = true;  // Control token: parsed only on request, left out of decoded text.
};

// What tokenizer.json holds. Byte b is spelled as the character byte_symbol(b) (pre_tokenizer.h).
struct BpeVocabulary {
  std::vector<std::string> tokens;  // By id, spelled, added tokens included; empty: no such token.
  std::vector<std::pair<int32_t, int32_t>> merges;  // Two ids; the first of them goes first.
  std::vector<AddedToken> added;
};

// Immutable; copies share their tables. Thread-safe.
class Tokenizer {
 public:
  // Reads tokenizer.json: model BPE, pre-tokenizer and decoder ByteLevel without prefix space.
  // Errors: not_found, denied, invalid (not such a file), unimplemented (a part that would change
  // the ids and that we do not have, e.g. a normalizer).
  static Result<Tokenizer> load(const std::filesystem::path& path);
  // Errors: invalid (a byte without a token, a merge whose result is no token, ids that clash).
  static Result<Tokenizer> make(BpeVocabulary vocabulary);
  // Replaces `path` in one step. Errors: those of write_safetensors.
  Status save(const std::filesystem::path& path) const;

  struct EncodeOptions {
    // Turns "<|endoftext|>" in the text into that token. Never for text that a stranger wrote.
    bool parse_special = false;
  };
  // Takes any bytes. Time is linear in the text, n log n in its longest word.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options) const;
  std::vector<int32_t> encode(std::string_view text) const { return encode(text, {}); }

  struct DecodeOptions {
    bool skip_special = true;
  };
  // UTF-8: what is invalid becomes U+FFFD. Ids that are no token are left out.
  std::string decode(std::span<const int32_t> ids, DecodeOptions options) const;
  std::string decode(std::span<const int32_t> ids) const { return decode(ids, {}); }
  // The exact bytes: decode_bytes(encode(x)) == x for any x. Special tokens are spelled out.
  std::string decode_bytes(std::span<const int32_t> ids) const;
  // The bytes of one token; empty if there is no such token.
  std::string_view token_bytes(int32_t id) const;

  // One more than the highest id.
  int32_t vocab_size() const;
  // As tokenizer.json spells it, e.g. "Ġthe". Empty if there is no such token.
  std::string_view id_to_token(int32_t id) const;
  std::optional<int32_t> token_to_id(std::string_view token) const;
  bool is_special(int32_t id) const;
  // The special token that ends a text, known by its usual names, "<|endoftext|>" first.
  // tokenizer.json does not say; where the model's config.json does, believe that.
  std::optional<int32_t> eos_id() const;
  const BpeVocabulary& vocabulary() const;

 private:
  struct Tables;
  explicit Tokenizer(std::shared_ptr<const Tables> tables) : tables_(std::move(tables)) {}

  std::shared_ptr<const Tables> tables_;
};

// Decodes token by token. The pieces put together are decode() of all tokens, and each is valid
// UTF-8: a character whose bytes are spread over tokens appears with its last one.
class StreamDecoder {
 public:
  explicit StreamDecoder(Tokenizer tokenizer, Tokenizer::DecodeOptions options)
      : tokenizer_(std::move(tokenizer)), options_(options) {}
  explicit StreamDecoder(Tokenizer tokenizer) : StreamDecoder(std::move(tokenizer), {}) {}

  // The text that became certain; often empty inside a character.
  std::string push(int32_t token);
  // What was begun and never completed, as U+FFFD. The decoder is then as new.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  Tokenizer::DecodeOptions options_;
  std::string pending_;  // The incomplete character: at most 3 bytes.
};

}  // namespace troupe::llm
