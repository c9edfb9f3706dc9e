// The packages of jobs on this node: a local file where it is the same, else one that came from the
// head and is kept for later. And checkpoints of actors that start here.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "packages/folder.h"
#include "packages/transfer.h"
#include "transport/environment.h"
#include "worker/head_link.h"
#include "worker/options.h"

namespace troupe::worker {

// Where a checkpoint lies, unpacked; it stays there for as long as somebody holds this.
using CheckpointFolder = std::shared_ptr<const std::string>;

class PackageCache {
 public:
  // All outlive it. `in_use`: whether a job runs, or has processes here.
  PackageCache(transport::Environment environment, Scope& scope, const WorkerOptions& options,
               const HeadLink& head, std::function<bool(JobId)> in_use);

  // Where the package lies on this node: a module's file, or the directory that an archive was
  // unpacked to. One fetch for all who ask meanwhile; it goes on when this returns early. Errors:
  // deadline_exceeded (it is still coming), unavailable (no head), data_loss, exhausted, and what
  // the head said.
  Async<Result<std::string>> get(JobId job, protocol::Package package, Instant deadline);

  // The same of an actor's checkpoint, which only the head has.
  Async<Result<CheckpointFolder>> checkpoint(JobId job, ActorId actor, protocol::Package package,
                                             Instant deadline);

 private:
  struct Fetch {
    explicit Fetch(const Executor& loop) : done(loop) {}
    JobId job;
    ActorId actor;  // Nil: it is not its checkpoint.
    std::optional<Result<std::string>> outcome;
    Event done;
  };
  // Nothing: the file at this path is another, or none.
  Async<Result<std::optional<std::string>>> local_file(protocol::Package package);
  Async<Result<std::string>> get_of(JobId job, ActorId actor, protocol::Package package,
                                    Instant deadline);
  Async<void> fetch(protocol::Package package, std::shared_ptr<Fetch> fetch);
  Async<Result<std::string>> find_or_fetch(JobId job, ActorId actor, protocol::Package package);
  CheckpointFolder hold(const std::string& hash);
  bool is_held(const std::string& hash) const;
  Async<Status> open();
  Async<void> make_room();

  transport::Environment environment_;
  Scope& scope_;
  const WorkerOptions& options_;
  const HeadLink& head_;
  std::function<bool(JobId)> in_use_;
  std::optional<packages::Folder> folder_;
  std::map<packages::FileMark, std::string> hashes_;  // Of local files; bounded.
  std::map<std::string, std::shared_ptr<Fetch>> fetches_;
  std::map<std::string, std::set<JobId>> users_;                  // By hash.
  std::map<std::string, std::weak_ptr<const std::string>> held_;  // Checkpoints, by hash.
  bool opening_ = false;
  Event opened_;
  bool removing_ = false;
  Event removed_;
};

}  // namespace troupe::worker
