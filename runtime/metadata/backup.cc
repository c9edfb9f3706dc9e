#include "metadata/backup.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "base/log.h"
#include "metadata/backup_folder.h"
#include "metadata/rocks_files.h"

// Why not RocksDB's BackupEngine, which copies incrementally, too: it takes what is told about a
// backup before it has looked at the store, so that the hash of just this state could not be in it;
// its record of a backup has no checksum of its own, so that a flipped bit there goes unnoticed;
// and its errors do not name the file. A checkpoint is the part of it that is hard, and RocksDB's
// own: links to tables, which never change, and a copy of the little else there is.

namespace troupe {
namespace {

namespace fs = std::filesystem;

bool is_within(const fs::path& inner, const fs::path& outer) {
  const auto [outer_end, inner_end] =
      std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
  return outer_end == outer.end();
}

Status check_apart(const fs::path& folder, const fs::path& store) {
  std::error_code failed;
  const fs::path inner = fs::weakly_canonical(folder, failed);
  if (failed) return disk_error("find", folder, failed.value());
  const fs::path outer = fs::weakly_canonical(store, failed);
  if (failed) return disk_error("find", store, failed.value());
  if (!is_within(inner, outer)) return ok();
  return error(Code::invalid,
               fmt::format("{} is inside the head's own store {}, with which it would be lost: "
                           "choose a folder elsewhere, best on another disk",
                           folder.string(), store.string()));
}

Status check_cluster(const BackupFolder& folder, const BackupRecords& records, ClusterId cluster) {
  for (const BackupRecord& record : records.whole) {
    if (record.info.cluster == cluster) continue;
    return error(
        Code::conflict,
        fmt::format("{} has backups of cluster {}, not of {}: choose another folder",
                    folder.path().string(), record.info.cluster.to_string(), cluster.to_string()));
  }
  return ok();
}

uint32_t next_number(const BackupRecords& records) {
  uint32_t last = records.whole.empty() ? 0 : records.whole.back().info.number;
  for (const auto& damaged : records.damaged) last = std::max(last, damaged.number);
  return last + 1;
}

// Copies into the folder, and takes back what it copied unless it is told that it is named now.
class Copies {
 public:
  Copies(const BackupFolder& folder, const FileHelp& help) : folder_(folder), help_(help) {}
  Copies(const Copies&) = delete;
  Copies& operator=(const Copies&) = delete;
  ~Copies() {
    for (const fs::path& path : made_) ::unlink(path.c_str());
  }

  Result<BackedFile> add(const fs::path& from) {
    BackedFile file{from.filename().string(), {}};
    TROUPE_TRY(file.content, read_content(from, help_));
    const fs::path to = folder_.path_of(file);
    // What is there is read again: it would be of no use to this backup if it had been damaged.
    const Status there = folder_.verify(file, help_);
    if (there) return file;
    if (there.error().code() != Code::data_loss) return there.error();
    std::error_code ignored;
    const bool damaged = fs::exists(to, ignored);
    if (damaged) log::warning("backup_file_written_anew", {{"why", there.error()}});
    const fs::path temporary = to.string() + ".tmp";
    TROUPE_TRY(const FileContent copied, copy_file(from, temporary, help_));
    if (copied != file.content) {
      ::unlink(temporary.c_str());
      return error(Code::data_loss, from.string() + " reads differently every time");
    }
    if (::rename(temporary.c_str(), to.c_str()) != 0) {
      const int number = errno;
      ::unlink(temporary.c_str());
      return disk_error("rename", temporary, number);
    }
    if (!damaged) made_.push_back(to);
    copied_bytes_ += copied.size_bytes;
    return file;
  }
  uint64_t copied_bytes() const { return copied_bytes_; }
  void are_named() { made_.clear(); }

