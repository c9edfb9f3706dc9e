// A head on virtual time, with workers that do what a test says.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "head/head.h"
#include "metadata/map_store.h"
#include "tests/sim/simulation.h"

namespace troupe::head {

using namespace std::chrono_literals;
using protocol::Empty;
using transport::CallContext;
using transport::Method;
using transport::Peer;
using transport::Role;

template <class T>
Code code_of(const Result<T>& result) {
  return result ? Code::ok : result.error().code();
}

// A store whose disk takes a number of commits and fails from then on.
class FailingStore final : public Store {
 public:
  // The head promises nothing new once less is free.
  static constexpr uint64_t promises_bytes = uint64_t{64} << 20;
  static constexpr size_t unlimited = std::numeric_limits<size_t>::max();

  explicit FailingStore(ClusterId cluster) : inner_(MapOptions{cluster, false}) {}

  Result<std::optional<std::string>> get(Table table, std::string_view key) override {
    return inner_.get(table, key);
  }
  Result<Rows> scan(Table table, std::string_view prefix, const Page& page) override {
    return inner_.scan(table, prefix, page);
  }
  Result<std::unique_ptr<Snapshot>> snapshot() override { return inner_.snapshot(); }
  Status commit(const Batch& batch, uint64_t epoch) override {
    if (commits_left == 0) return error(Code::outcome_unknown, "the disk failed");
    if (commits_left != unlimited) --commits_left;
    return keeps ? inner_.commit(batch, epoch) : ok();
  }
  uint64_t epoch() const override { return inner_.epoch(); }
  ClusterId cluster_id() const override { return inner_.cluster_id(); }
  Status health() const override { return inner_.health(); }
  Status room(uint64_t bytes) const override { return inner_.room(bytes); }
  void set_free(uint64_t bytes) { inner_.set_free(bytes); }

  size_t commits_left = unlimited;
  bool keeps = true;  // Else what is committed is gone: a disk costs no memory.

 private:
  MapStore inner_;
};

// The head's counterpart on a node. Starts and stops what it is asked to, or holds the answer.
class FakeWorker : public transport::Router {
 public:
  FakeWorker(sim::Simulation& simulation, NodeId id)
      : changed(simulation.executor()), node(id), random_(&simulation.random()) {
    on(Method::start_actor, *this, &FakeWorker::start_actor);
    on(Method::stop_actor, *this, &FakeWorker::stop_actor);
    on(Method::start_slots, *this, &FakeWorker::start_slots);
    on(Method::stop_slots, *this, &FakeWorker::stop_slots);
    on(Method::job_ended, *this, &FakeWorker::job_ended);
    on(Method::stop_actors, *this, &FakeWorker::stop_actors);
    on_stream(Method::start_actors,
              [this](transport::Message message, CallContext, transport::OutgoingStream& out) {
                return start_actors(std::move(message), out);
              });
  }

  protocol::ProcessAddress new_process() {
    protocol::ProcessAddress address;
    address.process = ProcessId::random(*random_);
    address.node = node;
    return address;
  }
  // Answers what was held.
  void let_go() {
    hold_starts = hold_stops = false;
    changed.pulse();
  }

  std::vector<protocol::StartActor> started;
  std::vector<protocol::StopActor> stopped;
  std::vector<protocol::StartActors> batches_started;
  std::vector<protocol::StopActors> batches_stopped;
  std::map<ActorId, Error> batch_failures;  // Of those in batches that do not start.
  size_t batch_outcomes_max = SIZE_MAX;     // So many are told; then the stream ends early.
  std::vector<protocol::StartSlots> slots_started;
  std::vector<protocol::StopSlots> slots_stopped;
  std::vector<protocol::EndJob> jobs_ended;
  std::optional<Error> start_failure;  // What the next starts are answered with.
  bool hold_starts = false;
  bool hold_stops = false;
  bool beats = true;
  Event changed;
  const NodeId node;
  sim::SimHost* host = nullptr;
  std::shared_ptr<Peer> head;
  protocol::RegisterNode registration;
  uint64_t epoch = 0;

