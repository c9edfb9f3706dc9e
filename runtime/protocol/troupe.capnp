# Every message that crosses a process boundary or reaches a disk.
# Fields are added at the end only; never renumbered, retyped or reused. Zero means "unset".
# Ids are 16-byte Data, durations are relative microseconds, amounts are integer thousandths.
@0xd6a4d0a7c5b1e2f3;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("troupe::schema");

struct ErrorInfo {
  code @0 :UInt32;
  message @1 :Text;
  where @2 :Text;
  retryAfterUs @3 :UInt64;
}

# What precedes a message's opaque body on a connection.
struct Frame {
  kind @0 :UInt32;
  call @1 :UInt64;
  method @2 :UInt32;
  budgetUs @3 :UInt64;
  traceId @4 :Data;
  credit @5 :UInt32;
  descriptors @6 :UInt32;
  error @7 :ErrorInfo;
  bulkBytes @8 :UInt32;
}

struct ProcessAddress {
  process @0 :Data;
  node @1 :Data;
  unixPath @2 :Text;
  host @3 :Text;
  port @4 :UInt16;
}

# The first message of each side of a connection.
struct Hello {
  protocolVersion @0 :UInt32;
  features @1 :UInt64;
  kind @2 :Text;
  address @3 :ProcessAddress;
  job @4 :Data;
  cluster @5 :Data;
  pid @6 :UInt32;
}

struct Empty {}

struct ResourceAmount {
  name @0 :Text;
  milli @1 :Int64;
}

struct NamedValue {
  name @0 :Text;
  value @1 :Text;
}

# --- Placement ---------------------------------------------------------------------------------

struct LabelSelector {
  key @0 :Text;
  test @1 :Text;
  values @2 :List(Text);
  soft @3 :Bool;
}

# Where a task or actor may go. `bundle` is its number in the group plus one; 0: any.
# The head fills in `grant` and `capture` for the worker and its process.
struct PlacementSpec {
  selectors @0 :List(LabelSelector);
  node @1 :Data;
  nodeSoft @2 :Bool;
  group @3 :Data;
  bundle @4 :UInt32;
  grant @5 :UInt32;
  capture @6 :Bool;
  outside @7 :Bool;
}

# --- Nodes -----------------------------------------------------------------------------------

struct RunningActor {
  actor @0 :Data;
  incarnation @1 :UInt32;
  address @2 :ProcessAddress;
  pid @3 :UInt32;
}

struct RunningSlot {
  lease @0 :Data;
  job @1 :Data;
  demand @2 :List(ResourceAmount);
  devices @3 :List(UInt32);
  address @4 :ProcessAddress;
  pid @5 :UInt32;
  placement @6 :PlacementSpec;
  stopping @7 :Bool;
}

struct RegisterNode {
  address @0 :ProcessAddress;
  name @1 :Text;
  total @2 :List(ResourceAmount);
  labels @3 :List(NamedValue);
  version @4 :Text;
  pid @5 :UInt32;
  actors @6 :List(RunningActor);
  slots @7 :List(RunningSlot);
  starting @8 :List(RunningActor);  # Without an address yet.
  sequence @9 :UInt64;
}

struct NodeRegistered {
  cluster @0 :Data;
  epoch @1 :UInt64;
  heartbeatUs @2 :UInt64;
  windowUs @3 :UInt64;
}

struct Heartbeat {
  node @0 :Data;
  epoch @1 :UInt64;
  sequence @2 :UInt64;
  storeUsedBytes @3 :UInt64;
  storeCapacityBytes @4 :UInt64;
  memoryUsedBytes @5 :UInt64;
  cpuUsedMilli @6 :UInt64;
  gauges @7 :List(ActorGauges);
  storeSpilledBytes @8 :UInt64;
}

struct Gauge {
  name @0 :Text;
  value @1 :Float64;
}

# From an actor's process to its worker, and on to the head with a heartbeat: all that it has set.
struct ActorGauges {
  actor @0 :Data;
  incarnation @1 :UInt32;
  gauges @2 :List(Gauge);
}

struct HeartbeatReply {
  epoch @0 :UInt64;
  registerAgain @1 :Bool;
}

struct ProcessExited {
  node @0 :Data;
  epoch @1 :UInt64;
  process @2 :Data;
  actor @3 :Data;
  incarnation @4 :UInt32;
  lease @5 :Data;
  reason @6 :Text;
}

