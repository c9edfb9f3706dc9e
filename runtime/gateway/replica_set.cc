#include "gateway/replica_set.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::gateway {

namespace {
// For how long one that failed is passed over while the head still calls it alive.
constexpr Duration suspicion = std::chrono::seconds(1);
}  // namespace

std::vector<std::string> ReplicaSet::update(const protocol::DeploymentList& list, Instant now) {
  std::map<std::string, Model> next;
  std::vector<std::string> gone;
  for (const protocol::DeploymentInfo& deployment : list.items) {
    Model model;
    if (auto known = models_.find(deployment.spec.name); known != models_.end()) {
      model = std::move(known->second);
      models_.erase(known);
    }
    const std::vector<Replica> before = std::exchange(model.replicas, {});
    model.info.name = deployment.spec.name;
    model.info.state = deployment.state;
    model.info.reason = deployment.reason;
    model.info.replicas_wanted = deployment.spec.replicas;
    for (const protocol::ActorInfo& actor : deployment.replicas) {
      Replica replica;
      replica.choice = {actor.actor, actor.incarnation,
                        fmt::format("{}#{}", actor.actor.to_string(), actor.incarnation)};
      replica.alive = actor.state == "alive";
      for (const Replica& old : before) {
        if (old.choice.key == replica.choice.key) replica.suspect_until = old.suspect_until;
      }
      model.replicas.push_back(std::move(replica));
    }
    for (const Replica& old : before) {
      const bool still = std::any_of(model.replicas.begin(), model.replicas.end(), [&](auto& r) {
        return r.alive && r.choice.key == old.choice.key;
      });
      if (!old.alive || still) continue;
      gone.push_back(old.choice.key);
      // Taken out of service on purpose when fewer are wanted; else it died.
      if (before.size() <= deployment.spec.replicas) count_failure(model, old.choice.key, now);
    }
    settle(model, now);
    next.emplace(deployment.spec.name, std::move(model));
  }
  for (const auto& [name, model] : models_) {
    for (const Replica& old : model.replicas) {
      if (old.alive) gone.push_back(old.choice.key);
    }
  }
  models_ = std::move(next);
  return gone;
}

void ReplicaSet::count_failure(Model& model, const std::string& key, Instant now) {
  if (!model.failed.insert(key).second) return;
  ++model.info.replica_failures;
  if (!model.outage_start) model.outage_start = now;
}

void ReplicaSet::settle(Model& model, Instant now) {
  // Alive as far as the head knows, and not known better here.
  const auto alive = std::count_if(
      model.replicas.begin(), model.replicas.end(),
      [&](const Replica& r) { return r.alive && !model.failed.contains(r.choice.key); });
  model.info.replicas_alive = static_cast<uint32_t>(alive);
  const bool complete = model.info.replicas_alive >= model.info.replicas_wanted && alive > 0;
  if (complete && model.outage_start) {
    model.info.last_recovery_seconds =
        std::chrono::duration<double>(now - *model.outage_start).count();
    model.outage_start.reset();
  }
  std::erase_if(model.failed, [&](const std::string& key) {
    return std::none_of(model.replicas.begin(), model.replicas.end(),
                        [&](const Replica& r) { return r.choice.key == key; });
  });
}

std::vector<ModelInfo> ReplicaSet::models(Instant now) const {
  std::vector<ModelInfo> all;
  for (const auto& [name, model] : models_) {
    all.push_back(model.info);
    if (!model.first_pick || model.info.replicas_wanted == 0) continue;
    Duration busy = model.busy;
    for (const auto& [key, load] : running_) {
      if (load.model == name) busy += now - load.since;
    }
    const double whole =
        std::chrono::duration<double>(now - *model.first_pick).count() * model.info.replicas_wanted;
    if (whole > 0) all.back().utilisation = std::chrono::duration<double>(busy).count() / whole;
  }
  return all;
}

Result<ReplicaSet::Choice> ReplicaSet::pick(const std::string& name,
                                            const std::set<std::string>& excluded, Instant now,
                                            Random& random) {
  const auto found = models_.find(name);
  if (found == models_.end()) return error(Code::not_found, "no model is called " + name);
  Model& model = found->second;
  const Replica* best = nullptr;
  uint32_t least = 0;
  uint64_t ties = 0;
  for (const Replica& replica : model.replicas) {
    const std::string& key = replica.choice.key;
    if (!replica.alive || replica.suspect_until > now || excluded.contains(key)) continue;
    const auto busy = running_.find(key);
    const uint32_t load = busy == running_.end() ? 0 : busy->second.generations;
    if (best != nullptr && load > least) continue;
    ties = best == nullptr || load < least ? 1 : ties + 1;
    if (ties == 1 || random.below(ties) == 0) best = &replica;
    least = load;
  }
  if (best == nullptr) {
    return error(Code::unavailable,
                 fmt::format("no replica of {} can take a request now ({} of {} alive)", name,
                             model.info.replicas_alive, model.info.replicas_wanted));
  }
  if (!model.first_pick) model.first_pick = now;
  Load& load = running_[best->choice.key];
  if (load.generations++ == 0) load = {name, 1, now};
  return best->choice;
}

void ReplicaSet::ended(const std::string& key, Instant now) {
  const auto found = running_.find(key);
  if (found == running_.end() || --found->second.generations > 0) return;
  const auto model = models_.find(found->second.model);
  if (model != models_.end()) model->second.busy += now - found->second.since;
  running_.erase(found);
}

void ReplicaSet::failed(const std::string& name, const std::string& key, Instant now) {
  const auto found = models_.find(name);
  if (found == models_.end()) return;
  for (Replica& replica : found->second.replicas) {
    if (replica.choice.key != key) continue;
    replica.suspect_until = now + suspicion;
    count_failure(found->second, key, now);
    settle(found->second, now);
  }
}

void ReplicaSet::worked(const std::string& name, const std::string& key, Instant now) {
  const auto found = models_.find(name);
  if (found == models_.end() || found->second.failed.erase(key) == 0) return;
  for (Replica& replica : found->second.replicas) {
    if (replica.choice.key == key) replica.suspect_until = {};
  }
  settle(found->second, now);
}

}  // namespace troupe::gateway
