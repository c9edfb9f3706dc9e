// Cap'n Proto 0.9's headers leave these to C++20's rewriting of operators, from which newer rules,
// which clang 16 follows and GCC 12 does not, except classes that have operator!= too.
#pragma once

#include <kj/string.h>

namespace kj {
inline bool operator==(const char* a, const StringPtr& b) {
  return b == StringPtr(a);
}
inline bool operator!=(const char* a, const StringPtr& b) {
  return !(a == b);
}
}  // namespace kj
