#include "client/object.h"

#include <algorithm>
#include <boost/asio/post.hpp>

namespace troupe::client {

Object::~Object() {
  if (!on_freed_) return;
  for (const auto& hook : *on_freed_) hook();
}

void CallCount::end() {
  ended_.fetch_add(1);
  if (!is_awaited_.load() || unfinished() > 0) return;
  const std::lock_guard lock{mutex_};
  for (auto* waiter : waiters_) waiter->signal();
}

void CallCount::add_waiter(transport::RingPort::Waiter& waiter) {
  const std::lock_guard lock{mutex_};
  is_awaited_.store(true);
  if (std::find(waiters_.begin(), waiters_.end(), &waiter) == waiters_.end()) {
    waiters_.push_back(&waiter);
  }
  if (unfinished() == 0) waiter.signal();
}

void CallCount::remove_waiter(transport::RingPort::Waiter& waiter) {
  const std::lock_guard lock{mutex_};
  std::erase(waiters_, &waiter);
  is_awaited_.store(!waiters_.empty());
}

Object::Sent Object::take_sent() {
  Sent* sent = std::get_if<Sent>(&content_);
  return sent != nullptr ? std::exchange(*sent, {}) : Sent{};
}

void Object::publish() {
  (void)take_sent();
  if (rare_) rare_->cancel = nullptr;
  ready_.store(true);
  if (maker_ != Maker::none) home_.calls.end();
  if (watch_.load() != 0) {
    if (const uint64_t watch = watch_.exchange(0)) home_.watches.ready(watch);
  }
  if (!rare_) return;
  for (auto* waiter : rare_->waiters) waiter->signal();
  for (const auto& [hook, index] : std::exchange(rare_->hooks, {})) hook->ready(index);
  if (rare_->event) boost::asio::post(home_.loop, [event = rare_->event] { event->set(); });
}

bool Object::set_value(BytesView value) {
  const std::lock_guard lock{mutex_};
  if (ready_) return false;
  content_.emplace<Value>(value.begin(), value.end());
  publish();
  return true;
}

bool Object::set_stored(std::shared_ptr<const protocol::ProcessAddress> node, uint64_t size_bytes) {
  const std::lock_guard lock{mutex_};
  if (ready_) return false;
  in_store_ = true;
  rare().node = std::move(node);
  rare().size_bytes = size_bytes;
  publish();
  return true;
}

std::shared_ptr<const protocol::ProcessAddress> Object::node() const {
  const std::lock_guard lock{mutex_};
  return rare_->node;
}

uint64_t Object::size_bytes() const {
  const std::lock_guard lock{mutex_};
  return rare_->size_bytes;
}

void Object::move_to(std::shared_ptr<const protocol::ProcessAddress> node, uint64_t size_bytes) {
  const std::lock_guard lock{mutex_};
  rare().node = std::move(node);
  rare().size_bytes = size_bytes;
}

bool Object::set_error(Error failure) {
  const std::lock_guard lock{mutex_};
  if (ready_) return false;
  rare().failure = std::move(failure);
  publish();
  return true;
}

void Object::on_cancel(std::function<void(uint8_t)> hook) {
  const std::lock_guard lock{mutex_};
  if (ready_) return;
  rare().cancel = std::move(hook);
  (void)take_sent();
}

void Object::on_cancel(std::shared_ptr<transport::CallChannel> channel, uint64_t call) {
  {
    const std::lock_guard lock{mutex_};
    if (!ready_) {
      if (rare_) rare_->cancel = nullptr;
      content_ = Sent{std::move(channel), call};
      return;
    }
  }
  // It was given up between the look before the call was sent and now: the callee must hear of it.
  if (failure() != nullptr) channel->cancel(call);
}

void Object::set_more(std::vector<std::shared_ptr<Object>> more) {
  const std::lock_guard lock{mutex_};
  rare().more = std::move(more);
}

std::vector<std::shared_ptr<Object>> Object::take_more() {
  const std::lock_guard lock{mutex_};
  if (!rare_) return {};
  return std::exchange(rare_->more, {});
}

void Object::set_first(std::weak_ptr<Object> first) {
  const std::lock_guard lock{mutex_};
  rare().first = std::move(first);
}

std::shared_ptr<Object> Object::first() {
  const std::lock_guard lock{mutex_};
  return rare_ ? rare_->first.lock() : nullptr;
}

ProcessId Object::sent_to() const {
  const std::lock_guard lock{mutex_};
  const Sent* sent = std::get_if<Sent>(&content_);
  return sent != nullptr && sent->channel ? sent->channel->process() : ProcessId{};
}

void Object::cancel(Error why, uint8_t how) {
  std::function<void(uint8_t)> hook;
  Sent sent{};
  {
    const std::lock_guard lock{mutex_};
    if (ready_) return;
    if (rare_) hook = std::move(rare_->cancel);
    sent = take_sent();
    rare().failure = std::move(why);
    publish();
  }
  if (sent.channel) sent.channel->cancel(sent.call, how);
  if (hook) hook(how);
}

void Object::add_waiter(transport::RingPort::Waiter& waiter) {
  const std::lock_guard lock{mutex_};
  if (ready_) {
    waiter.signal();
    return;
  }
  auto& waiters = rare().waiters;
  if (std::find(waiters.begin(), waiters.end(), &waiter) == waiters.end()) {
    waiters.push_back(&waiter);
  }
}

void Object::remove_waiter(transport::RingPort::Waiter& waiter) {
  const std::lock_guard lock{mutex_};
  if (!rare_) return;
  auto& waiters = rare_->waiters;
  const auto found = std::find(waiters.begin(), waiters.end(), &waiter);
  if (found != waiters.end()) waiters.erase(found);
}

bool Object::add_hook(std::shared_ptr<ReadyHook> hook, uint32_t index) {
  const std::lock_guard lock{mutex_};
  if (ready_) return false;
  rare().hooks.emplace_back(std::move(hook), index);
  return true;
}

void Object::remove_hook(const ReadyHook& hook) {
  const std::lock_guard lock{mutex_};
  if (!rare_) return;
  std::erase_if(rare_->hooks, [&](const auto& entry) { return entry.first.get() == &hook; });
}

Object::Watch Object::watch(uint64_t watch) {
  uint64_t none = 0;
  if (!watch_.compare_exchange_strong(none, watch)) return Watch::taken;
  // Whichever comes last, this or publish(), sees the other; if both do, one takes the watch.
  if (!ready_.load()) return Watch::watched;
  return watch_.exchange(0) == watch ? Watch::ready : Watch::watched;
}

void Object::on_freed(std::function<void()> hook) {
  const std::lock_guard lock{mutex_};
  if (!on_freed_) on_freed_ = std::make_unique<std::vector<std::function<void()>>>();
  on_freed_->push_back(std::move(hook));
}

Async<bool> Object::wait_ready(std::shared_ptr<Object> object, TimerClock& clock,
                               Instant deadline) {
  std::shared_ptr<Event> event;
  {
    const std::lock_guard lock{object->mutex_};
    if (object->ready_) co_return true;
    if (!object->rare().event) object->rare().event = std::make_shared<Event>(object->home_.loop);
    event = object->rare().event;
  }
  co_return co_await wait_until(clock, deadline, *event);
}

}  // namespace troupe::client
