// The drivers' jobs: a job runs until its driver ends it or stays away for too long.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>

#include "head/journal.h"
#include "head/options.h"
#include "head/tables.h"
#include "transport/peer.h"

namespace troupe::head {

class JobListener {
 public:
  virtual ~JobListener() = default;
  // Within the turn; `written` is the ticket of the job's end.
  virtual void job_ended(const protocol::JobInfo& job, Journal::Ticket written) = 0;
};

class Jobs {
 public:
  Jobs(transport::Environment environment, const HeadOptions& options, Scope& scope,
       Journal& journal);

  void set_listener(JobListener& listener) { listener_ = &listener; }
  // Gives the jobs of what outlives them and still needs what is known of them.
  void set_needed(std::function<std::set<JobId>()> needed) { needed_ = std::move(needed); }
  // Drivers of running jobs have a window and the grace to come back.
  void restore(std::vector<protocol::JobInfo> jobs);

  // Durable on return. Idempotent by id: who joins a job adds its packages, and the first driver
  // its variables. Errors: invalid, conflict (it ended, or has another environment), exhausted.
  Async<Status> begin(protocol::BeginJob request, std::shared_ptr<transport::Peer> peer);
  // Durable on return. Idempotent: the first outcome stays. Errors: not_found.
  Async<Status> end(protocol::EndJob request);

  // A request came over this connection: if it is a running job's driver, the driver is back.
  void seen(transport::Peer& peer);
  void peer_closed(const transport::Peer& peer);

  // Whether something of this job may start. The nil job has no end. Errors: not_found, conflict.
  Status admits(JobId job) const;
  // Without environments, which may be large.
  std::vector<protocol::JobInfo> list() const;
  // Errors: not_found.
  Result<protocol::JobInfo> find(JobId job) const;
  // Of those that run and name the package: where it may be had, their drivers first.
  std::vector<std::shared_ptr<transport::Peer>> who_may_have(const std::string& package) const;
  // Whether a job that runs names it.
  bool names(const std::string& package) const;
  // Pulsed when a driver comes or goes, or a job ends.
  Event& drivers_changed() { return drivers_changed_; }
  size_t running() const { return jobs_.size() - ended_.size(); }

 private:
  struct Job {
    protocol::JobInfo info;
    Journal::Ticket written = 0;
    std::map<const transport::Peer*, std::weak_ptr<transport::Peer>> connections;
    uint64_t absences = 0;  // Tells an old grace from the current one.
  };

  void attach(JobId id, Job& job, transport::Peer& peer);
  Status join(Job& job, protocol::BeginJob request);
  void forget_oldest();
  Journal::Ticket finish(Job& job, const protocol::EndJob& request);
  void await_driver(JobId id, Duration grace);
  Async<void> end_unless_back(JobId id, uint64_t absence, Duration grace);
  uint64_t unix_us() const;

  transport::Environment environment_;
  const HeadOptions& options_;
  Scope& scope_;
  Journal& journal_;
  JobListener* listener_ = nullptr;
  std::map<JobId, Job> jobs_;
  std::map<const transport::Peer*, JobId> drivers_;
  std::deque<JobId> ended_;  // The latest; older ones are forgotten.
  std::function<std::set<JobId>()> needed_;
  Event drivers_changed_;
};

}  // namespace troupe::head
