// Two ring ports in one process, with rings between them as a worker would make them.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include "transport/ring_channel.h"

namespace troupe::transport {

using namespace std::chrono_literals;
using Channel = std::shared_ptr<RingChannel>;
using AnyChannel = std::shared_ptr<CallChannel>;

inline Instant in(Duration duration) {
  return Instant{std::chrono::steady_clock::now().time_since_epoch()} + duration;
}

// Looks again and again until it is true; false after a while.
template <class Condition>
bool eventually(Condition condition) {
  const Instant end = in(30s);
  while (!condition()) {
    if (in(0s) > end) return false;
    std::this_thread::yield();
  }
  return true;
}

inline FileDescriptor copy_of(const FileDescriptor& file) {
  return FileDescriptor{::fcntl(file.get(), F_DUPFD_CLOEXEC, 0)};
}

// One process's port, and what it does with calls: each is answered with its own bytes unless told
// otherwise.
class RingProcess : public CallHandler {
 public:
  explicit RingProcess(const Executor& loop) : port(RingPort::create(loop).value()) {
    port->set_handler(this);
  }
  ~RingProcess() override { port.reset(); }

  void take_call(const AnyChannel& channel, uint64_t call, BytesView payload) override {
    if (on_call) {
      on_call(channel, call, payload);
    } else {
      answer(channel, call, payload);
    }
  }
  void cancel_call(const AnyChannel&, uint64_t call, uint8_t) override {
    last_cancelled = call;
    ++cancelled;
    if (on_cancel) on_cancel();
  }
  void recall_calls(const AnyChannel&) override { ++recalled; }
  void channel_closed(const AnyChannel&) override { ++closed; }

  static void answer(const AnyChannel& channel, uint64_t call, BytesView payload) {
    channel->reply(call, payload.size(),
                   [&](uint8_t* out) { std::copy(payload.begin(), payload.end(), out); });
  }

  // Before rings are opened.
  std::function<void(const AnyChannel&, uint64_t, BytesView)> on_call;
  std::function<void()> on_cancel;
  std::atomic<uint64_t> last_cancelled = 0;
  std::atomic<int> cancelled = 0;
  std::atomic<int> recalled = 0;
  std::atomic<int> closed = 0;
  std::unique_ptr<RingPort> port;
};

// A call under way, as its caller sees it.
class RingCallState {
 public:
  class Pending final : public PendingReply {
   public:
    explicit Pending(std::shared_ptr<RingCallState> state) : state_(std::move(state)) {}
    void reply(BytesView payload) override {
      state_->settle({payload.begin(), payload.end()}, false);
    }
    void lost(bool begun) override {
      state_->may_have_run_ = begun;
      state_->settle({}, true);
    }

   private:
    const std::shared_ptr<RingCallState> state_;
  };

  bool is_settled() const { return settled_.load(); }
  int settled_times() const { return times_.load(); }
  bool is_lost() const { return lost_; }
  bool may_have_run() const { return may_have_run_; }  // Of one that was lost.
  const Bytes& value() const { return value_; }
  // Blocks; false at the deadline. `armed` counts threads that are about to sleep.
  using Kind = RingPort::Waiter::Kind;
  bool wait(RingPort& port, Instant deadline, std::atomic<int>* armed = nullptr,
            Kind kind = Kind::eager) {
    RingPort::Waiter waiter{port, kind};
    bool counted = false;
    const bool done = port.wait(
        waiter, deadline, [this] { return is_settled(); },
        [&] {
          const std::lock_guard lock{mutex_};
          waiter_ = &waiter;
          if (armed != nullptr && !std::exchange(counted, true)) ++*armed;
        });
    const std::lock_guard lock{mutex_};
    waiter_ = nullptr;
    return done;
  }

  uint64_t number = 0;

 private:
  void settle(Bytes value, bool lost) {
    const std::lock_guard lock{mutex_};
    ++times_;
    value_ = std::move(value);
    lost_ = lost;
    settled_ = true;
    if (waiter_ != nullptr) waiter_->signal();
  }

  std::mutex mutex_;
  RingPort::Waiter* waiter_ = nullptr;
  std::atomic<bool> settled_ = false;
  std::atomic<int> times_ = 0;
  Bytes value_;
  bool lost_ = false;
  bool may_have_run_ = false;
};
using CallState = std::shared_ptr<RingCallState>;

// Null: the channel refused it.
inline CallState begin_call(const AnyChannel& channel, const Bytes& payload) {
  auto state = std::make_shared<RingCallState>();
  const auto number =
      channel->call(std::make_unique<RingCallState::Pending>(state), payload.size(),
                    [&](uint8_t* out) { std::copy(payload.begin(), payload.end(), out); });
  if (!number) return nullptr;
  state->number = *number;
  return state;
}

struct RingPair {
  Channel left;
  Channel right;
};

// Each process's numbers are given by the caller.
inline RingPair open_rings(RingPort& left, uint32_t left_index, RingPort& right,
                           uint32_t right_index) {
  const FileDescriptor file = create_ring_file(ring_bytes_min).value();
  RingPort::Offer one;
  one.memory = copy_of(file);
  one.peer_doorbell = right.share_doorbell().value();
  one.side = 0;
  one.index = left_index;
  one.peer_index = right_index;
  RingPort::Offer other;
  other.memory = copy_of(file);
  other.peer_doorbell = left.share_doorbell().value();
  other.side = 1;
  other.index = right_index;
  other.peer_index = left_index;
  return {left.open(std::move(one)).value(), right.open(std::move(other)).value()};
}

}  // namespace troupe::transport
