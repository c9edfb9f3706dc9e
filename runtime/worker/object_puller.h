// Brings objects from other nodes: one pull an object, however many wait for it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "object_store/object_table.h"
#include "object_store/segment.h"
#include "object_store/transfer.h"
#include "transport/environment.h"
#include "transport/peer.h"

namespace troupe::worker {

class ObjectService;

class ObjectPuller {
  struct Pull;

 public:
  ObjectPuller(transport::Environment environment, Scope& scope, ObjectService& objects,
               transport::Service& service);
  ~ObjectPuller();

  // A share in a pull. While one exists the pull goes on and its result stays.
  class Ticket {
   public:
    Ticket(ObjectPuller& puller, std::shared_ptr<Pull> pull);
    Ticket(Ticket&&) noexcept = default;
    ~Ticket();
    // Until the object is sealed here. Errors: not_found (the source does not have it),
    // unavailable (the source cannot be reached), data_loss (damaged on the way), exhausted (the
    // store is full), deadline_exceeded, cancelled.
    Async<Status> wait(Instant deadline, std::shared_ptr<Event> cancelled);

   private:
    ObjectPuller* puller_;
    std::shared_ptr<Pull> pull_;
  };

  // Joins the pull that runs, or starts one.
  Ticket pull(JobId job, ObjectId object, protocol::ProcessAddress source);
  bool is_pulling(ObjectId object) const { return pulls_.contains(object); }
  // Nothing lies in it any more.
  void drop_segment(object_store::SegmentId id);
  void end_job(JobId job) { targets_.erase(job); }

 private:
  // Where a job's pulled objects are put. Its memory is prepared on the blocking executor.
  struct Target {
    Target(object_store::ProducerSegment s, object_store::SegmentId i)
        : segment(std::move(s)), id(i) {}
    std::mutex mutex;
    object_store::ProducerSegment segment;
    object_store::SegmentId id;
  };

  Async<void> run(std::shared_ptr<Pull> pull);
  Async<Status> transfer(std::shared_ptr<Pull> pull);
  Async<Status> receive_rest(std::shared_ptr<Pull> pull, std::shared_ptr<transport::Peer> source,
                             protocol::Chunk first, std::span<uint8_t> block);
  Async<void> fetch_chunks(std::shared_ptr<Pull> pull, std::shared_ptr<transport::Peer> source);
  Async<Result<protocol::Chunk>> fetch(std::shared_ptr<transport::Peer> source,
                                       std::shared_ptr<Pull> pull, object_store::Chunk chunk);
  Async<Result<std::shared_ptr<transport::Peer>>> source_peer(protocol::ProcessAddress source);
  Result<std::shared_ptr<Target>> target_of(object_store::Caller self);
  void release_if_unwanted(Pull& pull);

  transport::Environment environment_;
  Scope& scope_;
  ObjectService& objects_;
  transport::Service& service_;
  std::map<ObjectId, std::shared_ptr<Pull>> pulls_;
  std::map<JobId, std::shared_ptr<Target>> targets_;
  std::map<ProcessId, std::shared_ptr<transport::Peer>> sources_;
};

}  // namespace troupe::worker
