// The packages of jobs: fetched once from a driver, kept in files, given to every worker that asks.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "head/jobs.h"
#include "head/options.h"
#include "head/replicator.h"
#include "packages/folder.h"
#include "packages/transfer.h"
#include "transport/peer.h"

namespace troupe::head {

class Packages {
 public:
  // All outlive it. `needed` gives the jobs that ended but have actors which live on; `replicator`
  // is null for the only head.
  Packages(transport::Environment environment, const HeadOptions& options, Scope& scope,
           Journal& journal, Jobs& jobs, std::function<std::set<JobId>()> needed,
           Replicator* replicator);

  // Opens the folder. Errors: those of Folder::open.
  Async<Status> start();

  // Answers get_package, for as long as a job that runs or is needed names the package. Errors:
  // not_found, unavailable (the job's driver has it and is away), data_loss (the driver's file
  // changed), exhausted (the disk is full).
  Async<Status> give(transport::Message request, transport::CallContext call,
                     transport::OutgoingStream& out);
  // Answers get_package of a head that stands by. Errors: not_found.
  Async<Status> copy(protocol::GetPackage request, transport::OutgoingStream& out);
  // Returns once all packages of the job are here, and at the other heads that may lead, so that
  // its driver is not needed for them.
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
  Async<Result<packages::PackageFilePointer>> find(protocol::Package package);
  Async<void> fetch(protocol::Package package, std::shared_ptr<Fetch> fetch);
  Async<Result<packages::PackageFilePointer>> fetch_from_drivers(protocol::Package package);
  std::vector<packages::Folder::Entry> unneeded(
      const std::vector<packages::Folder::Entry>& entries);
  Async<void> collect();

  transport::Environment environment_;
  const HeadOptions& options_;
  Scope& scope_;
  Journal& journal_;
  Jobs& jobs_;
  std::function<std::set<JobId>()> needed_;
  Replicator* const replicator_;
  std::optional<packages::Folder> folder_;
  std::map<std::string, std::shared_ptr<Fetch>> fetches_;  // Under way, by hash.
  uint64_t fetching_bytes_ = 0;                            // Of those, from drivers.
  size_t kept_ = 0;                                        // Files in the folder, or more.
  std::map<JobId, size_t> held_;  // How many packages of it are held; it may have more by now.
  bool removing_ = false;
  Event removed_;
  bool collecting_ = false;
  bool collect_again_ = false;
};

}  // namespace troupe::head
