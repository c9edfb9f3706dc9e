// Backups: what they hold, what they copy, and what the folder lists when one fails.
#include "metadata/backup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <latch>
#include <thread>

#include "metadata/map_store.h"
#include "tests/metadata/backup_fixture.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class Backup : public BackupFixture {};

// A file system of its own, which goes with this object however the test ends.
class Mounted {
 public:
  Mounted(fs::path path, unsigned long flags, const char* options)
      : path_(std::move(path)),
        done_(::mount("tmpfs", path_.c_str(), "tmpfs", flags, options) == 0) {}
  Mounted(const Mounted&) = delete;
  Mounted& operator=(const Mounted&) = delete;
  ~Mounted() {
    if (done_) ::umount2(path_.c_str(), MNT_DETACH);
  }
  explicit operator bool() const { return done_; }
  bool resize(const char* options) const {
    return ::mount("tmpfs", path_.c_str(), "tmpfs", MS_REMOUNT, options) == 0;
  }

 private:
  const fs::path path_;
  const bool done_;
};

TEST_F(Backup, HoldsWhatTheStoreHeldThen) {
  commit_pairs(0, 50);
  const std::string hash = store_->state_hash().value();
  const BackupInfo first = take().value();
  commit_pairs(50, 80);
  const BackupInfo second = take().value();
  commit_pairs(80, 90);

  EXPECT_EQ(first.number, 1u);
  EXPECT_EQ(first.state_hash, hash);
  EXPECT_EQ(first.cluster, test_cluster());
  EXPECT_EQ(first.schema, schema_version);
  EXPECT_EQ(first.epoch, epoch_);
  EXPECT_NE(second.state_hash, first.state_hash);
  EXPECT_EQ(count_pairs(*restored(1)), 50);
  EXPECT_EQ(count_pairs(*restored(2)), 80);
  EXPECT_EQ(count_pairs(*store_), 90);

  const BackupList list = list_backups(folder_).value();
  EXPECT_THAT(list.damaged, IsEmpty());
  ASSERT_EQ(list.backups.size(), 2u);
  EXPECT_EQ(list.backups[0].state_hash, first.state_hash);
  EXPECT_EQ(list.backups[0].taken, first.taken);
  EXPECT_EQ(list.backups[0].size_bytes, first.size_bytes);
  EXPECT_EQ(list.backups[1].copied_bytes, second.copied_bytes);
}

