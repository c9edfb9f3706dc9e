// Checkpoints on their way through this node: states that its actors have written, to the head, and
// those that actors which start here go on from.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "transport/environment.h"
#include "worker/actor_host.h"
#include "worker/head_link.h"
#include "worker/options.h"
#include "worker/package_cache.h"

namespace troupe::worker {

class Checkpoints {
 public:
  // All outlive it.
  Checkpoints(transport::Environment environment, Scope& scope, const WorkerOptions& options,
              const HeadLink& head, PackageCache& packages, const ActorHost& actors);

  // Makes the folder for states, and removes what an earlier worker's processes left in it.
  Async<Status> start();

  // Of one of the node's processes, with the archive beside it. Answered when the head has it
  // durably; a head that is away is waited for. Errors: denied (not its actor), invalid, those of
  // the head, deadline_exceeded.
  Async<Result<transport::Message>> store(transport::Message message, transport::CallContext call);
  // Answers the head's get_package for what is stored at the moment. Errors: not_found.
  Async<Status> give(transport::Message request, transport::OutgoingStream& out);
  // What an actor with a checkpoint goes on from, here and unpacked. Errors: those of
  // PackageCache::checkpoint, as data_loss if the head does not have it.
  Async<Result<CheckpointFolder>> bring(protocol::StartActor request, Instant deadline);
  // What it was writing goes.
  void process_gone(ProcessId process);

 private:
  Async<void> remove(std::string path);

  transport::Environment environment_;
  Scope& scope_;
  const WorkerOptions& options_;
  const HeadLink& head_;
  PackageCache& packages_;
  const ActorHost& actors_;
  std::multimap<std::string, packages::PackageFilePointer> offered_;  // By hash.
};

}  // namespace troupe::worker
