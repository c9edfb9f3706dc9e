#include "training/driver/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "llm/bpe_trainer.h"
#include "llm/tokenizer.h"
#include "training/token_file.h"

namespace troupe::training {
namespace {

namespace fs = std::filesystem;

constexpr size_t encode_bytes = 256 << 10;  // Between two reports of progress.

struct Split {
  std::string_view train, validation;
};

Result<std::string> read_document(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) return error(Code::not_found, fmt::format("cannot read the text {}", path));
  if (text.empty()) return error(Code::invalid, fmt::format("the text {} is empty", path));
  return text;
}

Split split(std::string_view text, double validation_share) {
  const auto wanted =
      static_cast<size_t>(static_cast<double>(text.size()) * (1 - validation_share));
  const size_t line_end = text.find('\n', wanted);
  // A last line that begins before `wanted` and goes to the end is cut itself.
  const bool last_line = line_end == std::string_view::npos || line_end + 1 == text.size();
  const size_t cut = last_line ? wanted : line_end + 1;
  return {text.substr(0, cut), text.substr(cut)};
}

class Encoder {
 public:
  Encoder(const llm::Tokenizer& tokenizer, const DatasetOptions& options, uint64_t total_bytes)
      : tokenizer_(tokenizer), options_(options), total_bytes_(total_bytes) {}

  void encode(std::string_view text, std::vector<int32_t>& out) {
    while (!text.empty()) {
      // Pieces end after a line, where no token goes on but a run of white space.
      size_t end = text.size() <= encode_bytes ? text.size() : text.find('\n', encode_bytes);
      end = end == std::string_view::npos ? text.size() : std::min(end + 1, text.size());
      const auto ids = tokenizer_.encode(text.substr(0, end));
      out.insert(out.end(), ids.begin(), ids.end());
      text.remove_prefix(end);
      done_ += end;
      if (options_.progress) {
        options_.progress("tokens", static_cast<double>(done_) / static_cast<double>(total_bytes_));
      }
    }
    if (const auto eos = tokenizer_.eos_id()) out.push_back(*eos);
  }

 private:
  const llm::Tokenizer& tokenizer_;
  const DatasetOptions& options_;
  uint64_t total_bytes_, done_ = 0;
};

Result<llm::Tokenizer> make_tokenizer(const DatasetOptions& options, const fs::path& path,
                                      const std::vector<Split>& parts) {
  if (options.reuse_tokenizer && fs::exists(path)) return llm::Tokenizer::load(path);
  std::string train;  // What is held out must not shape the vocabulary either.
  for (const Split& part : parts) train.append(part.train);
  llm::BpeTrainerOptions bpe{.vocab_size = options.vocab_size};
  if (options.progress) {
    bpe.progress = [&options](int32_t done, int32_t total) {
      options.progress("tokenizer", static_cast<double>(done) / std::max(total, 1));
    };
  }
  TROUPE_TRY(auto tokenizer, llm::train_bpe(train, bpe));
  TROUPE_CHECK(tokenizer.save(path));
  return tokenizer;
}

}  // namespace

Result<Dataset> make_dataset(const DatasetOptions& options) {
  Dataset made{.tokenizer = options.directory / "tokenizer.json",
               .train = options.directory / "train.tokens",
               .validation = options.directory / "validation.tokens"};
  std::vector<std::string> documents;
  std::vector<Split> parts;
  for (const std::string& path : options.texts) {
    TROUPE_TRY(std::string text, read_document(path));
    made.text_bytes += text.size();
    documents.push_back(std::move(text));
  }
  for (const std::string& text : documents) parts.push_back(split(text, options.validation_share));

  TROUPE_TRY(const auto tokenizer, make_tokenizer(options, made.tokenizer, parts));
  made.vocab_size = tokenizer.vocab_size();
  std::vector<int32_t> train, validation;
  Encoder encoder{tokenizer, options, made.text_bytes};
  for (const Split& part : parts) {
    encoder.encode(part.train, train);
    encoder.encode(part.validation, validation);
  }
  made.train_tokens = train.size();
  made.validation_tokens = validation.size();
  TROUPE_CHECK(write_token_file(made.train, train, made.vocab_size));
  TROUPE_CHECK(write_token_file(made.validation, validation, made.vocab_size));
  return made;
}

}  // namespace troupe::training
