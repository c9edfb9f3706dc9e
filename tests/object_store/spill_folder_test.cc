#include "object_store/spill_folder.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <optional>
#include <vector>

namespace troupe::object_store {
namespace {

namespace fs = std::filesystem;

class SpillFolderTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = "/tmp/troupe-spill-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    base = pattern;
    folder.emplace(SpillFolder::open(base / "node").value());
  }
  void TearDown() override { fs::remove_all(base); }

  std::vector<SpillPlace> write(uint64_t file) {
    const std::vector<BytesView> views{first, second, third};
    return folder->write(file, views).value();
  }
  fs::path path_of(uint64_t file) const { return base / "node" / fmt::format("{}.spill", file); }
  uint64_t blocks_of(uint64_t file) const {
    struct stat status {};
    EXPECT_EQ(::stat(path_of(file).c_str(), &status), 0);
    return static_cast<uint64_t>(status.st_blocks) * 512;
  }

  fs::path base;
  std::optional<SpillFolder> folder;
  const Bytes first = Bytes(100'000, 1);
  const Bytes second = Bytes(1'000'000, 2);
  const Bytes third = Bytes(5, 3);
};

TEST_F(SpillFolderTest, SeveralObjectsOfOneFileAreReadBack) {
  const auto places = write(1);
  ASSERT_EQ(places.size(), 3U);
  for (const auto& [place, object] : {std::pair{places[2], &third}, std::pair{places[0], &first},
                                      std::pair{places[1], &second}}) {
    EXPECT_EQ(place.offset_bytes % 4096, 0U);
    Bytes back(object->size());
    ASSERT_TRUE(folder->read(place, back));
    EXPECT_EQ(back, *object);
  }
  EXPECT_FALSE(folder->write(1, {})) << "a file was written over";
}

TEST_F(SpillFolderTest, AnErasedObjectGivesItsBlocksBackAndSparesTheOthers) {
  const auto places = write(1);
  const uint64_t before = blocks_of(1);
  folder->erase(places[1]);
  EXPECT_LE(blocks_of(1) + 900'000, before);
  Bytes back(first.size());
  EXPECT_TRUE(folder->read(places[0], back));
  EXPECT_EQ(back, first);
  folder->remove(1);
  EXPECT_FALSE(fs::exists(path_of(1)));
  folder->remove_folder();
  EXPECT_FALSE(fs::exists(base / "node"));
}

TEST_F(SpillFolderTest, DamageIsFound) {
  const auto places = write(1);
  Bytes back(second.size());
  {
    std::fstream file{path_of(1), std::ios::in | std::ios::out | std::ios::binary};
    file.seekp(static_cast<std::streamoff>(places[1].offset_bytes + 777));
    file.put('x');
  }
  const Status damaged = folder->read(places[1], back);
  EXPECT_EQ(damaged.error().code(), Code::data_loss);
  EXPECT_NE(damaged.error().message().find(path_of(1)), std::string::npos);
  fs::resize_file(path_of(1), places[1].offset_bytes + 10);
  EXPECT_EQ(folder->read(places[1], back).error().code(), Code::data_loss);
  folder->remove(1);
  EXPECT_EQ(folder->read(places[1], back).error().code(), Code::data_loss);
}

TEST_F(SpillFolderTest, WhatAnEarlierWorkerLeftGoesAndNothingElse) {
  write(7);
  std::ofstream{base / "node" / "notes.txt"} << "an operator's";
  const auto again = SpillFolder::open(base / "node").value();
  EXPECT_FALSE(fs::exists(path_of(7)));
  EXPECT_TRUE(fs::exists(base / "node" / "notes.txt"));
  struct stat status {};
  ASSERT_EQ(::stat((base / "node").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700U);
}

TEST_F(SpillFolderTest, AFolderThatCannotBeUsedIsRefused) {
  std::ofstream{base / "file"} << "x";
  const auto refused = SpillFolder::open(base / "file");
  EXPECT_EQ(refused.error().code(), Code::invalid);
  EXPECT_EQ(SpillFolder::open(base / "file" / "below").error().code(), Code::invalid);
  fs::create_directory_symlink(base / "node", base / "link");
  EXPECT_EQ(SpillFolder::open(base / "link").error().code(), Code::invalid);
}

TEST_F(SpillFolderTest, AFullDiskLeavesNothingBehind) {
  const fs::path small = base / "small";
  fs::create_directory(small);
  if (::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=512k") != 0) {
    GTEST_SKIP() << "needs the right to mount: " << errno;
  }
  {
    const auto tight = SpillFolder::open(small / "node").value();
    const std::vector<BytesView> views{first, second};
    const auto full = tight.write(1, views);
    EXPECT_EQ(full.error().code(), Code::exhausted);
    EXPECT_NE(full.error().message().find("--spill-dir"), std::string::npos);
    EXPECT_TRUE(fs::is_empty(small / "node"));
    EXPECT_TRUE(tight.write(2, std::vector<BytesView>{first}));
  }
  EXPECT_EQ(::umount(small.c_str()), 0);
}

}  // namespace
}  // namespace troupe::object_store
