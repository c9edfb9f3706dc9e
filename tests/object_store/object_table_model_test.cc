// The table against a naive model of it, over random histories with deaths and restarts.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "base/random.h"
#include "object_store/object_table.h"
#include "object_store/segment.h"

namespace troupe::object_store {
namespace {

constexpr uint64_t capacity = 256 * page_bytes;
constexpr size_t caller_count = 6;

struct ModelObject {
  Caller producer;
  ProcessId owner;
  Block block;
  Caller home = producer;  // In whose segment the block lies.
  bool sealed = false;
  bool owner_holds = true;
  bool spilled = false;
  bool out = false;        // There is no block.
  bool restoring = false;  // There is one that is not read yet.
  std::map<ProcessId, uint32_t> pins;

  bool held() const { return !sealed || owner_holds || !pins.empty(); }
  bool readable() const { return sealed && !out && !restoring; }
};

// A piece of an extent that is still reserved.
struct ModelExtent {
  Caller holder;
  Block block;
};

class History {
 public:
  explicit History(uint64_t seed) : random_(seed) {
    for (size_t i = 0; i < caller_count; ++i) {
      callers_.push_back({});
      start(i);
    }
    for (int i = 0; i < 3; ++i) remote_owners_.push_back(ProcessId::random(random_));
    table_.on_freed([this] { ++freed_calls_; });
  }

  void step() {
    switch (random_.below(24)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
        return create();
      case 5:
      case 6:
      case 7:
        return seal_or_abort();
      case 8:
      case 9:
        return pin();
      case 10:
      case 11:
        return release();
      case 12:
      case 13:
        return release_owner();
      case 14:
        return get();
      case 15:
        return reserve();
      case 16:
        return seal_reserved();
      case 17:
        return give_back();
      case 18:
      case 19:
        return spill();
      case 20:
      case 21:
        return restore();
      case 22:
        return adopt();
      default:
        if (random_.chance(0.05)) die();
        if (random_.chance(0.02)) table_.drop_empty_segments(1 + random_.below(capacity));
        close_dropped();
    }
  }

  void check() const {
    uint64_t used = 0, unsealed = 0, pinned = 0, pinned_bytes = 0, spilled = 0, spilled_bytes = 0;
    std::map<SegmentId, std::vector<std::pair<uint64_t, uint64_t>>> blocks;
    std::map<ProcessId, std::pair<uint64_t, uint64_t>> produced;  // Objects, bytes.
    std::map<ProcessId, uint64_t> pins;
    for (const auto& [id, object] : objects_) {
      const uint64_t share = block_bytes(object.block.size_bytes);
      unsealed += object.sealed ? 0 : 1;
      pinned += object.pins.empty() ? 0 : 1;
      pinned_bytes += object.pins.empty() ? 0 : share;
      for (const auto& [process, count] : object.pins) pins[process] += count;
      if (object.spilled) {
        ++spilled;
        spilled_bytes += (object.block.size_bytes + page_bytes - 1) / page_bytes * page_bytes;
      }
      if (object.out) continue;
      used += share;
      blocks[object.block.segment].emplace_back(object.block.offset_bytes, share);
      produced[object.home.process].first += 1;
      produced[object.home.process].second += share;
    }
    std::map<ProcessId, uint64_t> reserved;
    for (const ModelExtent& extent : extents_) {
      used += extent.block.size_bytes;
      blocks[extent.block.segment].emplace_back(extent.block.offset_bytes, extent.block.size_bytes);
      produced[extent.holder.process].second += extent.block.size_bytes;
      reserved[extent.holder.process] += extent.block.size_bytes;
    }
    const Stats stats = table_.stats();
    ASSERT_EQ(stats.used_bytes, used);
    ASSERT_EQ(stats.objects, objects_.size());
    ASSERT_EQ(stats.unsealed_objects, unsealed);
    ASSERT_EQ(stats.pinned_objects, pinned);
    ASSERT_EQ(stats.pinned_bytes, pinned_bytes);
    ASSERT_EQ(stats.spilled_objects, spilled);
    ASSERT_EQ(stats.spilled_bytes, spilled_bytes);
    ASSERT_LE(stats.committed_bytes, capacity);
    uint64_t committed = 0;
    for (const ProcessStats& entry : stats.processes) {
      const auto it = produced.find(entry.process);
      ASSERT_EQ(entry.objects, it == produced.end() ? 0 : it->second.first);
      ASSERT_EQ(entry.used_bytes, it == produced.end() ? 0 : it->second.second);
      ASSERT_EQ(entry.reserved_bytes, reserved[entry.process]);
      ASSERT_EQ(entry.pins, pins.contains(entry.process) ? pins.at(entry.process) : 0);
      ASSERT_LE(entry.used_bytes, entry.committed_bytes);
      committed += entry.committed_bytes;
    }
    ASSERT_EQ(stats.committed_bytes, committed);
    for (auto& [segment, list] : blocks) {
      std::ranges::sort(list);
      for (size_t i = 1; i < list.size(); ++i) {
        ASSERT_LE(list[i - 1].first + list[i - 1].second, list[i].first) << "blocks overlap";
      }
    }
    ASSERT_EQ(table_.list(SIZE_MAX).size(), objects_.size());
  }

