#include "llm/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <fstream>
#include <system_error>
#include <unordered_map>

#include "llm/added_tokens.h"
#include "llm/atomic_file.h"
#include "llm/merge_table.h"
#include "llm/pre_tokenizer.h"
#include "llm/tokenizer_json.h"
#include "llm/unicode.h"

namespace troupe::llm {
namespace {

// The names of the end-of-text token in common models.
constexpr std::array<std::string_view, 5> eos_names{"<|endoftext|>", "<|end_of_text|>", "</s>",
                                                    "<|im_end|>", "<eos>"};
// GPT-2's file has 2 MB. Parsed, and in tables, it takes about twenty times its size.
constexpr uintmax_t file_bytes_max = 16u << 20;

}  // namespace

struct Tokenizer::Tables {
  BpeVocabulary vocabulary;
  std::unordered_map<std::string_view, int32_t> ids;  // Keys lie in vocabulary.tokens.
  std::vector<std::string> bytes;                     // By id.
  std::vector<bool> special;                          // By id.
  std::array<int32_t, 256> byte_ids{};
  MergeTable merges{0};
  AddedTokenFinder ordinary_added;
  AddedTokenFinder all_added;
  std::optional<int32_t> eos_id;

  Status build(BpeVocabulary from);
  Status build_merges();
  void build_added();
  bool has(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < bytes.size(); }
  void append_words(std::string_view text, std::vector<int32_t>& word,
                    std::vector<int32_t>& ids_out) const;
};

Status Tokenizer::Tables::build(BpeVocabulary from) {
  vocabulary = std::move(from);
  const size_t size = vocabulary.tokens.size();
  ids.reserve(size);
  special.resize(size);
  for (size_t i = 0; i < size; ++i) {
    const std::string& token = vocabulary.tokens[i];
    // An added token may have characters beyond the alphabet; then it means itself.
    bytes.push_back(bytes_of_spelling(token).value_or(token));
    if (token.empty()) continue;
    if (!ids.emplace(token, static_cast<int32_t>(i)).second) {
      return error(Code::invalid, fmt::format("vocabulary: token '{}' has two ids", token));
    }
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    const auto found = ids.find(spell_bytes({&text, 1}));
    if (found == ids.end()) {
      return error(Code::invalid, fmt::format("vocabulary: byte {:#04x} has no token, so not every "
                                              "text could be encoded",
                                              byte));
    }
    byte_ids[byte] = found->second;
  }
  TROUPE_CHECK(build_merges());
  for (const AddedToken& token : vocabulary.added) {
    if (!has(token.id) || vocabulary.tokens[static_cast<size_t>(token.id)] != token.content ||
        token.content.empty()) {
      return error(Code::invalid, fmt::format("vocabulary: added token '{}' is not token {}",
                                              token.content, token.id));
    }
  }
  build_added();
  return ok();
}

Status Tokenizer::Tables::build_merges() {
  merges = MergeTable(vocabulary.merges.size());
  int32_t rank = 0;
  for (const auto& [left, right] : vocabulary.merges) {
    if (!has(left) || !has(right)) {
      return error(Code::invalid, fmt::format("vocabulary: merge {} has no tokens", rank));
    }
    const std::string merged = vocabulary.tokens[static_cast<size_t>(left)] +
                               vocabulary.tokens[static_cast<size_t>(right)];
    const auto found = ids.find(merged);
    if (found == ids.end()) {
      return error(Code::invalid,
                   fmt::format("vocabulary: merge {} makes '{}', which is no token", rank, merged));
    }
    merges.set(left, right, {rank++, found->second});
  }
  return ok();
}

void Tokenizer::Tables::build_added() {
  for (const AddedToken& token : vocabulary.added) {
    all_added.add(token);
    if (!token.special) ordinary_added.add(token);
    special[static_cast<size_t>(token.id)] = token.special;
  }
  for (const std::string_view name : eos_names) {
    const auto found = ids.find(name);
    if (found == ids.end() || !special[static_cast<size_t>(found->second)]) continue;
    eos_id = found->second;
    return;
  }
}

void Tokenizer::Tables::append_words(std::string_view text, std::vector<int32_t>& word,
                                     std::vector<int32_t>& ids_out) const {
  while (!text.empty()) {
    const size_t size = std::min(first_word_bytes(text), word_bytes_max);
    word.clear();
    for (const char c : text.substr(0, size)) word.push_back(byte_ids[static_cast<uint8_t>(c)]);
    merge_word(merges, word);
    ids_out.insert(ids_out.end(), word.begin(), word.end());
    text.remove_prefix(size);
  }
}

Result<Tokenizer> Tokenizer::make(BpeVocabulary vocabulary) {
  auto tables = std::make_shared<Tables>();
  TROUPE_CHECK(tables->build(std::move(vocabulary)));
  return Tokenizer(std::move(tables));
}

Result<Tokenizer> Tokenizer::load(const std::filesystem::path& path) {
  std::error_code failed;
  const uintmax_t size = std::filesystem::file_size(path, failed);
  if (failed) return file_error(path, "read", failed.value());
  if (size > file_bytes_max) {
    return error(Code::invalid, fmt::format("{}: {} bytes are too many", path.string(), size));
  }
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) return file_error(path, "read", errno != 0 ? errno : EIO);
  auto vocabulary = parse_tokenizer_json(text);
  if (!vocabulary) return std::move(vocabulary).error().context(path.string());
  auto tokenizer = make(std::move(*vocabulary));
  if (!tokenizer) return std::move(tokenizer).error().context(path.string());
  return tokenizer;
}

