// Backups of the head's store, made off its loop while it goes on promising.
#pragma once

#include <atomic>

#include "metadata/backup.h"
#include "protocol/messages.h"
#include "transport/environment.h"
#include "transport/router.h"

namespace troupe::head {

class Backups {
 public:
  // Both outlive it, and what it makes: stop the scope that its answers run in before.
  Backups(transport::Environment environment, Store& store);

  // Answers back_up. One at a time, so that the pool has threads left for the journal.
  // Errors: conflict (one is being made), invalid (a relative path); those of troupe::back_up.
  Async<Result<protocol::BackedUp>> make(protocol::BackUp request, transport::CallContext call);
  // The one under way ends soon; the scope that it runs in waits for that.
  void stop() { stopping_ = true; }

 private:
  transport::Environment environment_;
  Store& store_;
  bool busy_ = false;
  std::atomic<bool> stopping_ = false;
};

}  // namespace troupe::head