  void finish() {
    for (const Caller& caller : callers_) table_.process_died(caller.process);
    for (const ProcessId owner : remote_owners_) table_.process_died(owner);
    objects_.clear();  // Nobody is left to hold them.
    extents_.clear();
    close_dropped();
    const Stats stats = table_.stats();
    EXPECT_EQ(stats.used_bytes, 0U);
    EXPECT_EQ(stats.spilled_bytes, 0U);
    EXPECT_EQ(gone_, set_spilled) << "not every file is freed";
    EXPECT_EQ(stats.committed_bytes, 0U);
    EXPECT_EQ(stats.objects, 0U);
    EXPECT_EQ(stats.segments, 0U);
    EXPECT_TRUE(stats.processes.empty());
  }

  // What happened, so that a history which tested nothing shows.
  uint64_t exhausted = 0, created = 0, deaths = 0, segments_closed = 0, sealed_reserved = 0,
           sealed_again = 0;
  uint64_t set_spilled = 0, evicted = 0, restored = 0;

 private:
  void start(size_t i) {
    callers_[i] = {ProcessId::random(random_), i < 4 ? job_ : other_job_};
    ASSERT_TRUE(table_.attach(callers_[i]));
  }
  Caller some_caller() { return callers_[random_.below(callers_.size())]; }
  ProcessId some_owner() {
    return random_.chance(0.5) ? some_caller().process
                               : remote_owners_[random_.below(remote_owners_.size())];
  }
  // Of the object, mostly; the dead do nothing any more.
  ProcessId some_owner(const ModelObject* object) {
    const bool lives =
        object != nullptr &&
        (std::ranges::find(remote_owners_, object->owner) != remote_owners_.end() ||
         std::ranges::find(callers_, object->owner, &Caller::process) != callers_.end());
    return lives && random_.chance(0.9) ? object->owner : some_owner();
  }
  // Mostly one that exists.
  ObjectId some_object() {
    if (objects_.empty() || random_.chance(0.05)) return ObjectId::random(random_);
    auto it = objects_.lower_bound(ObjectId::random(random_));
    return it == objects_.end() ? objects_.begin()->first : it->first;
  }
  ModelObject* model(ObjectId id) {
    const auto it = objects_.find(id);
    return it == objects_.end() ? nullptr : &it->second;
  }
  void drop_unheld(ObjectId id) {
    if (!objects_.at(id).held()) objects_.erase(id);
  }
  template <class T>
  static Code code_of(const Result<T>& result) {
    return result ? Code::ok : result.error().code();
  }

  void create() {
    const Caller caller = some_caller();
    if (!table_.segment_of(caller)) {
      ASSERT_TRUE(table_.add_segment(caller, 2 * capacity));
    }
    const ObjectId id = random_.chance(0.1) ? some_object() : ObjectId::random(random_);
    const CreateRequest request{.object = id,
                                .owner = some_owner(),
                                .size_bytes = random_.below(uint64_t{1} << random_.below(18))};
    const bool fits = table_.can_fit(caller, request.size_bytes);
    const auto block = table_.create(caller, request, Instant{});
    if (const ModelObject* known = model(id)) {
      const bool retry = known->producer == caller && known->owner == request.owner &&
                         !known->sealed && known->block.size_bytes == request.size_bytes;
      ASSERT_EQ(code_of(block), retry ? Code::ok : Code::conflict);
      return;
    }
    ASSERT_EQ(code_of(block), fits ? Code::ok : Code::exhausted);
    ++(fits ? created : exhausted);
    if (!fits) return;
    ASSERT_EQ(block->segment, table_.segment_of(caller));
    ASSERT_EQ(block->size_bytes, request.size_bytes);
    objects_[id] = {.producer = caller, .owner = request.owner, .block = *block, .home = caller};
  }

