// The worker's table of its node's objects: which exist, where they lie, who holds them, and what
// they cost. A single-threaded state machine: no I/O, no clock, every answer follows from the
// calls.
//
// The life of an object: create (a block to write) -> seal (published, immutable) -> freed when the
// last reference goes. References are the owner's hold and the pins of the node's processes. While
// it is unsealed its producer may be writing, so only abort or the producer's death frees it.
//
// A process may place and fill blocks by itself, in extents that it reserved; what it seals there
// is an object like any other from then on, and what it does not is its own, and in memory.
//
// Under pressure an object that nobody has pinned leaves memory: one that also lies on disk or on
// another node at once, any other after its bytes were spilled (by the worker: no I/O here). What
// was spilled stays an object, and is restored into a block when it is wanted.
//
// Arguments that came from another process are validated; places never come from outside.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/random.h"
#include "base/status.h"
#include "object_store/block_allocator.h"

namespace troupe::object_store {

// A segment known to one table; never used twice.
struct SegmentId {
  uint64_t number = 0;
  auto operator<=>(const SegmentId&) const = default;
};

// Who calls, as the worker authenticated the connection: never as the message says.
struct Caller {
  ProcessId process;
  JobId job;
  bool operator==(const Caller&) const = default;
};

// Where an object's bytes lie.
struct Block {
  SegmentId segment;
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;  // The object's size; its share of the store is block_bytes() of it.
  bool operator==(const Block&) const = default;
};

struct CreateRequest {
  ObjectId object;
  ProcessId owner;  // Holds the object until release_owner; may live on another node.
  uint64_t size_bytes = 0;
  bool is_copy = false;  // Its home is another node: it may go whenever nobody has pinned it.
};

// An object that its producer finished in an extent of its own.
struct SealedObject {
  ObjectId object;
  ProcessId owner;  // As in CreateRequest.
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;
  bool pinned = false;  // Once, by its producer.
};

struct ObjectInfo {
  ObjectId object;
  JobId job;
  ProcessId producer;
  ProcessId owner;
  Block block;
  bool sealed = false;
  bool owner_holds = false;
  bool resident = false;  // Its bytes lie in the block; else on disk alone.
  bool spilled = false;   // They lie on disk.
  bool is_copy = false;
  uint64_t pins = 0;  // Over all processes.
  Instant created;
};

struct ProcessStats {
  ProcessId process;
  bool alive = false;            // Dead processes stay listed while their segments do.
  uint64_t used_bytes = 0;       // Live blocks in its segments.
  uint64_t committed_bytes = 0;  // Memory behind its segments.
  uint64_t objects = 0;          // Live blocks, in number.
  uint64_t reserved_bytes = 0;   // Of used_bytes: extents in which it builds objects by itself.
  uint64_t pins = 0;
};

struct Stats {
  uint64_t capacity_bytes = 0;
  uint64_t used_bytes = 0;       // Exactly the sum of the live blocks.
  uint64_t committed_bytes = 0;  // Memory behind all segments, in whole pages; at most capacity.
  uint64_t objects = 0;
  uint64_t unsealed_objects = 0;
  uint64_t pinned_objects = 0;  // With at least one pin.
  uint64_t pinned_bytes = 0;
  uint64_t spilled_objects = 0;         // With a copy on disk, in memory or not.
  uint64_t spilled_bytes = 0;           // What these take there, in whole pages.
  uint64_t segments = 0;                // Including those handed over by take_dropped().
  std::vector<ProcessStats> processes;  // Ordered by id.
};

// An object that would make room by leaving memory.
struct Evictee {
  Caller producer;
  ObjectId object;
  Block block;
  bool must_be_written = false;  // There is no other copy: spill it first.
};

// A freed object of which more than its block must go.
struct Gone {
  ObjectId object;
  bool spilled = false;
  bool is_copy = false;
  bool owner_held = false;  // The owner had refs to it.
};

class ObjectTable {
 public:
  // `capacity_bytes` is what all segments may cost in memory; whole pages of it are used. `random`
  // seeds the hashing: ids come from outside, and chosen ones must not make look-ups slow.
  ObjectTable(uint64_t capacity_bytes, Random& random);
  ObjectTable(const ObjectTable&) = delete;
  ObjectTable& operator=(const ObjectTable&) = delete;

