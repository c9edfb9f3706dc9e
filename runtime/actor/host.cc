#include "actor/host.h"

#include <fmt/format.h>
#include <unistd.h>

#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/post.hpp>

#include "actor/host_table.h"
#include "base/log.h"
#include "client/object_directory.h"
#include "client/timeline_notes.h"
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
// A call without a deadline travels with a budget that stands for none, and shrinks on its way.
constexpr Duration way_most = std::chrono::minutes(1);
}  // namespace

Host::Host(client::Client& client, HostOptions options)
    : client_(client),
      options_(std::move(options)),
      groups_(client),
      services_(client, groups_),
      checkpoints_(client),
      crew_(client.environment(), client.scope()),
      ring_calls_(client, *this),
      done_(client.environment().loop) {
  auto& router = client.router();
  router.on(Method::assign_actor, *this, &Host::assign_actor);
  router.on(Method::assign_slot, *this, &Host::assign_slot);
  router.on(Method::stay_until, *this, &Host::stay_until);
  router.on(Method::stop_process, *this, &Host::stop_process);
  router.on(Method::end_actors, *this, &Host::end_actors);
  router.on_stream(Method::assign_actors, [this](transport::Message message, CallContext context,
                                                 transport::OutgoingStream& out) {
    return assign_actors(std::move(message), std::move(context), out);
  });
  router.on_message(Method::collective, [this](transport::Message message, CallContext context) {
    return groups_.receive(std::move(message), std::move(context));
  });
  client.set_invocation_handler(this);
  if (auto* rings = client.environment().rings) rings->set_handler(&ring_calls_);
}

Error Host::placed(Error failure, const std::string& call, ActorId actor) const {
  const std::string who =
      actor.is_nil() ? "task " + call : fmt::format("{} of actor {}", call, actor.short_string());
  return std::move(failure).at(fmt::format("{} on node {}", who, client_.attached().node_name));
}

Error Host::failed(Error failure, const Call& call, ActorId actor) const {
  if (failure.code() == Code::unavailable && !call.has_begun()) return failure;
  return placed(std::move(failure), call.label(), actor);
}