  void reserve() {
    const Caller caller = some_caller();
    if (!table_.segment_of(caller)) {
      ASSERT_EQ(code_of(table_.reserve(caller, 1)), Code::conflict);
      return;
    }
    const uint64_t size = random_.below(uint64_t{1} << random_.below(15));
    const bool fits = table_.can_fit(caller, size);
    const auto block = table_.reserve(caller, size);
    ASSERT_EQ(code_of(block), fits ? Code::ok : Code::exhausted);
    if (!fits) return;
    ASSERT_EQ(block->size_bytes, block_bytes(size));
    extents_.push_back({caller, *block});
  }

  void seal_reserved() {
    if (extents_.empty()) return;
    const size_t i = random_.below(extents_.size());
    const ModelExtent extent = extents_[i];
    const uint64_t units = extent.block.size_bytes / block_alignment_bytes;
    const uint64_t before = random_.below(units);
    const ObjectId id = random_.chance(0.3) ? some_object() : ObjectId::random(random_);
    ModelObject* const earlier = model(id);
    SealedObject sealed{id, some_owner(earlier),
                        extent.block.offset_bytes + before * block_alignment_bytes,
                        1 + random_.below(extent.block.size_bytes), random_.chance(0.5)};
    const uint64_t share = block_bytes(sealed.size_bytes);
    const uint64_t room = extent.block.size_bytes - before * block_alignment_bytes;
    const Caller caller = random_.chance(0.9) ? extent.holder : some_caller();
    const Code code =
        code_of(table_.seal_reserved(caller, extent.block.segment, sealed, Instant{}));
    if (caller != extent.holder) {
      ASSERT_EQ(code, Code::denied);
      return;
    }
    const bool again = earlier != nullptr && earlier->sealed && earlier->owner == sealed.owner &&
                       earlier->producer.job == caller.job;
    if (earlier != nullptr && !again) {
      ASSERT_EQ(code, Code::conflict);
      return;
    }
    // What lies behind may be reserved, too, but is another extent.
    ASSERT_EQ(code, share <= room ? Code::ok : Code::denied);
    if (code != Code::ok) return;
    ++sealed_reserved;
    extents_.erase(extents_.begin() + static_cast<std::ptrdiff_t>(i));
    Block rest = extent.block;
    rest.size_bytes = before * block_alignment_bytes;
    if (rest.size_bytes > 0) extents_.push_back({extent.holder, rest});
    rest.offset_bytes = sealed.offset_bytes + share;
    rest.size_bytes = room - share;
    if (rest.size_bytes > 0) extents_.push_back({extent.holder, rest});
    if (again) {
      ++sealed_again;
      earlier->owner_holds = true;
      if (sealed.pinned) ++earlier->pins[caller.process];
      return;
    }
    const Block block{extent.block.segment, sealed.offset_bytes, sealed.size_bytes};
    ModelObject& made = objects_[sealed.object];
    made = {
        .producer = caller, .owner = sealed.owner, .block = block, .home = caller, .sealed = true};
    if (sealed.pinned) made.pins[caller.process] = 1;
  }

  void give_back() {
    if (extents_.empty()) return;
    const ModelExtent extent = extents_[random_.below(extents_.size())];
    const Caller caller = random_.chance(0.9) ? extent.holder : some_caller();
    // Perhaps with what is reserved behind it.
    const uint64_t size = extent.block.size_bytes * (1 + random_.below(3));
    const Code code =
        code_of(table_.give_back(caller, extent.block.segment, extent.block.offset_bytes, size));
    ASSERT_EQ(code, caller == extent.holder ? Code::ok : Code::denied);
    if (code != Code::ok) return;
    std::erase_if(extents_, [&](const ModelExtent& one) {
      return one.block.segment == extent.block.segment &&
             one.block.offset_bytes >= extent.block.offset_bytes &&
             one.block.offset_bytes < extent.block.offset_bytes + size;
    });
  }

