// A client on virtual time, beside a worker, a head and processes that do what a test says.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "client/client.h"
#include "client/object_directory.h"
#include "tests/sim/simulation.h"

namespace troupe::client {

using namespace std::chrono_literals;
using protocol::Empty;
using transport::CallContext;
using transport::Message;
using transport::Role;

template <class T>
Code code_of(const Result<T>& result) {
  return result ? Code::ok : result.error().code();
}

// A process that others connect to. Answers what a test puts into its router.
class FakeServer : public transport::Router {
 public:
  FakeServer(sim::Simulation& simulation, Scope& scope, sim::SimHost& server_host)
      : changed(simulation.executor()), host(server_host), simulation_(simulation), scope_(scope) {}

  void listen(const Endpoint& endpoint) {
    listeners_.push_back(host.listen(endpoint).value());
    spawn(scope_, accept(listeners_.back().get()));
  }
  // Nobody connects any more; connections stay.
  void stop_listening() {
    for (auto& listener : listeners_) spawn(scope_, listener->stop());
    simulation_.run_for(0s);
    listeners_.clear();
  }
  // As a process that ends: what was asked of it stays without an answer.
  void die() {
    stop_listening();
    for (const auto& peer : peers) peer->close();
  }

  protocol::Hello self;
  std::vector<std::shared_ptr<Peer>> peers;
  Event changed;
  sim::SimHost& host;

 private:
  Async<void> accept(transport::Listener* listener) {
    for (;;) {
      auto connection = co_await listener->accept();
      if (!connection) co_return;
      const Instant deadline = simulation_.clock().now() + 5s;
      auto peer = co_await Peer::start(scope_, simulation_.environment(host),
                                       std::move(*connection), *this, self, deadline);
      if (peer) peers.push_back(*peer);
    }
  }

  std::vector<std::unique_ptr<transport::Listener>> listeners_;

 protected:
  sim::Simulation& simulation_;
  Scope& scope_;
};

class FakeHead : public FakeServer {
 public:
  FakeHead(sim::Simulation& simulation, Scope& scope, sim::SimHost& server_host)
      : FakeServer(simulation, scope, server_host) {
    self.kind = "head";
    on(Method::cluster_info, *this, &FakeHead::cluster_info);
    on(Method::create_actor, *this, &FakeHead::create_actor);
    on(Method::get_actor, *this, &FakeHead::get_actor);
    on(Method::request_lease, *this, &FakeHead::request_lease);
    on(Method::renew_lease, *this, &FakeHead::renew_lease);
    on(Method::return_lease, *this, &FakeHead::return_lease);
  }

  int asked = 0;               // For anything.
  std::deque<Error> failures;  // What the next requests are answered with.
  std::optional<Error> renew_failure;
  bool silent = false;                                 // Answers nothing until told.
  protocol::ActorInfo actor;                           // Where the one actor lives.
  std::map<ActorId, protocol::ActorInfo> more_actors;  // One that restarts is waited for.
  std::deque<protocol::ProcessAddress> free_slots;
  std::vector<protocol::ActorSpec> created;
  std::vector<protocol::RequestLease> leases;
  std::vector<protocol::RenewLease> renewed;
  std::vector<protocol::ReturnLease> returned;

