#include "actor/ring_calls.h"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "actor/host.h"
#include "base/log.h"
#include "client/object_directory.h"

namespace troupe::actor {

using protocol::ReplyForm;

namespace {

constexpr size_t message_bytes_max = 16 << 10;  // Of an error.
constexpr uint32_t tracked_max = 1 << 20;  // Calls of one caller; beyond it none can be cancelled.

void reply_with(transport::CallChannel& channel, uint64_t number, ReplyForm form, BytesView body,
                uint32_t ran_ns = 0) {
  channel.reply(number, protocol::reply_head_bytes + body.size(),
                [&](uint8_t* out) { protocol::write_reply_record(out, form, ran_ns, body); });
}

void refuse(transport::CallChannel& channel, uint64_t number, const Error& failure,
            uint32_t ran_ns = 0) {
  auto info = protocol::to_info(failure);
  // A record over the size limit would end the connection.
  if (info.message.size() > message_bytes_max) info.message.resize(message_bytes_max);
  reply_with(channel, number, ReplyForm::error, protocol::encode(info), ran_ns);
}

// The code says that it may be sent again.
Error not_begun() {
  return error(Code::unavailable, "not begun: its process is busy with another task");
}

// Of what a caller wrote: any number.
Instant deadline_of(const protocol::CallView& call, Instant now) {
  constexpr uint64_t longest_us = client::default_budget / std::chrono::microseconds(1);
  if (call.head.budget_us == 0) return Instant::max();
  return now + std::chrono::microseconds(std::min(call.head.budget_us, longest_us));
}

}  // namespace

struct RingCalls::Caller {
  struct Running {
    uint64_t number = 0;
    std::weak_ptr<Call> call;                           // In the mailbox, or
    std::shared_ptr<transport::CancelEvent> cancelled;  // on the loop.
  };
  std::vector<Running> running;  // By the place in the caller's table: the low half of a number.
  std::atomic<size_t> on_loop = 0;