  void seal_or_abort() {
    const ObjectId id = some_object();
    ModelObject* object = model(id);
    const Caller caller =
        object != nullptr && random_.chance(0.8) ? object->producer : some_caller();
    const bool alive = std::ranges::find(callers_, caller) != callers_.end();
    const bool aborts = random_.chance(0.2);
    const Code code = code_of(aborts ? table_.abort(caller, id) : table_.seal(caller, id));
    if (!alive) {
      ASSERT_EQ(code, Code::denied);
    } else if (object == nullptr) {
      ASSERT_EQ(code, Code::not_found);
    } else if (object->producer != caller) {
      ASSERT_EQ(code, Code::denied);
    } else if (aborts) {
      ASSERT_EQ(code, object->sealed ? Code::conflict : Code::ok);
      if (!object->sealed) objects_.erase(id);
    } else {
      ASSERT_EQ(code, Code::ok);
      object->sealed = true;
      drop_unheld(id);
    }
  }

  void get() {
    const ObjectId id = some_object();
    const Caller caller = some_caller();
    const auto found = table_.get(caller, id);
    const ModelObject* object = model(id);
    if (object == nullptr) {
      ASSERT_EQ(code_of(found), Code::not_found);
    } else if (object->producer.job != caller.job) {
      ASSERT_EQ(code_of(found), Code::denied);
    } else {
      ASSERT_EQ(found.value(), object->readable() ? std::optional{object->block} : std::nullopt);
      ASSERT_EQ(table_.is_out(id), object->out || object->restoring);
    }
  }

  void spill() {
    const ObjectId id = some_object();
    ModelObject* object = model(id);
    if (random_.chance(0.5)) {
      const Code code = code_of(table_.set_spilled(id));
      const bool right = object != nullptr && object->sealed && !object->spilled;
      ASSERT_EQ(code, object == nullptr ? Code::not_found : right ? Code::ok : Code::conflict);
      if (!right) return;
      object->spilled = true;
      ++set_spilled;
    }
    const Code code = code_of(table_.evict(id));
    const bool right =
        object != nullptr && object->readable() && object->spilled && object->pins.empty();
    ASSERT_EQ(code, object == nullptr ? Code::not_found : right ? Code::ok : Code::conflict);
    if (!right) return;
    object->out = true;
    ++evicted;
  }

  void restore() {
    // Half of those that began go on, or back.
    for (auto& [id, object] : objects_) {
      if (!object.restoring || random_.chance(0.5)) continue;
      object.restoring = false;
      object.out = random_.chance(0.3);
      ASSERT_TRUE(object.out ? table_.restore_failed(id) : table_.restored(id));
      restored += object.out ? 0 : 1;
    }
    const auto found =
        std::ranges::find_if(objects_, [](const auto& one) { return one.second.out; });
    if (found == objects_.end()) return;
    auto& [id, object] = *found;
    const Caller caller = some_caller();
    if (caller.job != object.producer.job || !table_.segment_of(caller)) return;
    ASSERT_TRUE(table_.pin(caller, id));
    ++object.pins[caller.process];
    const bool fits = table_.can_fit(caller, object.block.size_bytes);
    const auto block = table_.restore(caller, id);
    ASSERT_EQ(code_of(block), fits ? Code::ok : Code::exhausted);
    if (!fits) return;
    ASSERT_EQ(code_of(table_.restore(caller, id)), Code::conflict);
    object.block = *block;
    object.home = caller;
    object.out = false;
    object.restoring = true;
  }

  void pin() {
    const ObjectId id = some_object();
    const Caller caller = some_caller();
    const Code code = code_of(table_.pin(caller, id));
    ModelObject* object = model(id);
    if (object == nullptr) {
      ASSERT_EQ(code, Code::not_found);
    } else if (object->producer.job != caller.job) {
      ASSERT_EQ(code, Code::denied);
    } else {
      ASSERT_EQ(code, Code::ok);
      ++object->pins[caller.process];
    }
  }

  void release() {
    const ObjectId id = some_object();
    ModelObject* object = model(id);
    Caller caller = some_caller();
    if (object != nullptr && !object->pins.empty() && random_.chance(0.9)) {
      const ProcessId holder = object->pins.begin()->first;
      caller = *std::ranges::find(callers_, holder, &Caller::process);
    }
    const auto count = static_cast<uint32_t>(random_.below(4));
    const Code code = code_of(table_.release(caller, id, count));
    if (object == nullptr || !object->pins.contains(caller.process)) {
      ASSERT_EQ(code, Code::not_found);
      return;
    }
    uint32_t& held = object->pins.at(caller.process);
    ASSERT_EQ(code, count == 0 || count > held ? Code::invalid : Code::ok);
    if (code != Code::ok) return;
    held -= count;
    if (held == 0) object->pins.erase(caller.process);
    drop_unheld(id);
  }

