#include "worker/object_spiller.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "worker/object_service.h"
#include "worker/timelines.h"

namespace troupe::worker {

using object_store::Caller;
using object_store::SpillPlace;

namespace {

// Small objects share a file, and a write: so much leaves at once where there is as much.
constexpr uint64_t batch_bytes_max = 32 << 20;
constexpr uint64_t batches_a_store = 16;
// Of the store is kept for what comes back, however much of the rest is pinned.
constexpr uint64_t reserved_share = 8;
constexpr Duration retry_pause = std::chrono::seconds(1);
constexpr Duration room_budget = std::chrono::seconds(60);

}  // namespace

// Pins the object for as long as somebody waits for it or has just got it.
struct ObjectSpiller::Restore {
  Restore(ObjectService& service, const Executor& executor, JobId j, ObjectId o)
      : objects(service), job(j), object(o), done(executor) {}
  Restore(const Restore&) = delete;
  Restore& operator=(const Restore&) = delete;
  ~Restore() {
    if (!pinned) return;
    (void)objects.table_.release(caller(), object, 1);
    objects.close_dropped_segments();
  }
  Caller caller() const { return {objects.self_.address.process, job}; }

  ObjectService& objects;
  JobId job;
  ObjectId object;
  bool pinned = false;
  std::optional<Status> outcome;
  Event done;
};

ObjectSpiller::ObjectSpiller(transport::Environment environment, Scope& scope,
                             const WorkerOptions& options, ObjectService& objects)
    : environment_(environment),
      scope_(scope),
      options_(options),
      objects_(objects),
      idle_(environment.loop) {}

ObjectSpiller::~ObjectSpiller() = default;

Async<Status> ObjectSpiller::start() {
  if (options_.spill_bytes_max == 0 || options_.spill_folder.empty()) co_return ok();
  auto open = [path = options_.spill_folder + "/" + options_.node.to_string()] {
    return SpillFolder::open(path);
  };
  TROUPE_CO_TRY(auto folder, co_await run_blocking(environment_, std::move(open)));
  folder_ = std::make_shared<const SpillFolder>(std::move(folder));
  object_store::ObjectTable& table = objects_.table_;
  table.keep_room(objects_.self_.address.process, table.capacity_bytes() / reserved_share);
  co_return ok();
}

void ObjectSpiller::stop() {
  if (!folder_) return;
  for (const auto& [file, count] : objects_in_) folder_->remove(file);
  folder_->remove_folder();
}

Async<Result<bool>> ObjectSpiller::make_room(Caller caller, uint64_t size_bytes) {
  if (busy_) {
    while (busy_) co_await idle_.wait();
    co_return true;
  }
  object_store::ObjectTable& table = objects_.table_;
  const uint64_t batch = std::min(batch_bytes_max, table.capacity_bytes() / batches_a_store);
  Evictees leaving = table.evictees(caller, size_bytes, batch);
  if (leaving.empty()) co_return false;
  // What lies elsewhere, too, leaves at once.
  bool left = false;
  for (const auto& one : leaving) {
    if (!one.must_be_written && table.evict(one.object)) left = true;
  }
  std::erase_if(leaving, [](const auto& one) { return !one.must_be_written; });
  objects_.close_dropped_segments();
  if (left) co_return true;
  if (!folder_) co_return false;
  if (environment_.clock.now() < retry_at_ && failure_) co_return *failure_;
  // Of other segments all has to leave, or none gives its memory back.
  const bool all = !leaving.empty() && leaving[0].block.segment != table.segment_of(caller);
  const Status spilled = co_await spill(std::move(leaving), all);
  if (!spilled) {
    if (!failure_) log::error("objects_not_spilled", {{"why", spilled.error()}});
    failure_ = spilled.error();
    retry_at_ = environment_.clock.now() + retry_pause;
    co_return *failure_;
  }
  failure_.reset();
  co_return true;
}

Async<Status> ObjectSpiller::spill(Evictees leaving, bool all) {
  object_store::ObjectTable& table = objects_.table_;
  uint64_t bytes = table.spilled_bytes();
  size_t fitting = 0;
  while (fitting < leaving.size()) {
    const uint64_t pages = leaving[fitting].block.size_bytes + object_store::page_bytes - 1;
    bytes += pages / object_store::page_bytes * object_store::page_bytes;
    if (bytes > options_.spill_bytes_max) break;
    ++fitting;
  }
  if (fitting == 0 || (all && fitting < leaving.size())) {
    co_return error(Code::exhausted,
                    fmt::format("{} bytes of objects are spilled to {}, and {} are allowed: raise "
                                "--spill-mib, or drop refs",
                                table.spilled_bytes(), folder_->path(), options_.spill_bytes_max));
  }
  leaving.resize(fitting);
  // Nobody frees what is being written, and nobody else writes meanwhile.
  struct Writing {
    ObjectSpiller& spiller;
    std::vector<std::pair<Caller, ObjectId>> pins = {};
    ~Writing() {
      for (const auto& [self, object] : pins) {
        (void)spiller.objects_.table_.release(self, object, 1);
      }
      spiller.objects_.close_dropped_segments();
      spiller.busy_ = false;
      spiller.idle_.pulse();
    }
  } writing{*this};
  busy_ = true;
  std::vector<std::pair<std::shared_ptr<SharedReader>, object_store::Block>> blocks;
  for (const auto& one : leaving) {
    const Caller self{objects_.self_.address.process, one.producer.job};
    TROUPE_CO_CHECK(table.attach(self));
    TROUPE_CO_CHECK(table.pin(self, one.object));
    writing.pins.emplace_back(self, one.object);
    blocks.emplace_back(objects_.segments_.at(one.block.segment).reader, one.block);
  }
  const uint64_t file = ++last_file_;
  const Instant began = environment_.clock.now();
  auto write = [folder = folder_, file, blocks]() -> Result<std::vector<SpillPlace>> {
    std::vector<BytesView> views;
    for (const auto& [reader, block] : blocks) {
      TROUPE_TRY(views.emplace_back(), reader->view(block.offset_bytes, block.size_bytes));
    }
    return folder->write(file, views);
  };
  TROUPE_CO_TRY(const auto places, co_await run_blocking(environment_, std::move(write)));
  uint64_t spilled_bytes = 0;
  for (size_t i = 0; i < places.size(); ++i) {
    const ObjectId object = leaving[i].object;
    ++objects_in_[file];
    places_[object] = places[i];
    spilled_bytes += places[i].size_bytes;
    // Its job may have ended meanwhile.
    if (!table.set_spilled(object)) forget(object);
  }
  for (const auto& [self, object] : std::exchange(writing.pins, {})) {
    (void)table.release(self, object, 1);
    (void)table.evict(object);  // Unless somebody reads it by now.
  }
  note(options_, {TimelineKind::spilled, "spill", {}, began, spilled_bytes, false});
  log::info("objects_spilled",
            {{"objects", places.size()},
             {"bytes", spilled_bytes},
             {"ms", (environment_.clock.now() - began) / std::chrono::milliseconds(1)}});
  co_return ok();
}

Async<Result<std::shared_ptr<const void>>> ObjectSpiller::restore(
    JobId job, ObjectId object, Instant deadline, std::shared_ptr<Event> cancelled) {
  using namespace boost::asio::experimental::awaitable_operators;
  auto& entry = restores_[object];
  if (!entry) {
    entry = std::make_shared<Restore>(objects_, environment_.loop, job, object);
    spawn(scope_, run(entry));
  }
  const auto restore = entry;
  const auto raced = co_await (restore->done.wait() || cancelled->wait() ||
                               sleep_until(environment_.clock, deadline));
  if (raced.index() == 1) co_return error(Code::cancelled, "the caller gave up");
  if (raced.index() == 2) {
    co_return error(Code::deadline_exceeded,
                    fmt::format("object {} is still being read from disk", object.to_string()));
  }
  TROUPE_CO_CHECK(*restore->outcome);
  std::shared_ptr<const void> kept = restore;
  co_return kept;
}

Async<void> ObjectSpiller::run(std::shared_ptr<Restore> restore) {
  struct Leave {
    ObjectSpiller& spiller;
    ObjectId object;
    ~Leave() { spiller.restores_.erase(object); }
  } leave{*this, restore->object};
  const auto place = places_.find(restore->object);
  const uint64_t size_bytes = place != places_.end() ? place->second.size_bytes : 0;
  const Instant began = environment_.clock.now();
  const Status outcome = co_await read_back(restore);
  note(options_, {TimelineKind::restored, "restore", restore->object, began, size_bytes, !outcome});
  if (!outcome) {
    log::warning("object_not_restored", {{"object", restore->object}, {"why", outcome.error()}});
  }
  restore->outcome = outcome;
  restore->done.set();
  objects_.wake(restore->object);
}

Async<Status> ObjectSpiller::read_back(std::shared_ptr<Restore> restore) {
  object_store::ObjectTable& table = objects_.table_;
  const Caller self = restore->caller();
  const ObjectId object = restore->object;
  TROUPE_CO_CHECK(table.attach(self));
  TROUPE_CO_CHECK(table.pin(self, object));
  restore->pinned = true;
  const auto found = places_.find(object);
  if (found == places_.end()) co_return error(Code::internal, "a spilled object has no file");
  const SpillPlace place = found->second;
  object_store::CreateRequest request;
  request.object = object;
  request.size_bytes = place.size_bytes;
  auto wanted = std::make_shared<Event>(environment_.loop);  // Never cancelled.
  const Instant deadline = environment_.clock.now() + room_budget;
  TROUPE_CO_TRY(const auto placed,
                co_await objects_.allocate_own(self, request, deadline, wanted, Placing::restore));
  struct Undo {
    ObjectService& objects;
    ObjectId object;
    bool armed = true;
    ~Undo() {
      if (armed) (void)objects.table_.restore_failed(object);
    }
  } undo{objects_, object};
  auto read = [folder = folder_, place, target = placed.target, block = placed.block]() -> Status {
    TROUPE_TRY(const auto bytes, target->prepare(block.offset_bytes, block.size_bytes));
    return folder->read(place, bytes);
  };
  auto outcome = co_await run_blocking(environment_, std::move(read));
  if (!outcome) {
    co_return std::move(outcome).error().context(fmt::format("object {}", object.to_string()));
  }
  TROUPE_CO_CHECK(table.restored(object));
  undo.armed = false;
  co_return ok();
}

void ObjectSpiller::forget(ObjectId object) {
  const auto found = places_.find(object);
  if (found == places_.end()) return;
  const SpillPlace place = found->second;
  places_.erase(found);
  const bool last = --objects_in_.at(place.file) == 0;
  if (last) objects_in_.erase(place.file);
  spawn(scope_, erase(place, last));
}

Async<void> ObjectSpiller::erase(SpillPlace place, bool whole_file) {
  auto work = [folder = folder_, place, whole_file] {
    if (whole_file) {
      folder->remove(place.file);
    } else {
      folder->erase(place);
    }
    return true;
  };
  co_await run_blocking(environment_, std::move(work));
}

}  // namespace troupe::worker
