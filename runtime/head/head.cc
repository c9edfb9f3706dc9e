#include "head/head.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "head/actors.h"
#include "head/backups.h"
#include "head/checkpoints.h"
#include "head/deployments.h"
#include "head/evacuation.h"
#include "head/explain.h"
#include "head/groups.h"
#include "head/jobs.h"
#include "head/journal.h"
#include "head/leases.h"
#include "head/membership.h"
#include "head/object_listing.h"
#include "head/packages.h"
#include "head/placement.h"
#include "head/tables.h"
#include "head/timelines.h"
#include "security/audit.h"
#include "transport/peer.h"

namespace troupe::head {

using protocol::Empty;
using transport::CallContext;
using transport::Message;
using transport::Method;
using transport::OutgoingStream;
using transport::PeerIdentity;
using transport::Role;

namespace {

constexpr Duration greet_budget = std::chrono::seconds(10);
constexpr Duration job_end_budget = std::chrono::seconds(30);
constexpr size_t pending_shown_max = 100;
constexpr Duration list_budget = std::chrono::seconds(10);  // Of one node.

// Workers speak of themselves; everybody of the cluster may ask for the rest.
Status admits(Method method, const PeerIdentity& identity) {
  const bool of_node = identity.local || identity.role == Role::node;
  switch (method) {
    case Method::register_node:
    case Method::heartbeat:
    case Method::process_exited:
    case Method::get_job:  // With variables, which may be secrets.
    case Method::store_checkpoint:
      if (of_node) return ok();
      break;
    case Method::get_package:  // Heads that stand by keep copies.
      if (of_node || identity.role == Role::head) return ok();
      break;
    case Method::follow_leader:  // Everything that the head knows.
      if (identity.role == Role::head) return ok();
      break;
    case Method::drain_node:
    case Method::transfer_lead:
    case Method::back_up:  // Writes where it is told to, all that the head knows.
      if (identity.local || identity.role == Role::admin) return ok();
      break;
    default:
      if (of_node || identity.role == Role::gateway || identity.role == Role::client ||
          identity.role == Role::admin) {
        return ok();
      }
  }
  security::Audit{}.refuse(security::audit_name(identity), protocol::method_name(method),
                           "not for this role");
  return error(Code::denied, fmt::format("{} may not ask the head for {}", identity.name,
                                         protocol::method_name(method)));
}

// A node's certificate names it: it speaks for no other.
Status speaks_for(const PeerIdentity& identity, NodeId node) {
  if (identity.local || identity.name == node.to_string()) return ok();
  security::Audit{}.refuse(security::audit_name(identity), "speak for node " + node.to_string(),
                           "its certificate names another");
  return error(Code::denied,
               fmt::format("{} may not speak for node {}", identity.name, node.to_string()));
}

}  // namespace

// Everything that exists only once the epoch is known.
struct Head::Parts : JobListener, ActorListener {
  Parts(transport::Environment env, const HeadOptions& head_options, Scope& owner, Store& store,
        uint64_t new_epoch, Replicator* its_replicator)
      : environment(env),
        options(head_options),
        scope(owner),
        epoch(new_epoch),
        replicator(its_replicator),
        journal(env, owner, store, new_epoch, its_replicator),
        membership(env, head_options, owner, journal, new_epoch),
        placement(env),
        groups(env, head_options, journal, membership, placement),
        actors(env, head_options, owner, journal, membership, placement, groups),
        leases(env, head_options, owner, membership, placement, groups),
        jobs(env, head_options, owner, journal),
        packages(
            env, head_options, owner, journal, jobs, [this] { return jobs_of_detached(); },
            its_replicator),
        checkpoints(env, head_options, owner, journal, actors, its_replicator),
        deployments(env, head_options, owner, journal, actors),
        backups(env, store),
        evacuation(env, owner, membership, [this](NodeId node) { return is_idle(node); }) {
    placement.set_actor_listener(actors);
    placement.set_lease_listener(leases);
    placement.set_gang_listener(groups);
    groups.add_listener(actors);
    groups.add_listener(leases);
    membership.add_listener(placement);
    membership.add_listener(groups);
    membership.add_listener(actors);
    membership.add_listener(leases);
    membership.add_listener(deployments);
    membership.add_listener(evacuation);
    membership.add_listener(placement.opener());
    actors.set_listener(*this);
    jobs.set_listener(*this);
    jobs.set_needed([this] { return jobs_of_detached(); });
    started_unix_us = static_cast<uint64_t>(env.clock.wall_now().time_since_epoch() /
                                            std::chrono::microseconds(1));
  }

