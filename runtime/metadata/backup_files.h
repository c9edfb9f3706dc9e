// Files of backups: written whole, synced, or gone again; verified by their hashes. Private to this
// folder.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/status.h"
#include "metadata/rocks_store.h"

namespace troupe {

struct FileContent {
  uint64_t size_bytes = 0;
  std::string hash;  // XXH3, 128 bits: against damage, not against forgery.
  friend bool operator==(const FileContent&, const FileContent&) = default;
};

std::string hash_of(std::string_view text);

// Errors of all: not_found, denied, exhausted, unavailable; `cancelled` where they take `stop`.
struct FileHelp {
  DiskFaults* faults = nullptr;
  const std::atomic<bool>* stop = nullptr;
};
Result<FileContent> read_content(const std::filesystem::path& path, const FileHelp& help);
// `to` is made (0600), or replaced, and synced. Returns what was read from `from`.
Result<FileContent> copy_file(const std::filesystem::path& from, const std::filesystem::path& to,
                              const FileHelp& help);
// Replaces the file: after a crash it holds the old text, or the new one, or is not there.
Status write_text(const std::filesystem::path& path, std::string_view text, const FileHelp& help);
// At most 16 MiB.
Result<std::string> read_text(const std::filesystem::path& path);
// Makes the names in it durable.
Status sync_directory(const std::filesystem::path& path);

// A text with a hash of itself as its last line.
std::string seal(std::string text);
// What was sealed. Errors: data_loss (names the file).
Result<std::string> unseal(std::string_view sealed, const std::filesystem::path& path);

}  // namespace troupe