 private:
  Async<Result<protocol::ProcessStarted>> start_actor(protocol::StartActor request, CallContext) {
    started.push_back(std::move(request));
    while (hold_starts) co_await changed.wait();
    if (start_failure) co_return *start_failure;
    co_return protocol::ProcessStarted{new_process(), 1};
  }
  Async<Result<Empty>> stop_actor(protocol::StopActor request, CallContext) {
    stopped.push_back(std::move(request));
    while (hold_stops) co_await changed.wait();
    co_return Empty{};
  }
  Async<Status> start_actors(transport::Message message, transport::OutgoingStream& out) {
    auto request = protocol::decode<protocol::StartActors>(message.body);
    if (!request) co_return std::move(request).error();
    batches_started.push_back(*request);
    while (hold_starts) co_await changed.wait();
    size_t told = 0;
    for (const auto& item : request->items) {
      if (told++ == batch_outcomes_max) co_return ok();
      protocol::StartedActor outcome{item.spec.actor, item.incarnation, {light_process_, 1}, {}};
      const auto failure = batch_failures.find(item.spec.actor);
      if (failure != batch_failures.end()) outcome.error = protocol::to_info(failure->second);
      protocol::ActorsStarted report;
      report.items.push_back(std::move(outcome));
      TROUPE_CO_CHECK(co_await out.send(protocol::encode(report)));
    }
    co_return ok();
  }
  Async<Result<Empty>> stop_actors(protocol::StopActors request, CallContext) {
    batches_stopped.push_back(std::move(request));
    while (hold_stops) co_await changed.wait();
    co_return Empty{};
  }
  // As a worker does: the lease's processes that run already are among the answer.
  Async<Result<protocol::SlotsStarted>> start_slots(protocol::StartSlots request, CallContext) {
    slots_started.push_back(request);
    while (hold_starts) co_await changed.wait();
    if (start_failure) co_return *start_failure;
    auto& running = slots_[request.lease];
    while (running.size() < request.count) running.push_back({new_process(), 1});
    co_return protocol::SlotsStarted{running};
  }
  Async<Result<Empty>> stop_slots(protocol::StopSlots request, CallContext) {
    slots_stopped.push_back(std::move(request));
    while (hold_stops) co_await changed.wait();
    co_return Empty{};
  }
  Async<Result<Empty>> job_ended(protocol::EndJob news, CallContext) {
    jobs_ended.push_back(std::move(news));
    co_return Empty{};
  }

  Random* random_;
  protocol::ProcessAddress light_process_ = new_process();
  std::map<LeaseId, std::vector<protocol::ProcessStarted>> slots_;
};

template <class Reply>
using Pending = std::shared_ptr<std::optional<Result<Reply>>>;

class HeadTest : public testing::Test {
 protected:
  HeadTest() {
    options.cluster = cluster;
    options.listen = {{"", "10.0.0.1", 7000}};
  }
  void TearDown() override {
    if (head) stop_head();
    EXPECT_TRUE(simulation.run(scope.stop(), 1min));
  }

  // --- The head.
  void start_head() {
    head_host = &add_host("head", "head", Role::head);
    head.emplace(simulation.environment(*head_host), store, options);
    Status started = error(Code::internal, "it does not start");
    ASSERT_TRUE(simulation.run(run_head(&started), 1s));
    ASSERT_TRUE(started) << started.error().to_string();
  }
  void stop_head() {
    EXPECT_TRUE(simulation.run(head->stop(), 1min));
    head.reset();
  }
  // As kill -9 and a new start: what was committed is there, nothing else.
  void restart_head() {
    simulation.network().kill(*head_host);
    stop_head();
    store.commits_left = FailingStore::unlimited;
    start_head();
  }

