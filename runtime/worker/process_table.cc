#include "worker/process_table.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/log.h"
#include "worker/timelines.h"

namespace troupe::worker {

ProcessTable::ProcessTable(transport::Environment environment, Scope& scope,
                           ProcessLauncher& launcher, const WorkerOptions& options,
                           transport::Service& service, std::function<void(HostedProcess&)> on_exit)
    : environment_(environment),
      scope_(scope),
      launcher_(launcher),
      options_(options),
      service_(service),
      on_exit_(std::move(on_exit)),
      changed_(environment.loop) {}

Result<HostedProcess::Pointer> ProcessTable::launch(const Request& request) {
  if (stopping_) return error(Code::unavailable, "this worker stops");
  LaunchSpec spec;
  spec.process = ProcessId::random(environment_.random);
  spec.node = options_.node;
  spec.log_path = fmt::format("{}/{}.log", options_.log_folder, spec.process.to_string());
  // Threads of OpenMP that spin for work starve others: seen 100-fold on a machine with fewer cores
  // than threads. An actor may ask for the other.
  spec.environment.push_back({"OMP_WAIT_POLICY", "passive"});
  const auto append = [&spec](const std::vector<protocol::NamedValue>& variables) {
    spec.environment.insert(spec.environment.end(), variables.begin(), variables.end());
  };
  append(request.surroundings.variables);
  append(request.environment);
  spec.working_folder = request.surroundings.working_folder;
  // The worker's own values come last and so win.
  const auto set = [&spec](std::string name, std::string value) {
    spec.environment.push_back({std::move(name), std::move(value)});
  };
  std::vector<uint32_t> gpus = request.devices;
  for (uint32_t& gpu : gpus) gpu += options_.first_gpu;
  set("CUDA_VISIBLE_DEVICES", fmt::format("{}", fmt::join(gpus, ",")));
  set("TROUPE_PROCESS_ID", spec.process.to_string());
  set("TROUPE_NODE_ID", options_.node.to_string());
  set("TROUPE_JOB_ID", request.job.to_string());
  set("TROUPE_NAMESPACE", request.surroundings.name_space);
  // Its code goes by the name that it has at the driver, wherever it lies here.
  if (!request.surroundings.module_file.empty()) {
    set("TROUPE_MODULE", request.module);
    set("TROUPE_MODULE_FILE", request.surroundings.module_file);
  }
  TROUPE_TRY(auto launched, launcher_.launch(spec));
  auto process = std::make_shared<HostedProcess>(environment_, scope_, spec.process, request.job,
                                                 spec.log_path, std::move(launched));
  processes_.emplace(spec.process, process);
  spawn(scope_, watch(process));
  return process;
}

Async<void> ProcessTable::watch(HostedProcess::Pointer process) {
  co_await process->exited().wait();
  log::info("process_exited", {{"process", process->id()},
                               {"pid", process->pid()},
                               {"reason", process->exit_reason()},
                               {"actor", process->work.actor},
                               {"lease", process->work.lease}});
  if (process->peer()) process->peer()->close();
  processes_.erase(process->id());
  on_exit_(*process);
  changed_.pulse();
}

void ProcessTable::note_started(const std::string& what, Instant began, bool has_failed) const {
  note(options_, {TimelineKind::process_started, what, {}, began, 0, has_failed});
}

void ProcessTable::note_actor(ActorId actor, const std::string& what, uint32_t incarnation,
                              Instant began, bool has_failed) const {
  note(options_, {TimelineKind::actor_started, what, actor, began, incarnation, has_failed});
}

HostedProcess::Pointer ProcessTable::find(ProcessId process) const {
  const auto found = processes_.find(process);
  return found == processes_.end() ? nullptr : found->second;
}

std::vector<HostedProcess::Pointer> ProcessTable::all() const {
  std::vector<HostedProcess::Pointer> all;
  for (const auto& [id, process] : processes_) all.push_back(process);
  return all;
}

bool ProcessTable::has_any_of(JobId job) const {
  return std::ranges::any_of(processes_,
                             [job](const auto& entry) { return entry.second->job() == job; });
}

Async<void> ProcessTable::end_one(HostedProcess::Pointer process, Duration grace) {
  co_await HostedProcess::end(process, grace);
}

Async<void> ProcessTable::end_all(Duration grace) {
  stopping_ = true;
  for (const auto& [id, process] : processes_) spawn(scope_, end_one(process, grace));
  while (!processes_.empty()) co_await changed_.wait();
}

}  // namespace troupe::worker
