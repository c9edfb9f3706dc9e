#include "packages/folder.h"

#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "security/digest.h"
#include "tests/packages/temporary_folder.h"

namespace troupe::packages {
namespace {

namespace fs = std::filesystem;

class PackageFolder : public FolderTest {
 protected:
  Folder open() { return Folder::open(root / "packages").value(); }
  static std::string hash_of(const std::string& text) {
    return security::to_hex(security::sha256(text));
  }
  static Result<PackageFilePointer> put(const Folder& folder, const std::string& text) {
    auto incoming = folder.receive(hash_of(text));
    if (!incoming) return std::move(incoming).error();
    TROUPE_CHECK((*incoming)->append(as_bytes(text)));
    return (*incoming)->finish();
  }
};

TEST_F(PackageFolder, KeepsWhatIsWholeAcrossItsOwnersEnd) {
  const Folder folder = open();
  const auto file = put(folder, "content");
  ASSERT_TRUE(file) << file.error().to_string();
  EXPECT_EQ(as_text(read_chunk(**file, 0).value()), "content");
  const auto again = open();
  EXPECT_TRUE(again.has_file(hash_of("content")));
  ASSERT_EQ(again.list().size(), 1U);
  EXPECT_EQ(again.list()[0].size_bytes, 7U);
}

TEST_F(PackageFolder, OtherBytesAreRefusedAndLeaveNothing) {
  const Folder folder = open();
  auto incoming = folder.receive(hash_of("expected")).value();
  ASSERT_TRUE(incoming->append(as_bytes("something else")));
  const auto finished = incoming->finish();
  ASSERT_FALSE(finished);
  EXPECT_EQ(finished.error().code(), Code::data_loss);
  incoming.reset();
  EXPECT_TRUE(fs::is_empty(root / "packages"));
  EXPECT_EQ(folder.receive("../../etc/passwd").error().code(), Code::invalid);
}

TEST_F(PackageFolder, ForgetsWhatWasLeftHalfDone) {
  {
    const Folder folder = open();
    auto incoming = folder.receive(hash_of("x")).value();
    ASSERT_TRUE(incoming->append(as_bytes("x")));
    // As when the process is killed here.
    fs::copy(fs::directory_iterator(root / "packages")->path(),
             root / "packages" / (hash_of("x") + ".part-kept"));
    write(root / "packages" / (hash_of("y") + ".d.part") / "file", "y");
  }
  (void)open();
  EXPECT_TRUE(fs::is_empty(root / "packages"));
}

TEST_F(PackageFolder, UnpacksAndRemoves) {
  write(root / "from/a/b", "text");
  const auto packed = pack(root / "from").value();
  const Folder folder = open();
  auto incoming = folder.receive(packed->hash).value();
  ASSERT_TRUE(incoming->append(read_chunk(*packed, 0).value()));
  const auto file = incoming->finish().value();
  ASSERT_TRUE(folder.unpack_file(*file));
  EXPECT_FALSE(folder.has_file(packed->hash));
  EXPECT_TRUE(folder.has_unpacked(packed->hash));
  EXPECT_EQ(read(fs::path(folder.unpacked_of(packed->hash)) / "a/b"), "text");
  const auto entries = folder.list();
  ASSERT_EQ(entries.size(), 1U);
  EXPECT_TRUE(entries[0].is_unpacked);
  EXPECT_EQ(entries[0].size_bytes, 4U);
  folder.remove(entries[0]);
  EXPECT_TRUE(fs::is_empty(root / "packages"));
}

TEST_F(PackageFolder, AFullDiskSaysSoAndLeavesNothing) {
  const Folder folder = open();
  const rlimit small{4096, RLIM_INFINITY};
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto failed = put(folder, std::string(10'000, 'x'));
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code(), Code::exhausted) << failed.error().to_string();
  EXPECT_NE(failed.error().message().find("free space"), std::string::npos);
  EXPECT_TRUE(fs::is_empty(root / "packages"));
}

TEST_F(PackageFolder, IsNotOpenedWhereItCannotBe) {
  write(root / "packages", "a file");
  EXPECT_EQ(Folder::open(root / "packages").error().code(), Code::invalid);
}

TEST_F(PackageFolder, AMarkTellsOneContentFromAnother) {
  write(root / "a", "one");
  const auto before = mark_of(root / "a").value();
  EXPECT_EQ(mark_of(root / "a").value(), before);
  write(root / "b", "two");
  fs::rename(root / "b", root / "a");
  EXPECT_NE(mark_of(root / "a").value(), before);
  EXPECT_EQ(mark_of(root / "missing").error().code(), Code::not_found);
  EXPECT_EQ(mark_of(root).error().code(), Code::not_found);
}

}  // namespace
}  // namespace troupe::packages
