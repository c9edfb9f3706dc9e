// What the RocksDB store refuses to open, and how it fails.
#include "metadata/rocks_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <map>
#include <set>
#include <vector>

#include "tests/metadata/metadata_fixture.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

Error open_error(const fs::path& path, const RocksOptions& options = {}) {
  const auto opened = open_rocksdb(path, options);
  return opened ? error(Code::ok, "it opened") : opened.error();
}

TEST(RocksStore, IsMadeOnlyWhenAskedTo) {
  ScratchDirectory scratch;
  const fs::path path = scratch / "state/metadata";
  EXPECT_EQ(open_error(path).code(), Code::not_found);
  EXPECT_FALSE(fs::exists(path));
  EXPECT_EQ(open_error(path, {.create = true}).code(), Code::invalid);  // No cluster id.
  ASSERT_TRUE(fs::create_directories(path));
  EXPECT_EQ(open_error(path).code(), Code::not_found);  // Nothing in it.
  EXPECT_TRUE(open_or_create(path)->commit(pair_of_rows(0), 1));
  EXPECT_TRUE(open_rocksdb(path, {}));  // From now on it needs no `create`, nor to know the id.
}

TEST(RocksStore, ItsDirectoryIsPrivate) {
  ScratchDirectory scratch;
  open_or_create(scratch / "metadata");
  struct stat facts {};
  ASSERT_EQ(::stat((scratch / "metadata").c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777, 0700U);
}

TEST(RocksStore, ASecondOpeningIsAConflictWithThatProcess) {
  ScratchDirectory scratch;
  const auto store = open_or_create(scratch / "metadata");
  const Error refused = open_error(scratch / "metadata");
  EXPECT_EQ(refused.code(), Code::conflict);
  EXPECT_THAT(refused.message(),
              AllOf(HasSubstr("another head (process "), HasSubstr(std::to_string(::getpid()))));
  EXPECT_TRUE(store->commit(pair_of_rows(0), 1));  // The refusal did the holder no harm.
  EXPECT_EQ(open_error(scratch / "metadata").code(), Code::conflict);
}

TEST(RocksStore, AnotherClustersDirectoryIsRefused) {
  ScratchDirectory scratch;
  open_or_create(scratch / "metadata");
  SeededRandom random{1};
  const Error refused =
      open_error(scratch / "metadata", {.create = true, .cluster_id = ClusterId::random(random)});
  EXPECT_EQ(refused.code(), Code::conflict);
  EXPECT_THAT(refused.message(), HasSubstr("belongs to cluster " + test_cluster().to_string()));
}

TEST(RocksStore, ANewerSchemaIsRefusedAndLeftAlone) {
  ScratchDirectory scratch;
  RocksOptions newer{.create = true, .cluster_id = test_cluster()};
  newer.schema = schema_version + 1;
  ASSERT_TRUE(open_rocksdb(scratch / "metadata", newer));
  const Error refused = open_error(scratch / "metadata");
  EXPECT_EQ(refused.code(), Code::unimplemented);
  EXPECT_THAT(refused.message(), HasSubstr("has schema 2, written by a newer Troupe"));
  EXPECT_TRUE(open_rocksdb(scratch / "metadata", newer));
}

TEST(RocksStore, NoPermissionIsDenied) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may do everything";
  ScratchDirectory scratch;
  fs::create_directories(scratch / "closed");
  fs::permissions(scratch / "closed", fs::perms::owner_read);
  EXPECT_EQ(open_error(scratch / "closed/metadata", {.create = true, .cluster_id = test_cluster()})
                .code(),
            Code::denied);
}

class DamagedStore : public testing::Test {
 protected:
  // Leaves 200 pairs in the log; after a second opening they are in a table file too.
  void fill() {
    const auto store = open_or_create(path_);
    for (int i = 0; i < 200; ++i) ASSERT_TRUE(store->commit(pair_of_rows(i), 1));
  }

  ScratchDirectory scratch_;
  const fs::path path_ = scratch_ / "metadata";
};

