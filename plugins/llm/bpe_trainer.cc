#include "llm/bpe_trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <unordered_map>
#include <utility>

#include "llm/added_tokens.h"
#include "llm/pre_tokenizer.h"
#include "llm/unicode.h"

namespace troupe::llm {
namespace {

constexpr int32_t progress_interval_tokens = 64;

// Two adjacent tokens, the left one in the upper half, so that pairs compare as (left, right).
using PairKey = uint64_t;

PairKey pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(left) << 32 | static_cast<uint32_t>(right);
}

// Counts change by the bytes of keys that differ in few bits.
struct PairHash {
  size_t operator()(PairKey key) const { return key * 0x9e3779b97f4a7c15U ^ key >> 29; }
};

// A distinct word of the text: how often it occurs and the tokens that it consists of by now.
struct Word {
  int64_t count = 0;
  std::vector<int32_t> tokens;
};

// A pair that may be merged next. `count` may be out of date: it is checked when it comes up.
struct Candidate {
  int64_t count;
  PairKey pair;
  std::vector<uint32_t> words;  // Those that gained this pair.

  // The most frequent first; among equals the lowest ids.
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

// Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016, with
// counts that are updated where a merge changes them. The order of steps is that of BpeTrainer in
// `tokenizers`, for it decides between pairs of equal count.
class Trainer {
 public:
  explicit Trainer(const BpeTrainerOptions& options) : options_(options) {}

  Status add_base_tokens();
  void count_words(std::string_view text);
  BpeVocabulary train();

 private:
  int32_t add_token(const std::string& token);
  void count_text(std::string_view text);
  void count_pairs();
  void push_gained();
  void merge(const Candidate& candidate);
  void merge_in(uint32_t index, int32_t left, int32_t right, int32_t merged);
  void change(uint32_t index, int32_t left, int32_t right, int direction);

