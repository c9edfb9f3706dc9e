// From text files to a tokenizer and token files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace troupe::training {

struct DatasetOptions {
  std::vector<std::string> texts;   // The files, each a document of its own.
  std::filesystem::path directory;  // Where everything is written.
  int32_t vocab_size = 2048;
  double validation_share = 0.05;  // Of each file, its end; cut after a line if one ends there.
  bool reuse_tokenizer = false;    // Of the directory, as when training is resumed.
  // Called now and then: what is being done, and the share of it that is done.
  std::function<void(std::string_view doing, double share)> progress;
};

struct Dataset {
  std::filesystem::path tokenizer;   // tokenizer.json
  std::filesystem::path train;       // train.tokens
  std::filesystem::path validation;  // validation.tokens
  int32_t vocab_size = 0;            // What the text gave: at most what was asked for.
  uint64_t text_bytes = 0;
  uint64_t train_tokens = 0;
  uint64_t validation_tokens = 0;
};

// Blocks. Errors: not_found (a text), invalid (no text, too small a vocabulary), and those of
// writing files.
Result<Dataset> make_dataset(const DatasetOptions& options);

}  // namespace troupe::training
