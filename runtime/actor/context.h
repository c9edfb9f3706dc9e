// What plugin.h's opaque context is: one instance as the functions of the host table see it.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <stop_token>
#include <string>

#include "actor/services.h"
#include "sdk/include/troupe/plugin.h"
#include "transport/adaptive_mutex.h"

namespace troupe::actor {

// Who an instance is.
struct Identity {
  ActorId actor;  // Nil for a task slot.
  JobId job;
  std::string name;
  std::string node_name;
  uint32_t incarnation = 0;
};

// Gauges that the module set. Thread-safe; bounded, for a module may compute names.
class Gauges {
 public:
  // Called at the first change after a read, on the thread that makes it. Before any.
  void on_change(std::function<void()> hook) { on_change_ = std::move(hook); }
  static constexpr size_t gauges_max = 256;
  static constexpr size_t name_bytes_max = 64;
  // False: the name is too long, or new to a table that is full.
  bool set(std::string_view given, double value) {
    if (given.size() > name_bytes_max) return false;
    const std::string name{given};
    bool first = false;
    {
      const std::lock_guard lock{mutex_};
      const auto known = values_.find(name);
      if (known != values_.end() && known->second == value) return true;
      if (known == values_.end() && values_.size() >= gauges_max) return false;
      values_[name] = value;
      first = !std::exchange(changed_, true);
    }
    if (first && on_change_) on_change_();
    return true;
  }
  std::map<std::string, double> read() {
    const std::lock_guard lock{mutex_};
    changed_ = false;
    return values_;
  }

 private:
  std::mutex mutex_;
  std::map<std::string, double> values_;
  bool changed_ = false;  // Since the last read.
  std::function<void()> on_change_;
};

}  // namespace troupe::actor

// Its instance holds it, and who retained it: see `release`.
struct troupe_context {
  troupe_context(troupe::actor::Identity who, troupe::actor::Services& cluster);

  void retain() { holders_.fetch_add(1); }
  // The last one deletes it.
  void release() {
    if (holders_.fetch_sub(1) == 1) delete this;
  }
  // Runs `work` on an actor thread, before the calls that wait. False: the instance stops.
  bool defer(std::function<void()> work) {
    const std::lock_guard lock{defer_mutex_};
    return defer_ && defer_(std::move(work));
  }
  // Instance::defer; empty: there is no instance any more.
  void set_defer(std::function<bool(std::function<void()>)> defer) {
    const std::lock_guard lock{defer_mutex_};
    defer_ = std::move(defer);
  }

  // The same of Instance::wish_checkpoint.
  int32_t checkpoint_soon() {
    const std::lock_guard lock{defer_mutex_};
    return checkpoint_soon_ ? checkpoint_soon_() : TROUPE_UNIMPLEMENTED;
  }
  void set_checkpoint_soon(std::function<int32_t()> wish) {
    const std::lock_guard lock{defer_mutex_};
    checkpoint_soon_ = std::move(wish);
  }

  const troupe::actor::Identity identity;
  troupe::actor::Services& services;
  std::stop_source stopping;
  troupe::actor::Gauges gauges;
  // The texts of `info`.
  const std::string actor_text;
  const std::string job_text;
  const troupe_actor_info info;

  // --- The actor thread's own.
  struct View {
    troupe::client::ObjectBytes value;
    uint32_t count = 0;
  };
  std::map<troupe::ObjectId, View> views;  // What object_get gave and was not released.
  troupe::client::ObjectBytes last_reply;  // Of actor_call.

 private:
  ~troupe_context() = default;
  std::atomic<uint32_t> holders_ = 1;
  troupe::transport::AdaptiveMutex defer_mutex_;
  std::function<bool(std::function<void()>)> defer_;
  std::function<int32_t()> checkpoint_soon_;
};

namespace troupe::actor {

// Whose code a thread runs, for as long as this lives.
class CurrentContext {
 public:
  explicit CurrentContext(troupe_context* context) { slot() = context; }
  CurrentContext(const CurrentContext&) = delete;
  CurrentContext& operator=(const CurrentContext&) = delete;
  ~CurrentContext() { slot() = nullptr; }
  static troupe_context* get() { return slot(); }

 private:
  static troupe_context*& slot() {
    thread_local troupe_context* context = nullptr;
    return context;
  }
};

}  // namespace troupe::actor

struct troupe_group {
  troupe::actor::Group members;
};