  void release_owner() {
    const ObjectId id = some_object();
    ModelObject* object = model(id);
    const ProcessId owner = object != nullptr && random_.chance(0.9) ? object->owner : some_owner();
    const Code code = code_of(table_.release_owner(owner, id));
    if (object == nullptr) {
      ASSERT_EQ(code, Code::not_found);
    } else if (object->owner != owner) {
      ASSERT_EQ(code, Code::denied);
    } else {
      ASSERT_EQ(code, Code::ok);
      object->owner_holds = false;
      drop_unheld(id);
    }
  }

  void adopt() {
    const ObjectId id = some_object();
    ModelObject* object = model(id);
    const ProcessId owner = some_owner(object);
    const Code code = code_of(table_.adopt(owner, id));
    if (object == nullptr || !object->sealed) {
      ASSERT_EQ(code, Code::not_found);
    } else if (object->owner != owner) {
      ASSERT_EQ(code, Code::denied);
    } else {
      ASSERT_EQ(code, Code::ok);
      object->owner_holds = true;
    }
  }

  void die() {
    ++deaths;
    const bool remote = random_.chance(0.2);
    const uint64_t i = random_.below(remote ? remote_owners_.size() : callers_.size());
    const ProcessId dead = remote ? remote_owners_[i] : callers_[i].process;
    const uint64_t calls = freed_calls_;
    const size_t before = objects_.size();
    bool unpinned = false;  // So that it may leave memory.
    table_.process_died(dead);
    for (auto it = objects_.begin(); it != objects_.end();) {
      ModelObject& object = it->second;
      if (object.pins.erase(dead) > 0 && object.pins.empty()) unpinned |= object.readable();
      if (object.owner == dead) object.owner_holds = false;
      const bool reclaimed = !object.sealed && object.producer.process == dead;
      it = reclaimed || !object.held() ? objects_.erase(it) : std::next(it);
    }
    const size_t extents_gone =
        std::erase_if(extents_, [&](const ModelExtent& one) { return one.holder.process == dead; });
    const bool frees = objects_.size() < before || extents_gone > 0 || unpinned;
    ASSERT_EQ(freed_calls_ - calls, frees ? 1U : 0U);
    if (remote) {
      remote_owners_[i] = ProcessId::random(random_);
    } else {
      start(i);
    }
  }

  void close_dropped() {
    for (const Gone& gone : table_.take_gone()) {
      ASSERT_TRUE(gone.spilled);
      ASSERT_FALSE(objects_.contains(gone.object));
      ++gone_;
    }
    for (const SegmentId id : table_.take_dropped()) {
      for (const auto& [object_id, object] : objects_) {
        ASSERT_TRUE(object.out || object.block.segment != id);
      }
      for (const ModelExtent& extent : extents_) ASSERT_NE(extent.block.segment, id);
      ASSERT_TRUE(table_.segment_closed(id));
      ++segments_closed;
    }
  }

  SeededRandom random_;
  ObjectTable table_{capacity, random_};
  const JobId job_ = JobId::random(random_);
  const JobId other_job_ = JobId::random(random_);
  std::vector<Caller> callers_;
  std::vector<ProcessId> remote_owners_;
  std::map<ObjectId, ModelObject> objects_;
  std::vector<ModelExtent> extents_;
  uint64_t freed_calls_ = 0;
  uint64_t gone_ = 0;  // That were spilled.
};

TEST(ObjectTable, AgreesWithANaiveModelOverRandomHistories) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(fmt::format("TROUPE_SEED={}", seed));
    History history{seed};
    for (int step = 0; step < 10'000; ++step) {
      history.step();
      if (step % 20 == 0) history.check();
      if (testing::Test::HasFatalFailure()) return;
    }
    history.finish();
    EXPECT_GT(history.created, 500U);
    EXPECT_GT(history.exhausted, 10U);
    EXPECT_GT(history.sealed_reserved, 50U);
    EXPECT_GT(history.sealed_again, 0U);
    EXPECT_GT(history.evicted, 20U);
    EXPECT_GT(history.restored, 20U);
    EXPECT_GT(history.deaths, 10U);
    EXPECT_GT(history.segments_closed, 5U);
  }
}

}  // namespace
}  // namespace troupe::object_store
