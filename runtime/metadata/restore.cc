#include <fmt/chrono.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ranges>

#include "base/log.h"
#include "metadata/backup.h"
#include "metadata/backup_folder.h"
#include "metadata/rocks_files.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;

uint64_t microseconds(WallTime time) {
  const int64_t count = time.time_since_epoch() / std::chrono::microseconds(1);
  return static_cast<uint64_t>(std::max<int64_t>(count, 0));
}

// Reads the files of the others until one is whole.
std::string advise_another(const BackupFolder& folder, const BackupRecords& records,
                           uint32_t number) {
  for (const BackupRecord& record : std::ranges::reverse_view(records.whole)) {
    if (record.info.number == number || !folder.verify(record, {})) continue;
    return fmt::format("backup {} is whole: take it with --number {}", record.info.number,
                       record.info.number);
  }
  return fmt::format("no other backup in {} is whole", folder.path().string());
}

class Restorer {
 public:
  Restorer(const RestoreOptions& options, const BackupFolder& folder, const BackupRecords& records)
      : options_(options), folder_(folder), records_(records) {}
  Restorer(const Restorer&) = delete;
  Restorer& operator=(const Restorer&) = delete;
  ~Restorer() {
    if (!made_) return;
    std::error_code ignored;
    fs::remove_all(staging_, ignored);
  }

  Result<Restored> run() {
    TROUPE_TRY(const BackupRecord* const record, choose());
    TROUPE_CHECK(admit(record->info));
    TROUPE_CHECK(look_at_destination());
    if (Status copied = copy(*record); !copied) return advised(copied.error(), *record);
    if (Status same = compare(record->info); !same) return advised(same.error(), *record);
    Restored restored;
    restored.backup = record->info;
    TROUPE_TRY(restored.epoch, raise_epoch());
    TROUPE_TRY(restored.moved_aside, put_in_place());
    return restored;
  }

 private:
  Result<const BackupRecord*> choose() const {
    const uint32_t newest = records_.whole.empty() ? 0 : records_.whole.back().info.number;
    const uint32_t wanted = options_.number == 0 ? newest : options_.number;
    for (const auto& damaged : records_.damaged) {
      // The newest is damaged: an older state must be somebody's decision.
      const bool meant = options_.number == 0 ? damaged.number > newest : damaged.number == wanted;
      if (!meant) continue;
      return error(
          Code::data_loss,
          fmt::format("backup {} cannot be restored: {}; nothing was changed; {}", damaged.number,
                      damaged.why.message(), advise_another(folder_, records_, damaged.number)));
    }
    for (const BackupRecord& record : records_.whole) {
      if (record.info.number == wanted) return &record;
    }
    if (records_.whole.empty()) {
      return error(Code::not_found, "there is no backup in " + folder_.path().string());
    }
    return error(Code::not_found,
                 fmt::format("there is no backup {} in {}: 'troupe backup {} --list' shows which "
                             "there are",
                             wanted, folder_.path().string(), folder_.path().string()));
  }

  Status admit(const BackupInfo& info) const {
    if (info.schema > options_.schema) {
      return error(Code::unimplemented,
                   fmt::format("backup {} in {} has schema {}, written by a newer Troupe; this "
                               "build reads up to {}: restore it with that Troupe, or take an "
                               "older backup with --number",
                               info.number, folder_.path().string(), info.schema, options_.schema));
    }
    if (options_.cluster.is_nil() || options_.cluster == info.cluster) return ok();
    return error(Code::conflict,
                 fmt::format("backup {} in {} is of cluster {}, and {} is for cluster {}: restore "
                             "it into the state folder of its own cluster, or into a new one",
                             info.number, folder_.path().string(), info.cluster.to_string(),
                             options_.store.string(), options_.cluster.to_string()));
  }

  // Also keeps a head out of a store that is there.
  Status look_at_destination() {
    std::error_code failed;
    if (!fs::exists(options_.store, failed)) return ok();
    if (!fs::is_directory(options_.store, failed)) {
      return error(Code::invalid, options_.store.string() + " is no folder");
    }
    auto lock = DirectoryLock::acquire(options_.store);
    if (!lock) {
      return std::move(lock).error().context("restore only where no head runs ('troupe down')");
    }
    lock_.emplace(std::move(*lock));
    for (fs::directory_iterator entry{options_.store, failed}, end; !failed && entry != end;
         entry.increment(failed)) {
      occupied_ = occupied_ || entry->path().filename() != "head.lock";
    }
    if (failed) return disk_error("read", options_.store, failed.value());
    if (!occupied_ || options_.replace) return ok();
    return error(Code::conflict,
                 fmt::format("there is metadata in {} already: --force moves it aside and restores "
                             "in its place",
                             options_.store.string()));
  }

