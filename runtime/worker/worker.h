// The worker: one a node. It hosts the node's actor processes and its object store, and answers the
// head, the node's processes and other nodes' workers.
#pragma once

#include <map>
#include <memory>

#include "transport/environment.h"
#include "transport/router.h"
#include "worker/actor_host.h"
#include "worker/checkpoints.h"
#include "worker/head_link.h"
#include "worker/job_environments.h"
#include "worker/log_forwarder.h"
#include "worker/logs.h"
#include "worker/memory_monitor.h"
#include "worker/object_service.h"
#include "worker/options.h"
#include "worker/package_cache.h"
#include "worker/process_launcher.h"
#include "worker/process_table.h"
#include "worker/ring_broker.h"
#include "worker/slot_host.h"
#include "worker/timelines.h"

namespace troupe::worker {

// Everything runs on the environment's loop. Stop it before it is destroyed.
class Worker {
 public:
  // `launcher` outlives the worker. The folders exist already.
  Worker(transport::Environment environment, ProcessLauncher& launcher, WorkerOptions options);

  // Listens, and begins to look for the head: it need not be there yet.
  // Errors: those of Network::listen.
  Async<Status> start();
  // Ends all processes: stop_process, SIGTERM, SIGKILL. Then returns.
  Async<void> stop();

  const protocol::ProcessAddress& address() const { return hello_.address; }
  const HeadLink& head() const { return head_; }
  size_t processes() const { return processes_.size(); }
  object_store::Stats store() const { return objects_.stats(); }
  // To other nodes.
  uint64_t store_sent_bytes() const { return objects_.sent_bytes(); }

 private:
  using CallContext = transport::CallContext;
  using Message = transport::Message;

  // Who may come in, and what happens when they go.
  class Door final : public transport::Router {
   public:
    explicit Door(Worker& worker) : worker_(worker) {}
    Status accept_peer(const protocol::Hello& hello,
                       const transport::PeerIdentity& identity) override;
    void peer_closed(transport::Peer& peer) override { worker_.peer_closed(peer); }

   private:
    Worker& worker_;
  };

  void answer_methods();
  Async<void> accept_from(transport::Listener* listener);
  Async<void> greet(std::unique_ptr<transport::Connection> connection);
  void peer_closed(transport::Peer& peer);
  void process_exited(HostedProcess& process);
  protocol::RegisterNode registration();
  Async<void> end_finished_jobs();
  void forget_job(JobId job);
  std::string socket_of(ProcessId process) const;
  // Makes ready what the process of a module needs; then the head's request must still count.
  Async<Result<Surroundings>> prepare(JobId job, std::string module, uint64_t epoch,
                                      CallContext call);
  // The checkpoint that the actor goes on from; the same holds.
  Async<Result<CheckpointFolder>> bring(protocol::StartActor request, CallContext call);
  Result<object_store::Caller> caller_of(const CallContext& call) const;

  // The head's.
  Async<Result<protocol::ProcessStarted>> start_actor(protocol::StartActor, CallContext);
  Async<Result<protocol::Empty>> stop_actor(protocol::StopActor, CallContext);
  Async<Status> start_actors(Message, CallContext, transport::OutgoingStream&);
  Async<Result<protocol::Empty>> stop_actors(protocol::StopActors, CallContext);
  Async<Result<protocol::SlotsStarted>> start_slots(protocol::StartSlots, CallContext);
  Async<Result<protocol::Empty>> stop_slots(protocol::StopSlots, CallContext);
  Async<Status> get_package(Message, CallContext, transport::OutgoingStream&);
  Async<Status> get_timelines(Message, CallContext, transport::OutgoingStream&);
  Async<Result<protocol::Empty>> report_gauges(protocol::ActorGauges, CallContext);
  Async<Result<protocol::Empty>> job_ended(protocol::EndJob, CallContext);
  Async<Result<protocol::Empty>> evacuate(protocol::Evacuate, CallContext);
  Async<Result<protocol::Empty>> flush_logs(protocol::JobLogs, CallContext);
  Async<Result<protocol::ObjectList>> list_objects(protocol::ListObjects, CallContext);
  // The node's processes'.
  Async<Result<protocol::Attached>> attach_process(protocol::AttachProcess, CallContext);
  Async<Result<Message>> attach_timeline(Message, CallContext);
  Async<Result<Message>> attach_segment(Message, CallContext);
  Async<Result<protocol::Block>> reserve_extent(protocol::ReserveExtent, CallContext);
  Async<Result<protocol::Empty>> seal_blocks(protocol::SealBlocks, CallContext);
  Async<Result<protocol::Empty>> return_extents(protocol::ReturnExtents, CallContext);
  Async<Result<Message>> get_block(Message, CallContext);
  Async<Result<protocol::Empty>> release_blocks(protocol::ReleaseBlocks, CallContext);
  Async<Result<protocol::ObjectIds>> adopt_objects(protocol::AdoptObjects, CallContext);
  // Other workers'.
  Async<Result<Message>> fetch_chunk(Message, CallContext);

  transport::Environment environment_;
  ProcessLauncher& launcher_;
  WorkerOptions options_;
  Scope scope_;
  Door door_;
  protocol::Hello hello_;
  HeadLink head_;
  PackageCache packages_;
  JobEnvironments environments_;
  LogForwarder forwarder_;
  Logs logs_;
  ProcessTable processes_;
  ActorHost actors_;
  Checkpoints checkpoints_;
  SlotHost slots_;
  MemoryMonitor memory_;
  ObjectService objects_;
  RingBroker rings_;
  Timelines timelines_;
  std::vector<std::unique_ptr<transport::Listener>> listeners_;
  std::map<ProcessId, int> local_connections_;
  std::map<ProcessId, std::weak_ptr<transport::Peer>> attached_;  // The node's processes.
  bool stopping_ = false;
};

}  // namespace troupe::worker
