// An object that this process owns: a result to come, or a value.
#pragma once

#include <atomic>
#include <boost/container/small_vector.hpp>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <variant>
#include <vector>

#include "client/client.h"
#include "client/ready_watches.h"
#include "transport/ring_channel.h"
#include "transport/small_mutex.h"

namespace troupe::client {

// How many of a process's calls have no outcome yet. Thread-safe.
class CallCount {
 public:
  void begin() { begun_.fetch_add(1); }
  void end();
  // Those that end meanwhile may still count.
  size_t unfinished() const {
    const size_t ended = ended_.load();
    return begun_.load() - ended;
  }
  // Until remove_waiter it is signalled when none is left.
  void add_waiter(transport::RingPort::Waiter& waiter);
  void remove_waiter(transport::RingPort::Waiter& waiter);

 private:
  // Apart, for one thread begins calls and another ends them.
  alignas(64) std::atomic<size_t> begun_ = 0;
  alignas(64) std::atomic<size_t> ended_ = 0;
  std::atomic<bool> is_awaited_ = false;
  std::mutex mutex_;
  std::vector<transport::RingPort::Waiter*> waiters_;  // Guarded.
};

// What all objects of a process share. Outlives them.
struct ObjectHome {
  Executor loop;
  CallCount calls;
  ReadyWatches watches;
};

class Object {
 public:
  // What makes it. The results of a call after the first count with that.
  enum class Maker : uint8_t { none, task, actor };

  Object(ObjectId id, ObjectHome& home, Maker maker) : id_(id), home_(home), maker_(maker) {
    if (maker_ != Maker::none) home_.calls.begin();
  }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;
  ~Object();

  ObjectId id() const { return id_; }
  Maker maker() const { return maker_; }

  // --- Thread-safe.
  bool is_ready() const { return ready_.load(std::memory_order_acquire); }
  // The first outcome counts; false: there was one already.
  bool set_value(BytesView value);
  bool set_stored(std::shared_ptr<const protocol::ProcessAddress> node, uint64_t size_bytes);
  bool set_error(Error failure);
  // Called by cancel(), once, unless an outcome came first. `how`: protocol::CancelBits.
  void on_cancel(std::function<void(uint8_t how)> hook);
  void on_cancel(std::shared_ptr<transport::CallChannel> channel, uint64_t call);
  // The outcome becomes `why`, unless there is one, and what makes the object is told to stop.
  void cancel(Error why, uint8_t how = 0);
  // The other results of its call, until they are taken.
  void set_more(std::vector<std::shared_ptr<Object>> more);
  std::vector<std::shared_ptr<Object>> take_more();
  // Of another result: the call's first, with which it comes. Null: it is none, or that is gone.
  void set_first(std::weak_ptr<Object> first);
  std::shared_ptr<Object> first();
  // The process whose ring its call was sent through; nil: none, or not yet.
  ProcessId sent_to() const;
  // From now on until remove_waiter the waiter is signalled when it becomes ready.
  void add_waiter(transport::RingPort::Waiter& waiter);
  void remove_waiter(transport::RingPort::Waiter& waiter);
  // False: it is ready, and the hook is not called.
  bool add_hook(std::shared_ptr<ReadyHook> hook, uint32_t index);
  void remove_hook(const ReadyHook& hook);
  // The same for a wait of `watches`, one at a time: it is told once, if this says `watched`.
  enum class Watch { watched, ready, taken };
  Watch watch(uint64_t watch);
  void unwatch(uint64_t watch) { watch_.compare_exchange_strong(watch, 0); }
  // Called when nobody holds the object any more, by whoever let go of it last.
  void on_freed(std::function<void()> hook);
  // Its value is given up, though there are refs. False: it was before.
  bool discard() { return !discarded_.exchange(true); }
  bool is_discarded() const { return discarded_.load(std::memory_order_relaxed); }
  void add_reference() { references_.fetch_add(1); }
  // True: that was the last.
  bool drop_reference() { return references_.fetch_sub(1) == 1; }
  uint32_t references() const { return references_.load(); }

