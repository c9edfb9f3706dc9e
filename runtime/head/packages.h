// The packages of jobs: fetched once from a driver, kept in files, given to every worker that asks.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "head/jobs.h"
#include "head/options.h"
#include "packages/folder.h"
#include "packages/transfer.h"
#include "transport/peer.h"

namespace troupe::head {

class Packages {
 public:
  // All outlive it. `needed` gives the jobs that ended but have actors which live on.
  Packages(transport::Environment environment, const HeadOptions& options, Scope& scope, Jobs& jobs,
           std::function<std::set<JobId>()> needed);

  // Opens the folder. Errors: those of Folder::open.
  Async<Status> start();

  // Answers get_package, for as long as a job that runs or is needed names the package. Errors:
  // not_found, unavailable (the job's driver has it and is away), data_loss (the driver's file
  // changed), exhausted (the disk is full).
  Async<Status> give(transport::Message request, transport::CallContext call,
                     transport::OutgoingStream& out);
  // Returns once all packages of the job are here, so that its driver is not needed for them.
  Async<Status> hold(JobId job);
  // Some job or actor ended: removes, a little later, what nobody names any more.
  void collect_soon();

 private:
  struct Fetch {
    explicit Fetch(const Executor& loop) : done(loop) {}
    std::optional<Result<packages::PackageFilePointer>> outcome;
    Event done;
  };

  // The package's file; shared among all who ask.
  Async<Result<packages::PackageFilePointer>> find(std::string hash, std::string path);
  Async<void> fetch(std::string hash, std::string path, std::shared_ptr<Fetch> fetch);
  Async<Result<packages::PackageFilePointer>> fetch_from_drivers(std::string hash,
                                                                 std::string path);
  Async<void> collect();

  transport::Environment environment_;
  const HeadOptions& options_;
  Scope& scope_;
  Jobs& jobs_;
  std::function<std::set<JobId>()> needed_;
  std::optional<packages::Folder> folder_;
  std::map<std::string, std::shared_ptr<Fetch>> fetches_;  // Under way, by hash.
  size_t kept_ = 0;                                        // Files in the folder, or more.
  std::set<JobId> held_;                                   // Whose packages are all here.
  bool removing_ = false;
  Event removed_;
  bool collecting_ = false;
  bool collect_again_ = false;
};

}  // namespace troupe::head
