// The last checkpoint of each actor: fetched from the actor's worker, kept in a file, and given to
// the worker that starts it again.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>

#include "head/actors.h"
#include "head/options.h"
#include "head/replicator.h"
#include "packages/folder.h"
#include "packages/transfer.h"
#include "transport/peer.h"
#include "transport/semaphore.h"

namespace troupe::head {

class Checkpoints {
 public:
  // All outlive it; `replicator` is null for the only head.
  Checkpoints(transport::Environment environment, const HeadOptions& options, Scope& scope,
              Journal& journal, Actors& actors, Replicator* replicator);

  // Opens the folder and removes what no actor names, once the actors are restored. Errors: those
  // of Folder::open.
  Async<Status> start();

  // From the worker of the actor: the file and the actor's row are durable on return, here and at
  // the other heads that may lead, and the checkpoint before it is gone; whatever fails, it stays.
  // Errors: those of Actors::may_checkpoint, invalid (too large), exhausted (the disk is full),
  // data_loss (other bytes came), those of the transfer.
  Async<Result<protocol::Checkpoint>> store(protocol::StoreCheckpoint request,
                                            transport::CallContext call);
  // Answers get_package of an actor. Errors: not_found (it has no such checkpoint), data_loss (it
  // has, and the file is not here).
  Async<Status> give(protocol::GetPackage request, transport::OutgoingStream& out);
  // Answers get_package of a head that stands by. Errors: not_found (no row names it any more),
  // data_loss (one does, and the file is not here).
  Async<Status> copy(protocol::GetPackage request, transport::OutgoingStream& out);
  // Of a dead one the checkpoint goes.
  void actor_changed(const Actor& actor);

 private:
  // Each holds a descriptor.
  static constexpr size_t fetches_max = 32;

  // Keeps a file that nobody names yet.
  class Hold {
   public:
    Hold(Checkpoints& owner, std::string hash) : owner_(owner), hash_(std::move(hash)) {
      ++owner_.uses_[hash_];
    }
    ~Hold() { owner_.release(hash_); }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    Checkpoints& owner_;
    const std::string hash_;
  };

  // Errors: cancelled.
  Status is_waited_for(const transport::CallContext& call) const;
  Async<Status> fetch(protocol::StoreCheckpoint request, std::shared_ptr<transport::Peer> worker);
  Async<void> bring_to_others(protocol::StoreCheckpoint request);
  // One use less; the file goes with the last.
  void release(const std::string& hash);
  Async<void> release_once_durable(std::string hash, Journal::Ticket written);
  Async<void> remove(std::string hash);

  transport::Environment environment_;
  const HeadOptions& options_;
  Scope& scope_;
  Journal& journal_;
  Actors& actors_;
  Replicator* const replicator_;
  Semaphore fetches_;
  uint64_t fetching_bytes_ = 0;  // Of those under way.
  std::optional<packages::Folder> folder_;
  std::map<ActorId, std::string> hashes_;  // As the rows name them.
  // By hash: how many rows name it, also those that are not replaced durably yet, and how many it
  // is on its way for.
  std::map<std::string, size_t> uses_;
  std::set<std::string> removing_;
  Event removed_;
};

}  // namespace troupe::head