struct NodeInfo {
  address @0 :ProcessAddress;
  name @1 :Text;
  state @2 :Text;
  total @3 :List(ResourceAmount);
  available @4 :List(ResourceAmount);
  labels @5 :List(NamedValue);
  actors @6 :UInt32;
  slots @7 :UInt32;
  storeUsedBytes @8 :UInt64;
  storeCapacityBytes @9 :UInt64;
  memoryUsedBytes @10 :UInt64;
  cpuUsedMilli @11 :UInt64;
  version @12 :Text;
  pid @13 :UInt32;
  storeSpilledBytes @14 :UInt64;
  draining @15 :Bool;
}
# To the head, from an operator.
struct DrainNode {
  node @0 :Data;
  undo @1 :Bool;
}

# --- Jobs ------------------------------------------------------------------------------------

struct BeginJob {
  job @0 :Data;
  name @1 :Text;
  entrypoint @2 :Text;
  nameSpace @3 :Text;
  environment @4 :JobEnvironment;
}

# What the processes of a job find around them. Files are named by what is in them, so that a node
# gets each once; who lacks one asks the head, and the head the job's driver.
struct Package {
  hash @0 :Text;
  kind @1 :Text;
  path @2 :Text;
  sizeBytes @3 :UInt64;
}
struct JobEnvironment {
  variables @0 :List(NamedValue);
  packages @1 :List(Package);
  logToDriver @2 :Bool;
}
struct GetJob { job @0 :Data; }
# Answered with a stream of PackageChunk. With an actor: of its checkpoint.
struct GetPackage {
  job @0 :Data;
  hash @1 :Text;
  offsetBytes @2 :UInt64;
  actor @3 :Data;
}
struct PackageChunk {
  data @0 :Data;
  offsetBytes @1 :UInt64;
  totalBytes @2 :UInt64;
}

# From a worker to a job's driver: what processes wrote since the last.
struct ProcessLines {
  process @0 :Data;
  actor @1 :Data;
  pid @2 :UInt32;
  name @3 :Text;
  lines @4 :List(Text);
  lost @5 :UInt64;
}
struct JobLogs {
  job @0 :Data;
  node @1 :Data;
  nodeName @2 :Text;
  items @3 :List(ProcessLines);
}

struct EndJob {
  job @0 :Data;
  succeeded @1 :Bool;
  message @2 :Text;
}

struct JobInfo {
  job @0 :Data;
  name @1 :Text;
  entrypoint @2 :Text;
  nameSpace @3 :Text;
  state @4 :Text;
  message @5 :Text;
  startedUnixUs @6 :UInt64;
  endedUnixUs @7 :UInt64;
  driver @8 :ProcessAddress;
  environment @9 :JobEnvironment;
}

# --- Actors ----------------------------------------------------------------------------------

struct Argument {
  inline @0 :Data;
  object @1 :Data;
  owner @2 :ProcessAddress;
}

struct ActorSpec {
  actor @0 :Data;
  job @1 :Data;
  name @2 :Text;
  nameSpace @3 :Text;
  module @4 :Text;
  className @5 :Text;
  arguments @6 :List(Argument);
  signature @7 :UInt64;
  demand @8 :List(ResourceAmount);
  priority @9 :Int32;
  maxRestarts @10 :Int32;
  detached @11 :Bool;
  getIfExists @12 :Bool;
  environment @13 :List(NamedValue);
  strategy @14 :Text;
  node @15 :Data;
  deployment @16 :Text;
  placement @17 :PlacementSpec;
  concurrency @18 :UInt32;
  shared @19 :Bool;
  outOfOrder @20 :Bool;
  mailboxCallsMax @21 :UInt32;
  groups @22 :List(ConcurrencyGroup);
  exitGraceUs @23 :UInt64;
  checkpointIntervalUs @24 :UInt64;
  isolationLimitUs @25 :UInt64;
}

# The last state of an actor that the head has. Its directory is one archive, named as a package is.
struct Checkpoint {
  number @0 :UInt64;
  hash @1 :Text;
  sizeBytes @2 :UInt64;
  takenUnixUs @3 :UInt64;
  incarnation @4 :UInt32;
}

# From the actor's process to its worker, with the archive beside it, and from there to the head.
# Answered by the Checkpoint once that is durable.
struct StoreCheckpoint {
  node @0 :Data;
  epoch @1 :UInt64;
  actor @2 :Data;
  incarnation @3 :UInt32;
  hash @4 :Text;
  sizeBytes @5 :UInt64;
}