TEST_F(DamagedStore, DamageInsideTheLogIsReportedNotSkipped) {
  fill();
  const auto logs = files_ending(path_, ".log");
  ASSERT_FALSE(logs.empty());
  flip_byte(logs.back(), fs::file_size(logs.back()) / 2);
  const Error refused = open_error(path_);
  EXPECT_EQ(refused.code(), Code::data_loss);
  EXPECT_THAT(refused.message(), AllOf(HasSubstr(logs.back().filename().string()),
                                       HasSubstr("restore it from a backup")));
}

TEST_F(DamagedStore, ALastRecordCutShortIsDroppedWhole) {
  fill();
  const auto logs = files_ending(path_, ".log");
  ASSERT_FALSE(logs.empty());
  fs::resize_file(logs.back(), fs::file_size(logs.back()) - 20);
  EXPECT_EQ(count_pairs(*open_rocksdb(path_, {}).value()), 199);
}

TEST_F(DamagedStore, DamageInATableFileIsReported) {
  fill();
  open_or_create(path_);
  const auto files = files_ending(path_, ".sst");
  ASSERT_FALSE(files.empty());
  for (const fs::path& file : files) flip_byte(file, 10);
  const auto store = open_rocksdb(path_, {});
  Error found = store ? error(Code::ok, "not noticed") : store.error();
  if (store) {
    const auto rows = (*store)->scan(Table::actors, "");
    if (!rows) found = rows.error();
  }
  EXPECT_EQ(found.code(), Code::data_loss);
  EXPECT_THAT(found.message(), AllOf(HasSubstr(".sst"), HasSubstr("restore it from a backup")));
}

TEST_F(DamagedStore, AMissingFileIsDataLossNeverAFreshStart) {
  fill();
  open_or_create(path_);
  const auto files = files_ending(path_, ".sst");
  ASSERT_FALSE(files.empty());
  fs::remove(files.front());
  const RocksOptions create{.create = true, .cluster_id = test_cluster()};
  Error refused = open_error(path_, create);
  EXPECT_EQ(refused.code(), Code::data_loss);
  EXPECT_THAT(refused.message(), HasSubstr(files.front().stem().string()));
  fs::remove(path_ / "CURRENT");
  refused = open_error(path_, create);
  EXPECT_EQ(refused.code(), Code::data_loss);
  EXPECT_THAT(refused.message(), HasSubstr("CURRENT is missing"));
}

TEST_F(DamagedStore, AMissingManifestIsDataLoss) {
  fill();
  for (const auto& entry : fs::directory_iterator{path_}) {
    if (entry.path().filename().string().starts_with("MANIFEST-")) fs::remove(entry.path());
  }
  const Error refused = open_error(path_);
  EXPECT_EQ(refused.code(), Code::data_loss);
  EXPECT_THAT(refused.message(), HasSubstr("MANIFEST-"));
}

// Every kind of file, at its beginning, its end and between.
TEST_F(DamagedStore, AFlippedBitIsNamedOrChangesNothing) {
  fill();
  std::string hash;
  {
    const auto store = open_or_create(path_);  // Writes the first 200 to tables.
    for (int i = 200; i < 300; ++i) ASSERT_TRUE(store->commit(pair_of_rows(i), 1));
    hash = store->state_hash().value();
  }
  std::map<std::string, int> refused, unnoticed;
  std::vector<fs::path> names;
  for (const auto& entry : fs::directory_iterator{path_}) names.push_back(entry.path().filename());
  for (const fs::path& name : names) {
    const uint64_t size = fs::file_size(path_ / name);
    std::string kind = name.has_extension() ? name.extension().string() : name.string();
    kind = kind.substr(0, kind.find('-'));
    std::set<uint64_t> offsets;
    for (uint64_t i = 0; i < 12 && size > 0; ++i) offsets.insert(i * (size - 1) / 11);
    for (const uint64_t offset : offsets) {
      SCOPED_TRACE(name.string() + " at " + std::to_string(offset));
      const fs::path copy = scratch_ / "copy";
      fs::remove_all(copy);
      fs::copy(path_, copy);
      flip_byte(copy / name, offset);
      const auto store = open_rocksdb(copy, {});
      if (store) {
        EXPECT_EQ((*store)->state_hash().value(), hash);
        ++unnoticed[kind];
        continue;
      }
      ++refused[kind];
      EXPECT_EQ(store.error().code(), Code::data_loss);
      EXPECT_THAT(store.error().message(),
                  AllOf(HasSubstr(name.stem().string()), HasSubstr("'troupe restore DIR")));
    }
  }
  for (const char* kind : {".sst", ".log", "MANIFEST", "CURRENT"}) {
    EXPECT_GT(refused[kind], 8 * unnoticed[kind]) << kind;
  }
}

