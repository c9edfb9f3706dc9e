#include "head/explain.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::head {

using protocol::Explanation;

namespace {

Explanation about(const char* kind, RawId id, std::string name, std::string state) {
  Explanation told;
  told.kind = kind;
  told.id = id;
  told.name = std::move(name);
  told.state = std::move(state);
  return told;
}

uint64_t to_us(Duration duration) {
  return static_cast<uint64_t>(std::max<int64_t>(duration / std::chrono::microseconds(1), 1));
}

std::string node_text(const Membership& membership, NodeId id) {
  const auto node = membership.find(id);
  if (!node) return fmt::format("node {}, which the head does not know (any more)", id.to_string());
  std::string text = fmt::format("node {}, which is {}", node->info.name, node->info.state);
  if (node->info.state == "suspect") {
    text += fmt::format(": it has said nothing for {:.1f} s",
                        static_cast<double>(node->silent / std::chrono::milliseconds(1)) / 1e3);
  }
  return text;
}

// The dead are told at once from a node that may be back.
Explanation about_node(const Membership::Found& node) {
  Explanation told = about("node", node.info.address.node, node.info.name, node.info.state);
  if (node.info.state == "dead") {
    told.why = "it was silent for longer than its window, or has left";
  } else if (node.info.state == "suspect") {
    told.why = "the head has not heard of it, and takes it for dead at the deadline";
    told.since_us = to_us(node.silent);
    told.deadline_us = to_us(node.left);
  } else if (node.info.draining) {
    told.state = "draining";
    told.why = "nothing new goes there; what runs there has no deadline but its own";
  } else {
    told.why = "its heartbeats arrive";
  }
  return told;
}

std::string actor_name(const Actor& actor) {
  const protocol::ActorInfo& info = actor.info();
  return info.name.empty() ? info.class_name : fmt::format("{} ({})", info.name, info.class_name);
}

Explanation about_actor(const Known& known, const Actor& actor) {
  const protocol::ActorInfo info = known.actors.describe(actor);
  Explanation told = about("actor", info.actor, actor_name(actor), info.state);
  const std::string where =
      info.address.node.is_nil() ? "" : node_text(known.membership, info.address.node);
  const std::string before = info.incarnation > 1 || info.state == "restarting"
                                 ? fmt::format("; started {} times", info.incarnation)
                                 : "";
  if (info.state == "alive") {
    told.why = "it lives on " + where;
    told.since_us = to_us(known.now - actor.alive_since);
  } else if (info.state == "starting") {
    told.why = "its process starts on " + where + ", where its constructor has yet to return";
    // What its constructor gets is waited for there.
    for (const protocol::Argument& argument : actor.spec().arguments) {
      if (argument.object.is_nil()) continue;
      told.waits_for.push_back({"object", argument.object, {}, argument.owner});
    }
  } else {
    told.why = info.reason;
  }
  told.why += before;
  if (actor.due <= known.now) return told;
  told.deadline_us = to_us(actor.due - known.now);
  if (info.state == "dead") told.why += "; its process has until the deadline to end";
  return told;
}

Result<Explanation> about_process(const Known& known, ProcessId id) {
  for (const auto& [actor, one] : known.actors.all()) {
    if (one.info().address.process != id || one.state == ActorState::dead) continue;
    Explanation told = about("process", id, {}, std::string{one.info().state});
    told.why = fmt::format("it hosts actor {} {} on {}", actor_name(one), actor.to_string(),
                           node_text(known.membership, one.info().address.node));
    return told;
  }
  if (const auto slot = known.leases.place_of(id)) {
    Explanation told = about("process", id, {}, "leased");
    told.why = fmt::format("it runs tasks of job {}, under lease {}, on {}", slot->job.to_string(),
                           slot->lease.to_string(), node_text(known.membership, slot->node));
    return told;
  }
  for (const protocol::NodeInfo& node : known.membership.list()) {
    if (node.address.process != id) continue;
    Explanation told = about("process", id, node.name, node.state);
    told.why = "it is the worker of " + node_text(known.membership, node.address.node);
    return told;
  }
  for (const protocol::JobInfo& job : known.jobs.list()) {
    if (job.driver.process != id) continue;
    Explanation told = about("process", id, job.name, job.state);
    told.why = fmt::format("it is the driver of job {} on {}", job.job.to_string(),
                           node_text(known.membership, job.driver.node));
    return told;
  }
  return error(Code::not_found,
               fmt::format("the head knows of no process {}: it has ended, or is a driver's that "
                           "has left",
                           id.to_string()));
}

}  // namespace

Result<Explanation> explain(const Known& known, RawId id) {
  if (const auto node = known.membership.find(NodeId{id})) return about_node(*node);
  if (const Actor* actor = known.actors.find(ActorId{id})) return about_actor(known, *actor);
  if (auto lease = known.leases.explain(LeaseId{id})) return std::move(*lease);
  for (const auto& group : known.groups.list()) {
    if (group.spec.group != id) continue;
    Explanation told = about("placement group", id, group.spec.name, group.state);
    told.why = group.reason;
    return told;
  }
  for (const auto& job : known.jobs.list()) {
    if (job.job != id) continue;
    Explanation told = about("job", id, job.name, job.state);
    told.why = job.state == "running" ? "its driver has not ended it" : job.message;
    return told;
  }
  auto process = about_process(known, ProcessId{id});
  if (process) return process;
  return error(Code::not_found,
               fmt::format("the head knows nothing with the id {}: it has ended and is forgotten, "
                           "or is an object or call, which its owner knows",
                           id.to_string()));
}

// --- What the parts tell of themselves.

std::optional<Membership::Found> Membership::find(NodeId id) const {
  if (const auto node = nodes_.find(id); node != nodes_.end()) {
    Found found{node->second.info, environment_.clock.now() - node->second.heard};
    found.left = options_.window - found.silent;
    found.info.state = state_of(node->second);
    return found;
  }
  const auto dead = std::ranges::find_if(
      dead_, [id](const protocol::NodeInfo& info) { return info.address.node == id; });
  if (dead == dead_.end()) return std::nullopt;
  return Found{*dead, {}};
}

std::optional<Explanation> Leases::explain(LeaseId id) const {
  const auto found = leases_.find(id);
  if (found == leases_.end()) return std::nullopt;
  const Lease& lease = found->second;
  const bool is_held = lease.delivered || runs(lease);
  const bool is_starting = !is_held && !lease.shares.empty();
  Explanation told = about("lease", id, {},
                           is_held       ? "held"
                           : is_starting ? "starting"
                                         : "pending");
  if (is_held) {
    told.why = fmt::format("its slots run for job {}", lease.request.job.to_string());
    if (lease.expires) {
      told.why += "; it ends at the deadline unless its client renews it";
      told.deadline_us = to_us(lease.expires_at - environment_.clock.now());
    }
  } else if (is_starting) {
    told.why = "its processes start";
  } else {
    told.why = placement_.why(id);
  }
  return told;
}

std::optional<Leases::SlotPlace> Leases::place_of(ProcessId id) const {
  for (const auto& [lease_id, lease] : leases_) {
    for (const auto& [node, share] : lease.shares) {
      const bool is_here = std::ranges::any_of(
          share.held, [id](const Held& held) { return held.address.process == id; });
      if (is_here) return SlotPlace{lease_id, node, lease.request.job};
    }
  }
  return std::nullopt;
}

}  // namespace troupe::head