Status Tokenizer::save(const std::filesystem::path& path) const {
  const std::string text = write_tokenizer_json(tables_->vocabulary);
  TROUPE_TRY(AtomicFile file, AtomicFile::create(path));
  TROUPE_CHECK(file.append({reinterpret_cast<const uint8_t*>(text.data()), text.size()}));
  return file.commit();
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  const AddedTokenFinder& added =
      options.parse_special ? tables_->all_added : tables_->ordinary_added;
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3);
  std::vector<int32_t> word;
  size_t position = 0;
  while (position < text.size()) {
    const auto [found, token] = added.find(text, position);
    tables_->append_words(text.substr(position, found - position), word, ids);
    if (token == nullptr) break;
    ids.push_back(token->id);
    position = found + token->content.size();
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, DecodeOptions options) const {
  StreamDecoder decoder(*this, options);
  std::string text;
  for (const int32_t id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

std::string Tokenizer::decode_bytes(std::span<const int32_t> ids) const {
  std::string bytes;
  for (const int32_t id : ids) bytes += token_bytes(id);
  return bytes;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  return tables_->has(id) ? tables_->bytes[static_cast<size_t>(id)] : std::string_view();
}

int32_t Tokenizer::vocab_size() const {
  return static_cast<int32_t>(tables_->bytes.size());
}

std::string_view Tokenizer::id_to_token(int32_t id) const {
  if (!tables_->has(id)) return {};
  return tables_->vocabulary.tokens[static_cast<size_t>(id)];
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  const auto found = tables_->ids.find(token);
  if (found == tables_->ids.end()) return std::nullopt;
  return found->second;
}

bool Tokenizer::is_special(int32_t id) const {
  return tables_->has(id) && tables_->special[static_cast<size_t>(id)];
}

std::optional<int32_t> Tokenizer::eos_id() const {
  return tables_->eos_id;
}

const BpeVocabulary& Tokenizer::vocabulary() const {
  return tables_->vocabulary;
}

std::string StreamDecoder::push(int32_t token) {
  std::string text;
  if (options_.skip_special && tokenizer_.is_special(token)) return text;
  pending_ += tokenizer_.token_bytes(token);
  move_complete_chars(pending_, text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  if (!pending_.empty()) append_utf8(text, 0xfffd);
  pending_.clear();
  return text;
}

}  // namespace troupe::llm
