// Tells the head while the task of this process waits for others, so that they may have its cpu.
#pragma once

#include "client/client.h"

namespace troupe::client {

class LentCpu {
 public:
  explicit LentCpu(Client& client);

  // The lease whose slot this process is; without one nothing is told.
  void set_lease(LeaseId lease);
  // Waits nest and overlap: the task has several threads.
  void begin_wait();
  void end_wait();

 private:
  Async<void> report();
  Async<void> tell(bool waiting);

  Client& client_;
  LeaseId lease_;
  uint32_t waits_ = 0;
  uint64_t sequence_ = 0;
  Event changed_;  // Between no wait and some.
};

}  // namespace troupe::client
