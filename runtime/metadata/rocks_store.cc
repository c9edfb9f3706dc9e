#include "metadata/rocks_store.h"

#include <fmt/format.h>
#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/listener.h>
#include <rocksdb/options.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/table.h>
#include <rocksdb/utilities/checkpoint.h>
#include <rocksdb/write_batch.h>

#include <atomic>
#include <charconv>
#include <mutex>
#include <optional>
#include <system_error>

#include "base/log.h"
#include "metadata/rocks_files.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view how_to_restore =
    "restore it from a backup: 'troupe backup DIR --list' shows which there are, 'troupe restore "
    "DIR --force' takes the newest";

using Family = rocksdb::ColumnFamilyHandle;

rocksdb::Slice slice(std::string_view text) {
  // A Slice compares with memcmp, which takes no null pointer.
  return text.empty() ? rocksdb::Slice{} : rocksdb::Slice{text.data(), text.size()};
}

Code code_of(const rocksdb::Status& status) {
  if (status.IsCorruption()) return Code::data_loss;
  if (status.IsNoSpace() || status.IsMemoryLimit()) return Code::exhausted;
  if (status.IsIOError() || status.IsBusy() || status.IsTryAgain() || status.IsTimedOut() ||
      status.IsShutdownInProgress() || status.IsIncomplete()) {
    return Code::unavailable;
  }
  if (status.IsNotSupported()) return Code::unimplemented;
  return Code::internal;
}

std::optional<uint64_t> to_number(const std::optional<std::string>& text) {
  uint64_t number = 0;
  if (!text) return std::nullopt;
  const auto [end, failed] = std::from_chars(text->data(), text->data() + text->size(), number);
  if (failed != std::errc{} || end != text->data() + text->size()) return std::nullopt;
  return number;
}

// The store takes nothing more after a failed write: RocksDB must not go on by itself once there is
// room again, beside whoever closes it.
class NoRecovery final : public rocksdb::EventListener {
 public:
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason, rocksdb::Status,
                            bool* auto_recovery) override {
    *auto_recovery = false;
  }
};

// Metadata is small (thousands of rows) and the head lives in little memory.
rocksdb::Options make_options(std::shared_ptr<rocksdb::Logger> logger, rocksdb::Env* env) {
  constexpr size_t MiB = size_t{1} << 20;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(8 * MiB);
  table.cache_index_and_filter_blocks = true;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));

  rocksdb::Options options;
  options.env = env;
  options.info_log = std::move(logger);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  options.compression = rocksdb::kLZ4Compression;
  options.write_buffer_size = 1 * MiB;
  options.db_write_buffer_size = 8 * MiB;
  options.max_total_wal_size = 16 * MiB;
  options.target_file_size_base = 8 * MiB;
  options.max_bytes_for_level_base = 32 * MiB;
  options.max_background_jobs = 2;
  options.max_open_files = 256;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.listeners = {std::make_shared<NoRecovery>()};
  // A record torn by a crash at the log's end was never acknowledged. Damage anywhere else would
  // lose acknowledged ones, which RocksDB's default (point in time) does without a word.
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  options.track_and_verify_wals_in_manifest = true;
  return options;
}

// Names for temporary folders inside the store's own; those of a head that died go when the store
// is opened.
constexpr std::string_view checkpoint_prefix = "checkpoint-";

// RocksDB makes it under the name with ".tmp" behind it, and renames it when it is whole.
class RocksCheckpoint final : public Checkpoint {
 public:
  explicit RocksCheckpoint(fs::path folder) : folder_(std::move(folder)) {}
  ~RocksCheckpoint() override {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
    fs::remove_all(folder_.string() + ".tmp", ignored);
  }
  const fs::path& folder() const override { return folder_; }

 private:
  const fs::path folder_;
};

void remove_old_checkpoints(const fs::path& path) {
  std::vector<fs::path> old;
  std::error_code ignored;
  for (fs::directory_iterator entry{path, ignored}, end; !ignored && entry != end;
       entry.increment(ignored)) {
    if (entry->path().filename().string().starts_with(checkpoint_prefix)) {
      old.push_back(entry->path());
    }
  }
  for (const fs::path& folder : old) fs::remove_all(folder, ignored);
}

