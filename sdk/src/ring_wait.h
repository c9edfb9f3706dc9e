// How the SDK blocks a thread for what comes through rings.
#pragma once

#include <algorithm>

#include "session_impl.h"
#include "transport/ring_port.h"

namespace troupe::detail {

// Most waits of a task are over before the head could make use of its cpu.
inline constexpr Duration lend_cpu_after = std::chrono::milliseconds(10);

// Blocks this thread until done(), as RingPort::wait; false at the deadline. The thread reads the
// process's rings meanwhile, and a task lends its cpu.
template <class Done, class Arm>
bool wait_in_rings(SessionImpl& session, transport::RingPort::Waiter& waiter, Instant deadline,
                   Done done, Arm arm) {
  const auto& environment = session.client().environment();
  const Instant soon = environment.clock.now() + lend_cpu_after;
  if (environment.rings->wait(waiter, std::min(soon, deadline), done, arm)) return true;
  if (soon >= deadline) return false;
  const ThreadWait lends;
  return environment.rings->wait(waiter, deadline, done, arm);
}

}  // namespace troupe::detail