Error Host::refusal(Error failure, const std::string& call, ActorId actor) const {
  if (failure.code() == Code::unavailable) return failure;
  // A place says that the call ran, and callers send again what found the mailbox full.
  if (failure.code() == Code::exhausted) {
    return std::move(failure).context(fmt::format(
        "{} of actor {} on node {}", call, actor.short_string(), client_.attached().node_name));
  }
  return placed(std::move(failure), call, actor);
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

namespace {

std::vector<client::ObjectName> names_of(const std::vector<client::HeldRef>& held) {
  std::vector<client::ObjectName> names;
  names.reserve(held.size());
  for (const client::HeldRef& ref : held) names.push_back(ref.name);
  return names;
}

}  // namespace

Async<Result<protocol::InvokeReply>> Host::make_reply(std::shared_ptr<Call> call, Bytes value,
                                                      ObjectId result, ProcessId caller) {
  if (call->more.empty()) {
    auto held = names_of(call->held);
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

ProcessStarted Host::started() const {
  return {client_.address(), static_cast<uint32_t>(::getpid())};
}

Identity Host::identity_of(const protocol::ActorSpec& spec, uint32_t incarnation) const {
  return {spec.actor, spec.job, spec.name, client_.attached().node_name, incarnation};
}

Host::HostedPointer Host::find(ActorId actor) const {
  const auto found = hosted_.find(actor);
  return found != hosted_.end() && found->second->ready ? found->second : nullptr;
}

// --- One actor, or one slot

Async<Result<ProcessStarted>> Host::assign_actor(protocol::AssignActor request,
                                                 CallContext context) {
  TROUPE_CO_CHECK(check_worker(context));
  // The worker assigns as soon as it was greeted, which may be before this process listens.
  co_await client_.started().wait();
  const protocol::ActorSpec& spec = request.spec;
  const auto same = find(spec.actor);
  if (same && same->identity.incarnation == request.incarnation) co_return started();
  client_.set_placement(spec.placement);
  auto arguments = co_await client_.resolve(spec.arguments, client::default_budget);
  if (!arguments) co_return std::move(arguments).error();
  co_return co_await host_only(std::move(request), std::move(*arguments));
}

Async<Result<ProcessStarted>> Host::assign_slot(protocol::AssignSlot request, CallContext context) {
  TROUPE_CO_CHECK(check_worker(context));
  co_await client_.started().wait();
  client_.set_lease(request.lease);
  client_.set_placement(request.placement);
  // A slot process serves one lease after the other of the same job and module.
  if (find({})) co_return started();
  protocol::AssignActor assignment;
  protocol::ActorSpec& spec = assignment.spec;
  spec.job = request.job;
  spec.module = std::move(request.module);
  spec.class_name = TROUPE_TASKS_CLASS;
  spec.concurrency = 1;
  std::vector<client::ObjectBytes> none;
  co_return co_await host_only(std::move(assignment), std::move(none));
}

Async<Result<ProcessStarted>> Host::host_only(protocol::AssignActor assignment,
                                              std::vector<client::ObjectBytes> arguments) {
  if (assigning_ || !hosted_.empty() || is_shared_)
    co_return error(Code::conflict, "this process hosts something already");
  assigning_ = true;
  struct Guard {
    bool& assigning;
    ~Guard() { assigning = false; }
  } guard{assigning_};
  TROUPE_CO_CHECK(co_await load(assignment.spec.module));
  const protocol::ActorSpec& spec = assignment.spec;
  const auto hosted = std::make_shared<Hosted>();
  hosted->identity = identity_of(spec, assignment.incarnation);
  hosted_[spec.actor] = hosted;
  const std::string what = fmt::format("{} of {}", spec.class_name, spec.module);
  auto created = co_await create(hosted, std::move(assignment), std::move(arguments), nullptr);
  if (!created) co_return std::move(created).error().context(what);
  spawn(client_.scope(), watch_only());
  co_return started();
}

Async<Status> Host::load(std::string module) {
  if (module_ && module_name_ == module) co_return ok();
  if (module_) {
    co_return error(Code::conflict,
                    fmt::format("this process is for {}, not {}", module_name_, module));
  }
  const std::string file = options_.module_file.empty() ? module : options_.module_file;
  auto load = [file, folders = options_.plugin_folders] {
    return Module::load(file, folders, host_table());
  };
  auto loaded = co_await transport::run_blocking(client_.environment(), load);
  if (!loaded) co_return std::move(loaded).error();
  module_ = std::move(*loaded);
  module_name_ = std::move(module);
  co_return ok();
}

std::shared_ptr<Instance> Host::instance_of(const HostedPointer& hosted) {
  return hosted ? std::shared_ptr<Instance>{hosted, hosted->instance.get()} : nullptr;
}

Async<Status> Host::create(HostedPointer hosted, protocol::AssignActor assignment,
                           std::vector<client::ObjectBytes> arguments, Crew* crew) {
  const protocol::ActorSpec& spec = assignment.spec;
  const auto type = module_->find_class(spec.class_name);
  if (!type) co_return type.error();
  InstanceSpec made;
  made.type = *type;
  made.identity = hosted->identity;
  made.signature = spec.signature;
  made.arguments = std::move(arguments);
  made.concurrency = spec.concurrency;
  made.mailbox_calls_max = spec.mailbox_calls_max;
  made.crew = crew;
  for (const auto& group : spec.groups) made.groups.push_back({group.name, group.limit});
  Checkpoints::Find find_instance;
  if ((*type)->checkpoint != nullptr) {
    find_instance = [weak = std::weak_ptr{hosted}] { return instance_of(weak.lock()); };
  }
  made.checkpoints = checkpoints_.plan(assignment, find_instance);
  hosted->out_of_order = spec.out_of_order;
  hosted->class_name = spec.class_name;
  hosted->instance = std::make_unique<Instance>(client_.environment(), services_, std::move(made),
                                                options_.instance);
  const ActorId actor = hosted->identity.actor;
  if (!actor.is_nil()) {
    hosted->instance->gauges().on_change([this, actor] {
      boost::asio::post(client_.environment().loop, [this, actor] { gauges_changed(actor); });
    });
  }
  TROUPE_CO_CHECK(co_await hosted->instance->start());
  if (hosted->ending) co_return error(Code::cancelled, "it was stopped while it started");
  hosted->ready = true;
  ring_calls_.deliver_to(
      {hosted->instance.get(), actor, hosted->identity.incarnation, hosted->out_of_order},
      crew == nullptr);
  checkpoints_.begin(spec, instance_of(hosted));
  co_return ok();
}

Async<void> Host::watch_only() {
  const HostedPointer hosted = hosted_.begin()->second;
  const Instance& instance = *hosted->instance;
  co_await hosted->instance->ended().wait();
  // Whoever stopped it decides how long its last state may take.
  const Instant deadline =
      instance.death() ? client_.environment().clock.now() + last_grace : Instant::max();
  (void)co_await checkpoints_.wait_stored(hosted->identity.actor, hosted->identity.incarnation,
                                          deadline);
  if (const auto& death = instance.death()) {
    log::error("instance_died", {{"why", *death}});
    exit_status_ = 1;
  }
  done_.set();
}

// --- Light actors

Async<Status> Host::assign_actors(transport::Message message, CallContext context,
                                  transport::OutgoingStream& out) {
  TROUPE_CO_CHECK(check_worker(context));
  co_await client_.started().wait();
  auto request = protocol::decode<protocol::AssignActors>(message.body);
  if (!request) co_return std::move(request).error();
  if (request->items.empty()) co_return ok();
  if (assigning_ || (!hosted_.empty() && !is_shared_))
    co_return error(Code::conflict, "this process hosts something already");
  is_shared_ = true;
  client_.set_placement(request->items.front().spec.placement);
  const std::string module = request->items.front().spec.module;
  TROUPE_CO_CHECK(co_await load(module));
  const auto outcomes = std::make_shared<Outcomes>(client_.environment().loop);
  outcomes->left = request->items.size();
  for (auto& item : request->items) {
    spawn(client_.scope(), start_light(std::move(item), outcomes));
  }
  while (outcomes->left > 0 || !outcomes->told_next.empty()) {
    if (outcomes->told_next.empty()) {
      co_await outcomes->changed.wait();
      continue;
    }
    protocol::ActorsStarted report{std::exchange(outcomes->told_next, {})};
    TROUPE_CO_CHECK(co_await out.send(protocol::encode(report)));
  }
  co_return ok();
}

Async<void> Host::start_light(protocol::AssignActor request, std::shared_ptr<Outcomes> outcomes) {
  protocol::StartedActor outcome;
  outcome.actor = request.spec.actor;
  outcome.incarnation = request.incarnation;
  auto created = co_await create_light(std::move(request));
  if (created) {
    outcome.process = started();
  } else {
    outcome.error = protocol::to_info(created.error());
  }
  outcomes->told_next.push_back(std::move(outcome));
  --outcomes->left;
  outcomes->changed.pulse();
}

Async<Status> Host::create_light(protocol::AssignActor request) {
  protocol::ActorSpec& spec = request.spec;
  const ActorId actor = spec.actor;
  TROUPE_CO_CHECK(co_await load(spec.module));
  if (const auto same = hosted_.find(actor); same != hosted_.end()) {
    const bool runs =
        same->second->ready && same->second->identity.incarnation == request.incarnation;
    if (runs) co_return ok();
    co_return error(Code::conflict, "this process hosts the actor already");
  }
  const auto hosted = std::make_shared<Hosted>();
  hosted->identity = identity_of(spec, request.incarnation);
  hosted_[actor] = hosted;
  auto arguments = co_await client_.resolve(std::move(spec.arguments), client::default_budget);
  Status created;
  if (hosted->ending) {
    created = error(Code::cancelled, "it was stopped before it started");
  } else if (arguments) {
    created = co_await create(hosted, std::move(request), std::move(*arguments), &crew_);
  } else {
    created = std::move(arguments).error();
  }
  if (!created && hosted->instance && hosted->instance->has_started()) {
    co_await hosted->instance->ended().wait();
  }
  if (!created) forget(hosted);
  co_return created;
}

Async<Result<Empty>> Host::end_actors(protocol::EndActors request, CallContext context) {
  TROUPE_CO_CHECK(check_worker(context));
  const auto failed = std::make_shared<Status>(ok());
  const auto all_ended = std::make_shared<Event>(client_.environment().loop);
  std::shared_ptr<void> until_ended{nullptr, [all_ended](void*) { all_ended->set(); }};
  for (const auto& item : request.items) {
    spawn(client_.scope(), end_one(item, failed, until_ended));
  }
  until_ended.reset();
  co_await all_ended->wait();
  if (!*failed) co_return failed->error();
  co_return Empty{};
}

Async<void> Host::end_one(protocol::EndActor request, std::shared_ptr<Status> failed,
                          std::shared_ptr<void> until_ended) {
  auto ended = co_await end_light(std::move(request));
  if (!ended) *failed = std::move(ended);
  until_ended.reset();
}

Async<Status> Host::end_light(protocol::EndActor request) {
  const auto found = hosted_.find(request.actor);
  if (found == hosted_.end()) co_return ok();
  const HostedPointer hosted = found->second;
  if (request.incarnation != 0 && hosted->identity.incarnation != request.incarnation) {
    co_return ok();
  }
  const Duration grace =
      std::chrono::microseconds(std::min<uint64_t>(request.grace_us, 3'600'000'000));
  hosted->ending = true;
  hosted->ready = false;
  ring_calls_.remove(request.actor);
  bool ended = !hosted->instance || !hosted->instance->has_started();
  if (!ended) {
    const Instant deadline = client_.environment().clock.now() + grace;
    hosted->instance->request_stop(request.save);
    ended = co_await wait_ended(hosted, deadline);
  }
  if (!ended) {
    co_return error(Code::deadline_exceeded, fmt::format("actor {} did not end within its grace",
                                                         request.actor.short_string()));
  }
  forget(hosted);
  co_return ok();
}

void Host::forget(const HostedPointer& hosted) {
  const auto found = hosted_.find(hosted->identity.actor);
  if (found != hosted_.end() && found->second == hosted) hosted_.erase(found);
}

// --- Gauges and the end

void Host::gauges_changed(ActorId actor) {
  gauges_changed_.insert(actor);
  if (!std::exchange(reporting_, true)) spawn(client_.scope(), report_gauges());
}

Async<void> Host::report_gauges() {
  while (!gauges_changed_.empty()) {
    co_await sleep_for(client_.environment().clock, gauge_period);
    for (const ActorId actor : std::exchange(gauges_changed_, {})) {
      const auto hosted = hosted_.find(actor);
      if (hosted == hosted_.end() || !hosted->second->instance) continue;
      protocol::ActorGauges report{actor, hosted->second->identity.incarnation, {}};
      for (const auto& [name, value] : hosted->second->instance->gauges().read()) {
        report.gauges.push_back({name, value});
      }
      const auto worker = client_.worker();
      auto taken = co_await transport::call<Empty>(worker, Method::report_gauges, std::move(report),
                                                   gauge_period);
      if (!taken) gauges_changed_.insert(actor);
    }
  }
  reporting_ = false;
}

Async<Result<Empty>> Host::stay_until(protocol::StayUntil request, CallContext context) {
  TROUPE_CO_CHECK(check_worker(context));
  if (!options_.kill_at) co_return error(Code::unimplemented, "this process cannot be limited");
  options_.kill_at(Instant{Duration{request.monotonic_ns}});
  co_return Empty{};
}

Async<Result<Empty>> Host::stop_process(protocol::StopProcess request, CallContext context) {
  TROUPE_CO_CHECK(check_worker(context));
  if (request.if_unneeded && client_.objects().is_needed()) {
    co_return error(Code::conflict, "others have refs to what this process owns");
  }
  const Duration grace =
      std::chrono::microseconds(std::min<uint64_t>(request.grace_us, 3'600'000'000));
  if (!co_await end_all(grace, request.save)) {
    co_return error(Code::deadline_exceeded, "the actor did not end within its grace");
  }
  done_.set();
  co_return Empty{};
}

Async<bool> Host::wait_ended(HostedPointer hosted, Instant deadline) {
  const bool ended = co_await hosted->instance->wait_ended(deadline);
  if (!ended) co_return false;
  co_return co_await checkpoints_.wait_stored(hosted->identity.actor, hosted->identity.incarnation,
                                              deadline);
}

Async<bool> Host::end_all(Duration grace, bool save) {
  const Instant deadline = client_.environment().clock.now() + grace;
  std::vector<HostedPointer> ending;
  for (const auto& [actor, hosted] : hosted_) {
    if (!hosted->instance || !hosted->instance->has_started()) continue;
    hosted->instance->request_stop(save);
    ending.push_back(hosted);
  }
  for (const HostedPointer& hosted : ending) {
    if (!co_await wait_ended(hosted, deadline)) co_return false;
  }
  co_return true;
}

Async<void> Host::stop() {
  auto& clock = client_.environment().clock;
  if (!co_await end_all(hurries_ ? Duration::zero() : last_grace, false)) {
    using namespace boost::asio::experimental::awaitable_operators;
    // User code that does not return cannot be joined; the system takes the process back whole,
    // once what was answered is sent.
    log::warning("instance_abandoned");
    co_await (client_.stop() || sleep_for(clock, flush_time));
    ::_exit(exit_status_);
  }
}

namespace {

std::vector<client::ObjectName> refs_among(const std::vector<protocol::Argument>& arguments) {
  std::vector<client::ObjectName> refs;
  for (const protocol::Argument& argument : arguments) {
    if (!argument.object.is_nil()) refs.push_back({argument.object, argument.owner});
  }
  return refs;
}

}  // namespace

// What makes the arguments may need the cpu that this call's slot holds.
Async<Result<std::vector<client::ObjectBytes>>> Host::resolve(
    std::vector<protocol::Argument> arguments, Duration budget) {
  const client::TaskWait wait{client_};
  const Instant began = client_.environment().clock.now();
  auto values = co_await client_.resolve(std::move(arguments), budget);
  const Duration waited = client_.environment().clock.now() - began;
  Timeline* const timeline = client_.timeline();
  if (timeline != nullptr && waited >= timeline_long_wait) {
    client::note_wait(*timeline, {}, "fetch arguments", waited);
  }
  co_return values;
}

Async<Result<std::shared_ptr<Call>>> Host::enqueue(protocol::Invoke call, Origin origin,
                                                   bool streams) {
  if (hosted_.empty() || assigning_)
    co_return error(Code::unavailable, "this process hosts nothing yet");
  const ActorId actor = call.actor;
  const RawId noted = call.result.is_nil() ? RawId{call.task} : RawId{call.result};
  const HostedPointer hosted = find(actor);
  if (!hosted || (!actor.is_nil() && call.incarnation != hosted->identity.incarnation)) {
    co_return error(Code::conflict, "this process hosts another actor, or another incarnation");
  }
  const CallerAndActor caller{origin.caller, actor};
  const auto mine = std::make_shared<Event>(client_.environment().loop);
  // Tasks are not: one may wait for the next.
  const bool ordered = !actor.is_nil() && !hosted->out_of_order;
  const auto earlier = std::exchange(last_arrival_[caller], mine);
  // Whatever happens, the calls behind this one go on.
  struct Guard {
    Host& host;
    CallerAndActor caller;
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
  const std::string label = call.name.empty() ? call.method : call.name;
  const ObjectId result = call.result;
  const client::Roster<Arriving>::Entry arrives{
      arriving_,
      {TaskId{result}, caller, label, refs_among(call.arguments), ordered,
       client_.environment().clock.now(), origin.deadline}};
  auto arguments = co_await resolve(std::move(call.arguments), budget);
  if (ordered && earlier && !earlier->is_set()) co_await earlier->wait();
  if (!arguments) co_return placed(std::move(arguments).error(), label, actor);
  CallRequest request;
  add_extras(request, {call.time_limit_us, call.grace_us, call.results, call.name});
  request.method = std::move(call.method);
  request.signature = call.signature;
  request.arguments = std::move(*arguments);
  request.deadline = origin.deadline;
  request.arrived = client_.environment().clock.now();
  request.streams = streams;
  request.items_max = call.items_max;
  auto made = hosted->instance->make_call(std::move(request), origin.cancelled, result);
  made->note_in(client_.timeline(), noted);
  if (auto taken = hosted->instance->submit(made); !taken) {
    co_return refusal(std::move(taken).error(), label, actor);
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

Host::Origin Host::origin_of(const CallContext& context) const {
  const auto& clock = client_.environment().clock;
  const bool has_deadline = context.deadline - clock.now() < client::default_budget - way_most;
  return {context.peer->remote().address.process, has_deadline ? context.deadline : Instant::max(),
          context.cancelled, nullptr};
}

Async<Result<protocol::InvokeReply>> Host::invoke(protocol::Invoke call, CallContext context) {
  return run(std::move(call), origin_of(context));
}

Async<Result<protocol::InvokeReply>> Host::run(protocol::Invoke call, Origin origin) {
  using namespace boost::asio::experimental::awaitable_operators;
  const ObjectId result = call.result;
  const ProcessId caller = origin.caller;
  const ActorId actor = call.actor;
  const bool is_task = actor.is_nil();
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
  if ((*enqueued)->ends_process) end_soon();
  if (!outcome) co_return failed(std::move(outcome).error(), **enqueued, actor);
  // Nobody would take back what a reply keeps for its caller.
  if (cancelled->is_set()) co_return error(Code::cancelled, "the caller gave up");
  auto reply = co_await make_reply(*enqueued, std::move(*outcome), result, caller);
  if (!reply) co_return placed(std::move(reply).error(), (*enqueued)->label(), actor);
  co_return reply;
}

Async<Status> Host::send_items(std::shared_ptr<Call> call, ProcessId receiver,
                               transport::OutgoingStream& out) {
  auto& objects = client_.objects();
  for (;;) {
    auto item = co_await call->next_item();
    if (!item) co_return ok();
    uint32_t held = 0;
    if (!item->held.empty()) held = objects.hold_for_item(receiver, names_of(item->held));
    auto sent = co_await out.send(std::move(item->bytes), held);
    if (!sent) {
      if (held != 0) objects.let_go_for_item(held);
      call->cancel();
      co_return sent;
    }
  }
}

Async<Result<Bytes>> Host::stream_outcome(std::shared_ptr<Call> call, ProcessId receiver,
                                          transport::OutgoingStream& out) {
  (void)co_await send_items(call, receiver, out);
  co_return co_await call->outcome();
}

Async<Status> Host::invoke_stream(protocol::Invoke call, CallContext context,
                                  transport::OutgoingStream& out) {
  using namespace boost::asio::experimental::awaitable_operators;
  const ActorId actor = call.actor;
  const bool is_task = actor.is_nil();
  const ProcessId caller = context.peer->remote().address.process;
  const auto cancelled = context.cancelled;
  auto enqueued = co_await enqueue(std::move(call), origin_of(context), true);
  if (!enqueued) co_return std::move(enqueued).error();
  const auto running = *enqueued;
  out.on_credit([running](uint32_t count) { running->items_read(count); });
  Result<Bytes> outcome = error(Code::internal, "no outcome");
  if (is_task) {
    // Its slot is free once it has ended, not when its caller gave up.
    auto raced = co_await (stream_outcome(running, caller, out) || outlives_cancel(cancelled));
    if (raced.index() == 1) {
      log::info("task_ended_with_its_process", {{"task", running->label()}});
      end_soon();
      co_return error(Code::cancelled, "the task was cancelled");
    }
    outcome = std::get<0>(std::move(raced));
  } else {
    TROUPE_CO_CHECK(co_await send_items(running, caller, out));
    outcome = co_await running->outcome();
  }
  // The caller lets go of the arguments at the end: their owners must know by then of those that
  // are kept, here or for items that are not read yet.
  co_await client_.objects().borrows().settle();
  if (running->ends_process) end_soon();
  if (!outcome) co_return failed(std::move(outcome).error(), *running, actor);
  co_return ok();
}

}  // namespace troupe::actor
