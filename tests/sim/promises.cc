#include "tests/sim/promises.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::sim {

using protocol::FrameKind;
using protocol::Method;

Promises::Promises(Simulation& simulation, SimCluster& cluster)
    : simulation_(simulation), cluster_(cluster) {
  simulation.network().add_tap([this](const SentFrame& sent) { see(sent); });
  cluster.on_lead([this](SimHead& head) { head_leads(head); });
}

void Promises::actor_created(const protocol::ActorSpec& spec) {
  made_[spec.actor].spec = spec;
}

void Promises::job_begun(JobId job) {
  jobs_[job];
}

void Promises::job_ended(JobId job) {
  jobs_[job].ended = true;
}

void Promises::driver_gone(JobId job) {
  if (const auto found = jobs_.find(job); found != jobs_.end()) found->second.absent = true;
}

void Promises::group_created(const protocol::PlacementGroupSpec& spec) {
  groups_[spec.group].spec = spec;
}

void Promises::kill(ActorId actor, bool done) {
  const auto found = made_.find(actor);
  if (found == made_.end()) return;
  found->second.excused = true;
  found->second.killed = found->second.killed || done;
}

void Promises::excuse(ActorId actor) {
  if (const auto found = made_.find(actor); found != made_.end()) found->second.excused = true;
}

void Promises::remove(PlacementGroupId group, bool done) {
  const auto found = groups_.find(group);
  if (found == groups_.end()) return;
  found->second.removing = true;
  found->second.removed = found->second.removed || done;
}

// --- As it happens

void Promises::see(const SentFrame& sent) {
  const protocol::FrameHeader& header = sent.frame.header;
  if (sent.to.identity().role == transport::Role::head) {
    if (header.kind != FrameKind::request) return;
    if (header.method != Method::create_actor && header.method != Method::get_actor) return;
    asked_[{sent.connection, sent.from.name(), header.call}] = header.method;
    return;
  }
  if (sent.from.identity().role != transport::Role::head) return;
  if (header.kind == FrameKind::request && header.method == Method::start_actor) {
    auto start = protocol::decode<protocol::StartActor>(sent.frame.body);
    if (start) asked_of_worker(*start, sent);
    return;
  }
  if (header.kind != FrameKind::reply) return;
  const auto asked = asked_.find({sent.connection, sent.to.name(), header.call});
  if (asked == asked_.end()) return;
  asked_.erase(asked);
  if (header.error.code != 0) return;
  if (auto info = protocol::decode<protocol::ActorInfo>(sent.frame.body)) told(*info);
}

// The rows of what has ended stay, too.
void Promises::head_leads(SimHead& head) {
  const auto lacks = [&](const std::string& what) {
    violation(fmt::format("{} leads without {}, which was promised", head.name(), what));
  };
  for (const auto& [id, job] : jobs_) {
    if (!head.disk().has(Table::jobs, id.to_string())) lacks("job " + id.short_string());
  }
  for (const auto& [id, made] : made_) {
    if (!head.disk().has(Table::actors, id.to_string())) lacks("actor " + id.short_string());
  }
}

void Promises::told(const protocol::ActorInfo& info) {
  Told& known = actors_[info.actor];
  const std::string name = "actor " + info.actor.short_string();
  if (info.incarnation < known.incarnation) {
    violation(fmt::format("{} goes back from incarnation {} to {}", name, known.incarnation,
                          info.incarnation));
  }
  known.incarnation = std::max(known.incarnation, info.incarnation);
  const auto made = made_.find(info.actor);
  const bool was_killed = made != made_.end() && made->second.killed;
  if ((known.dead || was_killed) && info.state != "dead") {
    violation(name + " was dead and is " + info.state);
  }
  known.dead = known.dead || info.state == "dead";
  if (info.state != "alive") return;
  const auto [lives, fresh] = known.processes.try_emplace(info.incarnation, info.address.process);
  if (fresh || lives->second == info.address.process) return;
  violation(fmt::format("{} incarnation {} lives in two processes", name, info.incarnation));
}