struct ConcurrencyGroup {
  name @0 :Text;
  limit @1 :UInt32;
}

struct ActorInfo {
  actor @0 :Data;
  job @1 :Data;
  name @2 :Text;
  nameSpace @3 :Text;
  module @4 :Text;
  className @5 :Text;
  state @6 :Text;
  incarnation @7 :UInt32;
  address @8 :ProcessAddress;
  pid @9 :UInt32;
  reason @10 :Text;
  deployment @11 :Text;
  createdUnixUs @12 :UInt64;
  gauges @13 :List(Gauge);
  checkpoint @14 :Checkpoint;
}

# Answered once the actor is alive in an incarnation above `after`, or dead.
struct GetActor {
  actor @0 :Data;
  name @1 :Text;
  nameSpace @2 :Text;
  after @3 :UInt32;
}

struct KillActor {
  actor @0 :Data;
  reason @1 :Text;
}

# What the head keeps of an actor.
struct ActorRecord {
  spec @0 :ActorSpec;
  info @1 :ActorInfo;
}

# Head to worker.
struct StartActor {
  epoch @0 :UInt64;
  incarnation @1 :UInt32;
  spec @2 :ActorSpec;
  devices @3 :List(UInt32);
  bundle @4 :UInt32;
  grant @5 :UInt32;
  checkpoint @6 :Checkpoint;
}

# `slot`: of a lease, the slot's number plus one.
struct ProcessStarted {
  address @0 :ProcessAddress;
  pid @1 :UInt32;
  slot @2 :UInt32;
}

struct ActorSpecs {
  items @0 :List(ActorSpec);
}
struct ActorResult {
  info @0 :ActorInfo;
  error @1 :ErrorInfo;
}
struct ActorResults {
  items @0 :List(ActorResult);
}
struct ActorIds {
  actors @0 :List(Data);
  reason @1 :Text;
}

struct StartActors {
  items @0 :List(StartActor);
}
struct StartedActor {
  actor @0 :Data;
  incarnation @1 :UInt32;
  process @2 :ProcessStarted;
  error @3 :ErrorInfo;
}
struct ActorsStarted {
  items @0 :List(StartedActor);
}

struct StopActor {
  epoch @0 :UInt64;
  actor @1 :Data;
  incarnation @2 :UInt32;
  graceUs @3 :UInt64;
  save @4 :Bool;
}

# --- Leases on slots -------------------------------------------------------------------------

struct StopActors {
  items @0 :List(StopActor);
}

struct RequestLease {
  lease @0 :Data;
  job @1 :Data;
  module @2 :Text;
  demand @3 :List(ResourceAmount);
  slots @4 :UInt32;
  priority @5 :Int32;
  placement @6 :PlacementSpec;
}

struct Slot {
  address @0 :ProcessAddress;
}

struct LeaseGranted {
  lease @0 :Data;
  slots @1 :List(Slot);
  quantumUs @2 :UInt64;
}

struct RenewLease {
  lease @0 :Data;
}

# An empty list of processes gives the whole lease back.
struct ReturnLease {
  lease @0 :Data;
  processes @1 :List(Data);
}

# From the process of a slot: its task waits for others, or goes on. The latest sequence counts.
struct SlotWaits {
  lease @0 :Data;
  waiting @1 :Bool;
  sequence @2 :UInt64;
}

# Head to worker.
struct YieldSlots {
  demand @0 :List(ResourceAmount);
  priority @1 :Int32;
  node @2 :Data;
}

# A slot's number is never used twice within its lease. `bundle` as in PlacementSpec.
struct SlotToStart {
  number @0 :UInt32;
  devices @1 :List(UInt32);
  bundle @2 :UInt32;
}

# Head to worker. With `slots` given, `count` and `devices` only repeat them.
struct StartSlots {
  epoch @0 :UInt64;
  lease @1 :Data;
  job @2 :Data;
  module @3 :Text;
  demand @4 :List(ResourceAmount);
  count @5 :UInt32;
  devices @6 :List(UInt32);
  slots @7 :List(SlotToStart);
  placement @8 :PlacementSpec;
}

struct SlotsStarted {
  processes @0 :List(ProcessStarted);
}

# With `endTasks` the processes end even if they run a task, and are not used again.
struct StopSlots {
  epoch @0 :UInt64;
  lease @1 :Data;
  processes @2 :List(Data);
  endTasks @3 :Bool;
}

