// A directory as one file, the same bytes for the same content: names sorted, no times, no owners,
// of the modes only who may execute.
//
//   "troupe archive 1\n", then for each entry: a byte (d, f, x: a file to execute, l), the name's
//   length (4 bytes, little endian), the name, the content's size (8 bytes), the content (of a
//   link: its target); at the end a byte e.
//
// An adapter; blocks on the disk.
#pragma once

#include <cstdint>
#include <string>

#include "packages/file.h"

namespace troupe::packages {

struct ArchiveOptions {
  uint64_t bytes_max = uint64_t{512} << 20;
  uint64_t entries_max = 100'000;
  std::string what = "working directory";  // For people.
  bool leaves_git_out = true;
  std::string temporary_folder = {};  // Where pack() puts the archive; empty: the system's.
};
// Of a checkpoint: what is in it is its actor's own affair.
ArchiveOptions checkpoint_archive(std::string temporary_folder = {});

// Directories, regular files and symbolic links that stay inside. The archive has no name: it goes
// with the last who holds it. Errors: not_found (no such directory), invalid (over a limit, a link
// that leads out, something else than these), denied, exhausted (the disk for temporary files is
// full), conflict (a file changed meanwhile).
Result<PackageFilePointer> pack(const std::string& directory, const ArchiveOptions& options = {});

// Makes `directory`, which must not be there, with all of the archive in it, read-only: processes
// share it. Whatever fails, nothing is left of it. Errors: data_loss (no archive of ours, or one
// that would write outside), exhausted, denied.
Status unpack(const PackageFile& archive, const std::string& directory,
              const ArchiveOptions& options = {});

// A directory that unpack() made, or its beginning.
void remove_unpacked(const std::string& directory);

}  // namespace troupe::packages