TEST_F(Backup, CopiesOnlyWhatIsNew) {
  commit_pairs(0, 300, 10'000);  // 3 MB: more than is taken from the log.
  const BackupInfo first = take().value();
  EXPECT_EQ(first.copied_bytes, first.size_bytes);
  const auto before = contents(folder_);
  ASSERT_GT(tables_in(before), 0);
  const BackupInfo second = take().value();
  // What changes with every opening and flush is small; no table is copied twice.
  EXPECT_EQ(tables_in(contents(folder_)), tables_in(before));
  EXPECT_LT(second.copied_bytes, 20'000u);

  commit_pairs(300, 310);
  const BackupInfo third = take().value();
  EXPECT_LT(third.copied_bytes, 40'000u);
  const auto after = contents(folder_);
  for (const auto& [name, content] : before) EXPECT_EQ(after.at(name), content) << name;
  EXPECT_EQ(count_pairs(*restored(2)), 300);
  EXPECT_EQ(count_pairs(*restored(3)), 310);
}

TEST_F(Backup, LeavesTheStoreAsItWas) {
  commit_pairs(0, 20);
  const auto before = contents(live_);
  ASSERT_TRUE(take());
  EXPECT_EQ(contents(live_), before);
}

TEST_F(Backup, KeepsTheNewest) {
  for (int i = 0; i < 5; ++i) {
    commit_pairs(i * 200, i * 200 + 200, 10'000);
    ASSERT_TRUE(take());
  }
  const size_t files_before = contents(folder_).size();
  BackupOptions options = backup_options();
  options.keep = 2;
  ASSERT_EQ(back_up(*store_, options).value().number, 6u);
  EXPECT_THAT(numbers(), ElementsAre(5, 6));
  EXPECT_LT(contents(folder_).size(), files_before);
  EXPECT_EQ(count_pairs(*restored(5)), 1000);
  EXPECT_EQ(count_pairs(*restored(6)), 1000);
  // Their files are gone with them: exactly what is left would be written into a new folder.
  options = backup_options();
  options.keep = 1;
  ASSERT_TRUE(back_up(*store_, options));
  options.folder = scratch_ / "other";
  ASSERT_TRUE(back_up(*store_, options));
  EXPECT_EQ(contents(folder_).size(), contents(options.folder).size());
}

TEST_F(Backup, ADamagedFileIsWrittenAnewByTheNext) {
  commit_pairs(0, 300, 10'000);
  ASSERT_TRUE(take());
  for (const fs::path& table : files_ending(folder_ / "files", ".sst")) flip_byte(table, 100);
  ASSERT_FALSE(restore_backup(restore_options()));
  ASSERT_TRUE(take());
  EXPECT_EQ(count_pairs(*restored(2)), 300);
  EXPECT_EQ(count_pairs(*restored(1)), 300);
}

TEST_F(Backup, IsPrivate) {
  ASSERT_TRUE(take());
  for (const auto& entry : fs::recursive_directory_iterator{folder_}) {
    struct stat facts {};
    ASSERT_EQ(::stat(entry.path().c_str(), &facts), 0);
    EXPECT_EQ(facts.st_mode & 0777, entry.is_directory() ? 0700u : 0600u) << entry.path();
  }
  struct stat facts {};
  ASSERT_EQ(::stat(folder_.c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777, 0700u);
}

TEST_F(Backup, OnAFullDiskFailsWholeWhereverItIsFull) {
  commit_pairs(0, 100);
  ASSERT_TRUE(take());
  commit_pairs(100, 200);
  const auto before = contents(folder_);
  int operation = 0;
  for (;; ++operation) {
    SCOPED_TRACE(operation);
    BackupOptions options = backup_options();
    options.faults = std::make_shared<FailingFrom>(operation, ENOSPC);
    const auto made = back_up(*store_, options);
    if (made) break;
    ASSERT_EQ(made.error().code(), Code::exhausted) << made.error().message();
    EXPECT_THAT(made.error().message(), HasSubstr("make room for"));
    // Nothing is listed, and nothing takes the space that is lacking.
    ASSERT_EQ(contents(folder_), before);
  }
  EXPECT_GE(operation, 4);  // The log and the record, an append and a sync each, at least.
  EXPECT_THAT(numbers(), ElementsAre(1, 2));
  EXPECT_EQ(count_pairs(*restored(1)), 100);
  EXPECT_EQ(count_pairs(*restored(2)), 200);
}

TEST_F(Backup, TheFirstOfAFolderOnAFullDiskLeavesNone) {
  commit_pairs(0, 100);
  int operation = 0;
  for (;; ++operation) {
    SCOPED_TRACE(operation);
    BackupOptions options = backup_options();
    options.faults = std::make_shared<FailingFrom>(operation, ENOSPC);
    const auto made = back_up(*store_, options);
    if (made) break;
    ASSERT_EQ(made.error().code(), Code::exhausted) << made.error().message();
    const auto list = list_backups(folder_);
    if (list) {
      EXPECT_THAT(list->backups, IsEmpty());
      EXPECT_THAT(list->damaged, IsEmpty());
    } else {
      EXPECT_EQ(list.error().code(), Code::not_found) << list.error().message();
    }
    EXPECT_LE(contents(folder_).size(), 1u);  // Its mark.
  }
  EXPECT_GE(operation, 10);
  EXPECT_EQ(count_pairs(*restored(1)), 100);
}

TEST_F(Backup, OnAFullFileSystemFailsAndWorksOnceThereIsRoom) {
  commit_pairs(0, 100, 10'000);  // 1 MB.
  fs::create_directory(folder_);
  const Mounted small{folder_, 0, "size=512k,mode=0700"};
  if (!small) GTEST_SKIP() << "mounting a small file system is not permitted here";
  const auto refused = take();
  EXPECT_EQ(refused.error().code(), Code::exhausted);
  EXPECT_THAT(refused.error().message(), AllOf(HasSubstr("No space left"), HasSubstr("make room")));
  EXPECT_THAT(numbers(), IsEmpty());
  ASSERT_TRUE(small.resize("size=16m"));
  ASSERT_TRUE(take());
  EXPECT_EQ(count_pairs(*restored(1)), 100);
}

TEST_F(Backup, WhatACrashLeftIsNoBackupAndGoesWithTheNext) {
  commit_pairs(0, 10);
  ASSERT_TRUE(take());
  std::ofstream{folder_ / "files/0123-000099.sst"} << "half";
  std::ofstream{folder_ / "files/0123-000099.log.tmp"} << "half";
  std::ofstream{folder_ / "backups/000002.tmp"} << "half";
  EXPECT_THAT(numbers(), ElementsAre(1));
  ASSERT_TRUE(take());
  EXPECT_THAT(numbers(), ElementsAre(1, 2));
  EXPECT_FALSE(fs::exists(folder_ / "files/0123-000099.sst"));
  EXPECT_FALSE(fs::exists(folder_ / "files/0123-000099.log.tmp"));
  EXPECT_FALSE(fs::exists(folder_ / "backups/000002.tmp"));
}

TEST_F(Backup, AFolderWithSomethingElseIsLeftAlone) {
  fs::create_directory(folder_);
  std::ofstream{folder_ / "thesis.txt"} << "years of work";
  const auto before = contents(folder_);
  const Error refused = take().error();
  EXPECT_EQ(refused.code(), Code::invalid);
  EXPECT_THAT(refused.message(),
              AllOf(HasSubstr("thesis.txt"), HasSubstr("choose an empty folder")));
  EXPECT_EQ(contents(folder_), before);
  EXPECT_EQ(list_backups(folder_).error().code(), Code::invalid);
  EXPECT_EQ(list_backups(scratch_ / "nowhere").error().code(), Code::not_found);

  std::ofstream{scratch_ / "file"} << "text";
  BackupOptions options = backup_options();
  options.folder = scratch_ / "file";
  EXPECT_EQ(back_up(*store_, options).error().code(), Code::invalid);
}

TEST_F(Backup, AFolderInsideTheStoreIsRefused) {
  const auto before = contents(live_);
  fs::create_directory_symlink(live_, scratch_ / "elsewhere");
  for (const fs::path& inside : {live_, live_ / "backups", live_ / "a/../b/c",
                                 scratch_ / "elsewhere", scratch_ / "elsewhere/backups"}) {
    BackupOptions options = backup_options();
    options.folder = inside;
    const auto made = back_up(*store_, options);
    ASSERT_FALSE(made) << inside;
    EXPECT_EQ(made.error().code(), Code::invalid);
    EXPECT_THAT(made.error().message(), HasSubstr("inside the head's own store"));
  }
  EXPECT_EQ(contents(live_), before);
  // A neighbour whose name only begins alike is none of it.
  BackupOptions options = backup_options();
  options.folder = live_.string() + "-backups";
  EXPECT_TRUE(back_up(*store_, options));
}

TEST_F(Backup, AFolderThatMayNotBeWrittenIsDenied) {
  const auto expect_denied = [&] {
    const Error refused = take().error();
    EXPECT_EQ(refused.code(), Code::denied) << refused.message();
    EXPECT_THAT(refused.message(),
                AllOf(HasSubstr(folder_.string()), HasSubstr("choose a folder")));
  };
  fs::create_directory(folder_);
  if (::geteuid() == 0) {  // Who may write everywhere, but not there.
    const Mounted read_only{folder_, MS_RDONLY, "mode=0700"};
    if (!read_only) GTEST_SKIP() << "root may write everywhere, and may not mount here";
    return expect_denied();
  }
  fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
  expect_denied();
  fs::permissions(folder_, fs::perms::owner_all);
}

TEST_F(Backup, AFolderThatOthersMayWriteIsDenied) {
  fs::create_directory(folder_);
  fs::permissions(folder_, fs::perms::all);
  const Error refused = take().error();
  EXPECT_EQ(refused.code(), Code::denied);
  EXPECT_THAT(refused.message(), HasSubstr("chmod 700"));
}

TEST_F(Backup, AnotherClustersFolderIsRefused) {
  ASSERT_TRUE(take());
  SeededRandom random{1};
  const ClusterId other = ClusterId::random(random);
  const auto store =
      open_rocksdb(scratch_ / "other", {.create = true, .cluster_id = other}).value();
  const auto made = back_up(*store, backup_options());
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), Code::conflict);
  EXPECT_THAT(made.error().message(), AllOf(HasSubstr(other.to_string()), HasSubstr("choose")));
  EXPECT_THAT(numbers(), ElementsAre(1));
}

TEST_F(Backup, ADamagedStoreIsNotBackedUp) {
  commit_pairs(0, 300, 10'000);
  ASSERT_TRUE(take());  // Writes the tables.
  // Read once it was opened, so that no cache hides the damage.
  store_.reset();
  store_ = open_or_create(live_);
  const auto tables = files_ending(live_, ".sst");
  ASSERT_FALSE(tables.empty());
  flip_byte(tables.front(), fs::file_size(tables.front()) / 2);
  const auto made = take();
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), Code::data_loss);
  EXPECT_THAT(made.error().message(), HasSubstr(tables.front().filename().string()));
  EXPECT_THAT(numbers(), ElementsAre(1));
}

TEST_F(Backup, EndsWhenItIsTold) {
  commit_pairs(0, 10);
  const std::atomic<bool> stop = true;
  BackupOptions options = backup_options();
  options.stop = &stop;
  EXPECT_EQ(back_up(*store_, options).error().code(), Code::cancelled);
  EXPECT_THAT(numbers(), IsEmpty());
}

// Holds a backup up at its first write.
class Gate final : public DiskFaults {
 public:
  int before_append(const std::string&, size_t) override {
    if (!was_reached_.exchange(true)) reached_.count_down();
    open_.wait();
    return 0;
  }
  int before_sync(const std::string&) override { return 0; }
  void after_sync(const std::string&) override {}
  void wait_until_reached() { reached_.wait(); }
  void open() { open_.count_down(); }

 private:
  std::atomic<bool> was_reached_ = false;
  std::latch reached_{1};
  std::latch open_{1};
};

TEST_F(Backup, OnlyOneAtATimeUsesAFolder) {
  commit_pairs(0, 10);
  ASSERT_TRUE(take());
  commit_pairs(10, 20);
  const auto gate = std::make_shared<Gate>();
  BackupOptions options = backup_options();
  options.faults = gate;
  Result<BackupInfo> slow = error(Code::unavailable, "not made yet");
  std::thread writer{[&] { slow = back_up(*store_, options); }};
  gate->wait_until_reached();
  EXPECT_EQ(take().error().code(), Code::conflict);
  const auto restored_meanwhile = restore_backup(restore_options());
  EXPECT_EQ(restored_meanwhile.error().code(), Code::conflict);
  EXPECT_THAT(restored_meanwhile.error().message(), HasSubstr("try again"));
  EXPECT_THAT(numbers(), ElementsAre(1));
  commit_pairs(20, 30);  // The store is not held up.
  gate->open();
  writer.join();
  ASSERT_TRUE(slow) << slow.error().message();
  EXPECT_EQ(count_pairs(*restored(2)), 20);
}

TEST_F(Backup, AStoreInMemoryHasNone) {
  MapStore store{MapOptions{.cluster_id = test_cluster()}};
  EXPECT_EQ(back_up(store, backup_options()).error().code(), Code::unimplemented);
}

TEST_F(Backup, WhatACrashedHeadLeftOfACheckpointGoesAtTheNextOpening) {
  store_.reset();
  fs::create_directory(live_ / "checkpoint-1");
  std::ofstream{live_ / "checkpoint-1/000007.sst"} << "held";
  fs::create_directory(live_ / "checkpoint-2.tmp");
  store_ = open_or_create(live_);
  EXPECT_FALSE(fs::exists(live_ / "checkpoint-1"));
  EXPECT_FALSE(fs::exists(live_ / "checkpoint-2.tmp"));
}

// What was committed before a backup began is in it, what began after it is not, and no pair is
// torn; the writer goes on all the while.
TEST_F(Backup, TakenWhileSomebodyWritesIsOneMoment) {
  std::atomic<int> begun = 0;
  std::atomic<int> committed = 0;
  std::atomic<bool> done = false;
  std::thread writer{[&] {
    for (int i = 0; !done; ++i) {
      begun = i + 1;
      Batch batch = pair_of_rows(i);
      batch.put(Table::events, std::to_string(i), std::string(20'000, 'e'));
      if (!store_->commit(batch, epoch_)) return;
      committed = i + 1;
    }
  }};
  struct Moment {
    int committed_before = 0;
    int begun_after = 0;
  };
  std::vector<Moment> moments;
  for (int i = 0; i < 8; ++i) {
    const int start = committed;
    while (committed < start + 20) std::this_thread::yield();
    Moment moment;
    moment.committed_before = committed;
    const auto made = take();
    ASSERT_TRUE(made) << made.error().message();
    moment.begun_after = begun;
    moments.push_back(moment);
  }
  done = true;
  writer.join();
  for (size_t i = 0; i < moments.size(); ++i) {
    SCOPED_TRACE(i);
    const int pairs = count_pairs(*restored(static_cast<uint32_t>(i + 1)));
    EXPECT_GE(pairs, moments[i].committed_before);
    EXPECT_LE(pairs, moments[i].begun_after);
  }
}

}  // namespace
}  // namespace troupe
