// SHA-256, hexadecimal and comparison in constant time.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "base/bytes.h"

namespace troupe::security {

using Digest = std::array<uint8_t, 32>;

Digest sha256(BytesView bytes);
inline Digest sha256(std::string_view text) {
  return sha256(as_bytes(text));
}

// The same of bytes that come piece by piece. finish() once, at the end.
class Hasher {
 public:
  Hasher();
  void add(BytesView bytes);
  Digest finish();

 private:
  struct Free {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, Free> context_;
};

// Lower case, two digits a byte.
std::string to_hex(BytesView bytes);
// Fills `out`; false if `text` is not exactly so many digits (of either case).
bool from_hex(std::string_view text, std::span<uint8_t> out);

// Takes the same time wherever the two differ.
bool equal_in_constant_time(const Digest& a, const Digest& b);

}  // namespace troupe::security
