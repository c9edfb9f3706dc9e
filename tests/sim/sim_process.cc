#include "tests/sim/sim_process.h"

#include <fmt/format.h>

#include <algorithm>

namespace troupe::sim {

using protocol::InvokeReply;
using protocol::ProcessStarted;
using transport::CallContext;
using transport::Method;

namespace {

constexpr Duration reap_delay = std::chrono::milliseconds(1);
constexpr Duration slow_call = std::chrono::milliseconds(200);
constexpr Duration read_budget = std::chrono::seconds(2);

client::ClientOptions client_options(const worker::LaunchSpec& spec, JobId job,
                                     std::unique_ptr<transport::Connection> connection) {
  client::ClientOptions options;
  options.kind = "actor";
  options.process = spec.process;
  options.job = job;
  options.worker_connection = std::move(connection);
  return options;
}

JobId job_of(const worker::LaunchSpec& spec) {
  for (const auto& [name, value] : spec.environment) {
    if (name != "TROUPE_JOB_ID") continue;
    if (auto job = JobId::parse(value)) return *job;
  }
  return {};
}

// What the worker holds of a process.
class SimLaunched final : public worker::LaunchedProcess {
 public:
  // `loading`: until it is there, nobody can tell it from one that hangs.
  SimLaunched(const Executor& executor, std::shared_ptr<SimProcess> process,
              std::unique_ptr<transport::Connection> connection, SimHost& worker, Duration loading)
      : process_(std::move(process)),
        connection_(std::move(connection)),
        clock_(worker.clock()),
        started_(executor),
        exited_(executor) {
    if (loading > Duration::zero()) {
      loaded_ = clock_.call_at(clock_.now() + loading, [this] { started_.set(); });
    } else {
      started_.set();
    }
    process_->set_parent([this] {
      started_.set();
      exited_.set();
    });
  }
  ~SimLaunched() override {
    clock_.cancel(loaded_);
    process_->set_parent(nullptr);
    process_->end("killed by its worker's end");
  }

  Event& started() override { return started_; }
  uint32_t pid() const override { return process_->pid(); }
  std::unique_ptr<transport::Connection> take_connection() override {
    return std::move(connection_);
  }
  Event& exited() override { return exited_; }
  std::string exit_reason() const override { return process_->exit_reason(); }
  void terminate() override { process_->end("killed by signal 15 (Terminated)"); }
  void kill() override { process_->end("killed by signal 9 (Killed)"); }