 private:
  const BackupFolder& folder_;
  const FileHelp help_;
  std::vector<fs::path> made_;
  uint64_t copied_bytes_ = 0;
};

// What the checkpoint holds, read from it itself: the store has moved on meanwhile.
Status describe(const fs::path& checkpoint, BackupInfo& info) {
  RocksOptions options;
  options.read_only = true;
  TROUPE_TRY(const auto store, open_rocksdb(checkpoint, options));
  TROUPE_TRY(info.state_hash, store->state_hash());
  TROUPE_TRY(const auto schema, store->get(Table::meta, schema_key));
  if (!schema) return error(Code::internal, "a store was opened that has no schema");
  const auto parsed = std::from_chars(schema->data(), schema->data() + schema->size(), info.schema);
  TROUPE_ASSERT(parsed.ec == std::errc{}, "it was read when the store was opened");
  info.cluster = store->cluster_id();
  info.epoch = store->epoch();
  return ok();
}

Result<BackupRecord> copy_checkpoint(Store& store, const FileHelp& help, Copies& copies) {
  TROUPE_TRY(const auto checkpoint, store.checkpoint());
  BackupRecord record;
  TROUPE_CHECK(describe(checkpoint->folder(), record.info));
  std::vector<fs::path> paths;
  std::error_code failed;
  for (fs::directory_iterator entry{checkpoint->folder(), failed}, end; !failed && entry != end;
       entry.increment(failed)) {
    paths.push_back(entry->path());
  }
  if (failed) return disk_error("read", checkpoint->folder(), failed.value());
  std::sort(paths.begin(), paths.end());
  for (const fs::path& path : paths) {
    if (help.stop != nullptr && *help.stop) return error(Code::cancelled, "the head is stopping");
    TROUPE_TRY(BackedFile file, copies.add(path));
    record.info.size_bytes += file.content.size_bytes;
    record.files.push_back(std::move(file));
  }
  record.info.copied_bytes = copies.copied_bytes();
  return record;
}

// Oldest first; those whose records are damaged are left to people.
Status keep_newest(const BackupFolder& folder, uint32_t keep) {
  if (keep == 0) return ok();
  TROUPE_TRY(const BackupRecords records, folder.read_records());
  if (records.whole.size() <= keep) return ok();
  for (size_t i = 0; i < records.whole.size() - keep; ++i) {
    const fs::path path = folder.record_path(records.whole[i].info.number);
    if (::unlink(path.c_str()) != 0) return disk_error("remove", path, errno);
  }
  // The records first: a file must not go before the last backup that names it.
  TROUPE_CHECK(sync_directory(folder.records_folder()));
  return folder.remove_strays();
}

// What to do about a disk's refusal, which is all that a caller sees of it.
Error with_advice(Error failure, const fs::path& folder) {
  if (failure.code() == Code::exhausted) {
    return error(Code::exhausted, fmt::format("{}: make room for {}, remove backups with --keep N, "
                                              "or choose a folder on another disk",
                                              failure.message(), folder.string()));
  }
  if (failure.code() == Code::denied) {
    return error(
        Code::denied,
        fmt::format("{}: choose a folder that the head's user, and nobody else, may write to",
                    failure.message()));
  }
  return failure;
}

Result<BackupInfo> add_backup(Store& store, const BackupOptions& options) {
  const FileHelp help{options.faults.get(), options.stop};
  TROUPE_CHECK(check_apart(options.folder, store.folder()));
  TROUPE_TRY(const BackupFolder folder, BackupFolder::open_to_write(options.folder, help));
  TROUPE_TRY(const BackupRecords before, folder.read_records());
  TROUPE_CHECK(check_cluster(folder, before, store.cluster_id()));
  TROUPE_CHECK(folder.remove_strays());
  Copies copies{folder, help};
  TROUPE_TRY(BackupRecord record, copy_checkpoint(store, help, copies));
  record.info.number = next_number(before);
  record.info.taken = options.now;
  TROUPE_CHECK(sync_directory(folder.files_folder()));
  const fs::path path = folder.record_path(record.info.number);
  if (Status written = write_text(path, write_record(record), help); !written) {
    ::unlink(path.c_str());  // It may be there, and not for certain.
    return std::move(written).error();
  }
  copies.are_named();
  if (Status kept = keep_newest(folder, options.keep); !kept) {
    return std::move(kept).error().context(
        fmt::format("backup {} is made, but older ones could not be removed", record.info.number));
  }
  return record.info;
}

}  // namespace

Result<BackupInfo> back_up(Store& store, const BackupOptions& options) {
  if (store.folder().empty()) return error(Code::unimplemented, "this store has no files");
  auto made = add_backup(store, options);
  if (!made) return with_advice(std::move(made).error(), options.folder);
  return made;
}

Result<BackupList> list_backups(const fs::path& path) {
  TROUPE_TRY(const BackupFolder folder, BackupFolder::look_at(path));
  TROUPE_TRY(BackupRecords records, folder.read_records());
  BackupList list;
  for (BackupRecord& record : records.whole) list.backups.push_back(std::move(record.info));
  for (auto& damaged : records.damaged) list.damaged.push_back(std::move(damaged.why));
  return list;
}

}  // namespace troupe
