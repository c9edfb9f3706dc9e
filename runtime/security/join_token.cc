#include "security/join_token.h"

#include "security/authority.h"

namespace troupe::security {
namespace {

constexpr std::string_view prefix = "troupe1.";

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view spaces = " \t\r\n";
  const size_t first = text.find_first_not_of(spaces);
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(spaces) - first + 1);
}

}  // namespace

JoinToken make_join_token(const Digest& authority, Random& random) {
  JoinToken token{authority, {}};
  for (size_t i = 0; i < token.secret.size(); i += 8) {
    const uint64_t bits = random.next();
    for (size_t j = 0; j < 8; ++j) token.secret[i + j] = static_cast<uint8_t>(bits >> (8 * j));
  }
  return token;
}

std::string to_text(const JoinToken& token) {
  return std::string(prefix) + to_hex(token.authority) + "." + to_hex(token.secret);
}

Result<JoinToken> parse_join_token(std::string_view text) {
  text = trimmed(text);
  const auto refuse = [](const char* why) {
    return error(Code::invalid, std::string("this is no join token: ") + why);
  };
  if (!text.starts_with(prefix)) return refuse("it does not begin with troupe1.");
  text.remove_prefix(prefix.size());
  const size_t dot = text.find('.');
  if (dot == text.npos) return refuse("a part is missing");
  JoinToken token;
  if (!from_hex(text.substr(0, dot), token.authority)) return refuse("its first part is damaged");
  if (!from_hex(text.substr(dot + 1), token.secret)) return refuse("its second part is damaged");
  return token;
}

JoinGrant make_join_grant(const JoinToken& token, Role role, WallTime expires) {
  return {.secret_hash = sha256(BytesView{token.secret}), .role = role, .expires = expires};
}

Status check_join_secret(BytesView secret, const JoinGrant& grant, WallTime now) {
  const bool same = equal_in_constant_time(sha256(secret), grant.secret_hash);
  if (!same) return error(Code::denied, "the join token's secret is wrong");
  if (now >= grant.expires) return error(Code::denied, "the join token has expired");
  return ok();
}

Status check_pinned_authority(const JoinToken& token, std::string_view authority_pem) {
  TROUPE_TRY(const Digest shown, certificate_fingerprint(authority_pem));
  if (!equal_in_constant_time(shown, token.authority)) {
    return error(Code::denied, "the other side is not the cluster that the join token is of");
  }
  return ok();
}

}  // namespace troupe::security
