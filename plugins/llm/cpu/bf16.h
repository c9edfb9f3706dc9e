// The upper half of a float. Conversion rounds to nearest even and keeps NaN.
#pragma once

#include <cstdint>

namespace troupe::llm::cpu {

struct bf16 {
  uint16_t bits;
};

inline float to_float(bf16 value) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16);
}
inline float to_float(float value) {
  return value;
}
inline double to_float(double value) {
  return value;
}

inline void from_float(bf16& out, float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>(value == value ? rounded : 0x7fc0);
}
inline void from_float(float& out, float value) {
  out = value;
}
inline void from_float(double& out, double value) {
  out = value;
}

}  // namespace troupe::llm::cpu
