// The packages of jobs on this node: a local file where it is the same, else one that came from the
// head and is kept for later.
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

 private:
  struct Fetch {
    explicit Fetch(const Executor& loop) : done(loop) {}
    JobId job;
    std::optional<Result<std::string>> outcome;
    Event done;
  };
  // Nothing: the file at this path is another, or none.
  Async<Result<std::optional<std::string>>> local_file(protocol::Package package);
  Async<void> fetch(protocol::Package package, std::shared_ptr<Fetch> fetch);
  Async<Result<std::string>> find_or_fetch(JobId job, protocol::Package package);
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
  std::map<std::string, std::set<JobId>> users_;  // By hash.
  bool opening_ = false;
  Event opened_;
  bool removing_ = false;
  Event removed_;
};

}  // namespace troupe::worker
