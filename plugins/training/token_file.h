// Token ids on disk: 32 bytes of header, then the ids, 2 or 4 bytes each, little-endian.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "base/status.h"

namespace troupe::training {

// A mapped token file. Immutable; moving keeps the mapping. Thread-safe when const.
class TokenFile {
 public:
  // Errors: not_found, denied, unavailable, invalid (not such a file), data_loss (cut short).
  static Result<TokenFile> open(const std::filesystem::path& path);

  uint64_t size() const { return count_; }
  int32_t vocab_size() const { return vocab_size_; }  // Of the tokenizer that wrote it.
  // Copies the tokens [begin, begin + out.size()), which must exist.
  // Errors: data_loss (an id outside the vocabulary).
  Status read(uint64_t begin, std::span<int32_t> out) const;

 private:
  struct Unmap {
    size_t size_bytes;
    void operator()(const uint8_t* data) const;
  };
  std::filesystem::path path_;
  std::unique_ptr<const uint8_t, Unmap> mapping_;
  uint64_t count_ = 0;
  int32_t vocab_size_ = 0;
  uint32_t id_bytes_ = 2;
};

// Writes or replaces `path` in one step. Ids take 2 bytes if the vocabulary allows.
// Errors: invalid (an id outside the vocabulary), and those of a file that cannot be written.
Status write_token_file(const std::filesystem::path& path, std::span<const int32_t> tokens,
                        int32_t vocab_size);

}  // namespace troupe::training
