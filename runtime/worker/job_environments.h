// What the processes of each job find around them on this node: asked of the head before the first
// one starts, and kept until the job ends.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "transport/environment.h"
#include "worker/head_link.h"
#include "worker/package_cache.h"

namespace troupe::worker {

// Of a process that runs one module.
struct Surroundings {
  std::vector<protocol::NamedValue> variables;
  std::string name_space;      // Of its job; empty: the default.
  std::string working_folder;  // Empty: the worker's own.
  std::string module_file;     // Where its module lies here; empty: at its name.
  std::optional<protocol::ProcessAddress> driver;  // Wants to read what the process writes.
};

class JobEnvironments {
 public:
  // All outlive it.
  JobEnvironments(transport::Environment environment, Scope& scope, const HeadLink& head,
                  PackageCache& packages);

  // Everything that such a process needs is on this node when this returns. Starts at the same time
  // share their questions. Errors: unavailable (no head), deadline_exceeded (a package is still
  // coming: ask again), those of PackageCache::get.
  Async<Result<Surroundings>> prepare(JobId job, std::string module, Instant deadline);
  // The head's answer, anew. Errors: those of the head.
  Async<Result<protocol::JobInfo>> ask(JobId job);

  void job_ended(JobId job) { known_.erase(job); }
  bool knows(JobId job) const { return known_.contains(job); }
  std::vector<JobId> known() const;

 private:
  using Info = std::shared_ptr<const protocol::JobInfo>;
  struct Question {
    explicit Question(const Executor& loop) : answered(loop) {}
    std::optional<Result<Info>> answer;
    Event answered;
  };
  struct Known {
    Info info;
    std::set<std::string> absent;  // Modules that it was asked for again, in vain.
  };

  Async<Result<Info>> info_of(JobId job, std::string module, Instant deadline);
  Async<void> question(JobId job, std::shared_ptr<Question> question);

  transport::Environment environment_;
  Scope& scope_;
  const HeadLink& head_;
  PackageCache& packages_;
  std::map<JobId, Known> known_;  // Of jobs that run.
  std::map<JobId, std::shared_ptr<Question>> questions_;
};

}  // namespace troupe::worker