# --- Calls -----------------------------------------------------------------------------------

# To an actor, or, with no actor set, of a task to a leased slot.
struct Invoke {
  actor @0 :Data;
  incarnation @1 :UInt32;
  method @2 :Text;
  signature @3 :UInt64;
  arguments @4 :List(Argument);
  task @5 :Data;
  job @6 :Data;
  result @7 :Data;
  results @8 :UInt32;
  timeLimitUs @9 :UInt64;
  name @10 :Text;
  graceUs @11 :UInt64;
  itemsMax @12 :UInt32;
}

# A result: inline, or sealed in the object store of a node under the id that the caller chose.
struct InvokeReply {
  inline @0 :Data;
  node @1 :ProcessAddress;
  sizeBytes @2 :UInt64;
  borrowed @3 :List(Data);
  more @4 :List(ObjectValue);
}

# Worker to its fork server, one packet each. Descriptors beside it: what the process has as its connection, its log,
# and, if it does not start where the worker did, its working folder.
struct ForkProcess {
  process @0 :Data;
  environment @1 :List(NamedValue);
}
struct ProcessForked {
  pid @0 :UInt32;
  errorNumber @1 :UInt32;
}

struct StopProcess {
  graceUs @0 :UInt64;
  ifUnneeded @1 :Bool;
  save @2 :Bool;
}

# Worker to the actor process that it started.
struct AssignActor {
  incarnation @0 :UInt32;
  spec @1 :ActorSpec;
  checkpoint @2 :Checkpoint;
  restoreFrom @3 :Text;
  checkpointFolder @4 :Text;
}

struct AssignActors {
  items @0 :List(AssignActor);
}

struct EndActor {
  actor @0 :Data;
  incarnation @1 :UInt32;
  graceUs @2 :UInt64;
  save @3 :Bool;
}
struct EndActors {
  items @0 :List(EndActor);
}

struct StayUntil { monotonicNs @0 :Int64; }

struct AssignSlot {
  lease @0 :Data;
  job @1 :Data;
  module @2 :Text;
  placement @3 :PlacementSpec;
}

# --- Objects ---------------------------------------------------------------------------------

# To the owner, from who means to read them.
struct ResolveObjects {
  objects @0 :List(Data);
  reader @1 :ProcessAddress;
  missingAt @2 :Data;
}

struct ObjectValue {
  inline @0 :Data;
  node @1 :ProcessAddress;
  sizeBytes @2 :UInt64;
  inStore @3 :Bool;
  copies @4 :List(ProcessAddress);
  error @5 :ErrorInfo;
}

# Answered once the first is ready: as many as are, in order, and as fit. One that failed is the last.
struct ObjectValues {
  items @0 :List(ObjectValue);
}

# To the owner: the sender holds, no longer holds, waits for or frees these objects.
struct ObjectIds {
  objects @0 :List(Data);
}

# A worker to the owner: its node has a copy to read from, or has one no longer.
struct ObjectCopied {
  object @0 :Data;
  node @1 :ProcessAddress;
  dropped @2 :Bool;
}

# To a worker, or on to a process of its node: what it knows of objects. `job` nil: of all jobs.
struct ListObjects {
  job @0 :Data;
  limit @1 :UInt32;
}

struct ObjectEntry {
  object @0 :Data;
  job @1 :Data;
  owner @2 :ProcessAddress;
  ownerKind @3 :Text;
  sizeBytes @4 :UInt64;
  state @5 :Text;
  references @6 :UInt32;
  borrowers @7 :List(Data);
  pins @8 :UInt32;
  node @9 :Data;
  why @10 :Text;
}

struct ObjectList {
  items @0 :List(ObjectEntry);
  total @1 :UInt64;
}

# A process to its worker, whose segment came beside the request as a descriptor.
struct SegmentAttached {
  segment @0 :UInt64;
}

# A worker to a process of its node: nothing lies in these any more, let go of them.
struct DropSegments {
  segments @0 :List(UInt64);
}

# Answered with a Block of the sender's segment, which is the sender's until it returns or seals it.
struct ReserveExtent {
  sizeBytes @0 :UInt64;
}

struct Block {
  segment @0 :UInt64;
  offsetBytes @1 :UInt64;
  sizeBytes @2 :UInt64;
}

struct SealedBlock {
  object @0 :Data;
  owner @1 :Data;
  offsetBytes @2 :UInt64;
  sizeBytes @3 :UInt64;
  pinned @4 :Bool;
}
struct SealBlocks {
  segment @0 :UInt64;
  items @1 :List(SealedBlock);
}