class FailingDisk final : public DiskFaults {
 public:
  int before_append(const std::string&, size_t) override { return append_errno; }
  int before_sync(const std::string&) override { return sync_errno; }
  void after_sync(const std::string&) override {}

  std::atomic<int> append_errno = 0;
  std::atomic<int> sync_errno = 0;
};

TEST(RocksStoreOnAFailingDisk, AFullDiskIsExhaustedAndClosesTheStore) {
  ScratchDirectory scratch;
  const auto disk = std::make_shared<FailingDisk>();
  auto store = open_or_create(scratch / "metadata", disk);
  ASSERT_TRUE(store->commit(pair_of_rows(0), 1));
  disk->append_errno = ENOSPC;
  EXPECT_EQ(store->commit(pair_of_rows(1), 1).error().code(), Code::exhausted);
  EXPECT_EQ(store->health().error().code(), Code::exhausted);
  disk->append_errno = 0;
  EXPECT_EQ(store->commit(pair_of_rows(1), 1).error().code(), Code::unavailable);
  store.reset();
  store = open_or_create(scratch / "metadata");
  EXPECT_EQ(count_pairs(*store), 1);
  EXPECT_TRUE(store->health());
  EXPECT_TRUE(store->commit(pair_of_rows(1), 1));
}

TEST(RocksStoreOnAFailingDisk, AFailedSyncIsAnUnknownOutcomeAndClosesTheStore) {
  ScratchDirectory scratch;
  const auto disk = std::make_shared<FailingDisk>();
  auto store = open_or_create(scratch / "metadata", disk);
  ASSERT_TRUE(store->commit(pair_of_rows(0), 1));
  disk->sync_errno = EIO;
  EXPECT_EQ(store->commit(pair_of_rows(1), 1).error().code(), Code::outcome_unknown);
  disk->sync_errno = 0;  // A second sync that succeeds proves nothing about the first's pages.
  EXPECT_EQ(store->commit(pair_of_rows(2), 1).error().code(), Code::unavailable);
  store.reset();
  const int pairs = count_pairs(*open_or_create(scratch / "metadata"));
  EXPECT_GE(pairs, 1);
  EXPECT_LE(pairs, 2);
}

TEST(RocksStoreOnAFailingDisk, OpeningOnAFullDiskIsExhaustedAndWorksLater) {
  ScratchDirectory scratch;
  RocksOptions options{.create = true, .cluster_id = test_cluster()};
  const auto disk = std::make_shared<FailingDisk>();
  options.faults = disk;
  disk->append_errno = ENOSPC;
  EXPECT_EQ(open_error(scratch / "metadata", options).code(), Code::exhausted);
  disk->append_errno = 0;
  EXPECT_TRUE(open_rocksdb(scratch / "metadata", options));
}

TEST(RocksStore, SaysHowMuchRoomThereIs) {
  ScratchDirectory scratch;
  const auto store = open_or_create(scratch / "metadata");
  EXPECT_TRUE(store->room(1 << 20));
  const Status beyond = store->room(uint64_t{1} << 60);
  EXPECT_EQ(beyond.error().code(), Code::exhausted);
  EXPECT_THAT(beyond.error().message(), AllOf(HasSubstr("MiB are free"), HasSubstr("make room")));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1 << 20, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status limited = store->room((1 << 20) + 1);
  const Status enough = store->room(1 << 20);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_THAT(limited.error().message(), HasSubstr("ulimit -f"));
  EXPECT_TRUE(enough);
}

}  // namespace
}  // namespace troupe
