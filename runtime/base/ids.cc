#include "base/ids.h"

#include <fmt/format.h>

namespace troupe {

std::string RawId::to_string() const {
  return fmt::format("{:016x}{:016x}", high, low);
}

Result<RawId> RawId::parse(std::string_view text) {
  if (text.size() != 32)
    return error(Code::invalid,
                 fmt::format("'{}' is not an id: 32 hexadecimal digits expected", text));
  uint64_t words[2] = {0, 0};
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    uint64_t digit = 0;
    if (c >= '0' && c <= '9') {
      digit = static_cast<uint64_t>(c - '0');
    } else if (c >= 'a' && c <= 'f') {
      digit = static_cast<uint64_t>(c - 'a') + 10;
    } else {
      return error(Code::invalid,
                   fmt::format("'{}' is not an id: 32 hexadecimal digits expected", text));
    }
    words[i / 16] = words[i / 16] << 4 | digit;
  }
  return RawId{words[0], words[1]};
}

void RawId::to_bytes(uint8_t* out) const {
  for (int i = 0; i < 8; ++i) {
    out[i] = static_cast<uint8_t>(high >> (56 - 8 * i));
    out[8 + i] = static_cast<uint8_t>(low >> (56 - 8 * i));
  }
}

RawId RawId::from_bytes(BytesView bytes) {
  RawId id;
  if (bytes.size() != 16) return id;
  for (size_t i = 0; i < 8; ++i) {
    id.high = id.high << 8 | bytes[i];
    id.low = id.low << 8 | bytes[8 + i];
  }
  return id;
}

}  // namespace troupe
