#include "head/deployments.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <cctype>

#include "base/log.h"

namespace troupe::head {

namespace {

constexpr char name_space[] = "deployments";
// In a replica's environment, so that it tells which spec it came from.
constexpr char version_variable[] = "TROUPE_DEPLOYMENT_VERSION";
constexpr Duration retry_pause = std::chrono::seconds(1);
constexpr uint32_t failures_max = 3;  // Quick ones in a row, of one replica.
constexpr uint32_t replicas_max = 1000;
constexpr size_t name_bytes_max = 128;
constexpr size_t config_bytes_max = 256 << 10;

std::string replica_name(const std::string& deployment, uint32_t index) {
  return fmt::format("{}#{}", deployment, index);
}

bool is_of_version(const Actor& actor, uint64_t version) {
  const auto& variables = actor.spec().environment;
  const auto last = std::find_if(variables.rbegin(), variables.rend(), [](const auto& variable) {
    return variable.name == version_variable;
  });
  return last != variables.rend() && last->value == std::to_string(version);
}

// Whether the replicas of `a` serve as those of `b`, but for their number.
bool same_replicas(const protocol::DeploymentSpec& a, const protocol::DeploymentSpec& b) {
  protocol::DeploymentSpec counted = a;
  counted.replicas = b.replicas;
  return protocol::encode(counted) == protocol::encode(b);
}

}  // namespace

Deployments::Deployments(transport::Environment environment, const HeadOptions& options,
                         Scope& scope, Journal& journal, Actors& actors)
    : environment_(environment),
      options_(options),
      scope_(scope),
      journal_(journal),
      actors_(actors),
      changed_(environment.loop) {}

void Deployments::restore(std::vector<protocol::DeploymentInfo> stored) {
  for (protocol::DeploymentInfo& info : stored) {
    const std::string name = info.spec.name;
    Deployment& deployment = deployments_[name];
    deployment.spec = std::move(info.spec);
    deployment.version = info.version;
    if (info.state == "failed") deployment.failure = info.reason;
  }
  for (const auto& [name, deployment] : deployments_) reconcile(name);
}

Status Deployments::check(const protocol::DeploymentSpec& spec) const {
  const auto plain = [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '/' || c == ':';
  };
  if (spec.name.empty() || spec.name.size() > name_bytes_max ||
      !std::all_of(spec.name.begin(), spec.name.end(), plain)) {
    return error(Code::invalid, "a deployment's name has 1 to 128 letters, digits or -_./:");
  }
  if (spec.module.empty() || spec.class_name.empty()) {
    return error(Code::invalid, "a deployment needs a plugin and an actor class");
  }
  if (spec.replicas == 0 || spec.replicas > replicas_max) {
    return error(Code::invalid, fmt::format("a deployment has 1 to {} replicas", replicas_max));
  }
  if (spec.config.size() > config_bytes_max) {
    return error(Code::invalid, "a deployment's configuration has at most 256 KiB");
  }
  TROUPE_TRY(const auto demand, to_resources(spec.demand));
  return scheduler::check_demand(demand);
}

Async<Result<protocol::DeploymentInfo>> Deployments::deploy(protocol::DeploymentSpec spec) {
  TROUPE_CO_CHECK(check(spec));
  const std::string name = spec.name;
  auto found = deployments_.find(name);
  const bool unchanged = found != deployments_.end() && found->second.failure.empty() &&
                         protocol::encode(found->second.spec) == protocol::encode(spec);
  if (!unchanged) {
    if (found == deployments_.end() && deployments_.size() >= options_.deployments_max) {
      co_return error(Code::exhausted,
                      fmt::format("the cluster has {} deployments", deployments_.size()));
    }
    TROUPE_CO_CHECK(journal_.admits());
    Deployment& deployment = deployments_[name];
    const bool scaled = found != deployments_.end() && deployment.failure.empty() &&
                        same_replicas(deployment.spec, spec);
    deployment.spec = std::move(spec);
    deployment.failure.clear();
    if (!scaled) ++deployment.version;
    log::info("deployed", {{"deployment", name},
                           {"version", deployment.version},
                           {"replicas", deployment.spec.replicas}});
    write(deployment);
    reconcile(name);
  }
  found = deployments_.find(name);
  protocol::DeploymentInfo info = describe(found->second);
  TROUPE_CO_CHECK(co_await journal_.settled(found->second.written));
  co_return info;
}

Async<Status> Deployments::undeploy(std::string name) {
  const auto found = deployments_.find(name);
  if (found == deployments_.end()) {
    TROUPE_CO_CHECK(co_await journal_.settled(journal_.latest()));
    co_return error(Code::not_found, fmt::format("no deployment is called '{}': see 'troupe list "
                                                 "deployments'",
                                                 name));
  }
  TROUPE_CO_CHECK(journal_.admits());
  deployments_.erase(found);
  Batch batch;
  erase_deployment(batch, name);
  const Journal::Ticket written = journal_.write(std::move(batch));
  log::info("undeployed", {{"deployment", name}});
  announce();
  // In the same write: a head that dies now leaves no replica without its deployment.
  actors_.end_deployment(name, "its deployment was removed");
  co_return co_await journal_.settled(written);
}

std::vector<const Actor*> Deployments::replicas_of(const std::string& name) const {
  std::vector<const Actor*> replicas;
  for (const auto& [id, actor] : actors_.all()) {
    if (actor.spec().deployment == name && actor.state != ActorState::dead) {
      replicas.push_back(&actor);
    }
  }
  std::sort(replicas.begin(), replicas.end(), [](const Actor* a, const Actor* b) {
    return std::pair(a->spec().name.size(), a->spec().name) <
           std::pair(b->spec().name.size(), b->spec().name);
  });
  return replicas;
}

Deployments::Versions Deployments::versions_of(const Deployment& deployment) const {
  Versions versions;
  for (const Actor* actor : replicas_of(deployment.spec.name)) {
    const bool current = is_of_version(*actor, deployment.version);
    (current ? versions.current : versions.old).push_back(actor);
    if (!current) continue;
    if (actor->state == ActorState::alive) ++versions.alive;
    if (actors_.waits_for_room(*actor)) versions.waits_for_room = true;
  }
  const auto is_alive = [](const Actor* actor) { return actor->state == ActorState::alive; };
  std::stable_partition(versions.current.begin(), versions.current.end(), is_alive);
  std::stable_partition(versions.old.begin(), versions.old.end(), is_alive);
  return versions;
}

protocol::DeploymentInfo Deployments::describe(const Deployment& deployment) const {
  protocol::DeploymentInfo info;
  info.spec = deployment.spec;
  info.version = deployment.version;
  for (const Actor* actor : replicas_of(deployment.spec.name)) {
    info.replicas.push_back(actors_.describe(*actor));
  }
  const Versions versions = versions_of(deployment);
  for (const Actor* actor : versions.current) {
    if (actor->state == ActorState::alive || !info.reason.empty()) continue;
    info.reason = actors_.describe(*actor).reason;
  }
  if (!deployment.failure.empty()) {
    info.state = "failed";
    info.reason = deployment.failure;
    if (!versions.old.empty()) {
      info.reason +=
          fmt::format("; replicas of an earlier version that serve on: {}", versions.old.size());
    }
  } else if (!versions.old.empty()) {
    info.state = "updating";
  } else if (versions.alive >= deployment.spec.replicas) {
    info.state = "ready";
    info.reason.clear();
  } else {
    info.state = versions.alive > 0 ? "degraded" : "starting";
  }
  return info;
}

std::vector<protocol::DeploymentInfo> Deployments::list() const {
  std::vector<protocol::DeploymentInfo> infos;
  for (const auto& [name, deployment] : deployments_) infos.push_back(describe(deployment));
  return infos;
}

void Deployments::write(Deployment& deployment) {
  Batch batch;
  protocol::DeploymentInfo info;
  info.spec = deployment.spec;
  info.version = deployment.version;
  info.state = deployment.failure.empty() ? "" : "failed";
  info.reason = deployment.failure;
  put_deployment(batch, std::move(info));
  deployment.written = journal_.write(std::move(batch));
  announce();
}

void Deployments::announce() {
  ++revision_;
  changed_.pulse();
}

Async<Status> Deployments::watch(transport::CallContext context, transport::OutgoingStream& out) {
  using namespace boost::asio::experimental::awaitable_operators;
  for (;;) {
    const uint64_t seen = revision_;
    protocol::DeploymentList now{list()};
    TROUPE_CO_CHECK(co_await out.send(protocol::encode(now)));
    while (revision_ == seen) {
      co_await (changed_.wait() || context.cancelled->wait());
      if (context.cancelled->is_set()) co_return error(Code::cancelled, "the watcher left");
    }
  }
}

void Deployments::actor_changed(const Actor& actor) {
  const std::string& name = actor.spec().deployment;
  if (name.empty()) return;
  announce();
  const auto found = deployments_.find(name);
  if (found == deployments_.end() || !found->second.failure.empty()) return;
  Deployment& deployment = found->second;
  if (actor.quick_failures >= failures_max && is_of_version(actor, deployment.version)) {
    deployment.failure = actor.info().reason;
    log::warning("deployment_failed", {{"deployment", name}, {"why", deployment.failure}});
    write(deployment);
    reconcile(name);
  } else if (actor.state == ActorState::dead || actor.state == ActorState::alive) {
    reconcile(name);
  }
}

void Deployments::node_registered(const protocol::RegisterNode&) {
  for (const auto& [name, deployment] : deployments_) {
    if (!versions_of(deployment).old.empty()) reconcile(name);
  }
}

void Deployments::reconcile(const std::string& name) {
  Deployment& deployment = deployments_.at(name);
  if (deployment.reconciling) {
    deployment.again = true;
    return;
  }
  deployment.reconciling = true;
  spawn(scope_, reconcile_until_done(name));
}

Async<void> Deployments::reconcile_until_done(std::string name) {
  for (;;) {
    const bool done = co_await reconcile_once(name);
    if (!done) co_await sleep_for(environment_.clock, retry_pause);
    const auto found = deployments_.find(name);
    if (found == deployments_.end()) co_return;
    if (!done) continue;
    if (!std::exchange(found->second.again, false)) {
      found->second.reconciling = false;
      co_return;
    }
  }
}

Async<bool> Deployments::reconcile_once(std::string name) {
  bool done = co_await add_missing(name);
  const Surplus surplus = surplus_of(name);
  for (const ActorId id : surplus.replicas) {
    auto killed = co_await actors_.kill(id, surplus.reason);
    if (killed) continue;
    log::warning("replica_not_killed", {{"actor", id}, {"why", killed.error()}});
    done = false;
  }
  co_return done;
}

Async<bool> Deployments::add_missing(std::string name) {
  for (;;) {
    const auto found = deployments_.find(name);
    if (found == deployments_.end() || !found->second.failure.empty()) co_return true;
    const Deployment& deployment = found->second;
    if (versions_of(deployment).current.size() >= deployment.spec.replicas) co_return true;
    protocol::ActorSpec replica = next_replica(deployment);
    auto created = co_await actors_.create(std::move(replica));
    if (!created) {
      log::warning("replica_not_created", {{"deployment", name}, {"why", created.error()}});
      co_return false;
    }
  }
}

protocol::ActorSpec Deployments::next_replica(const Deployment& deployment) const {
  const protocol::DeploymentSpec& spec = deployment.spec;
  uint32_t number = 0;  // The first that nobody has, of whatever version.
  while (actors_.find(name_space, replica_name(spec.name, number)) != nullptr) ++number;
  protocol::ActorSpec actor;
  actor.actor = ActorId::random(environment_.random);
  actor.name = replica_name(spec.name, number);
  actor.name_space = name_space;
  actor.module = spec.module;
  actor.class_name = spec.class_name;
  actor.arguments = {{to_bytes(spec.config), {}, {}}};
  actor.demand = spec.demand;
  actor.max_restarts = -1;
  actor.detached = true;
  actor.environment = spec.environment;
  actor.environment.push_back({version_variable, std::to_string(deployment.version)});
  actor.strategy = "spread";
  actor.deployment = spec.name;
  return actor;
}

Deployments::Surplus Deployments::surplus_of(const std::string& name) const {
  Surplus surplus;
  const auto found = deployments_.find(name);
  if (found == deployments_.end()) return surplus;
  const Deployment& deployment = found->second;
  const Versions versions = versions_of(deployment);
  const bool failed = !deployment.failure.empty();
  surplus.reason = failed ? deployment.failure : "its deployment changed";
  const size_t wanted = deployment.spec.replicas;
  const size_t current_kept = failed ? 0 : wanted;
  for (size_t i = current_kept; i < versions.current.size(); ++i) {
    surplus.replicas.push_back(versions.current[i]->info().actor);
  }
  if (failed) return surplus;
  size_t old_kept = versions.old.size();
  if (versions.alive >= wanted) {
    old_kept = 0;
  } else if (versions.waits_for_room) {
    old_kept = wanted - versions.alive - 1;
  }
  for (size_t i = 0; i < versions.old.size(); ++i) {
    const bool serves = versions.old[i]->state == ActorState::alive;
    if (i >= old_kept || !serves) surplus.replicas.push_back(versions.old[i]->info().actor);
  }
  return surplus;
}

}  // namespace troupe::head
