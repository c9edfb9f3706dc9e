// A folder of backups: its lock, its records, its files. Private to backup.cc and restore.cc.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/file_descriptor.h"
#include "base/status.h"
#include "metadata/backup.h"
#include "metadata/backup_files.h"

namespace troupe {

struct BackedFile {
  std::string name;  // In the store.
  FileContent content;
};

// What belongs to one backup.
struct BackupRecord {
  BackupInfo info;
  std::vector<BackedFile> files;
};

std::string write_record(const BackupRecord& record);
// Errors: data_loss (damaged; names the file), unimplemented (a newer Troupe wrote it).
Result<BackupRecord> read_record(std::string_view text, const std::filesystem::path& path);

struct BackupRecords {
  std::vector<BackupRecord> whole;  // Oldest first.
  struct Damaged {
    uint32_t number = 0;
    Error why;
  };
  std::vector<Damaged> damaged;
};

// Locked for as long as it lives: by one who writes, or by any number who read its files.
class BackupFolder {
 public:
  // Makes it if it is not there or empty. Errors: invalid (something else is in it), denied,
  // conflict (in use), exhausted, data_loss (its mark is damaged), unimplemented.
  static Result<BackupFolder> open_to_write(const std::filesystem::path& path,
                                            const FileHelp& help);
  // Errors: also not_found.
  static Result<BackupFolder> open_to_read(const std::filesystem::path& path);
  // Not locked: for the records alone, of which each is there whole or not.
  static Result<BackupFolder> look_at(const std::filesystem::path& path);

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path records_folder() const { return path_ / "backups"; }
  std::filesystem::path record_path(uint32_t number) const;
  std::filesystem::path files_folder() const { return path_ / "files"; }
  // Equal content has equal names, so that backups share it.
  std::filesystem::path path_of(const BackedFile& file) const;

  // Errors: those of reading the folder; unimplemented (a newer Troupe's record is there).
  Result<BackupRecords> read_records() const;
  // Whether the file is there as it was written. Errors: data_loss (names it), cancelled, ...
  Status verify(const BackedFile& file, const FileHelp& help) const;
  Status verify(const BackupRecord& record, const FileHelp& help) const;
  // Removes what no record names: left by a backup that failed or was removed. Nothing while a
  // record is damaged, for nobody knows what it names.
  Status remove_strays() const;

 private:
  BackupFolder(std::filesystem::path path, FileDescriptor mark)
      : path_(std::move(path)), mark_(std::move(mark)) {}
  Status check_mark() const;

  std::filesystem::path path_;
  FileDescriptor mark_;  // Holds the lock.
};

}  // namespace troupe
