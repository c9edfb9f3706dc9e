// Files as the packages need them: read and written whole, hashed on the way. An adapter: it makes
// system calls and nothing else. Every function blocks on the disk.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/file_descriptor.h"
#include "base/status.h"

namespace troupe::packages {

inline constexpr size_t chunk_bytes = 1 << 20;
// Of one package, whatever it holds.
inline constexpr uint64_t package_bytes_max = uint64_t{2} << 30;

// A package's bytes in an open file, which may have lost its name. Immutable; thread-safe.
struct PackageFile {
  FileDescriptor file;
  std::string hash;  // SHA-256, in hexadecimal.
  uint64_t size_bytes = 0;
};
using PackageFilePointer = std::shared_ptr<const PackageFile>;

// Says what could not be done, why, and for a full disk what to do.
Error file_error(const std::string& doing, int number);

// Opens and hashes it. Errors: not_found, denied, invalid (no regular file, or too large).
Result<PackageFilePointer> open_package(const std::string& path);
// Opens what was hashed before. Errors: not_found, data_loss (another size).
Result<PackageFilePointer> open_hashed(const std::string& path, std::string hash);
// One that another process opened and hashed. Errors: invalid (no regular file, or too large).
Result<PackageFilePointer> adopt(FileDescriptor file, std::string hash);
// Up to chunk_bytes from there on; empty at the end. Errors: data_loss (it shrank), internal.
Result<Bytes> read_chunk(const PackageFile& file, uint64_t offset_bytes);
// Errors: exhausted (no room), internal.
Status write_all(int fd, BytesView bytes, const std::string& path);

// What tells one content of a local file from another without reading it.
struct FileMark {
  uint64_t device = 0;
  uint64_t inode = 0;
  int64_t changed_ns = 0;
  uint64_t size_bytes = 0;
  auto operator<=>(const FileMark&) const = default;
};
// Errors: not_found (no regular file is there).
Result<FileMark> mark_of(const std::string& path);

}  // namespace troupe::packages
