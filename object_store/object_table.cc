#include "object_store/object_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "object_store/segment.h"

namespace troupe::object_store {
namespace {

constexpr uint64_t page_floor(uint64_t bytes) {
  return bytes / page_bytes * page_bytes;
}

constexpr uint64_t page_ceil(uint64_t bytes) {
  return page_floor(bytes + page_bytes - 1);
}

// Nil: an extent for one that has no name here yet.
std::string name_of(ObjectId id) {
  return id.is_nil() ? "an object" : "object " + id.to_string();
}

Error no_such_object(ObjectId id) {
  return error(Code::not_found, fmt::format("no object {} on this node", id.to_string()));
}

}  // namespace

class ObjectTable::FreedNotice {
 public:
  explicit FreedNotice(ObjectTable& table) : table_(table) {}
  FreedNotice(const FreedNotice&) = delete;
  FreedNotice& operator=(const FreedNotice&) = delete;
  ~FreedNotice() {
    if (std::exchange(table_.freed_, false) && table_.on_freed_) table_.on_freed_();
  }

 private:
  ObjectTable& table_;
};

uint64_t ObjectTable::Segment::committed_bytes() const {
  return page_ceil(allocator.touched_bytes());
}

ObjectTable::ObjectTable(uint64_t capacity_bytes, Random& random)
    : capacity_bytes_(page_floor(capacity_bytes)),
      hash_{random.next(), random.next()},
      objects_(0, hash_),
      processes_(0, hash_) {
  TROUPE_ASSERT(capacity_bytes_ > 0, "an object store needs at least one page");
}

// --- Processes and their segments ---

Status ObjectTable::attach(Caller caller) {
  if (caller.process.is_nil() || caller.job.is_nil()) {
    return error(Code::invalid, "attach needs a process and a job");
  }
  if (workplace(caller) == nullptr) {
    record_of(caller.process).workplaces.push_back({.job = caller.job});
  }
  return ok();
}

Result<SegmentId> ObjectTable::add_segment(Caller caller, uint64_t size_bytes) {
  TROUPE_CHECK(check_attached(caller));
  if (size_bytes == 0 || size_bytes % page_bytes != 0 || size_bytes > segment_bytes_max) {
    return error(Code::invalid, fmt::format("a segment of {} bytes", size_bytes));
  }
  Workplace& place = *workplace(caller);
  if (place.segment) {
    return error(Code::conflict,
                 fmt::format("process {} has a segment already", caller.process.to_string()));
  }
  const SegmentId id{++last_segment_};
  segments_.emplace(id, Segment{.producer = caller, .allocator = BlockAllocator{size_bytes}});
  place.segment = id;
  return id;
}

std::optional<SegmentId> ObjectTable::segment_of(Caller caller) const {
  const Workplace* place = workplace(caller);
  return place == nullptr ? std::nullopt : place->segment;
}

void ObjectTable::process_died(ProcessId process) {
  FreedNotice notice{*this};
  const auto found = processes_.find(process);
  if (found == processes_.end()) return;
  // Moved out first: what is below must neither trip over them nor take the record along.
  Process& record = found->second;
  for (const ObjectId id : std::exchange(record.owned, IdSet{0, hash_})) {
    const auto object = objects_.find(id);
    object->second.owner_holds = false;
    free_if_unheld(object);
  }
  while (!record.unsealed.empty()) erase(objects_.find(*record.unsealed.begin()));
  while (!record.pinned.empty()) {
    const auto object = objects_.find(*record.pinned.begin());
    drop_pins(object->first, object->second, process);
    free_if_unheld(object);
  }
  for (const Workplace& place : std::exchange(record.workplaces, {})) {
    if (place.segment) orphan(*place.segment);
  }
  processes_.erase(found);
}

void ObjectTable::end_job(JobId job) {
  FreedNotice notice{*this};
  for (auto next = objects_.begin(); next != objects_.end();) {
    const auto object = next++;
    if (object->second.producer.job == job) erase(object);
  }
  std::vector<ProcessId> idle;
  for (auto& [id, process] : processes_) {
    const auto place = std::ranges::find(process.workplaces, job, &Workplace::job);
    if (place == process.workplaces.end()) continue;
    const auto segment = place->segment;
    process.workplaces.erase(place);
    if (segment) orphan(*segment);
    if (process.workplaces.empty() && process.owned.empty()) idle.push_back(id);
  }
  for (const ProcessId id : idle) processes_.erase(id);
}

std::vector<SegmentId> ObjectTable::take_dropped() {
  for (const SegmentId id : dropped_) segments_.at(id).state = SegmentState::taken;
  return std::exchange(dropped_, {});
}

Status ObjectTable::segment_closed(SegmentId id) {
  FreedNotice notice{*this};
  const auto found = segments_.find(id);
  if (found == segments_.end() || found->second.state != SegmentState::taken) {
    return error(Code::not_found, fmt::format("segment {} was not dropped", id.number));
  }
  committed_bytes_ -= found->second.committed_bytes();
  if (found->second.producer.process == room_for_) {
    room_committed_bytes_ -= found->second.committed_bytes();
  }
  segments_.erase(found);
  freed_ = true;
  return ok();
}

uint64_t ObjectTable::drop_empty_segments(uint64_t bytes) {
  std::vector<std::pair<uint64_t, SegmentId>> empty;
  for (const auto& [id, segment] : segments_) {
    const uint64_t committed = segment.committed_bytes();
    if (segment.state == SegmentState::open && segment.allocator.empty() && committed > 0) {
      empty.emplace_back(committed, id);
    }
  }
  std::ranges::sort(empty, std::greater{});
  uint64_t on_their_way = 0;
  for (const auto& [committed, id] : empty) {
    if (on_their_way >= bytes) break;
    Segment& segment = segments_.at(id);
    workplace(segment.producer)->segment.reset();
    drop(id, segment);
    on_their_way += committed;
  }
  return on_their_way;
}

// --- Objects ---

Result<Block> ObjectTable::create(Caller caller, const CreateRequest& request, Instant now) {
  TROUPE_CHECK(check_attached(caller));
  const ObjectId id = request.object;
  if (id.is_nil() || request.owner.is_nil()) {
    return error(Code::invalid, "create needs an object and its owner");
  }
  if (const auto found = objects_.find(id); found != objects_.end()) {
    const Object& object = found->second;
    if (object.producer == caller && object.owner == request.owner && !object.sealed &&
        object.block.size_bytes == request.size_bytes) {
      return object.block;
    }
    return error(Code::conflict, fmt::format("object {} exists already", id.to_string()));
  }
  uint32_t handle = 0;
  TROUPE_TRY(const Block block, place(caller, request, handle));
  ++unsealed_objects_;
  objects_.emplace(id, Object{.producer = caller,
                              .owner = request.owner,
                              .block = block,
                              .handle = handle,
                              .is_copy = request.is_copy,
                              .created = now});
  record_of(caller.process).unsealed.insert(id);
  record_of(request.owner).owned.insert(id);
  return block;
}

Result<Block> ObjectTable::place(Caller caller, const CreateRequest& request, uint32_t& handle) {
  const auto id = workplace(caller)->segment;
  if (!id) {
    return error(Code::conflict,
                 fmt::format("process {} has no segment yet", caller.process.to_string()));
  }
  Segment& segment = segments_.at(*id);
  const uint64_t most = std::min(capacity_bytes_, segment.allocator.size_bytes());
  if (request.size_bytes > most) {
    return error(Code::invalid, fmt::format("{} of {} bytes; this store takes up to {}",
                                            name_of(request.object), request.size_bytes, most));
  }
  const uint64_t committed_before = segment.committed_bytes();
  const auto found = segment.allocator.allocate(request.size_bytes,
                                                touched_bytes_max(segment, request.size_bytes));
  if (!found) return does_not_fit(request);
  const uint64_t grown = segment.committed_bytes() - committed_before;
  committed_bytes_ += grown;
  if (caller.process == room_for_) room_committed_bytes_ += grown;
  used_bytes_ += found->size_bytes;
  handle = found->handle;
  return Block{*id, found->offset_bytes, request.size_bytes};
}

bool ObjectTable::can_fit(Caller caller, uint64_t size_bytes) const {
  const auto id = segment_of(caller);
  if (!id || size_bytes > capacity_bytes_) return false;
  const Segment& segment = segments_.at(*id);
  return segment.allocator.can_fit(size_bytes, touched_bytes_max(segment, size_bytes));
}

Status ObjectTable::seal(Caller caller, ObjectId id) {
  FreedNotice notice{*this};
  TROUPE_TRY(const auto object, find_as_producer(caller, id));
  if (object->second.sealed) return ok();
  object->second.sealed = true;
  --unsealed_objects_;
  processes_.at(caller.process).unsealed.erase(id);
  update_idle(*object);
  free_if_unheld(object);
  return ok();
}

Status ObjectTable::abort(Caller caller, ObjectId id) {
  FreedNotice notice{*this};
  TROUPE_TRY(const auto object, find_as_producer(caller, id));
  if (object->second.sealed) {
    return error(Code::conflict, fmt::format("object {} is sealed", id.to_string()));
  }
  erase(object);
  return ok();
}

Status ObjectTable::put_aside(Caller caller, ObjectId id, ObjectId other) {
  TROUPE_TRY(const auto found, find_as_producer(caller, id));
  if (found->second.sealed || other.is_nil() || objects_.contains(other)) {
    return error(Code::conflict, fmt::format("object {} cannot be put aside", id.to_string()));
  }
  Object& object = found->second;
  while (!object.pins.empty()) drop_pins(id, object, object.pins.back().process);
  drop_owner_hold(id, object);
  object.is_copy = false;
  auto& unsealed = record_of(caller.process).unsealed;
  unsealed.erase(id);
  unsealed.insert(other);
  auto entry = objects_.extract(found);
  entry.key() = other;
  objects_.insert(std::move(entry));
  return ok();
}

Result<std::optional<Block>> ObjectTable::get(Caller caller, ObjectId id) const {
  TROUPE_TRY(const auto object, find(caller, id));
  const Object& found = object->second;
  const bool readable = found.sealed && found.residence == Residence::in_memory;
  return readable ? std::optional{found.block} : std::nullopt;
}

Status ObjectTable::pin(Caller caller, ObjectId id) {
  TROUPE_TRY(const auto found, find(caller, id));
  Object& object = found->second;
  Process& process = processes_.at(caller.process);
  const auto held = std::ranges::find(object.pins, caller.process, &Pin::process);
  if (held != object.pins.end()) {
    if (held->count == std::numeric_limits<uint32_t>::max()) {
      return error(Code::exhausted, fmt::format("object {}: too many pins", id.to_string()));
    }
    ++held->count;
  } else {
    if (object.pins.empty()) {
      ++pinned_objects_;
      pinned_bytes_ += block_bytes(object.block.size_bytes);
    }
    object.pins.push_back({caller.process, 1});
    process.pinned.insert(id);
    update_idle(*found);
  }
  ++process.pins;
  return ok();
}

Status ObjectTable::release(Caller caller, ObjectId id, uint32_t count) {
  FreedNotice notice{*this};
  TROUPE_CHECK(check_attached(caller));
  const auto found = objects_.find(id);
  if (found == objects_.end()) return no_such_object(id);
  Object& object = found->second;
  const auto held = std::ranges::find(object.pins, caller.process, &Pin::process);
  if (held == object.pins.end()) {
    return error(Code::not_found, fmt::format("process {} has no pin on object {}",
                                              caller.process.to_string(), id.to_string()));
  }
  if (count == 0 || count > held->count) {
    return error(Code::invalid, fmt::format("release of {} pins on object {}; {} are held", count,
                                            id.to_string(), held->count));
  }
  if (count == held->count) {
    drop_pins(id, object, caller.process);
  } else {
    held->count -= count;
    processes_.at(caller.process).pins -= count;
  }
  free_if_unheld(found);
  return ok();
}

Status ObjectTable::release_owner(ProcessId owner, ObjectId id) {
  FreedNotice notice{*this};
  const auto found = objects_.find(id);
  if (found == objects_.end()) return no_such_object(id);
  if (found->second.owner != owner) {
    return error(Code::denied, fmt::format("process {} does not own object {}", owner.to_string(),
                                           id.to_string()));
  }
  drop_owner_hold(id, found->second);
  free_if_unheld(found);
  return ok();
}

Status ObjectTable::adopt(ProcessId owner, ObjectId id) {
  const auto found = objects_.find(id);
  if (found == objects_.end() || !found->second.sealed) return no_such_object(id);
  Object& object = found->second;
  if (object.owner != owner) {
    return error(Code::denied, fmt::format("process {} does not own object {}", owner.to_string(),
                                           id.to_string()));
  }
  object.is_copy = false;
  if (!std::exchange(object.owner_holds, true)) record_of(owner).owned.insert(id);
  return ok();
}

// --- Pressure ---

void ObjectTable::keep_room(ProcessId process, uint64_t bytes) {
  TROUPE_ASSERT(segments_.empty(), "room is kept before anybody takes it");
  room_for_ = process;
  room_bytes_ = std::min(page_floor(bytes), capacity_bytes_);
}

std::vector<Evictee> ObjectTable::evictees(Caller caller, uint64_t size_bytes,
                                           uint64_t batch_bytes) const {
  std::vector<Evictee> leaving;
  const auto take = [&](const Entry& entry) {
    const Object& object = entry.second;
    leaving.push_back(
        {object.producer, entry.first, object.block, !object.spilled && !object.is_copy});
  };
  const auto own = segment_of(caller);
  if (!own || size_bytes > capacity_bytes_) return leaving;
  const uint64_t wanted = std::max(block_bytes(size_bytes), batch_bytes);
  uint64_t bytes = 0;
  std::map<SegmentId, uint64_t> idle_bytes;
  for (const Entry* entry = coldest_; entry != nullptr; entry = entry->second.hotter) {
    const Block& block = entry->second.block;
    idle_bytes[block.segment] += block_bytes(block.size_bytes);
    if (block.segment != *own || bytes >= wanted) continue;
    bytes += block_bytes(block.size_bytes);
    take(*entry);
  }
  if (!leaving.empty()) return leaving;
  // Those that give most memory for what has to leave come first.
  std::vector<std::pair<double, SegmentId>> others;
  for (const auto& [id, idle] : idle_bytes) {
    const Segment& other = segments_.at(id);
    if (idle != other.allocator.used_bytes()) continue;
    others.emplace_back(static_cast<double>(idle) / static_cast<double>(other.committed_bytes()),
                        id);
  }
  std::ranges::sort(others);
  const Segment& segment = segments_.at(*own);
  uint64_t memory = touched_bytes_max(segment, size_bytes) - segment.committed_bytes();
  std::map<SegmentId, bool> emptied;
  for (const auto& [cost, id] : others) {
    if (memory >= block_bytes(size_bytes)) break;
    memory += segments_.at(id).committed_bytes();
    emptied[id] = true;
  }
  for (const Entry* entry = coldest_; entry != nullptr; entry = entry->second.hotter) {
    if (emptied.contains(entry->second.block.segment)) take(*entry);
  }
  return leaving;
}

Status ObjectTable::set_spilled(ObjectId id) {
  const auto found = objects_.find(id);
  if (found == objects_.end()) return no_such_object(id);
  Object& object = found->second;
  if (!object.sealed || object.is_copy || object.spilled) {
    return error(Code::conflict, fmt::format("object {} is not to be spilled", id.to_string()));
  }
  object.spilled = true;
  ++spilled_objects_;
  spilled_bytes_ += page_ceil(object.block.size_bytes);
  return ok();
}

Status ObjectTable::evict(ObjectId id) {
  FreedNotice notice{*this};
  const auto found = objects_.find(id);
  if (found == objects_.end()) return no_such_object(id);
  Object& object = found->second;
  if (!object.idle || (!object.spilled && !object.is_copy)) {
    return error(Code::conflict, fmt::format("object {} has to stay in memory", id.to_string()));
  }
  if (object.is_copy) {
    erase(found);
    return ok();
  }
  unlink(*found);
  free_block(object);
  return ok();
}

bool ObjectTable::is_out(ObjectId id) const {
  const auto found = objects_.find(id);
  return found != objects_.end() && found->second.residence != Residence::in_memory;
}

Result<Block> ObjectTable::restore(Caller caller, ObjectId id) {
  TROUPE_TRY(const auto found, find(caller, id));
  Object& object = found->second;
  if (object.residence != Residence::on_disk) {
    return error(Code::conflict, fmt::format("object {} is not out on disk", id.to_string()));
  }
  CreateRequest request;
  request.object = id;
  request.size_bytes = object.block.size_bytes;
  TROUPE_TRY(object.block, place(caller, request, object.handle));
  object.residence = Residence::restoring;
  return object.block;
}

Status ObjectTable::restored(ObjectId id) {
  const auto found = objects_.find(id);
  if (found == objects_.end()) return no_such_object(id);
  if (found->second.residence != Residence::restoring) {
    return error(Code::conflict, fmt::format("object {} is not being restored", id.to_string()));
  }
  found->second.residence = Residence::in_memory;
  update_idle(*found);
  return ok();
}

Status ObjectTable::restore_failed(ObjectId id) {
  FreedNotice notice{*this};
  const auto found = objects_.find(id);
  if (found == objects_.end()) return no_such_object(id);
  if (found->second.residence != Residence::restoring) {
    return error(Code::conflict, fmt::format("object {} is not being restored", id.to_string()));
  }
  free_block(found->second);
  return ok();
}

// --- Looking in ---

Stats ObjectTable::stats() const {
  Stats stats{.capacity_bytes = capacity_bytes_,
              .used_bytes = used_bytes_,
              .committed_bytes = committed_bytes_,
              .objects = objects_.size(),
              .unsealed_objects = unsealed_objects_,
              .pinned_objects = pinned_objects_,
              .pinned_bytes = pinned_bytes_,
              .spilled_objects = spilled_objects_,
              .spilled_bytes = spilled_bytes_,
              .segments = segments_.size()};
  std::map<ProcessId, ProcessStats> by_process;
  for (const auto& [id, process] : processes_) {
    if (process.workplaces.empty()) continue;  // An owner on another node.
    by_process[id] = {.process = id, .alive = true, .pins = process.pins};
  }
  for (const auto& [id, segment] : segments_) {
    ProcessStats& entry = by_process[segment.producer.process];
    entry.process = segment.producer.process;
    entry.used_bytes += segment.allocator.used_bytes();
    entry.committed_bytes += segment.committed_bytes();
    entry.objects += segment.allocator.blocks() - segment.reserved.size();
    entry.reserved_bytes += segment.reserved_bytes();
  }
  for (const auto& [id, entry] : by_process) stats.processes.push_back(entry);
  return stats;
}

std::vector<ObjectInfo> ObjectTable::list(size_t count_max) const {
  std::vector<ObjectInfo> infos;
  for (const auto& [id, object] : objects_) {
    if (infos.size() == count_max) break;
    uint64_t pins = 0;
    for (const Pin& pin : object.pins) pins += pin.count;
    infos.push_back({.object = id,
                     .job = object.producer.job,
                     .producer = object.producer.process,
                     .owner = object.owner,
                     .block = object.block,
                     .sealed = object.sealed,
                     .owner_holds = object.owner_holds,
                     .resident = object.residence == Residence::in_memory,
                     .spilled = object.spilled,
                     .is_copy = object.is_copy,
                     .pins = pins,
                     .created = object.created});
  }
  return infos;
}

// --- Inside ---

const ObjectTable::Workplace* ObjectTable::workplace(Caller caller) const {
  const auto found = processes_.find(caller.process);
  if (found == processes_.end()) return nullptr;
  const auto& places = found->second.workplaces;
  const auto place = std::ranges::find(places, caller.job, &Workplace::job);
  return place == places.end() ? nullptr : &*place;
}

ObjectTable::Workplace* ObjectTable::workplace(Caller caller) {
  return const_cast<Workplace*>(std::as_const(*this).workplace(caller));
}

Status ObjectTable::check_attached(Caller caller) const {
  if (workplace(caller) != nullptr) return ok();
  return error(Code::denied, fmt::format("process {} does not work for job {} on this node",
                                         caller.process.to_string(), caller.job.to_string()));
}

Result<ObjectTable::Objects::const_iterator> ObjectTable::find(Caller caller, ObjectId id) const {
  TROUPE_CHECK(check_attached(caller));
  const auto found = objects_.find(id);
  if (found == objects_.end()) return no_such_object(id);
  if (found->second.producer.job != caller.job) {
    return error(Code::denied, fmt::format("object {} is another job's", id.to_string()));
  }
  return found;
}

Result<ObjectTable::Objects::iterator> ObjectTable::find(Caller caller, ObjectId id) {
  TROUPE_TRY(const auto found, std::as_const(*this).find(caller, id));
  return objects_.erase(found, found);  // Erases nothing: it makes the iterator a mutable one.
}

Result<ObjectTable::Objects::iterator> ObjectTable::find_as_producer(Caller caller, ObjectId id) {
  TROUPE_TRY(const auto object, find(caller, id));
  if (object->second.producer != caller) {
    return error(Code::denied, fmt::format("process {} did not create object {}",
                                           caller.process.to_string(), id.to_string()));
  }
  return object;
}

uint64_t ObjectTable::touched_bytes_max(const Segment& segment, uint64_t size_bytes) const {
  const uint64_t own = segment.committed_bytes();
  const uint64_t left = capacity_bytes_ - (committed_bytes_ - own);
  if (segment.producer.process == room_for_) return left;
  if (block_bytes(size_bytes) > capacity_bytes_ - room_bytes_) return left;
  const uint64_t kept = room_bytes_ - std::min(room_bytes_, room_committed_bytes_);
  return std::max(own, left - std::min(left, kept));
}

Error ObjectTable::does_not_fit(const CreateRequest& request) const {
  const uint64_t need = block_bytes(request.size_bytes);
  const uint64_t unused = capacity_bytes_ - used_bytes_;
  const char* why = need <= unused ? "in pieces, or held by segments of other processes" : "unused";
  return error(Code::exhausted,
               fmt::format("{} needs {} bytes; {} of {} are free ({})", name_of(request.object),
                           need, unused, capacity_bytes_, why));
}

void ObjectTable::free_if_unheld(Objects::iterator found) {
  const Object& object = found->second;
  if (object.sealed && !object.owner_holds && object.pins.empty()) erase(found);
}

void ObjectTable::erase(Objects::iterator found) {
  const ObjectId id = found->first;
  Object& object = found->second;
  const bool owner_held = object.owner_holds;
  while (!object.pins.empty()) drop_pins(id, object, object.pins.back().process);
  drop_owner_hold(id, object);
  if (!object.sealed) {
    --unsealed_objects_;
    processes_.at(object.producer.process).unsealed.erase(id);
  }
  if (object.idle) unlink(*found);
  if (object.spilled) {
    --spilled_objects_;
    spilled_bytes_ -= page_ceil(object.block.size_bytes);
  }
  if (object.spilled || object.is_copy) {
    gone_.push_back({id, object.spilled, object.is_copy, owner_held});
  }
  if (object.residence != Residence::on_disk) free_block(object);
  objects_.erase(found);
  freed_ = true;
}

void ObjectTable::free_block(Object& object) {
  const SegmentId segment = object.block.segment;
  used_bytes_ -= block_bytes(object.block.size_bytes);
  segments_.at(segment).allocator.free(object.handle);
  object.residence = Residence::on_disk;
  freed_ = true;
  drop_if_done(segment);
}

void ObjectTable::update_idle(Entry& entry) {
  Object& object = entry.second;
  const bool idle =
      object.sealed && object.pins.empty() && object.residence == Residence::in_memory;
  if (idle == object.idle) return;
  if (!idle) return unlink(entry);
  object.idle = true;
  object.colder = hottest_;
  object.hotter = nullptr;
  (hottest_ != nullptr ? hottest_->second.hotter : coldest_) = &entry;
  hottest_ = &entry;
}

void ObjectTable::unlink(Entry& entry) {
  Object& object = entry.second;
  (object.colder != nullptr ? object.colder->second.hotter : coldest_) = object.hotter;
  (object.hotter != nullptr ? object.hotter->second.colder : hottest_) = object.colder;
  object.idle = false;
}

void ObjectTable::drop_pins(ObjectId id, Object& object, ProcessId process) {
  const auto held = std::ranges::find(object.pins, process, &Pin::process);
  Process& record = processes_.at(process);
  record.pins -= held->count;
  record.pinned.erase(id);
  object.pins.erase(held);
  if (!object.pins.empty()) return;
  --pinned_objects_;
  pinned_bytes_ -= block_bytes(object.block.size_bytes);
  update_idle(*objects_.find(id));
  if (object.idle) freed_ = true;  // It may make room.
}

void ObjectTable::drop_owner_hold(ObjectId id, Object& object) {
  if (!std::exchange(object.owner_holds, false)) return;
  const auto owner = processes_.find(object.owner);
  owner->second.owned.erase(id);
  // A remote owner's record lives as long as its holds.
  if (owner->second.workplaces.empty() && owner->second.owned.empty()) processes_.erase(owner);
}

void ObjectTable::orphan(SegmentId id) {
  Segment& segment = segments_.at(id);
  free_reserved(segment, 0, segment.allocator.size_bytes());
  segment.state = SegmentState::orphaned;
  drop_if_done(id);
}

void ObjectTable::drop_if_done(SegmentId id) {
  Segment& segment = segments_.at(id);
  if (segment.state == SegmentState::orphaned && segment.allocator.empty()) drop(id, segment);
}

void ObjectTable::drop(SegmentId id, Segment& segment) {
  segment.state = SegmentState::dropped;
  dropped_.push_back(id);
}

}  // namespace troupe::object_store