  // --- Thread-safe once ready; what they give lives as long as the object.
  const Error* failure() const { return rare_ && rare_->failure ? &*rare_->failure : nullptr; }
  bool in_store() const { return in_store_; }
  BytesView value() const {
    const Value* value = std::get_if<Value>(&content_);
    return value != nullptr ? BytesView{value->data(), value->size()} : BytesView{};
  }
  std::shared_ptr<const protocol::ProcessAddress> node() const;
  uint64_t size_bytes() const;
  // It is in the store, and lies elsewhere from now on.
  void move_to(std::shared_ptr<const protocol::ProcessAddress> node, uint64_t size_bytes);
  // Nothing has to be given back when it goes: it is its own memory.
  bool is_plain() const { return !in_store_ && !is_entangled(); }
  bool is_entangled() const { return entangled_.load(std::memory_order_acquire); }

  // --- On the loop.
  // Waits until it is ready; false at the deadline.
  static Async<bool> wait_ready(std::shared_ptr<Object> object, TimerClock& clock,
                                Instant deadline);
  // What it has to do with other objects and processes.
  struct Ties {
    std::multiset<ProcessId> borrowers;
    std::vector<ObjectName> held;                      // Refs inside the value.
    std::vector<protocol::ProcessAddress> copies;      // Workers that have it, too, or bring it.
    std::optional<protocol::ProcessAddress> producer;  // Holds refs inside the value for us.
    bool uses_recipe = false;                          // That it was made by, in Lineage.
  };
  Ties& ties() {
    if (!ties_) ties_ = std::make_unique<Ties>();
    return *ties_;
  }
  bool has_ties() const { return ties_ != nullptr; }
  bool is_freed() const { return freed_; }
  void set_freed() { freed_ = true; }
  // It has ties, or others know its name: it must be freed on the loop.
  void entangle() { entangled_.store(true, std::memory_order_release); }

 private:
  using Value = boost::container::small_vector<uint8_t, 16>;
  // The call that makes it, if that went through a channel.
  struct Sent {
    std::shared_ptr<transport::CallChannel> channel;
    uint64_t call;
  };
  // What few objects need: most are a small result that is read once.
  struct Rare {
    std::optional<Error> failure;
    std::shared_ptr<const protocol::ProcessAddress> node;
    uint64_t size_bytes = 0;
    std::vector<std::pair<std::shared_ptr<ReadyHook>, uint32_t>> hooks;
    boost::container::small_vector<transport::RingPort::Waiter*, 2> waiters;
    std::shared_ptr<Event> event;  // Of the loop; made by the first coroutine that waits.
    std::function<void(uint8_t)> cancel;
    std::vector<std::shared_ptr<Object>> more;
    std::weak_ptr<Object> first;
  };
  // With the lock held, before it is ready.
  Rare& rare() {
    if (!rare_) rare_ = std::make_unique<Rare>();
    return *rare_;
  }
  // With the lock held.
  Sent take_sent();
  void publish();

  const ObjectId id_;
  ObjectHome& home_;
  std::atomic<uint64_t> watch_ = 0;
  std::atomic<uint32_t> references_ = 1;
  std::atomic<bool> ready_ = false;
  // Ordered by size: a million of them may wait.
  std::atomic<bool> entangled_ = false;
  std::atomic<bool> discarded_ = false;
  bool in_store_ = false;
  mutable transport::SmallMutex mutex_;
  bool freed_ = false;
  const Maker maker_;
  std::variant<Sent, Value> content_;  // A value once it is ready and has one.
  std::unique_ptr<Rare> rare_;
  std::unique_ptr<Ties> ties_;  // The loop's.
  std::unique_ptr<std::vector<std::function<void()>>> on_freed_;
};

}  // namespace troupe::client
