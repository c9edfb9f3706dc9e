// A generation that survives the loss of its replica for as long as nothing of it was passed on.
#pragma once

#include <memory>
#include <string>

#include "gateway/backend.h"

namespace troupe::gateway {

struct RetryOptions {
  Duration replica_wait = std::chrono::seconds(10);  // For a replica, when none can take it.
  uint32_t attempts_max = 8;
};

// Belongs to the gateway's loop; `backend` and `clock` outlive it.
class RetryingGeneration {
 public:
  RetryingGeneration(Backend& backend, TimerClock& clock, RetryOptions options,
                     GenerateRequest request);

  // The next chunk; nullopt at the end. Until commit() a lost replica is replaced, and the chunks
  // begin anew: restarted() then tells it, once. Errors: the engine's; unavailable (no replica
  // within replica_wait, or its replica was lost after commit()), deadline_exceeded.
  Async<Result<std::optional<Chunk>>> next();
  // What came so far was passed on: from now on there is no second try.
  void commit() { committed_ = true; }
  bool restarted() { return std::exchange(restarted_, false); }
  uint32_t retries() const { return retries_; }

 private:
  Async<Status> begin();
  static bool replica_lost(const Error& failure);

  Backend& backend_;
  TimerClock& clock_;
  RetryOptions options_;
  GenerateRequest request_;
  Instant deadline_;
  std::unique_ptr<Generation> running_;
  std::set<std::string> excluded_;
  std::optional<Error> full_;  // Of a replica that is alive and has no room.
  bool committed_ = false;
  bool restarted_ = false;
  bool fresh_ = true;  // The running one has given nothing yet.
  uint32_t retries_ = 0;
};

}  // namespace troupe::gateway