void Promises::asked_of_worker(const protocol::StartActor& start, const SentFrame& sent) {
  Told& known = actors_[start.spec.actor];
  const std::string name = "actor " + start.spec.actor.short_string();
  // A head of the past may ask for what it promised while it led.
  const bool is_past = cluster_.checks().is_past(sent.from);
  if (start.incarnation < known.incarnation && !is_past) {
    violation(fmt::format("{} is started in incarnation {} after {}", name, start.incarnation,
                          known.incarnation));
  }
  known.incarnation = std::max(known.incarnation, start.incarnation);
  if (known.dead && !is_past) violation(name + " is started after its death");
  auto node = NodeId::parse(sent.to.identity().name);
  if (!node) return;
  const auto [asked, fresh] = known.nodes.try_emplace(start.incarnation, *node);
  if (fresh || asked->second == *node) return;
  violation(fmt::format("{} incarnation {} is started on two nodes", name, start.incarnation));
}

// --- When all is calm

bool Promises::has_ended(JobId job) const {
  const auto found = jobs_.find(job);
  return found != jobs_.end() && (found->second.ended || found->second.absent);
}

std::vector<std::string> Promises::broken() {
  problems_.clear();
  check_jobs();
  check_groups();
  check_actors();
  return problems_;
}

void Promises::check_jobs() {
  std::map<JobId, std::string> listed;
  for (const auto& job : cluster_.seen().jobs) listed[job.job] = job.state;
  for (const auto& [id, job] : jobs_) {
    const std::string name = "job " + id.short_string();
    const auto found = listed.find(id);
    if (found == listed.end()) {
      problem(name + " was promised and is forgotten");
    } else if (job.ended && found->second == "running") {
      problem(name + " was ended and runs");
    } else if (job.absent && found->second == "running") {
      problem(name + " runs on without a driver");
    }
  }
}

void Promises::check_groups() {
  std::map<PlacementGroupId, std::string> listed;
  for (const auto& group : cluster_.seen().groups) listed[group.spec.group] = group.state;
  std::map<JobId, std::string> jobs;
  for (const auto& job : cluster_.seen().jobs) jobs[job.job] = job.state;
  for (const auto& [id, group] : groups_) {
    const std::string name = "group " + id.short_string();
    const bool is_there = listed.contains(id);
    const bool job_runs = jobs[group.spec.job] == "running";
    if (group.removed && is_there) problem(name + " was removed and is there");
    if (!job_runs && is_there) problem(name + " outlives its job");
    if (job_runs && !group.removing && !is_there) problem(name + " was promised and is forgotten");
  }
}

void Promises::check_actors() {
  std::map<ActorId, protocol::ActorInfo> listed;
  std::map<std::string, ActorId> names;
  for (const auto& actor : cluster_.seen().actors) {
    listed[actor.actor] = actor;
    if (actor.name.empty() || actor.state == "dead") continue;
    if (!names.emplace(actor.name_space + '/' + actor.name, actor.actor).second) {
      problem("a name is taken twice");
    }
  }
  std::map<JobId, std::string> jobs;
  for (const auto& job : cluster_.seen().jobs) jobs[job.job] = job.state;
  for (const auto& [id, made] : made_) {
    const std::string name = "actor " + id.short_string();
    const auto found = listed.find(id);
    if (found == listed.end()) {
      problem(name + " was promised and is forgotten");
      continue;
    }
    const protocol::ActorInfo& info = found->second;
    const bool is_dead = info.state == "dead";
    const bool job_runs = jobs[made.spec.job] == "running";
    if (made.killed && !is_dead) problem(name + " was killed and is " + info.state);
    if (!job_runs && !made.spec.detached && !is_dead) problem(name + " outlives its job");
    const bool may_be_dead = made.excused || made.spec.max_restarts >= 0 || !job_runs;
    if (is_dead && !may_be_dead) problem(name + " is dead for no reason: " + info.reason);
    if (info.incarnation < actors_[id].incarnation) problem(name + " has gone back");
    if (actors_[id].dead && !is_dead) problem(name + " has risen from the dead");
    const auto allowed = static_cast<uint32_t>(std::max(made.spec.max_restarts, 0)) + 1;
    if (made.spec.max_restarts >= 0 && info.incarnation > allowed) {
      problem(
          fmt::format("{} is in incarnation {}, {} are allowed", name, info.incarnation, allowed));
    }
  }
}

}  // namespace troupe::sim
