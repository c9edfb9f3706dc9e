// Settings of a head.
#pragma once

#include <string>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "transport/network.h"

namespace troupe::head {

struct HeadOptions {
  ClusterId cluster;
  std::string version;
  uint32_t pid = 0;  // Shown by cluster_info.
  std::vector<transport::Endpoint> listen;
  Duration heartbeat = std::chrono::milliseconds(500);
  // A worker that was not heard of for this long is dead. None is before one window has passed
  // since the head started.
  Duration window = std::chrono::seconds(5);
  // A job ends when its driver's connection has been gone for this long.
  Duration driver_grace = std::chrono::seconds(2);
  // So long an idle driver may take to notice that the head before went without a word, with its
  // machine (transport/tls_stream says when): a head that starts waits this much longer for it.
  Duration driver_silence = std::chrono::seconds(15);
  // A lease that is not renewed for this long is over.
  Duration lease_quantum = std::chrono::seconds(10);
  // What one start of an actor may take, the loading of a model included.
  Duration actor_start_budget = std::chrono::minutes(10);
  Duration slot_start_budget = std::chrono::seconds(60);
  // An actor that ends is given this long to do so by itself when it is stopped.
  Duration stop_grace = std::chrono::seconds(2);
  // Waits before the second, third, ... start of an actor that keeps failing: doubling up to max.
  Duration backoff_min = std::chrono::milliseconds(100);
  Duration backoff_max = std::chrono::seconds(30);
  // An actor that was alive for less failed quickly.
  Duration quick_failure = std::chrono::seconds(10);

  size_t actors_max = 1'000'000;
  size_t leases_max = 100'000;
  size_t jobs_running_max = 10'000;
  size_t nodes_max = 10'000;
  size_t deployments_max = 1'000;
  size_t groups_max = 100'000;
  // Where the packages of jobs are kept; empty: nowhere, jobs then have none.
  std::string package_folder;
  // Where the last checkpoint of each actor is kept; empty: nowhere, and none is taken.
  std::string checkpoint_folder;
  uint64_t checkpoint_bytes_max = uint64_t{256} << 20;  // Of one.
  // How long a driver (or worker) that sends a package may be silent, or be away meanwhile.
  Duration package_silence = std::chrono::seconds(30);
  // What the processes of a job may take to send on what they have written, when it ends.
  Duration log_flush_budget = std::chrono::seconds(1);
  // How many that ended are remembered, each.
  size_t history_max = 1'000;
};

}  // namespace troupe::head