  // --- Processes and their segments ---

  // Lets a process of this node use the store for a job. A process may serve several jobs (the
  // worker itself does, for objects that it pulls). Idempotent. Errors: invalid (a nil id).
  Status attach(Caller caller);
  // The caller's segment, whose size the worker has read from the descriptor. One at a time for a
  // caller; a new one may follow when the old one was dropped.
  // Errors: denied (not attached), invalid (no multiple of a page, or over segment_bytes_max),
  // conflict (it has one).
  Result<SegmentId> add_segment(Caller caller, uint64_t size_bytes);
  std::optional<SegmentId> segment_of(Caller caller) const;
  // Of the caller's segment, if it has one.
  uint64_t segment_used_bytes(Caller caller) const;
  // The process is gone and reaped, here or on another node: it writes no more. Drops its pins and
  // its holds as an owner, frees its unsealed objects; its sealed ones stay for those who hold
  // them. Idempotent. Work is in proportion to what the process held.
  void process_died(ProcessId process);
  // The job is over and its processes are gone: frees its objects, whoever holds them (an owner
  // that was never real, say), and drops its segments. Work is in proportion to all objects.
  void end_job(JobId job);
  // Segments that hold nothing and that nobody will fill: the worker tells those who have them
  // mapped to let go, closes its descriptor, and calls segment_closed. Each is returned once.
  std::vector<SegmentId> take_dropped();
  // The memory of a dropped segment is back with the system: it stops counting.
  // Errors: not_found (not returned by take_dropped, or closed already).
  Status segment_closed(SegmentId segment);
  // Drops the empty segments of living processes, the largest first, until `bytes` of memory are on
  // their way back or none is left. Returns how many bytes are. For a create that found the store
  // committed; the owners add a new segment when they need one.
  uint64_t drop_empty_segments(uint64_t bytes);

  // --- Objects ---

  // Idempotent for the same request by the same caller while the object is unsealed.
  // Errors: exhausted (does not fit now: queue until on_freed, see can_fit), invalid (nil id,
  // larger than the store or the segment), conflict (the id exists and this is no retry; or the
  // caller has no segment), denied (not attached).
  Result<Block> create(Caller caller, const CreateRequest& request, Instant now);
  // --- Extents: ranges of its segment in which a process places and fills blocks by itself. They
  // count as used until they are given back or the process dies.
  // Errors: as create().
  Result<Block> reserve(Caller caller, uint64_t size_bytes);
  // What lies there is this object from now on, known and sealed; the rest of the extent stays the
  // caller's. If its owner has that object here already, a task that ran again made it twice: the
  // earlier one stays, and the place is given back. Errors: denied (not in an extent of the
  // caller's segment), conflict (the id exists), invalid (nil id, no alignment).
  Status seal_reserved(Caller caller, SegmentId segment, const SealedObject& sealed, Instant now);
  // What is still reserved in this range of the caller's segment goes back.
  // Errors: denied (not the caller's segment).
  Status give_back(Caller caller, SegmentId segment, uint64_t offset_bytes, uint64_t size_bytes);

  // Whether a create of this size by this caller would find room now.
  bool can_fit(Caller caller, uint64_t size_bytes) const;
  // Publishes. Idempotent. An object that nobody holds any more is freed by it.
  // Errors: not_found, denied (not the producer).
  Status seal(Caller caller, ObjectId object);
  // Takes back an unsealed object, whoever has pinned it; the producer has stopped writing.
  // Errors: not_found, denied (not the producer), conflict (sealed already).
  Status abort(Caller caller, ObjectId object);
  // An unsealed object gives its name up, to be made anew, and keeps its block under another, for
  // no owner, until it is aborted. Errors: not_found, denied (not the producer), conflict (sealed
  // already, or the other name is taken).
  Status put_aside(Caller caller, ObjectId object, ObjectId other);
  // The place of a sealed object; nothing while it is unsealed: ask again when it was sealed. The
  // place holds only while the caller pins the object.
  // Errors: not_found, denied (another job's, or not attached).
  Result<std::optional<Block>> get(Caller caller, ObjectId object) const;

