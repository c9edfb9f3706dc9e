// The kinds of fault, and how often each did something: a fault that nothing felt is not counted.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace troupe::sim {

enum class Fault : uint8_t {
  // Of frames and connections.
  frame_dropped,
  frame_late,        // With all that follows it on its connection.
  frame_duplicated,  // A request that is idempotent arrives twice.
  frame_reordered,
  connection_reset,
  connect_refused,
  // Of links between machines; what is sent meanwhile is lost for good.
  partition,          // Of two machines.
  partition_one_way,  // The one hears the other and is not heard.
  machine_isolated,   // From all others.
  link_slow,
  // Of processes.
  head_crash,        // Of the only one, or of several the one that leads.
  head_crash_again,  // While it starts, or takes the lead.
  head_restart,      // In good order.
  head_pause,
  head_lost,  // Nobody is told.
  worker_crash,
  worker_restart,
  worker_pause,
  machine_lost,   // Nobody is told: connections stay open, and nobody answers.
  machine_pause,  // All of its processes at once, as of a virtual machine.
  process_crash,
  process_pause,
  launch_failed,
  launch_slow,
  driver_crash,
  driver_pause,
  // Of the head's disk.
  disk_slow,
  disk_stall,       // For seconds.
  disk_full,        // Until there is room again, also for heads that start.
  disk_error,       // A write fails, and whether it is there is open.
  unsynced_lost,    // A crash between write and sync; the record is gone.
  unsynced_kept,    // The same, and the record is there, whole, though nobody was told so.
  wal_torn,         // A crash within a write: a part of the record is there.
  disk_unreadable,  // A head that starts cannot read.
  // Of wall clocks.
  clock_forward,
  clock_back,
  // Of several heads.
  standby_crash,
  standby_restart,
  standby_pause,
  standby_disk,        // Any fault of the disk of one that stands by, beside its own kind.
  heads_crash,         // Of all at once.
  head_cut_from_head,  // Of one from another, in one direction or both.
  head_cut_from_workers,
  head_cut_from_coordinator,
  coordinator_unheard,  // By one head: what that asks for is done.
  coordinator_slow,     // For one head; what comes too late is done all the same.
  coordinator_away,     // For all.
  lead_handed_over,
  lease_expired,  // Without having been ended; another lease follows.
  lead_outlived,  // A head still takes itself for the one that leads when another one does.
};
inline constexpr size_t fault_kinds = static_cast<size_t>(Fault::lead_outlived) + 1;

std::string_view fault_name(Fault fault);

class FaultCounts {
 public:
  void note(Fault fault) { ++counts_[static_cast<size_t>(fault)]; }
  uint64_t of(Fault fault) const { return counts_[static_cast<size_t>(fault)]; }
  void add(const FaultCounts& other);
  // "frame_dropped 12, ...", each kind.
  std::string to_string() const;
  // The kinds that never fired, separated by spaces; empty: all did.
  std::string missing() const;

 private:
  std::array<uint64_t, fault_kinds> counts_{};
};

}  // namespace troupe::sim