  void job_ended(const protocol::JobInfo& job, Journal::Ticket written) override {
    actors.end_job(job.job);
    leases.end_job(job.job);
    groups.end_job(job.job);
    packages.collect_soon();
    protocol::EndJob news{job.job, job.state == "succeeded", {}};
    for (const NodeId node : membership.alive_nodes()) {
      spawn(scope, tell_job_end(node, news, written));
    }
  }

  void actor_changed(const Actor& actor) override {
    deployments.actor_changed(actor);
    checkpoints.actor_changed(actor);
    if (actor.state == ActorState::dead && actor.spec().detached) packages.collect_soon();
  }

  bool is_idle(NodeId node) const {
    return leases.slots_on(node) == 0 && std::ranges::none_of(actors.all(), [&](const auto& entry) {
             const Actor& actor = entry.second;
             const bool is_placed =
                 actor.state == ActorState::starting || actor.state == ActorState::alive;
             const bool lives_there = is_placed && actor.info().address.node == node;
             return lives_there || (actor.stopping && actor.stopping_on == node);
           });
  }

  // Of actors that live on, and may be started anew.
  std::set<JobId> jobs_of_detached() const {
    std::set<JobId> found;
    for (const auto& [id, actor] : actors.all()) {
      if (actor.spec().detached && actor.state != ActorState::dead) found.insert(actor.spec().job);
    }
    return found;
  }

  Async<void> tell_job_end(NodeId node, protocol::EndJob news, Journal::Ticket written) {
    const Status durable = co_await journal.durable(written);
    if (!durable) co_return;
    auto told = co_await membership.call<Empty>(node, Method::job_ended, news, job_end_budget,
                                                [] { return true; });
    if (!told) log::debug("job_end_not_told", {{"node", node}, {"why", told.error()}});
  }

  // --- The answers.

