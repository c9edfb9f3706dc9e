#include "actor/call.h"

#include <algorithm>
#include <boost/asio/post.hpp>

namespace troupe::actor {

void Doorbell::ring(std::shared_ptr<Call> call) {
  {
    const std::lock_guard lock{mutex_};
    rung_.push_back(std::move(call));
    if (rung_.size() > 1) return;  // The loop is on its way.
  }
  boost::asio::post(loop_, [self = shared_from_this()] { self->answer(); });
}

void Doorbell::answer() {
  std::vector<std::shared_ptr<Call>> rung;
  {
    const std::lock_guard lock{mutex_};
    rung.swap(rung_);
  }
  for (const auto& call : rung) call->wake();
}

Call::Call(CallRequest request, std::shared_ptr<transport::CancelEvent> abandoned,
           std::shared_ptr<Doorbell> doorbell, ObjectId result)
    : request_(std::move(request)),
      origin_{nullptr, nullptr, 0, result},
      abandoned_(std::move(abandoned)),
      doorbell_(std::move(doorbell)),
      changed_(doorbell_->loop()) {}

Call::Call(CallRequest request, RingOrigin origin)
    : request_(std::move(request)), origin_(std::move(origin)) {}

bool Call::claim() {
  std::shared_ptr<const StopHook> hook;  // Goes without the lock: the module hears of it.
  const std::lock_guard lock{mutex_};
  hook = std::move(stop_hook_);
  return !std::exchange(finished_, true);
}

void Call::on_stop(std::shared_ptr<const StopHook> hook) {
  {
    const std::lock_guard lock{mutex_};
    if (finished_ || stop_hook_) return;
    stop_hook_ = hook;
  }
  // One that comes meanwhile calls it too; twice does no harm.
  if (const uint32_t why = stop_.load(); why != 0) (*hook)(why);
}

void Call::stop(uint32_t why) {
  if ((stop_.fetch_or(why) & why) == why) return;
  std::shared_ptr<const StopHook> hook;
  std::function<void()> ready;
  {
    const std::lock_guard lock{mutex_};
    hook = stop_hook_;
    ready = take_ready();
  }
  if (hook) (*hook)(why);
  if (ready) ready();
}

void Call::cancel(uint8_t how) {
  if (is_cancelled()) return;
  const bool spares = (how & protocol::cancel_spares_children) != 0;
  stop(TROUPE_STOP_CANCELLED | (spares ? 0 : TROUPE_STOP_CHILDREN));
}

bool Call::finish_value(BytesView value) {
  if (origin_.sink == nullptr) return finish(Bytes{value.begin(), value.end()});
  if (!claim()) return false;
  origin_.sink->finished(shared_from_this(), value);
  return true;
}

bool Call::finish(Result<Bytes> outcome) {
  if (origin_.sink != nullptr) {
    if (outcome) return finish_value(*outcome);
    if (!claim()) return false;
    origin_.sink->finished(shared_from_this(), std::move(outcome).error());
    return true;
  }
  std::shared_ptr<const StopHook> hook;
  {
    const std::lock_guard lock{mutex_};
    if (finished_) return false;
    finished_ = true;
    if (timeline_ != nullptr) note_end(timeline_->now(), !outcome);
    outcome_ = std::move(outcome);
    hook = std::move(stop_hook_);
  }
  doorbell_->ring(shared_from_this());
  return true;
}

Code Call::emit(BytesView item, std::vector<client::HeldRef> held) {
  if (!request_.streams) return Code::invalid;
  // Once: it may be told to stop, for either reason, between two looks.
  const uint32_t told = stop_.load();
  if ((told & TROUPE_STOP_CANCELLED) != 0) return Code::cancelled;
  if (told != 0) return Code::deadline_exceeded;
  {
    const std::lock_guard lock{mutex_};
    if (finished_) return Code::invalid;
    if (!has_room(item.size())) return Code::exhausted;
    items_.push_back({Bytes{item.begin(), item.end()}, std::move(held)});
    items_bytes_ += item.size();
    if (items_.size() > 1) return Code::ok;  // The loop was told and has not come yet.
  }
  doorbell_->ring(shared_from_this());
  return Code::ok;
}

bool Call::has_room(size_t item_bytes) const {
  const size_t most = request_.items_max > 0 ? request_.items_max : stream_items_max;
  if (items_.size() + items_sent_ >= most) return false;
  return items_.empty() || items_bytes_ + item_bytes <= stream_bytes_max;
}

bool Call::on_room(size_t item_bytes, std::function<void()> ready) {
  const std::lock_guard lock{mutex_};
  if (finished_ || should_stop() || has_room(item_bytes)) return false;
  on_room_ = std::move(ready);
  on_room_bytes_ = item_bytes;
  return true;
}

std::function<void()> Call::take_ready() {
  if (!on_room_ || !(finished_ || should_stop() || has_room(on_room_bytes_))) return nullptr;
  return std::exchange(on_room_, nullptr);
}

void Call::items_read(uint32_t count) {
  std::function<void()> ready;
  {
    const std::lock_guard lock{mutex_};
    items_sent_ -= std::min<size_t>(count, items_sent_);
    ready = take_ready();
  }
  if (ready) ready();
}

uint32_t Call::ran_ns(Instant now) const {
  const int64_t began = begun_at_ns_.load(std::memory_order_relaxed);
  if (began == 0) return 0;
  return static_cast<uint32_t>(
      std::clamp<int64_t>(now.time_since_epoch().count() - began, 1, UINT32_MAX));
}

TimelineEvent Call::run_event(Instant began) const {
  TimelineEvent event;
  event.kind = TimelineKind::run;
  event.name = timeline_->name(label());
  event.id = noted_id_;
  event.start = began;
  if (arrived_ != Instant{}) event.amount = static_cast<uint64_t>((began - arrived_).count());
  return event;
}

void Call::note_run_end(Instant now, bool has_failed) {
  const int64_t began_ns = begun_at_ns_.load(std::memory_order_relaxed);
  if (began_ns == 0) return;
  const Instant began{Duration{began_ns}};
  const bool is_chosen = arrived_ != Instant{};
  TimelineEvent event = run_event(began);
  event.duration = now - began;
  event.has_failed = has_failed;
  if (is_chosen) {
    timeline_->finish(noted_at_, event);
  } else {
    timeline_->add(event);
  }
}

bool Call::begin(Instant now) {
  if (begun_.exchange(true)) return false;
  if (arrived_ != Instant{}) {
    TimelineEvent event = run_event(now);
    event.is_open = true;
    noted_at_ = timeline_->add_sampled(event);
  }
  begun_at_ns_.store(now.time_since_epoch().count(), std::memory_order_relaxed);
  if (origin_.channel) origin_.channel->begin(origin_.ordinal);
  const RequestExtras* extras = request_.extras.get();
  if (extras != nullptr && extras->begun) extras->begun(shared_from_this());
  return true;
}

bool Call::withdraw() {
  return !begun_.exchange(true) && claim();
}

bool Call::is_finished() const {
  const std::lock_guard lock{mutex_};
  return finished_;
}

void Call::wake() {
  changed_->pulse();
  if (abandoned_) abandoned_->pulse();
}

Async<void> Call::change() {
  // A waiter waits on one event: the context's, which wake() pulses too, and once that is set and
  // would not wait any more, the call's own.
  if (abandoned_ && abandoned_->is_set()) cancel(abandoned_->how);
  if (abandoned_ && !is_cancelled()) {
    co_await abandoned_->wait();
    if (abandoned_->is_set()) cancel(abandoned_->how);
  } else {
    co_await changed_->wait();
  }
}

Async<Result<Bytes>> Call::outcome() {
  while (!is_finished()) co_await change();
  const std::lock_guard lock{mutex_};
  co_return std::move(*outcome_);
}

Async<std::optional<CallItem>> Call::next_item() {
  for (;;) {
    std::optional<CallItem> item;
    std::function<void()> ready;
    {
      const std::lock_guard lock{mutex_};
      if (!items_.empty()) {
        item = std::move(items_.front());
        items_.pop_front();
        items_bytes_ -= item->bytes.size();
        if (request_.items_max > 0) ++items_sent_;
        ready = take_ready();
      } else if (finished_) {
        co_return std::nullopt;
      }
    }
    if (ready) ready();
    if (item) co_return item;
    co_await change();
  }
}

}  // namespace troupe::actor
