#include "worker/worker.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "security/audit.h"

namespace troupe::worker {

using protocol::Empty;
using transport::Method;
using transport::Peer;
using transport::Role;

namespace {

constexpr Duration greet_budget = std::chrono::seconds(10);
constexpr Duration stop_grace = std::chrono::seconds(2);
constexpr Duration job_query_budget = std::chrono::seconds(5);
constexpr Duration list_budget = std::chrono::seconds(2);  // Of one process.

// Answers to the head must arrive before its own timer fires.
Instant answer_by(Instant deadline, Instant now) {
  if (deadline == Instant::max()) return now + std::chrono::seconds(30);
  const Duration budget = deadline - now;
  return deadline - std::min<Duration>(budget / 10, std::chrono::milliseconds(500));
}

}  // namespace

Worker::Worker(transport::Environment environment, ProcessLauncher& launcher, WorkerOptions options)
    : environment_(environment),
      launcher_(launcher),
      options_(std::move(options)),
      scope_(environment.loop),
      door_(*this),
      head_(environment, scope_, options_, door_,
            {[this] { return registration(); }, [this] { return hello_; },
             [this] { return objects_.used_bytes(); }, [this] { return objects_.spilled_bytes(); },
             [this] { return actors_.changed_gauges(); },
             [this] { actors_.extend_isolated(head_.heard()); }}),
      packages_(
          environment, scope_, options_, head_,
          [this](JobId job) { return environments_.knows(job) || processes_.has_any_of(job); }),
      environments_(environment, scope_, head_, packages_),
      forwarder_(environment, scope_, options_, launcher, door_, environments_),
      logs_(environment, scope_, options_, forwarder_),
      processes_(environment, scope_, launcher, options_, door_,
                 [this](HostedProcess& process) { process_exited(process); }),
      actors_(environment, scope_, processes_, logs_, options_),
      checkpoints_(environment, scope_, options_, head_, packages_, actors_),
      slots_(environment, scope_, processes_, logs_, options_),
      memory_(environment, scope_, options_, processes_),
      objects_(environment, scope_, options_, door_),
      rings_(environment),
      timelines_(environment, scope_, options_) {
  answer_methods();
}

Async<Status> Worker::start() {
  hello_.kind = "worker";
  hello_.cluster = options_.cluster;
  hello_.pid = options_.pid;
  hello_.address.process = ProcessId::random(environment_.random);
  hello_.address.node = options_.node;
  hello_.address.unix_path = options_.worker_socket;
  transport::Endpoint local;
  local.unix_path = options_.worker_socket;
  TROUPE_CO_TRY(auto local_listener, environment_.network.listen(local));
  listeners_.push_back(std::move(local_listener));
  if (!options_.host.empty()) {
    const transport::Endpoint remote{"", options_.host, options_.port};
    auto listener = environment_.network.listen(remote);
    if (!listener) {
      co_await listeners_[0]->stop();
      listeners_.clear();
      co_return std::move(listener).error();
    }
    hello_.address.host = options_.host;
    hello_.address.port =
        options_.advertised_port != 0 ? options_.advertised_port : (*listener)->endpoint().port;
    listeners_.push_back(std::move(*listener));
  }
  processes_.hello = hello_;
  forwarder_.hello = hello_;
  objects_.set_self(hello_);
  TROUPE_CO_CHECK(co_await objects_.start());
  TROUPE_CO_CHECK(co_await checkpoints_.start());
  for (const auto& listener : listeners_) spawn(scope_, accept_from(listener.get()));
  memory_.start();
  spawn(scope_, end_finished_jobs());
  head_.start();
  log::info("worker_started", {{"node", options_.node},
                               {"name", options_.name},
                               {"socket", options_.worker_socket},
                               {"port", hello_.address.port}});
  co_return ok();
}

Async<void> Worker::stop() {
  if (std::exchange(stopping_, true)) co_return;
  log::info("worker_stopping", {{"node", options_.node}, {"processes", processes_.size()}});
  for (const auto& listener : listeners_) co_await listener->stop();
  co_await processes_.end_all(stop_grace);
  co_await scope_.stop();
  objects_.stop();
  listeners_.clear();
}

// --- Connections

Async<void> Worker::accept_from(transport::Listener* listener) {
  for (;;) {
    auto connection = co_await listener->accept();
    if (!connection) co_return;
    spawn(scope_, greet(std::move(*connection)));
  }
}

Async<void> Worker::greet(std::unique_ptr<transport::Connection> connection) {
  const Instant deadline = environment_.clock.now() + greet_budget;
  auto peer =
      co_await Peer::start(scope_, environment_, std::move(connection), door_, hello_, deadline);
  if (!peer) log::warning("peer_turned_away", {{"why", peer.error()}});
}

Status Worker::Door::accept_peer(const protocol::Hello& hello,
                                 const transport::PeerIdentity& identity) {
  const security::Audit audit;
  const std::string who = security::audit_name(identity);
  const std::string what = "connect as " + hello.kind;
  const ClusterId own = worker_.options_.cluster;
  if (!hello.cluster.is_nil() && !own.is_nil() && hello.cluster != own) {
    audit.refuse(who, what, "of another cluster");
    return error(Code::denied, "this node belongs to cluster " + own.to_string());
  }
  if (identity.local) {
    ++worker_.local_connections_[hello.address.process];
    audit.admit(who, what, "of this node");
    return ok();
  }
  if (identity.role == Role::node || identity.role == Role::head) {
    audit.admit(who, what, "its role");
    return ok();
  }
  audit.refuse(who, what, "its role");
  return error(Code::denied, "a worker speaks with nodes and its head only");
}

void Worker::peer_closed(Peer& peer) {
  if (!peer.identity().local) return;
  const ProcessId process = peer.remote().address.process;
  const auto found = local_connections_.find(process);
  if (found == local_connections_.end() || --found->second > 0) return;
  local_connections_.erase(found);
  attached_.erase(process);
  rings_.process_gone(process);
  // A process of ours may write until it has been reaped: process_exited follows.
  if (processes_.find(process)) return;
  timelines_.process_gone(process);
  objects_.process_died(process);
  launcher_.remove_socket(socket_of(process));
}

std::string Worker::socket_of(ProcessId process) const {
  return fmt::format("{}/{}.sock", options_.socket_folder, process.short_string());
}

void Worker::process_exited(HostedProcess& process) {
  logs_.process_ended(process.id());
  std::vector<Work> ended = actors_.process_exited(process);
  if (!process.work.lease.is_nil()) ended.push_back(process.work);
  for (const Work& work : ended) {
    protocol::ProcessExited exit;
    exit.process = process.id();
    exit.actor = work.actor;
    exit.incarnation = work.incarnation;
    exit.lease = work.lease;
    exit.reason = process.exit_reason();
    head_.report_exit(std::move(exit));
  }
  checkpoints_.process_gone(process.id());
  slots_.process_exited(process);
  rings_.process_gone(process.id());
  timelines_.process_gone(process.id());
  objects_.process_died(process.id());
  launcher_.remove_socket(socket_of(process.id()));
}

protocol::RegisterNode Worker::registration() {
  protocol::RegisterNode registration;
  registration.address = hello_.address;
  registration.name = options_.name;
  registration.total = options_.total;
  registration.labels = options_.labels;
  registration.version = options_.version;
  registration.pid = options_.pid;
  registration.actors = actors_.running();
  registration.starting = actors_.starting();
  actors_.drop_waiting();
  actors_.tell_gauges_again();
  slots_.drop_unstarted();
  registration.slots = slots_.running();
  return registration;
}

// The head's job_ended may be lost, or sent while this node was away: so ask, too.
Async<void> Worker::end_finished_jobs() {
  for (;;) {
    co_await sleep_for(environment_.clock, options_.job_check_period);
    const bool none = objects_.idle_jobs().empty() && environments_.known().empty();
    if (none || !head_.is_registered()) continue;
    protocol::Empty nothing;
    auto peer = head_.peer();
    auto jobs = co_await transport::call<protocol::JobList>(peer, Method::list_jobs,
                                                            std::move(nothing), job_query_budget);
    if (!jobs) continue;
    const auto runs = [&](JobId job) {
      const auto found = std::ranges::find(jobs->items, job, &protocol::JobInfo::job);
      return found != jobs->items.end() && found->state == "running";
    };
    for (const JobId job : objects_.idle_jobs()) {
      if (!runs(job)) objects_.end_job(job);
    }
    for (const JobId job : environments_.known()) {
      if (!runs(job)) forget_job(job);
    }
  }
}

// --- Methods

void Worker::answer_methods() {
  door_.on(Method::start_actor, *this, &Worker::start_actor);
  door_.on(Method::stop_actor, *this, &Worker::stop_actor);
  door_.on(Method::stop_actors, *this, &Worker::stop_actors);
  door_.on_stream(Method::start_actors,
                  [this](Message message, CallContext call, transport::OutgoingStream& out) {
                    return start_actors(std::move(message), std::move(call), out);
                  });
  door_.on(Method::start_slots, *this, &Worker::start_slots);
  door_.on(Method::stop_slots, *this, &Worker::stop_slots);
  door_.on(Method::report_gauges, *this, &Worker::report_gauges);
  door_.on(Method::job_ended, *this, &Worker::job_ended);
  door_.on(Method::evacuate, *this, &Worker::evacuate);
  door_.on(Method::job_logs, *this, &Worker::flush_logs);
  door_.on(Method::list_objects, *this, &Worker::list_objects);
  door_.on(Method::attach_process, *this, &Worker::attach_process);
  door_.on(Method::reserve_extent, *this, &Worker::reserve_extent);
  door_.on(Method::seal_blocks, *this, &Worker::seal_blocks);
  door_.on(Method::return_extents, *this, &Worker::return_extents);
  door_.on(Method::release_blocks, *this, &Worker::release_blocks);
  door_.on(Method::adopt_objects, *this, &Worker::adopt_objects);
  // These carry descriptors beside the message.
  door_.on_message(Method::attach_segment, [this](Message message, CallContext call) {
    return attach_segment(std::move(message), std::move(call));
  });
  door_.on_message(Method::get_block, [this](Message message, CallContext call) {
    return get_block(std::move(message), std::move(call));
  });
  door_.on_message(Method::fetch_chunk, [this](Message message, CallContext call) {
    return fetch_chunk(std::move(message), std::move(call));
  });
  door_.on_message(Method::attach_rings, [this](Message message, CallContext call) {
    return rings_.attach(std::move(message), std::move(call));
  });
  door_.on_message(Method::open_ring, [this](Message message, CallContext call) {
    return rings_.open(std::move(message), std::move(call));
  });
  door_.on_message(Method::attach_timeline, [this](Message message, CallContext call) {
    return attach_timeline(std::move(message), std::move(call));
  });
  door_.on_stream(Method::get_timelines,
                  [this](Message message, CallContext call, transport::OutgoingStream& out) {
                    return get_timelines(std::move(message), std::move(call), out);
                  });
  door_.on_message(Method::store_checkpoint, [this](Message message, CallContext call) {
    return checkpoints_.store(std::move(message), std::move(call));
  });
  door_.on_stream(Method::get_package,
                  [this](Message message, CallContext call, transport::OutgoingStream& out) {
                    return get_package(std::move(message), std::move(call), out);
                  });
  door_.on_stream(Method::read_log,
                  [this](Message message, CallContext call, transport::OutgoingStream& out) {
                    return logs_.read(std::move(message), std::move(call), out);
                  });
}

Async<Result<Surroundings>> Worker::prepare(JobId job, std::string module, uint64_t epoch,
                                            CallContext call) {
  const uint64_t registration = head_.registrations();
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  auto made = co_await environments_.prepare(job, std::move(module), deadline);
  TROUPE_CO_CHECK(head_.check(call, epoch));
  if (registration != head_.registrations()) {
    co_return error(Code::cancelled, "the node registered anew meanwhile: the head asks again");
  }
  co_return made;
}

Async<Result<CheckpointFolder>> Worker::bring(protocol::StartActor request, CallContext call) {
  const uint64_t epoch = request.epoch;
  const uint64_t registration = head_.registrations();
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  auto brought = co_await checkpoints_.bring(std::move(request), deadline);
  TROUPE_CO_CHECK(head_.check(call, epoch));
  if (registration != head_.registrations()) {
    co_return error(Code::cancelled, "the node registered anew meanwhile: the head asks again");
  }
  co_return brought;
}

Async<Result<protocol::ProcessStarted>> Worker::start_actor(protocol::StartActor request,
                                                            CallContext call) {
  TROUPE_CO_CHECK(head_.check(call, request.epoch));
  head_.forget_exits(request.spec.actor, request.incarnation);
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  CheckpointFolder checkpoint;
  if (request.checkpoint.number != 0) {
    TROUPE_CO_TRY(checkpoint, co_await bring(request, call));
  }
  TROUPE_CO_TRY(auto surroundings,
                co_await prepare(request.spec.job, request.spec.module, request.epoch, call));
  co_return co_await actors_.start(std::move(request), std::move(surroundings),
                                   std::move(checkpoint), deadline);
}

Async<Result<Empty>> Worker::stop_actor(protocol::StopActor request, CallContext call) {
  TROUPE_CO_CHECK(head_.check(call, request.epoch));
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  co_return co_await actors_.stop(std::move(request), deadline);
}

Async<Status> Worker::start_actors(Message message, CallContext call,
                                   transport::OutgoingStream& out) {
  auto request = protocol::decode<protocol::StartActors>(message.body);
  if (!request) co_return std::move(request).error();
  for (const protocol::StartActor& item : request->items) {
    TROUPE_CO_CHECK(head_.check(call, item.epoch));
    head_.forget_exits(item.spec.actor, item.incarnation);
  }
  const auto prepared = std::make_shared<ActorHost::Prepared>();
  for (const protocol::StartActor& item : request->items) {
    if (item.checkpoint.number != 0) {
      auto brought = co_await bring(item, call);
      prepared->checkpoints.emplace(item.spec.actor, std::move(brought));
    }
    const auto key = std::make_pair(item.spec.job, item.spec.module);
    if (prepared->surroundings.contains(key)) continue;
    auto made = co_await prepare(key.first, key.second, item.epoch, call);
    prepared->surroundings.emplace(key, std::move(made));
  }
  co_return co_await actors_.start_light(std::move(*request), prepared, out);
}

Async<Result<Empty>> Worker::stop_actors(protocol::StopActors request, CallContext call) {
  for (const protocol::StopActor& item : request.items) {
    TROUPE_CO_CHECK(head_.check(call, item.epoch));
  }
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  co_return co_await actors_.stop_many(std::move(request), deadline);
}

Async<Result<protocol::SlotsStarted>> Worker::start_slots(protocol::StartSlots request,
                                                          CallContext call) {
  TROUPE_CO_CHECK(head_.check(call, request.epoch));
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  TROUPE_CO_TRY(auto surroundings,
                co_await prepare(request.job, request.module, request.epoch, call));
  co_return co_await slots_.start(std::move(request), std::move(surroundings), deadline);
}

Async<Result<Empty>> Worker::stop_slots(protocol::StopSlots request, CallContext call) {
  TROUPE_CO_CHECK(head_.check(call, request.epoch));
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  co_return co_await slots_.stop(std::move(request), deadline);
}

Async<Result<Empty>> Worker::job_ended(protocol::EndJob request, CallContext call) {
  TROUPE_CO_CHECK(head_.check(call, head_.epoch()));
  objects_.end_job(request.job);
  forget_job(request.job);
  co_return Empty{};
}

void Worker::forget_job(JobId job) {
  environments_.job_ended(job);
  forwarder_.job_ended(job);
  slots_.job_ended(job);
}

Async<Result<Empty>> Worker::flush_logs(protocol::JobLogs request, CallContext call) {
  TROUPE_CO_CHECK(head_.check(call, head_.epoch()));
  co_await forwarder_.flush(request.job, call.deadline);
  co_return Empty{};
}

// What lies in the store and, after it, what the node's processes own; so one object may be in
// both.
Async<Result<protocol::ObjectList>> Worker::list_objects(protocol::ListObjects request,
                                                         CallContext call) {
  TROUPE_CO_CHECK(head_.check(call, head_.epoch()));
  protocol::ObjectList list = objects_.list(request);
  const auto processes = attached_;
  for (const auto& [process, weak] : processes) {
    const auto peer = weak.lock();
    if (!peer || !peer->is_open()) continue;
    if (!request.job.is_nil() && peer->remote().job != request.job) continue;
    auto owned = co_await transport::call<protocol::ObjectList>(peer, Method::list_objects, request,
                                                                list_budget);
    if (!owned) {
      log::debug("objects_not_listed", {{"process", process}, {"why", owned.error()}});
      continue;
    }
    list.total += owned->total;
    for (protocol::ObjectEntry& entry : owned->items) list.items.push_back(std::move(entry));
  }
  co_return list;
}

Async<Result<Empty>> Worker::evacuate(protocol::Evacuate request, CallContext call) {
  TROUPE_CO_CHECK(head_.check(call, head_.epoch()));
  struct Round {
    explicit Round(const Executor& loop) : done(loop) {}
    size_t left = 1;  // This one.
    Status outcome = ok();
    Event done;
  };
  const auto round = std::make_shared<Round>(environment_.loop);
  const auto ask = [](std::shared_ptr<transport::Peer> peer, protocol::Evacuate asked,
                      Duration budget, std::shared_ptr<Round> of) -> Async<void> {
    auto moved = co_await transport::call<Empty>(peer, Method::evacuate, std::move(asked), budget);
    // What a process owns goes with it.
    if (!moved && peer->is_open() && of->outcome) of->outcome = std::move(moved).error();
    if (--of->left == 0) of->done.set();
  };
  const Duration budget =
      answer_by(call.deadline, environment_.clock.now()) - environment_.clock.now();
  for (const auto& [process, weak] : attached_) {
    auto peer = weak.lock();
    if (!peer || !peer->is_open()) continue;
    ++round->left;
    spawn(scope_, ask(std::move(peer), request, budget, round));
  }
  if (--round->left > 0) co_await round->done.wait();
  TROUPE_CO_CHECK(round->outcome);
  co_return Empty{};
}

Async<Status> Worker::get_timelines(Message message, CallContext call,
                                    transport::OutgoingStream& out) {
  TROUPE_CO_CHECK(head_.check(call, head_.epoch()));
  co_return co_await timelines_.send(std::move(message), hello_, out);
}

Async<Status> Worker::get_package(Message message, CallContext call,
                                  transport::OutgoingStream& out) {
  TROUPE_CO_CHECK(head_.check(call, head_.epoch()));
  co_return co_await checkpoints_.give(std::move(message), out);
}

Async<Result<transport::Message>> Worker::attach_timeline(Message message, CallContext call) {
  TROUPE_CO_TRY(const auto caller, caller_of(call));
  co_return co_await timelines_.attach(std::move(message), std::move(call), caller.job);
}

Async<Result<Empty>> Worker::report_gauges(protocol::ActorGauges report, CallContext call) {
  TROUPE_CO_CHECK(actors_.set_gauges(std::move(report), call.peer->remote().address.process));
  co_return Empty{};
}

Async<Result<protocol::Attached>> Worker::attach_process(protocol::AttachProcess request,
                                                         CallContext call) {
  const transport::PeerIdentity& identity = call.peer->identity();
  if (!identity.local) {
    security::Audit{}.refuse(security::audit_name(identity), "attach_process", "not of this node");
    co_return error(Code::denied, "only processes of this node may attach to its worker");
  }
  security::Audit{}.admit(security::audit_name(identity), "attach_process", "gets the credentials");
  log::info("process_attached", {{"kind", request.kind},
                                 {"pid", identity.pid != 0 ? identity.pid : request.pid},
                                 {"process", call.peer->remote().address.process}});
  attached_[call.peer->remote().address.process] = call.peer;
  protocol::Attached attached;
  attached.node = options_.node;
  attached.node_name = options_.name;
  attached.cluster = options_.cluster;
  for (const auto& head : options_.heads) attached.heads.push_back(head.to_string());
  attached.host = options_.host;
  attached.certificate_pem = options_.certificate_pem;
  attached.key_pem = options_.key_pem;
  attached.authority_pem = options_.authority_pem;
  attached.socket_path = socket_of(call.peer->remote().address.process);
  co_return attached;
}

Result<object_store::Caller> Worker::caller_of(const CallContext& call) const {
  if (!call.peer->identity().local) {
    return error(Code::denied, "the object store serves processes of its own node");
  }
  const protocol::Hello& hello = call.peer->remote();
  // What a process of ours works for is known better here than there.
  if (const auto hosted = processes_.find(hello.address.process)) {
    return object_store::Caller{hosted->id(), hosted->job()};
  }
  return object_store::Caller{hello.address.process, hello.job};
}

Async<Result<transport::Message>> Worker::attach_segment(Message message, CallContext call) {
  TROUPE_CO_TRY(const auto caller, caller_of(call));
  auto attached = co_await objects_.attach_segment(std::move(message), caller, std::move(call));
  if (!attached) co_return std::move(attached).error();
  Message reply{protocol::encode(*attached), {}};
  co_return reply;
}

Async<Result<protocol::Block>> Worker::reserve_extent(protocol::ReserveExtent request,
                                                      CallContext call) {
  TROUPE_CO_TRY(const auto caller, caller_of(call));
  co_return co_await objects_.reserve_extent(std::move(request), caller, std::move(call));
}

Async<Result<Empty>> Worker::seal_blocks(protocol::SealBlocks request, CallContext call) {
  TROUPE_CO_TRY(const auto caller, caller_of(call));
  co_return objects_.seal_blocks(request, caller);
}

Async<Result<Empty>> Worker::return_extents(protocol::ReturnExtents request, CallContext call) {
  TROUPE_CO_TRY(const auto caller, caller_of(call));
  co_return objects_.return_extents(request, caller);
}

Async<Result<transport::Message>> Worker::get_block(Message message, CallContext call) {
  TROUPE_CO_TRY(const auto caller, caller_of(call));
  TROUPE_CO_TRY(auto request, protocol::decode<protocol::GetBlock>(message.body));
  co_return co_await objects_.get_block(std::move(request), caller, std::move(call));
}

Async<Result<Empty>> Worker::release_blocks(protocol::ReleaseBlocks request, CallContext call) {
  const protocol::Hello& hello = call.peer->remote();
  if (!request.owner.is_nil() && hello.address.process != request.owner) {
    co_return error(Code::denied, "only its owner may release an object");
  }
  const bool from_node = call.peer->identity().role == Role::node;
  if (from_node && !request.owner.is_nil()) co_return objects_.release_blocks(request, {});
  TROUPE_CO_TRY(const auto caller, caller_of(call));
  co_return objects_.release_blocks(request, caller);
}

Async<Result<protocol::ObjectIds>> Worker::adopt_objects(protocol::AdoptObjects request,
                                                         CallContext call) {
  if (call.peer->remote().address.process != request.owner.process) {
    co_return error(Code::denied, "only its owner may say where an object has its home");
  }
  if (call.peer->identity().role != Role::node) {
    TROUPE_CO_TRY(const auto caller, caller_of(call));
    request.job = caller.job;
  }
  co_return co_await objects_.adopt_objects(std::move(request), std::move(call));
}

Async<Result<transport::Message>> Worker::fetch_chunk(Message message, CallContext call) {
  if (call.peer->identity().role != Role::node) {
    security::Audit{}.refuse(security::audit_name(call.peer->identity()), "fetch_chunk",
                             "not for this role");
    co_return error(Code::denied, "objects go to other nodes only");
  }
  TROUPE_CO_TRY(auto request, protocol::decode<protocol::FetchChunk>(message.body));
  co_return co_await objects_.fetch_chunk(std::move(request), std::move(call));
}

}  // namespace troupe::worker