class RocksStore final : public Store {
 public:
  static Result<std::unique_ptr<Store>> open(const fs::path& path, const RocksOptions& options);
  ~RocksStore() override;

  Result<std::optional<std::string>> get(Table table, std::string_view key) override;
  Result<Rows> scan(Table table, std::string_view prefix, const Page& page) override;
  Result<std::unique_ptr<Snapshot>> snapshot() override;
  Status commit(const Batch& batch, uint64_t epoch) override;
  uint64_t epoch() const override { return epoch_; }
  ClusterId cluster_id() const override { return cluster_id_; }
  Status health() const override;
  Status room(uint64_t bytes) const override { return check_room(path_, bytes); }
  Result<std::unique_ptr<Checkpoint>> checkpoint() override;
  fs::path folder() const override { return path_; }

 private:
  class Moment;

  RocksStore(const fs::path& path, std::optional<DirectoryLock> lock, const RocksOptions& options)
      : path_(path),
        read_only_(options.read_only),
        lock_(std::move(lock)),
        env_(options.faults ? make_faulty_env(options.faults) : nullptr),
        options_(make_options(make_rocks_logger(damaged_log_),
                              env_ ? env_.get() : rocksdb::Env::Default())) {}

  Status open_families(bool create);
  Status make_missing_families();
  Status verify_tables();
  Status read_identity(const RocksOptions& options);
  Status write_identity(const RocksOptions& options);
  Status write(rocksdb::WriteBatch& batch);
  Result<Rows> scan_as(const rocksdb::ReadOptions& options, Table table, std::string_view prefix,
                       const Page& page) const;
  Family* family(Table table) const { return families_[static_cast<size_t>(table)]; }
  Error damaged(std::string_view what) const;
  std::string damaged_tables() const;
  Error failure(const rocksdb::Status& status) const;

  const fs::path path_;
  const bool read_only_;
  const std::optional<DirectoryLock> lock_;  // Let go of last. None when it is only read.
  const std::shared_ptr<DamagedLog> damaged_log_ = std::make_shared<DamagedLog>();
  const std::unique_ptr<rocksdb::Env> env_;
  const rocksdb::Options options_;
  std::unique_ptr<rocksdb::DB> db_;
  std::array<Family*, tables.size()> families_{};  // Owned through db_. Null: no such table.
  std::vector<Family*> other_families_;            // RocksDB's "default", and newer builds' tables.
  ClusterId cluster_id_;
  std::mutex commit_mutex_;  // One commit at a time, so that the epoch's check and write are one.
  std::atomic<uint64_t> epoch_ = 0;
  std::atomic<uint64_t> checkpoints_ = 0;
  mutable std::mutex health_mutex_;
  Status health_;
};

Error RocksStore::damaged(std::string_view what) const {
  const std::string log = damaged_log_->get();
  return error(Code::data_loss,
               fmt::format("the metadata in {} is damaged: {}{}{}; {}", path_.string(), what,
                           log.empty() ? "" : "; ", log, how_to_restore));
}

// RocksDB blames the manifest for what it cannot read of a table that this one names.
std::string RocksStore::damaged_tables() const {
  std::string found;
  std::error_code ignored;
  for (fs::directory_iterator entry{path_, ignored}, end; !ignored && entry != end;
       entry.increment(ignored)) {
    if (entry->path().extension() != ".sst") continue;
    rocksdb::SstFileReader table{options_};
    rocksdb::Status status = table.Open(entry->path().string());
    if (status.ok()) status = table.VerifyChecksum();
    if (status.IsCorruption()) found += fmt::format("; {} is damaged", entry->path().string());
  }
  return found;
}

Error RocksStore::failure(const rocksdb::Status& status) const {
  const Code code = code_of(status);
  if (code == Code::data_loss) return damaged(status.ToString());
  return error(code, fmt::format("metadata in {}: {}", path_.string(), status.ToString()));
}

