// What was acknowledged is there after the process is killed, and after the power is cut.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <map>
#include <mutex>

#include "tests/metadata/metadata_fixture.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// Another process that commits pairs of rows until it is killed.
class Writer {
 public:
  explicit Writer(const fs::path& path) {
    std::array<int, 2> pipe{};
    if (::pipe2(pipe.data(), O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe[1], STDOUT_FILENO);
    std::string program = METADATA_WRITER, directory = path.string();
    std::string cluster = test_cluster().to_string();
    std::array<char*, 4> arguments{program.data(), directory.data(), cluster.data(), nullptr};
    const int failed =
        ::posix_spawn(&process_, program.c_str(), &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    ::close(pipe[1]);
    acknowledged_ = ::fdopen(pipe[0], "r");
    if (failed != 0) throw std::runtime_error("no writer");
  }
  ~Writer() {
    kill();
    std::fclose(acknowledged_);
  }

  // The number of the next pair that became durable; -1 after the writer's end.
  int next() {
    int number = -1;
    return std::fscanf(acknowledged_, "%d", &number) == 1 ? number : -1;
  }
  void kill() {
    if (process_ <= 0) return;
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    process_ = -1;
  }
  pid_t process() const { return process_; }

 private:
  pid_t process_ = -1;
  FILE* acknowledged_ = nullptr;
};

TEST(Crash, AKilledHeadLosesNothingThatItAcknowledged) {
  ScratchDirectory scratch;
  const fs::path path = scratch / "metadata";
  int last = -1;
  for (int round = 0; round < 4; ++round) {
    Writer writer{path};
    for (int i = 0; i < 40 + 37 * round; ++i) {
      const int number = writer.next();
      ASSERT_GE(number, 0) << "the writer failed";
      last = std::max(last, number);
    }
    if (round == 1) {
      // The living one holds the directory; the killed one must let go of it.
      const auto refused = open_rocksdb(path, {});
      ASSERT_FALSE(refused);
      EXPECT_EQ(refused.error().code(), Code::conflict);
      EXPECT_THAT(refused.error().message(), HasSubstr(std::to_string(writer.process())));
    }
    writer.kill();
    for (int number = writer.next(); number >= 0; number = writer.next()) {
      last = std::max(last, number);
    }
    const auto store = open_rocksdb(path, {}).value();
    const int pairs = count_pairs(*store);
    EXPECT_GE(pairs, last + 1) << "an acknowledged pair is lost";
    EXPECT_EQ(store->epoch(), static_cast<uint64_t>(round + 1));
    EXPECT_TRUE(store->commit(Batch{}, store->epoch()));
  }
}

// Knows how much of each file a power cut leaves: what was appended before its last sync.
class PowerCutDisk final : public DiskFaults {
 public:
  int before_append(const std::string& path, size_t bytes) override {
    const std::lock_guard lock{mutex_};
    files_[fs::path(path).filename()].appended += bytes;
    return 0;
  }
  int before_sync(const std::string& path) override {
    const std::lock_guard lock{mutex_};
    File& file = files_[fs::path(path).filename()];
    file.syncing = file.appended;
    return 0;
  }
  void after_sync(const std::string& path) override {
    const std::lock_guard lock{mutex_};
    File& file = files_[fs::path(path).filename()];
    file.synced = file.syncing;
  }

  // Copies what the disk holds for certain.
  void copy_durable(const fs::path& from, const fs::path& to) {
    fs::create_directories(to);
    const std::lock_guard lock{mutex_};
    for (const auto& entry : fs::directory_iterator{from}) {
      const fs::path name = entry.path().filename();
      fs::copy_file(entry.path(), to / name);
      const auto file = files_.find(name);
      if (file != files_.end()) fs::resize_file(to / name, file->second.synced);
    }
  }

 private:
  struct File {
    uint64_t appended = 0;
    uint64_t syncing = 0;
    uint64_t synced = 0;
  };
  std::mutex mutex_;
  std::map<fs::path, File> files_;
};

TEST(Crash, APowerCutLosesNothingThatWasAcknowledged) {
  ScratchDirectory scratch;
  const auto disk = std::make_shared<PowerCutDisk>();
  const auto store = open_or_create(scratch / "metadata", disk);
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(store->commit(pair_of_rows(i), 1));
    if (i % 20 != 19) continue;
    const fs::path copy = scratch / ("after_" + std::to_string(i));
    disk->copy_durable(scratch / "metadata", copy);
    EXPECT_EQ(count_pairs(*open_rocksdb(copy, {}).value()), i + 1);
  }
}

}  // namespace
}  // namespace troupe
