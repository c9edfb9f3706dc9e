#include "client/call_pool.h"

#include <boost/asio/post.hpp>

namespace troupe::client {

namespace {

// After members that refused a call though they were reached: one that is about to stop.
constexpr Duration pause_first = std::chrono::milliseconds(5);
constexpr uint32_t pause_doublings = 7;

}  // namespace

class CallPool::Seat final : public ReadyHook {
 public:
  Seat(std::shared_ptr<CallPool> pool, MemberId at) : member(at), pool_(std::move(pool)) {}
  void ready(uint32_t) override { pool_->leave(*this, {.has_ended = true}); }

  const MemberId member;
  bool is_taken = true;  // Guarded by the pool's lock.

 private:
  const std::shared_ptr<CallPool> pool_;
};

CallPool::CallPool(Client& client, uint32_t calls_a_member)
    : client_(client),
      caller_(client.actors()),
      calls_a_member_(std::max<uint32_t>(calls_a_member, 1)) {}

bool CallPool::add(ActorId actor) {
  auto target = caller_.target(actor);
  {
    const std::lock_guard lock{mutex_};
    if (is_closed_ || ids_.contains(actor)) return false;
    const MemberId id = ++last_id_;
    ids_[actor] = id;
    Member& member = members_[id];
    member.target = target;
    member.turn = ++turns_;
    start_seeking(id, member);
  }
  boost::asio::post(client_.environment().loop, [caller = &caller_, target = std::move(target),
                                                 watch = weak_from_this()]() mutable {
    caller->watch(target, std::move(watch));
  });
  return true;
}

void CallPool::start_seeking(MemberId id, Member& member) {
  if (std::exchange(member.is_sought, true)) return;
  const uint32_t doublings = std::min(member.refusals, pause_doublings);
  const Duration pause = member.refusals == 0 ? Duration::zero() : pause_first * (1 << doublings);
  boost::asio::post(client_.environment().loop,
                    [client = &client_, pool = weak_from_this(), id, target = member.target,
                     pause] { spawn(client->scope(), seek(*client, pool, id, target, pause)); });
}

Async<void> CallPool::seek(Client& client, std::weak_ptr<CallPool> pool, MemberId id,
                           std::shared_ptr<ActorTarget> target, Duration pause) {
  if (pause > Duration::zero()) co_await sleep_for(client.environment().clock, pause);
  Status outcome = error(Code::deadline_exceeded, "not reached yet");
  while (!outcome && outcome.error().code() == Code::deadline_exceeded) {
    if (pool.expired()) co_return;
    auto peer = co_await client.actors().reach(target, Instant::max());
    outcome = peer ? ok() : Status{std::move(peer).error()};
  }
  if (const auto kept = pool.lock()) kept->found(id, outcome);
}

void CallPool::found(MemberId id, const Status& outcome) {
  {
    const std::lock_guard lock{mutex_};
    const auto known = members_.find(id);
    if (known == members_.end()) return;
    Member& member = known->second;
    member.is_sought = false;
    if (outcome) {
      set_reached(id, member, true);
    } else {
      last_death_ = outcome.error();
      ids_.erase(member.target->actor());
      members_.erase(known);
    }
  }
  dispatch();
}

void CallPool::process_gone(ActorId actor) {
  const std::lock_guard lock{mutex_};
  const auto known = ids_.find(actor);
  if (known == ids_.end()) return;
  Member& member = members_.at(known->second);
  set_reached(known->second, member, false);
  if (!is_closed_) start_seeking(known->second, member);
}

std::optional<ActorId> CallPool::take_idle() {
  const std::lock_guard lock{mutex_};
  if (reached_.empty() || reached_.begin()->unfinished > 0) return std::nullopt;
  const MemberId id = reached_.begin()->member;
  const ActorId actor = members_.at(id).target->actor();
  reached_.erase(reached_.begin());
  members_.erase(id);
  ids_.erase(actor);
  return actor;
}

std::shared_ptr<Object> CallPool::submit(ActorCallSpec spec,
                                         std::vector<std::shared_ptr<Object>>* more) {
  auto call = caller_.prepare(std::move(spec), more);
  auto result = call->result;
  // A call that waits here can be cancelled: then it is not sent.
  result->on_cancel([](uint8_t) {});
  if (call->deadline != Instant::max()) {
    boost::asio::post(client_.environment().loop,
                      [caller = &caller_, call] { caller->keep_time(call, nullptr); });
  }
  {
    const std::lock_guard lock{mutex_};
    queue_.push_back(std::move(call));
  }
  dispatch();
  return result;
}

void CallPool::take_back(std::shared_ptr<ActorCall> call, Error why) {
  if (const auto seat = std::static_pointer_cast<Seat>(std::exchange(call->seat, nullptr))) {
    call->result->remove_hook(*seat);
    // What ran has a place.
    leave(*seat, {.has_ended = !why.where().empty()});
  }
  {
    const std::lock_guard lock{mutex_};
    // Before those that were made after it.
    if (!is_closed_) queue_.push_front(std::exchange(call, nullptr));
  }
  if (call) {
    caller_.fail(call, std::move(why));
  } else {
    dispatch_soon();
  }
}

void CallPool::leave(Seat& seat, LeaveOptions options) {
  bool waits = false;
  {
    const std::lock_guard lock{mutex_};
    if (!std::exchange(seat.is_taken, false)) return;
    --unfinished_;
    const auto known = members_.find(seat.member);
    if (known != members_.end()) {
      Member& member = known->second;
      set_unfinished(seat.member, member, member.unfinished - 1);
      if (options.has_ended) {
        member.refusals = 0;
      } else {
        ++member.refusals;
        set_reached(seat.member, member, false);
        if (!is_closed_) start_seeking(seat.member, member);
      }
    }
    waits = !queue_.empty();
  }
  if (waits) dispatch_soon();
}

void CallPool::set_unfinished(MemberId id, Member& member, size_t unfinished) {
  if (member.is_reached) reached_.erase(choice_of(id, member));
  member.unfinished = unfinished;
  if (member.is_reached) reached_.insert(choice_of(id, member));
}

void CallPool::set_reached(MemberId id, Member& member, bool is_reached) {
  if (member.is_reached == is_reached) return;
  member.is_reached = is_reached;
  if (is_reached) {
    reached_.insert(choice_of(id, member));
  } else {
    reached_.erase(choice_of(id, member));
  }
}

void CallPool::dispatch_soon() {
  {
    const std::lock_guard lock{mutex_};
    if (std::exchange(dispatch_posted_, true)) return;
  }
  boost::asio::post(client_.environment().loop, [self = shared_from_this()] {
    {
      const std::lock_guard lock{self->mutex_};
      self->dispatch_posted_ = false;
    }
    self->dispatch();
  });
}

std::optional<CallPool::Sending> CallPool::next_sending() {
  if (queue_.empty() || reached_.empty()) return std::nullopt;
  const Choice best = *reached_.begin();
  if (best.unfinished >= calls_a_member_) return std::nullopt;
  Member& member = members_.at(best.member);
  reached_.erase(reached_.begin());
  ++member.unfinished;
  member.turn = ++turns_;
  reached_.insert(choice_of(best.member, member));
  ++unfinished_;
  Sending sending{std::move(queue_.front()), member.target,
                  std::make_shared<Seat>(shared_from_this(), best.member)};
  queue_.pop_front();
  return sending;
}

void CallPool::dispatch() {
  for (;;) {
    std::optional<Sending> sending;
    std::deque<std::shared_ptr<ActorCall>> hopeless;
    {
      const std::lock_guard lock{mutex_};
      if (members_.empty() || is_closed_) hopeless.swap(queue_);
      sending = next_sending();
    }
    for (const auto& call : hopeless) {
      if (call->result->is_ready()) {
        caller_.finish(call);
      } else {
        caller_.fail(call, nobody_left());
      }
    }
    if (!sending) return;
    sending->call->seat = sending->seat;
    if (sending->call->result->add_hook(sending->seat, 0)) {
      caller_.send(sending->target, std::move(sending->call));
    } else {
      // Cancelled, or too late.
      leave(*sending->seat, {.has_ended = true});
      caller_.finish(sending->call);
    }
  }
}

Error CallPool::nobody_left() const {
  const std::lock_guard lock{mutex_};
  if (is_closed_) {
    return error(Code::cancelled, "the pool was destroyed before the call was sent");
  }
  if (!last_death_) return error(Code::unavailable, "the pool has no members: push() some");
  return error(last_death_->code(),
               "no member of the pool is left; the last one: " + last_death_->message());
}

CallPool::Counts CallPool::counts() const {
  const std::lock_guard lock{mutex_};
  Counts counts;
  counts.members = members_.size();
  counts.reached = reached_.size();
  const auto busy = reached_.lower_bound(Choice{1, 0, 0});
  counts.idle = static_cast<size_t>(std::distance(reached_.begin(), busy));
  counts.unfinished = unfinished_;
  counts.queued = queue_.size();
  return counts;
}

std::vector<ActorId> CallPool::members() const {
  const std::lock_guard lock{mutex_};
  std::vector<ActorId> actors;
  for (const auto& [actor, id] : ids_) actors.push_back(actor);
  return actors;
}

void CallPool::close() {
  {
    const std::lock_guard lock{mutex_};
    is_closed_ = true;
  }
  dispatch();
}

}  // namespace troupe::client