  const BpeTrainerOptions& options_;
  BpeVocabulary vocabulary_;
  std::unordered_map<std::string, int32_t> ids_;
  std::array<int32_t, 256> byte_ids_{};
  std::unordered_map<std::string_view, uint32_t> word_index_;
  std::vector<Word> words_;  // In the order of their first occurrence.
  std::unordered_map<PairKey, int64_t, PairHash> pair_counts_;
  std::unordered_map<PairKey, std::vector<uint32_t>, PairHash> gained_;  // Since the last push.
  std::vector<Candidate> heap_;
};

// A token that exists keeps its id: two merges may make the same text.
int32_t Trainer::add_token(const std::string& token) {
  const auto next = static_cast<int32_t>(vocabulary_.tokens.size());
  const auto [found, is_new] = ids_.emplace(token, next);
  if (is_new) vocabulary_.tokens.push_back(token);
  return found->second;
}

Status Trainer::add_base_tokens() {
  for (const std::string& token : options_.special_tokens) {
    if (token.empty()) return error(Code::invalid, "a special token is empty");
    if (ids_.contains(token)) {
      return error(Code::invalid, fmt::format("special token '{}' is given twice", token));
    }
    vocabulary_.added.push_back({token, add_token(token), true});
  }
  // In the order of the symbols, not of the bytes.
  std::array<std::pair<char32_t, unsigned>, 256> symbols;
  for (unsigned byte = 0; byte < 256; ++byte) {
    symbols[byte] = {byte_symbol(static_cast<uint8_t>(byte)), byte};
  }
  std::ranges::sort(symbols);
  for (const auto& [symbol, byte] : symbols) {
    std::string token;
    append_utf8(token, symbol);
    if (ids_.contains(token)) {
      return error(Code::invalid, fmt::format("special token '{}' is the name of a byte", token));
    }
    byte_ids_[byte] = add_token(token);
  }
  if (std::cmp_less(options_.vocab_size, vocabulary_.tokens.size())) {
    return error(Code::invalid,
                 fmt::format("vocab_size {} is too small: bytes and special tokens take {}",
                             options_.vocab_size, vocabulary_.tokens.size()));
  }
  return ok();
}

void Trainer::count_words(std::string_view text) {
  AddedTokenFinder special;
  for (const AddedToken& token : vocabulary_.added) special.add(token);
  size_t position = 0;
  while (position < text.size()) {
    const auto [found, token] = special.find(text, position);
    count_text(text.substr(position, found - position));
    if (token == nullptr) break;
    position = found + token->content.size();
  }
}

void Trainer::count_text(std::string_view text) {
  while (!text.empty()) {
    const std::string_view word = text.substr(0, first_word_bytes(text));
    text.remove_prefix(word.size());
    const auto [found, is_new] = word_index_.emplace(word, static_cast<uint32_t>(words_.size()));
    if (is_new) {
      Word& added = words_.emplace_back();
      for (const char c : word) added.tokens.push_back(byte_ids_[static_cast<uint8_t>(c)]);
    }
    ++words_[found->second].count;
  }
}

void Trainer::count_pairs() {
  for (uint32_t index = 0; index < words_.size(); ++index) {
    const std::vector<int32_t>& tokens = words_[index].tokens;
    for (size_t i = 0; i + 1 < tokens.size(); ++i) change(index, tokens[i], tokens[i + 1], 1);
  }
}

void Trainer::change(uint32_t index, int32_t left, int32_t right, int direction) {
  const PairKey pair = pair_key(left, right);
  pair_counts_[pair] += direction * words_[index].count;
  if (direction < 0) return;
  std::vector<uint32_t>& words = gained_[pair];
  // Words are visited one after the other, so this leaves no duplicates.
  if (words.empty() || words.back() != index) words.push_back(index);
}

void Trainer::push_gained() {
  for (auto& [pair, words] : gained_) {
    const int64_t count = pair_counts_[pair];
    if (count <= 0) continue;
    heap_.push_back({count, pair, std::move(words)});
    std::push_heap(heap_.begin(), heap_.end());
  }
  gained_.clear();
}

BpeVocabulary Trainer::train() {
  count_pairs();
  push_gained();
  size_t reported = 0;
  while (std::cmp_less(vocabulary_.tokens.size(), options_.vocab_size) && !heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end());
    Candidate top = std::move(heap_.back());
    heap_.pop_back();
    if (const int64_t count = pair_counts_[top.pair]; count != top.count) {
      if (count <= 0) continue;
      top.count = count;
      heap_.push_back(std::move(top));
      std::push_heap(heap_.begin(), heap_.end());
      continue;
    }
    merge(top);
    push_gained();
    if (options_.progress && vocabulary_.tokens.size() >= reported + progress_interval_tokens) {
      reported = vocabulary_.tokens.size();
      options_.progress(static_cast<int32_t>(reported), options_.vocab_size);
    }
  }
  if (options_.progress) {
    const auto done = static_cast<int32_t>(vocabulary_.tokens.size());
    options_.progress(done, done);
  }
  return std::move(vocabulary_);
}

void Trainer::merge(const Candidate& candidate) {
  const auto left = static_cast<int32_t>(candidate.pair >> 32);
  const auto right = static_cast<int32_t>(candidate.pair & UINT32_MAX);
  const int32_t merged = add_token(vocabulary_.tokens[static_cast<size_t>(left)] +
                                   vocabulary_.tokens[static_cast<size_t>(right)]);
  vocabulary_.merges.emplace_back(left, right);
  for (const uint32_t index : candidate.words) merge_in(index, left, right, merged);
}

// Replaces the pair in one word, from left to right, and corrects the counts around it.
void Trainer::merge_in(uint32_t index, int32_t left, int32_t right, int32_t merged) {
  std::vector<int32_t>& tokens = words_[index].tokens;
  size_t out = 0;  // tokens[0, out) is done.
  for (size_t in = 0; in < tokens.size(); ++out) {
    if (in + 1 == tokens.size() || tokens[in] != left || tokens[in + 1] != right) {
      tokens[out] = tokens[in++];
      continue;
    }
    if (out > 0) {
      change(index, tokens[out - 1], left, -1);
      change(index, tokens[out - 1], merged, 1);
    }
    in += 2;
    if (in < tokens.size()) {
      change(index, right, tokens[in], -1);
      change(index, merged, tokens[in], 1);
    }
    tokens[out] = merged;
  }
  tokens.resize(out);
}

}  // namespace

Result<Tokenizer> train_bpe(std::string_view text, const BpeTrainerOptions& options) {
  Trainer trainer(options);
  TROUPE_CHECK(trainer.add_base_tokens());
  trainer.count_words(text);
  return Tokenizer::make(trainer.train());
}

}  // namespace troupe::llm
