// What a machine needs to join: a secret, and the authority to which alone it may be told.
// The text is troupe1.<SHA-256 of the authority's certificate>.<secret>, both hexadecimal. Pure
// functions; the protocol that uses them is the head's and the worker's.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/random.h"
#include "base/status.h"
#include "security/digest.h"
#include "security/identity.h"

namespace troupe::security {

struct JoinToken {
  Digest authority;                // Compare before the secret is sent to anyone.
  std::array<uint8_t, 16> secret;  // Secret.
};

// What the head keeps of a token: enough to recognise it, not to use it.
struct JoinGrant {
  Digest secret_hash;
  Role role = Role::node;  // What the one who joins becomes.
  WallTime expires;
};

JoinToken make_join_token(const Digest& authority, Random& random);
std::string to_text(const JoinToken& token);
// Spaces around the text are ignored: it is pasted. Errors: invalid (never repeats the text).
Result<JoinToken> parse_join_token(std::string_view text);

JoinGrant make_join_grant(const JoinToken& token, Role role, WallTime expires);
// Whether the secret that a stranger showed is the grant's. In constant time.
// Errors: denied (another secret, or expired; the message says which, for the audit).
Status check_join_secret(BytesView secret, const JoinGrant& grant, WallTime now);
// Whether the certificate that a head showed is the one that the token pins.
// Errors: denied, data_loss (no certificate).
Status check_pinned_authority(const JoinToken& token, std::string_view authority_pem);

}  // namespace troupe::security
