#include "worker/object_service.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "object_store/transfer.h"
#include "protocol/object_list.h"

namespace troupe::worker {

using object_store::CreateRequest;
using protocol::Empty;
using transport::Message;

namespace {

constexpr Duration drop_budget = std::chrono::seconds(5);
constexpr Duration ask_again_after = std::chrono::seconds(1);
// What a process gets beyond what it needs, for its next blocks.
constexpr uint64_t extent_bytes_min = 1 << 20;
constexpr uint64_t extent_bytes_max = 64 << 20;
constexpr Duration copy_patience_max = std::chrono::seconds(5);
constexpr const char* no_segment = "the process has no segment: attach one";

// Answers must arrive before the caller's own timer fires.
Instant answer_by(Instant deadline, Instant now) {
  const Duration budget = deadline - now;
  return deadline - std::min<Duration>(budget / 10, std::chrono::milliseconds(100));
}

}  // namespace

ObjectService::ObjectService(transport::Environment environment, Scope& scope,
                             const WorkerOptions& options, transport::Service& service)
    : environment_(environment),
      scope_(scope),
      options_(options),
      table_(options.store_capacity_bytes, environment.random),
      freed_(environment.loop),
      self_alive_(std::make_shared<ObjectService*>(this)),
      puller_(environment, scope, *this, service),
      spiller_(environment, scope, options, *this) {
  table_.on_freed([this] {
    settle_gone();
    freed_.pulse();
  });
}

Async<Status> ObjectService::start() {
  return spiller_.start();
}

void ObjectService::settle_gone() {
  for (const object_store::Gone& gone : table_.take_gone()) {
    if (gone.spilled) spiller_.forget(gone.object);
    const auto owner = copy_owners_.find(gone.object);
    if (owner == copy_owners_.end()) continue;
    // An owner that still has refs hands the node out to readers until it knows.
    if (gone.owner_held) {
      protocol::ObjectCopied notice{gone.object, self_.address, true};
      spawn(scope_, tell_owner(owner->second, std::move(notice)));
    }
    copy_owners_.erase(owner);
  }
}

Async<void> ObjectService::tell_owner(protocol::ProcessAddress owner,
                                      protocol::ObjectCopied notice) {
  const ObjectId object = notice.object;
  const bool dropped = notice.dropped;
  const ProcessId owner_process = owner.process;
  auto peer = co_await puller_.peer_of(std::move(owner), 0);
  Result<Empty> told = error(Code::unavailable, "the owner is gone");
  if (peer) {
    told = co_await transport::call<Empty>(*peer, transport::Method::object_copied,
                                           std::move(notice), drop_budget);
  }
  if (told || dropped || told.error().code() != Code::not_found) co_return;
  // Freed by its owner before it was here: nobody else would free the copy.
  log::debug("copy_unwanted", {{"object", object}, {"why", told.error()}});
  copy_owners_.erase(object);
  (void)table_.release_owner(owner_process, object);
  close_dropped_segments();
}

// --- Segments and processes

Status ObjectService::attach(Caller caller) {
  TROUPE_CHECK(table_.attach(caller));
  jobs_[caller.job].insert(caller.process);
  return ok();
}

Async<Result<protocol::SegmentAttached>> ObjectService::attach_segment(Message message,
                                                                       Caller caller,
                                                                       CallContext call) {
  if (message.descriptors.size() != 1) {
    co_return error(Code::invalid, "attach_segment needs one descriptor beside it");
  }
  TROUPE_CO_CHECK(attach(caller));
  TROUPE_CO_TRY(const auto id, add_segment(caller, std::move(message.descriptors[0])));
  segments_.at(id).holders[caller.process] = call.peer;
  co_return protocol::SegmentAttached{id.number};
}

Result<object_store::SegmentId> ObjectService::add_segment(Caller caller,
                                                           FileDescriptor descriptor) {
  TROUPE_TRY(auto reader, object_store::ReaderSegment::open(std::move(descriptor)));
  TROUPE_TRY(const auto id, table_.add_segment(caller, reader.size_bytes()));
  segments_.emplace(id, Segment{std::make_shared<SharedReader>(std::move(reader)), {}});
  return id;
}

void ObjectService::close_dropped_segments() {
  for (const auto id : table_.take_dropped()) {
    std::vector<std::shared_ptr<transport::Peer>> holders;
    for (const auto& [process, weak] : segments_.at(id).holders) {
      if (auto peer = weak.lock(); peer && peer->is_open()) holders.push_back(std::move(peer));
    }
    segments_.erase(id);
    puller_.drop_segment(id);
    if (holders.empty()) {
      (void)table_.segment_closed(id);
    } else {
      spawn(scope_, close_segment(id, std::move(holders)));
    }
  }
}

Async<void> ObjectService::close_segment(object_store::SegmentId id,
                                         std::vector<std::shared_ptr<transport::Peer>> holders) {
  for (const auto& holder : holders) {
    protocol::DropSegments request{{id.number}};
    auto dropped = co_await transport::call<Empty>(holder, transport::Method::drop_segments,
                                                   request, drop_budget);
    if (!dropped) {
      log::debug("segment_not_dropped",
                 {{"process", holder->remote().address.process}, {"why", dropped.error()}});
    }
  }
  (void)table_.segment_closed(id);
}

void ObjectService::process_died(ProcessId process) {
  for (auto& [job, processes] : jobs_) processes.erase(process);
  table_.process_died(process);
  close_dropped_segments();
}

std::vector<JobId> ObjectService::idle_jobs() const {
  std::vector<JobId> idle;
  for (const auto& [job, processes] : jobs_) {
    if (processes.empty()) idle.push_back(job);
  }
  return idle;
}

void ObjectService::end_job(JobId job) {
  log::info("job_objects_freed", {{"job", job}});
  table_.end_job(job);
  puller_.end_job(job);
  jobs_.erase(job);
  close_dropped_segments();
}

// --- Blocks

Async<Result<object_store::Block>> ObjectService::allocate(Caller caller, CreateRequest request,
                                                           Instant deadline,
                                                           std::shared_ptr<Event> cancelled,
                                                           Placing placing) {
  using namespace boost::asio::experimental::awaitable_operators;
  for (;;) {
    // It may be among those dropped for want of memory.
    if (!table_.segment_of(caller)) co_return error(Code::not_found, no_segment);
    auto block = place(caller, request, placing);
    if (block || block.error().code() != Code::exhausted) co_return block;
    // Segments that are empty now still have the memory that was written once.
    if (table_.drop_empty_segments(request.size_bytes) > 0) {
      close_dropped_segments();
      continue;
    }
    if (cancelled->is_set()) co_return error(Code::cancelled, "the caller gave up");
    auto room = co_await spiller_.make_room(caller, request.size_bytes);
    if (room && *room && environment_.clock.now() < deadline) continue;
    // What only the processes know of, and what they look at, cannot leave before they let go.
    ask_for_memory();
    // Waiters wake in the order of their arrival, and each tries at once.
    const Instant until = std::min(deadline, environment_.clock.now() + ask_again_after);
    const auto raced =
        co_await (freed_.wait() || cancelled->wait() || sleep_until(environment_.clock, until));
    if (raced.index() == 1) co_return error(Code::cancelled, "the caller gave up");
    if (environment_.clock.now() >= deadline) {
      Error why = std::move(block).error();
      if (!room) why = error(Code::exhausted, why.message() + "; " + room.error().message());
      co_return std::move(why).after(std::chrono::milliseconds(100));
    }
  }
}

Async<Result<ObjectService::OwnBlock>> ObjectService::allocate_own(Caller self,
                                                                   CreateRequest request,
                                                                   Instant deadline,
                                                                   std::shared_ptr<Event> cancelled,
                                                                   Placing placing) {
  for (;;) {
    // The segment may be among those dropped for want of memory.
    TROUPE_CO_CHECK(puller_.target_of(self));
    auto block = co_await allocate(self, request, deadline, cancelled, placing);
    if (block) {
      // Only now: it may have been dropped while this waited, and another one made by somebody
      // else.
      TROUPE_CO_TRY(auto target, puller_.target_of(self));
      TROUPE_ASSERT(target->id() == block->segment, "a block lies in the present segment");
      OwnBlock own{std::move(target), *block};
      co_return own;
    }
    if (block.error().code() != Code::not_found || table_.segment_of(self)) {
      co_return std::move(block).error();
    }
  }
}

Result<object_store::Block> ObjectService::place(Caller caller, const CreateRequest& request,
                                                 Placing placing) {
  switch (placing) {
    case Placing::restore:
      return table_.restore(caller, request.object);
    case Placing::reserve:
      return table_.reserve(caller, request.size_bytes);
    case Placing::create:
      break;
  }
  return table_.create(caller, request, environment_.clock.now());
}

void ObjectService::ask_for_memory() {
  if (std::exchange(asks_for_memory_, true)) return;
  std::map<ProcessId, std::shared_ptr<transport::Peer>> processes;
  for (const auto& [id, segment] : segments_) {
    for (const auto& [process, weak] : segment.holders) {
      if (auto peer = weak.lock(); peer && peer->is_open()) processes[process] = std::move(peer);
    }
  }
  std::vector<std::shared_ptr<transport::Peer>> peers;
  for (auto& [process, peer] : processes) peers.push_back(std::move(peer));
  spawn(scope_, collect_memory(std::move(peers)));
}

Async<void> ObjectService::collect_memory(std::vector<std::shared_ptr<transport::Peer>> processes) {
  struct Done {
    bool& asks;
    ~Done() { asks = false; }
  } done{asks_for_memory_};
  for (const auto& process : processes) {
    protocol::DropSegments nothing_dropped;
    auto given = co_await transport::call<Empty>(process, transport::Method::drop_segments,
                                                 std::move(nothing_dropped), drop_budget);
    if (!given) {
      log::debug("memory_not_given",
                 {{"process", process->remote().address.process}, {"why", given.error()}});
    }
  }
}

Async<Result<protocol::Block>> ObjectService::reserve_extent(protocol::ReserveExtent request,
                                                             Caller caller, CallContext call) {
  TROUPE_CO_CHECK(attach(caller));
  if (!table_.segment_of(caller)) co_return error(Code::not_found, no_segment);
  const uint64_t generous = std::min(
      std::clamp(table_.segment_used_bytes(caller) / 4, extent_bytes_min, extent_bytes_max),
      table_.capacity_bytes() / 64);
  CreateRequest extent;  // Of no object.
  extent.size_bytes = std::max(request.size_bytes, generous);
  if (!table_.can_fit(caller, extent.size_bytes)) extent.size_bytes = request.size_bytes;
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  TROUPE_CO_TRY(const auto block,
                co_await allocate(caller, extent, deadline, call.cancelled, Placing::reserve));
  if (!call.peer->is_open() || call.cancelled->is_set()) {
    // Nobody will use it.
    (void)table_.give_back(caller, block.segment, block.offset_bytes, block.size_bytes);
    co_return error(Code::cancelled, "the caller gave up");
  }
  co_return protocol::Block{block.segment.number, block.offset_bytes, block.size_bytes};
}

Result<Empty> ObjectService::seal_blocks(const protocol::SealBlocks& request, Caller caller) {
  const object_store::SegmentId segment{request.segment};
  for (const protocol::SealedBlock& item : request.items) {
    const ProcessId owner = item.owner.is_nil() ? caller.process : item.owner;
    const object_store::SealedObject sealed{item.object, owner, item.offset_bytes, item.size_bytes,
                                            item.pinned};
    // As after a result was lost: a reader may wait for the one before it, which does not come.
    puller_.give_way(caller.job, item.object);
    TROUPE_CHECK(table_.seal_reserved(caller, segment, sealed, environment_.clock.now()));
    wake(item.object);
  }
  return Empty{};
}

Result<Empty> ObjectService::return_extents(const protocol::ReturnExtents& request, Caller caller) {
  const object_store::SegmentId segment{request.segment};
  for (const protocol::Extent& extent : request.items) {
    TROUPE_CHECK(table_.give_back(caller, segment, extent.offset_bytes, extent.size_bytes));
  }
  close_dropped_segments();
  return Empty{};
}

Result<Empty> ObjectService::release_blocks(const protocol::ReleaseBlocks& request, Caller caller) {
  Status outcome = ok();
  if (request.owner.is_nil()) TROUPE_CHECK(attach(caller));
  for (const ObjectId object : request.objects) {
    auto released = request.owner.is_nil() ? table_.release(caller, object, 1)
                                           : table_.release_owner(request.owner, object);
    if (!released && outcome) outcome = std::move(released);
  }
  close_dropped_segments();
  TROUPE_CHECK(outcome);
  return Empty{};
}

Async<Result<protocol::ObjectIds>> ObjectService::adopt_objects(protocol::AdoptObjects request,
                                                                CallContext call) {
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  const protocol::ProcessAddress& source = request.source;
  const bool elsewhere = !source.process.is_nil() && source.node != options_.node;
  protocol::ObjectIds adopted;
  for (const ObjectId object : request.objects) {
    auto done = table_.adopt(request.owner.process, object);
    if (!done && done.error().code() == Code::not_found && elsewhere) {
      protocol::GetBlock wanted;
      wanted.object = object;
      wanted.source = source;
      wanted.owner = request.owner;
      auto ticket = puller_.pull(request.job, wanted);
      done = co_await ticket.wait(deadline, call.cancelled);
      if (done) done = table_.adopt(request.owner.process, object);
    }
    if (!done) {
      log::debug("object_not_adopted", {{"object", object}, {"why", done.error()}});
      continue;
    }
    // Nobody need hear of it as of a copy any more. Of its job there may be no process here.
    copy_owners_.erase(object);
    jobs_.try_emplace(request.job);
    adopted.objects.push_back(object);
  }
  co_return adopted;
}

// --- Reading

void ObjectService::wake(ObjectId object) {
  const auto found = waiting_.find(object);
  if (found == waiting_.end()) return;
  const auto event = found->second;
  waiting_.erase(found);
  event->set();
}

Async<Status> ObjectService::wait_for_seal(ObjectId object, Instant deadline,
                                           std::shared_ptr<Event> cancelled) {
  using namespace boost::asio::experimental::awaitable_operators;
  auto& entry = waiting_[object];
  if (!entry) entry = std::make_shared<Event>(environment_.loop);
  const auto event = entry;
  // The last to leave takes the entry along, however it leaves.
  struct Leave {
    ObjectService& service;
    ObjectId object;
    const std::shared_ptr<Event>& event;
    ~Leave() {
      const auto found = service.waiting_.find(object);
      if (found != service.waiting_.end() && found->second == event && event.use_count() == 2) {
        service.waiting_.erase(found);
      }
    }
  } leave{*this, object, event};
  const auto raced =
      co_await (event->wait() || cancelled->wait() || sleep_until(environment_.clock, deadline));
  if (raced.index() == 0) co_return ok();
  if (raced.index() == 1) co_return error(Code::cancelled, "the caller gave up");
  co_return error(Code::deadline_exceeded,
                  fmt::format("object {} was not sealed on this node in time", object.to_string()));
}

Async<Result<transport::Message>> ObjectService::get_block(protocol::GetBlock request,
                                                           Caller caller, CallContext call) {
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  const auto is_elsewhere = [this](const protocol::ProcessAddress& place) {
    return !place.node.is_nil() && place.node != options_.node;
  };
  const bool elsewhere =
      is_elsewhere(request.source) || std::ranges::any_of(request.copies, is_elsewhere);
  for (;;) {
    // Also after a wait: the caller's process may have died meanwhile, and is not to come back.
    if (!call.peer->is_open()) co_return error(Code::cancelled, "the caller is gone");
    TROUPE_CO_CHECK(attach(caller));
    auto place = table_.get(caller, request.object);
    if (place && *place) co_return hand_out(caller, request, **place, call);
    if (place && table_.is_out(request.object)) {
      // The handle keeps it in memory until this call has pinned it.
      TROUPE_CO_TRY(const auto kept, co_await spiller_.restore(caller.job, request.object, deadline,
                                                               call.cancelled));
      if (!call.peer->is_open()) co_return error(Code::cancelled, "the caller is gone");
      TROUPE_CO_CHECK(attach(caller));
      TROUPE_CO_TRY(const auto restored, table_.get(caller, request.object));
      if (!restored) co_return error(Code::internal, "a restored object is not in memory");
      co_return hand_out(caller, request, *restored, call);
    }
    if (!place && place.error().code() != Code::not_found) co_return std::move(place).error();
    const bool absent = !place || puller_.is_pulling(request.object);
    if (absent && elsewhere) {
      // The ticket keeps what was pulled until this call has pinned it.
      auto ticket = puller_.pull(caller.job, request);
      TROUPE_CO_CHECK(co_await ticket.wait(deadline, call.cancelled));
      if (!call.peer->is_open()) co_return error(Code::cancelled, "the caller is gone");
      TROUPE_CO_CHECK(attach(caller));
      TROUPE_CO_TRY(const auto pulled, table_.get(caller, request.object));
      if (!pulled) co_return error(Code::internal, "a pulled object is not sealed");
      co_return hand_out(caller, request, *pulled, call);
    }
    if (absent) {
      const ProcessId source = request.source.process;
      if (source.is_nil() || source == self_.address.process) {
        co_return error(Code::not_found,
                        fmt::format("object {} was freed", request.object.to_string()));
      }
      co_return error(Code::data_loss,
                      fmt::format("object {} went with the worker that had it on this node",
                                  request.object.to_string()));
    }
    TROUPE_CO_CHECK(co_await wait_for_seal(request.object, deadline, call.cancelled));
  }
}

Result<transport::Message> ObjectService::hand_out(Caller caller, const protocol::GetBlock& request,
                                                   const object_store::Block& block,
                                                   const CallContext& call) {
  if (call.cancelled->is_set()) return error(Code::cancelled, "the caller gave up");
  Segment& segment = segments_.at(block.segment);
  protocol::Block place{block.segment.number, block.offset_bytes, block.size_bytes};
  Message message{protocol::encode(place), {}};
  const auto& held = request.segments_held;
  if (std::ranges::find(held, block.segment.number) == held.end()) {
    FileDescriptor copy{::fcntl(segment.reader->fd(), F_DUPFD_CLOEXEC, 0)};
    if (!copy.is_open()) return error(Code::exhausted, "no file descriptors left");
    message.descriptors.push_back(std::move(copy));
  }
  TROUPE_CHECK(table_.pin(caller, request.object));
  segment.holders[caller.process] = call.peer;
  return message;
}

protocol::ObjectList ObjectService::list(const protocol::ListObjects& request) const {
  protocol::ObjectList list;
  for (const object_store::ObjectInfo& info : table_.list(SIZE_MAX)) {
    if (!request.job.is_nil() && info.job != request.job) continue;
    protocol::ObjectEntry& entry = list.items.emplace_back();
    entry.object = info.object;
    entry.job = info.job;
    entry.owner.process = info.owner;
    entry.size_bytes = info.block.size_bytes;
    entry.state = !info.sealed ? "building" : info.resident ? "stored" : "spilled";
    entry.pins = static_cast<uint32_t>(std::min<uint64_t>(info.pins, UINT32_MAX));
    entry.node = options_.node;
    if (info.owner_holds) entry.why = "its owner holds it";
  }
  list.total = list.items.size();
  protocol::keep_largest(list, request.limit);
  return list;
}

// --- For other nodes

Result<std::shared_ptr<const void>> ObjectService::hold(Caller self, ObjectId object) {
  TROUPE_CHECK(table_.attach(self));
  TROUPE_CHECK(table_.pin(self, object));
  auto release = [alive = std::weak_ptr<ObjectService*>(self_alive_), self, object](const void*) {
    const auto service = alive.lock();
    if (!service) return;
    (void)(*service)->table_.release(self, object, 1);
    (*service)->close_dropped_segments();
  };
  return std::shared_ptr<const void>{static_cast<const void*>(this), std::move(release)};
}

Async<Result<Message>> ObjectService::make_chunk(transport::Environment environment,
                                                 protocol::FetchChunk request,
                                                 uint64_t object_bytes,
                                                 std::function<Result<BytesView>()> view,
                                                 std::shared_ptr<const void> keep) {
  protocol::Chunk chunk;
  chunk.object_bytes = object_bytes;
  Message message;
  if (request.length_bytes > 0) {
    auto look = [view = std::move(view), compress = request.compress] {
      return object_store::pack_chunk(view, compress);
    };
    TROUPE_CO_TRY(auto packed, co_await run_blocking(environment, std::move(look)));
    chunk.checksum = packed.checksum;
    chunk.raw_bytes = packed.raw.size();
    if (packed.compressed) {
      chunk.codec = object_store::chunk_codec;
      message.bulk = {*packed.compressed, packed.compressed};
    } else {
      message.bulk = {packed.raw, std::move(keep)};
    }
  }
  message.body = protocol::encode(chunk);
  co_return message;
}

Async<Result<Message>> ObjectService::fetch_chunk(protocol::FetchChunk request, CallContext call) {
  const Caller self{self_.address.process, request.job};
  const Instant now = environment_.clock.now();
  const Instant deadline = answer_by(call.deadline, now);
  const Duration patience = std::chrono::microseconds(std::min<uint64_t>(
      request.wait_us, static_cast<uint64_t>(copy_patience_max / std::chrono::microseconds(1))));
  const Instant begun_by = std::min(deadline, now + patience);
  const ObjectId object = request.object;
  if (!jobs_.contains(request.job) && request.wait_us == 0) {
    co_return error(Code::not_found, fmt::format("job {} has no object on node {}",
                                                 request.job.to_string(), options_.name));
  }
  std::shared_ptr<const void> kept;
  for (;;) {
    if (call.cancelled->is_set()) co_return error(Code::cancelled, "the caller gave up");
    TROUPE_CO_CHECK(table_.attach(self));
    auto place = table_.get(self, object);
    if (!place && place.error().code() != Code::not_found) co_return std::move(place).error();
    if (place && *place) {
      const object_store::Block block = **place;
      if (request.offset_bytes > block.size_bytes) {
        co_return error(Code::invalid, "a chunk beyond the object's end");
      }
      request.length_bytes = std::min({request.length_bytes, object_store::transfer_chunk_bytes,
                                       block.size_bytes - request.offset_bytes});
      TROUPE_CO_TRY(auto pin, hold(self, object));
      sent_bytes_ += request.length_bytes;
      auto view = [reader = segments_.at(block.segment).reader, request,
                   from = block.offset_bytes + request.offset_bytes] {
        return reader->view(from, request.length_bytes);
      };
      co_return co_await make_chunk(environment_, request, block.size_bytes, std::move(view),
                                    std::move(pin));
    }
    if (place && table_.is_out(object)) {
      TROUPE_CO_TRY(kept, co_await spiller_.restore(request.job, object, deadline, call.cancelled));
      continue;
    }
    if (puller_.is_pulling(object)) {
      auto part = co_await puller_.part(request.job, object, request.offset_bytes,
                                        request.length_bytes, deadline, call.cancelled);
      if (!part) co_return std::move(part).error();
      if (!*part) continue;  // It is sealed, or its pull has ended: look again.
      const ObjectPuller::Part found = **part;
      request.length_bytes = found.bytes.size();
      sent_bytes_ += request.length_bytes;
      auto view = [bytes = found.bytes]() -> Result<BytesView> { return bytes; };
      co_return co_await make_chunk(environment_, request, found.object_bytes, std::move(view),
                                    found.keep);
    }
    // What was not sealed here by a process of this node is on its way through a pull, or not here.
    if (environment_.clock.now() >= begun_by) {
      co_return error(Code::not_found, fmt::format("object {} is not sealed on node {}",
                                                   object.to_string(), options_.name));
    }
    (void)co_await wait_for_seal(object, begun_by, call.cancelled);
  }
}

}  // namespace troupe::worker
