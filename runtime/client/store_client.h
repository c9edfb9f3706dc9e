// This process's side of its node's object store.
#pragma once

#include <map>
#include <memory>

#include "client/client.h"
#include "object_store/segment.h"

namespace troupe::client {

// Shares its segments with the views that it hands out, so a view may outlive the client and may be
// dropped by any thread.
class StoreClient {
 public:
  StoreClient(transport::Environment environment, Scope& scope, Connections& connections);
  ~StoreClient();

  // Writes `value` as a sealed object that `owner` holds. Waits while the store is full.
  // Errors: exhausted (still full at the deadline), invalid (larger than the store).
  Async<Status> put(ObjectId object, ProcessId owner, std::shared_ptr<const Bytes> value,
                    Instant deadline);
  // A view of an object, pulled to this node first when it lies on another.
  Async<Result<ObjectBytes>> get(ObjectName object, protocol::ObjectValue place, Instant deadline);
  // Its owner (this process) has no more refs to an object that lies with `node`'s worker.
  void release_owned(ObjectId object, protocol::ProcessAddress node);
  // From the worker: nothing lies in these segments any more.
  Async<Result<protocol::Empty>> drop_segments(protocol::DropSegments request,
                                               transport::CallContext context);

 private:
  struct Returns;  // Pins that dropped views give back.
  Async<Status> ensure_segment(Instant deadline);
  void return_pins();
  Async<void> release(protocol::ReleaseBlock request, protocol::ProcessAddress node);

  transport::Environment environment_;
  Scope& scope_;
  Connections& connections_;
  std::shared_ptr<object_store::ProducerSegment> own_;
  uint64_t own_number_ = 0;  // As the worker numbers segments.
  std::map<uint64_t, std::shared_ptr<object_store::ReaderSegment>> segments_;
  bool attaching_ = false;
  Event attached_;
  std::shared_ptr<Returns> returns_;
};

}  // namespace troupe::client