  // Adds one reference of the caller. An unsealed object may be pinned too, to wait for it.
  // Errors: not_found, denied (another job's, or not attached), exhausted (2^32 pins).
  Status pin(Caller caller, ObjectId object);
  // Takes back `count` references of the caller. All or nothing.
  // Errors: not_found (the caller has none: released twice, or the object was aborted), invalid
  // (zero, or more than it has), denied (not attached).
  Status release(Caller caller, ObjectId object, uint32_t count);
  // The owner has no more refs. Idempotent while the object lives. The worker relays it from the
  // owner's process, which may be remote. Errors: not_found, denied (not the owner).
  Status release_owner(ProcessId owner, ObjectId object);
  // A copy has its home here from now on: it leaves memory only as other objects do. Idempotent.
  // Errors: not_found (also: it is not sealed), denied (not the owner).
  Status adopt(ProcessId owner, ObjectId object);

  // --- Pressure

  // Keeps so much memory for segments of this process, which restores objects: a segment of another
  // in which one object is pinned gives none back. A create that is larger than the rest ignores
  // it.
  void keep_room(ProcessId process, uint64_t bytes);

  // What should leave memory for a create of `size_bytes` by this caller, coldest first,
  // `batch_bytes` of it at least where there is as much: from the caller's own segment; or, if
  // nothing can leave that, all that lies in other segments which then are empty, for only those
  // give memory back. Empty: nothing would help.
  std::vector<Evictee> evictees(Caller caller, uint64_t size_bytes, uint64_t batch_bytes) const;
  // Its bytes lie on disk, too, until take_gone names it.
  // Errors: not_found, conflict (unsealed, a copy, or spilled already).
  Status set_spilled(ObjectId object);
  // Frees its block, and a copy altogether. Errors: not_found, conflict (pinned, unsealed, not in
  // memory, or it lies nowhere else).
  Status evict(ObjectId object);
  // Whether its bytes lie on disk alone.
  bool is_out(ObjectId object) const;
  // A block in the caller's segment to be filled from disk; the caller has pinned the object. Then
  // restored() publishes it or restore_failed() takes it back.
  // Errors: as create, and conflict (not out, or being restored).
  Result<Block> restore(Caller caller, ObjectId object);
  Status restored(ObjectId object);
  Status restore_failed(ObjectId object);
  // Freed objects that lay on disk, and copies that were freed or evicted, each once.
  std::vector<Gone> take_gone() { return std::exchange(gone_, {}); }

  // Called as the last thing of a call that gave bytes back, or took the last pin off an object
  // that may leave memory, with the table consistent: it may call in again. Nothing is promised
  // about which waiting create now fits.
  void on_freed(std::function<void()> hook) { on_freed_ = std::move(hook); }

  // --- Looking in ---

  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t committed_bytes() const { return committed_bytes_; }
  uint64_t spilled_bytes() const { return spilled_bytes_; }
  // Exact. Work is in proportion to processes times segments.
  Stats stats() const;
  // For people (`troupe objects`): at most `count_max`, in no order.
  std::vector<ObjectInfo> list(size_t count_max) const;

