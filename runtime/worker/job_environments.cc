#include "worker/job_environments.h"

#include <fmt/format.h>

#include <algorithm>

#include "packages/shelf.h"

namespace troupe::worker {

using protocol::JobInfo;
using protocol::Package;
using transport::Method;

namespace {

constexpr Duration question_budget = std::chrono::seconds(10);

// A plugin's name has no file of the driver's.
bool is_path(const std::string& module) {
  return module.find('/') != module.npos;
}

const Package* module_package(const JobInfo& info, const std::string& module) {
  const auto& packages = info.environment.packages;
  const auto found = std::ranges::find_if(packages, [&](const Package& package) {
    return package.kind == packages::module_kind && package.path == module;
  });
  return found == packages.end() ? nullptr : &*found;
}

const Package* working_folder(const JobInfo& info) {
  const auto& packages = info.environment.packages;
  const auto found = std::ranges::find(packages, packages::working_folder_kind, &Package::kind);
  return found == packages.end() ? nullptr : &*found;
}

}  // namespace

JobEnvironments::JobEnvironments(transport::Environment environment, Scope& scope,
                                 const HeadLink& head, PackageCache& packages)
    : environment_(environment), scope_(scope), head_(head), packages_(packages) {}

std::vector<JobId> JobEnvironments::known() const {
  std::vector<JobId> jobs;
  for (const auto& [job, known] : known_) jobs.push_back(job);
  return jobs;
}

Async<Result<Surroundings>> JobEnvironments::prepare(JobId job, std::string module,
                                                     Instant deadline) {
  Surroundings made;
  if (job.is_nil()) co_return made;
  TROUPE_CO_TRY(const Info info, co_await info_of(job, module, deadline));
  made.variables = info->environment.variables;
  made.name_space = info->name_space;
  if (info->environment.log_to_driver && info->state == "running") made.driver = info->driver;
  if (const Package* const found = working_folder(*info)) {
    Package package = *found;
    TROUPE_CO_TRY(made.working_folder, co_await packages_.get(job, std::move(package), deadline));
  }
  if (const Package* const found = module_package(*info, module)) {
    Package package = *found;
    TROUPE_CO_TRY(auto file, co_await packages_.get(job, std::move(package), deadline));
    if (file != module) made.module_file = std::move(file);
  }
  co_return made;
}

Async<Result<JobEnvironments::Info>> JobEnvironments::info_of(JobId job, std::string module,
                                                              Instant deadline) {
  if (const auto known = known_.find(job); known != known_.end()) {
    // Another program of the job may have brought the module later.
    const bool complete = !is_path(module) || module_package(*known->second.info, module) ||
                          known->second.absent.contains(module);
    if (complete) co_return known->second.info;
  }
  std::shared_ptr<Question>& entry = questions_[job];
  if (!entry) {
    entry = std::make_shared<Question>(environment_.loop);
    spawn(scope_, question(job, entry));
  }
  const auto asked = entry;
  if (!co_await wait_until(environment_.clock, deadline, asked->answered)) {
    co_return error(Code::deadline_exceeded, "the head did not yet say what the job is");
  }
  auto answer = *asked->answer;  // Named: GCC 12 traps on returning it from there.
  if (!answer) co_return answer;
  const auto known = known_.find(job);
  if (known != known_.end() && !module_package(**answer, module)) {
    known->second.absent.insert(module);
  }
  co_return answer;
}

Async<void> JobEnvironments::question(JobId job, std::shared_ptr<Question> question) {
  auto answer = co_await ask(job);
  Result<Info> info = Info{};
  if (answer) {
    info = std::make_shared<const JobInfo>(std::move(*answer));
  } else if (answer.error().code() == Code::not_found ||
             answer.error().code() == Code::unimplemented) {
    // Forgotten, so it needed nothing; or a head of an older version.
    info = std::make_shared<const JobInfo>();
  } else {
    info = std::move(answer).error();
  }
  questions_.erase(job);
  if (info && (*info)->state == "running") known_[job].info = *info;
  question->answer.emplace(std::move(info));
  question->answered.set();
}

Async<Result<JobInfo>> JobEnvironments::ask(JobId job) {
  const auto head = head_.peer();
  if (!head) co_return error(Code::unavailable, "the head is away");
  protocol::GetJob request{job};
  co_return co_await transport::call<JobInfo>(head, Method::get_job, request, question_budget);
}

}  // namespace troupe::worker
