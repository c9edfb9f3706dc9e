#include "security/authority.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/security/security_fixture.h"

namespace troupe::security {
namespace {

using std::chrono::hours;
using testing::HasSubstr;

TEST(Authority, SavedOneIsLoadedAndIssuesForTheSameCluster) {
  ScratchDirectory scratch;
  const Authority made = make_authority(3);
  ASSERT_TRUE(made.save(scratch / "state/authority"));
  const Authority loaded = Authority::load(scratch / "state/authority").value();
  EXPECT_EQ(loaded.cluster(), cluster_id(3));
  EXPECT_EQ(loaded.certificate_pem(), made.certificate_pem());
  EXPECT_EQ(loaded.fingerprint(), made.fingerprint());
  EXPECT_TRUE(Credentials::load(issue_pem(loaded, Role::node, "n")));
}

TEST(Authority, ItsFilesAreForTheirOwnerOnly) {
  ScratchDirectory scratch;
  ASSERT_TRUE(make_authority().save(scratch / "ca"));
  EXPECT_EQ(mode_of(scratch / "ca"), 0700U);
  EXPECT_EQ(mode_of(scratch / "ca/authority.key"), 0600U);
  for (const auto& entry : std::filesystem::directory_iterator{scratch / "ca"}) {
    EXPECT_FALSE(entry.path().string().ends_with(".new"));
  }
}

TEST(Authority, AKeyThatOthersCanReadIsNotUsed) {
  ScratchDirectory scratch;
  ASSERT_TRUE(make_authority().save(scratch / "ca"));
  std::filesystem::permissions(scratch / "ca/authority.key", std::filesystem::perms{0644});
  const auto refused = Authority::load(scratch / "ca");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::denied);
  EXPECT_THAT(refused.error().message(),
              HasSubstr("is open to others (mode 644); chmod it to 600"));
}

TEST(Authority, ADirectoryThatOthersCanEnterIsNotUsed) {
  ScratchDirectory scratch;
  std::filesystem::create_directory(scratch / "ca");
  std::filesystem::permissions(scratch / "ca", std::filesystem::perms{0755});
  EXPECT_EQ(make_authority().save(scratch / "ca").error().code(), Code::denied);
}

TEST(Authority, IsNeverOverwritten) {
  ScratchDirectory scratch;
  const Authority first = make_authority(1);
  ASSERT_TRUE(first.save(scratch / "ca"));
  EXPECT_EQ(make_authority(2).save(scratch / "ca").error().code(), Code::conflict);
  EXPECT_EQ(Authority::load(scratch / "ca").value().fingerprint(), first.fingerprint());
}

TEST(Authority, ACrashBeforeTheCertificateWasWrittenIsMadeGood) {
  ScratchDirectory scratch;
  ASSERT_TRUE(make_authority(1).save(scratch / "ca"));
  std::filesystem::remove(scratch / "ca/authority.pem");
  write_text(scratch / "ca/authority.pem.new", "half");
  EXPECT_EQ(Authority::load(scratch / "ca").error().code(), Code::not_found);
  ASSERT_TRUE(make_authority(2).save(scratch / "ca"));
  EXPECT_EQ(Authority::load(scratch / "ca").value().cluster(), cluster_id(2));
}

TEST(Authority, DamagedAndForeignFilesAreNamed) {
  ScratchDirectory scratch;
  ASSERT_TRUE(make_authority().save(scratch / "ca"));
  const auto key_path = scratch / "ca/authority.key", pem_path = scratch / "ca/authority.pem";
  const std::string key = read_text(key_path), pem = read_text(pem_path);
  const auto message_of_load = [&] {
    const auto refused = Authority::load(scratch / "ca");
    EXPECT_EQ(refused.error().code(), Code::data_loss);
    return refused.error().message();
  };
  std::string tampered = key;
  std::swap(tampered[60], tampered[61]);
  tampered[70] = tampered[70] == 'A' ? 'B' : 'A';
  write_text(key_path, tampered);
  EXPECT_THAT(message_of_load(), HasSubstr("authority.key"));
  write_text(key_path, key.substr(0, key.size() / 2));
  EXPECT_THAT(message_of_load(), HasSubstr("authority.key is no private key"));
  write_text(key_path, "");
  EXPECT_THAT(message_of_load(), HasSubstr("authority.key is no private key"));
  write_text(key_path, issue_pem(make_authority(), Role::head, "h").key_pem);
  EXPECT_THAT(message_of_load(), HasSubstr("do not belong together"));
  write_text(key_path, key);
  write_text(pem_path, pem.substr(0, pem.size() / 2));
  EXPECT_THAT(message_of_load(), HasSubstr("authority.pem is no certificate"));
  // A member's certificate and key belong together, yet make no authority.
  const CredentialsPem member = issue_pem(make_authority(), Role::head, "h");
  write_text(pem_path, member.certificate_pem);
  write_text(key_path, member.key_pem);
  EXPECT_THAT(message_of_load(), HasSubstr("is not an authority's own certificate"));
}

TEST(Authority, NamesAndLifetimesAreChecked) {
  const Authority authority = make_authority();
  const auto code_of = [&](const IdentitySpec& spec) {
    const auto issued = authority.issue(spec, real_now());
    return issued ? Code::ok : issued.error().code();
  };
  const IdentitySpec good{.role = Role::node, .name = "a-1.b_2"};
  EXPECT_EQ(code_of(good), Code::ok);
  EXPECT_EQ(code_of({.role = Role::unknown, .name = "a"}), Code::invalid);
  EXPECT_EQ(code_of({.role = Role{99}, .name = "a"}), Code::invalid);
  for (const std::string& name :
       {std::string{}, std::string{"a/b"}, std::string{"a,URI:x"}, std::string{"a b"},
        std::string("a\0b", 3), std::string(65, 'a')}) {
    EXPECT_EQ(code_of({.role = Role::node, .name = name}), Code::invalid) << name;
  }
  for (const char* name : {"", "a,DNS:b", "*.a", "-a", ".a", "a b"}) {
    EXPECT_EQ(code_of({.role = Role::node, .name = "a", .dns_names = {name}}), Code::invalid);
  }
  for (const char* address : {"", "10.0.0", "10.0.0.256", "localhost", "::g"}) {
    EXPECT_EQ(code_of({.role = Role::node, .name = "a", .ip_addresses = {address}}), Code::invalid);
  }
  EXPECT_EQ(code_of({.role = Role::node, .name = "a", .lifetime = hours{0}}), Code::invalid);
  EXPECT_EQ(code_of({.role = Role::node, .name = "a", .lifetime = hours{-1}}), Code::invalid);
  EXPECT_EQ(code_of({.role = Role::node, .name = "a", .lifetime = hours{24 * 366 * 50}}),
            Code::invalid);
}

TEST(Authority, NoCertificateOutlivesTheAuthority) {
  const WallTime born = real_now() - hours{24 * 365 * 9};
  const Authority old = Authority::create(cluster_id(1), born).value();
  const IssuedIdentity issued =
      old.issue({.role = Role::node, .name = "n", .lifetime = hours{24 * 365 * 5}}, real_now())
          .value();
  const auto loaded =
      Credentials::load({old.certificate_pem(), issued.certificate_pem, issued.key_pem}).value();
  EXPECT_LE(loaded->expires(), born + hours{24 * 3653});
  EXPECT_GE(loaded->expires(), born + hours{24 * 3652});
}

TEST(Authority, ExpiryIsIssueTimePlusLifetime) {
  const Authority authority = make_authority();
  const WallTime now = std::chrono::floor<std::chrono::seconds>(real_now());
  const IssuedIdentity issued =
      authority.issue({.role = Role::node, .name = "n", .lifetime = hours{48}}, now).value();
  EXPECT_EQ(Credentials::load({authority.certificate_pem(), issued.certificate_pem, issued.key_pem})
                .value()
                ->expires(),
            now + hours{48});
}

TEST(Authority, CertifiesAKeyThatItNeverSaw) {
  const Authority authority = make_authority();
  const CertificateRequest request = make_certificate_request().value();
  EXPECT_THAT(request.request_pem, testing::Not(HasSubstr("PRIVATE")));
  const std::string certificate =
      authority.certify(request.request_pem, {.role = Role::node, .name = "n"}, real_now()).value();
  const auto loaded =
      Credentials::load({authority.certificate_pem(), certificate, request.key_pem}).value();
  EXPECT_EQ(loaded->self().role, Role::node);
  EXPECT_EQ(loaded->self().name, "n");
}

TEST(Authority, ADamagedRequestIsInvalid) {
  const Authority authority = make_authority();
  const std::string good = make_certificate_request().value().request_pem;
  const IdentitySpec spec{.role = Role::node, .name = "n"};
  EXPECT_EQ(authority.certify("", spec, real_now()).error().code(), Code::invalid);
  EXPECT_EQ(authority.certify(good.substr(0, 100), spec, real_now()).error().code(), Code::invalid);
  // Each changed character breaks the form or the signature.
  for (size_t i = 60; i + 40 < good.size(); i += 11) {
    std::string changed = good;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    if (good[i] == '\n') continue;
    EXPECT_FALSE(authority.certify(changed, spec, real_now())) << i;
  }
}

TEST(IdentityUri, RoundTripsAndRefusesEverythingElse) {
  const std::string cluster = cluster_id(1).to_string();
  const PeerIdentity parsed = parse_identity_uri("troupe://" + cluster + "/gateway/g.1").value();
  EXPECT_EQ(parsed.role, Role::gateway);
  EXPECT_EQ(identity_uri(parsed), "troupe://" + cluster + "/gateway/g.1");
  for (const std::string& uri :
       {std::string{}, "http://" + cluster + "/node/n", "troupe://" + cluster,
        "troupe://" + cluster + "/node", "troupe://" + cluster + "/node/",
        "troupe://" + cluster + "/boss/n", "troupe://" + cluster + "/unknown/n",
        "troupe://" + cluster + "/node/a/b", std::string{"troupe://short/node/n"},
        std::string{"troupe:///node/n"}}) {
    const auto refused = parse_identity_uri(uri);
    ASSERT_FALSE(refused) << uri;
    EXPECT_EQ(refused.error().code(), Code::denied);
  }
}

}  // namespace
}  // namespace troupe::security