  Async<Result<protocol::NodeRegistered>> register_node(protocol::RegisterNode request,
                                                        CallContext call) {
    TROUPE_CO_CHECK(speaks_for(call.peer->identity(), request.address.node));
    co_return co_await membership.register_node(std::move(request), std::move(call.peer));
  }
  Async<Result<protocol::HeartbeatReply>> heartbeat(protocol::Heartbeat beat, CallContext call) {
    TROUPE_CO_CHECK(speaks_for(call.peer->identity(), beat.node));
    auto reply = membership.heartbeat(beat, call.peer);
    // Isolated actors live on by what a head answers: not by one that another may have replaced.
    TROUPE_CO_CHECK(co_await journal.settled(0));
    if (!reply.register_again) {
      for (auto& report : beat.gauges) actors.set_gauges(beat.node, std::move(report));
    }
    co_return reply;
  }
  Async<Result<Empty>> process_exited(protocol::ProcessExited news, CallContext call) {
    TROUPE_CO_CHECK(speaks_for(call.peer->identity(), news.node));
    if (!membership.registered_over(news.node, call.peer)) {
      co_return error(Code::unavailable, "the node is not registered over this connection");
    }
    leases.process_exited(news);
    auto taken = co_await actors.process_exited(std::move(news));
    if (!taken) co_return std::move(taken).error();
    co_return Empty{};
  }
  Async<Result<Empty>> begin_job(protocol::BeginJob request, CallContext call) {
    auto begun = co_await jobs.begin(std::move(request), std::move(call.peer));
    if (!begun) co_return std::move(begun).error();
    co_return Empty{};
  }
  Async<Result<Empty>> end_job(protocol::EndJob request, CallContext) {
    auto ended = co_await jobs.end(std::move(request));
    if (!ended) co_return std::move(ended).error();
    co_return Empty{};
  }
  Async<Result<protocol::JobInfo>> get_job(protocol::GetJob request, CallContext) {
    co_return jobs.find(request.job);
  }
  Async<Status> get_package(Message message, CallContext call, OutgoingStream& out) {
    TROUPE_CO_TRY(auto request, protocol::decode<protocol::GetPackage>(message.body));
    if (call.peer->identity().role == Role::head) {
      if (request.actor.is_nil()) co_return co_await packages.copy(std::move(request), out);
      co_return co_await checkpoints.copy(std::move(request), out);
    }
    if (!request.actor.is_nil()) co_return co_await checkpoints.give(std::move(request), out);
    co_return co_await packages.give(std::move(message), std::move(call), out);
  }
  Async<Result<protocol::Checkpoint>> store_checkpoint(protocol::StoreCheckpoint request,
                                                       CallContext call) {
    TROUPE_CO_CHECK(speaks_for(call.peer->identity(), request.node));
    co_return co_await checkpoints.store(std::move(request), std::move(call));
  }
  // Whoever outlives its job must not need the job's driver any more.
  Async<Status> hold_packages(JobId job) {
    TROUPE_CO_CHECK(co_await packages.hold(job));
    co_return jobs.admits(job);
  }
  // From a driver that wants to read what its processes have written so far: answered when all
  // nodes have sent it, or after a moment.
  Async<Result<Empty>> flush_logs(protocol::JobLogs request, CallContext) {
    TROUPE_CO_CHECK(jobs.admits(request.job));
    const auto left = std::make_shared<size_t>(0);
    const auto changed = std::make_shared<Event>(environment.loop);
    for (const NodeId node : membership.alive_nodes()) {
      ++*left;
      spawn(scope, flush_logs_of(node, request, left, changed));
    }
    while (*left > 0) co_await changed->wait();
    co_return Empty{};
  }
  Async<void> flush_logs_of(NodeId node, protocol::JobLogs request, std::shared_ptr<size_t> left,
                            std::shared_ptr<Event> changed) {
    auto flushed = co_await membership.call<Empty>(node, Method::job_logs, request,
                                                   options.log_flush_budget, [] { return true; });
    if (!flushed) log::debug("logs_not_flushed", {{"node", node}, {"why", flushed.error()}});
    --*left;
    changed->pulse();
  }
  Async<Result<protocol::ActorInfo>> create_actor(protocol::ActorSpec spec, CallContext) {
    TROUPE_CO_CHECK(jobs.admits(spec.job));
    if (spec.detached) TROUPE_CO_CHECK(co_await hold_packages(spec.job));
    co_return co_await actors.create(std::move(spec));
  }
  Async<Result<protocol::ActorResults>> create_actors(protocol::ActorSpecs request, CallContext) {
    for (const protocol::ActorSpec& spec : request.items) {
      TROUPE_CO_CHECK(jobs.admits(spec.job));
      if (spec.detached) TROUPE_CO_CHECK(co_await hold_packages(spec.job));
    }
    co_return co_await actors.create_many(std::move(request));
  }
  Async<Result<protocol::ActorResults>> get_actors(protocol::ActorIds request, CallContext call) {
    return actors.get_many(std::move(request), std::move(call));
  }
  Async<Result<Empty>> kill_actors(protocol::ActorIds request, CallContext) {
    auto killed = co_await actors.kill_many(std::move(request));
    if (!killed) co_return std::move(killed).error();
    co_return Empty{};
  }
  Async<Result<protocol::ActorInfo>> get_actor(protocol::GetActor request, CallContext call) {
    return actors.get(std::move(request), std::move(call));
  }
  Async<Result<Empty>> kill_actor(protocol::KillActor request, CallContext) {
    auto killed = co_await actors.kill(request.actor, std::move(request.reason));
    if (!killed) co_return std::move(killed).error();
    co_return Empty{};
  }
  Async<Result<protocol::LeaseGranted>> request_lease(protocol::RequestLease request,
                                                      CallContext call) {
    TROUPE_CO_CHECK(jobs.admits(request.job));
    co_return co_await leases.request(std::move(request), std::move(call));
  }
  Async<Result<protocol::LeaseGranted>> renew_lease(protocol::RenewLease request, CallContext) {
    co_return leases.renew(request.lease);
  }
  Async<Result<Empty>> return_lease(protocol::ReturnLease request, CallContext) {
    leases.give_back(request);
    co_return Empty{};
  }
  Async<Result<Empty>> slot_waits(protocol::SlotWaits news, CallContext call) {
    leases.slot_waits(news, call.peer->remote().address);
    co_return Empty{};
  }
  Async<Result<protocol::PlacementGroupResults>> create_placement_groups(
      protocol::PlacementGroupSpecs specs, CallContext) {
    for (const auto& spec : specs.items) TROUPE_CO_CHECK(jobs.admits(spec.job));
    co_return co_await groups.create(std::move(specs));
  }
  Async<Result<Empty>> remove_placement_groups(protocol::RemovePlacementGroups request,
                                               CallContext) {
    auto removed = co_await groups.remove(std::move(request));
    if (!removed) co_return std::move(removed).error();
    co_return Empty{};
  }
  Async<Result<protocol::PlacementGroupInfo>> get_placement_group(
      protocol::GetPlacementGroup request, CallContext call) {
    return groups.get(std::move(request), std::move(call));
  }
  Async<Result<protocol::PlacementGroupList>> list_placement_groups(Empty, CallContext) {
    co_return protocol::PlacementGroupList{groups.list()};
  }
  Async<Result<protocol::DeploymentInfo>> deploy(protocol::DeploymentSpec spec, CallContext) {
    return deployments.deploy(std::move(spec));
  }
  Async<Result<Empty>> undeploy(protocol::NameOf request, CallContext) {
    auto gone = co_await deployments.undeploy(std::move(request.name));
    if (!gone) co_return std::move(gone).error();
    co_return Empty{};
  }
  Async<Result<Empty>> drain_node(protocol::DrainNode request, CallContext) {
    TROUPE_CO_CHECK(co_await membership.drain(request.node, !request.undo));
    co_return Empty{};
  }
  Async<Result<protocol::NodeList>> list_nodes(Empty, CallContext) {
    protocol::NodeList list{membership.list()};
    std::map<NodeId, scheduler::NodeView> views;
    for (auto& view : placement.view().nodes()) views[view.node] = std::move(view);
    std::map<NodeId, uint32_t> living;
    for (const auto& [id, actor] : actors.all()) {
      if (actor.state == ActorState::alive) ++living[actor.info().address.node];
      if (actor.stopping) ++living[actor.stopping_on];
    }
    for (protocol::NodeInfo& node : list.items) {
      const NodeId id = node.address.node;
      if (const auto view = views.find(id); view != views.end() && node.state != "dead") {
        node.available = to_amounts(view->second.available);
        std::erase_if(node.available, [&](const auto& amount) {
          return std::none_of(node.total.begin(), node.total.end(),
                              [&](const auto& total) { return total.name == amount.name; });
        });
      }
      if (node.state == "dead") continue;
      node.actors = living[id];
      node.slots = static_cast<uint32_t>(leases.slots_on(id));
      if (node.draining && node.state == "alive") {
        const bool is_empty = is_idle(id) && evacuation.is_done(id);
        node.state = is_empty ? "drained" : "draining";
      }
    }
    co_return list;
  }
  Async<Result<protocol::ActorList>> list_actors(Empty, CallContext) {
    protocol::ActorList list;
    for (const auto& [id, actor] : actors.all()) list.items.push_back(actors.describe(actor));
    co_return list;
  }
  // What a node does not say in time is left out.
  Async<Result<protocol::ObjectList>> list_objects(protocol::ListObjects request, CallContext) {
    std::vector<protocol::ObjectList> lists;
    for (const NodeId node : membership.alive_nodes()) {
      auto list = co_await membership.call<protocol::ObjectList>(
          node, Method::list_objects, request, list_budget, [] { return true; });
      if (list) {
        lists.push_back(std::move(*list));
      } else {
        log::warning("objects_not_listed", {{"node", node}, {"why", list.error()}});
      }
    }
    co_return merge_objects(std::move(lists), request.limit);
  }
  Async<Result<protocol::Explanation>> explain(protocol::Explain request, CallContext) {
    const Known known{membership, groups, actors, leases, jobs, environment.clock.now()};
    co_return head::explain(known, request.id);
  }
  Async<Result<protocol::JobList>> list_jobs(Empty, CallContext) {
    co_return protocol::JobList{jobs.list()};
  }
  Async<Result<protocol::DeploymentList>> list_deployments(Empty, CallContext) {
    co_return protocol::DeploymentList{deployments.list()};
  }
  Async<Result<protocol::BackedUp>> back_up(protocol::BackUp request, CallContext call) {
    return backups.make(std::move(request), std::move(call));
  }
  Async<Result<protocol::ClusterInfo>> cluster_info(Empty, CallContext) {
    protocol::ClusterInfo info;
    info.cluster = options.cluster;
    info.epoch = epoch;
    info.version = options.version;
    info.started_unix_us = started_unix_us;
    info.pid = options.pid;
    info.nodes = static_cast<uint32_t>(membership.alive());
    info.actors = static_cast<uint32_t>(actors.living());
    info.jobs_running = static_cast<uint32_t>(jobs.running());
    info.leases = static_cast<uint32_t>(leases.size());
    info.deployments = static_cast<uint32_t>(deployments.size());
    info.placement_groups = static_cast<uint32_t>(groups.size());
    info.pending = groups.pending(pending_shown_max);
    for (auto& waiting : leases.pending(pending_shown_max - info.pending.size())) {
      info.pending.push_back(std::move(waiting));
    }
    for (const auto& [id, actor] : actors.all()) {
      if (info.pending.size() >= pending_shown_max) break;
      if (actor.state != ActorState::pending && actor.state != ActorState::restarting) continue;
      info.pending.push_back({id, "actor", actors.describe(actor).reason});
    }
    if (replicator != nullptr) info.heads = replicator->heads();
    co_return info;
  }
  Async<Result<Empty>> pong(Empty, CallContext) { co_return Empty{}; }
  Async<Result<protocol::Following>> follow_leader(protocol::FollowLeader request,
                                                   CallContext call) {
    if (replicator == nullptr) co_return only_head();
    co_return co_await replicator->follow(std::move(request), std::move(call.peer));
  }
  Async<Result<protocol::TransferLead>> transfer_lead(protocol::TransferLead request, CallContext) {
    if (replicator == nullptr) co_return only_head();
    co_return co_await replicator->hand_over(std::move(request));
  }
  static Error only_head() {
    return error(Code::conflict, "this cluster has one head: 'troupe up --heads 3' starts more");
  }

