// The commands of the troupe tool. Each returns its exit code (see output.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "troupe/output.h"

namespace troupe::tools {

struct CommonOptions {
  std::string state;  // The state directory; empty: the default.
  Format format = Format::table;
};

struct UpOptions {
  int heads = 1;
  int workers = 1;
  double cpus = 0;         // A worker; 0: the machine's cores shared out evenly.
  double gpus = -1;        // A worker; -1: the machine's, shared out evenly.
  uint64_t store_mib = 0;  // A worker's object store; 0: a quarter of memory, shared out evenly.
  std::string spill_dir;   // Where full stores spill objects; empty: below the state directory.
  uint64_t log_mib = 256;  // Of the logs of ended processes a worker.
  int64_t spill_mib = -1;  // At most so much a worker; 0: off; -1: four times its object store.
  uint64_t package_mib = 10 << 10;  // What a worker keeps of jobs' files when no job needs them.
  uint64_t checkpoint_mib = 256;    // The largest state of an actor that is kept.
  int head_lease_s = 2;             // Of several heads: how long the lead lasts unless renewed.
  // NAME=AMOUNT and KEY=VALUE, of each worker; with "worker-N:" before it, of that one alone.
  std::vector<std::string> resources;
  std::vector<std::string> labels;
  int gateway_port = 8000;  // 0: any free one; -1: no gateway.
  bool keeper = true;       // Starts again what dies.
  double memory_high = 0.95;
  std::string https;  // HOST:PORT for the gateway's HTTPS; empty: none.
};
int run_up(const CommonOptions& common, const UpOptions& options);
int run_down(const CommonOptions& common);

// Hands the lead over to another head; empty: to any that has everything.
int run_transfer(const CommonOptions& common, const std::string& to);

struct DrainOptions {
  bool undo = false;
  double timeout_s = 60;  // How long to wait until nothing runs there.
};
// Takes a node out of use, named by its id (or the start of one) or its name.
int run_drain(const CommonOptions& common, const std::string& node, const DrainOptions& options);

int run_status(const CommonOptions& common);
// kind: nodes, actors, jobs, deployments, placement-groups.
int run_list(const CommonOptions& common, const std::string& kind);
// One node, actor, job, deployment or placement group, by its id (or the start of one) or its name.
int run_describe(const CommonOptions& common, const std::string& id);
struct ObjectsOptions {
  std::string job;       // Its id; empty: of all.
  uint32_t limit = 100;  // 0: none.
};
// Who holds which objects, and why.
int run_objects(const CommonOptions& common, const ObjectsOptions& options);
struct TimelineOptions {
  std::string file = "troupe-timeline.json";  // "-": standard output.
  std::string job;                            // Its id; empty: of all.
};
// What happened when, as a trace for Perfetto or chrome://tracing.
int run_timeline(const CommonOptions& common, const TimelineOptions& options);
int run_logs(const CommonOptions& common, const std::string& id, bool follow);
// Why something waits, by its id (or the start of one) or its name.
int run_why(const CommonOptions& common, const std::string& id);

struct SimOptions {
  std::string trace;
  uint32_t nodes = 64;
  int64_t gpus = 8;  // Of each node.
  std::vector<std::string> policies;
  double restart_cost_s = 30;  // Of one that was preempted.
  bool blind = false;          // Policies are not told what jobs will run.
};
// Replays a trace through the scheduler, once a policy: how long its jobs would have taken.
int run_sim(const CommonOptions& common, const SimOptions& options);

struct SubmitOptions {
  std::string name;
  std::string name_space = "default";
  std::vector<std::string> variables;  // NAME=VALUE, of the command and all processes of the job.
  std::string working_dir;             // Sent to the nodes; empty: none.
  std::vector<std::string> command;
};
int run_submit(const CommonOptions& common, const SubmitOptions& options);

struct DeployOptions {
  std::string name;
  std::string plugin = "inference";
  std::string class_name = "engine";
  std::string model;   // A checkpoint's directory.
  std::string config;  // More settings for the plugin: a JSON object.
  int replicas = 1;
  double cpus = 0;
  double gpus = 0;
  bool wait = true;
  int timeout_s = 120;
};
int run_deploy(const CommonOptions& common, const DeployOptions& options);
int run_undeploy(const CommonOptions& common, const std::string& name);
// The four figures of a deployment: response time, throughput, utilisation, time to recover.
int run_report(const CommonOptions& common, const std::string& name);
int run_key_create(const CommonOptions& common, const std::string& name, bool admin);

struct BackupCommand {
  std::string directory;
  bool list = false;
  uint32_t keep = 0;  // So many stay; 0: all.
};
// Has the head add a backup of its durable state to the directory, or lists those in it.
int run_backup(const CommonOptions& common, const BackupCommand& options);
struct RestoreCommand {
  std::string directory;
  uint32_t number = 0;  // 0: the newest.
  bool force = false;
};
// Makes the durable state of a head that does not run what a backup holds.
int run_restore(const CommonOptions& common, const RestoreCommand& options);

struct DrillCommand {
  std::string name;            // Of a drill, or "all".
  int rounds = 0;              // Faults, one after the other; 0: as the drill has it.
  double detect_within_s = 0;  // 0: as documented.
  double recover_within_s = 0;
};
// Holds drills, each on a cluster of its own; 1 if one fails.
int run_drill(const CommonOptions& common, const DrillCommand& command);

// The daemons, started by `up`. They run until SIGTERM.
struct DaemonOptions {
  std::string name;
  std::string host = "127.0.0.1";
  uint16_t port = 0;
  uint16_t advertised_port = 0;    // Of a worker that others reach at another port than its own.
  std::vector<std::string> heads;  // HOST:PORT each, of a worker: those that may lead.
  std::vector<std::string> etcd;   // HOST:PORT each, of one head of several: etcd's members.
  bool is_first = false;           // Of those: may lead a cluster that etcd knows nothing of.
  uint16_t peer_port = 0;          // Of etcd, for its own members.
  std::string node;                // The node's id, of a worker.
  std::string worker_socket;
  std::string https;  // HOST:PORT, of a gateway.
  double cpus = 0;
  double gpus = 0;
  uint32_t first_gpu = 0;
  uint64_t memory_mib = 0;
  double memory_high = 0.95;
  uint64_t store_mib = 0;
  std::string spill_dir;  // Empty: below the state directory.
  uint64_t log_mib = 256;
  uint64_t spill_mib = 0;  // 0: spilling is off.
  uint64_t package_mib = 10 << 10;
  uint64_t checkpoint_mib = 256;
  int lease_s = 2;                     // Of the lead among several heads.
  std::vector<std::string> resources;  // NAME=AMOUNT.
  std::vector<std::string> labels;     // KEY=VALUE.
};
int run_head(const CommonOptions& common, const DaemonOptions& options);
// Becomes etcd.
int run_etcd(const CommonOptions& common, const DaemonOptions& options);
int run_worker(const CommonOptions& common, const DaemonOptions& options);
int run_gateway(const CommonOptions& common, const DaemonOptions& options);
int run_keeper(const CommonOptions& common, const DaemonOptions& options);

}  // namespace troupe::tools
