#include "tests/sim/faults.h"

#include <fmt/format.h>

namespace troupe::sim {
namespace {

constexpr std::array<std::string_view, fault_kinds> names{"frame_dropped",
                                                          "frame_late",
                                                          "frame_duplicated",
                                                          "frame_reordered",
                                                          "connection_reset",
                                                          "connect_refused",
                                                          "partition",
                                                          "partition_one_way",
                                                          "machine_isolated",
                                                          "link_slow",
                                                          "head_crash",
                                                          "head_crash_again",
                                                          "head_restart",
                                                          "head_pause",
                                                          "head_lost",
                                                          "worker_crash",
                                                          "worker_restart",
                                                          "worker_pause",
                                                          "machine_lost",
                                                          "machine_pause",
                                                          "process_crash",
                                                          "process_pause",
                                                          "launch_failed",
                                                          "launch_slow",
                                                          "driver_crash",
                                                          "driver_pause",
                                                          "disk_slow",
                                                          "disk_stall",
                                                          "disk_full",
                                                          "disk_error",
                                                          "unsynced_lost",
                                                          "unsynced_kept",
                                                          "wal_torn",
                                                          "disk_unreadable",
                                                          "clock_forward",
                                                          "clock_back",
                                                          "standby_crash",
                                                          "standby_restart",
                                                          "standby_pause",
                                                          "standby_disk",
                                                          "heads_crash",
                                                          "head_cut_from_head",
                                                          "head_cut_from_workers",
                                                          "head_cut_from_coordinator",
                                                          "coordinator_unheard",
                                                          "coordinator_slow",
                                                          "coordinator_away",
                                                          "lead_handed_over",
                                                          "lease_expired",
                                                          "lead_outlived"};

}  // namespace

std::string_view fault_name(Fault fault) {
  return names[static_cast<size_t>(fault)];
}

void FaultCounts::add(const FaultCounts& other) {
  for (size_t i = 0; i < fault_kinds; ++i) counts_[i] += other.counts_[i];
}

std::string FaultCounts::to_string() const {
  std::string text;
  for (size_t i = 0; i < fault_kinds; ++i) {
    text += fmt::format("{}{} {}", i == 0 ? "" : ", ", names[i], counts_[i]);
  }
  return text;
}

std::string FaultCounts::missing() const {
  std::string text;
  for (size_t i = 0; i < fault_kinds; ++i) {
    if (counts_[i] == 0) text += fmt::format("{}{}", text.empty() ? "" : " ", names[i]);
  }
  return text;
}

}  // namespace troupe::sim
