#include "packages/names.h"

#include <gtest/gtest.h>

#include <string>

namespace troupe::packages {
namespace {

TEST(PackageNames, OnlyNamesInsideAreTaken) {
  for (const char* name : {"a", "a/b", "a/b.c/-d", "...", "a/..b", " "}) {
    EXPECT_TRUE(is_plain_name(name)) << name;
  }
  for (const char* name :
       {"", "/", "/a", "a/", "a//b", ".", "..", "./a", "a/.", "a/../b", "../a"}) {
    EXPECT_FALSE(is_plain_name(name)) << name;
  }
  EXPECT_FALSE(is_plain_name(std::string_view("a\0b", 3)));
  EXPECT_FALSE(is_plain_name(std::string(name_bytes_max + 1, 'a')));
}

TEST(PackageNames, ALinkStaysInside) {
  EXPECT_TRUE(stays_inside("link", "a/b"));
  EXPECT_TRUE(stays_inside("link", "./a"));
  EXPECT_TRUE(stays_inside("a/link", "../b"));
  EXPECT_TRUE(stays_inside("a/b/link", "../../c/d"));
  EXPECT_FALSE(stays_inside("link", "/etc/passwd"));
  EXPECT_FALSE(stays_inside("link", ""));
  EXPECT_FALSE(stays_inside("link", "../a"));
  EXPECT_FALSE(stays_inside("a/link", "../../b"));
  // What lies behind the name may be another link.
  EXPECT_FALSE(stays_inside("a/link", "b/../c"));
  EXPECT_FALSE(stays_inside("link", std::string_view("a\0b", 3)));
}

TEST(PackageNames, AHashIsSixtyFourDigits) {
  EXPECT_TRUE(is_hash(std::string(64, 'a')));
  EXPECT_FALSE(is_hash(std::string(63, 'a')));
  EXPECT_FALSE(is_hash(std::string(64, 'A')));
  EXPECT_FALSE(is_hash(std::string(62, 'a') + "/b"));
}

}  // namespace
}  // namespace troupe::packages