struct Extent {
  offsetBytes @0 :UInt64;
  sizeBytes @1 :UInt64;
}
struct ReturnExtents {
  segment @0 :UInt64;
  items @1 :List(Extent);
}

# Answered with a Block once it is sealed here; pulled from `source` first if it is elsewhere.
# The segment's descriptor comes beside the answer unless the segment is among those held.
struct GetBlock {
  object @0 :Data;
  source @1 :ProcessAddress;
  segmentsHeld @2 :List(UInt64);
  owner @3 :ProcessAddress;
  copies @4 :List(ProcessAddress);
}

struct ReleaseBlocks {
  objects @0 :List(Data);
  owner @1 :Data;
}

# The owner of objects to a worker; answered by ObjectIds: those that it holds for the owner from now on.
struct AdoptObjects {
  objects @0 :List(Data);
  owner @1 :ProcessAddress;
  job @2 :Data;
  source @3 :ProcessAddress;
}

# The head to workers, and each on to its processes.
struct Evacuate {
  node @0 :Data;
  targets @1 :List(ProcessAddress);
  worker @2 :Data;
}

struct HeldRef {
  result @0 :Data;
  object @1 :Data;
  owner @2 :ProcessAddress;
}
struct HeldRefs { items @0 :List(HeldRef); }

# Worker to worker.
struct FetchChunk {
  object @0 :Data;
  job @1 :Data;
  offsetBytes @2 :UInt64;
  lengthBytes @3 :UInt64;
  compress @4 :Bool;
  waitUs @5 :UInt64;
}

struct Chunk {
  objectBytes @0 :UInt64;
  checksum @1 :UInt64;
  obsoleteData @2 :Data;
  codec @3 :Text;
  rawBytes @4 :UInt64;
}

# --- A process and its worker ----------------------------------------------------------------

struct AttachProcess {
  kind @0 :Text;
  pid @1 :UInt32;
  address @2 :ProcessAddress;
}

# Credentials of the node, for processes of the same user that came through its Unix socket.
struct Attached {
  node @0 :Data;
  nodeName @1 :Text;
  cluster @2 :Data;
  heads @3 :List(Text);
  host @4 :Text;
  certificatePem @5 :Text;
  keyPem @6 :Text;
  authorityPem @7 :Text;
  socketPath @8 :Text;
}

struct OpenRing {
  process @0 :Data;
}

struct RingOffer {
  process @0 :Data;
  name @1 :Text;
  pid @2 :UInt32;
  side @3 :UInt32;
  index @4 :UInt32;
  peerIndex @5 :UInt32;
}

struct ReadLog {
  process @0 :Data;
  actor @1 :Data;
  offsetBytes @2 :UInt64;
  follow @3 :Bool;
}

struct LogChunk {
  data @0 :Data;
  offsetBytes @1 :UInt64;
}

# --- Collectives -----------------------------------------------------------------------------

struct CollectiveChunk {
  group @0 :Text;
  generation @1 :UInt64;
  sequence @2 :UInt64;
  rank @3 :UInt32;
  data @4 :Data;
}

# --- Deployments -----------------------------------------------------------------------------

struct DeploymentSpec {
  name @0 :Text;
  module @1 :Text;
  className @2 :Text;
  config @3 :Text;
  replicas @4 :UInt32;
  demand @5 :List(ResourceAmount);
  environment @6 :List(NamedValue);
}

struct DeploymentInfo {
  spec @0 :DeploymentSpec;
  state @1 :Text;
  reason @2 :Text;
  replicas @3 :List(ActorInfo);
  version @4 :UInt64;
}

struct NameOf {
  name @0 :Text;
}

# --- Placement groups --------------------------------------------------------------------------

struct BundleSpec {
  demand @0 :List(ResourceAmount);
}

struct PlacementGroupSpec {
  group @0 :Data;
  job @1 :Data;
  name @2 :Text;
  nameSpace @3 :Text;
  bundles @4 :List(BundleSpec);
  strategy @5 :Text;
  priority @6 :Int32;
  detached @7 :Bool;
  capture @8 :Bool;
  selectors @9 :List(LabelSelector);
}

struct BundlePlace {
  node @0 :Data;
  devices @1 :List(UInt32);
}