  void track(uint64_t number, std::weak_ptr<Call> call,
             std::shared_ptr<transport::CancelEvent> cancelled) {
    const auto place = static_cast<uint32_t>(number);
    if (place >= tracked_max) return;
    if (running.size() <= place) running.resize(place + 1);
    running[place] = {number, std::move(call), std::move(cancelled)};
  }
};

RingCalls::Caller& RingCalls::caller_of(const Channel& channel) {
  if (!channel->attachment) channel->attachment = std::make_shared<Caller>();
  return *static_cast<Caller*>(channel->attachment.get());
}

void RingCalls::deliver_to(const Hosted& hosted, bool is_only) {
  if (is_only) {
    only_ = std::make_unique<const Hosted>(hosted);
    ready_.store(only_.get(), std::memory_order_release);
    return;
  }
  const std::lock_guard lock{many_mutex_};
  many_[hosted.actor] = hosted;
}

void RingCalls::remove(ActorId actor) {
  const std::lock_guard lock{many_mutex_};
  many_.erase(actor);
}

bool RingCalls::is_direct(const Hosted* hosted, const Caller& caller,
                          const protocol::CallView& call) {
  if (hosted == nullptr || call.head.actor != hosted->actor) return false;
  // Tasks have no order; and one that waits for its arguments must not hold up another, which may
  // be what makes them.
  const bool ordered = !call.head.actor.is_nil() && !hosted->out_of_order;
  if (ordered && caller.on_loop.load() > 0) return false;
  if (!call.head.actor.is_nil() && call.head.incarnation != hosted->incarnation) return false;
  return std::ranges::all_of(call.arguments,
                             [](const auto& argument) { return argument.ref.empty(); });
}

void RingCalls::take_call(const Channel& channel, uint64_t number, BytesView payload) {
  Caller& caller = caller_of(channel);
  const uint64_t ordinal = channel->count_call();
  Bytes record{payload.begin(), payload.end()};
  const auto view = protocol::read_call_record(record);
  if (!view) {
    refuse(*channel, number, view.error());
    return;
  }
  const Hosted* hosted = ready_.load(std::memory_order_acquire);
  std::unique_lock many{many_mutex_, std::defer_lock};
  if (hosted == nullptr) {
    many.lock();
    const auto found = many_.find(view->head.actor);
    if (found != many_.end()) hosted = &found->second;
  }
  if (!is_direct(hosted, caller, *view)) {
    if (many.owns_lock()) many.unlock();
    run_on_loop(channel, number, *view);
    return;
  }
  CallRequest request;
  request.method = view->method;
  request.signature = view->head.signature;
  if (view->head.budget_us > 0) {
    request.arrived = client_.environment().clock.now();
    request.deadline = deadline_of(*view, request.arrived);
  }
  request.arguments.reserve(view->arguments.size());
  for (const auto& argument : view->arguments) {
    request.arguments.push_back({argument.inline_value, nullptr});
  }
  host_.add_extras(request, view->extras);
  request.record = std::move(record);  // The views stay: its memory does not move.
  RingOrigin origin{this, channel, number, view->head.result, ordinal, view->head.actor};
  auto call = Instance::make_call(std::move(request), std::move(origin));
  call->note_in(client_.timeline(), view->head.result);
  caller.track(number, call, nullptr);
  if (auto taken = hosted->instance->submit(call); !taken) {
    refuse(*channel, number,
           host_.refusal(std::move(taken).error(), call->label(), view->head.actor));
  }
}

void RingCalls::run_on_loop(const Channel& channel, uint64_t number,
                            const protocol::CallView& view) {
  auto invoke = protocol::to_invoke(view);
  if (!invoke) {
    refuse(*channel, number, invoke.error());
    return;
  }
  Caller& caller = caller_of(channel);
  const auto& loop = client_.environment().loop;
  const auto cancelled = std::make_shared<transport::CancelEvent>(loop);
  caller.track(number, {}, cancelled);
  const Instant deadline = deadline_of(view, client_.environment().clock.now());
  ++caller.on_loop;
  // Counts it as on the loop until it is in the mailbox, or refused.
  std::shared_ptr<void> on_loop{static_cast<void*>(&caller),
                                [keep = channel->attachment, &caller](void*) { --caller.on_loop; }};
  boost::asio::post(loop, [this, channel, number, call = std::move(*invoke), deadline, cancelled,
                           counted = std::move(on_loop)]() mutable {
    spawn(client_.scope(),
          run(channel, number, std::move(call), deadline, cancelled, std::move(counted)));
  });
}

Async<void> RingCalls::run(Channel channel, uint64_t number, protocol::Invoke call,
                           Instant deadline, std::shared_ptr<transport::CancelEvent> cancelled,
                           std::shared_ptr<void> on_loop) {
  Host::Origin origin;
  origin.caller = channel->process();
  origin.deadline = deadline;
  origin.cancelled = std::move(cancelled);
  origin.until_enqueued = std::move(on_loop);
  auto reply = co_await host_.run(std::move(call), std::move(origin));
  if (!reply) {
    refuse(*channel, number, reply.error());
  } else {
    reply_with(*channel, number, ReplyForm::reply, protocol::encode(*reply));
  }
}

void RingCalls::finished(const std::shared_ptr<Call>& call, Result<BytesView> outcome) {
  const RingOrigin& origin = call->origin();
  const Instant now = client_.environment().clock.now();
  const uint32_t ran_ns = call->ran_ns(now);
  call->note_end(now, !outcome);
  if (!outcome) {
    refuse(*origin.channel, origin.number,
           host_.failed(std::move(outcome).error(), *call, origin.actor), ran_ns);
  } else if (call->is_cancelled()) {
    // Nobody would take back what a reply keeps for its caller.
    refuse(*origin.channel, origin.number, error(Code::cancelled, "the caller gave up"));
  } else if (call->held.empty() && call->more.empty() &&
             outcome->size() <= client::inline_bytes_max && client_.objects().borrows().settled()) {
    reply_with(*origin.channel, origin.number, ReplyForm::value, *outcome, ran_ns);
  } else {
    boost::asio::post(client_.environment().loop,
                      [this, call, value = Bytes{outcome->begin(), outcome->end()}]() mutable {
                        spawn(client_.scope(), reply_from_loop(call, std::move(value)));
                      });
  }
}

Async<void> RingCalls::reply_from_loop(std::shared_ptr<Call> call, Bytes value) {
  const RingOrigin& origin = call->origin();
  // Nobody would take back what a reply keeps for its caller.
  if (!origin.channel->is_open()) co_return;
  auto reply =
      co_await host_.make_reply(call, std::move(value), origin.result, origin.channel->process());
  if (!reply) {
    refuse(*origin.channel, origin.number,
           host_.placed(std::move(reply).error(), call->label(), origin.actor));
  } else {
    reply_with(*origin.channel, origin.number, ReplyForm::reply, protocol::encode(*reply));
  }
}

void RingCalls::give_up(const std::shared_ptr<Call>& call, uint8_t how) {
  call->cancel(how);
  if (call->withdraw()) {
    refuse(*call->origin().channel, call->origin().number,
           error(Code::cancelled, "the caller gave up before the call was run"));
    return;
  }
  if (!call->origin().actor.is_nil()) return;
  boost::asio::post(client_.environment().loop, [this, call, how] {
    if ((how & protocol::cancel_by_force) != 0 && !call->is_finished()) host_.end_now();
    spawn(client_.scope(), end_after_grace(call));
  });
}

// A task cannot be unwound from outside: if it does not notice by itself, its process goes, and
// with it the slot.
Async<void> RingCalls::end_after_grace(std::shared_ptr<Call> call) {
  co_await sleep_for(client_.environment().clock, Host::cancel_grace);
  if (call->is_finished()) co_return;
  log::info("task_ended_with_its_process", {{"task", call->label()}});
  call->finish(error(Code::cancelled, "the task was cancelled"));
  host_.end_soon();
}

void RingCalls::cancel_call(const Channel& channel, uint64_t number, uint8_t how) {
  Caller& caller = caller_of(channel);
  const auto place = static_cast<uint32_t>(number);
  if (place >= caller.running.size() || caller.running[place].number != number) return;
  Caller::Running& running = caller.running[place];
  if (const auto call = running.call.lock()) {
    give_up(call, how);
  } else if (running.cancelled) {
    boost::asio::post(client_.environment().loop, [event = running.cancelled, how] {
      event->how = how;
      event->set();
    });
  }
}

void RingCalls::recall_calls(const Channel& channel) {
  const Hosted* hosted = ready_.load(std::memory_order_acquire);
  if (hosted == nullptr) return;
  for (const auto& call : hosted->instance->withdraw(*channel)) {
    refuse(*channel, call->origin().number, not_begun());
  }
}

void RingCalls::channel_closed(const Channel& channel) {
  for (const auto& running : caller_of(channel).running) {
    if (const auto call = running.call.lock()) {
      if (!call->is_finished()) give_up(call, 0);
    } else if (running.cancelled) {
      boost::asio::post(client_.environment().loop, [event = running.cancelled] { event->set(); });
    }
  }
  channel->attachment = nullptr;
}

}  // namespace troupe::actor
