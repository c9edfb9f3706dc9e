// A worker with real processes and a head that only listens.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <filesystem>
#include <functional>

#include "base/log.h"
#include "transport/real_environment.h"
#include "worker/machine.h"
#include "worker/posix_launcher.h"
#include "worker/worker.h"

namespace troupe::worker {

using namespace std::chrono_literals;
using transport::CallContext;
using transport::Message;
using transport::Method;
using transport::Peer;

class FakeHead : public transport::Router {
 public:
  FakeHead(transport::Environment environment, Scope& scope, std::string path)
      : changed(environment.loop), environment_(environment), scope_(scope) {
    endpoint_.unix_path = std::move(path);
    on(Method::register_node, *this, &FakeHead::register_node);
    on(Method::heartbeat, *this, &FakeHead::heartbeat);
    on(Method::process_exited, *this, &FakeHead::process_exited);
    on(Method::list_jobs, *this, &FakeHead::list_jobs);
  }

  void start() {
    listener_ = environment_.network.listen(endpoint_).value();
    spawn(scope_, accept(listener_.get()));
  }
  Async<void> stop() {
    if (!listener_) co_return;
    co_await listener_->stop();
    listener_.reset();
    if (worker) worker->close();
    worker.reset();
  }
  // Waits for what `happened` says; fails the test after a while.
  Async<void> until(std::function<bool()> happened) {
    const Instant deadline = environment_.clock.now() + 20s;
    while (!happened()) {
      if (!co_await wait_until(environment_.clock, deadline, changed)) {
        ADD_FAILURE() << "it never happened";
        co_return;
      }
    }
  }

  std::vector<protocol::RegisterNode> registered;
  std::vector<protocol::ProcessExited> exits;
  std::vector<protocol::ActorGauges> gauges;
  std::vector<protocol::JobInfo> jobs;
  int beats = 0;
  uint64_t store_spilled_bytes = 0;
  int exits_to_refuse = 0;
  uint64_t epoch = 1;
  uint64_t heartbeat_us = 5'000;
  bool register_again = false;
  bool leads = true;
  std::shared_ptr<Peer> worker;
  Event changed;

 private:
  Async<void> accept(transport::Listener* listener) {
    for (;;) {
      auto connection = co_await listener->accept();
      if (!connection) co_return;
      protocol::Hello self;
      self.kind = "head";
      const Instant deadline = environment_.clock.now() + 5s;
      auto peer =
          co_await Peer::start(scope_, environment_, std::move(*connection), *this, self, deadline);
      if (peer) worker = *peer;
    }
  }
  Async<Result<protocol::NodeRegistered>> register_node(protocol::RegisterNode request,
                                                        CallContext) {
    changed.pulse();
    if (!leads) co_return error(Code::unavailable, "this head does not lead");
    registered.push_back(std::move(request));
    co_return protocol::NodeRegistered{{}, epoch, heartbeat_us, 1'000'000};
  }
  Async<Result<protocol::HeartbeatReply>> heartbeat(protocol::Heartbeat beat, CallContext) {
    changed.pulse();
    if (!leads) co_return error(Code::unavailable, "this head does not lead");
    ++beats;
    store_spilled_bytes = beat.store_spilled_bytes;
    for (auto& report : beat.gauges) gauges.push_back(std::move(report));
    co_return protocol::HeartbeatReply{epoch, std::exchange(register_again, false)};
  }
  Async<Result<protocol::Empty>> process_exited(protocol::ProcessExited exit, CallContext) {
    if (exits_to_refuse > 0) {
      --exits_to_refuse;
      co_return error(Code::unavailable, "not now");
    }
    exits.push_back(std::move(exit));
    changed.pulse();
    co_return protocol::Empty{};
  }
  Async<Result<protocol::JobList>> list_jobs(protocol::Empty, CallContext) {
    co_return protocol::JobList{jobs};
  }

