#include "worker/object_service.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "object_store/transfer.h"

namespace troupe::worker {

using object_store::CreateRequest;
using protocol::Empty;

namespace {

constexpr Duration drop_budget = std::chrono::seconds(5);
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
      puller_(environment, scope, *this, service) {
  table_.on_freed([this] { freed_.pulse(); });
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
  segments_.emplace(id, Segment{std::move(reader), {}});
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
                                                           std::shared_ptr<Event> cancelled) {
  using namespace boost::asio::experimental::awaitable_operators;
  for (;;) {
    auto block = table_.create(caller, request, environment_.clock.now());
    if (block || block.error().code() != Code::exhausted) co_return block;
    // Segments that are empty now still have the memory that was written once.
    if (table_.drop_empty_segments(request.size_bytes) > 0) {
      close_dropped_segments();
      if (!table_.segment_of(caller)) co_return error(Code::not_found, no_segment);
      block = table_.create(caller, request, environment_.clock.now());
      if (block || block.error().code() != Code::exhausted) co_return block;
    }
    // Waiters wake in the order of their arrival, and each tries at once.
    const auto raced =
        co_await (freed_.wait() || cancelled->wait() || sleep_until(environment_.clock, deadline));
    if (raced.index() == 1) co_return error(Code::cancelled, "the caller gave up");
    if (raced.index() == 2) {
      co_return std::move(block).error().after(std::chrono::milliseconds(100));
    }
  }
}

Async<Result<protocol::Block>> ObjectService::create_block(protocol::CreateBlock request,
                                                           Caller caller, CallContext call) {
  TROUPE_CO_CHECK(attach(caller));
  if (!table_.segment_of(caller)) co_return error(Code::not_found, no_segment);
  const ProcessId owner = request.owner.is_nil() ? caller.process : request.owner;
  const CreateRequest create{request.object, owner, request.size_bytes};
  const Instant deadline = answer_by(call.deadline, environment_.clock.now());
  TROUPE_CO_TRY(const auto block, co_await allocate(caller, create, deadline, call.cancelled));
  if (!call.peer->is_open() || call.cancelled->is_set()) {
    (void)table_.abort(caller, request.object);  // Nobody will write it.
    co_return error(Code::cancelled, "the caller gave up");
  }
  co_return protocol::Block{block.segment.number, block.offset_bytes, block.size_bytes};
}

Result<Empty> ObjectService::seal_block(const protocol::SealBlock& request, Caller caller) {
  TROUPE_CHECK(table_.seal(caller, request.object));
  wake(request.object);
  return Empty{};
}

Result<Empty> ObjectService::abort_block(const protocol::SealBlock& request, Caller caller) {
  TROUPE_CHECK(table_.abort(caller, request.object));
  return Empty{};
}

Result<Empty> ObjectService::release_block(const protocol::ReleaseBlock& request, Caller caller) {
  if (!request.owner.is_nil()) {
    TROUPE_CHECK(table_.release_owner(request.owner, request.object));
  } else {
    TROUPE_CHECK(attach(caller));
    TROUPE_CHECK(table_.release(caller, request.object, 1));
  }
  close_dropped_segments();
  return Empty{};
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
  const bool elsewhere = !request.source.node.is_nil() && request.source.node != options_.node;
  for (;;) {
    // Also after a wait: the caller's process may have died meanwhile, and is not to come back.
    if (!call.peer->is_open()) co_return error(Code::cancelled, "the caller is gone");
    TROUPE_CO_CHECK(attach(caller));
    auto place = table_.get(caller, request.object);
    if (place && *place) co_return hand_out(caller, request, **place, call);
    if (!place && place.error().code() != Code::not_found) co_return std::move(place).error();
    const bool absent = !place || puller_.is_pulling(request.object);
    if (absent && elsewhere) {
      // The ticket keeps what was pulled until this call has pinned it.
      auto ticket = puller_.pull(caller.job, request.object, request.source);
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
    FileDescriptor copy{::fcntl(segment.reader.fd(), F_DUPFD_CLOEXEC, 0)};
    if (!copy.is_open()) return error(Code::exhausted, "no file descriptors left");
    message.descriptors.push_back(std::move(copy));
  }
  TROUPE_CHECK(table_.pin(caller, request.object));
  segment.holders[caller.process] = call.peer;
  return message;
}

Result<protocol::Chunk> ObjectService::fetch_chunk(const protocol::FetchChunk& request) {
  const Caller self{self_.address.process, request.job};
  if (!jobs_.contains(request.job)) {
    return error(Code::not_found, fmt::format("job {} has no object on node {}",
                                              request.job.to_string(), options_.name));
  }
  TROUPE_CHECK(table_.attach(self));
  TROUPE_TRY(const auto place, table_.get(self, request.object));
  if (!place) {
    return error(Code::not_found, fmt::format("object {} is not sealed on node {}",
                                              request.object.to_string(), options_.name));
  }
  const object_store::Block& block = *place;
  if (request.offset_bytes > block.size_bytes) {
    return error(Code::invalid, "a chunk beyond the object's end");
  }
  const uint64_t length = std::min({request.length_bytes, object_store::transfer_chunk_bytes,
                                    block.size_bytes - request.offset_bytes});
  TROUPE_TRY(
      const BytesView data,
      segments_.at(block.segment).reader.view(block.offset_bytes + request.offset_bytes, length));
  protocol::Chunk chunk;
  chunk.object_bytes = block.size_bytes;
  chunk.data.assign(data.begin(), data.end());
  // Of the copy, so that it covers what is sent. 1 MiB takes 60 us: not worth a thread.
  chunk.checksum = object_store::chunk_checksum(chunk.data);
  return chunk;
}

}  // namespace troupe::worker