 private:
  std::shared_ptr<SimProcess> process_;
  std::unique_ptr<transport::Connection> connection_;
  TimerClock& clock_;
  TimerClock::TimerId loaded_ = 0;
  Event started_;
  Event exited_;
};

}  // namespace

SimProcess::SimProcess(Simulation& simulation, SimHost& host, SimHost& parent,
                       const worker::LaunchSpec& spec, uint32_t pid,
                       std::unique_ptr<transport::Connection> connection, ProcessObserver& observer)
    : simulation_(simulation),
      host_(host),
      parent_(parent),
      id_(spec.process),
      node_(spec.node),
      job_(job_of(spec)),
      pid_(pid),
      observer_(observer),
      client_(simulation.environment(host), client_options(spec, job_, std::move(connection))),
      ready_(simulation.executor()) {
  client_.set_invocation_handler(this);
  client_.router().on(Method::assign_actor, *this, &SimProcess::assign_actor);
  client_.router().on(Method::assign_slot, *this, &SimProcess::assign_slot);
  client_.router().on(Method::stay_until, *this, &SimProcess::stay_until);
  client_.router().on(Method::stop_process, *this, &SimProcess::stop_process);
}

void SimProcess::begin() {
  observer_.process_began(shared_from_this());
  spawn(simulation_.scope(), live(shared_from_this()));
}

Async<void> SimProcess::live(std::shared_ptr<SimProcess> self) {
  const Status started = co_await self->client_.start();
  if (self->ended_) co_return;
  if (!started) {
    self->end("exited with status 1");
    co_return;
  }
  self->ready_.set();
  auto worker = self->client_.worker();
  co_await worker->closed().wait();
  self->end("exited with status 0");
}

void SimProcess::end(std::string reason) {
  if (std::exchange(ended_, true)) return;
  exit_reason_ = std::move(reason);
  serving_ = false;
  simulation_.clock().cancel(last_timer_);
  simulation_.network().kill(host_);
  observer_.process_ended(*this);
  auto& clock = parent_.clock();
  clock.call_at(clock.now() + reap_delay, [self = shared_from_this()] {
    if (self->exited_) self->exited_();
  });
  spawn(simulation_.scope(), bury(shared_from_this()));
}

// Nothing of it can be heard any more; its coroutines only have to unwind.
Async<void> SimProcess::bury(std::shared_ptr<SimProcess> self) {
  self->ready_.set();
  co_await self->client_.stop();
}

Async<Result<ProcessStarted>> SimProcess::answer_when_ready(Instant deadline) {
  if (!co_await wait_until(host_.clock(), deadline, ready_)) {
    co_return error(Code::deadline_exceeded, "not ready");
  }
  serving_ = !ended_;
  ProcessStarted started;
  started.address = client_.address();
  started.pid = pid_;
  co_return started;
}

Async<Result<ProcessStarted>> SimProcess::assign_actor(protocol::AssignActor request,
                                                       CallContext context) {
  if (hosts_slot_ || actor_.incarnation != 0) {
    co_return error(Code::conflict, "this process hosts something already");
  }
  if (request.spec.class_name == "broken") co_return error(Code::invalid, "broken on purpose");
  actor_ = std::move(request);
  placement_ = actor_.spec.placement;
  co_return co_await answer_when_ready(context.deadline);
}

Async<Result<ProcessStarted>> SimProcess::assign_slot(protocol::AssignSlot request,
                                                      CallContext context) {
  if (actor_.incarnation != 0) co_return error(Code::conflict, "this process hosts an actor");
  hosts_slot_ = true;
  placement_ = request.placement;
  co_return co_await answer_when_ready(context.deadline);
}

Async<Result<protocol::Empty>> SimProcess::stay_until(protocol::StayUntil request, CallContext) {
  // The kernel's clock, which strikes a stopped process, too.
  auto& clock = simulation_.clock();
  const Instant until{Duration{request.monotonic_ns}};
  clock.cancel(last_timer_);
  const auto kill = [self = shared_from_this()] { self->end("killed by signal 9 (Killed)"); };
  if (until <= clock.now()) {
    kill();
  } else if (!ended_) {
    last_timer_ = clock.call_at(until, kill);
  }
  co_return protocol::Empty{};
}

Async<Result<protocol::Empty>> SimProcess::stop_process(protocol::StopProcess, CallContext) {
  // The reply first, as a process that ends in order would send it.
  auto& clock = host_.clock();
  clock.call_at(clock.now() + reap_delay,
                [self = shared_from_this()] { self->end("exited with status 0"); });
  co_return protocol::Empty{};
}

Async<Result<InvokeReply>> SimProcess::invoke(protocol::Invoke call, CallContext) {
  if (!serving_) co_return error(Code::unavailable, "this process hosts nothing yet");
  const bool mine = call.actor == actor_.spec.actor &&
                    (call.actor.is_nil() || call.incarnation == actor_.incarnation);
  if (!mine) co_return error(Code::conflict, "this process hosts another actor or incarnation");
  ++calls_;
  observer_.call_ran(*this, call);
  if (call.method == "crash") {
    end("killed by signal 11 (Segmentation fault)");
    Event never{client_.environment().loop};
    co_await never.wait();  // The dead do not answer.
  }
  if (call.method == "fail") co_return error(Code::invalid, "as asked");
  if (call.method == "slow") co_await sleep_for(host_.clock(), slow_call);
  InvokeReply reply;
  if (call.method == "read") {
    auto values = co_await client_.resolve(std::move(call.arguments), read_budget);
    if (!values) co_return std::move(values).error();
    reply.inline_value = Bytes(values->front().bytes.begin(), values->front().bytes.end());
  } else if (call.method == "count") {
    reply.inline_value = to_bytes(fmt::format("{}", calls_));
  } else if (!call.arguments.empty()) {
    reply.inline_value = std::move(call.arguments[0].inline_value);
  }
  co_return reply;
}

// It keeps no account of them.
protocol::Explanations SimProcess::explain_calls(const protocol::ExplainCalls& asked) {
  protocol::Explanations told;
  for (const TaskId task : asked.tasks) {
    auto& one = told.items.emplace_back();
    one.kind = "call";
    one.id = task;
    one.state = "unknown";
  }
  return told;
}

Async<Status> SimProcess::invoke_stream(protocol::Invoke, CallContext, transport::OutgoingStream&) {
  co_return error(Code::unimplemented, "simulated processes have no streams");
}

Result<std::unique_ptr<worker::LaunchedProcess>> SimLauncher::launch(
    const worker::LaunchSpec& spec) {
  if (!worker_.is_alive()) return error(Code::unavailable, "this worker is dead");
  auto& counts = simulation_.network().fault_counts();
  auto& random = simulation_.random();
  if (faults_.fail > 0 && random.chance(faults_.fail)) {
    counts.note(Fault::launch_failed);
    return error(Code::exhausted, "no more processes");
  }
  Duration loading{};
  if (faults_.slow > 0 && random.chance(faults_.slow)) {
    counts.note(Fault::launch_slow);
    loading = Duration(
        static_cast<int64_t>(random.below(static_cast<uint64_t>(faults_.slow_max.count()))));
  }
  HostOptions options;
  options.name = "process-" + spec.process.short_string();
  options.machine = worker_.machine();
  options.identity = worker_.identity();  // It uses its node's certificate.
  SimHost& host = simulation_.network().add_host(std::move(options));
  auto [near, far] = simulation_.network().connected_pair(worker_, host);
  static constexpr uint32_t pid_base = 1000;
  const auto pid = pid_base + static_cast<uint32_t>(simulation_.network().counts().connections);
  auto process = std::make_shared<SimProcess>(simulation_, host, worker_, spec, pid, std::move(far),
                                              observer_);
  auto launched = std::make_unique<SimLaunched>(simulation_.executor(), process, std::move(near),
                                                worker_, loading);
  process->begin();
  return launched;
}

}  // namespace troupe::sim
