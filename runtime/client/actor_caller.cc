#include "client/actor_caller.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/post.hpp>

#include "client/connections.h"
#include "client/item_source.h"
#include "client/object_directory.h"
#include "client/timeline_notes.h"
#include "protocol/call_record.h"

namespace troupe::client {

using transport::Message;

namespace {

constexpr Duration retry_first = std::chrono::milliseconds(5);
// Above it calls wait, on the loop, until the peer has read.
constexpr size_t unsent_bytes_max = 8 << 20;
constexpr Duration retry_most = std::chrono::milliseconds(500);

// conflict: the process hosts another incarnation. unavailable: it was never sent, or refused. What
// ran has a place, whatever the code that the user's function gave.
bool surely_not_run(const Error& failure) {
  return failure.where().empty() &&
         (failure.code() == Code::unavailable || failure.code() == Code::conflict);
}

// Only a full mailbox refuses so, and what ran has a place.
bool found_full(const Error& failure) {
  return failure.where().empty() && failure.code() == Code::exhausted;
}

const ActorCallExtras& extras_of(const ActorCallSpec& spec) {
  static const ActorCallExtras none;
  return spec.extras ? *spec.extras : none;
}

const std::string& label_of(const ActorCallSpec& spec) {
  const std::string& name = extras_of(spec).name;
  return name.empty() ? spec.method : name;
}

uint64_t to_us(Duration budget) {
  return static_cast<uint64_t>(std::max<int64_t>(budget / std::chrono::microseconds(1), 1));
}

}  // namespace

// A call that went through a channel, a ring or a socket.
class RingCall final : public transport::PendingReply {
 public:
  RingCall(std::shared_ptr<ActorTarget> target, std::shared_ptr<ActorCall> queued)
      : target_(std::move(target)),
        queued_(std::move(queued)),
        incarnation_(target_->incarnation_),
        callee_(target_->address_) {}

  void reply(BytesView payload) override {
    ActorCaller& caller = target_->caller_;
    const auto view = protocol::read_reply_record(payload);
    if (view && view->form == protocol::ReplyForm::value) {
      caller.client_.objects_->set_value(queued_->result, view->body);
      caller.finish(queued_);
      return;
    }
    Result<protocol::InvokeReply> outcome = error(Code::internal, "no reply");
    if (view) {
      outcome = protocol::to_reply(*view);
    } else {
      outcome = view.error();
    }
    caller.settle(target_, queued_, incarnation_, std::move(outcome), *callee_);
  }
  void lost(bool begun) override {
    target_->caller_.settle(
        target_, queued_, incarnation_,
        begun ? error(Code::outcome_unknown, "the connection to the actor closed before the reply")
              : error(Code::unavailable, "the actor's process ended before the call began"),
        *callee_);
  }

