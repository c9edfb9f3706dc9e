// What a component may touch of the world.
#pragma once

#include "base/random.h"
#include "transport/async.h"
#include "transport/network.h"

namespace troupe::transport {

class RingPort;

// References outlive every component. Real in life (real_environment.h), simulated in tests/sim.
struct Environment {
  Executor loop;      // The component's own loop: its state is touched only there.
  Executor blocking;  // Runs what may block: disk, RocksDB, long hashing.
  TimerClock& clock;
  Random& random;
  Network& network;
  RingPort* rings = nullptr;  // Null: the process talks through sockets alone.
};

// Runs `work` on the blocking executor and resumes on the caller's loop.
template <class Work>
auto run_blocking(Environment environment, Work work) -> Async<decltype(work())>;

}  // namespace troupe::transport

#include "transport/run_blocking_inline.h"
