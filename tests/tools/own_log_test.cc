// How large the logs of daemons become.
#include "troupe/own_log.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/file_descriptor.h"

namespace troupe::tools {
namespace {

namespace fs = std::filesystem;

class OwnLog : public testing::Test {
 protected:
  OwnLog() {
    std::string pattern = "/tmp/troupe-log-XXXXXX";
    EXPECT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    path = folder / "head.log";
  }
  ~OwnLog() override {
    fs::permissions(folder, fs::perms::owner_all);
    fs::remove_all(folder);
  }

  // As a daemon's standard output and error are.
  FileDescriptor open_log() const {
    return FileDescriptor{::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)};
  }
  static void write(const FileDescriptor& log, const std::string& text) {
    EXPECT_EQ(::write(log.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }
  static std::string read(const fs::path& file) {
    std::ifstream in{file};
    return {std::istreambuf_iterator<char>{in}, {}};
  }
  size_t files() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator{folder}, {}));
  }

  fs::path folder;
  std::string path;
};

TEST_F(OwnLog, OneThatIsTooLargeGoesOnInANewFile) {
  const FileDescriptor out = open_log();
  const FileDescriptor err = open_log();
  write(out, "12345");
  ASSERT_TRUE(bound_log(path, {out.get(), err.get()}, 5));
  EXPECT_EQ(files(), 1u) << "it has no more than it may have";
  write(err, "6");
  ASSERT_TRUE(bound_log(path, {out.get(), err.get()}, 5));
  write(out, "a");
  write(err, "b");
  EXPECT_EQ(read(path + ".1"), "123456");
  EXPECT_EQ(read(path), "ab");
  struct stat status {};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777u, 0600u);
  EXPECT_NE(::fcntl(out.get(), F_GETFL) & O_APPEND, 0);
}

TEST_F(OwnLog, OneOlderFileIsKept) {
  const FileDescriptor log = open_log();
  for (const char* text : {"first", "second", "third"}) {
    write(log, text);
    ASSERT_TRUE(bound_log(path, {log.get()}, 1));
  }
  EXPECT_EQ(read(path + ".1"), "third");
  EXPECT_EQ(read(path), "");
  EXPECT_EQ(files(), 2u);
}

TEST_F(OwnLog, OutputThatGoesElsewhereIsNotTouched) {
  write(open_log(), "of a daemon before");
  const FileDescriptor journal{::open("/dev/null", O_WRONLY | O_CLOEXEC)};
  ASSERT_TRUE(bound_log(path, {journal.get()}, 1));
  EXPECT_EQ(files(), 1u);
  EXPECT_EQ(read(path), "of a daemon before");
  // As before its start, when nobody has it open.
  ASSERT_TRUE(bound_log(path, {}, 1));
  EXPECT_EQ(read(path + ".1"), "of a daemon before");
}

TEST_F(OwnLog, NoLogIsFine) {
  EXPECT_TRUE(bound_log(path, {}, 1));
  EXPECT_EQ(files(), 0u);
}

TEST_F(OwnLog, WhereNoNewOneCanBeMadeItGoesOnInTheOld) {
  const FileDescriptor log = open_log();
  write(log, "1");
  fs::create_directory(path + ".new");
  const Status failed = bound_log(path, {log.get()}, 0);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code(), Code::unavailable);
  write(log, "2");
  EXPECT_EQ(read(path), "12");
}

}  // namespace
}  // namespace troupe::tools
