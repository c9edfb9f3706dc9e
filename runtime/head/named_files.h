// Which files the rows of the head's tables name: last checkpoints of actors, and packages of jobs
// that an actor outlives. A head that stands by keeps those, and no others.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "metadata/store.h"
#include "protocol/messages.h"

namespace troupe::head {

struct FileName {
  bool is_checkpoint = false;  // Else a package; each kind has a folder of its own.
  std::string hash;
  auto operator<=>(const FileName&) const = default;
};

struct NamedFile {
  FileName name;
  uint64_t size_bytes = 0;  // 0: not said.
  ActorId actor = {};       // Of a checkpoint: one that has it.
};

// What one row says of files.
struct FilesOfRow {
  ActorId actor;  // Whose row it is; nil: of `job`.
  JobId job;
  std::optional<NamedFile> checkpoint;  // Of an actor.
  JobId outlives;                       // Of an actor that needs the packages of this job.
  std::vector<NamedFile> packages;      // Of a job, whether or not they are needed.

  bool says_something() const { return checkpoint || !outlives.is_nil() || !packages.empty(); }
};

// None of a row that never names a file. A row that is gone says nothing. Errors: data_loss.
Result<std::optional<FilesOfRow>> files_of_row(Table table, const std::string& key,
                                               const std::optional<std::string>& value);
Result<std::vector<FilesOfRow>> files_of(const Batch& rows);

class NamedFiles {
 public:
  void clear();
  // What these rows would name.
  std::vector<NamedFile> named_by(const std::vector<FilesOfRow>& rows) const;
  // Returns what they name now, and what is not named any more.
  std::set<FileName> apply(const std::vector<FilesOfRow>& rows);
  // Null: nothing names it.
  const NamedFile* find(const FileName& name) const;
  std::vector<FileName> names() const;

 private:
  struct Use {
    NamedFile file;
    size_t rows = 0;
  };
  struct OfActor {
    std::optional<NamedFile> checkpoint;
    JobId outlives;
  };
  void add(const NamedFile& file, std::set<FileName>& touched);
  void remove(const NamedFile& file, std::set<FileName>& touched);
  void apply_actor(const FilesOfRow& row, std::set<FileName>& touched);
  void apply_job(const FilesOfRow& row, std::set<FileName>& touched);
  const std::vector<NamedFile>& packages_of(JobId job) const;

  std::map<FileName, Use> uses_;
  std::map<ActorId, OfActor> actors_;             // That say something.
  std::map<JobId, std::vector<NamedFile>> jobs_;  // That have packages.
  std::map<JobId, size_t> outlived_;              // By how many actors.
};

}  // namespace troupe::head