 private:
  struct SeededHash {
    uint64_t seed_high = 0, seed_low = 0;
    size_t operator()(const RawId& id) const noexcept {
      const auto product = static_cast<unsigned __int128>(id.high ^ seed_high) *
                           static_cast<unsigned __int128>(id.low ^ seed_low);
      return static_cast<size_t>(product >> 64) ^ static_cast<size_t>(product);
    }
  };
  using IdSet = std::unordered_set<ObjectId, SeededHash>;
  struct Pin {
    ProcessId process;
    uint32_t count = 0;
  };
  struct Object;
  using Entry = std::pair<const ObjectId, Object>;
  enum class Residence : uint8_t {
    in_memory,
    on_disk,    // Alone: there is no block.
    restoring,  // There is a block, not readable yet.
  };
  struct Object {
    Caller producer;
    ProcessId owner;
    Block block;
    uint32_t handle = 0;  // Of the segment's allocator.
    bool sealed = false;
    bool owner_holds = true;
    bool is_copy = false;
    bool spilled = false;
    Residence residence = Residence::in_memory;
    bool idle = false;  // In the list of those that may leave memory.
    Entry* colder = nullptr;
    Entry* hotter = nullptr;
    std::vector<Pin> pins;  // One a process, so few.
    Instant created;
  };
  enum class SegmentState {
    open,      // Its producer may create in it.
    orphaned,  // Its producer is gone: dropped with its last object.
    dropped,   // Empty, on its way to segment_closed.
    taken,     // The same, and take_dropped returned it.
  };
  struct Segment {
    Caller producer;
    SegmentState state = SegmentState::open;
    BlockAllocator allocator;
    std::map<uint64_t, BlockAllocator::Block> reserved = {};  // By offset.
    uint64_t committed_bytes() const;
    uint64_t reserved_bytes() const;
  };
  struct Workplace {
    JobId job;
    std::optional<SegmentId> segment;
  };
  // A process that is attached, or one that owns objects from afar (without workplaces).
  struct Process {
    explicit Process(SeededHash hash) : unsealed(0, hash), owned(0, hash), pinned(0, hash) {}

    std::vector<Workplace> workplaces;
    IdSet unsealed;
    IdSet owned;
    IdSet pinned;
    uint64_t pins = 0;
  };
  using Objects = std::unordered_map<ObjectId, Object, SeededHash>;
  // Makes the hook's call when a public function returns.
  class FreedNotice;

  Process& record_of(ProcessId id) { return processes_.try_emplace(id, hash_).first->second; }
  const Workplace* workplace(Caller caller) const;
  Workplace* workplace(Caller caller);
  Status check_attached(Caller caller) const;
  Result<Objects::const_iterator> find(Caller caller, ObjectId id) const;
  // The same, for changing the object.
  Result<Objects::iterator> find(Caller caller, ObjectId id);
  Result<Objects::iterator> find_as_producer(Caller caller, ObjectId id);
  // How far the segment's blocks may reach before the node's memory is all committed.
  uint64_t touched_bytes_max(const Segment& segment, uint64_t size_bytes) const;
  Error does_not_fit(const CreateRequest& request) const;
  Result<Segment*> own_segment(Caller caller, SegmentId id);
  // Frees what is reserved in [first, end).
  void free_reserved(Segment& segment, uint64_t first, uint64_t end);
  // The block for an object or, without one, for an extent; or why not. Counts it.
  Result<Block> place(Caller caller, const CreateRequest& request, uint32_t& handle);
  void free_block(Object& object);
  // Keeps the list: an object is in it while it may leave memory.
  void update_idle(Entry& entry);
  void unlink(Entry& entry);
  void free_if_unheld(Objects::iterator object);
  void erase(Objects::iterator object);
  void drop_pins(ObjectId id, Object& object, ProcessId process);
  void drop_owner_hold(ObjectId id, Object& object);
  void orphan(SegmentId id);
  void drop_if_done(SegmentId id);
  void drop(SegmentId id, Segment& segment);

  const uint64_t capacity_bytes_;
  const SeededHash hash_;
  uint64_t used_bytes_ = 0;
  uint64_t committed_bytes_ = 0;
  uint64_t unsealed_objects_ = 0;
  uint64_t pinned_objects_ = 0;
  uint64_t pinned_bytes_ = 0;
  uint64_t spilled_objects_ = 0;
  uint64_t spilled_bytes_ = 0;
  Entry* coldest_ = nullptr;
  Entry* hottest_ = nullptr;
  ProcessId room_for_;
  uint64_t room_bytes_ = 0;
  uint64_t room_committed_bytes_ = 0;  // Behind segments of that process.
  uint64_t last_segment_ = 0;
  bool freed_ = false;
  Objects objects_;
  std::unordered_map<ProcessId, Process, SeededHash> processes_;
  std::map<SegmentId, Segment> segments_;
  std::vector<SegmentId> dropped_;
  std::vector<Gone> gone_;
  std::function<void()> on_freed_;
};

}  // namespace troupe::object_store