  // --- Who talks to it.
  sim::SimHost& add_host(const std::string& name, const std::string& machine, Role role) {
    transport::PeerIdentity identity;
    identity.role = role;
    identity.name = name;
    return simulation.network().add_host({name, machine, identity});
  }
  Result<std::shared_ptr<Peer>> connect(sim::SimHost& host, transport::Service& service,
                                        protocol::Hello self) {
    auto slot = std::make_shared<std::optional<Result<std::shared_ptr<Peer>>>>();
    spawn(scope, connect_into(slot, host, service, std::move(self)));
    simulation.run_until([&] { return slot->has_value(); }, 10s);
    if (!*slot) return error(Code::internal, "no connection");
    return **slot;
  }
  std::shared_ptr<Peer> driver_of(JobId job, ProcessId process) {
    protocol::Hello self;
    self.kind = "driver";
    self.job = job;
    self.address.process = process;
    return connect(add_host("driver", "driver", Role::client), nothing, self).value();
  }
  std::shared_ptr<Peer> driver() { return driver_of({}, ProcessId::random(simulation.random())); }

  // A worker that is registered and beats. `cpu` in whole processors.
  FakeWorker& add_worker(int64_t cpu) {
    FakeWorker& worker = add_stranger(cpu);
    EXPECT_EQ(code_of(register_worker(worker)), Code::ok);
    return worker;
  }
  // One that is connected alone.
  FakeWorker& add_stranger(int64_t cpu) {
    const NodeId node = NodeId::random(simulation.random());
    workers_.push_back(std::make_unique<FakeWorker>(simulation, node));
    FakeWorker& worker = *workers_.back();
    worker.registration.address.node = node;
    worker.registration.address.process = ProcessId::random(simulation.random());
    worker.registration.name = "worker-" + std::to_string(workers_.size());
    worker.registration.total = {{"cpu", cpu * 1000}};
    worker.host = &add_host(node.to_string(), worker.registration.name, Role::node);
    spawn(scope, beat(&worker));
    connect_worker(worker);
    return worker;
  }
  void connect_worker(FakeWorker& worker) {
    protocol::Hello self;
    self.kind = "worker";
    self.address = worker.registration.address;
    worker.head = connect(*worker.host, worker, self).value();
  }
  Result<protocol::NodeRegistered> register_worker(FakeWorker& worker) {
    auto registered =
        ask<protocol::NodeRegistered>(worker.head, Method::register_node, worker.registration);
    if (registered) worker.epoch = registered->epoch;
    return registered;
  }
  // After the head was restarted.
  void return_worker(FakeWorker& worker) {
    connect_worker(worker);
    EXPECT_EQ(code_of(register_worker(worker)), Code::ok);
  }

  // --- Calls.
  template <class Reply, class Request>
  Pending<Reply> begin(std::shared_ptr<Peer> peer, Method method, Request request,
                       Duration budget = 10s) {
    auto slot = std::make_shared<std::optional<Result<Reply>>>();
    spawn(scope, call_into<Reply>(slot, std::move(peer), method, std::move(request), budget));
    return slot;
  }
  template <class Reply, class Request>
  Result<Reply> ask(std::shared_ptr<Peer> peer, Method method, Request request,
                    Duration budget = 10s) {
    auto slot = begin<Reply>(std::move(peer), method, std::move(request), budget);
    simulation.run_until([&] { return slot->has_value(); }, budget + 1s);
    if (!*slot) return error(Code::internal, "no answer");
    return **slot;
  }

