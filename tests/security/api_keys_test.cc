#include "security/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "security/audit.h"
#include "tests/security/security_fixture.h"

namespace troupe::security {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;

class ApiKeysTest : public testing::Test {
 protected:
  ApiKeys load() { return ApiKeys::load(path_).value(); }
  std::string create(ApiKeys& keys, std::string_view name, Scope scope) {
    return keys.create(name, scope, now_, random_).value();
  }
  Code verdict(const ApiKeys& keys, std::string_view text, Scope needed = Scope::inference) {
    const auto found = keys.verify(text, needed);
    return found ? Code::ok : found.error().code();
  }

  ScratchDirectory scratch_;
  const std::filesystem::path path_ = scratch_ / "api_keys.json";
  const WallTime now_ = WallTime{std::chrono::seconds{1'700'000'000}};
  SystemRandom random_;
};

TEST_F(ApiKeysTest, ANewKeyIsVerifiedNowAndAfterReloading) {
  ApiKeys keys = load();
  const std::string text = create(keys, "ci", Scope::inference);
  EXPECT_THAT(text, MatchesRegex("trp_[0-9a-f]+"));
  EXPECT_EQ(text.size(), 68U);
  for (const ApiKeys& each : {keys, load()}) {
    const ApiKey found = each.verify(text, Scope::inference).value();
    EXPECT_EQ(found.name, "ci");
    EXPECT_EQ(found.created, std::chrono::sys_seconds{std::chrono::seconds{1'700'000'000}});
  }
}

TEST_F(ApiKeysTest, TheFileHoldsNoKeyAndIsPrivate) {
  ApiKeys keys = load();
  const std::string text = create(keys, "ci", Scope::admin);
  EXPECT_EQ(mode_of(path_), 0600U);
  const std::string file = read_text(path_);
  EXPECT_THAT(file, HasSubstr("\"ci\""));
  EXPECT_THAT(file, Not(HasSubstr(text.substr(4, 16))));
  EXPECT_EQ(verdict(keys, to_hex(keys.keys()[0].hash)), Code::denied);  // The hash opens nothing.
}

TEST_F(ApiKeysTest, OtherTextsAreDenied) {
  ApiKeys keys = load();
  EXPECT_EQ(verdict(keys, ""), Code::denied);
  const std::string text = create(keys, "ci", Scope::inference);
  create(keys, "other", Scope::inference);
  EXPECT_EQ(verdict(keys, ""), Code::denied);
  EXPECT_EQ(verdict(keys, text.substr(4)), Code::denied);
  EXPECT_EQ(verdict(keys, text + " "), Code::denied);
  std::string changed = text;
  changed.back() = changed.back() == '0' ? '1' : '0';
  EXPECT_EQ(verdict(keys, changed), Code::denied);
}

TEST_F(ApiKeysTest, AnInferenceKeyIsNoAdmins) {
  ApiKeys keys = load();
  const std::string weak = create(keys, "app", Scope::inference);
  const std::string strong = create(keys, "boss", Scope::admin);
  EXPECT_EQ(verdict(keys, weak, Scope::admin), Code::denied);
  EXPECT_EQ(verdict(load(), weak, Scope::admin), Code::denied);
  EXPECT_EQ(verdict(load(), strong, Scope::admin), Code::ok);
  EXPECT_EQ(verdict(load(), strong, Scope::inference), Code::ok);
}

TEST_F(ApiKeysTest, NamesAreUniqueAndPlain) {
  ApiKeys keys = load();
  create(keys, "ci", Scope::inference);
  EXPECT_EQ(keys.create("ci", Scope::admin, now_, random_).error().code(), Code::conflict);
  EXPECT_EQ(keys.create("", Scope::admin, now_, random_).error().code(), Code::invalid);
  EXPECT_EQ(keys.create("a b", Scope::admin, now_, random_).error().code(), Code::invalid);
  EXPECT_EQ(load().keys().size(), 1U);
}

TEST_F(ApiKeysTest, ARevokedKeyIsDenied) {
  ApiKeys keys = load();
  const std::string gone = create(keys, "gone", Scope::inference);
  const std::string kept = create(keys, "kept", Scope::inference);
  ASSERT_TRUE(keys.revoke("gone"));
  EXPECT_EQ(keys.revoke("gone").error().code(), Code::not_found);
  for (const ApiKeys& each : {keys, load()}) {
    EXPECT_EQ(verdict(each, gone), Code::denied);
    EXPECT_EQ(verdict(each, kept), Code::ok);
  }
}

TEST_F(ApiKeysTest, AKeyThatCouldNotBeSavedDoesNotExist) {
  ApiKeys keys = ApiKeys::load(scratch_ / "no such folder/keys.json").value();
  EXPECT_EQ(keys.create("ci", Scope::inference, now_, random_).error().code(), Code::not_found);
  EXPECT_TRUE(keys.keys().empty());
}

TEST_F(ApiKeysTest, ADamagedFileIsRefusedWhole) {
  ApiKeys keys = load();
  create(keys, "ci", Scope::inference);
  const std::string good = read_text(path_);
  const auto code_with = [&](std::string_view from, std::string_view to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    write_text(path_, text);
    const auto loaded = ApiKeys::load(path_);
    return loaded ? Code::ok : loaded.error().code();
  };
  EXPECT_EQ(code_with("\"ci\"", "\"ci\""), Code::ok);
  EXPECT_EQ(code_with("inference", "everything"), Code::data_loss);
  EXPECT_EQ(code_with("\"scope\"", "\"skope\""), Code::data_loss);
  EXPECT_EQ(code_with("\"sha256\":\"", "\"sha256\":\"0"), Code::data_loss);
  EXPECT_EQ(code_with("1700000000", "\"then\""), Code::data_loss);
  EXPECT_EQ(code_with("\"keys\"", "\"kezs\""), Code::data_loss);
  EXPECT_EQ(code_with("\"version\":1", "\"version\":2"), Code::unimplemented);
  EXPECT_EQ(code_with("}", ""), Code::data_loss);
  write_text(path_, "");
  EXPECT_EQ(ApiKeys::load(path_).error().code(), Code::data_loss);
}

TEST_F(ApiKeysTest, AFileThatOthersCanReadIsRefused) {
  ApiKeys keys = load();
  create(keys, "ci", Scope::inference);
  std::filesystem::permissions(path_, std::filesystem::perms{0604});
  EXPECT_EQ(ApiKeys::load(path_).error().code(), Code::denied);
}

TEST(Audit, EachDecisionIsOneLine) {
  std::vector<AuditLine> lines;
  const Audit audit{[&](const AuditLine& line) { lines.push_back(line); }};
  audit.admit(audit_name({.role = Role::node, .name = "n-1"}), "connect", "certificate");
  audit.refuse("unknown 10.0.0.7", "join", "the join token has expired");
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0].who, "node n-1");
  EXPECT_EQ(lines[0].what, "connect");
  EXPECT_EQ(lines[0].decision, Decision::admitted);
  EXPECT_EQ(lines[1].decision, Decision::refused);
  EXPECT_EQ(lines[1].reason, "the join token has expired");
}

TEST(Audit, AStrangersTextForgesNoLineAndFloodsNone) {
  std::vector<AuditLine> lines;
  const Audit audit{[&](const AuditLine& line) { lines.push_back(line); }};
  audit.refuse("eve\naudit who=admin\x1b[2J", std::string(100000, 'x'), "no");
  EXPECT_EQ(lines[0].who, "eve?audit who=admin?[2J");
  EXPECT_EQ(lines[0].what.size(), 256U);
}

}  // namespace
}  // namespace troupe::security
