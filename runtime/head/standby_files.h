// The files that a standby's tables name, fetched from the head that leads and kept as durably as
// the tables.
#pragma once

#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "head/named_files.h"
#include "packages/folder.h"
#include "transport/environment.h"
#include "transport/peer.h"

namespace troupe::head {

struct StandbyFilesOptions {
  std::string package_folder;                       // Empty: none are kept.
  std::string checkpoint_folder;                    // The same.
  Duration silence_max = std::chrono::seconds(10);  // Between two chunks of one.
  Duration retry = std::chrono::seconds(1);         // After one that failed.
  // A file that was announced, and that no row has named for so long, goes.
  Duration unnamed_max = std::chrono::minutes(1);
};

class StandbyFiles {
 public:
  // All outlive it.
  StandbyFiles(transport::Environment environment, Store& store, Scope& scope,
               StandbyFilesOptions options);

  // Looks once which files there are, and which the tables name. Errors: those of Folder::open and
  // of Store::scan, data_loss.
  Async<Status> open();
  bool is_used() const;

  // From here on it fetches over this connection.
  void follow(std::shared_ptr<transport::Peer> leader);
  void part();

  // Fetched before others, and not removed, while this exists. What it is told not to have is
  // asked for again.
  class Need {
   public:
    Need(StandbyFiles& owner, std::vector<NamedFile> files);
    ~Need();
    Need(const Need&) = delete;
    Need& operator=(const Need&) = delete;
    // Whether each is here or is not there either.
    bool is_met() const;
    // The last one.
    const std::optional<Error>& failure() const { return failure_; }

   private:
    friend class StandbyFiles;
    StandbyFiles& owner_;
    const std::vector<NamedFile> files_;
    std::optional<Error> failure_;
  };
  // Some file came, or did not; or who leads has changed.
  Event& changed() { return changed_; }

  std::vector<NamedFile> named_by(const std::vector<FilesOfRow>& rows) const {
    return named_.named_by(rows);
  }
  // Rows that will name these may be written soon. Errors: not_found (the leader does not have
  // them), unavailable, exhausted, and those of the transfer.
  Async<Status> bring(std::vector<NamedFile> files, transport::CallContext call);
  // Of the tables, durably: what they name is fetched in the background, what they do not name any
  // more goes.
  void applied(const std::vector<FilesOfRow>& rows);
  // The tables are emptied. Nothing goes until sweep().
  void begin_copy();
  // What the tables do not name goes.
  void sweep();

  // Whether all that the tables name is here, but for what the leader does not have.
  bool is_complete() const { return missing_.empty(); }
  // What the leader was found not to have is asked for again.
  void ask_anew();

 private:
  // Each holds a descriptor and a few chunks.
  static constexpr size_t fetches_max = 4;

  struct Folders {
    std::optional<packages::Folder> packages;
    std::optional<packages::Folder> checkpoints;
  };
  const std::optional<packages::Folder>& folder_of(const FileName& name) const {
    return name.is_checkpoint ? folders_.checkpoints : folders_.packages;
  }
  bool is_settled(const FileName& name) const {
    return present_.contains(name) || lost_.contains(name);
  }
  bool is_needed(const FileName& name) const;
  void look_at(const FileName& name);
  void pump();
  // Null: nothing that could be fetched now.
  const NamedFile* next_wanted() const;
  Async<void> fetch(NamedFile file);
  Async<Status> fetch_from(std::shared_ptr<transport::Peer> leader, NamedFile file);
  void note_failure(const FileName& name, const Error& why);
  Async<void> remove(FileName name);
  Async<void> drop_announced();

  transport::Environment environment_;
  Store& store_;
  Scope& scope_;
  const StandbyFilesOptions options_;
  bool is_open_ = false;
  Folders folders_;
  NamedFiles named_;
  bool is_copying_ = false;
  std::set<FileName> present_;
  std::set<FileName> lost_;     // Named, and the leader does not have them.
  std::set<FileName> missing_;  // Named, and neither.
  std::set<FileName> fetching_;
  std::set<FileName> removing_;
  uint64_t fetching_bytes_ = 0;
  std::list<Need*> needs_;
  std::map<FileName, Instant> announced_;  // Kept until then, or a row names them.
  bool drops_ = false;
  FileName last_fetched_;  // The next one is behind it: one that fails keeps none from its turn.
  Instant pause_until_;
  std::string failure_;  // As it was logged.
  std::shared_ptr<transport::Peer> leader_;
  Event changed_;
};

}  // namespace troupe::head
