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

// A pull reads chunks over several connections to a node that has the object, and goes on with the
// next one that has it where that fails. What has come is served to further nodes at once, so that
// many readers of one object form a tree below the node where it was made.
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
    // Until the object is sealed here. Errors: not_found (no node has it any more), data_loss (none
    // that has it can be reached, or it comes damaged), exhausted (the store is full),
    // deadline_exceeded, cancelled.
    Async<Status> wait(Instant deadline, std::shared_ptr<Event> cancelled);

   private:
    ObjectPuller* puller_;
    std::shared_ptr<Pull> pull_;
  };

  // Joins the pull that runs, or starts one from the nodes that `request` names. With an owner the
  // copy is the owner's to free, and may be dropped under pressure; else it goes with its last pin.
  Ticket pull(JobId job, const protocol::GetBlock& request);
  bool is_pulling(ObjectId object) const { return pulls_.contains(object); }
  // The object is made here after all: ends its pull, if the job has one, so that it can be sealed.
  // Who waits for it finds it then.
  void give_way(JobId job, ObjectId object);

  // A piece of an object that is on its way here.
  struct Part {
    BytesView bytes;
    uint64_t object_bytes = 0;
    std::shared_ptr<const void> keep;
  };
  // Waits until it has come; nothing if the pull has ended. Errors: unavailable (nothing comes),
  // denied (another job's), invalid (beyond its end), deadline_exceeded, cancelled.
  Async<Result<std::optional<Part>>> part(JobId job, ObjectId object, uint64_t offset_bytes,
                                          uint64_t length_bytes, Instant deadline,
                                          std::shared_ptr<Event> cancelled);

  // Nothing lies in it any more.
  void drop_segment(object_store::SegmentId id);
  void end_job(JobId job) { targets_.erase(job); }

 private:
  friend class ObjectService;
  // Where a job's pulled and restored objects are put. Any thread may prepare.
  class Target {
   public:
    Target(object_store::ProducerSegment segment, object_store::SegmentId id)
        : segment_(std::move(segment)), id_(id) {}
    object_store::SegmentId id() const { return id_; }
    Result<std::span<uint8_t>> prepare(uint64_t offset_bytes, uint64_t size_bytes) {
      const std::lock_guard lock{mutex_};
      return segment_.prepare(offset_bytes, size_bytes);
    }

   private:
    std::mutex mutex_;
    object_store::ProducerSegment segment_;
    object_store::SegmentId id_;
  };
  struct Building;
  struct Round;
  using PeerPointer = std::shared_ptr<transport::Peer>;

  Async<void> run(std::shared_ptr<Pull> pull);
  Async<Status> transfer(std::shared_ptr<Pull> pull);
  Async<Status> pull_from(std::shared_ptr<Pull> pull, protocol::ProcessAddress source);
  Async<Status> run_round(std::shared_ptr<Pull> pull, protocol::ProcessAddress source);
  Async<Status> begin_building(std::shared_ptr<Pull> pull, PeerPointer source);
  Async<void> run_lane(std::shared_ptr<Round> round, uint32_t lane);
  Async<void> fetch_chunks(std::shared_ptr<Round> round, PeerPointer source);
  Async<Status> fetch_chunk(std::shared_ptr<Round> round, PeerPointer source,
                            object_store::Chunk chunk);
  Status finish(Pull& pull);
  // One of the connections to a process of another node, by number.
  Async<Result<PeerPointer>> peer_of(protocol::ProcessAddress address, uint32_t lane);
  Result<std::shared_ptr<Target>> target_of(object_store::Caller self);
  void release_if_unwanted(Pull& pull);

  transport::Environment environment_;
  Scope& scope_;
  ObjectService& objects_;
  transport::Service& service_;
  std::map<ObjectId, std::shared_ptr<Pull>> pulls_;
  std::map<JobId, std::shared_ptr<Target>> targets_;
  std::map<std::pair<ProcessId, uint32_t>, PeerPointer> peers_;
  std::map<ObjectId, Building*> buildings_;
  Event building_gone_;
};

}  // namespace troupe::worker