// Looks before it leaps: RocksDB would make a new database over the remains of an old one.
Result<bool> holds_database(const fs::path& path) {
  std::error_code failed;
  if (fs::exists(path / "CURRENT", failed)) return true;
  for (fs::directory_iterator entry{path, failed}, end; !failed && entry != end;
       entry.increment(failed)) {
    const std::string name = entry->path().filename().string();
    if (name.starts_with("MANIFEST-") || name.ends_with(".sst") || name.ends_with(".log")) {
      return error(Code::data_loss, fmt::format("{} is missing beside {}; {}",
                                                (path / "CURRENT").string(), name, how_to_restore));
    }
  }
  if (failed) {
    return error(Code::unavailable, fmt::format("read {}: {}", path.string(), failed.message()));
  }
  return false;
}

Result<std::unique_ptr<Store>> RocksStore::open(const fs::path& path, const RocksOptions& options) {
  if (options.create && options.cluster_id.is_nil()) {
    return error(Code::invalid, "making a cluster's metadata needs the cluster's id");
  }
  if (options.create && !fs::exists(path / "CURRENT") && fs::exists(restoring_beside(path))) {
    return error(Code::conflict,
                 fmt::format("a restore into {} was cut short: run 'troupe restore' again (what it "
                             "left is in {})",
                             path.string(), restoring_beside(path).string()));
  }
  if (options.create) {
    TROUPE_CHECK(make_private_directory(path));
  } else if (!fs::is_directory(path)) {
    return error(Code::not_found, fmt::format("there is no metadata in {}", path.string()));
  }
  std::optional<DirectoryLock> lock;
  if (!options.read_only) {
    TROUPE_TRY(DirectoryLock acquired, DirectoryLock::acquire(path));
    lock.emplace(std::move(acquired));
    remove_old_checkpoints(path);
  }
  TROUPE_TRY(const bool exists, holds_database(path));
  if (!exists && !options.create) {
    return error(Code::not_found, fmt::format("there is no metadata in {}", path.string()));
  }
  std::unique_ptr<RocksStore> store{new RocksStore(path, std::move(lock), options)};
  TROUPE_CHECK(store->open_families(!exists));
  TROUPE_CHECK(store->read_identity(options));
  if (exists) TROUPE_CHECK(store->verify_tables());
  if (!options.read_only) TROUPE_CHECK(store->make_missing_families());
  return std::unique_ptr<Store>{std::move(store)};
}

Status RocksStore::open_families(bool create) {
  std::vector<std::string> names{rocksdb::kDefaultColumnFamilyName};
  if (!create) {
    const rocksdb::Status listed =
        rocksdb::DB::ListColumnFamilies(options_, path_.string(), &names);
    if (!listed.ok()) return listed.IsPathNotFound() ? damaged(listed.ToString()) : failure(listed);
  }
  std::vector<rocksdb::ColumnFamilyDescriptor> descriptors;
  for (const std::string& name : names) descriptors.emplace_back(name, options_);
  rocksdb::DBOptions db_options{options_};
  db_options.create_if_missing = create;
  rocksdb::DB* db = nullptr;
  std::vector<Family*> opened;
  const rocksdb::Status status =
      read_only_
          ? rocksdb::DB::OpenForReadOnly(db_options, path_.string(), descriptors, &opened, &db)
          : rocksdb::DB::Open(db_options, path_.string(), descriptors, &opened, &db);
  if (status.IsPathNotFound() || status.IsCorruption()) {
    return damaged(status.ToString() + damaged_tables());
  }
  if (!status.ok()) return failure(status);
  db_.reset(db);
  for (size_t i = 0; i < opened.size(); ++i) {
    Family** slot = nullptr;
    for (const Table table : tables) {
      if (names[i] == table_name(table)) slot = &families_[static_cast<size_t>(table)];
    }
    if (slot != nullptr) {
      *slot = opened[i];
    } else {
      other_families_.push_back(opened[i]);
    }
  }
  return ok();
}

// RocksDB reads a table's blocks only when somebody asks for a row in them: a head would run on
// damage for days. A head reads nearly all of them at its start anyway.
Status RocksStore::verify_tables() {
  const rocksdb::Status verified = db_->VerifyChecksum();
  return verified.ok() ? ok() : failure(verified);
}