  transport::Environment environment;
  const HeadOptions& options;
  Scope& scope;
  const uint64_t epoch;
  Replicator* const replicator;  // Null: this head is the only one.
  uint64_t started_unix_us = 0;
  Journal journal;
  Membership membership;
  Placement placement;
  Groups groups;
  Actors actors;
  Leases leases;
  Jobs jobs;
  Packages packages;
  Checkpoints checkpoints;
  Deployments deployments;
  Backups backups;
  Evacuation evacuation;
};

// Who may come in, and which part answers.
class Head::Door final : public transport::Router {
 public:
  explicit Door(Head& head) : head_(head) {}

  void open(Parts& parts) {
    on(Method::register_node, parts, &Parts::register_node);
    on(Method::heartbeat, parts, &Parts::heartbeat);
    on(Method::process_exited, parts, &Parts::process_exited);
    on(Method::begin_job, parts, &Parts::begin_job);
    on(Method::end_job, parts, &Parts::end_job);
    on(Method::get_job, parts, &Parts::get_job);
    on(Method::job_logs, parts, &Parts::flush_logs);
    on_stream(Method::get_package,
              [&parts](Message message, CallContext call, OutgoingStream& out) {
                return parts.get_package(std::move(message), std::move(call), out);
              });
    on(Method::store_checkpoint, parts, &Parts::store_checkpoint);
    on(Method::create_actor, parts, &Parts::create_actor);
    on(Method::create_actors, parts, &Parts::create_actors);
    on(Method::get_actor, parts, &Parts::get_actor);
    on(Method::get_actors, parts, &Parts::get_actors);
    on(Method::kill_actors, parts, &Parts::kill_actors);
    on(Method::kill_actor, parts, &Parts::kill_actor);
    on(Method::request_lease, parts, &Parts::request_lease);
    on(Method::renew_lease, parts, &Parts::renew_lease);
    on(Method::return_lease, parts, &Parts::return_lease);
    on(Method::slot_waits, parts, &Parts::slot_waits);
    on(Method::create_placement_groups, parts, &Parts::create_placement_groups);
    on(Method::remove_placement_groups, parts, &Parts::remove_placement_groups);
    on(Method::get_placement_group, parts, &Parts::get_placement_group);
    on(Method::list_placement_groups, parts, &Parts::list_placement_groups);
    on(Method::deploy, parts, &Parts::deploy);
    on(Method::undeploy, parts, &Parts::undeploy);
    on(Method::list_nodes, parts, &Parts::list_nodes);
    on(Method::drain_node, parts, &Parts::drain_node);
    on(Method::list_actors, parts, &Parts::list_actors);
    on(Method::list_jobs, parts, &Parts::list_jobs);
    on(Method::list_objects, parts, &Parts::list_objects);
    on(Method::explain, parts, &Parts::explain);
    on(Method::list_deployments, parts, &Parts::list_deployments);
    on(Method::cluster_info, parts, &Parts::cluster_info);
    on(Method::back_up, parts, &Parts::back_up);
    on(Method::ping, parts, &Parts::pong);
    on(Method::follow_leader, parts, &Parts::follow_leader);
    on(Method::transfer_lead, parts, &Parts::transfer_lead);
    on_stream(Method::watch_deployments, [&parts](Message, CallContext call, OutgoingStream& out) {
      return parts.deployments.watch(std::move(call), out);
    });
    on_stream(Method::get_timelines,
              [&parts](Message message, CallContext call, OutgoingStream& out) {
                return pass_timelines(parts.environment, parts.membership, std::move(message),
                                      std::move(call), out);
              });
  }