# `grant` counts how often its bundles were granted anew.
struct PlacementGroupInfo {
  spec @0 :PlacementGroupSpec;
  state @1 :Text;
  reason @2 :Text;
  places @3 :List(BundlePlace);
  grant @4 :UInt32;
  createdUnixUs @5 :UInt64;
}

# Many at once share a write. Each has its result, in the same order; code 0 is success.
struct PlacementGroupSpecs { items @0 :List(PlacementGroupSpec); }
struct PlacementGroupResults { items @0 :List(ErrorInfo); }

# With `wait`, answered once it is placed.
struct GetPlacementGroup {
  group @0 :Data;
  name @1 :Text;
  nameSpace @2 :Text;
  wait @3 :Bool;
}

struct RemovePlacementGroups { groups @0 :List(Data); }

struct PlacementGroupList { items @0 :List(PlacementGroupInfo); }

# --- Lists and status ------------------------------------------------------------------------

struct NodeList { items @0 :List(NodeInfo); }
struct ActorList { items @0 :List(ActorInfo); }
struct JobList { items @0 :List(JobInfo); }
struct DeploymentList { items @0 :List(DeploymentInfo); }

struct PendingInfo {
  id @0 :Data;
  kind @1 :Text;
  reason @2 :Text;
}

struct ClusterInfo {
  cluster @0 :Data;
  epoch @1 :UInt64;
  version @2 :Text;
  startedUnixUs @3 :UInt64;
  pid @4 :UInt32;
  nodes @5 :UInt32;
  actors @6 :UInt32;
  jobsRunning @7 :UInt32;
  leases @8 :UInt32;
  deployments @9 :UInt32;
  pending @10 :List(PendingInfo);
  placementGroups @11 :UInt32;
  heads @12 :List(HeadInfo);
}

# --- Heads that stand by -------------------------------------------------------------------------

# One of several heads, as the one that leads sees it.
struct HeadInfo {
  name @0 :Text;
  role @1 :Text;
  inSync @2 :Bool;
  behind @3 :UInt64;
}

# A head that stands by to the one that leads: the place where its copy ends. Answered with
# Following; what it lacks comes as Replicate, over the same connection.
struct FollowLeader {
  name @0 :Text;
  term @1 :UInt64;
  sequence @2 :UInt64;
}
struct Following {
  term @0 :UInt64;
  sequence @1 :UInt64;
  wholeCopy @2 :Bool;
}
struct RowChange {
  table @0 :UInt32;
  key @1 :Text;
  value @2 :Text;
  isErased @3 :Bool;
}
struct Replicate {
  term @0 :UInt64;
  sequence @1 :UInt64;
  isCopy @2 :Bool;
  changes @3 :List(RowChange);
}
# From an operator, to the head that leads.
struct TransferLead {
  to @0 :Text;
}

# To the head; answered with BackedUp. `keep`: so many backups stay; 0: all.
struct BackUp {
  folder @0 :Text;
  keep @1 :UInt32;
}
struct BackedUp {
  number @0 :UInt32;
  cluster @1 :Data;
  schema @2 :UInt64;
  epoch @3 :UInt64;
  takenUnixUs @4 :UInt64;
  stateHash @5 :Text;
  sizeBytes @6 :UInt64;
  copiedBytes @7 :UInt64;
}

# --- Why something waits, and what happened when -----------------------------------------------

struct Explain { id @0 :Data; }
# About calls that a process has taken; none: about all of them.
struct ExplainCalls {
  actor @0 :Data;
  tasks @1 :List(Data);
}
# `at` is the process to be asked next.
struct WaitsFor {
  kind @0 :Text;
  id @1 :Data;
  name @2 :Text;
  at @3 :ProcessAddress;
}
struct Explanation {
  kind @0 :Text;
  id @1 :Data;
  name @2 :Text;
  state @3 :Text;
  why @4 :Text;
  sinceUs @5 :UInt64;
  deadlineUs @6 :UInt64;
  waitsFor @7 :List(WaitsFor);
}
struct Explanations { items @0 :List(Explanation); }

struct GetTimelines { job @0 :Data; }
# What one process did, as it noted it in memory that outlives it: the records of
# base/timeline.h, oldest first.
struct ProcessTimeline {
  process @0 :ProcessAddress;
  kind @1 :Text;
  pid @2 :UInt32;
  job @3 :Data;
  nodeName @4 :Text;
  names @5 :List(Text);
  records @6 :Data;
  lost @7 :UInt64;
  ended @8 :Bool;
}