// After the schema was checked: nothing is written to tables that a newer build owns.
Status RocksStore::make_missing_families() {
  for (const Table table : tables) {
    Family*& slot = families_[static_cast<size_t>(table)];
    if (slot != nullptr) continue;
    const rocksdb::Status made =
        db_->CreateColumnFamily(options_, std::string(table_name(table)), &slot);
    if (!made.ok()) return failure(made);
  }
  return ok();
}

Status RocksStore::read_identity(const RocksOptions& options) {
  std::optional<std::string> schema;
  if (family(Table::meta) != nullptr) {
    TROUPE_TRY(schema, get(Table::meta, schema_key));
  }
  if (!schema) {
    // Nothing here, or a head died while it made the tables: the schema's row is written last.
    if (!options.create) {
      return error(Code::not_found, fmt::format("there is no metadata in {}", path_.string()));
    }
    return write_identity(options);
  }
  const std::optional<uint64_t> version = to_number(schema);
  if (!version) return damaged("its schema version is no number");
  if (*version > options.schema) {
    return error(Code::unimplemented,
                 fmt::format("the metadata in {} has schema {}, written by a newer Troupe; this "
                             "build reads up to {}",
                             path_.string(), *version, options.schema));
  }
  TROUPE_TRY(const auto cluster, get(Table::meta, cluster_key));
  if (!cluster) return damaged("its cluster id is missing");
  const Result<ClusterId> recorded = ClusterId::parse(*cluster);
  if (!recorded) return damaged("its cluster id is no id");
  if (!options.cluster_id.is_nil() && *recorded != options.cluster_id) {
    return error(Code::conflict,
                 fmt::format("the metadata in {} belongs to cluster {}, not to {}", path_.string(),
                             *cluster, options.cluster_id.to_string()));
  }
  cluster_id_ = *recorded;
  TROUPE_TRY(const auto epoch, get(Table::meta, epoch_key));
  if (epoch && !to_number(epoch)) return damaged("its epoch is no number");
  epoch_ = to_number(epoch).value_or(0);
  return ok();
}

Status RocksStore::write_identity(const RocksOptions& options) {
  TROUPE_CHECK(make_missing_families());
  rocksdb::WriteBatch rows;
  rows.Put(family(Table::meta), slice(schema_key), std::to_string(options.schema));
  rows.Put(family(Table::meta), slice(cluster_key), options.cluster_id.to_string());
  cluster_id_ = options.cluster_id;
  return write(rows);
}

RocksStore::~RocksStore() {
  if (!db_) return;
  for (Family* handle : families_) {
    if (handle != nullptr) db_->DestroyColumnFamilyHandle(handle);
  }
  for (Family* handle : other_families_) db_->DestroyColumnFamilyHandle(handle);
  db_->Close();
}

Result<std::optional<std::string>> RocksStore::get(Table table, std::string_view key) {
  if (family(table) == nullptr) return std::optional<std::string>{};
  std::string value;
  const rocksdb::Status status =
      db_->Get(rocksdb::ReadOptions{}, family(table), slice(key), &value);
  if (status.IsNotFound()) return std::optional<std::string>{};
  if (!status.ok()) return failure(status);
  return std::optional{std::move(value)};
}

class RocksStore::Moment final : public Snapshot {
 public:
  explicit Moment(RocksStore& store) : store_(store), snapshot_(store.db_->GetSnapshot()) {}
  ~Moment() override { store_.db_->ReleaseSnapshot(snapshot_); }
  Result<Rows> scan(Table table, std::string_view prefix, const Page& page) override {
    rocksdb::ReadOptions options;
    options.snapshot = snapshot_;
    return store_.scan_as(options, table, prefix, page);
  }

 private:
  RocksStore& store_;
  const rocksdb::Snapshot* const snapshot_;
};

Result<Rows> RocksStore::scan(Table table, std::string_view prefix, const Page& page) {
  return scan_as(rocksdb::ReadOptions{}, table, prefix, page);
}

Result<std::unique_ptr<Snapshot>> RocksStore::snapshot() {
  return std::make_unique<Moment>(*this);
}

