// Replaces a file in one step: everything goes to a temporary file beside it, which is synced and
// renamed over it. Whatever fails, the old file stays as it was.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "base/status.h"

namespace troupe::llm {

// The error for a failed system call on `path`, from errno's value.
Error file_error(const std::filesystem::path& path, const char* doing, int error_number);

// Create, append..., commit. Without commit the destructor removes the temporary file. Blocks.
class AtomicFile {
 public:
  static Result<AtomicFile> create(const std::filesystem::path& path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  Status append(std::span<const uint8_t> bytes);
  // After this the new content is on disk under its name.
  Status commit();

 private:
  AtomicFile(std::filesystem::path path, std::filesystem::path temporary, int descriptor);

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_;
};

}  // namespace troupe::llm