  Async<Result<Message>> handle(Method method, Message request, CallContext call) override {
    if (auto allowed = admits(method, call.peer->identity()); !allowed) {
      return refuse(std::move(allowed).error());
    }
    head_.parts_->jobs.seen(*call.peer);
    return Router::handle(method, std::move(request), std::move(call));
  }
  Async<Status> handle_stream(Method method, Message request, CallContext call,
                              OutgoingStream& out) override {
    if (auto allowed = admits(method, call.peer->identity()); !allowed) {
      return refuse_stream(std::move(allowed).error());
    }
    return Router::handle_stream(method, std::move(request), std::move(call), out);
  }
  void peer_closed(transport::Peer& peer) override {
    head_.parts_->membership.peer_closed(peer);
    head_.parts_->jobs.peer_closed(peer);
  }
  Status accept_peer(const protocol::Hello& hello, const PeerIdentity& identity) override {
    const security::Audit audit;
    const std::string who = security::audit_name(identity);
    if (hello.cluster.is_nil() || hello.cluster == head_.options_.cluster) {
      audit.admit(who, "connect as " + hello.kind, "of this cluster");
      return ok();
    }
    audit.refuse(who, "connect as " + hello.kind, "of another cluster");
    return error(Code::denied,
                 fmt::format("this is cluster {}, not {}", head_.options_.cluster.to_string(),
                             hello.cluster.to_string()));
  }

