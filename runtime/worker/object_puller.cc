#include "worker/object_puller.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "worker/object_service.h"

namespace troupe::worker {

using object_store::transfer_chunk_bytes;
using transport::Method;
using transport::Peer;

namespace {

constexpr uint32_t chunks_in_flight = 8;
constexpr Duration connect_budget = std::chrono::seconds(5);
constexpr Duration chunk_budget = std::chrono::seconds(10);
constexpr Duration room_budget = std::chrono::seconds(60);
constexpr int attempts_a_chunk = 3;

}  // namespace

struct ObjectPuller::Pull {
  Pull(const Executor& executor, JobId j, ObjectId o, protocol::ProcessAddress s)
      : job(j),
        object(o),
        source(std::move(s)),
        done(executor),
        unwanted(std::make_shared<Event>(executor)),
        fetchers_left(executor) {}

  JobId job;
  ObjectId object;
  protocol::ProcessAddress source;
  std::optional<Status> outcome;
  Event done;
  std::shared_ptr<Event> unwanted;  // Set when the last ticket went.
  int tickets = 0;
  bool held = false;  // The worker holds the sealed object.

  // While chunks come.
  std::optional<object_store::ChunkAssembler> assembler;
  uint64_t next_chunk = 1;
  uint32_t fetchers = 0;
  Status chunk_outcome = ok();
  Event fetchers_left;
};

ObjectPuller::ObjectPuller(transport::Environment environment, Scope& scope, ObjectService& objects,
                           transport::Service& service)
    : environment_(environment), scope_(scope), objects_(objects), service_(service) {}

ObjectPuller::~ObjectPuller() = default;

ObjectPuller::Ticket::Ticket(ObjectPuller& puller, std::shared_ptr<Pull> pull)
    : puller_(&puller), pull_(std::move(pull)) {
  ++pull_->tickets;
}

ObjectPuller::Ticket::~Ticket() {
  if (!pull_ || --pull_->tickets > 0) return;
  pull_->unwanted->set();
  puller_->release_if_unwanted(*pull_);
}

Async<Status> ObjectPuller::Ticket::wait(Instant deadline, std::shared_ptr<Event> cancelled) {
  using namespace boost::asio::experimental::awaitable_operators;
  auto pull = pull_;
  TimerClock& clock = puller_->environment_.clock;
  const auto raced =
      co_await (pull->done.wait() || cancelled->wait() || sleep_until(clock, deadline));
  if (raced.index() == 0) {
    Status outcome = *pull->outcome;
    co_return outcome;
  }
  if (raced.index() == 1) co_return error(Code::cancelled, "the caller gave up");
  co_return error(Code::deadline_exceeded,
                  fmt::format("object {} is still on its way", pull->object.to_string()));
}

ObjectPuller::Ticket ObjectPuller::pull(JobId job, ObjectId object,
                                        protocol::ProcessAddress source) {
  auto& entry = pulls_[object];
  // One that nobody wanted is ending, and so is one of another job, whose answer is not for this.
  if (!entry || entry->unwanted->is_set() || entry->job != job) {
    entry = std::make_shared<Pull>(environment_.loop, job, object, std::move(source));
    spawn(scope_, run(entry));
  }
  return Ticket{*this, entry};
}

void ObjectPuller::release_if_unwanted(Pull& pull) {
  if (pull.tickets > 0 || !std::exchange(pull.held, false)) return;
  (void)objects_.table_.release_owner(objects_.self_.address.process, pull.object);
  objects_.close_dropped_segments();
}

Async<void> ObjectPuller::run(std::shared_ptr<Pull> pull) {
  const Instant began = environment_.clock.now();
  const Status outcome = co_await transfer(pull);
  if (!outcome) {
    log::warning("pull_failed", {{"object", pull->object}, {"why", outcome.error()}});
  } else {
    const auto took = environment_.clock.now() - began;
    log::debug("object_pulled",
               {{"object", pull->object}, {"us", took / std::chrono::microseconds(1)}});
  }
  const auto found = pulls_.find(pull->object);
  if (found != pulls_.end() && found->second == pull) pulls_.erase(found);
  pull->outcome = outcome;
  pull->done.set();
  release_if_unwanted(*pull);
}

Async<Status> ObjectPuller::transfer(std::shared_ptr<Pull> pull) {
  TROUPE_CO_TRY(auto source, co_await source_peer(pull->source));
  const object_store::Chunk whole_first{0, 0, transfer_chunk_bytes};
  TROUPE_CO_TRY(auto first, co_await fetch(source, pull, whole_first));

  const object_store::Caller self{objects_.self_.address.process, pull->job};
  object_store::CreateRequest create{pull->object, self.process, first.object_bytes};
  const Instant deadline = environment_.clock.now() + room_budget;
  std::shared_ptr<Target> target;
  Result<object_store::Block> allocated = error(Code::not_found, "no segment yet");
  // Its own segment may be among those dropped for want of memory.
  while (!allocated && allocated.error().code() == Code::not_found) {
    TROUPE_CO_TRY(target, target_of(self));
    allocated = co_await objects_.allocate(self, create, deadline, pull->unwanted);
  }
  TROUPE_CO_TRY(const auto block, std::move(allocated));
  // Until it is sealed, every way out gives the block back.
  struct Undo {
    ObjectService& objects;
    object_store::Caller self;
    ObjectId object;
    bool armed = true;
    ~Undo() {
      if (armed) (void)objects.table_.abort(self, object);
    }
  } undo{objects_, self, pull->object};
  auto prepare = [target, block] {
    const std::lock_guard lock{target->mutex};
    return target->segment.prepare(block.offset_bytes, block.size_bytes);
  };
  TROUPE_CO_TRY(const auto bytes, co_await run_blocking(environment_, std::move(prepare)));
  TROUPE_CO_CHECK(co_await receive_rest(pull, source, std::move(first), bytes));
  TROUPE_CO_CHECK(objects_.table_.seal(self, pull->object));
  undo.armed = false;
  pull->held = true;
  objects_.wake(pull->object);
  co_return ok();
}

Async<Status> ObjectPuller::receive_rest(std::shared_ptr<Pull> pull, std::shared_ptr<Peer> source,
                                         protocol::Chunk first, std::span<uint8_t> block) {
  TROUPE_CO_TRY(const auto plan, object_store::ChunkPlan::make(block.size()));
  TROUPE_CO_TRY(auto assembler, object_store::ChunkAssembler::make(plan, block));
  if (plan.count() > 0) TROUPE_CO_CHECK(assembler.accept(0, first.checksum, first.data));
  pull->assembler = std::move(assembler);
  const uint64_t rest = plan.count() > 0 ? plan.count() - 1 : 0;
  const auto fetchers = static_cast<uint32_t>(std::min<uint64_t>(rest, chunks_in_flight));
  pull->fetchers = fetchers;
  for (uint32_t i = 0; i < fetchers; ++i) spawn(scope_, fetch_chunks(pull, source));
  if (fetchers > 0) co_await pull->fetchers_left.wait();
  const bool complete = pull->assembler->complete();
  pull->assembler.reset();
  TROUPE_CO_CHECK(pull->chunk_outcome);
  if (!complete) co_return error(Code::cancelled, "nobody waits for the object any more");
  co_return ok();
}

Async<void> ObjectPuller::fetch_chunks(std::shared_ptr<Pull> pull, std::shared_ptr<Peer> source) {
  struct Leave {
    Pull& pull;
    ~Leave() {
      if (--pull.fetchers == 0) pull.fetchers_left.set();
    }
  } leave{*pull};
  while (pull->chunk_outcome && !pull->unwanted->is_set()) {
    const auto chunk = pull->assembler->next_missing(pull->next_chunk);
    if (!chunk) co_return;
    pull->next_chunk = chunk->index + 1;
    Status accepted = ok();
    for (int attempt = 0; attempt < attempts_a_chunk; ++attempt) {
      auto data = co_await fetch(source, pull, *chunk);
      if (!pull->assembler) co_return;  // The transfer was unwound.
      if (!data) {
        accepted = std::move(data).error();
      } else if (auto arrived = pull->assembler->accept(chunk->index, data->checksum, data->data)) {
        accepted = ok();
      } else {
        accepted = std::move(arrived).error();
      }
      if (accepted || !source->is_open()) break;
      const Code code = accepted.error().code();
      if (code != Code::deadline_exceeded && code != Code::data_loss) break;
    }
    if (!accepted && pull->chunk_outcome) pull->chunk_outcome = accepted;
  }
}

Async<Result<protocol::Chunk>> ObjectPuller::fetch(std::shared_ptr<Peer> source,
                                                   std::shared_ptr<Pull> pull,
                                                   object_store::Chunk chunk) {
  protocol::FetchChunk request{pull->object, pull->job, chunk.offset_bytes, chunk.size_bytes};
  auto reply = co_await transport::call<protocol::Chunk>(source, Method::fetch_chunk,
                                                         std::move(request), chunk_budget);
  co_return reply;
}

Async<Result<std::shared_ptr<Peer>>> ObjectPuller::source_peer(protocol::ProcessAddress source) {
  const auto found = sources_.find(source.process);
  if (found != sources_.end()) {
    if (found->second->is_open()) co_return found->second;
    sources_.erase(found);
  }
  const transport::Endpoint endpoint{"", source.host, source.port};
  const Instant deadline = environment_.clock.now() + connect_budget;
  auto connection = co_await environment_.network.connect(endpoint, deadline);
  if (!connection) co_return std::move(connection).error();
  if ((*connection)->peer().role != transport::Role::node) {
    co_return error(Code::denied, "objects come from nodes only: " + endpoint.to_string());
  }
  auto peer = co_await Peer::start(scope_, environment_, std::move(*connection), service_,
                                   objects_.self_, deadline);
  if (!peer) co_return std::move(peer).error();
  // Of two that connected at once the later stays; the earlier serves the pull that made it.
  sources_[source.process] = *peer;
  co_return *peer;
}

Result<std::shared_ptr<ObjectPuller::Target>> ObjectPuller::target_of(object_store::Caller self) {
  auto& target = targets_[self.job];
  if (target) return target;
  TROUPE_CHECK(objects_.table_.attach(self));
  TROUPE_TRY(auto segment, object_store::ProducerSegment::create(objects_.table_.capacity_bytes()));
  FileDescriptor copy{::fcntl(segment.fd(), F_DUPFD_CLOEXEC, 0)};
  if (!copy.is_open()) return error(Code::exhausted, "no file descriptors left");
  TROUPE_TRY(const auto id, objects_.add_segment(self, std::move(copy)));
  target = std::make_shared<Target>(std::move(segment), id);
  return target;
}

void ObjectPuller::drop_segment(object_store::SegmentId id) {
  std::erase_if(targets_, [&](const auto& entry) {
    const auto& [job, target] = entry;
    return target && target->id == id;
  });
}

}  // namespace troupe::worker
