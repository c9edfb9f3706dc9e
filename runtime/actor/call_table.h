// The handles by which a module names its unfinished calls.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

#include "actor/call.h"
#include "transport/adaptive_mutex.h"

namespace troupe::actor {
class CallTable;
}

// What plugin.h's opaque type is. `call` is null once it was finished.
struct troupe_call {
  troupe::actor::CallTable* table = nullptr;
  std::shared_ptr<troupe::actor::Call> call;
  bool is_open = false;
};

namespace troupe::actor {

// Handles are freed with the table alone and reused late, so a module that finishes a call twice is
// caught rather than served with another call. Thread-safe.
class CallTable {
 public:
  troupe_call* open(std::shared_ptr<Call> call);
  // Called after a call was finished, on the thread that did. Before the first call.
  void on_finish(std::function<void(const Call&)> hook) { on_finish_ = std::move(hook); }
  // The call of a handle; null if it was finished.
  std::shared_ptr<Call> find(const troupe_call* handle) const;
  // Looks at each unfinished call, with its handle. `look` must not come back here.
  template <class Look>
  void for_each_open(Look look) const {
    const std::lock_guard lock{mutex_};
    for (const auto& handle : handles_) {
      if (handle->is_open) look(handle.get(), handle->call);
    }
  }
  // Closes the handle. False: it was finished before (logged).
  bool finish(troupe_call* handle, Result<Bytes> outcome);
  bool finish_value(troupe_call* handle, BytesView value);
  // Fails every open call; how many.
  size_t fail_all(const Error& error);

 private:
  // The call of a handle, which it closes; null if it was finished before (logged).
  std::shared_ptr<Call> close(troupe_call* handle);

  static constexpr size_t rest_count =
      1024;  // Finished handles that rest before the first is reused.

  std::function<void(const Call&)> on_finish_;
  mutable transport::AdaptiveMutex mutex_;
  std::deque<std::unique_ptr<troupe_call>> handles_;
  std::deque<troupe_call*> resting_;
};

}  // namespace troupe::actor