 private:
  Async<Status> admit() {
    ++asked;
    while (silent) co_await changed.wait();
    if (failures.empty()) co_return ok();
    Error failure = std::move(failures.front());
    failures.pop_front();
    co_return failure;
  }
  Async<Result<protocol::ClusterInfo>> cluster_info(Empty, CallContext) {
    TROUPE_CO_CHECK(co_await admit());
    co_return protocol::ClusterInfo{};
  }
  Async<Result<protocol::ActorInfo>> create_actor(protocol::ActorSpec spec, CallContext) {
    created.push_back(std::move(spec));
    TROUPE_CO_CHECK(co_await admit());
    co_return protocol::ActorInfo{};
  }
  Async<Result<protocol::ActorInfo>> get_actor(protocol::GetActor request, CallContext) {
    TROUPE_CO_CHECK(co_await admit());
    if (!more_actors.contains(request.actor)) co_return actor;
    while (more_actors[request.actor].state == "restarting") co_await changed.wait();
    co_return more_actors[request.actor];
  }
  // Gives as many of the free slots as are wanted.
  Async<Result<protocol::LeaseGranted>> request_lease(protocol::RequestLease request, CallContext) {
    leases.push_back(request);
    TROUPE_CO_CHECK(co_await admit());
    if (free_slots.empty()) co_return error(Code::deadline_exceeded, "no slot yet: none is free");
    protocol::LeaseGranted granted;
    granted.lease = request.lease;
    granted.quantum_us = 3'000'000;
    while (!free_slots.empty() && granted.slots.size() < request.slots) {
      granted.slots.push_back({free_slots.front()});
      free_slots.pop_front();
    }
    co_return granted;
  }
  Async<Result<protocol::LeaseGranted>> renew_lease(protocol::RenewLease request, CallContext) {
    renewed.push_back(request);
    if (renew_failure) co_return *renew_failure;
    TROUPE_CO_CHECK(co_await admit());
    co_return protocol::LeaseGranted{};
  }
  Async<Result<Empty>> return_lease(protocol::ReturnLease request, CallContext) {
    returned.push_back(std::move(request));
    TROUPE_CO_CHECK(co_await admit());
    co_return Empty{};
  }
};

// An actor process: answers each call with its first argument, unless told otherwise.
class FakeProcess : public FakeServer {
 public:
  FakeProcess(sim::Simulation& simulation, Scope& scope, sim::SimHost& server_host)
      : FakeServer(simulation, scope, server_host) {
    self.kind = "actor";
    on(Method::invoke, *this, &FakeProcess::invoke);
  }

  std::vector<protocol::Invoke> calls;
  std::deque<Error> failures;  // What the next calls are answered with.
  bool hold = false;           // Answers no call until told.
  Duration takes{};            // For each call.
  int cancelled = 0;           // Callers that gave up on a held call.
  protocol::ProcessAddress address;

 private:
  Async<Result<protocol::InvokeReply>> invoke(protocol::Invoke call, CallContext context) {
    calls.push_back(call);
    if (hold) spawn(scope_, watch(context.cancelled));
    while (hold) co_await changed.wait();
    if (takes > Duration::zero()) co_await sleep_for(simulation_.clock(), takes);
    if (!failures.empty()) {
      Error failure = std::move(failures.front());
      failures.pop_front();
      co_return failure;
    }
    protocol::InvokeReply reply;
    if (!call.arguments.empty()) reply.inline_value = call.arguments[0].inline_value;
    co_return reply;
  }
  Async<void> watch(std::shared_ptr<Event> gave_up) {
    co_await gave_up->wait();
    ++cancelled;
  }
};

template <class T>
using Pending = std::shared_ptr<std::optional<Result<T>>>;

class ClientTest : public testing::Test {
 protected:
  ClientTest() {
    attached.node = NodeId::random(simulation.random());
    attached.cluster = ClusterId::random(simulation.random());
    attached.heads = {"10.0.0.1:7000"};
    attached.host = "10.0.1.1";
    attached.socket_path = "/simulated/driver.sock";
    worker.self.kind = "worker";
    worker.self.address.process = ProcessId::random(simulation.random());
    worker.self.address.node = attached.node;
    worker.on(Method::attach_process, *this, &ClientTest::attach);
  }
  void TearDown() override {
    if (client) stop_client();
    EXPECT_TRUE(simulation.run(scope.stop(), 1min));
  }

  void start_client() {
    worker.listen(worker_endpoint());
    head.listen(head_endpoint());
    EXPECT_EQ(code_of(try_start()), Code::ok);
  }
  Status try_start() {
    ClientOptions options;
    options.kind = "driver";
    options.process = ProcessId::random(simulation.random());
    options.job = job;
    options.worker = worker_endpoint();
    client.emplace(simulation.environment(host), std::move(options));
    return await(client->start(), 20s);
  }
  void stop_client() {
    EXPECT_TRUE(simulation.run(client->stop(), 1min));
    client.reset();
  }

