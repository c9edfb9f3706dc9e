// Reads and writes safetensors files: an 8-byte length, a JSON header, then the tensors' bytes,
// little-endian, without holes. Used for model weights and for checkpoints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace troupe::llm {

enum class Dtype { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean };

// Bytes of one element.
int64_t dtype_size_bytes(Dtype dtype);
// The name in the file, e.g. "BF16".
std::string_view dtype_name(Dtype dtype);
Result<Dtype> dtype_from_name(std::string_view name);

// A named tensor in someone else's memory, row-major.
struct TensorView {
  std::string name;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> shape;      // Empty for a scalar.
  std::span<const uint8_t> bytes;  // size == product(shape) * dtype_size_bytes(dtype).
};

// A file mapped read-only. Owns the mapping: views die with it, and survive its moves. Thread-safe
// when const. Pages are read on first touch. The file must not be truncated while it is mapped;
// write_safetensors() replaces a file and leaves a mapped old one intact.
class SafetensorsFile {
 public:
  // Checks the whole header: afterwards every view lies inside the mapping.
  // Errors: not_found, denied, unavailable (no memory, no descriptors), data_loss (truncated or
  // corrupt), unimplemented (a dtype that this build does not know), invalid (not a regular file).
  static Result<SafetensorsFile> open(const std::filesystem::path& path);

  // In the order of their bytes. Files of ours start each tensor on a multiple of its element
  // size; those of others need not, so check the alignment before casting.
  const std::vector<TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Errors: not_found.
  Result<TensorView> find(std::string_view name) const;

 private:
  struct Unmap {
    size_t size_bytes;
    void operator()(const uint8_t* data) const;
  };

  std::string path_;
  std::unique_ptr<const uint8_t, Unmap> mapping_;
  std::vector<TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, size_t, std::less<>> index_;
};

// Writes or replaces `path` in one step: readers and crashes see the old file or the new one, and
// the new one is on disk when this returns. Blocks. Tensors are laid out by descending element
// size (then in the given order), so that each is aligned.
// Errors: invalid (duplicate or non-UTF-8 name, bytes that do not match the shape), exhausted (disk
// full), not_found (no such folder), denied, unavailable. The old file is untouched by an error.
Status write_safetensors(const std::filesystem::path& path, std::span<const TensorView> tensors,
                         const std::map<std::string, std::string>& metadata);

}  // namespace troupe::llm
