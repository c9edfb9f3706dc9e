#include "actor/instance.h"

#include <fmt/format.h>

#include <boost/asio/post.hpp>
#include <boost/container/small_vector.hpp>

#include "actor/host_table.h"
#include "base/log.h"

namespace troupe::actor {

namespace {

constexpr uint32_t coroutines_default = 1000;

using Views = boost::container::small_vector<troupe_bytes, 8>;

Views views_of(const std::vector<client::ObjectBytes>& arguments) {
  Views views;
  views.reserve(arguments.size());
  for (const auto& argument : arguments) {
    views.push_back({argument.bytes.data(), argument.bytes.size()});
  }
  return views;
}

}  // namespace

Instance::Instance(transport::Environment environment, Services& services, InstanceSpec spec,
                   InstanceOptions options)
    : environment_(environment),
      options_(options),
      type_(spec.type),
      signature_(spec.signature),
      arguments_(std::move(spec.arguments)),
      context_(std::move(spec.identity), services),
      doorbell_(std::make_shared<Doorbell>(environment.loop)),
      mailbox_(options.mailbox_calls_max, environment.rings,
               [this] { return !defers() || calls_.open_count() < concurrency_; }),
      concurrency_(spec.concurrency != 0 ? spec.concurrency
                   : defers()            ? coroutines_default
                                         : 1),
      created_(environment.loop),
      ended_(environment.loop) {
  context_.defer = [this](std::function<void()> work) { return defer(std::move(work)); };
  if (defers()) calls_.on_finish([this] { mailbox_.admit(); });
}

uint32_t Instance::type_flags() const {
  // A module of an older ABI has a shorter table.
  const bool has_flags = type_->size >= offsetof(troupe_actor_class, flags) + sizeof type_->flags;
  return has_flags ? type_->flags : 0;
}

Instance::~Instance() {
  TROUPE_ASSERT(!thread_.joinable() || ended_.is_set(), "an instance is destroyed before its end");
  if (thread_.joinable()) thread_.join();
}

Async<Status> Instance::start() {
  thread_ = std::thread([this] { run(); });
  co_await created_.wait();
  co_return create_outcome_;
}

std::shared_ptr<Call> Instance::make_call(CallRequest request,
                                          std::shared_ptr<transport::CancelEvent> abandoned) {
  return std::make_shared<Call>(std::move(request), std::move(abandoned), doorbell_);
}

std::vector<std::shared_ptr<Call>> Instance::withdraw(const transport::RingChannel& channel) {
  std::vector<std::shared_ptr<Call>> withdrawn;
  mailbox_.for_each([&](const std::shared_ptr<Call>& call) {
    if (call->origin().channel.get() == &channel && call->withdraw()) withdrawn.push_back(call);
  });
  return withdrawn;
}

void Instance::request_stop() {
  context_.stopping.request_stop();
  mailbox_.close();
}

Async<bool> Instance::wait_ended(Instant deadline) {
  co_return co_await wait_until(environment_.clock, deadline, ended_);
}

bool Instance::take_some() noexcept {
  bool worked = false;
  for (size_t i = 0; i < options_.calls_a_step && !stop_requested(); ++i) {
    if (const auto work = mailbox_.take_deferred()) {
      work();
    } else if (auto call = mailbox_.take()) {
      deliver(std::move(call));
    } else {
      break;
    }
    worked = true;
  }
  return worked;
}

void Instance::help() noexcept {
  const CurrentContext current{&context_};
  while (!stop_requested()) {
    mailbox_.wait();
    take_some();
  }
}

bool Instance::defer(std::function<void()> work) {
  return mailbox_.defer(std::move(work));
}

void Instance::run() noexcept {
  const CurrentContext current{&context_};
  Status created = create();
  const bool alive = created.has_value();
  boost::asio::post(environment_.loop, [this, outcome = std::move(created)]() mutable {
    create_outcome_ = std::move(outcome);
    created_.set();
  });
  std::optional<Error> death;
  bool more = false;  // A step said so.
  const uint32_t threads = alive && !defers() && type_->step == nullptr ? concurrency_ : 1;
  for (uint32_t i = 1; i < threads; ++i) helpers_.emplace_back([this] { help(); });
  while (alive && !stop_requested() && !death) {
    if (!more) mailbox_.wait();
    const bool worked = take_some();
    if (type_->step == nullptr || !(worked || more) || stop_requested()) continue;
    auto outcome = step();
    if (outcome) {
      more = *outcome;
    } else {
      death = outcome.error();
    }
  }
  for (std::thread& helper : helpers_) helper.join();
  if (alive) type_->destroy(instance_);
  finish(death);
}

Status Instance::create() noexcept {
  const auto views = views_of(arguments_);
  TextRoom room;
  const int32_t code =
      type_->create(&context_, signature_, views.data(), views.size(), &instance_, room.text());
  arguments_.clear();
  if (code == TROUPE_OK) return ok();
  return error(code_from_number(static_cast<uint32_t>(code)), room.read("create failed"));
}

void Instance::deliver(std::shared_ptr<Call> call) noexcept {
  if (call->is_cancelled()) {
    call->finish(error(Code::cancelled, "the caller gave up before the call was run"));
    return;
  }
  const Instant now = environment_.clock.now();
  if (now >= call->request().deadline) {
    call->finish(error(Code::deadline_exceeded,
                       "the call waited in the mailbox past its deadline; "
                       "it was not run"));
    return;
  }
  if (!call->begin(now)) return;
  const CallRequest& request = call->request();
  const auto views = views_of(request.arguments);
  troupe_call* const handle = calls_.open(call);
  type_->call(instance_, handle, request.method.c_str(), request.signature, views.data(),
              views.size());
  // Valid during the call alone; a call that is kept must not keep the store's memory.
  call->request().arguments.clear();
}

Result<bool> Instance::step() noexcept {
  const troupe_step_budget budget{
      sizeof(troupe_step_budget),
      static_cast<uint64_t>(options_.step_budget / std::chrono::microseconds(1))};
  TextRoom room;
  const int32_t outcome = type_->step(instance_, &budget, room.text());
  if (outcome >= 0) return outcome != TROUPE_STEP_IDLE;
  return error(code_from_number(static_cast<uint32_t>(-int64_t{outcome})),
               room.read("step failed"));
}

void Instance::finish(const std::optional<Error>& death) noexcept {
  context_.stopping.request_stop();
  mailbox_.close();
  // Those that the instance kept may have had their effect; those in the mailbox never ran.
  const Error unfinished =
      death ? error(Code::outcome_unknown, "the actor died: " + death->message())
            : error(Code::cancelled, "the actor stopped before it finished the call");
  const size_t kept = calls_.fail_all(unfinished);
  size_t waiting = 0;
  while (auto call = mailbox_.take_any()) {
    call->finish(error(Code::unavailable, "the actor stopped; the call was not run"));
    ++waiting;
  }
  if (kept + waiting > 0) {
    log::info("calls_failed_at_end",
              {{"actor", context_.info.actor_id}, {"unfinished", kept}, {"not_run", waiting}});
  }
  boost::asio::post(environment_.loop, [this, death] {
    death_ = death;
    ended_.set();
  });
}

}  // namespace troupe::actor