  transport::Environment environment_;
  Scope& scope_;
  transport::Endpoint endpoint_;
  std::unique_ptr<transport::Listener> listener_;
};

class WorkerTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::getenv("TROUPE_LOG") != nullptr) log::start("test", log::Level::debug);
    std::string pattern = "/tmp/troupe-worker-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    options.node = NodeId::random(random);
    options.name = "worker-1";
    options.heads = {{folder + "/head.sock", "", 0}};
    options.worker_socket = folder + "/worker.sock";
    options.socket_folder = folder;
    options.log_folder = folder;
    options.total = {{"cpu", 2000}};
    options.first_gpu = 4;  // As beside another worker of the machine.
    options.store_capacity_bytes = 1 << 20;
    options.key_pem = "the key";
    options.reconnect_first = 1ms;
    options.reconnect_longest = 20ms;
    options.job_check_period = 5ms;
    head.emplace(environment(), scope, options.heads.front().unix_path);
  }
  void TearDown() override { std::filesystem::remove_all(folder); }

  transport::Environment environment() { return real.environment(); }

  // Runs `body` beside a registered worker, then stops all and looks for what was left behind.
  void with_worker(std::function<Async<void>()> body) {
    const transport::Environment base = environment();
    transport::Network& network = network_override != nullptr ? *network_override : base.network;
    worker.emplace(
        transport::Environment{base.loop, base.blocking, base.clock, base.random, network},
        launcher, options);
    spawn(scope, run(std::move(body)));
    real.io().run();
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "a zombie or a living child is left";
    worker.reset();
  }
  Async<void> run(std::function<Async<void>()> body) {
    head->start();
    EXPECT_TRUE(co_await worker->start());
    co_await head->until([this] { return !head->registered.empty(); });
    co_await body();
    for (auto& client : clients) client->close();
    clients.clear();
    co_await worker->stop();
    co_await head->stop();
    co_await launched.stop();
  }

  // A process of this node, connected to the worker.
  Async<std::shared_ptr<Peer>> connect(ProcessId process, JobId job, std::string socket = {}) {
    transport::Endpoint endpoint;
    endpoint.unix_path = socket.empty() ? options.worker_socket : socket;
    const Instant deadline = environment().clock.now() + 5s;
    auto connection = co_await environment().network.connect(endpoint, deadline);
    protocol::Hello self;
    self.kind = "driver";
    self.address.process = process;
    self.job = job;
    auto peer = co_await Peer::start(scope, environment(), std::move(connection).value(),
                                     client_service, self, deadline);
    clients.push_back(peer.value());
    co_return peer.value();
  }

  protocol::StartActor start_request(ActorId actor, uint32_t incarnation, std::string what) {
    protocol::StartActor request;
    request.epoch = 1;
    request.incarnation = incarnation;
    request.spec.actor = actor;
    request.spec.job = job;
    request.spec.class_name = std::move(what);
    return request;
  }
  Async<Result<protocol::ProcessStarted>> start_actor(protocol::StartActor request) {
    auto peer = head->worker;
    co_return co_await transport::call<protocol::ProcessStarted>(peer, Method::start_actor,
                                                                 std::move(request), 20s);
  }
  Async<Result<protocol::Empty>> stop_actor(ActorId actor, uint32_t incarnation, Duration grace) {
    protocol::StopActor request;
    request.epoch = 1;
    request.actor = actor;
    request.incarnation = incarnation;
    request.grace_us = static_cast<uint64_t>(grace / 1us);
    auto peer = head->worker;
    co_return co_await transport::call<protocol::Empty>(peer, Method::stop_actor,
                                                        std::move(request), 20s);
  }

  // Of a lease of its own.
  protocol::StartSlots slots_request(uint32_t count, std::string module = "m") {
    protocol::StartSlots request;
    request.epoch = 1;
    request.lease = LeaseId::random(random);
    request.job = job;
    request.module = std::move(module);
    request.count = count;
    return request;
  }
  Async<Result<protocol::SlotsStarted>> start_slots(protocol::StartSlots request) {
    auto peer = head->worker;
    co_return co_await transport::call<protocol::SlotsStarted>(peer, Method::start_slots,
                                                               std::move(request), 20s);
  }
  // All of the lease's without names.
  Async<Result<protocol::Empty>> stop_slots(LeaseId lease, std::vector<ProcessId> processes = {},
                                            Duration budget = 20s) {
    protocol::StopSlots request;
    request.epoch = 1;
    request.lease = lease;
    request.processes = std::move(processes);
    auto peer = head->worker;
    co_return co_await transport::call<protocol::Empty>(peer, Method::stop_slots,
                                                        std::move(request), budget);
  }

  SeededRandom random{7};
  std::string folder;
  transport::RealEnvironment real;
  Scope scope{real.io().get_executor()};
  Scope launched{real.io().get_executor()};
  PosixLauncher launcher{real.io(), launched, TEST_ACTOR, ProcessStart::fork};
  WorkerOptions options;
  JobId job = JobId::random(random);
  ActorId actor = ActorId::random(random);
  transport::Router client_service;
  std::vector<std::shared_ptr<Peer>> clients;
  std::optional<FakeHead> head;
  transport::Network* network_override = nullptr;
  std::optional<Worker> worker;
};

}  // namespace troupe::worker