 private:
  const std::shared_ptr<ActorTarget> target_;
  const std::shared_ptr<ActorCall> queued_;
  const uint32_t incarnation_;
  const std::shared_ptr<const protocol::ProcessAddress> callee_;
};

ActorCaller::ActorCaller(Client& client) : client_(client) {}

void ActorCaller::fail_all(const Error& why) {
  std::vector<std::shared_ptr<Object>> results;
  for (const auto& [id, due] : std::exchange(deadlines_, {})) {
    client_.environment_.clock.cancel(due.timer);
    results.push_back(due.result);
  }
  for (const Target& target : targets()) {
    const std::lock_guard lock{target->mutex_};
    for (const Queued& queued : target->queue_) results.push_back(queued->result);
  }
  sent_.for_each([&](const Sent& sent) { results.push_back(sent.queued->result); });
  later_.for_each([&](const Later& later) { results.push_back(later.queued->result); });
  for (const auto& result : results) client_.objects_->cancel(result, why);
}

std::shared_ptr<ActorTarget> ActorCaller::target(ActorId actor) {
  const std::lock_guard lock{mutex_};
  Target& found = targets_[actor];
  if (!found) found = std::make_shared<ActorTarget>(actor, *this);
  return found;
}

std::shared_ptr<Object> ActorCaller::submit(const Target& target, ActorCallSpec spec,
                                            std::vector<std::shared_ptr<Object>>* more) {
  Queued queued = prepare(std::move(spec), more);
  auto result = queued->result;
  send(target, std::move(queued));
  return result;
}

std::shared_ptr<ActorCall> ActorCaller::prepare(ActorCallSpec spec,
                                                std::vector<std::shared_ptr<Object>>* more) {
  const bool unlimited = spec.budget >= default_budget;
  const Instant deadline =
      unlimited ? Instant::max() : client_.environment_.clock.now() + spec.budget;
  auto made = client_.objects_->make_results(Object::Maker::actor, extras_of(spec).results, more);
  auto queued = std::make_shared<ActorCall>(
      ActorCall{std::move(spec), std::move(made), deadline, retry_first});
  client_.objects_->hold(queued->spec.held);
  queued->submitted =
      submitted_now(client_.timeline(), queued->result->id(), label_of(queued->spec));
  return queued;
}

void ActorCaller::send(const Target& target, Queued queued) {
  {
    const std::lock_guard lock{target->mutex_};
    queued->number = ++target->submitted_;
    if (queued->deadline == Instant::max() && target->on_loop_ == 0 && target->channel_ &&
        queued->spec.held.empty() && !extras_of(queued->spec).items &&
        target->channel_->queued_bytes() <= unsent_bytes_max && send_directly(target, queued)) {
      return;
    }
    ++target->on_loop_;
  }
  queued->result->on_cancel([](uint8_t) {});  // A call whose object has its outcome is not sent.
  boost::asio::post(client_.environment_.loop, [this, target, queued = std::move(queued)] {
    keep_time(queued, target);
    enqueue(target, queued);
  });
}

void ActorCaller::keep_time(const Queued& queued, const Target& target) {
  if (queued->deadline == Instant::max() || std::exchange(queued->has_timer, true)) return;
  queued->timer = client_.environment_.clock.call_at(queued->deadline, [this, queued, target] {
    queued->timer = 0;
    // Found by it, or by one before it.
    const bool is_full = queued->found_full ||
                         (target && target->pace_.holds_back(client_.environment_.clock.now()));
    client_.objects_->cancel(
        queued->result,
        error(Code::deadline_exceeded,
              fmt::format("{} did not answer {} within the call's time of {} ms",
                          is_full ? "the actor, whose mailbox was full," : "the actor",
                          label_of(queued->spec),
                          queued->spec.budget / std::chrono::milliseconds(1))));
  });
  deadlines_[queued->result->id()] = {queued->deadline, queued->timer, queued->result};
}

Status ActorCaller::send_directly(const Target& target, const Queued& queued) {
  const auto& channel = target->channel_;
  const ActorCallSpec& spec = queued->spec;
  protocol::CallHead head;
  head.actor = target->actor_;
  head.result = queued->result->id();
  head.signature = spec.signature;
  head.incarnation = target->incarnation_;
  if (queued->deadline != Instant::max()) {
    head.budget_us = to_us(queued->deadline - client_.environment_.clock.now());
  }
  protocol::CallExtras extras;
  extras.results = extras_of(spec).results;
  extras.name = extras_of(spec).name;
  const size_t bytes = protocol::call_record_bytes(spec.method, spec.arguments, extras);
  TROUPE_TRY(const uint64_t number,
             channel->call(std::make_unique<RingCall>(target, queued), bytes, [&](uint8_t* out) {
               protocol::write_call_record(out, head, spec.method, spec.arguments, extras);
             }));
  queued->result->on_cancel(channel, number);
  return ok();
}

// Sends the first call of the queue, and takes it off.
Status ActorCaller::pass_to_channel(const Target& target,
                                    const std::shared_ptr<transport::CallChannel>& channel) {
  // From here on calls need not come through the loop, but those that did are sent first.
  const std::lock_guard lock{target->mutex_};
  target->channel_ = channel;
  target->incarnation_ = target->info_->incarnation;
  target->address_ = std::make_shared<const protocol::ProcessAddress>(target->info_->address);
  TROUPE_CHECK(send_directly(target, target->queue_.front()));
  note_sent(target->queue_.front());
  target->queue_.pop_front();
  --target->on_loop_;
  return ok();
}

void ActorCaller::enqueue(Target target, Queued queued) {
  target->queue_.push_back(std::move(queued));
  start_pump(target);
}

void ActorCaller::start_pump(const Target& target) {
  if (!std::exchange(target->pumping_, true)) spawn(client_.scope_, pump(target));
}

void ActorCaller::wait_for_room(const Target& target, const Queued& queued) {
  {
    // From now on later calls queue behind it.
    const std::lock_guard lock{target->mutex_};
    ++target->on_loop_;
  }
  queued->result->on_cancel([](uint8_t) {});
  boost::asio::post(client_.environment_.loop, [this, target, queued] {
    queued->found_full = true;
    target->pace_.refused(client_.environment_.clock.now());
    auto& queue = target->queue_;
    const auto place = std::ranges::upper_bound(queue, queued->number, {},
                                                [](const Queued& one) { return one->number; });
    queue.insert(place, queued);
    start_pump(target);
  });
}

Async<void> ActorCaller::enqueue_later(Target target, Queued queued, Duration delay) {
  {
    const Roster<Later>::Entry later{
        later_, {queued, target->actor(), client_.environment_.clock.now() + delay}};
    co_await sleep_for(client_.environment_.clock, delay);
  }
  {
    const std::lock_guard lock{target->mutex_};
    ++target->on_loop_;
  }
  enqueue(std::move(target), std::move(queued));
}

// Sends what is queued for one actor, in order. One runs an actor, while there is something to
// send.
Async<void> ActorCaller::pump(Target target) {
  const auto taken = [&target] {
    const std::lock_guard lock{target->mutex_};
    target->queue_.pop_front();
    --target->on_loop_;
  };
  while (!target->queue_.empty()) {
    const Queued queued = target->queue_.front();
    if (queued->result->is_ready()) {  // Cancelled, or too late.
      taken();
      finish(queued);
      continue;
    }
    auto peer = co_await reach(target, queued->deadline);
    if (peer && !(*peer)->is_writable()) {
      co_await (*peer)->writable();
      continue;
    }
    // Cancelled meanwhile, or an earlier one came back.
    if (queued->result->is_ready() || target->queue_.front() != queued) continue;
    if (!peer) {
      taken();
      fail_unsent(queued, std::move(peer).error());
      continue;
    }
    auto& clock = client_.environment_.clock;
    if (!target->pace_.may_send(clock.now())) {
      co_await sleep_until(clock, target->pace_.next_round());
      continue;
    }
    if (extras_of(queued->spec).items) {
      taken();
      begin_stream(target, queued, *peer);
      continue;
    }
    if (const auto channel = (*peer)->channel()) {
      const Status sent = pass_to_channel(target, channel);
      if (!sent && sent.error().code() == Code::unavailable) {
        // The connection is about to be closed, by this loop.
        const Instant soon = client_.environment_.clock.now() + retry_most;
        co_await wait_until(client_.environment_.clock, soon, (*peer)->closed());
      } else if (!sent) {
        taken();
        fail_unsent(queued, sent.error());
      }
      continue;
    }
    taken();
    protocol::Invoke invoke = to_invoke(target->actor_, queued->spec, queued->result->id());
    invoke.incarnation = target->info_->incarnation;
    Message message{protocol::encode(invoke), {}};
    const Duration budget =
        queued->deadline == Instant::max()
            ? default_budget
            : std::max<Duration>(queued->deadline - client_.environment_.clock.now(), retry_first);
    auto sent = (*peer)->begin_call(Method::invoke, std::move(message), budget);
    if (!sent) {
      fail_unsent(queued, std::move(sent).error());
      continue;
    }
    note_sent(queued);
    spawn(client_.scope_, await_reply(target, queued, std::move(*sent), invoke.incarnation,
                                      target->info_->address));
  }
  target->pumping_ = false;
}

Async<void> ActorCaller::await_reply(Target target, Queued queued, transport::OutgoingCall call,
                                     uint32_t incarnation, protocol::ProcessAddress callee) {
  const Roster<Sent>::Entry sent{sent_, {queued, callee}};
  const auto given_up = on_cancel(*queued->result);
  auto outcome = co_await call.reply_unless(*given_up);
  if (!outcome) {
    call.cancel(given_up->how);
    finish(queued);
    co_return;
  }
  Result<protocol::InvokeReply> reply = error(Code::internal, "no reply");
  if (*outcome) {
    reply = protocol::decode<protocol::InvokeReply>((*outcome)->body);
  } else {
    reply = std::move(*outcome).error();
  }
  settle(target, queued, incarnation, std::move(reply), callee);
}

void ActorCaller::begin_stream(const Target& target, const Queued& queued,
                               const std::shared_ptr<Peer>& peer) {
  protocol::Invoke invoke = to_invoke(target->actor_, queued->spec, queued->result->id());
  invoke.task = TaskId{queued->result->id()};  // By which its run is known in timelines.
  invoke.incarnation = target->info_->incarnation;
  Message message{protocol::encode(invoke), {}};
  auto stream = peer->open_stream(Method::invoke_stream, std::move(message), Duration::zero(),
                                  extras_of(queued->spec).items_max);
  if (!stream) {
    fail_unsent(queued, std::move(stream).error());
    return;
  }
  note_sent(queued);
  extras_of(queued->spec).items->begin(*stream);
  spawn(client_.scope_, await_stream(target, queued, *stream, invoke.incarnation, peer));
}

Async<void> ActorCaller::await_stream(Target target, Queued queued,
                                      std::shared_ptr<transport::IncomingStream> stream,
                                      uint32_t incarnation, std::shared_ptr<Peer> peer) {
  using namespace boost::asio::experimental::awaitable_operators;
  const Roster<Sent>::Entry sent{sent_, {queued, peer->remote().address}};
  const auto given_up = on_cancel(*queued->result);
  auto raced = co_await (stream->ended() || given_up->wait());
  if (raced.index() == 1) {
    stream->cancel(given_up->how);
    finish(queued);
    co_return;
  }
  Result<protocol::InvokeReply> outcome = protocol::InvokeReply{};
  if (Status ended = std::get<0>(std::move(raced)); !ended) {
    const bool died = ended.error().where().empty() && !peer->is_open();
    outcome = died ? error(Code::outcome_unknown,
                           "the connection to the actor closed before the "
                           "stream ended")
                   : std::move(ended).error();
  }
  settle(target, queued, incarnation, std::move(outcome),
         target->info_ ? target->info_->address : protocol::ProcessAddress{});
}

// Set when the caller gives up on what the object is.
std::shared_ptr<transport::CancelEvent> ActorCaller::on_cancel(Object& result) const {
  auto given_up = std::make_shared<transport::CancelEvent>(client_.environment_.loop);
  result.on_cancel([given_up, loop = client_.environment_.loop](uint8_t how) {
    boost::asio::post(loop, [given_up, how] {
      given_up->how = how;
      given_up->set();
    });
  });
  return given_up;
}

void ActorCaller::settle(const Target& target, const Queued& queued, uint32_t incarnation,
                         Result<protocol::InvokeReply> outcome,
                         const protocol::ProcessAddress& callee) {
  if (outcome) {
    client_.objects_->set_reply(queued->result, std::move(*outcome), callee);
    finish(queued);
    return;
  }
  Error failure = std::move(outcome).error();
  if (found_full(failure) && extras_of(queued->spec).waits_for_room &&
      !queued->result->is_ready()) {
    wait_for_room(target, queued);
    return;
  }
  const bool not_run = surely_not_run(failure);
  const RetryPolicy& policy = extras_of(queued->spec).retry;
  const bool again = not_run || (policy.covers(failure) && !extras_of(queued->spec).items &&
                                 (policy.retries < 0 || queued->retried < policy.retries));
  const Duration delay = not_run ? queued->delay : policy.delay(queued->retried);
  const bool in_time = client_.environment_.clock.now() + delay < queued->deadline;
  if (!again || !in_time || queued->result->is_ready()) {
    fail(queued, std::move(failure));
    return;
  }
  if (not_run) {
    queued->delay = std::min(delay * 2, retry_most);
  } else {
    ++queued->retried;
  }
  const bool moved = not_run && failure.code() == Code::conflict;
  boost::asio::post(client_.environment_.loop, [this, target, queued, incarnation, moved, delay,
                                                not_run, why = std::move(failure)]() mutable {
    if (moved) forget_incarnation(target, incarnation);
    if (extras_of(queued->spec).route) {
      // Another actor can take at once what did not run here.
      spawn(client_.scope_,
            route_later(queued, not_run ? Duration::zero() : delay, std::move(why)));
    } else {
      spawn(client_.scope_, enqueue_later(target, queued, delay));
    }
  });
}

void ActorCaller::note_sent(const Queued& queued) {
  const Instant submitted = std::exchange(queued->submitted, Instant{});
  if (submitted == Instant{}) return;
  client::note_sent(*client_.timeline(), queued->result->id(), label_of(queued->spec), submitted);
}

Async<void> ActorCaller::route_later(Queued queued, Duration delay, Error failure) {
  if (delay > Duration::zero()) co_await sleep_for(client_.environment_.clock, delay);
  extras_of(queued->spec).route->take_back(queued, std::move(failure));
}

void ActorCaller::fail_unsent(const Queued& queued, Error failure) {
  const auto& route = extras_of(queued->spec).route;
  if (route && surely_not_run(failure)) {
    route->take_back(queued, std::move(failure));
  } else {
    fail(queued, std::move(failure));
  }
}

void ActorCaller::fail(const Queued& queued, Error failure) {
  client_.objects_->set_failed(queued->result, after_retries(std::move(failure), queued->retried),
                               label_of(queued->spec));
  finish(queued);
}

void ActorCaller::finish(const Queued& queued) {
  if (queued->spec.held.empty() && queued->deadline == Instant::max() &&
      !extras_of(queued->spec).items) {
    return;
  }
  boost::asio::post(client_.environment_.loop, [this, queued] {
    if (extras_of(queued->spec).items) {
      const Error* failure = queued->result->failure();
      extras_of(queued->spec).items->settle(failure != nullptr ? Status{*failure} : ok());
    }
    if (queued->timer != 0) client_.environment_.clock.cancel(std::exchange(queued->timer, 0));
    deadlines_.erase(queued->result->id());
    client_.drop_references(queued->spec.held);
  });
}

protocol::Invoke ActorCaller::to_invoke(ActorId actor, const ActorCallSpec& spec,
                                        ObjectId result) const {
  protocol::Invoke invoke;
  invoke.actor = actor;
  invoke.method = spec.method;
  invoke.signature = spec.signature;
  invoke.arguments = spec.arguments;
  invoke.task = TaskId::random(client_.environment_.random);
  invoke.job = client_.options_.job;
  invoke.result = result;
  invoke.results = extras_of(spec).results;
  invoke.items_max = extras_of(spec).items_max;
  invoke.name = extras_of(spec).name;
  return invoke;
}

// The head is asked anew: the process said that it hosts another incarnation.
void ActorCaller::forget_incarnation(const Target& target, uint32_t incarnation) {
  if (!target->info_ || target->info_->incarnation != incarnation) return;
  target->info_.reset();
  const std::lock_guard lock{target->mutex_};
  target->channel_ = nullptr;
}

void ActorCaller::learn(protocol::ActorInfo info) {
  const Target known = target(info.actor);
  if (!known->info_) known->info_ = std::move(info);
}

std::vector<ActorCaller::Target> ActorCaller::targets() const {
  std::vector<Target> all;
  const std::lock_guard lock{mutex_};
  all.reserve(targets_.size());
  for (const auto& [actor, target] : targets_) all.push_back(target);
  return all;
}

void ActorCaller::process_gone(ProcessId process) {
  std::vector<Target> all = targets();
  for (const Target& target : all) {
    if (!target->info_ || target->info_->address.process != process) continue;
    target->info_.reset();
    target->peer_ = nullptr;
    {
      const std::lock_guard lock{target->mutex_};
      target->channel_ = nullptr;
    }
    for (const auto& watch : target->watches_) {
      if (const auto watching = watch.lock()) watching->process_gone(target->actor_);
    }
  }
  all.clear();
  // Those that nobody calls any more.
  const std::lock_guard lock{mutex_};
  std::erase_if(targets_, [](const auto& entry) {
    return entry.second.use_count() == 1 && !entry.second->info_ && !entry.second->pumping_;
  });
}

void ActorCaller::watch(const Target& target, std::weak_ptr<ActorWatch> watch) {
  std::erase_if(target->watches_, [](const auto& one) { return one.expired(); });
  target->watches_.push_back(std::move(watch));
}

Async<Result<std::shared_ptr<Peer>>> ActorCaller::reach(Target target, Instant deadline) {
  auto& clock = client_.environment_.clock;
  Duration delay = retry_first;
  for (;;) {
    if (target->info_ && target->peer_ && target->peer_->is_open()) co_return target->peer_;
    std::optional<protocol::ActorInfo> info;
    if (!target->peer_) info = std::exchange(target->info_, std::nullopt);  // Learnt.
    target->peer_ = nullptr;
    if (!info) {
      const Duration left = deadline == Instant::max() ? default_budget : deadline - clock.now();
      auto located = co_await client_.locate_actor(target->actor_, 0, left);
      if (!located) co_return std::move(located).error();
      info = std::move(*located);
    }
    const Instant until = std::min(deadline, clock.now() + default_budget);
    auto peer = co_await client_.connections_->peer_of(info->address, until);
    if (peer) {
      target->info_ = std::move(*info);
      target->peer_ = *peer;
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
  const Target called = target(spec.actor);
  TROUPE_CO_TRY(auto peer, co_await reach(called, deadline));
  protocol::Invoke invoke = to_invoke(spec.actor, spec, {});
  (void)submitted_now(client_.timeline(), invoke.task, label_of(spec));
  invoke.incarnation = called->info_->incarnation;
  Message message{protocol::encode(invoke), {}};
  co_return peer->open_stream(Method::invoke_stream, std::move(message), spec.budget);
}

}  // namespace troupe::client
