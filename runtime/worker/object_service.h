// This node's object store, as its processes and the other nodes' workers see it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>

#include "object_store/object_table.h"
#include "object_store/segment.h"
#include "transport/environment.h"
#include "transport/peer.h"
#include "worker/object_puller.h"
#include "worker/object_spiller.h"
#include "worker/options.h"

namespace troupe::worker {

// A segment as the worker reads it, from any thread: to send it, and to spill it.
class SharedReader {
 public:
  explicit SharedReader(object_store::ReaderSegment segment) : segment_(std::move(segment)) {}
  int fd() const { return segment_.fd(); }
  // As ReaderSegment::view. May take a while: pages are faulted in.
  Result<BytesView> view(uint64_t offset_bytes, uint64_t size_bytes) {
    const std::lock_guard lock{mutex_};
    return segment_.view(offset_bytes, size_bytes);
  }

 private:
  std::mutex mutex_;
  object_store::ReaderSegment segment_;
};

// What room is wanted for: an object to be written here, one to be read back, or an extent.
enum class Placing { create, restore, reserve };

// Who holds an object: its owner, named when it was made, until it says that it has no more refs;
// and each get_block pins it once more for the calling process. A process of this node that ends
// drops its holds and pins. An owner on another node is heard of through its releases and, at the
// latest, through the end of its job. No job sees another's objects.
class ObjectService {
 public:
  // All outlive the service. `self` is the worker's own process, `service` answers other workers.
  ObjectService(transport::Environment environment, Scope& scope, const WorkerOptions& options,
                transport::Service& service);

  void set_self(protocol::Hello hello) { self_ = std::move(hello); }
  // Gets the spill folder ready. Errors: invalid (it cannot be used).
  Async<Status> start();
  // After the scope has ended: nothing is left on disk.
  void stop() { spiller_.stop(); }

  using Caller = object_store::Caller;
  using CallContext = transport::CallContext;
  using Message = transport::Message;

  // The descriptor of the caller's segment comes beside the message. Errors: invalid (none),
  // denied (not sealed as it must be), conflict (it has one).
  Async<Result<protocol::SegmentAttached>> attach_segment(Message message, Caller caller,
                                                          CallContext call);
  // An extent of the caller's segment, of that size or, while the store has room, of more for what
  // comes next. Waits while the store is full, in order of arrival, until shortly before the call's
  // deadline. Errors: exhausted (still full), invalid (larger than the store), not_found (the
  // caller has no segment, or no more: attach one).
  Async<Result<protocol::Block>> reserve_extent(protocol::ReserveExtent request, Caller caller,
                                                CallContext call);
  // Those before the first that fails are sealed. Errors: denied (not in an extent of the caller),
  // conflict (an object of that id is here), invalid.
  Result<protocol::Empty> seal_blocks(const protocol::SealBlocks& request, Caller caller);
  Result<protocol::Empty> return_extents(const protocol::ReturnExtents& request, Caller caller);
  // Answers with a Block, pinned for the caller, and beside it the segment's descriptor unless the
  // caller holds that segment. Waits until the object is sealed here, or pulls it from the worker
  // that `source` names or from another that has a copy; reads it back if it was spilled. Errors:
  // not_found (freed), data_loss (it lay with an earlier worker of this node), deadline_exceeded,
  // denied (another job's), and those of a pull.
  Async<Result<Message>> get_block(protocol::GetBlock request, Caller caller, CallContext call);
  // Takes back one pin of the caller on each or, when it names an owner, that owner's holds; an
  // owner on another node (who can hold no pins here) says so with a caller of its own. The first
  // error of any, once all were looked at: not_found (it has none), denied (not the owner).
  Result<protocol::Empty> release_blocks(const protocol::ReleaseBlocks& request, Caller caller);
  // Those of the objects that are here, or come from the source, which the owner counts on from now
  // on. The worker has made sure who the owner is.
  Async<Result<protocol::ObjectIds>> adopt_objects(protocol::AdoptObjects request,
                                                   CallContext call);
  // For workers of other nodes: a Chunk, its bytes beside it. Of an object that is being pulled,
  // too, as soon as these bytes are here; one whose pull has not begun is waited for as long as the
  // request says. Errors: not_found (not here, or its pull failed), denied (another job's), invalid
  // (beyond its end), unavailable (its pull stands still), and those of reading it from disk.
  Async<Result<Message>> fetch_chunk(protocol::FetchChunk request, CallContext call);

