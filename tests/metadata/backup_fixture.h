// What the tests of backups share: a store that is in use, a folder of its backups, a disk that
// fails at a chosen moment.
#pragma once

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <map>

#include "metadata/backup.h"
#include "tests/metadata/metadata_fixture.h"

namespace troupe {

// Fails from its n-th operation on.
class FailingFrom final : public DiskFaults {
 public:
  FailingFrom(int operation, int error_number) : left_(operation), errno_(error_number) {}
  int before_append(const std::string&, size_t) override { return next(); }
  int before_sync(const std::string&) override { return next(); }
  void after_sync(const std::string&) override {}

 private:
  int next() { return left_-- > 0 ? 0 : errno_; }
  std::atomic<int> left_;
  const int errno_;
};

class BackupFixture : public testing::Test {
 protected:
  using Path = std::filesystem::path;

  void SetUp() override { store_ = open_or_create(live_); }

  // Pairs `first` to `last`, of which a thousand are some 120 kB.
  void commit_pairs(int first, int last, size_t value_bytes = 100) {
    for (int i = first; i < last; ++i) {
      Batch batch;
      batch.put(Table::actors, std::to_string(i), std::string(value_bytes, 'a'));
      batch.put(Table::names, std::to_string(i), std::to_string(i));
      ASSERT_TRUE(store_->commit(batch, epoch_));
    }
  }
  // A minute passes before each.
  BackupOptions backup_options() {
    BackupOptions options;
    options.folder = folder_;
    options.now = now_ += std::chrono::minutes(1);
    return options;
  }
  Result<BackupInfo> take() { return back_up(*store_, backup_options()); }
  std::vector<uint32_t> numbers() {
    std::vector<uint32_t> found;
    for (const BackupInfo& info : list_backups(folder_).value().backups) {
      found.push_back(info.number);
    }
    return found;
  }
  RestoreOptions restore_options(uint32_t number = 0) {
    RestoreOptions options;
    options.folder = folder_;
    options.number = number;
    options.store = target_;
    options.cluster = test_cluster();
    options.now = now_ += std::chrono::minutes(1);
    return options;
  }
  // Into a place of its own, which is removed when the rows were read.
  std::unique_ptr<Store> restored(uint32_t number) {
    std::filesystem::remove_all(target_);
    const auto done = restore_backup(restore_options(number));
    EXPECT_TRUE(done) << done.error().message();
    return open_rocksdb(target_, {}).value();
  }
  // Of all regular files below the folder, by their paths in it.
  static std::map<std::string, std::string> contents(const Path& folder) {
    std::map<std::string, std::string> found;
    for (const auto& entry : std::filesystem::recursive_directory_iterator{folder}) {
      if (!entry.is_regular_file()) continue;
      std::ifstream file{entry.path(), std::ios::binary};
      found[std::filesystem::relative(entry.path(), folder)] =
          std::string{std::istreambuf_iterator<char>{file}, {}};
    }
    return found;
  }
  static int tables_in(const std::map<std::string, std::string>& files) {
    return static_cast<int>(std::count_if(
        files.begin(), files.end(), [](const auto& file) { return file.first.ends_with(".sst"); }));
  }

  ScratchDirectory scratch_;
  const Path live_ = scratch_ / "metadata";
  const Path folder_ = scratch_ / "backups";
  const Path target_ = scratch_ / "restored/metadata";
  std::unique_ptr<Store> store_;
  uint64_t epoch_ = 3;
  WallTime now_{std::chrono::hours(24 * 365 * 50)};
};

}  // namespace troupe