  Status copy(const BackupRecord& record) {
    std::error_code failed;
    // Never an old store: what is moved aside has another name.
    fs::remove_all(staging_, failed);
    if (failed) return disk_error("remove", staging_, failed.value());
    made_ = true;
    TROUPE_CHECK(make_private_directory(staging_));
    const FileHelp help{options_.faults.get(), nullptr};
    for (const BackedFile& file : record.files) {
      const fs::path from = folder_.path_of(file);
      auto content = copy_file(from, staging_ / file.name, help);
      if (!content && content.error().code() == Code::not_found) {
        return error(Code::data_loss, from.string() + " is missing");
      }
      if (!content) return std::move(content).error();
      if (*content == file.content) continue;
      return error(Code::data_loss,
                   from.string() + " is damaged: its hash is not that of what was written");
    }
    return sync_directory(staging_);
  }

  // The hash of the rows themselves: that all files are as they were does not say that they are
  // all.
  Status compare(const BackupInfo& info) const {
    RocksOptions options;
    options.read_only = true;
    options.cluster_id = info.cluster;
    options.schema = options_.schema;
    TROUPE_TRY(const auto store, open_rocksdb(staging_, options));
    TROUPE_TRY(const std::string found, store->state_hash());
    if (found == info.state_hash && store->epoch() == info.epoch) return ok();
    return error(Code::data_loss,
                 fmt::format("{} names files whose state has hash {}, epoch {}, not {}, epoch {}",
                             folder_.record_path(info.number).string(), found, store->epoch(),
                             info.state_hash, info.epoch));
  }

  Error advised(const Error& failure, const BackupRecord& record) const {
    const std::string what = fmt::format("backup {} cannot be restored: {}; nothing was changed",
                                         record.info.number, failure.message());
    if (failure.code() == Code::data_loss) {
      return error(Code::data_loss,
                   what + "; " + advise_another(folder_, records_, record.info.number));
    }
    if (failure.code() == Code::exhausted) {
      return error(Code::exhausted,
                   fmt::format("{}; make room where {} is", what, options_.store.string()));
    }
    return error(failure.code(), what);
  }

  // See restore_backup().
  Result<uint64_t> raise_epoch() const {
    uint64_t epoch = microseconds(options_.now);
    for (const BackupRecord& record : records_.whole) {
      epoch = std::max({epoch, record.info.epoch, microseconds(record.info.taken)});
    }
    if (occupied_) {
      RocksOptions options;
      options.read_only = true;
      auto old = open_rocksdb(options_.store, options);
      // It is being replaced because it is damaged, perhaps.
      if (old) {
        epoch = std::max(epoch, (*old)->epoch());
      } else {
        log::warning("replaced_store_not_read", {{"why", old.error()}});
      }
    }
    RocksOptions options;
    options.schema = options_.schema;
    options.faults = options_.faults;
    TROUPE_TRY(const auto store, open_rocksdb(staging_, options));
    ++epoch;
    TROUPE_CHECK(store->commit(options_.changes, epoch));
    return epoch;
  }

  // If it ends between the two renames there is no store, and the new one's place beside it keeps
  // a head from making an empty one; a second restore then does it all again.
  Result<fs::path> put_in_place() {
    std::error_code failed;
    fs::remove(staging_ / "head.lock", failed);
    TROUPE_CHECK(sync_directory(staging_));
    const fs::path parent = fs::absolute(options_.store).parent_path();
    fs::path aside;
    if (occupied_) {
      aside = free_name();
      fs::rename(options_.store, aside, failed);
      if (failed) return disk_error("move aside", options_.store, failed.value());
      TROUPE_CHECK(sync_directory(parent));
    } else if (lock_) {
      fs::remove(options_.store / "head.lock", failed);
      fs::remove(options_.store, failed);
      if (failed) return disk_error("remove", options_.store, failed.value());
    }
    fs::rename(staging_, options_.store, failed);
    if (failed) {
      made_ = aside.empty();  // Keeps a head out of the empty place.
      return disk_error("put in place", staging_, failed.value());
    }
    made_ = false;
    TROUPE_CHECK(sync_directory(parent));
    return aside;
  }

  fs::path free_name() const {
    const auto seconds = std::chrono::floor<std::chrono::seconds>(options_.now);
    const std::string name = fmt::format("{}.replaced-{:%Y%m%dT%H%M%SZ}", options_.store.string(),
                                         fmt::gmtime(seconds.time_since_epoch().count()));
    std::error_code ignored;
    for (int i = 1;; ++i) {
      fs::path path = i == 1 ? name : fmt::format("{}-{}", name, i);
      if (!fs::exists(path, ignored)) return path;
    }
  }

  const RestoreOptions& options_;
  const BackupFolder& folder_;
  const BackupRecords& records_;
  const fs::path staging_ = restoring_beside(options_.store);
  std::optional<DirectoryLock> lock_;
  bool occupied_ = false;
  bool made_ = false;  // staging_, and it goes again.
};

}  // namespace

Result<Restored> restore_backup(const RestoreOptions& options) {
  TROUPE_TRY(const BackupFolder folder, BackupFolder::open_to_read(options.folder));
  TROUPE_TRY(const BackupRecords records, folder.read_records());
  return Restorer{options, folder, records}.run();
}

}  // namespace troupe
