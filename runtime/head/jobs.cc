#include "head/jobs.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "head/job_environment.h"

namespace troupe::head {

namespace {
constexpr size_t text_bytes_max = 256;
constexpr size_t entrypoint_bytes_max = 4096;
constexpr std::string_view default_name_space = "default";

// Whether processes that start after its end, of actors that outlive it, need to know of it.
bool outlives_its_end(const protocol::JobInfo& info) {
  const bool has_name_space = !info.name_space.empty() && info.name_space != default_name_space;
  return has_name_space || !info.environment.packages.empty() ||
         !info.environment.variables.empty();
}

}  // namespace

Jobs::Jobs(transport::Environment environment, const HeadOptions& options, Scope& scope,
           Journal& journal)
    : environment_(environment),
      options_(options),
      scope_(scope),
      journal_(journal),
      drivers_changed_(environment.loop) {}

uint64_t Jobs::unix_us() const {
  const auto since = environment_.clock.wall_now().time_since_epoch();
  return static_cast<uint64_t>(since / std::chrono::microseconds(1));
}

void Jobs::restore(std::vector<protocol::JobInfo> stored) {
  for (protocol::JobInfo& info : stored) {
    const JobId id = info.job;
    const bool runs = info.state == "running";
    jobs_[id].info = std::move(info);
    if (runs) {
      await_driver(id, options_.driver_silence + options_.driver_grace);
    } else {
      ended_.push_back(id);
    }
  }
}

Async<Status> Jobs::begin(protocol::BeginJob request, std::shared_ptr<transport::Peer> peer) {
  if (request.job.is_nil()) co_return error(Code::invalid, "a job needs an id");
  if (request.name.size() > text_bytes_max || request.name_space.size() > text_bytes_max ||
      request.entrypoint.size() > entrypoint_bytes_max) {
    co_return error(Code::invalid,
                    "a job's name and namespace have at most 256 bytes, its entrypoint 4096");
  }
  if (request.name_space.find('\0') != request.name_space.npos) {
    co_return error(Code::invalid, "a namespace has no NUL");  // It goes into an environment.
  }
  TROUPE_CO_CHECK(check(request.environment));
  const JobId id = request.job;
  if (const auto found = jobs_.find(id); found != jobs_.end()) {
    if (found->second.info.state != "running") {
      co_return error(Code::conflict,
                      fmt::format("job {} ended: {}", id.to_string(), found->second.info.message));
    }
    TROUPE_CO_CHECK(join(found->second, std::move(request)));
    attach(id, found->second, *peer);
    const Journal::Ticket written = found->second.written;
    co_return co_await journal_.settled(written);
  }
  if (running() >= options_.jobs_running_max) {
    co_return error(Code::exhausted, fmt::format("the cluster runs {} jobs", running()));
  }
  TROUPE_CO_CHECK(journal_.admits());
  Job& job = jobs_[id];
  job.info.job = id;
  job.info.name = std::move(request.name);
  job.info.entrypoint = std::move(request.entrypoint);
  job.info.name_space = std::move(request.name_space);
  job.info.state = "running";
  job.info.started_unix_us = unix_us();
  job.info.environment = std::move(request.environment);
  job.info.driver = peer->remote().address;
  attach(id, job, *peer);
  Batch batch;
  put_job(batch, job.info);
  const Journal::Ticket written = job.written = journal_.write(std::move(batch));
  if (job.connections.empty()) await_driver(id, options_.driver_grace);  // It is gone already.
  log::info("job_began", {{"job", id}, {"name", job.info.name}});
  co_return co_await journal_.settled(written);
}

// Another program of a submitted job, or the same once more.
Status Jobs::join(Job& job, protocol::BeginJob request) {
  // Until a program is there, nothing runs that has seen the variables.
  const bool open = !can_be_reached(job.info.driver);
  TROUPE_TRY(auto merged, merge(job.info.environment, std::move(request.environment), open));
  if (!merged) return ok();
  TROUPE_CHECK(journal_.admits());
  job.info.environment = std::move(*merged);
  Batch batch;
  put_job(batch, job.info);
  job.written = journal_.write(std::move(batch));
  return ok();
}

Async<Status> Jobs::end(protocol::EndJob request) {
  const auto found = jobs_.find(request.job);
  if (found == jobs_.end()) {
    TROUPE_CO_CHECK(co_await journal_.settled(journal_.latest()));
    co_return error(Code::not_found, "there is no job " + request.job.to_string());
  }
  Journal::Ticket written = found->second.written;
  if (found->second.info.state == "running") {
    TROUPE_CO_CHECK(journal_.admits());
    written = finish(found->second, request);  // Perhaps it is forgotten already.
  }
  co_return co_await journal_.settled(written);
}

Journal::Ticket Jobs::finish(Job& job, const protocol::EndJob& request) {
  job.info.state = request.succeeded ? "succeeded" : "failed";
  job.info.message = request.message.substr(0, entrypoint_bytes_max);
  job.info.ended_unix_us = unix_us();
  for (const auto& [peer, weak] : job.connections) drivers_.erase(peer);
  job.connections.clear();
  Batch batch;
  put_job(batch, job.info);
  ended_.push_back(job.info.job);
  const Journal::Ticket written = job.written = journal_.write(std::move(batch));
  log::info("job_ended", {{"job", job.info.job}, {"state", job.info.state}});
  if (listener_ != nullptr) listener_->job_ended(job.info, job.written);
  drivers_changed_.pulse();
  forget_oldest();
  return written;
}

void Jobs::forget_oldest() {
  size_t surplus = ended_.size() - std::min(ended_.size(), options_.history_max);
  if (surplus == 0) return;
  // Looked for once: there may be a million actors.
  const auto needed = needed_ ? needed_() : std::set<JobId>{};
  for (auto oldest = ended_.begin(); surplus > 0 && oldest != ended_.end();) {
    const bool is_asked_for = outlives_its_end(jobs_.at(*oldest).info);
    if (is_asked_for && needed.contains(*oldest)) {
      ++oldest;
      continue;
    }
    Batch batch;
    erase_job(batch, *oldest);
    journal_.write(std::move(batch));
    jobs_.erase(*oldest);
    oldest = ended_.erase(oldest);
    --surplus;
  }
}

void Jobs::attach(JobId id, Job& job, transport::Peer& peer) {
  if (!peer.is_open() || !job.connections.try_emplace(&peer, peer.weak_from_this()).second) return;
  drivers_[&peer] = id;
  ++job.absences;
  // Not of `troupe submit`, where nobody listens, once a program of it is there.
  const protocol::ProcessAddress& address = peer.remote().address;
  if (can_be_reached(address) || !can_be_reached(job.info.driver)) job.info.driver = address;
  drivers_changed_.pulse();
}

void Jobs::seen(transport::Peer& peer) {
  const JobId id = peer.remote().job;
  if (id.is_nil() || drivers_.contains(&peer)) return;
  const auto found = jobs_.find(id);
  if (found == jobs_.end() || found->second.info.state != "running") return;
  // Its actors speak for the job as well, but do not keep it.
  if (found->second.info.driver.process != peer.remote().address.process) return;
  attach(id, found->second, peer);
}

void Jobs::peer_closed(const transport::Peer& peer) {
  const auto driver = drivers_.find(&peer);
  if (driver == drivers_.end()) return;
  const JobId id = driver->second;
  drivers_.erase(driver);
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) return;
  found->second.connections.erase(&peer);
  drivers_changed_.pulse();
  if (found->second.connections.empty()) await_driver(id, options_.driver_grace);
}

