#include "security/join_token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/security/security_fixture.h"

namespace troupe::security {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr WallTime noon{std::chrono::hours{12}};

JoinToken make_token(const Authority& authority, uint64_t seed = 1) {
  SeededRandom random{seed};
  return make_join_token(authority.fingerprint(), random);
}

TEST(JoinToken, RoundTripsThroughItsText) {
  const JoinToken token = make_token(make_authority());
  const std::string text = to_text(token);
  EXPECT_TRUE(text.starts_with("troupe1."));
  for (const std::string& pasted : {text, "  " + text + "\r\n"}) {
    const JoinToken parsed = parse_join_token(pasted).value();
    EXPECT_EQ(parsed.authority, token.authority);
    EXPECT_EQ(parsed.secret, token.secret);
  }
}

TEST(JoinToken, TokensDiffer) {
  const Authority authority = make_authority();
  EXPECT_NE(make_token(authority, 1).secret, make_token(authority, 2).secret);
}

TEST(JoinToken, AnyDamageIsInvalidAndNeverRepeated) {
  const std::string text = to_text(make_token(make_authority()));
  std::vector<std::string> damaged{
      "",         " ",        "troupe1.",       "troupe1..", "troupe2" + text.substr(7),
      text + "0", text + ".", text + "." + text};
  for (size_t cut = 1; cut < text.size(); ++cut) damaged.push_back(text.substr(0, cut));
  for (size_t i = 0; i < text.size(); ++i) {
    damaged.push_back(text);
    damaged.back()[i] = 'x';
  }
  for (const std::string& each : damaged) {
    const auto refused = parse_join_token(each);
    ASSERT_FALSE(refused) << each;
    EXPECT_EQ(refused.error().code(), Code::invalid);
    EXPECT_THAT(refused.error().message(), Not(HasSubstr(text.substr(80))));
  }
}

TEST(JoinToken, ItsSecretIsGoodUntilItExpires) {
  const JoinToken token = make_token(make_authority());
  const JoinGrant grant = make_join_grant(token, Role::node, noon);
  const BytesView secret{token.secret};
  EXPECT_TRUE(check_join_secret(secret, grant, noon - std::chrono::nanoseconds{1}));
  const Status expired = check_join_secret(secret, grant, noon);
  ASSERT_FALSE(expired);
  EXPECT_EQ(expired.error().code(), Code::denied);
  EXPECT_THAT(expired.error().message(), HasSubstr("expired"));
}

TEST(JoinToken, AnotherSecretIsDenied) {
  const Authority authority = make_authority();
  const JoinGrant grant = make_join_grant(make_token(authority, 1), Role::node, noon);
  const WallTime now = noon - std::chrono::hours{1};
  const JoinToken other = make_token(authority, 2);
  EXPECT_EQ(check_join_secret(BytesView{other.secret}, grant, now).error().code(), Code::denied);
  EXPECT_EQ(check_join_secret({}, grant, now).error().code(), Code::denied);
  // What the head keeps is not what opens it.
  EXPECT_EQ(check_join_secret(BytesView{grant.secret_hash}, grant, now).error().code(),
            Code::denied);
}

TEST(JoinToken, ItPinsOneAuthority) {
  const Authority ours = make_authority(1), impostor = make_authority(1);
  const JoinToken token = parse_join_token(to_text(make_token(ours))).value();
  EXPECT_TRUE(check_pinned_authority(token, ours.certificate_pem()));
  EXPECT_EQ(check_pinned_authority(token, impostor.certificate_pem()).error().code(), Code::denied);
  EXPECT_EQ(check_pinned_authority(token, "nothing").error().code(), Code::data_loss);
}

TEST(Digest, IsSha256InHexadecimal) {
  // FIPS 180-4's example.
  EXPECT_EQ(to_hex(sha256("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Digest read{};
  ASSERT_TRUE(from_hex(to_hex(sha256("abc")), read));
  EXPECT_TRUE(equal_in_constant_time(read, sha256("abc")));
  EXPECT_FALSE(equal_in_constant_time(read, sha256("abd")));
}

}  // namespace
}  // namespace troupe::security