  JobId begin_job(const std::shared_ptr<Peer>& peer) {
    protocol::BeginJob request;
    request.job = JobId::random(simulation.random());
    EXPECT_EQ(code_of(ask<Empty>(peer, Method::begin_job, request)), Code::ok);
    return request.job;
  }
  protocol::ActorSpec actor_spec(int64_t cpu = 1) {
    protocol::ActorSpec spec;
    spec.actor = ActorId::random(simulation.random());
    spec.module = "module";
    spec.class_name = "Counter";
    spec.demand = {{"cpu", cpu * 1000}};
    return spec;
  }
  Result<protocol::ActorInfo> create(const std::shared_ptr<Peer>& peer,
                                     const protocol::ActorSpec& spec) {
    return ask<protocol::ActorInfo>(peer, Method::create_actor, spec);
  }
  // What the directory says now.
  protocol::ActorInfo look(const std::shared_ptr<Peer>& peer, ActorId actor) {
    const auto list = ask<protocol::ActorList>(peer, Method::list_actors, Empty{}).value();
    for (const auto& info : list.items) {
      if (info.actor == actor) return info;
    }
    return {};
  }
  // Waits until it is alive; its incarnation is above `after`.
  Result<protocol::ActorInfo> wait_alive(const std::shared_ptr<Peer>& peer, ActorId actor,
                                         uint32_t after = 0) {
    protocol::GetActor request;
    request.actor = actor;
    request.after = after;
    auto info = ask<protocol::ActorInfo>(peer, Method::get_actor, request);
    if (info && info->state != "alive") return error(Code::unavailable, info->reason);
    return info;
  }
  Result<Empty> kill(const std::shared_ptr<Peer>& peer, ActorId actor) {
    return ask<Empty>(peer, Method::kill_actor, protocol::KillActor{actor, {}});
  }
  Result<Empty> report_exit(FakeWorker& worker, const protocol::ActorInfo& actor) {
    protocol::ProcessExited news;
    news.node = worker.node;
    news.epoch = worker.epoch;
    news.process = actor.address.process;
    news.actor = actor.actor;
    news.incarnation = actor.incarnation;
    news.reason = "it crashed";
    return ask<Empty>(worker.head, Method::process_exited, news);
  }
  protocol::NodeInfo look(const std::shared_ptr<Peer>& peer, NodeId node) {
    const auto list = ask<protocol::NodeList>(peer, Method::list_nodes, Empty{}).value();
    for (const auto& info : list.items) {
      if (info.address.node == node) return info;
    }
    return {};
  }
  // Whole processors that the head believes to be free there.
  int64_t cpu_free(const std::shared_ptr<Peer>& peer, NodeId node) {
    for (const auto& amount : look(peer, node).available) {
      if (amount.name == "cpu") return amount.milli / 1000;
    }
    return -1;
  }
  protocol::ClusterInfo cluster_info(const std::shared_ptr<Peer>& peer) {
    return ask<protocol::ClusterInfo>(peer, Method::cluster_info, Empty{}).value();
  }

  sim::Simulation simulation{1};
  Scope scope{simulation.executor()};  // Of the test's ends of connections.
  const ClusterId cluster = ClusterId::random(simulation.random());
  FailingStore store{cluster};
  HeadOptions options;
  transport::Router nothing;  // Drivers answer nothing.
  sim::SimHost* head_host = nullptr;
  std::optional<Head> head;

 private:
  Async<void> run_head(Status* started) { *started = co_await head->start(); }
  Async<void> connect_into(Pending<std::shared_ptr<Peer>> slot, sim::SimHost& host,
                           transport::Service& service, protocol::Hello self) {
    const Instant deadline = simulation.clock().now() + 5s;
    auto connection = co_await host.connect(options.listen[0], deadline);
    if (!connection) {
      slot->emplace(connection.error());
      co_return;
    }
    auto peer = co_await Peer::start(scope, simulation.environment(host), std::move(*connection),
                                     service, self, deadline);
    slot->emplace(std::move(peer));
  }
  template <class Reply, class Request>
  Async<void> call_into(Pending<Reply> slot, std::shared_ptr<Peer> peer, Method method,
                        Request request, Duration budget) {
    auto answer = co_await transport::call<Reply>(std::move(peer), method, request, budget);
    slot->emplace(std::move(answer));
  }
  Async<void> beat(FakeWorker* worker) {
    for (;;) {
      co_await sleep_for(simulation.clock(), options.heartbeat);
      if (!worker->beats || worker->epoch == 0 || !worker->head->is_open()) continue;
      protocol::Heartbeat beat;
      beat.node = worker->node;
      beat.epoch = worker->epoch;
      (void)co_await transport::call<protocol::HeartbeatReply>(worker->head, Method::heartbeat,
                                                               beat, 1s);
    }
  }

  std::vector<std::unique_ptr<FakeWorker>> workers_;
};

}  // namespace troupe::head
