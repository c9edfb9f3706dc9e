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
  static constexpr size_t gauges_max = 256;
  static constexpr size_t name_bytes_max = 64;
  // False: the name is too long, or new to a table that is full.
  bool set(std::string_view given, double value) {
    const std::lock_guard lock{mutex_};
    if (given.size() > name_bytes_max) return false;
    const std::string name{given};
    if (values_.size() >= gauges_max && !values_.contains(name)) return false;
    values_[name] = value;
    return true;
  }
  std::map<std::string, double> read() const {
    const std::lock_guard lock{mutex_};
    return values_;
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, double> values_;
};

}  // namespace troupe::actor

struct troupe_context {
  troupe_context(troupe::actor::Identity who, troupe::actor::Services& cluster);

  const troupe::actor::Identity identity;
  troupe::actor::Services& services;
  std::stop_source stopping;
  std::function<bool(std::function<void()>)> defer;  // Instance::defer.
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
