#include "actor/module.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

#include "actor/host_table.h"

namespace troupe::actor {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

const fs::path modules = TROUPE_TEST_MODULES;

Result<Module> load(const std::string& module) {
  return Module::load(module, {"/nowhere", modules}, host_table());
}

void expect_error(const Result<Module>& outcome, Code code, const std::string& text) {
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code(), code) << outcome.error().to_string();
  EXPECT_THAT(outcome.error().message(), HasSubstr(text));
}

TEST(Module, LoadsByPathAndByName) {
  const auto by_path = load((modules / "libtroupe_echo.so").string());
  ASSERT_TRUE(by_path) << by_path.error().to_string();
  EXPECT_EQ(by_path->name(), "echo");
  const auto by_name = load("echo");
  ASSERT_TRUE(by_name);
  EXPECT_EQ(by_name->path(), by_path->path());
  EXPECT_EQ(by_name->version(), "1.0");
}

TEST(Module, NamesTheClassesThatExist) {
  const auto module = load("echo").value();
  EXPECT_TRUE(module.find_class("echo"));
  const auto missing = module.find_class("ecco");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code(), Code::not_found);
  EXPECT_THAT(missing.error().message(), HasSubstr("echo, troupe.tasks"));
}

TEST(Module, TellsWhatIsMissing) {
  expect_error(load("/no/such/file.so"), Code::not_found, "no such file");
  expect_error(load("no_such_plugin"), Code::not_found, "/nowhere, ");
  expect_error(load(""), Code::invalid, "no module was named");
  expect_error(load(modules.string()), Code::not_found, "no such file");
}

TEST(Module, RefusesWhatIsNoModule) {
  const fs::path text = fs::temp_directory_path() / "troupe_actor_test_text.so";
  std::ofstream(text) << "this is no shared object, however long it may be";
  expect_error(load(text.string()), Code::invalid, "cannot be loaded");
  fs::remove(text);
  expect_error(load("no_symbol"), Code::invalid, "troupe_plugin_query");
}

TEST(Module, NamesBothAbiVersions) {
  const auto outcome = load("other_abi");
  expect_error(outcome, Code::unimplemented, "9.4");
  EXPECT_THAT(outcome.error().message(), HasSubstr("runs 1.3"));
}

TEST(Module, RefusesBrokenTables) {
  const std::pair<const char*, const char*> cases[] = {{"null_table", "gave no table"},
                                                       {"small_table", "24 bytes"},
                                                       {"no_name", "no name"},
                                                       {"null_classes", "list of classes is null"},
                                                       {"null_class", "class 1 is null"},
                                                       {"small_class", "40 bytes"},
                                                       {"nameless_class", "has no name"},
                                                       {"no_call", "class b has no call"},
                                                       {"twins", "two classes are named a"}};
  for (const auto& [how, text] : cases) {
    SCOPED_TRACE(how);
    ::setenv("TROUPE_TEST_BREAK", how, 1);
    expect_error(load("broken"), Code::invalid, text);
  }
  ::setenv("TROUPE_TEST_BREAK", "refuse", 1);
  expect_error(load("broken"), Code::unavailable, "refused to load");
  ::unsetenv("TROUPE_TEST_BREAK");
  EXPECT_TRUE(load("broken"));
}

TEST(Module, TheSdksOwnIsLookedForInTheProcessAlone) {
  // This one is not linked with the SDK.
  expect_error(load(TROUPE_SDK_MODULE), Code::invalid, TROUPE_SDK_MODULE);
}

}  // namespace
}  // namespace troupe::actor
