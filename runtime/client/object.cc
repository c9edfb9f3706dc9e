#include "client/object.h"

#include <algorithm>
#include <boost/asio/post.hpp>

namespace troupe::client {

void Object::publish() {
  cancel_ = nullptr;
  channel_ = nullptr;
  ready_.store(true);
  for (auto* waiter : waiters_) waiter->signal();
  if (event_) boost::asio::post(loop_, [event = event_] { event->set(); });
}

bool Object::set_value(BytesView value) {
  const std::lock_guard lock{mutex_};
  if (ready_) return false;
  value_.assign(value.begin(), value.end());
  publish();
  return true;
}

bool Object::set_stored(protocol::ProcessAddress node, uint64_t size_bytes) {
  const std::lock_guard lock{mutex_};
  if (ready_) return false;
  in_store_ = true;
  node_ = std::move(node);
  size_bytes_ = size_bytes;
  publish();
  return true;
}

bool Object::set_error(Error failure) {
  const std::lock_guard lock{mutex_};
  if (ready_) return false;
  failure_ = std::move(failure);
  publish();
  return true;
}

void Object::on_cancel(std::function<void()> hook) {
  const std::lock_guard lock{mutex_};
  if (ready_) return;
  cancel_ = std::move(hook);
  channel_ = nullptr;
}

void Object::on_cancel(std::shared_ptr<transport::RingChannel> channel, uint64_t call) {
  const std::lock_guard lock{mutex_};
  if (ready_) return;
  cancel_ = nullptr;
  channel_ = std::move(channel);
  call_ = call;
}

void Object::cancel(Error why) {
  std::function<void()> hook;
  std::shared_ptr<transport::RingChannel> channel;
  uint64_t call = 0;
  {
    const std::lock_guard lock{mutex_};
    if (ready_) return;
    hook = std::move(cancel_);
    channel = std::move(channel_);
    call = call_;
    failure_ = std::move(why);
    publish();
  }
  if (channel) channel->cancel(call);
  if (hook) hook();
}

void Object::add_waiter(transport::RingPort::Waiter& waiter) {
  const std::lock_guard lock{mutex_};
  if (ready_) {
    waiter.signal();
  } else if (std::find(waiters_.begin(), waiters_.end(), &waiter) == waiters_.end()) {
    waiters_.push_back(&waiter);
  }
}

void Object::remove_waiter(transport::RingPort::Waiter& waiter) {
  const std::lock_guard lock{mutex_};
  const auto found = std::find(waiters_.begin(), waiters_.end(), &waiter);
  if (found != waiters_.end()) waiters_.erase(found);
}

Async<bool> Object::wait_ready(TimerClock& clock, Instant deadline) {
  std::shared_ptr<Event> event;
  {
    const std::lock_guard lock{mutex_};
    if (ready_) co_return true;
    if (!event_) event_ = std::make_shared<Event>(loop_);
    event = event_;
  }
  const auto self = shared_from_this();
  co_return co_await wait_until(clock, deadline, *event);
}

}  // namespace troupe::client
