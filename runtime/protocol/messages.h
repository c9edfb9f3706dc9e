// The messages of troupe.capnp as plain structs: same fields, same order (see codec.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/ids.h"
#include "base/status.h"

namespace troupe::protocol {

inline constexpr uint32_t version = 1;

// What a request asks for. The values are on the wire: never renumber.
enum class Method : uint32_t {
  unknown = 0,
  hello = 1,
  // To the head.
  register_node = 10,
  heartbeat = 11,
  process_exited = 12,
  begin_job = 13,
  end_job = 14,
  create_actor = 15,
  get_actor = 16,
  kill_actor = 17,
  request_lease = 18,
  renew_lease = 19,
  return_lease = 20,
  deploy = 21,
  undeploy = 22,
  watch_deployments = 23,  // A stream of DeploymentList, one a change.
  list_nodes = 24,
  list_actors = 25,
  list_jobs = 26,
  list_deployments = 27,
  cluster_info = 28,
  slot_waits = 29,
  create_placement_groups = 30,
  remove_placement_groups = 31,
  get_placement_group = 32,
  list_placement_groups = 33,
  create_actors = 34,
  kill_actors = 35,
  get_actors = 36,
  get_job = 37,      // Answered by JobInfo.
  get_package = 38,  // A stream of PackageChunk; also to a driver, and for checkpoints to a worker.
  explain = 39,      // What the head knows of anything with an id.
  // To a worker.
  start_actor = 40,
  stop_actor = 41,
  start_slots = 42,
  stop_slots = 43,
  attach_process = 44,
  attach_segment = 45,
  reserve_extent = 46,  // Answered by a Block.
  seal_blocks = 47,
  get_block = 48,
  release_blocks = 49,
  fetch_chunk = 50,
  read_log = 51,  // A stream of LogChunk.
  return_extents = 52,
  job_ended = 53,  // EndJob, from the head: what the job's processes left behind goes.
  report_gauges = 54,
  attach_rings = 55,  // With the process's doorbell; answered by the node's page.
  start_actors = 57,  // A stream of ActorsStarted, as they start.
  stop_actors = 58,
  list_objects = 59,  // Also to a process of the node.
  open_ring = 56,     // Answered by a RingOffer, with the rings' memory and the peer's doorbell.
  // To an actor process or a driver.
  assign_actor = 60,
  assign_slot = 61,
  invoke = 62,
  invoke_stream = 63,  // A stream of items, each opaque bytes.
  stop_process = 64,
  assign_actors = 66,  // A stream of ActorsStarted, as they start.
  end_actors = 67,
  stay_until = 68,
  collective = 65,
  resolve_objects = 70,
  add_borrow = 71,
  remove_borrow = 72,
  drop_segments = 73,
  object_copied = 76,
  free_objects = 77,
  wait_objects = 78,     // A stream of ObjectIds: those that became ready.
  explain_objects = 79,  // ObjectIds, to their owner; answered by Explanations.
  explain_calls = 80,    // To an actor process.
  job_logs = 81,         // To a driver.
  get_timelines = 82,    // A stream of ProcessTimeline, from the head or a worker.
  attach_timeline = 83,  // Empty, to the worker, with the memory of the process's timeline.
  back_up = 84,          // To the head; answered by BackedUp.
  drain_node = 85,       // To the head.
  follow_leader = 86,    // Of a head that stands by, to the one that leads.
  replicate = 87,        // Back.
  transfer_lead = 88,    // To the head.
  ping = 89,             // To the head: whether it answers.
  store_checkpoint =
      90,              // To the worker, with the archive, and to the head; answered by Checkpoint.
  adopt_objects = 91,  // To a worker.
  evacuate = 92,       // From the head to a worker, and on to its processes.
  list_held = 93,      // ObjectIds, to the producer of these results; answered by HeldRefs.
  yield_slots = 75,    // YieldSlots, from the head: somebody else waits for what its slots hold.
  accept_ring = 74,    // RingOffer, from the worker, with the same descriptors.
};
// "create_actor"; "method 99" for a number that this build does not know.
std::string method_name(Method method);

struct ErrorInfo {
  uint32_t code = 0;
  std::string message;
  std::string where;
  uint64_t retry_after_us = 0;
};
ErrorInfo to_info(const Error& error);
Error from_info(const ErrorInfo& info);

// How to reach a process. unix_path serves processes of the same node, host and port (TLS) all
// others.
struct ProcessAddress {
  ProcessId process;
  NodeId node;
  std::string unix_path;
  std::string host;
  uint16_t port = 0;
};

struct Hello {
  uint32_t protocol_version = version;
  uint64_t features = 0;
  std::string kind;  // head, worker, actor, driver, gateway, cli.
  ProcessAddress address;
  JobId job;
  ClusterId cluster;
  uint32_t pid = 0;
};

struct Empty {};

struct ResourceAmount {
  std::string name;  // cpu, memory (milli = MiB * 1000), gpu, or custom.
  int64_t milli = 0;
};

struct NamedValue {
  std::string name;
  std::string value;
};

struct LabelSelector {
  std::string key;
  std::string test;  // in, not_in, exists, absent.
  std::vector<std::string> values;
  bool soft = false;  // Preferred, not demanded.
};

// Where a task or actor may go.
struct PlacementSpec {
  std::vector<LabelSelector> selectors;
  NodeId node;  // Set: only there, or, if soft, there if there is room.
  bool node_soft = false;
  PlacementGroupId group;
  uint32_t bundle = 0;   // Its number in the group plus one; 0: any.
  uint32_t grant = 0;    // Of the group. Filled in by the head, for workers.
  bool capture = false;  // The same: what runs there puts its tasks and actors into the group.
  bool outside = false;  // Not in the group that captures whoever asks.
};

struct RunningActor {
  ActorId actor;
  uint32_t incarnation = 0;
  ProcessAddress address;
  uint32_t pid = 0;
};

struct RunningSlot {
  LeaseId lease;
  JobId job;
  std::vector<ResourceAmount> demand;
  std::vector<uint32_t> devices;
  ProcessAddress address;
  uint32_t pid = 0;
  PlacementSpec placement = {};  // The bundle, and which grant of its group.
  bool stopping = false;         // Its process ends: it serves nobody, and holds its room still.
};

struct RegisterNode {
  ProcessAddress address;
  std::string name;
  std::vector<ResourceAmount> total;
  std::vector<NamedValue> labels;
  std::string version;
  uint32_t pid = 0;
  std::vector<RunningActor> actors;
  std::vector<RunningSlot> slots;
  std::vector<RunningActor> starting = {};  // Without an address yet.
  // Rises with each registration over one connection: an older one that comes late says nothing
  // new. 0: from a worker that does not count.
  uint64_t sequence = 0;
};

struct NodeRegistered {
  ClusterId cluster;
  uint64_t epoch = 0;
  uint64_t heartbeat_us = 0;
  uint64_t window_us = 0;
};

struct Gauge {
  std::string name;
  double value = 0;
};

struct ActorGauges {
  ActorId actor;
  uint32_t incarnation = 0;
  std::vector<Gauge> gauges;
};

struct Heartbeat {
  NodeId node;
  uint64_t epoch = 0;
  uint64_t sequence = 0;
  uint64_t store_used_bytes = 0;
  uint64_t store_capacity_bytes = 0;
  uint64_t memory_used_bytes = 0;
  uint64_t cpu_used_milli = 0;
  std::vector<ActorGauges> gauges;  // Of the actors whose changed since the last.
  uint64_t store_spilled_bytes = 0;
};

struct HeartbeatReply {
  uint64_t epoch = 0;
  bool register_again = false;
};

// A worker to the head: one of its processes ended. The ids that do not apply are nil.
struct ProcessExited {
  NodeId node;
  uint64_t epoch = 0;
  ProcessId process;
  ActorId actor;
  uint32_t incarnation = 0;
  LeaseId lease;
  std::string reason;
};

struct NodeInfo {
  ProcessAddress address;
  std::string name;
  std::string state;  // alive, draining, drained, suspect, dead.
  std::vector<ResourceAmount> total;
  std::vector<ResourceAmount> available;
  std::vector<NamedValue> labels;
  uint32_t actors = 0;
  uint32_t slots = 0;
  uint64_t store_used_bytes = 0;
  uint64_t store_capacity_bytes = 0;
  uint64_t memory_used_bytes = 0;
  uint64_t cpu_used_milli = 0;
  std::string version;
  uint32_t pid = 0;
  uint64_t store_spilled_bytes = 0;
  bool draining = false;  // Nothing new goes there.
};

struct DrainNode {
  NodeId node;
  bool undo = false;
};

// Files that a job's processes need, named by what is in them.
struct Package {
  std::string hash;  // SHA-256, in hexadecimal.
  std::string kind;  // module, working_dir.
  std::string path;  // At the driver.
  uint64_t size_bytes = 0;
};

struct JobEnvironment {
  std::vector<NamedValue> variables;
  std::vector<Package> packages;
  bool log_to_driver = false;
};

struct GetJob {
  JobId job;
};

struct GetPackage {
  JobId job;
  std::string hash;
  uint64_t offset_bytes = 0;
  ActorId actor = {};  // Set: its checkpoint.
};

struct PackageChunk {
  Bytes data;
  uint64_t offset_bytes = 0;
  uint64_t total_bytes = 0;
};

// What a process wrote since the last batch.
struct ProcessLines {
  ProcessId process;
  ActorId actor;
  uint32_t pid = 0;
  std::string name;  // For people: of its actor or task.
  std::vector<std::string> lines;
  uint64_t lost = 0;  // Lines before these that were left out.
};

struct JobLogs {
  JobId job;
  NodeId node;
  std::string node_name;
  std::vector<ProcessLines> items;
};

struct BeginJob {
  JobId job;
  std::string name;
  std::string entrypoint;
  std::string name_space;
  JobEnvironment environment = {};
};

struct EndJob {
  JobId job;
  bool succeeded = false;
  std::string message;
};

struct JobInfo {
  JobId job;
  std::string name;
  std::string entrypoint;
  std::string name_space;
  std::string state;  // running, succeeded, failed.
  std::string message;
  uint64_t started_unix_us = 0;
  uint64_t ended_unix_us = 0;
  ProcessAddress driver;
  JobEnvironment environment = {};
};

// Inline bytes, or, with object set, a ref that the callee resolves through its owner.
struct Argument {
  Bytes inline_value;
  ObjectId object;
  ProcessAddress owner;
};

// Methods of an actor that have threads, or unfinished calls, of their own.
struct ConcurrencyGroup {
  std::string name;
  uint32_t limit = 0;
};

struct ActorSpec {
  ActorId actor;
  JobId job;
  std::string name;
  std::string name_space;
  std::string module;  // Path of a shared object, or the name of an installed plugin.
  std::string class_name;
  std::vector<Argument> arguments;
  uint64_t signature = 0;
  std::vector<ResourceAmount> demand;
  int32_t priority = 0;
  int32_t max_restarts = 0;  // -1: no limit.
  bool detached = false;
  bool get_if_exists = false;
  std::vector<NamedValue> environment;
  std::string strategy;  // "" or pack, spread.
  NodeId node;           // Set: only there.
  std::string deployment;
  PlacementSpec placement = {};
  uint32_t concurrency = 0;   // Threads, or unfinished coroutine methods. 0: the class's default.
  bool shared = false;        // In a process with others of its job and module.
  bool out_of_order = false;  // A call need not wait for the arguments of those before it.
  uint32_t mailbox_calls_max = 0;  // 0: the default.
  std::vector<ConcurrencyGroup> groups = {};
  uint64_t exit_grace_us = 0;  // How long it may take to end when it is stopped. 0: the default.
  uint64_t checkpoint_interval_us = 0;  // 0: only when it is asked for.
  uint64_t isolation_limit_us = 0;      // Ends when no head was heard for so long. 0: goes on.
};

// The last state of an actor that the head has; number 0: none. Its directory is one archive, named
// as a package is.
struct Checkpoint {
  uint64_t number = 0;  // From 1, of one actor.
  std::string hash;     // SHA-256, in hexadecimal.
  uint64_t size_bytes = 0;
  uint64_t taken_unix_us = 0;
  uint32_t incarnation = 0;  // That wrote it.
};

// From the actor's process to its worker, with the archive beside it, and from there to the head.
struct StoreCheckpoint {
  NodeId node;
  uint64_t epoch = 0;
  ActorId actor;
  uint32_t incarnation = 0;
  std::string hash;
  uint64_t size_bytes = 0;
};

struct ActorInfo {
  ActorId actor;
  JobId job;
  std::string name;
  std::string name_space;
  std::string module;
  std::string class_name;
  std::string state;  // pending, starting, alive, restarting, dead.
  uint32_t incarnation = 0;
  ProcessAddress address;
  uint32_t pid = 0;
  std::string reason;  // Why it is pending or dead.
  std::string deployment;
  uint64_t created_unix_us = 0;
  std::vector<Gauge> gauges;  // While it is alive; a moment old.
  Checkpoint checkpoint = {};
};

struct GetActor {
  ActorId actor;
  std::string name;
  std::string name_space;
  uint32_t after = 0;
};

struct KillActor {
  ActorId actor;
  std::string reason;
};

struct ActorRecord {
  ActorSpec spec;
  ActorInfo info;
};

struct StartActor {
  uint64_t epoch = 0;
  uint32_t incarnation = 0;
  ActorSpec spec;
  std::vector<uint32_t> devices;
  uint32_t bundle = 0;  // Of its placement group, as in PlacementSpec.
  uint32_t grant = 0;
  Checkpoint checkpoint = {};  // To go on from; number 0: it begins anew.
};

struct ProcessStarted {
  ProcessAddress address;
  uint32_t pid = 0;
  uint32_t slot = 0;  // Of a lease: the slot's number plus one.
};

struct ActorSpecs {
  std::vector<ActorSpec> items;
};
struct ActorResult {
  ActorInfo info;
  ErrorInfo error;  // Code 0: done.
};
struct ActorResults {
  std::vector<ActorResult> items;
};
struct ActorIds {
  std::vector<ActorId> actors;
  std::string reason;
};

struct StartActors {
  std::vector<StartActor> items;
};
struct StartedActor {
  ActorId actor;
  uint32_t incarnation = 0;
  ProcessStarted process;
  ErrorInfo error;  // Code 0: it runs.
};
struct ActorsStarted {
  std::vector<StartedActor> items;
};

struct StopActor {
  uint64_t epoch = 0;
  ActorId actor;
  uint32_t incarnation = 0;
  uint64_t grace_us = 0;
  bool save = false;  // It goes on elsewhere: its last checkpoint is one of its last state.
};

struct StopActors {
  std::vector<StopActor> items;
};

struct RequestLease {
  LeaseId lease;
  JobId job;
  std::string module;
  std::vector<ResourceAmount> demand;
  uint32_t slots = 0;
  int32_t priority = 0;
  PlacementSpec placement = {};
};

struct Slot {
  ProcessAddress address;
};

struct LeaseGranted {
  LeaseId lease;
  std::vector<Slot> slots;  // From one up to as many as were asked for.
  uint64_t quantum_us = 0;  // Renew or return before it ends.
};

struct RenewLease {
  LeaseId lease;
};

struct ReturnLease {
  LeaseId lease;
  std::vector<ProcessId> processes;
};

struct SlotWaits {
  LeaseId lease;
  bool waiting = false;
  uint64_t sequence = 0;  // Rises by each notice of a process.
};

// What somebody waits for.
struct YieldSlots {
  std::vector<ResourceAmount> demand;
  int32_t priority = 0;
  NodeId node = {};  // Set: all that it has there, whatever others wait for.
};

struct SlotToStart {
  uint32_t number = 0;  // Never used twice within its lease.
  std::vector<uint32_t> devices;
  uint32_t bundle = 0;  // As in PlacementSpec.
};

struct StartSlots {
  uint64_t epoch = 0;
  LeaseId lease;
  JobId job;
  std::string module;
  std::vector<ResourceAmount> demand;  // Of each slot.
  uint32_t count = 0;
  std::vector<uint32_t> devices;   // Dealt out evenly.
  std::vector<SlotToStart> slots;  // Set: count and devices only repeat them.
  PlacementSpec placement = {};
};

struct SlotsStarted {
  std::vector<ProcessStarted> processes;
};

struct StopSlots {
  uint64_t epoch = 0;
  LeaseId lease;
  std::vector<ProcessId> processes;
  bool end_tasks = false;  // The processes end even if they run a task, and are not used again.
};

struct Invoke {
  ActorId actor;  // Nil: a task, run by a leased slot.
  uint32_t incarnation = 0;
  std::string method;
  uint64_t signature = 0;  // Hash of the argument and result types; 0: opaque bytes.
  std::vector<Argument> arguments;
  TaskId task;
  JobId job;
  ObjectId result;       // The id under which a large result is sealed; those of several follow it.
  uint32_t results = 0;  // How many the caller expects; 0: one.
  uint64_t time_limit_us = 0;  // Of its run; 0: none.
  std::string name;            // The caller's, for people.
  uint64_t grace_us = 0;       // After the limit, before its process is ended.
  uint32_t items_max = 0;      // Of a stream: how many its receiver leaves unread; 0: the default.
};

struct ObjectValue {
  Bytes inline_value;
  ProcessAddress node;
  uint64_t size_bytes = 0;
  bool in_store = false;
  std::vector<ProcessAddress> copies = {};  // Workers of other nodes that have it, too.
  ErrorInfo error = {};                     // Code 0: it has a value.
};

struct InvokeReply {
  Bytes inline_value;
  ProcessAddress node;  // Set (a worker) when the result was too large to ride inline.
  uint64_t size_bytes = 0;
  std::vector<ObjectId> borrowed;      // The results whose nested refs the callee keeps.
  std::vector<ObjectValue> more = {};  // The results after the first.
};

struct ForkProcess {
  ProcessId process;
  std::vector<NamedValue> environment;  // All of it.
};

struct ProcessForked {
  uint32_t pid = 0;           // 0: none was started;
  uint32_t error_number = 0;  // errno says why.
};

struct StopProcess {
  uint64_t grace_us = 0;
  bool if_unneeded = false;  // Refused (conflict) while others need what it owns or holds.
  bool save = false;         // As in StopActor.
};

struct AssignActor {
  uint32_t incarnation = 0;
  ActorSpec spec;
  Checkpoint checkpoint = {};
  std::string restore_from;       // Where the checkpoint lies, unpacked; empty: there is none.
  std::string checkpoint_folder;  // Where states are written to; empty: the node keeps none.
};

struct AssignActors {
  std::vector<AssignActor> items;
};

struct EndActor {
  ActorId actor;
  uint32_t incarnation = 0;
  uint64_t grace_us = 0;
  bool save = false;  // As in StopActor.
};
struct EndActors {
  std::vector<EndActor> items;
};

// From the worker to a process whose actor ends when no head is heard: when, if nothing else comes.
struct StayUntil {
  int64_t monotonic_ns = 0;  // Of the node's clock.
};

struct AssignSlot {
  LeaseId lease;
  JobId job;
  std::string module;
  PlacementSpec placement = {};
};

// To their owner: what is asked or told of them says the method.
struct ObjectIds {
  std::vector<ObjectId> objects;
};

struct ResolveObjects {
  std::vector<ObjectId> objects;
  // The worker of the asker, who means to read them: from now on the owner counts it, if it is on
  // another node, among the copies of those that lie in the store.
  ProcessAddress reader;
  // Set, with one object: the worker that the owner named, and which does not give it.
  ProcessId missing_at = {};
};

// Of the first objects asked for, in their order, as many as were ready and as fit; at least one.
// One that failed is the last.
struct ObjectValues {
  std::vector<ObjectValue> items;
};

struct ObjectCopied {
  ObjectId object;
  ProcessAddress node;
  bool dropped = false;
};

struct ListObjects {
  JobId job;
  uint32_t limit = 0;  // 0: no limit.
};

struct ObjectEntry {
  ObjectId object;
  JobId job;
  ProcessAddress owner;
  std::string owner_kind;
  uint64_t size_bytes = 0;
  std::string state;  // pending, inline, stored, spilled, failed, building.
  uint32_t references = 0;
  std::vector<ProcessId> borrowers;
  uint32_t pins = 0;  // Of the store: readers that have it mapped.
  NodeId node;        // Where its bytes lie.
  std::string why;    // What keeps it.
};

struct ObjectList {
  std::vector<ObjectEntry> items;
  uint64_t total = 0;
};

struct SegmentAttached {
  uint64_t segment = 0;  // Its number with this worker; never used twice.
};

struct DropSegments {
  std::vector<uint64_t> segments;
};

// A range of the sender's segment for it to build objects in.
struct ReserveExtent {
  uint64_t size_bytes = 0;
};

struct Block {
  uint64_t segment = 0;
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;
};

// A finished object in an extent of the sender's.
struct SealedBlock {
  ObjectId object;
  ProcessId owner;  // Who holds the object until it releases it as its owner; nil: the sender.
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;
  bool pinned = false;  // The sender has a pin on it.
};
struct SealBlocks {
  uint64_t segment = 0;
  std::vector<SealedBlock> items;
};

struct Extent {
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;
};
struct ReturnExtents {
  uint64_t segment = 0;
  std::vector<Extent> items;
};

struct GetBlock {
  ObjectId object;
  ProcessAddress source;
  std::vector<uint64_t> segments_held;
  ProcessAddress owner;                     // Told of what becomes of the copy.
  std::vector<ProcessAddress> copies = {};  // To be tried before the source, in this order.
};

struct ReleaseBlocks {
  std::vector<ObjectId> objects;
  ProcessId owner;  // Set: the sender is this owner and has no more refs. Else: one pin each goes.
};

// These objects have their home at the worker that is asked from now on, if it has them, or gets
// them from the source (nil: none is asked).
struct AdoptObjects {
  std::vector<ObjectId> objects;
  ProcessAddress owner;  // The sender.
  JobId job;
  ProcessAddress source;
};

// What the receiver owns and lies with this node is to move to one of the targets.
struct Evacuate {
  NodeId node;
  std::vector<ProcessAddress> targets;  // Workers; the one with the most room first.
  ProcessId worker;  // The node's. What one before it had is lost, and not to be moved.
};

// The refs inside results, which their producer holds for the results' owner.
struct HeldRef {
  ObjectId result;
  ObjectId object;
  ProcessAddress owner;  // Of the object.
};
struct HeldRefs {
  std::vector<HeldRef> items;
};

struct FetchChunk {
  ObjectId object;
  JobId job;  // Whose it is.
  uint64_t offset_bytes = 0;
  uint64_t length_bytes = 0;
  bool compress = false;  // If it pays.
  uint64_t wait_us = 0;   // How long to wait for a pull that has not begun.
};

// Its bytes travel beside it (transport::Bulk), so that nothing copies them.
struct Chunk {
  uint64_t object_bytes = 0;
  uint64_t checksum = 0;  // Of the raw bytes.
  Bytes obsolete_data;
  std::string codec = {};  // Of what travels: "" (raw), lz4.
  uint64_t raw_bytes = 0;  // With a codec.
};

struct AttachProcess {
  std::string kind;
  uint32_t pid = 0;
  ProcessAddress address;
};

struct Attached {
  NodeId node;
  std::string node_name;
  ClusterId cluster;
  std::vector<std::string> heads;  // HOST:PORT each; one of them leads.
  std::string host;
  std::string certificate_pem;
  std::string key_pem;
  std::string authority_pem;
  std::string socket_path;  // Where this process listens; removed when it is gone.
};

struct OpenRing {
  ProcessId process;  // Of the same node.
};

struct RingOffer {
  ProcessId process;  // Who is at the other end.
  std::string name;   // Of its user.
  uint32_t pid = 0;
  uint32_t side = 0;
  uint32_t index = 0;  // Of the receiver's doorbell; peer_index of the other one's.
  uint32_t peer_index = 0;
};

struct ReadLog {
  ProcessId process;
  ActorId actor;
  uint64_t offset_bytes = 0;
  bool follow = false;
};

struct LogChunk {
  Bytes data;
  uint64_t offset_bytes = 0;
};

struct CollectiveChunk {
  std::string group;
  uint64_t generation = 0;
  uint64_t sequence = 0;
  uint32_t rank = 0;
  Bytes data;
};

struct DeploymentSpec {
  std::string name;
  std::string module;
  std::string class_name;
  std::string config;  // JSON, for the plugin alone.
  uint32_t replicas = 1;
  std::vector<ResourceAmount> demand;
  std::vector<NamedValue> environment;
};

struct DeploymentInfo {
  DeploymentSpec spec;
  std::string state;  // starting, ready, updating, degraded, failed.
  std::string reason;
  std::vector<ActorInfo> replicas;
  uint64_t version = 0;
};

struct BundleSpec {
  std::vector<ResourceAmount> demand;
};

struct PlacementGroupSpec {
  PlacementGroupId group;
  JobId job;
  std::string name;
  std::string name_space;
  std::vector<BundleSpec> bundles;
  std::string strategy;  // "" or pack, spread, strict_pack, strict_spread.
  int32_t priority = 0;
  bool detached = false;
  bool capture = false;
  std::vector<LabelSelector> selectors;  // Of every bundle's node.
};

struct BundlePlace {
  NodeId node;
  std::vector<uint32_t> devices;
};

struct PlacementGroupInfo {
  PlacementGroupSpec spec;
  std::string state;   // pending, placed, rescheduling.
  std::string reason;  // Why it waits.
  std::vector<BundlePlace> places;
  uint32_t grant = 0;  // How often its bundles were granted anew.
  uint64_t created_unix_us = 0;
};

struct PlacementGroupSpecs {
  std::vector<PlacementGroupSpec> items;
};
struct PlacementGroupResults {
  std::vector<ErrorInfo> items;  // Code 0: done.
};

struct GetPlacementGroup {
  PlacementGroupId group;
  std::string name;
  std::string name_space;
  bool wait = false;  // Until it is placed.
};

struct RemovePlacementGroups {
  std::vector<PlacementGroupId> groups;
};

struct PlacementGroupList {
  std::vector<PlacementGroupInfo> items;
};

struct NameOf {
  std::string name;
};

struct NodeList {
  std::vector<NodeInfo> items;
};
struct ActorList {
  std::vector<ActorInfo> items;
};
struct JobList {
  std::vector<JobInfo> items;
};
struct DeploymentList {
  std::vector<DeploymentInfo> items;
};

struct PendingInfo {
  RawId id;
  std::string kind;
  std::string reason;
};

// One of several heads, as the one that leads sees it.
struct HeadInfo {
  std::string name;
  std::string role;  // leads, follows, away.
  bool in_sync = false;
  uint64_t behind = 0;  // Batches that it has not confirmed.
};

struct ClusterInfo {
  ClusterId cluster;
  uint64_t epoch = 0;
  std::string version;
  uint64_t started_unix_us = 0;
  uint32_t pid = 0;
  uint32_t nodes = 0;
  uint32_t actors = 0;
  uint32_t jobs_running = 0;
  uint32_t leases = 0;
  uint32_t deployments = 0;
  std::vector<PendingInfo> pending;
  uint32_t placement_groups = 0;
  std::vector<HeadInfo> heads;  // Empty: there is but one.
};

// A head that stands by to the one that leads: where its copy of the tables ends (0: it has none).
struct FollowLeader {
  std::string name;
  uint64_t term = 0;
  uint64_t sequence = 0;
};

struct Following {
  uint64_t term = 0;
  uint64_t sequence = 0;    // Where the leader's tables end.
  bool whole_copy = false;  // What comes first replaces everything.
};

struct RowChange {
  uint32_t table = 0;
  std::string key;
  std::string value;
  bool is_erased = false;
};

// The leader to one that follows it: what becomes true together, and which place that is. Answered
// when it is durable.
struct Replicate {
  uint64_t term = 0;
  uint64_t sequence = 0;
  bool is_copy = false;  // A part of the whole copy; the last one names its place.
  std::vector<RowChange> changes;
};

struct TransferLead {
  std::string to;  // Empty: whoever has everything.
};

// The folder's path is absolute, on the head's machine.
struct BackUp {
  std::string folder;
  uint32_t keep = 0;
};

struct BackedUp {
  uint32_t number = 0;
  ClusterId cluster;
  uint64_t schema = 0;
  uint64_t epoch = 0;
  uint64_t taken_unix_us = 0;
  std::string state_hash;
  uint64_t size_bytes = 0;
  uint64_t copied_bytes = 0;
};

struct Explain {
  RawId id;
};

// About calls that a process has taken; with no tasks: about all, or all of the actor.
struct ExplainCalls {
  ActorId actor;
  std::vector<TaskId> tasks;
};

struct WaitsFor {
  std::string kind;  // object, call, actor, lease, process.
  RawId id;
  std::string name;
  ProcessAddress at;  // Who to ask next; without a process: the head.
};

struct Explanation {
  std::string kind;  // As in WaitsFor, or node, job, placement group.
  RawId id;
  std::string name;          // For people.
  std::string state;         // One word or two: queued, running, waiting, alive, ...
  std::string why;           // A sentence.
  uint64_t since_us = 0;     // How long it has been so; 0: not known.
  uint64_t deadline_us = 0;  // What is left until its deadline; 0: none.
  std::vector<WaitsFor> waits_for;
};

struct Explanations {
  std::vector<Explanation> items;
};

struct GetTimelines {
  JobId job;  // Nil: of all.
};

// What one process noted, oldest first.
struct ProcessTimeline {
  ProcessAddress process;
  std::string kind;
  uint32_t pid = 0;
  JobId job;
  std::string node_name;
  std::vector<std::string> names;  // That the records refer to.
  Bytes records;
  uint64_t lost = 0;  // Records that newer ones overwrote.
  bool ended = false;
};

}  // namespace troupe::protocol
