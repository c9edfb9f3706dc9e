// Restores: whole or not at all, above all epochs, and never from damaged files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "tests/metadata/backup_fixture.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::AnyOf;
using testing::ElementsAre;
using testing::HasSubstr;

class Restore : public BackupFixture {
 protected:
  Error restore_error(const RestoreOptions& options) {
    const auto done = restore_backup(options);
    return done ? error(Code::ok, "it was restored") : done.error();
  }
  // All rows but the store's own epoch.
  static std::map<std::string, Rows> rows_of(Store& store) {
    std::map<std::string, Rows> found;
    for (const Table table : tables) {
      Rows rows = store.scan(table, "").value();
      std::erase_if(rows, [](const auto& row) { return row.first == epoch_key; });
      found[std::string(table_name(table))] = std::move(rows);
    }
    return found;
  }
};

TEST_F(Restore, BringsBackEveryRow) {
  commit_pairs(0, 300, 10'000);
  commit_pairs(300, 400);
  ASSERT_TRUE(store_->commit(Batch{}.erase(Table::names, "7").put(Table::jobs, "j", "1"), epoch_));
  const auto rows = rows_of(*store_);
  const BackupInfo taken = take().value();
  ASSERT_TRUE(store_->commit(Batch{}.put(Table::jobs, "j", "2"), epoch_));
  const Restored done = restore_backup(restore_options()).value();
  EXPECT_EQ(done.backup.state_hash, taken.state_hash);
  EXPECT_EQ(done.moved_aside, "");
  EXPECT_FALSE(fs::exists(restoring_beside(target_)));
  const auto restored = open_rocksdb(target_, {.create = true, .cluster_id = test_cluster()});
  EXPECT_EQ(rows_of(**restored), rows);
  EXPECT_EQ((*restored)->epoch(), done.epoch);
}

TEST_F(Restore, AnyByteThatIsNotAsItWasWrittenIsNamed) {
  commit_pairs(0, 300, 10'000);
  ASSERT_TRUE(take());
  commit_pairs(300, 320);
  ASSERT_TRUE(take());
  const auto whole = contents(folder_);
  std::map<std::string, int> kinds;
  for (const auto& [name, content] : whole) {
    ++kinds[name.substr(name.find_last_of(".-/") + 1)];
    for (const uint64_t offset : {uint64_t{0}, uint64_t{1}, content.size() / 3, content.size() / 2,
                                  content.size() - 33, content.size() - 1}) {
      if (offset >= content.size()) continue;
      SCOPED_TRACE(name + " at " + std::to_string(offset));
      flip_byte(folder_ / name, offset);
      // In one of the two, or both; in none in silence.
      int refused = 0;
      for (const uint32_t number : {1, 2}) {
        fs::remove_all(target_);
        const Error failure = restore_error(restore_options(number));
        if (failure.code() == Code::ok) continue;
        ++refused;
        EXPECT_EQ(failure.code(), Code::data_loss) << failure.message();
        EXPECT_THAT(failure.message(), HasSubstr((folder_ / name).string()));
        EXPECT_THAT(failure.message(),
                    AnyOf(HasSubstr("is whole: take it with --number"),
                          HasSubstr("no other backup"), HasSubstr("empty that file")));
        EXPECT_FALSE(fs::exists(target_));
        EXPECT_FALSE(fs::exists(restoring_beside(target_)));
      }
      EXPECT_GT(refused, 0);
      flip_byte(folder_ / name, offset);
    }
  }
  EXPECT_EQ(contents(folder_), whole);
  EXPECT_GT(kinds["sst"], 0);
  EXPECT_GT(kinds["log"], 0);
  EXPECT_GT(kinds["CURRENT"], 0);
  EXPECT_TRUE(restore_backup(restore_options(1)));
}

TEST_F(Restore, HintsAtTheNewestThatIsWhole) {
  for (int i = 0; i < 3; ++i) {
    commit_pairs(i * 10, i * 10 + 10);
    ASSERT_TRUE(take());
  }
  flip_byte(folder_ / "backups/000003", 40);
  const Error failure = restore_error(restore_options());
  EXPECT_EQ(failure.code(), Code::data_loss);
  EXPECT_THAT(failure.message(), AllOf(HasSubstr("backup 3"), HasSubstr("backups/000003"),
                                       HasSubstr("backup 2 is whole: take it with --number 2")));
  EXPECT_EQ(list_backups(folder_).value().damaged.size(), 1u);
  EXPECT_THAT(numbers(), ElementsAre(1, 2));
  EXPECT_EQ(count_pairs(*restored(2)), 20);
  // A later one is taken without a word about it, and takes no number twice.
  EXPECT_EQ(take().value().number, 4u);
  EXPECT_EQ(count_pairs(*restored(0)), 30);
}

TEST_F(Restore, AMissingFileIsNamed) {
  commit_pairs(0, 10);
  ASSERT_TRUE(take());
  const auto logs = files_ending(folder_ / "files", ".log");
  ASSERT_FALSE(logs.empty());
  fs::remove(logs.front());
  const Error failure = restore_error(restore_options());
  EXPECT_EQ(failure.code(), Code::data_loss);
  EXPECT_THAT(failure.message(), AllOf(HasSubstr(logs.front().string()), HasSubstr("missing"),
                                       HasSubstr("no other backup")));
}

TEST_F(Restore, RefusesWhatDoesNotExist) {
  EXPECT_EQ(restore_error(restore_options()).code(), Code::not_found);
  ASSERT_TRUE(take());
  const Error failure = restore_error(restore_options(7));
  EXPECT_EQ(failure.code(), Code::not_found);
  EXPECT_THAT(failure.message(), HasSubstr("--list"));
}

TEST_F(Restore, ANewerSchemaIsRefused) {
  ASSERT_TRUE(take());
  RestoreOptions options = restore_options();
  options.schema = schema_version - 1;
  const Error failure = restore_error(options);
  EXPECT_EQ(failure.code(), Code::unimplemented);
  EXPECT_THAT(failure.message(), HasSubstr("newer Troupe"));
  EXPECT_FALSE(fs::exists(target_));
}

TEST_F(Restore, AnotherClustersBackupIsRefused) {
  ASSERT_TRUE(take());
  SeededRandom random{1};
  RestoreOptions options = restore_options();
  options.cluster = ClusterId::random(random);
  const Error failure = restore_error(options);
  EXPECT_EQ(failure.code(), Code::conflict);
  EXPECT_THAT(failure.message(),
              AllOf(HasSubstr(test_cluster().to_string()), HasSubstr(options.cluster.to_string())));
  EXPECT_FALSE(fs::exists(target_));
  options.cluster = {};
  EXPECT_TRUE(restore_backup(options));
}

TEST_F(Restore, AStoreThatIsThereIsMovedAsideOnlyWhenAskedAndKept) {
  commit_pairs(0, 10);
  ASSERT_TRUE(take());
  commit_pairs(10, 15);
  RestoreOptions options = restore_options();
  options.store = live_;
  const Error in_use = restore_error(options);
  EXPECT_EQ(in_use.code(), Code::conflict);
  EXPECT_THAT(in_use.message(), HasSubstr("another head"));
  options.replace = true;
  EXPECT_EQ(restore_error(options).code(), Code::conflict) << "it is in use";
  store_.reset();
  options.replace = false;
  const Error refused = restore_error(options);
  EXPECT_EQ(refused.code(), Code::conflict);
  EXPECT_THAT(refused.message(), HasSubstr("--force"));
  EXPECT_EQ(count_pairs(*open_rocksdb(live_, {}).value()), 15);

  options.replace = true;
  for (int i = 0; i < 2; ++i) {  // Twice in one second.
    const Restored done = restore_backup(options).value();
    EXPECT_EQ(count_pairs(*open_rocksdb(live_, {}).value()), 10);
    EXPECT_EQ(count_pairs(*open_rocksdb(done.moved_aside, {}).value()), i == 0 ? 15 : 10);
  }
}

TEST_F(Restore, ADirectoryWithNothingButALockIsNoStore) {
  ASSERT_TRUE(take());
  fs::create_directories(target_);
  EXPECT_EQ(open_rocksdb(target_, {}).error().code(), Code::not_found);  // Leaves its lock.
  EXPECT_TRUE(restore_backup(restore_options()));
}

TEST_F(Restore, OnAFailingDiskLeavesEverythingAsItWas) {
  commit_pairs(0, 30);
  ASSERT_TRUE(take());
  commit_pairs(30, 40);
  store_.reset();
  RestoreOptions options = restore_options();
  options.store = live_;
  options.replace = true;
  const auto before = contents(live_);
  int operation = 0;
  for (;; ++operation) {
    SCOPED_TRACE(operation);
    options.faults = std::make_shared<FailingFrom>(operation, ENOSPC);
    const auto done = restore_backup(options);
    if (done) break;
    ASSERT_EQ(done.error().code(), Code::exhausted) << done.error().message();
    ASSERT_EQ(contents(live_), before);
    ASSERT_FALSE(fs::exists(restoring_beside(live_)));
  }
  EXPECT_GT(operation, 8);
  EXPECT_EQ(count_pairs(*open_rocksdb(live_, {}).value()), 30);
}

TEST_F(Restore, OneThatWasCutShortKeepsAHeadFromBeginningWithNothing) {
  commit_pairs(0, 30);
  ASSERT_TRUE(take());
  // As after a power cut between the moving aside and the putting in place.
  ASSERT_TRUE(restore_backup(restore_options()));
  fs::rename(target_, restoring_beside(target_));
  const RocksOptions create{.create = true, .cluster_id = test_cluster()};
  const auto refused = open_rocksdb(target_, create);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::conflict);
  EXPECT_THAT(refused.error().message(), HasSubstr("troupe restore"));
  EXPECT_TRUE(restore_backup(restore_options()));
  EXPECT_EQ(count_pairs(*open_rocksdb(target_, create).value()), 30);
}

// --- Epochs.

TEST_F(Restore, BeginsAboveEveryEpochThatTheClusterUsed) {
  commit_pairs(0, 5);
  ASSERT_TRUE(take());
  // A head of each restored store starts and is seen by workers. Its store is lost; the same backup
  // is restored, later.
  uint64_t seen = epoch_ + 20;  // Heads that started after the backup was taken.
  for (int i = 0; i < 3; ++i) {
    fs::remove_all(target_);
    const Restored done = restore_backup(restore_options(1)).value();
    EXPECT_GT(done.epoch, seen);
    const auto store = open_rocksdb(target_, {}).value();
    EXPECT_EQ(store->epoch(), done.epoch);
    for (seen = done.epoch + 1; seen < done.epoch + 4; ++seen) {
      ASSERT_TRUE(store->commit(Batch{}, seen));
    }
    // What fences: an older head that still has the store writes nothing.
    EXPECT_EQ(store->commit(pair_of_rows(9), epoch_).error().code(), Code::conflict);
  }
}

TEST_F(Restore, BeginsAboveTheStoreThatItMovesAsideWhateverTheClockSays) {
  commit_pairs(0, 5);
  ASSERT_TRUE(take());
  const uint64_t ahead = uint64_t{1} << 60;
  ASSERT_TRUE(store_->commit(Batch{}, ahead));
  store_.reset();
  RestoreOptions options = restore_options();
  options.store = live_;
  options.replace = true;
  EXPECT_GT(restore_backup(options).value().epoch, ahead);
}

TEST_F(Restore, BeginsAboveAllBackupsOfTheFolderWhateverTheClockSays) {
  commit_pairs(0, 5);
  ASSERT_TRUE(take());
  const uint64_t ahead = uint64_t{1} << 60;
  ASSERT_TRUE(store_->commit(Batch{}, ahead));
  ASSERT_TRUE(take());
  EXPECT_GT(restore_backup(restore_options(1)).value().epoch, ahead);
}

TEST_F(Restore, AClockThatWasSetBackDoesNotBringBackOldEpochs) {
  commit_pairs(0, 5);
  ASSERT_TRUE(take());
  const Restored first = restore_backup(restore_options()).value();
  const WallTime then = now_;
  ASSERT_TRUE(take());  // A minute later.
  fs::remove_all(target_);
  RestoreOptions options = restore_options(1);
  options.now = WallTime{};  // 1970.
  const Restored second = restore_backup(options).value();
  EXPECT_GT(second.epoch, first.epoch);
  EXPECT_GT(second.epoch,
            static_cast<uint64_t>(then.time_since_epoch() / std::chrono::microseconds(1)));
}

}  // namespace
}  // namespace troupe
