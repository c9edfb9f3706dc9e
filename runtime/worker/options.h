// What a worker is told at its start.
#pragma once

#include <string>
#include <vector>

#include "base/clock.h"
#include "protocol/messages.h"
#include "transport/network.h"
#include "transport/timeline_memory.h"

namespace troupe::worker {

class MachineUsage;

// Of whose timelines are kept. Of processes that have ended the newest: so many, and so much of
// their records.
struct TimelineLimits {
  size_t ended_max = 256;
  size_t ended_bytes_max = 64 << 20;
  size_t living_max = 4096;
};

struct WorkerOptions {
  NodeId node;
  std::string name;
  ClusterId cluster;
  std::vector<transport::Endpoint> heads;  // Of which one leads.
  std::string worker_socket;               // The Unix socket on which it listens.
  std::string host;              // The IP address for TLS; empty: no other node reaches this one.
  uint16_t port = 0;             // 0: the system chooses.
  uint16_t advertised_port = 0;  // Where others find it if something forwards to it; 0: at `port`.
  std::string socket_folder;     // Where processes of this node put their own sockets.
  std::string log_folder;
  // How much of the logs of ended processes stays; that of the newest few in any case, for somebody
  // may be reading it.
  uint64_t ended_logs_bytes_max = uint64_t{256} << 20;
  size_t ended_logs_kept = 64;
  std::vector<protocol::ResourceAmount> total;
  uint32_t first_gpu = 0;  // The machine's number of this node's device 0.
  std::vector<protocol::NamedValue> labels;
  uint64_t store_capacity_bytes = uint64_t{1} << 30;
  // Where objects are spilled, in a folder of the node's own, and how much of them: 0 turns it off.
  std::string spill_folder;
  uint64_t spill_bytes_max = 0;
  // Where jobs' modules and working directories are kept, and how much of them when no job here
  // needs them any more.
  std::string package_folder;
  uint64_t package_bytes_max = uint64_t{10} << 30;
  // Where actors write their states before they go to the head; empty: nowhere, and none does.
  std::string checkpoint_folder;
  // Pulls that get less than this ask for compression, which lz4 does about as fast.
  double compress_below_bytes_s = 300e6;
  std::string certificate_pem;  // The node's credentials, handed to this node's processes.
  std::string key_pem;
  std::string authority_pem;
  std::string version;
  uint32_t pid = 0;

  // Where the worker notes what it does; null: nowhere. Outlives the worker.
  transport::TimelineMemory* timeline = nullptr;
  TimelineLimits timeline_limits;
  // Read at each heartbeat; null reports zeros. Outlives the worker.
  MachineUsage* usage = nullptr;
  // The part of the machine's memory beyond which processes are ended; 0: none ever is.
  double memory_high = 0.95;
  Duration reconnect_first = std::chrono::milliseconds(50);  // Doubles up to the longest.
  // That nobody listens costs both sides microseconds to find out.
  Duration reconnect_longest = std::chrono::milliseconds(200);
  Duration idle_slot_life = std::chrono::seconds(10);
  uint32_t idle_slots_max = 8;
  Duration job_check_period = std::chrono::seconds(10);
};

// Where a process of the node writes them.
inline std::string checkpoint_folder_of(const WorkerOptions& options, ProcessId process) {
  if (options.checkpoint_folder.empty()) return {};
  return options.checkpoint_folder + "/" + process.to_string();
}

}  // namespace troupe::worker
