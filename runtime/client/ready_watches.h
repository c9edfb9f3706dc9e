// Waits for many objects at once, of which each object knows a number alone: so joining and leaving
// a wait costs an object no lock and no memory.
#pragma once

#include <cstdint>
#include <mutex>
#include <unordered_map>

namespace troupe::client {

// Told that an object became ready, once, on whichever thread made it so: it must neither block nor
// touch the object.
class ReadyHook {
 public:
  virtual ~ReadyHook() = default;
  virtual void ready(uint32_t index) = 0;
};

// Thread-safe.
class ReadyWatches {
 public:
  // Names the hook's wait; with an index in its lower half it is what Object::watch takes.
  uint64_t open(ReadyHook& hook) {
    const std::lock_guard lock{mutex_};
    while (++last_ == 0 || hooks_.contains(last_)) {
    }
    hooks_[last_] = &hook;
    return uint64_t{last_} << 32;
  }
  // The hook is not called any more once this returns.
  void close(uint64_t name) {
    const std::lock_guard lock{mutex_};
    hooks_.erase(static_cast<uint32_t>(name >> 32));
  }
  void ready(uint64_t watch) {
    const std::lock_guard lock{mutex_};
    const auto found = hooks_.find(static_cast<uint32_t>(watch >> 32));
    if (found != hooks_.end()) found->second->ready(static_cast<uint32_t>(watch));
  }

 private:
  std::mutex mutex_;
  std::unordered_map<uint32_t, ReadyHook*> hooks_;
  uint32_t last_ = 0;
};

}  // namespace troupe::client
