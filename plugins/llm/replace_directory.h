// Replaces a directory of files in one step. Private to plugins/llm.
#pragma once

#include <filesystem>
#include <set>
#include <string>

#include "base/status.h"

namespace troupe::llm {

// Files go into staging(), a new directory beside the target; commit() puts it in the target's
// place. Without commit the destructor removes it. Blocks. One writer at a time a target.
class DirectoryReplacement {
 public:
  // Errors: conflict (the target is no directory of plain files), denied, exhausted, unavailable.
  static Result<DirectoryReplacement> create(const std::filesystem::path& target);
  DirectoryReplacement(DirectoryReplacement&& other) noexcept;
  DirectoryReplacement& operator=(DirectoryReplacement&&) = delete;
  ~DirectoryReplacement();

  const std::filesystem::path& staging() const { return staging_; }

  // Files of the old directory that are neither staged nor in `dropped` come along. After this
  // the new directory is on disk under its name, and the old one is gone.
  Status commit(const std::set<std::string>& dropped);

 private:
  DirectoryReplacement(std::filesystem::path target, std::filesystem::path staging);

  std::filesystem::path target_;
  std::filesystem::path staging_;  // Empty once there is nothing to remove.
};

}  // namespace troupe::llm
