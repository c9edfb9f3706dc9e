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

Call::Call(CallRequest request, std::shared_ptr<Event> abandoned,
           std::shared_ptr<Doorbell> doorbell)
    : request_(std::move(request)),
      abandoned_(std::move(abandoned)),
      doorbell_(std::move(doorbell)),
      changed_(doorbell_->loop()) {}

Call::Call(CallRequest request, RingOrigin origin)
    : request_(std::move(request)), origin_(std::move(origin)) {}

bool Call::claim() {
  const std::lock_guard lock{mutex_};
  return !std::exchange(finished_, true);
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
  {
    const std::lock_guard lock{mutex_};
    if (finished_) return false;
    finished_ = true;
    outcome_ = std::move(outcome);
  }
  doorbell_->ring(shared_from_this());
  return true;
}

Code Call::emit(BytesView item) {
  if (!request_.streams) return Code::invalid;
  if (is_cancelled()) return Code::cancelled;
  {
    const std::lock_guard lock{mutex_};
    if (finished_) return Code::invalid;
    const bool full = items_.size() >= stream_items_max ||
                      (!items_.empty() && items_bytes_ + item.size() > stream_bytes_max);
    if (full) return Code::exhausted;
    items_.emplace_back(item.begin(), item.end());
    items_bytes_ += item.size();
    if (items_.size() > 1) return Code::ok;  // The loop was told and has not come yet.
  }
  doorbell_->ring(shared_from_this());
  return Code::ok;
}

uint32_t Call::ran_ns(Instant now) const {
  const int64_t began = begun_at_ns_.load(std::memory_order_relaxed);
  if (began == 0) return 0;
  return static_cast<uint32_t>(
      std::clamp<int64_t>(now.time_since_epoch().count() - began, 1, UINT32_MAX));
}

bool Call::begin(Instant now) {
  if (begun_.exchange(true)) return false;
  begun_at_ns_.store(now.time_since_epoch().count(), std::memory_order_relaxed);
  if (origin_.channel) origin_.channel->begin(origin_.ordinal);
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
  if (abandoned_ && abandoned_->is_set()) cancel();
  if (abandoned_ && !is_cancelled()) {
    co_await abandoned_->wait();
    if (abandoned_->is_set()) cancel();
  } else {
    co_await changed_->wait();
  }
}

Async<Result<Bytes>> Call::outcome() {
  while (!is_finished()) co_await change();
  const std::lock_guard lock{mutex_};
  co_return std::move(*outcome_);
}

Async<std::optional<Bytes>> Call::next_item() {
  for (;;) {
    {
      const std::lock_guard lock{mutex_};
      if (!items_.empty()) {
        std::optional<Bytes> item{std::move(items_.front())};
        items_.pop_front();
        items_bytes_ -= item->size();
        co_return item;
      }
      if (finished_) co_return std::nullopt;
    }
    co_await change();
  }
}

}  // namespace troupe::actor
