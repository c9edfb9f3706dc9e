// The texts of credentials: join tokens, and the names in certificates. The first byte says which.
#include "security/identity.h"
#include "security/join_token.h"

using namespace troupe::security;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text{reinterpret_cast<const char*>(data) + 1, size - 1};
  if (data[0] % 2 == 0) {
    const auto token = parse_join_token(text);
    if (!token) return 0;
    const auto again = parse_join_token(to_text(*token));
    if (!again || again->authority != token->authority || again->secret != token->secret) {
      __builtin_trap();
    }
  } else {
    const auto identity = parse_identity_uri(text);
    if (identity && identity_uri(*identity) != text) __builtin_trap();
  }
  return 0;
}