Result<Rows> RocksStore::scan_as(const rocksdb::ReadOptions& options, Table table,
                                 std::string_view prefix, const Page& page) const {
  Rows rows;
  if (family(table) == nullptr) return rows;
  const std::unique_ptr<rocksdb::Iterator> row{db_->NewIterator(options, family(table))};
  const bool from_start = page.after.empty() || page.after < prefix;
  row->Seek(from_start ? slice(prefix) : slice(page.after));
  if (!from_start && row->Valid() && row->key() == slice(page.after)) row->Next();
  for (; row->Valid() && row->key().starts_with(slice(prefix)); row->Next()) {
    if (rows.size() == page.rows_max) break;
    rows.emplace_back(row->key().ToString(), row->value().ToString());
  }
  if (!row->status().ok()) return failure(row->status());
  return rows;
}

Status RocksStore::commit(const Batch& batch, uint64_t epoch) {
  TROUPE_CHECK(check_batch(batch));
  if (read_only_) return error(Code::invalid, path_.string() + " was opened to be read");
  const std::lock_guard lock{commit_mutex_};
  if (const Status healthy = health(); !healthy) {
    return error(Code::unavailable, "the store failed earlier: " + healthy.error().message());
  }
  const uint64_t recorded = epoch_;
  if (epoch < recorded) {
    return error(Code::conflict,
                 fmt::format("epoch {} is older than the recorded epoch {}", epoch, recorded));
  }
  if (batch.empty() && epoch == recorded) return ok();
  rocksdb::WriteBatch rows{batch.bytes() + 32 * batch.size()};
  for (const Mutation& mutation : batch.mutations()) {
    if (mutation.value) {
      rows.Put(family(mutation.table), mutation.key, *mutation.value);
    } else {
      rows.Delete(family(mutation.table), mutation.key);
    }
  }
  if (epoch > recorded) {
    rows.Put(family(Table::meta), slice(epoch_key), std::to_string(epoch));
  }
  TROUPE_CHECK(write(rows));
  epoch_ = epoch;
  return ok();
}

// After a failed write or sync nobody knows what the file holds, and a retry could report a lost
// write as durable. So the store closes itself to writes; reopening it finds out.
Status RocksStore::write(rocksdb::WriteBatch& batch) {
  rocksdb::WriteOptions options;
  options.sync = true;
  const rocksdb::Status status = db_->Write(options, &batch);
  if (status.ok()) return ok();
  Error failed = failure(status);
  if (failed.code() == Code::unavailable) failed = error(Code::outcome_unknown, failed.message());
  log::error("metadata_write_failed", {{"error", failed}});
  const std::lock_guard lock{health_mutex_};
  health_ = failed;
  return failed;
}

Status RocksStore::health() const {
  const std::lock_guard lock{health_mutex_};
  return health_;
}

Result<std::unique_ptr<Checkpoint>> RocksStore::checkpoint() {
  // With less than this in the log its files are taken as they are: a backup then writes nothing to
  // the store. With more, what RocksDB would soon write to tables by itself is written first, so
  // that backups share it.
  constexpr uint64_t log_bytes_taken = uint64_t{1} << 20;
  if (const Status healthy = health(); !healthy) {
    return error(Code::unavailable, "the store failed earlier: " + healthy.error().message());
  }
  auto made = std::make_unique<RocksCheckpoint>(
      path_ / fmt::format("{}{}", checkpoint_prefix, ++checkpoints_));
  rocksdb::Checkpoint* maker = nullptr;
  rocksdb::Status status = rocksdb::Checkpoint::Create(db_.get(), &maker);
  const std::unique_ptr<rocksdb::Checkpoint> owned{maker};
  if (status.ok()) status = maker->CreateCheckpoint(made->folder().string(), log_bytes_taken);
  if (!status.ok()) return failure(status).context("make a checkpoint");
  return std::unique_ptr<Checkpoint>{std::move(made)};
}

}  // namespace

fs::path restoring_beside(const fs::path& path) {
  return path.string() + ".restoring";
}

Result<std::unique_ptr<Store>> open_rocksdb(const fs::path& path, const RocksOptions& options) {
  return RocksStore::open(path, options);
}

}  // namespace troupe