 private:
  static Async<Result<Message>> refuse(Error why) { co_return why; }
  static Async<Status> refuse_stream(Error why) { co_return why; }

  Head& head_;
};

Head::Head(transport::Environment environment, Store& store, HeadOptions options,
           Replicator* replicator)
    : environment_(environment),
      store_(store),
      options_(std::move(options)),
      replicator_(replicator),
      scope_(environment.loop),
      door_(std::make_unique<Door>(*this)) {}

Head::~Head() = default;

uint64_t Head::epoch() const {
  return parts_ ? parts_->epoch : 0;
}
Event& Head::broken() {
  return parts_->journal.broken();
}

Async<Status> Head::start() {
  const uint64_t epoch = replicator_ != nullptr ? replicator_->term() : store_.epoch() + 1;
  Store* store = &store_;
  auto read = [store, epoch]() -> Result<StoredState> {
    // The epoch first: from here on an older head's writes are refused.
    TROUPE_CHECK(store->commit(Batch{}, epoch));
    return load(*store);
  };
  auto state = co_await transport::run_blocking(environment_, read);
  if (!state) co_return std::move(state).error();
  parts_ = std::make_unique<Parts>(environment_, options_, scope_, store_, epoch, replicator_);
  parts_->membership.restore(std::move(state->nodes));
  parts_->jobs.restore(std::move(state->jobs));
  parts_->groups.restore(std::move(state->groups));
  parts_->actors.restore(std::move(state->actors));
  parts_->groups.check_nodes();
  parts_->deployments.restore(std::move(state->deployments));
  TROUPE_CO_CHECK(co_await parts_->packages.start());
  TROUPE_CO_CHECK(co_await parts_->checkpoints.start());
  parts_->membership.start();
  door_->open(*parts_);

  hello_.kind = "head";
  hello_.cluster = options_.cluster;
  hello_.pid = options_.pid;
  hello_.address.process = ProcessId::random(environment_.random);
  for (const transport::Endpoint& wanted : options_.listen) {
    auto listener = environment_.network.listen(wanted);
    if (!listener) co_return std::move(listener).error();
    endpoints_.push_back((*listener)->endpoint());
    if (!endpoints_.back().is_unix()) {
      hello_.address.host = endpoints_.back().host;
      hello_.address.port = endpoints_.back().port;
    }
    listeners_.push_back(std::move(*listener));
  }
  for (auto& listener : listeners_) spawn(scope_, accept_from(listener.get()));
  log::info("head_started", {{"cluster", options_.cluster}, {"epoch", epoch}});
  co_return ok();
}

Async<void> Head::accept_from(transport::Listener* listener) {
  for (;;) {
    auto connection = co_await listener->accept();
    if (!connection) co_return;
    spawn(scope_, greet(std::move(*connection)));
  }
}

Async<void> Head::greet(std::unique_ptr<transport::Connection> connection) {
  const Instant deadline = environment_.clock.now() + greet_budget;
  auto peer = co_await transport::Peer::start(scope_, environment_, std::move(connection), *door_,
                                              hello_, deadline);
  if (!peer) {
    log::warning("peer_refused", {{"why", peer.error()}});
  } else {
    parts_->jobs.seen(**peer);
  }
}

Async<void> Head::stop() {
  for (const auto& listener : listeners_) co_await listener->stop();
  if (parts_) {
    parts_->placement.stop();
    parts_->backups.stop();
    co_await parts_->journal.stop();
  }
  co_await scope_.stop();
}

}  // namespace troupe::head
