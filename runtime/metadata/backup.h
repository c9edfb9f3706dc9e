// Backups of a store in a folder, and back: consistent copies that are taken while the store is in
// use, and share the files that they have in common.
//
//   troupe-backups      marks the folder, and is locked by whoever uses it
//   backups/000001      what belongs to backup 1: one line a file, and what the store held
//   files/HASH-NAME     the store's files, each kept once
//
// A backup is there once its file in backups/ is, which is written last. Each of these files is
// verified by a hash before it is believed.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/status.h"
#include "metadata/rocks_store.h"
#include "metadata/store.h"

namespace troupe {

struct BackupInfo {
  uint32_t number = 0;  // 1, 2, ... in its folder.
  ClusterId cluster;
  uint64_t schema = 0;
  uint64_t epoch = 0;
  WallTime taken;
  std::string state_hash;  // Store::state_hash() of exactly what is in it.
  uint64_t size_bytes = 0;
  uint64_t copied_bytes = 0;  // When it was made; the rest was there from earlier ones.
};

struct BackupOptions {
  std::filesystem::path folder;
  WallTime now;
  // So many whole backups stay, this one among them; 0: all.
  uint32_t keep = 0;
  // Set from another thread: end soon, with `cancelled`.
  const std::atomic<bool>* stop = nullptr;
  std::shared_ptr<DiskFaults> faults;  // Tests only.
};

// Adds a backup of what `store` holds now; commits go on meanwhile. Blocks on the disk.
// Errors: invalid (the folder holds something else, or is the store's own), conflict (it has
// another cluster's backups, or is in use), denied, exhausted (disk full), data_loss (the store or
// the folder is damaged), unimplemented (a newer Troupe's folder), cancelled; those of
// Store::checkpoint. After an error the folder lists what it did before, unless the message says
// that only the removal of older ones failed.
Result<BackupInfo> back_up(Store& store, const BackupOptions& options);

struct BackupList {
  std::vector<BackupInfo> backups;  // Oldest first.
  std::vector<Error> damaged;       // One for each whose record cannot be read; names the file.
};
// Reads records alone, not the files themselves; also while a backup is being written. Errors:
// not_found, invalid (no folder of backups), data_loss, denied.
Result<BackupList> list_backups(const std::filesystem::path& folder);

struct RestoreOptions {
  std::filesystem::path folder;
  uint32_t number = 0;  // 0: the newest.
  std::filesystem::path store;
  ClusterId cluster;  // Whose store it becomes; nil: that of the backup.
  // A store that is there is moved aside, never removed. Otherwise it is a conflict.
  bool replace = false;
  WallTime now;
  Batch changes;  // Made to what is restored, together with its epoch.
  uint64_t schema = schema_version;
  std::shared_ptr<DiskFaults> faults;  // Tests only.
};

struct Restored {
  BackupInfo backup;
  uint64_t epoch = 0;                 // The store's from now on; above any that the cluster used.
  std::filesystem::path moved_aside;  // Empty: there was no store.
};

// Makes `store` what the backup holds, whole or not at all. No head may use it. Blocks on the disk.
//
// Epochs fence: a worker refuses a head whose epoch is below one that it has seen, so the restored
// store must begin above all that its cluster ever used, also after the backup was taken. It begins
// at the largest of: the epochs of all backups in the folder and of the store that is moved aside,
// and the microseconds since 1970, now or when the newest backup was taken. Why that is above all:
// an epoch is one more than its predecessor's, a head's start takes more than a microsecond, and
// the first is 1; so no epoch passes the microseconds of the moment at which it began, and this
// stays true after a restore, which sets it to just those. It needs a clock that is not behind what
// it was at an earlier restore; where it is, the other three still count, and if they are lost as
// well, workers refuse the head: nothing is done twice.
//
// Errors: not_found (no such backup), conflict (another cluster's, or a store is there or in use),
// unimplemented (a newer Troupe's), data_loss (damaged: names the file, and a backup that is
// whole), denied, exhausted.
Result<Restored> restore_backup(const RestoreOptions& options);

}  // namespace troupe
