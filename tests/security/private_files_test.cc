#include "security/private_files.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "tests/security/security_fixture.h"

namespace troupe::security {
namespace {

TEST(PrivateFile, IsReplacedWholeAndStaysPrivateUnderAnyUmask) {
  ScratchDirectory scratch;
  const mode_t umask_before = ::umask(0);
  const Status first = write_private_file(scratch / "secret", "one");
  const Status second = write_private_file(scratch / "secret", "two");
  const Status directory = make_private_directory(scratch / "a/b");
  ::umask(umask_before);
  ASSERT_TRUE(first && second && directory);
  EXPECT_EQ(read_private_file(scratch / "secret").value(), "two");
  EXPECT_EQ(mode_of(scratch / "secret"), 0600U);
  EXPECT_EQ(mode_of(scratch / "a/b"), 0700U);
  EXPECT_FALSE(std::filesystem::exists(scratch / "secret.new"));
}

TEST(PrivateFile, ReplacingAnOpenOneTakesItBack) {
  ScratchDirectory scratch;
  write_text(scratch / "secret", "old");
  std::filesystem::permissions(scratch / "secret", std::filesystem::perms{0666});
  EXPECT_EQ(read_private_file(scratch / "secret").error().code(), Code::denied);
  EXPECT_EQ(read_public_file(scratch / "secret").error().code(), Code::denied);  // Writable by all.
  ASSERT_TRUE(write_private_file(scratch / "secret", "new"));
  EXPECT_EQ(read_private_file(scratch / "secret").value(), "new");
}

TEST(PrivateFile, APlantedLinkIsNotFollowed) {
  ScratchDirectory scratch;
  write_text(scratch / "victim", "mine");
  std::filesystem::create_symlink(scratch / "victim", scratch / "secret.new");
  ASSERT_TRUE(write_private_file(scratch / "secret", "new"));
  EXPECT_EQ(read_text(scratch / "victim"), "mine");
  EXPECT_EQ(read_text(scratch / "secret"), "new");
}

TEST(PrivateFile, WhatIsMissingOrNoFileOrTooLargeIsRefused) {
  ScratchDirectory scratch;
  EXPECT_EQ(read_private_file(scratch / "none").error().code(), Code::not_found);
  EXPECT_EQ(write_private_file(scratch / "none/secret", "x").error().code(), Code::not_found);
  ASSERT_TRUE(make_private_directory(scratch / "folder"));
  EXPECT_EQ(read_private_file(scratch / "folder").error().code(), Code::invalid);
  EXPECT_EQ(write_private_file(scratch / "folder", "x").error().code(), Code::unavailable);
  const std::string largest(size_t{1} << 20, 'x');
  ASSERT_TRUE(write_private_file(scratch / "large", largest));
  EXPECT_EQ(read_private_file(scratch / "large").value().size(), largest.size());
  ASSERT_TRUE(write_private_file(scratch / "large", largest + "x"));
  EXPECT_EQ(read_private_file(scratch / "large").error().code(), Code::invalid);
}

TEST(PrivateDirectory, AFileInItsPlaceIsRefused) {
  ScratchDirectory scratch;
  write_text(scratch / "file", "");
  EXPECT_EQ(make_private_directory(scratch / "file").error().code(), Code::invalid);
  EXPECT_FALSE(make_private_directory(scratch / "file/below"));
  EXPECT_TRUE(make_private_directory(scratch / "fresh"));
  EXPECT_TRUE(make_private_directory(scratch / "fresh"));
}

}  // namespace
}  // namespace troupe::security
