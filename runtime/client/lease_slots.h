// What a LeasePool keeps of a class of tasks and its slots. For it alone.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/service_time.h"
#include "client/lease_pool.h"
#include "transport/adaptive_mutex.h"

namespace troupe::client {

struct LeasePool::Slot {
  Slot(ClassPointer c, LeaseId l, protocol::ProcessAddress a)
      : cls(std::move(c)), lease(l), address(std::move(a)) {}
  const ClassPointer cls;
  const LeaseId lease;
  const protocol::ProcessAddress address;

  // --- Guarded by the class's mutex.
  bool connected = false;
  std::shared_ptr<transport::CallChannel> channel;  // Null when connected: frames alone.
  uint32_t in_flight = 0;
  uint32_t window = 1;     // How many may be.
  int64_t service_ns = 0;  // Of one task, smoothed; 0: unknown.
  uint64_t done = 0;       // Tasks.
  uint64_t done_at_look = 0;
  Instant idle_since{};  // As the last look saw it.
  Instant granted_at{};
  bool leaving = false;  // It is sent no more, and goes back when it is idle.
  bool blocked = false;  // It sent tasks back: none more until it has done one.
  bool dropped = false;
  bool is_alone = false;  // It runs a generator, which may take long: it is sent no other.
};

// Tasks that any slot of a lease can run: same module, demand and priority.
struct LeasePool::Class : std::enable_shared_from_this<Class> {
  std::string key;
  std::string module;
  std::vector<protocol::ResourceAmount> demand;
  int32_t priority = 0;
  protocol::PlacementSpec placement;

  transport::AdaptiveMutex mutex;  // Guards what follows.
  std::deque<Task> queue;
  std::map<ProcessId, SlotPointer> slots;
  bool tended_soon = false;
  bool yields = false;  // Somebody else waits, until yield_until.
  Instant yield_until;
  // Of its tasks that have a deadline, by function.
  std::map<std::string, ServiceTime> service_times;

  // --- On the loop.
  bool requesting = false;
  bool looking = false;
  Duration pause = pause_first;  // Before the next request, when the head has no room or a slot was
                                 // not there.
  bool unreached = false;
  std::optional<Error> refusal;  // What the head said last, if it had no room.
  LeaseId asked;                 // What the head was asked for; nil: nothing now.
};

}  // namespace troupe::client
