#include "actor/host.h"

#include <fmt/format.h>
#include <unistd.h>

#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/post.hpp>

#include "actor/host_table.h"
#include "base/log.h"
#include "security/audit.h"

namespace troupe::actor {

using protocol::Empty;
using protocol::ProcessStarted;
using transport::CallContext;
using transport::Method;

namespace {
constexpr Duration last_grace = std::chrono::seconds(2);
constexpr Duration gauge_period = std::chrono::seconds(1);
constexpr Duration flush_time = std::chrono::seconds(1);
constexpr size_t name_bytes_max = 256;  // Of what a caller calls its task.
}  // namespace

Host::Host(client::Client& client, HostOptions options)
    : client_(client),
      options_(std::move(options)),
      groups_(client),
      services_(client, groups_),
      ring_calls_(client, *this),
      done_(client.environment().loop) {
  auto& router = client.router();
  router.on(Method::assign_actor, *this, &Host::assign_actor);
  router.on(Method::assign_slot, *this, &Host::assign_slot);
  router.on(Method::stop_process, *this, &Host::stop_process);
  router.on_message(Method::collective, [this](transport::Message message, CallContext context) {
    return groups_.receive(std::move(message), std::move(context));
  });
  client.set_invocation_handler(this);
  if (auto* rings = client.environment().rings) rings->set_handler(&ring_calls_);
}

Error Host::placed(Error failure, const std::string& call) const {
  const std::string who = identity_ && !identity_->actor.is_nil()
                              ? fmt::format("{} of actor {}", call, identity_->actor.short_string())
                              : "task " + call;
  return std::move(failure).at(fmt::format("{} on node {}", who, client_.attached().node_name));
}

Error Host::refusal(Error failure, const std::string& call) const {
  return failure.code() == Code::unavailable ? failure : placed(std::move(failure), call);
}

void Host::add_extras(CallRequest& request, const protocol::CallExtras& extras) {
  constexpr uint64_t longest_us = client::default_budget / std::chrono::microseconds(1);
  if (extras.is_empty()) return;
  request.extras = std::make_unique<RequestExtras>();
  RequestExtras& made = *request.extras;
  made.name = extras.name.substr(0, name_bytes_max);
  made.results = extras.results;
  if (extras.time_limit_us == 0) return;
  made.time_limit = std::chrono::microseconds(std::min(extras.time_limit_us, longest_us));
  made.grace = std::chrono::microseconds(std::min(extras.grace_us, longest_us));
  made.begun = [this](const std::shared_ptr<Call>& call) {
    boost::asio::post(client_.environment().loop,
                      [this, call] { spawn(client_.scope(), keep_time_limit(call)); });
  };
}

Async<void> Host::keep_time_limit(std::shared_ptr<Call> call) {
  const RequestExtras& request = *call->request().extras;
  co_await sleep_for(client_.environment().clock, request.time_limit);
  if (call->is_finished()) co_return;
  const int64_t limit_ms = request.time_limit / std::chrono::milliseconds(1);
  log::warning("task_over_time_limit", {{"task", call->label()}, {"limit_ms", limit_ms}});
  call->overrun();
  co_await sleep_for(client_.environment().clock, request.grace);
  // A task cannot be unwound from outside: its process goes, and with it the slot.
  const bool late = call->finish(
      error(Code::deadline_exceeded,
            fmt::format("it ran longer than its time limit of {} ms, and did not end within {} ms "
                        "of the warning: its process was ended",
                        limit_ms, request.grace / std::chrono::milliseconds(1))));
  if (!late) co_return;
  log::warning("task_ended_with_its_process", {{"task", call->label()}});
  // Once it is answered: a call of a ring is by now.
  call->ends_process = true;
  if (call->origin().sink != nullptr) end_soon();
}

void Host::end_soon() {
  hurries_ = true;
  done_.set();
}

void Host::end_now() {
  log::info("process_ended_by_force");
  ::_exit(exit_status_);
}

Async<Result<protocol::InvokeReply>> Host::make_reply(std::shared_ptr<Call> call, Bytes value,
                                                      ObjectId result, ProcessId caller) {
  if (call->more.empty()) {
    std::vector<client::ObjectName> held;
    for (const client::HeldRef& ref : call->held) held.push_back(ref.name);
    co_return co_await client_.make_reply(std::move(value), result, caller, std::move(held));
  }
  std::vector<Bytes> values = std::move(call->more);
  values.insert(values.begin(), std::move(value));
  std::vector<std::vector<client::ObjectName>> held(values.size());
  for (const client::HeldRef& ref : call->held) held.at(ref.result).push_back(ref.name);
  co_return co_await client_.make_reply(std::move(values), result, caller, std::move(held));
}

Status Host::check_worker(const CallContext& context) const {
  // Before the worker is joined nothing listens: only it can ask.
  const auto& worker = client_.worker();
  if (!worker || context.peer == worker) return ok();
  security::Audit{}.refuse(security::audit_name(context.peer->identity()),
                           "assign or stop this process", "not its worker");
  return error(Code::denied, "only the worker may ask this of its process");
}

Async<Result<ProcessStarted>> Host::assign_actor(protocol::AssignActor request,
                                                 CallContext context) {
  TROUPE_CO_CHECK(check_worker(context));
  // The worker assigns as soon as it was greeted, which may be before this process listens.
  co_await client_.started().wait();
  const protocol::ActorSpec& spec = request.spec;
  if (identity_ && identity_->actor == spec.actor &&
      identity_->incarnation == request.incarnation && !assigning_ && instance_) {
    co_return ProcessStarted{client_.address(), static_cast<uint32_t>(::getpid())};
  }
  Identity identity;
  identity.actor = spec.actor;
  identity.job = spec.job;
  identity.name = spec.name;
  identity.node_name = client_.attached().node_name;
  identity.incarnation = request.incarnation;
  client_.set_placement(spec.placement);
  auto arguments = co_await client_.resolve(spec.arguments, client::default_budget);
  if (!arguments) co_return std::move(arguments).error();
  co_return co_await host(spec.module, spec.class_name, std::move(identity), spec.signature,
                          std::move(*arguments), spec.concurrency);
}

Async<Result<ProcessStarted>> Host::assign_slot(protocol::AssignSlot request, CallContext context) {
  TROUPE_CO_CHECK(check_worker(context));
  co_await client_.started().wait();
  client_.set_lease(request.lease);
  client_.set_placement(request.placement);
  // A slot process serves one lease after the other of the same job and module.
  if (identity_ && identity_->actor.is_nil() && instance_ && !assigning_) {
    co_return ProcessStarted{client_.address(), static_cast<uint32_t>(::getpid())};
  }
  Identity identity;
  identity.job = request.job;
  identity.node_name = client_.attached().node_name;
  std::vector<client::ObjectBytes> none;
  co_return co_await host(request.module, TROUPE_TASKS_CLASS, std::move(identity), 0,
                          std::move(none), 1);
}

Async<Result<ProcessStarted>> Host::host(std::string module, std::string class_name,
                                         Identity identity, uint64_t signature,
                                         std::vector<client::ObjectBytes> arguments,
                                         uint32_t concurrency) {
  if (assigning_ || instance_)
    co_return error(Code::conflict, "this process hosts something already");
  assigning_ = true;
  struct Guard {
    bool& assigning;
    ~Guard() { assigning = false; }
  } guard{assigning_};
  auto load = [module, folders = options_.plugin_folders] {
    return Module::load(module, folders, host_table());
  };
  auto loaded = co_await transport::run_blocking(client_.environment(), load);
  if (!loaded) co_return std::move(loaded).error();
  auto type = loaded->find_class(class_name);
  if (!type) co_return std::move(type).error();
  identity_ = identity;
  InstanceSpec spec;
  spec.type = *type;
  spec.identity = std::move(identity);
  spec.signature = signature;
  spec.arguments = std::move(arguments);
  spec.concurrency = concurrency;
  instance_ = std::make_unique<Instance>(client_.environment(), services_, std::move(spec),
                                         options_.instance);
  auto started = co_await instance_->start();
  if (!started) {
    identity_.reset();  // A repeated request must not find that it is hosted.
    co_return std::move(started).error().context(fmt::format("{} of {}", class_name, module));
  }
  ring_calls_.deliver_to(*instance_, *identity_);
  spawn(client_.scope(), watch_instance());
  if (!identity_->actor.is_nil()) spawn(client_.scope(), report_gauges());
  co_return ProcessStarted{client_.address(), static_cast<uint32_t>(::getpid())};
}

Async<void> Host::watch_instance() {
  co_await instance_->ended().wait();
  if (const auto& death = instance_->death()) {
    log::error("instance_died", {{"why", *death}});
    exit_status_ = 1;
  }
  done_.set();
}

Async<void> Host::report_gauges() {
  std::map<std::string, double> told;
  while (!instance_->ended().is_set()) {
    co_await sleep_for(client_.environment().clock, gauge_period);
    const auto now = instance_->gauges();
    if (now == told) continue;
    protocol::ActorGauges report{identity_->actor, identity_->incarnation, {}};
    for (const auto& [name, value] : now) report.gauges.push_back({name, value});
    const auto worker = client_.worker();
    auto taken = co_await transport::call<Empty>(worker, Method::report_gauges, std::move(report),
                                                 gauge_period);
    if (taken) told = now;
  }
}

Async<Result<Empty>> Host::stop_process(protocol::StopProcess request, CallContext context) {
  TROUPE_CO_CHECK(check_worker(context));
  if (instance_) {
    instance_->request_stop();
    const Duration grace =
        std::chrono::microseconds(std::min<uint64_t>(request.grace_us, 3'600'000'000));
    const bool ended = co_await instance_->wait_ended(client_.environment().clock.now() + grace);
    if (!ended) co_return error(Code::deadline_exceeded, "the actor did not end within its grace");
  }
  done_.set();
  co_return Empty{};
}

Async<void> Host::stop() {
  if (!instance_ || instance_->ended().is_set()) co_return;
  instance_->request_stop();
  auto& clock = client_.environment().clock;
  const Duration grace = hurries_ ? Duration::zero() : last_grace;
  const bool ended = co_await instance_->wait_ended(clock.now() + grace);
  if (!ended) {
    using namespace boost::asio::experimental::awaitable_operators;
    // User code that does not return cannot be joined; the system takes the process back whole,
    // once what was answered is sent.
    log::warning("instance_abandoned");
    co_await (client_.stop() || sleep_for(clock, flush_time));
    ::_exit(exit_status_);
  }
}

// What makes the arguments may need the cpu that this call's slot holds.
Async<Result<std::vector<client::ObjectBytes>>> Host::resolve(
    std::vector<protocol::Argument> arguments, Duration budget) {
  const client::TaskWait wait{client_};
  co_return co_await client_.resolve(std::move(arguments), budget);
}

Async<Result<std::shared_ptr<Call>>> Host::enqueue(protocol::Invoke call, Origin origin,
                                                   bool streams) {
  if (!instance_ || !identity_ || assigning_)
    co_return error(Code::unavailable, "this process hosts nothing yet");
  if (call.actor != identity_->actor ||
      (!call.actor.is_nil() && call.incarnation != identity_->incarnation)) {
    co_return error(Code::conflict, "this process hosts another actor, or another incarnation");
  }
  const ProcessId caller = origin.caller;
  const auto mine = std::make_shared<Event>(client_.environment().loop);
  const bool ordered = !call.actor.is_nil();  // Tasks are not: one may wait for the next.
  const auto earlier = std::exchange(last_arrival_[caller], mine);
  // Whatever happens, the calls behind this one go on.
  struct Guard {
    Host& host;
    ProcessId caller;
    std::shared_ptr<Event> mine;
    ~Guard() {
      mine->set();
      const auto last = host.last_arrival_.find(caller);
      if (last != host.last_arrival_.end() && last->second == mine) host.last_arrival_.erase(last);
    }
  } guard{*this, caller, mine};
  const Duration budget = origin.deadline == Instant::max()
                              ? client::default_budget
                              : origin.deadline - client_.environment().clock.now();
  auto arguments = co_await resolve(std::move(call.arguments), budget);
  if (ordered && earlier && !earlier->is_set()) co_await earlier->wait();
  const std::string label = call.name.empty() ? call.method : call.name;
  if (!arguments) co_return placed(std::move(arguments).error(), label);
  CallRequest request;
  add_extras(request, {call.time_limit_us, call.grace_us, call.results, call.name});
  request.method = std::move(call.method);
  request.signature = call.signature;
  request.arguments = std::move(*arguments);
  request.deadline = origin.deadline;
  request.streams = streams;
  request.items_max = call.items_max;
  auto made = instance_->make_call(std::move(request), origin.cancelled);
  if (auto taken = instance_->submit(made); !taken) {
    co_return refusal(std::move(taken).error(), label);
  }
  co_return made;
}

// A task that was cancelled has a moment to notice by itself.
Async<void> Host::outlives_cancel(std::shared_ptr<transport::CancelEvent> cancelled) {
  // A call's change pulses this event too, so a wake-up alone says nothing.
  while (!cancelled->is_set()) co_await cancelled->wait();
  if ((cancelled->how & protocol::cancel_by_force) != 0) end_now();
  co_await sleep_for(client_.environment().clock, cancel_grace);
}

Host::Origin Host::origin_of(const CallContext& context) {
  return {context.peer->remote().address.process, context.deadline, context.cancelled, nullptr};
}

Async<Result<protocol::InvokeReply>> Host::invoke(protocol::Invoke call, CallContext context) {
  return run(std::move(call), origin_of(context));
}

Async<Result<protocol::InvokeReply>> Host::run(protocol::Invoke call, Origin origin) {
  using namespace boost::asio::experimental::awaitable_operators;
  const ObjectId result = call.result;
  const ProcessId caller = origin.caller;
  const bool is_task = call.actor.is_nil();
  const auto cancelled = origin.cancelled;
  auto enqueued = co_await enqueue(std::move(call), std::move(origin), false);
  if (!enqueued) co_return std::move(enqueued).error();
  Result<Bytes> outcome = error(Code::internal, "no outcome");
  if (is_task) {
    auto raced = co_await ((*enqueued)->outcome() || outlives_cancel(cancelled));
    if (raced.index() == 1) {
      // A task cannot be unwound from outside: its process goes, and with it the slot.
      log::info("task_ended_with_its_process", {{"task", (*enqueued)->label()}});
      end_soon();
      co_return error(Code::cancelled, "the task was cancelled");
    }
    outcome = std::get<0>(std::move(raced));
  } else {
    outcome = co_await (*enqueued)->outcome();
  }
  const std::string label = (*enqueued)->label();
  if ((*enqueued)->ends_process) end_soon();
  if (!outcome) co_return placed(std::move(outcome).error(), label);
  // Nobody would take back what a reply keeps for its caller.
  if (cancelled->is_set()) co_return error(Code::cancelled, "the caller gave up");
  auto reply = co_await make_reply(*enqueued, std::move(*outcome), result, caller);
  if (!reply) co_return placed(std::move(reply).error(), label);
  co_return reply;
}

Async<Status> Host::send_items(std::shared_ptr<Call> call, transport::OutgoingStream& out) {
  for (;;) {
    auto item = co_await call->next_item();
    if (!item) co_return ok();
    auto sent = co_await out.send(std::move(*item));
    if (!sent) {
      call->cancel();
      co_return sent;
    }
  }
}

Async<Result<Bytes>> Host::stream_outcome(std::shared_ptr<Call> call,
                                          transport::OutgoingStream& out) {
  (void)co_await send_items(call, out);
  co_return co_await call->outcome();
}

Async<Status> Host::invoke_stream(protocol::Invoke call, CallContext context,
                                  transport::OutgoingStream& out) {
  using namespace boost::asio::experimental::awaitable_operators;
  const bool is_task = call.actor.is_nil();
  const auto cancelled = context.cancelled;
  auto enqueued = co_await enqueue(std::move(call), origin_of(context), true);
  if (!enqueued) co_return std::move(enqueued).error();
  const auto running = *enqueued;
  out.on_credit([running](uint32_t count) { running->items_read(count); });
  Result<Bytes> outcome = error(Code::internal, "no outcome");
  if (is_task) {
    // Its slot is free once it has ended, not when its caller gave up.
    auto raced = co_await (stream_outcome(running, out) || outlives_cancel(cancelled));
    if (raced.index() == 1) {
      log::info("task_ended_with_its_process", {{"task", running->label()}});
      end_soon();
      co_return error(Code::cancelled, "the task was cancelled");
    }
    outcome = std::get<0>(std::move(raced));
  } else {
    TROUPE_CO_CHECK(co_await send_items(running, out));
    outcome = co_await running->outcome();
  }
  if (running->ends_process) end_soon();
  if (!outcome) co_return placed(std::move(outcome).error(), running->label());
  co_return ok();
}

}  // namespace troupe::actor