void Jobs::await_driver(JobId id, Duration grace) {
  const uint64_t absence = ++jobs_.at(id).absences;
  spawn(scope_, end_unless_back(id, absence, grace));
}

Async<void> Jobs::end_unless_back(JobId id, uint64_t absence, Duration grace) {
  co_await sleep_for(environment_.clock, grace);
  const auto found = jobs_.find(id);
  if (found == jobs_.end() || found->second.absences != absence) co_return;
  if (found->second.info.state != "running") co_return;
  protocol::EndJob request;
  request.job = id;
  request.message = "its driver's connection closed and did not come back";
  finish(found->second, request);
}

Status Jobs::admits(JobId id) const {
  if (id.is_nil()) return ok();
  const auto found = jobs_.find(id);
  if (found == jobs_.end()) {
    return error(Code::not_found, fmt::format("job {} did not begin", id.to_string()));
  }
  if (found->second.info.state == "running") return ok();
  return error(Code::conflict, fmt::format("job {} ended", id.to_string()));
}

std::vector<protocol::JobInfo> Jobs::list() const {
  std::vector<protocol::JobInfo> infos;
  for (const auto& [id, job] : jobs_) {
    infos.push_back(job.info);
    infos.back().environment = {};
  }
  return infos;
}

Result<protocol::JobInfo> Jobs::find(JobId id) const {
  const auto found = jobs_.find(id);
  if (found != jobs_.end()) return found->second.info;
  return error(Code::not_found, fmt::format("there is no job {}", id.to_string()));
}

std::vector<std::shared_ptr<transport::Peer>> Jobs::who_may_have(const std::string& package) const {
  std::vector<std::shared_ptr<transport::Peer>> peers;
  for (const auto& [id, job] : jobs_) {
    if (job.info.state != "running" || !head::names(job.info.environment, package)) continue;
    for (const auto& [key, weak] : job.connections) {
      const auto peer = weak.lock();
      if (!peer || !peer->is_open()) continue;
      const bool drives = peer->remote().address.process == job.info.driver.process;
      peers.insert(drives ? peers.begin() : peers.end(), peer);
    }
  }
  return peers;
}

bool Jobs::names(const std::string& package) const {
  return std::ranges::any_of(jobs_, [&](const auto& entry) {
    const protocol::JobInfo& info = entry.second.info;
    return info.state == "running" && head::names(info.environment, package);
  });
}

}  // namespace troupe::head
