#include "client/actor_caller.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>

#include "client/connections.h"

namespace troupe::client {

using transport::Message;

namespace {
constexpr Duration retry_first = std::chrono::milliseconds(5);
constexpr Duration retry_most = std::chrono::milliseconds(500);
}  // namespace

ActorCaller::ActorCaller(Client& client) : client_(client) {}

bool ActorCaller::surely_not_run(const Error& failure) {
  // conflict: the process hosts another incarnation. unavailable: it was never sent, or refused.
  // What ran has a place, whatever the code that the user's function gave.
  return failure.where().empty() &&
         (failure.code() == Code::unavailable || failure.code() == Code::conflict);
}

bool ActorCaller::may_have_run(const Error& failure) {
  return failure.where().empty() && failure.code() == Code::outcome_unknown;
}

void ActorCaller::forget_incarnation(ActorId actor, const Queued& refused) {
  Target& target = targets_[actor];
  if (target.info && target.info->incarnation == refused.invoke.incarnation) target.info.reset();
}

protocol::Invoke ActorCaller::to_invoke(const ActorCallSpec& spec, ObjectId result) const {
  protocol::Invoke invoke;
  invoke.actor = spec.actor;
  invoke.method = spec.method;
  invoke.signature = spec.signature;
  invoke.arguments = spec.arguments;
  invoke.task = TaskId::random(client_.environment_.random);
  invoke.job = client_.options_.job;
  invoke.result = result;
  return invoke;
}

Async<Result<protocol::InvokeReply>> ActorCaller::call(std::shared_ptr<ActorCallSpec> spec,
                                                       ObjectId result,
                                                       std::shared_ptr<Event> cancelled,
                                                       protocol::ProcessAddress* callee) {
  using namespace boost::asio::experimental::awaitable_operators;
  auto& clock = client_.environment_.clock;
  const Instant deadline = clock.now() + spec->budget;
  const protocol::Invoke invoke = to_invoke(*spec, result);
  Duration delay = retry_first;
  for (;;) {
    auto queued = std::make_shared<Queued>(client_.environment_.loop);
    queued->invoke = invoke;
    queued->deadline = deadline;
    Target& target = targets_[spec->actor];
    target.queue.push_back(queued);
    if (!std::exchange(target.pumping, true)) spawn(client_.scope_, pump(spec->actor));
    auto raced = co_await (send_in_order(queued) || cancelled->wait());
    if (raced.index() == 1) co_return error(Code::cancelled, "the call was cancelled");
    auto outcome = std::get<0>(std::move(raced));
    if (outcome) {
      *callee = queued->callee;
      co_return protocol::decode<protocol::InvokeReply>(outcome->body);
    }
    const Error& failure = outcome.error();
    const bool reached = queued->call.has_value() && queued->call->has_value();
    const bool again =
        reached && (surely_not_run(failure) || (spec->retriable && may_have_run(failure)));
    if (again && failure.code() == Code::conflict) forget_incarnation(spec->actor, *queued);
    if (!again || clock.now() + delay >= deadline) co_return failure;
    co_await sleep_for(clock, delay);
    delay = std::min(delay * 2, retry_most);
  }
}

Async<Result<Message>> ActorCaller::send_in_order(std::shared_ptr<Queued> queued) {
  auto& clock = client_.environment_.clock;
  const bool sent = co_await wait_until(clock, queued->deadline, queued->sent);
  if (!sent) co_return error(Code::deadline_exceeded, "the actor could not be reached in time");
  if (!*queued->call) co_return queued->call->error();
  co_return co_await (**queued->call).reply();
}

void ActorCaller::process_gone(ProcessId process) {
  std::erase_if(targets_, [&](const auto& entry) {
    const Target& target = entry.second;
    return !target.pumping && target.info && target.info->address.process == process;
  });
}

// Sends what is queued for one actor, in order. One runs an actor, while there is something to
// send.
Async<void> ActorCaller::pump(ActorId actor) {
  for (;;) {
    Target& target = targets_[actor];
    if (target.queue.empty()) {
      target.pumping = false;
      co_return;
    }
    const auto queued = target.queue.front();
    if (queued.use_count() == 2) {  // Its caller is gone: the queue and this frame alone hold it.
      target.queue.pop_front();
      continue;
    }
    auto peer = co_await reach(actor, queued->deadline);
    if (peer && !(*peer)->is_writable()) co_await (*peer)->writable();
    Target& again = targets_[actor];
    if (again.queue.empty() || again.queue.front() != queued) continue;
    again.queue.pop_front();
    if (queued.use_count() == 1) continue;  // Its caller left while the actor was sought.
    if (!peer) {
      queued->call.emplace(std::move(peer).error());
    } else {
      queued->invoke.incarnation = again.info->incarnation;
      queued->callee = again.info->address;
      Message message{protocol::encode(queued->invoke), {}};
      const Duration budget =
          std::max<Duration>(queued->deadline - client_.environment_.clock.now(), retry_first);
      queued->call.emplace((*peer)->begin_call(Method::invoke, std::move(message), budget));
    }
    queued->sent.set();
  }
}

Async<Result<std::shared_ptr<Peer>>> ActorCaller::reach(ActorId actor, Instant deadline) {
  auto& clock = client_.environment_.clock;
  Duration delay = retry_first;
  for (;;) {
    {
      Target& target = targets_[actor];
      if (target.info && target.peer && target.peer->is_open()) co_return target.peer;
    }
    auto info = co_await client_.locate_actor(actor, 0, deadline - clock.now());
    if (!info) co_return std::move(info).error();
    auto peer = co_await client_.connections_->peer_of(info->address, deadline);
    if (peer) {
      Target& target = targets_[actor];
      target.info = std::move(*info);
      target.peer = *peer;
      co_return *peer;
    }
    // Its process is gone and the head does not know yet, or it moves: ask again.
    if (clock.now() + delay >= deadline) co_return std::move(peer).error();
    co_await sleep_for(clock, delay);
    delay = std::min(delay * 2, retry_most);
  }
}

Async<Result<std::shared_ptr<transport::IncomingStream>>> ActorCaller::stream(ActorCallSpec spec) {
  const Instant deadline = client_.environment_.clock.now() + spec.budget;
  TROUPE_CO_TRY(auto peer, co_await reach(spec.actor, deadline));
  protocol::Invoke invoke = to_invoke(spec, {});
  invoke.incarnation = targets_[spec.actor].info->incarnation;
  Message message{protocol::encode(invoke), {}};
  co_return peer->open_stream(Method::invoke_stream, std::move(message), spec.budget);
}

}  // namespace troupe::client
