// Files that hold secrets: whole or not there, and for their owner's eyes.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "base/status.h"

namespace troupe::security {

// Makes the directory (0700) if there is none, with its parents.
// Errors: denied, exhausted, unavailable; also denied if others may enter the one that is there.
Status make_private_directory(const std::filesystem::path& directory);

// Replaces the file by one of mode 0600: after a crash at any moment it holds the old text or the
// new one. Blocks on the disk.
Status write_private_file(const std::filesystem::path& path, std::string_view text);

// Errors: not_found, denied (others may read or write it, or it belongs to someone else), invalid
// (over 1 MiB), unavailable. Blocks on the disk.
Result<std::string> read_private_file(const std::filesystem::path& path);

// The same for what is no secret, such as a certificate: others may read it, but not write it.
Result<std::string> read_public_file(const std::filesystem::path& path);

}  // namespace troupe::security