  // A process that listens on its node's Unix socket.
  FakeProcess& add_process() {
    const std::string name = "process-" + std::to_string(processes_.size() + 1);
    processes_.push_back(
        std::make_unique<FakeProcess>(simulation, scope, add_host(name, "machine")));
    FakeProcess& process = *processes_.back();
    process.address.process = ProcessId::random(simulation.random());
    process.address.node = attached.node;
    process.address.unix_path = "/simulated/" + name + ".sock";
    process.self.address = process.address;
    Endpoint endpoint;
    endpoint.unix_path = process.address.unix_path;
    process.listen(endpoint);
    return process;
  }
  // One that hosts the actor, as the head says from now on.
  FakeProcess& add_actor(uint32_t incarnation = 1) {
    FakeProcess& process = add_process();
    head.actor.actor = actor;
    head.actor.state = "alive";
    head.actor.incarnation = incarnation;
    head.actor.address = process.address;
    return process;
  }
  // One that serves as a slot, which the head may lease.
  FakeProcess& add_slot() {
    FakeProcess& process = add_process();
    head.free_slots.push_back(process.address);
    return process;
  }

  // --- Waiting for what runs.
  template <class T>
  Pending<T> begin(Async<Result<T>> operation) {
    auto slot = std::make_shared<std::optional<Result<T>>>();
    spawn(scope, fill<T>(slot, std::move(operation)));
    return slot;
  }
  template <class T>
  Result<T> await(Async<Result<T>> operation, Duration limit = 1min) {
    auto slot = begin<T>(std::move(operation));
    simulation.run_until([&] { return slot->has_value(); }, limit);
    if (!*slot) return error(Code::internal, "it does not end");
    return **slot;
  }

  ActorCallSpec call_of(const std::string& argument) {
    ActorCallSpec spec;
    spec.actor = actor;
    spec.method = "echo";
    spec.arguments = {{to_bytes(argument), {}, {}}};
    return spec;
  }
  // A task of the traits that a test may change before it is submitted.
  struct EchoTask : TaskTraits {
    std::vector<protocol::Argument> arguments;
    std::vector<ObjectName> held = {};
    operator TaskSpec() const {
      return {std::make_shared<const TaskTraits>(*this), arguments, held};
    }
  };
  static EchoTask task_of(const std::string& argument) {
    EchoTask task;
    task.module = "module";
    task.function = "echo";
    task.arguments = {{to_bytes(argument), {}, {}}};
    return task;
  }
  Result<std::string> get(const ObjectName& object, Duration budget = 1min) {
    auto value = await(client->get(object, budget), budget + 1s);
    if (!value) return value.error();
    return std::string(as_text(value->bytes));
  }
  ObjectName put(const std::string& value) {
    auto bytes = std::make_shared<const Bytes>(to_bytes(value));
    return client->objects().publish(await(client->put(bytes, {})).value());
  }
  Duration since(Instant before) { return simulation.clock().now() - before; }
  Instant in(Duration duration) { return simulation.clock().now() + duration; }

  sim::SimHost& add_host(const std::string& name, const std::string& machine,
                         Role role = Role::node) {
    transport::PeerIdentity identity;
    identity.role = role;
    identity.name = name;
    return simulation.network().add_host({name, machine, identity});
  }
  Endpoint head_endpoint() const { return Endpoint::parse(attached.heads.front()).value(); }
  static Endpoint worker_endpoint() { return {"/simulated/worker.sock", "", 0}; }

  sim::Simulation simulation{1};
  Scope scope{simulation.executor()};  // Of everything but the client.
  protocol::Attached attached;
  const JobId job = JobId::random(simulation.random());
  const ActorId actor = ActorId::random(simulation.random());
  sim::SimHost& host = add_host("driver", "machine");
  FakeServer worker{simulation, scope, add_host("worker", "machine")};
  FakeHead head{simulation, scope, add_host("head", "head", Role::head)};
  std::optional<Client> client;

 private:
  Async<Result<protocol::Attached>> attach(protocol::AttachProcess, CallContext) {
    co_return attached;
  }
  template <class T>
  static Async<void> fill(Pending<T> slot, Async<Result<T>> operation) {
    auto outcome = co_await std::move(operation);
    slot->emplace(std::move(outcome));
  }

  std::vector<std::unique_ptr<FakeProcess>> processes_;
};

}  // namespace troupe::client
