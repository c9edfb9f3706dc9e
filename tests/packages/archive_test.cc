#include "packages/archive.h"

#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>

#include "security/digest.h"
#include "tests/packages/temporary_folder.h"

namespace troupe::packages {
namespace {

namespace fs = std::filesystem;
using ArchiveTest = FolderTest;

void expect_error(const Result<PackageFilePointer>& packed, Code code, const std::string& text) {
  ASSERT_FALSE(packed);
  EXPECT_EQ(packed.error().code(), code) << packed.error().to_string();
  EXPECT_NE(packed.error().message().find(text), std::string::npos) << packed.error().message();
}

TEST_F(ArchiveTest, WhatWasPackedIsUnpackedReadOnly) {
  write(root / "from/code/run.sh", "echo");
  fs::permissions(root / "from/code/run.sh", fs::perms::owner_all);
  write(root / "from/data.txt", std::string(3 << 20, 'x') + "end");
  write(root / "from/.git/config", "secret");
  fs::create_directory(root / "from/empty");
  fs::create_symlink("../data.txt", root / "from/code/link");
  const auto packed = pack(root / "from");
  ASSERT_TRUE(packed) << packed.error().to_string();
  ASSERT_TRUE(unpack(**packed, root / "to"));
  EXPECT_EQ(names_in(root / "to"),
            (std::vector<std::string>{"code", "code/link", "code/run.sh", "data.txt", "empty"}));
  EXPECT_EQ(read(root / "to/code/link"), read(root / "from/data.txt"));
  struct stat status {};
  ASSERT_EQ(::stat((root / "to/code/run.sh").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0555U);
  ASSERT_EQ(::stat((root / "to/data.txt").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0444U);
  ASSERT_EQ(::stat((root / "to").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0555U);
  remove_unpacked(root / "to");
  EXPECT_FALSE(fs::exists(root / "to"));
}

TEST_F(ArchiveTest, TheSameContentHasTheSameHash) {
  for (const char* folder : {"a", "b"}) {
    for (const char* name : {"x", "y/z", "y-"}) write(root / folder / name, name);
  }
  fs::last_write_time(root / "b/x", fs::file_time_type::clock::now() - std::chrono::hours(1));
  const auto a = pack(root / "a").value();
  const auto b = pack(root / "b").value();
  EXPECT_EQ(a->hash, b->hash);
  EXPECT_EQ(a->size_bytes, b->size_bytes);
  Bytes all;
  while (all.size() < a->size_bytes) {
    const Bytes chunk = read_chunk(*a, all.size()).value();
    all.insert(all.end(), chunk.begin(), chunk.end());
  }
  EXPECT_EQ(a->hash, security::to_hex(security::sha256(BytesView(all))));
  write(root / "b/x", "other");
  EXPECT_NE(pack(root / "b").value()->hash, a->hash);
}

TEST_F(ArchiveTest, WhatCannotBeSentIsRefused) {
  expect_error(pack(root / "missing"), Code::not_found, "missing");
  write(root / "file", "x");
  expect_error(pack(root / "file"), Code::invalid, "no directory");
  fs::create_directory(root / "links");
  fs::create_symlink("/etc/passwd", root / "links/out");
  expect_error(pack(root / "links"), Code::invalid, "leads out");
  const int listening = ::socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  fs::create_directory(root / "sockets");
  (root / "sockets/s").string().copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(::bind(listening, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  expect_error(pack(root / "sockets"), Code::invalid, "no file, directory or link");
  ::close(listening);
}

TEST_F(ArchiveTest, LimitsHold) {
  write(root / "from/a", std::string(100, 'a'));
  write(root / "from/b/c", std::string(100, 'b'));
  EXPECT_TRUE(pack(root / "from", {.bytes_max = 200, .entries_max = 3}));
  expect_error(pack(root / "from", {.bytes_max = 199, .entries_max = 3}), Code::invalid,
               "more than");
  expect_error(pack(root / "from", {.bytes_max = 200, .entries_max = 2}), Code::invalid,
               "more than 2 files");
  const auto packed = pack(root / "from").value();
  for (const auto& limits : {ArchiveOptions{.bytes_max = 199, .entries_max = 3},
                             ArchiveOptions{.bytes_max = 200, .entries_max = 2}}) {
    const Status unpacked = unpack(*packed, root / "to", limits);
    ASSERT_FALSE(unpacked);
    EXPECT_EQ(unpacked.error().code(), Code::data_loss);
    EXPECT_FALSE(fs::exists(root / "to"));
  }
}

TEST_F(ArchiveTest, OfACheckpointAllIsKeptAndLiesWhereItIsTold) {
  write(root / "from/.git/config", "its own affair");
  write(root / "from/values", "7");
  fs::create_directories(root / "states");
  const auto packed = pack(root / "from", checkpoint_archive(root / "states"));
  ASSERT_TRUE(packed) << packed.error().to_string();
  EXPECT_TRUE(fs::is_empty(root / "states"));  // It has no name.
  ASSERT_TRUE(unpack(**packed, root / "to", checkpoint_archive()));
  EXPECT_EQ(read(root / "to/.git/config"), "its own affair");
  expect_error(pack(root / "from", checkpoint_archive(root / "missing")), Code::not_found,
               "missing");
  expect_error(pack(root / "nowhere", checkpoint_archive(root / "states")), Code::not_found,
               "find the checkpoint");
}

TEST_F(ArchiveTest, AFullDiskForACheckpointSaysSo) {
  write(root / "from/values", std::string(10'000, 'x'));
  const rlimit small{4096, RLIM_INFINITY};
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto packed = pack(root / "from", checkpoint_archive(root));
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old);
  expect_error(packed, Code::exhausted, root.string());
}

// An archive that somebody wrote by hand.
class Forged {
 public:
  Forged& add(char kind, const std::string& name, const std::string& content) {
    text_ += kind;
    number(name.size(), 4);
    text_ += name;
    number(content.size(), 8);
    text_ += content;
    return *this;
  }
  PackageFilePointer end(const fs::path& at, const std::string& rest = "e") {
    std::ofstream{at, std::ios::binary} << text_ << rest;
    return open_package(at).value();
  }

 private:
  void number(size_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) text_ += static_cast<char>(value >> (8 * i));
  }
  std::string text_ = "troupe archive 1\n";
};

TEST_F(ArchiveTest, NothingIsWrittenOutside) {
  const std::vector<std::pair<const char*, Forged>> forged = {
      {"a parent", Forged().add('f', "../out", "x")},
      {"an absolute name", Forged().add('f', (root / "out").string(), "x")},
      {"a parent further down", Forged().add('d', "a", "").add('f', "a/../../out", "x")},
      {"a link that leads out", Forged().add('l', "a", "..")},
      {"an absolute link", Forged().add('l', "a", root.string())},
      {"through a link", Forged().add('l', "a", "b").add('f', "a/out", "x")},
      {"without its directory", Forged().add('f', "a/b", "x")},
      {"in a file", Forged().add('f', "a", "x").add('f', "a/b", "x")},
      {"twice", Forged().add('l', "a", "b").add('f', "a", "x")},
      {"no kind", Forged().add('p', "a", "")},
      {"a directory with content", Forged().add('d', "a", "x")},
  };
  for (auto [what, archive] : forged) {
    const auto file = archive.end(root / "archive");
    EXPECT_FALSE(unpack(*file, root / "to")) << what;
    EXPECT_FALSE(fs::exists(root / "to")) << what;
    EXPECT_FALSE(fs::exists(root / "out")) << what;
    EXPECT_FALSE(fs::exists(root / "b")) << what;
  }
}

TEST_F(ArchiveTest, ADamagedArchiveIsRefusedWhereverItEnds) {
  const std::string whole = read([&] {
    Forged().add('d', "a", "").add('f', "a/b", "content").end(root / "whole");
    return root / "whole";
  }());
  for (size_t size = 0; size < whole.size(); ++size) {
    write(root / "cut", whole.substr(0, size));
    const Status unpacked = unpack(*open_package(root / "cut").value(), root / "to");
    ASSERT_FALSE(unpacked) << size;
    EXPECT_EQ(unpacked.error().code(), Code::data_loss);
    ASSERT_FALSE(fs::exists(root / "to")) << size;
  }
  write(root / "longer", whole + "x");
  EXPECT_FALSE(unpack(*open_package(root / "longer").value(), root / "to"));
  ASSERT_TRUE(unpack(*open_package(root / "whole").value(), root / "to"));
  // What is there is left alone.
  EXPECT_FALSE(unpack(*open_package(root / "whole").value(), root / "to"));
  EXPECT_EQ(read(root / "to/a/b"), "content");
}

}  // namespace
}  // namespace troupe::packages
