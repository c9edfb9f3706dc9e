// This process's side of its node's object store.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <unordered_map>

#include "client/client.h"
#include "client/local_segment.h"
#include "object_store/segment.h"

namespace troupe::client {

// What this process builds lies in its own segment and is its alone until others want it: then the
// worker is told (expose), which from there on accounts for it by itself. What it reads it pins;
// views of what it has refs to stay, so that reading again asks nobody, until the worker is short
// of memory.
//
// Shares its segments with the views that it hands out, so a view may outlive the client and may be
// dropped by any thread. On the loop but for what says otherwise.
class StoreClient {
 public:
  StoreClient(transport::Environment environment, Scope& scope, Connections& connections);
  ~StoreClient();

  // --- Thread-safe.
  // A block to build an object in; null: reserve() first. Its first use takes long, for the system
  // clears its pages. Errors: exhausted (the machine has no memory left).
  Result<std::shared_ptr<LocalBlock>> allocate(uint64_t size_bytes);
  // The block is this object of this process now. Others can read it after expose().
  void keep_private(ObjectId object, std::shared_ptr<LocalBlock> block);
  // Frees an object that was never exposed, at once; false: it is none.
  bool drop_private(ObjectId object);
  // What this process can read at once.
  std::optional<ObjectBytes> find(ObjectId object) const;
  // Objects that only this process knows of, and their sizes.
  std::vector<std::pair<ObjectId, uint64_t>> list_private() const;
  // The worker's address, from start() on.
  std::shared_ptr<const protocol::ProcessAddress> node() const { return node_; }
  void set_node(protocol::ProcessAddress worker);

  // --- On the loop.
  // Gets room for a block of this size from the worker. Waits while the store is full.
  // Errors: exhausted (still full at the deadline), invalid (larger than the store).
  Async<Status> reserve(uint64_t size_bytes, Instant deadline);
  // Writes `value` as a sealed object that `owner` holds. Errors: as reserve().
  Async<Status> put(ObjectId object, ProcessId owner, std::shared_ptr<const Bytes> value,
                    Instant deadline);
  // From now on other processes can read those of the objects that were private.
  Async<Status> expose(std::vector<ObjectId> objects);
  // A view of an object, pulled to this node first when it lies on another.
  Async<Result<ObjectBytes>> get(ObjectName object, protocol::ObjectValue place, Instant deadline);
  // find() gives it until forget(), release_owned() or a want of memory.
  void keep(ObjectId object, const ObjectBytes& view);
  void forget(ObjectId object);
  // Its owner (this process) has no more refs to an object that lies with `node`'s worker.
  void release_owned(ObjectId object, const protocol::ProcessAddress& node);
  // From the worker, which is short of memory: nothing lies in these segments any more, and what
  // this process can do without goes back.
  Async<Result<protocol::Empty>> drop_segments(protocol::DropSegments request,
                                               transport::CallContext context);

 private:
  struct View {
    ObjectBytes bytes;
    std::shared_ptr<LocalBlock> block;  // Of what this process built.
  };
  struct Release {
    protocol::ProcessAddress node;
    std::vector<ObjectId> objects;
  };
  Async<Status> ensure_segment(Instant deadline);
  Async<Status> seal(uint64_t segment, std::vector<protocol::SealedBlock> items);
  Async<Result<std::shared_ptr<LocalBlock>>> room_for(uint64_t size_bytes, Instant deadline);
  std::shared_ptr<LocalSegment> own() const;
  void drop_own();
  Async<void> sweep();
  Async<void> return_extents(std::shared_ptr<LocalSegment> segment,
                             std::vector<protocol::Extent> extents);
  void flush_releases();
  Async<void> release(protocol::ReleaseBlocks request, protocol::ProcessAddress node);

  transport::Environment environment_;
  Scope& scope_;
  Connections& connections_;
  std::shared_ptr<const protocol::ProcessAddress> node_;
  mutable std::mutex mutex_;
  std::shared_ptr<LocalSegment> own_;         // Guarded, and changed on the loop alone.
  std::unordered_map<ObjectId, View> views_;  // Guarded.
  std::map<uint64_t, std::shared_ptr<object_store::ReaderSegment>> segments_;
  bool attaching_ = false;
  Event attached_;
  std::set<ObjectId> exposing_;  // The worker has been told and has not answered.
  Event exposed_;
  std::map<ProcessId, Release> releases_;  // To be told, by the worker.
  std::shared_ptr<PinReturns> pins_;
  const std::shared_ptr<const bool> alive_ = std::make_shared<const bool>(true);
};

}  // namespace troupe::client