  // A process that used the store is gone and writes no more.
  void process_died(ProcessId process);
  // Jobs that have objects or segments here but no process any more: perhaps they have ended.
  std::vector<JobId> idle_jobs() const;
  void end_job(JobId job);

  // What lies here, and who reads it.
  protocol::ObjectList list(const protocol::ListObjects& request) const;
  uint64_t used_bytes() const { return table_.used_bytes(); }
  uint64_t spilled_bytes() const { return table_.spilled_bytes(); }
  // To other nodes, before compression.
  uint64_t sent_bytes() const { return sent_bytes_; }
  object_store::Stats stats() const { return table_.stats(); }

 private:
  friend class ObjectPuller;
  friend class ObjectSpiller;
  using ObjectTable = object_store::ObjectTable;

  Status attach(Caller caller);
  Result<object_store::SegmentId> add_segment(Caller caller, FileDescriptor descriptor);
  Result<object_store::Block> place(Caller caller, const object_store::CreateRequest& request,
                                    Placing placing);
  // Asks the node's processes to give back what they can do without.
  void ask_for_memory();
  Async<void> collect_memory(std::vector<std::shared_ptr<transport::Peer>> processes);
  Async<Result<object_store::Block>> allocate(Caller caller, object_store::CreateRequest request,
                                              Instant deadline, std::shared_ptr<Event> cancelled,
                                              Placing placing);
  // The same, in a segment of the worker's own.
  struct OwnBlock {
    std::shared_ptr<ObjectPuller::Target> target;
    object_store::Block block;
  };
  Async<Result<OwnBlock>> allocate_own(Caller self, object_store::CreateRequest request,
                                       Instant deadline, std::shared_ptr<Event> cancelled,
                                       Placing placing);
  // A pin of the worker's own, until the last copy of the handle goes; it may outlive the service.
  Result<std::shared_ptr<const void>> hold(Caller self, ObjectId object);
  static Async<Result<Message>> make_chunk(transport::Environment environment,
                                           protocol::FetchChunk request, uint64_t object_bytes,
                                           std::function<Result<BytesView>()> view,
                                           std::shared_ptr<const void> keep);
  // What freed and evicted objects leave behind goes.
  void settle_gone();
  Async<void> tell_owner(protocol::ProcessAddress owner, protocol::ObjectCopied notice);
  Async<Status> wait_for_seal(ObjectId object, Instant deadline, std::shared_ptr<Event> cancelled);
  void wake(ObjectId object);
  // Pins what lies at `place` for the caller and answers with it.
  Result<Message> hand_out(Caller caller, const protocol::GetBlock& request,
                           const object_store::Block& block, const CallContext& call);
  void close_dropped_segments();
  // Its memory counts until everybody who mapped it has let go.
  Async<void> close_segment(object_store::SegmentId id,
                            std::vector<std::shared_ptr<transport::Peer>> holders);

  struct Segment {
    std::shared_ptr<SharedReader> reader;
    // Who has it mapped: its producer, and those who got its descriptor.
    std::map<ProcessId, std::weak_ptr<transport::Peer>> holders;
  };

  transport::Environment environment_;
  Scope& scope_;
  const WorkerOptions& options_;
  protocol::Hello self_;
  ObjectTable table_;
  std::map<object_store::SegmentId, Segment> segments_;
  std::map<JobId, std::set<ProcessId>> jobs_;  // Those that have used the store, and who is alive.
  std::unordered_map<ObjectId, std::shared_ptr<Event>> waiting_;  // For a seal.
  uint64_t sent_bytes_ = 0;
  Event freed_;
  bool asks_for_memory_ = false;
  std::unordered_map<ObjectId, protocol::ProcessAddress> copy_owners_;  // Of copies.
  std::shared_ptr<ObjectService*> self_alive_;  // For handles that outlive the service.
  ObjectPuller puller_;
  ObjectSpiller spiller_;
};

}  // namespace troupe::worker
