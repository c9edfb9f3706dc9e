#include "worker/object_puller.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "worker/object_service.h"
#include "worker/timelines.h"

namespace troupe::worker {

using object_store::Caller;
using object_store::Chunk;
using object_store::transfer_chunk_bytes;
using protocol::ProcessAddress;
using transport::Message;
using transport::Method;
using transport::Peer;

namespace {

// Measured on two cores: bench/objects/README.md.
constexpr uint32_t lanes_max = 4;
constexpr uint32_t chunks_a_lane = 2;
constexpr Duration connect_budget = std::chrono::seconds(5);
constexpr Duration chunk_budget = std::chrono::seconds(10);
constexpr Duration room_budget = std::chrono::seconds(60);
// For a pull that its node is about to begin.
constexpr Duration copy_patience = std::chrono::seconds(2);
// Who waits for a chunk turns to another node when nothing comes here: two that wait for each other
// must not do so for ever.
constexpr Duration stalled_after = std::chrono::seconds(2);
constexpr int fruitless_rounds_max = 3;
constexpr uint64_t judge_rate_after_bytes = 2 * transfer_chunk_bytes;

}  // namespace

// The block that fills. It is aborted, unless it was sealed, when nobody writes to it any more: a
// chunk may still be arriving after its pull was given up.
struct ObjectPuller::Building {
  Building(ObjectService& service, Caller caller, ObjectId id, ObjectService::OwnBlock own,
           object_store::ChunkPlan plan)
      : objects(service),
        self(caller),
        object(id),
        target(std::move(own.target)),
        block(own.block),
        ledger(plan) {
    objects.puller_.buildings_[object] = this;
  }
  Building(const Building&) = delete;
  Building& operator=(const Building&) = delete;
  ~Building() {
    if (!sealed) (void)objects.table_.abort(self, object);
    objects.puller_.buildings_.erase(object);
    objects.puller_.building_gone_.pulse();
  }

  ObjectService& objects;
  const Caller self;
  ObjectId object;
  const std::shared_ptr<Target> target;
  const object_store::Block block;
  object_store::ChunkLedger ledger;
  uint8_t* data = nullptr;  // The block's first byte, once a chunk was prepared.
  bool sealed = false;
};

struct ObjectPuller::Pull {
  Pull(const Executor& executor, JobId j, const protocol::GetBlock& request)
      : job(j),
        object(request.object),
        owner(request.owner),
        done(executor),
        changed(executor),
        unwanted(std::make_shared<Event>(executor)) {
    sources = request.copies;
    sources.push_back(request.source);
  }

  JobId job;
  ObjectId object;
  ProcessAddress owner;
  std::vector<ProcessAddress> sources;
  std::optional<Status> outcome;
  Event done;
  Event changed;                    // A chunk has come, or the pull has ended.
  std::shared_ptr<Event> unwanted;  // Set when the last ticket went.
  int tickets = 0;
  ProcessAddress source;  // That gave the last of it.
  bool held = false;      // The worker holds or has pinned the sealed object.
  std::shared_ptr<Building> building;
  Instant began;
};

// A try at one source.
struct ObjectPuller::Round {
  Round(const Executor& executor, std::shared_ptr<Pull> p, ProcessAddress s)
      : pull(std::move(p)), source(std::move(s)), lanes_left(executor) {}
  std::shared_ptr<Pull> pull;
  ProcessAddress source;
  Status outcome = ok();
  uint32_t lanes = 0;
  Event lanes_left;
};

ObjectPuller::ObjectPuller(transport::Environment environment, Scope& scope, ObjectService& objects,
                           transport::Service& service)
    : environment_(environment),
      scope_(scope),
      objects_(objects),
      service_(service),
      building_gone_(environment.loop) {}

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

ObjectPuller::Ticket ObjectPuller::pull(JobId job, const protocol::GetBlock& request) {
  auto& entry = pulls_[request.object];
  // One that nobody wanted is ending, and so is one of another job, whose answer is not for this.
  if (!entry || entry->unwanted->is_set() || entry->job != job) {
    entry = std::make_shared<Pull>(environment_.loop, job, request);
    spawn(scope_, run(entry));
    objects_.wake(request.object);  // Other nodes may wait for it to begin.
  }
  return Ticket{*this, pulls_.at(request.object)};
}

void ObjectPuller::give_way(JobId job, ObjectId object) {
  const auto found = pulls_.find(object);
  if (found == pulls_.end() || found->second->job != job) return;
  const auto pull = found->second;
  pulls_.erase(found);
  // A chunk of it may still land.
  if (Building* const building = pull->building.get()) {
    const ObjectId aside = ObjectId::random(environment_.random);
    if (!objects_.table_.put_aside(building->self, object, aside)) return;
    buildings_.erase(object);
    building->object = aside;
    buildings_[aside] = building;
  }
  pull->outcome = ok();
  pull->unwanted->set();
  pull->done.set();
  pull->changed.set();
}

void ObjectPuller::release_if_unwanted(Pull& pull) {
  if (pull.tickets > 0 || !std::exchange(pull.held, false)) return;
  const Caller self{objects_.self_.address.process, pull.job};
  if (pull.owner.process.is_nil()) {
    (void)objects_.table_.release_owner(self.process, pull.object);
  } else {
    (void)objects_.table_.release(self, pull.object, 1);
  }
  objects_.close_dropped_segments();
}

Async<void> ObjectPuller::run(std::shared_ptr<Pull> pull) {
  pull->began = environment_.clock.now();
  const Status outcome = co_await transfer(pull);
  if (pull->outcome) {  // It has given way.
    pull->building.reset();
    co_return;
  }
  if (!outcome) {
    log::warning("pull_failed", {{"object", pull->object}, {"why", outcome.error()}});
  } else {
    const auto took = environment_.clock.now() - pull->began;
    log::debug("object_pulled", {{"object", pull->object},
                                 {"source", pull->source.node},
                                 {"us", took / std::chrono::microseconds(1)}});
  }
  const NodeId source = outcome ? pull->source.node : pull->sources.back().node;
  note(objects_.options_,
       {TimelineKind::pulled, "pull from node " + source.short_string(), pull->object, pull->began,
        pull->building ? pull->building->ledger.arrived_bytes() : 0, !outcome});
  pull->building.reset();
  const auto found = pulls_.find(pull->object);
  if (found != pulls_.end() && found->second == pull) pulls_.erase(found);
  pull->outcome = outcome;
  pull->done.set();
  pull->changed.set();
  release_if_unwanted(*pull);
}

Async<Status> ObjectPuller::transfer(std::shared_ptr<Pull> pull) {
  Status outcome = error(Code::not_found, "no node has the object");
  bool unreachable = false;
  std::vector<ProcessId> tried;
  for (size_t i = 0; i < pull->sources.size(); ++i) {
    const ProcessAddress source = pull->sources[i];
    if (source.node == objects_.options_.node || source.process.is_nil()) continue;
    if (std::ranges::find(tried, source.process) != tried.end()) continue;
    tried.push_back(source.process);
    outcome = co_await pull_from(pull, source);
    if (outcome) {
      pull->source = source;
      TROUPE_CO_CHECK(finish(*pull));
      co_return ok();
    }
    if (pull->unwanted->is_set()) {
      co_return error(Code::cancelled, "nobody waits for the object any more");
    }
    const Code code = outcome.error().code();
    // What another source would not cure.
    if (code == Code::exhausted || code == Code::denied || code == Code::invalid) {
      co_return outcome;
    }
    log::info("pull_source_failed",
              {{"object", pull->object}, {"source", source.process}, {"why", outcome.error()}});
    if (code != Code::not_found) unreachable = true;
  }
  if (!unreachable) co_return outcome;
  co_return error(Code::data_loss,
                  fmt::format("object {} lies on {} other nodes, none of which gives it: {}",
                              pull->object.to_string(), tried.size(), outcome.error().message()));
}

// Goes on with what has come already; a source that gives nothing several times is given up.
Async<Status> ObjectPuller::pull_from(std::shared_ptr<Pull> pull, ProcessAddress source) {
  for (int fruitless = 0;;) {
    const uint64_t before = pull->building ? pull->building->ledger.arrived_bytes() : 0;
    Status outcome = co_await run_round(pull, source);
    if (pull->unwanted->is_set()) co_return error(Code::cancelled, "nobody waits for it any more");
    if (outcome && pull->building->ledger.complete()) co_return ok();
    if (outcome) continue;
    const Code code = outcome.error().code();
    const bool may_pass =
        code == Code::outcome_unknown || code == Code::deadline_exceeded || code == Code::data_loss;
    if (!may_pass) co_return outcome;
    const uint64_t after = pull->building ? pull->building->ledger.arrived_bytes() : 0;
    fruitless = after > before ? 0 : fruitless + 1;
    if (fruitless >= fruitless_rounds_max) co_return outcome;
  }
}

Async<Status> ObjectPuller::run_round(std::shared_ptr<Pull> pull, ProcessAddress source) {
  if (!pull->building) {
    TROUPE_CO_TRY(auto peer, co_await peer_of(source, 0));
    TROUPE_CO_CHECK(co_await begin_building(pull, std::move(peer)));
  }
  auto round = std::make_shared<Round>(environment_.loop, pull, source);
  const uint64_t chunks = pull->building->ledger.plan().count();
  const uint64_t wanted = (chunks + chunks_a_lane - 1) / chunks_a_lane;
  round->lanes = static_cast<uint32_t>(std::min<uint64_t>(wanted, lanes_max));
  const uint32_t lanes = round->lanes;
  for (uint32_t lane = 0; lane < lanes; ++lane) spawn(scope_, run_lane(round, lane));
  if (lanes > 0) co_await round->lanes_left.wait();
  co_return round->outcome;
}

Async<Status> ObjectPuller::begin_building(std::shared_ptr<Pull> pull, PeerPointer source) {
  // Of no bytes: it tells the size.
  protocol::FetchChunk ask;
  ask.object = pull->object;
  ask.job = pull->job;
  ask.wait_us = static_cast<uint64_t>(copy_patience / std::chrono::microseconds(1));
  if (source->remote().address.process == pull->sources.back().process) ask.wait_us = 0;
  TROUPE_CO_TRY(const auto head, co_await transport::call<protocol::Chunk>(
                                     source, Method::fetch_chunk, std::move(ask), chunk_budget));
  const Caller self{objects_.self_.address.process, pull->job};
  const bool owned = !pull->owner.process.is_nil();
  object_store::CreateRequest create;
  create.object = pull->object;
  create.owner = owned ? pull->owner.process : self.process;
  create.size_bytes = head.object_bytes;
  create.is_copy = owned;
  const Instant deadline = environment_.clock.now() + room_budget;
  // Chunks of an earlier pull may still be landing.
  while (buildings_.contains(pull->object)) {
    if (!co_await wait_until(environment_.clock, deadline, building_gone_)) {
      co_return error(Code::deadline_exceeded, "an earlier pull of the object does not end");
    }
  }
  TROUPE_CO_TRY(auto own, co_await objects_.allocate_own(self, create, deadline, pull->unwanted,
                                                         Placing::create));
  TROUPE_CO_TRY(const auto plan, object_store::ChunkPlan::make(head.object_bytes));
  pull->building = std::make_shared<Building>(objects_, self, pull->object, std::move(own), plan);
  pull->changed.pulse();
  co_return ok();
}

Async<void> ObjectPuller::run_lane(std::shared_ptr<Round> round, uint32_t lane) {
  using namespace boost::asio::experimental::awaitable_operators;
  struct Leave {
    Round& round;
    ~Leave() {
      if (--round.lanes == 0) round.lanes_left.set();
    }
  } leave{*round};
  auto source = co_await peer_of(round->source, lane);
  if (!source) {
    // The others may do without it.
    if (lane == 0 && round->outcome) round->outcome = std::move(source).error();
    co_return;
  }
  static_assert(chunks_a_lane == 2);
  co_await (fetch_chunks(round, *source) && fetch_chunks(round, *source));
}

Async<void> ObjectPuller::fetch_chunks(std::shared_ptr<Round> round, PeerPointer source) {
  const auto building = round->pull->building;
  while (round->outcome && !round->pull->unwanted->is_set()) {
    const auto chunk = building->ledger.take();
    if (!chunk) co_return;
    Status came = co_await fetch_chunk(round, source, *chunk);
    if (came) {
      (void)building->ledger.arrived(*chunk);
      round->pull->changed.pulse();
      continue;
    }
    building->ledger.give_back(*chunk);
    // The other lanes end with this one, and the next round goes on with what is missing.
    if (round->outcome) round->outcome = std::move(came);
  }
}

Async<Status> ObjectPuller::fetch_chunk(std::shared_ptr<Round> round, PeerPointer source,
                                        Chunk chunk) {
  const auto pull = round->pull;
  const auto building = pull->building;
  auto prepare = [building, chunk] {
    return building->target->prepare(building->block.offset_bytes + chunk.offset_bytes,
                                     chunk.size_bytes);
  };
  TROUPE_CO_TRY(const auto room, co_await run_blocking(environment_, std::move(prepare)));
  building->data = room.data() - chunk.offset_bytes;
  protocol::FetchChunk request;
  request.object = pull->object;
  request.job = pull->job;
  request.offset_bytes = chunk.offset_bytes;
  request.length_bytes = chunk.size_bytes;
  const uint64_t bytes = building->ledger.arrived_bytes();
  const double seconds =
      std::chrono::duration<double>(environment_.clock.now() - pull->began).count();
  request.compress =
      bytes >= judge_rate_after_bytes &&
      static_cast<double>(bytes) < objects_.options_.compress_below_bytes_s * seconds;
  Message message{protocol::encode(request), {}};
  TROUPE_CO_TRY(auto sent,
                source->begin_call(Method::fetch_chunk, std::move(message), chunk_budget));
  transport::Landing landing{room, building};
  sent.land(std::move(landing));
  auto reply = co_await sent.reply();
  if (!reply) {
    // Whatever is still on its way must not land later.
    if (reply.error().code() == Code::deadline_exceeded) source->close();
    co_return std::move(reply).error();
  }
  TROUPE_CO_TRY(auto came, protocol::decode<protocol::Chunk>(reply->body));
  if (came.object_bytes != building->block.size_bytes) {
    co_return error(Code::invalid, fmt::format("object {} has {} bytes here and {} there",
                                               pull->object.to_string(), building->block.size_bytes,
                                               came.object_bytes));
  }
  // Compressed bytes landed at the front of where they are unpacked to.
  auto unpack = [building, came = std::move(came), bulk = std::move(reply->bulk),
                 room]() -> Status {
    if (came.codec.empty() || bulk.bytes.data() != room.data()) {
      return object_store::unpack_chunk(came.codec, came.checksum, bulk.bytes, room);
    }
    const Bytes packed{bulk.bytes.begin(), bulk.bytes.end()};
    return object_store::unpack_chunk(came.codec, came.checksum, packed, room);
  };
  co_return co_await run_blocking(environment_, std::move(unpack));
}

Status ObjectPuller::finish(Pull& pull) {
  Building& building = *pull.building;
  const bool owned = !pull.owner.process.is_nil();
  // Its owner may free it at once, and those who wait for it shall still find it.
  if (owned) TROUPE_CHECK(objects_.table_.pin(building.self, pull.object));
  TROUPE_CHECK(objects_.table_.seal(building.self, pull.object));
  building.sealed = true;
  pull.held = true;
  if (owned) {
    objects_.copy_owners_[pull.object] = pull.owner;
    protocol::ObjectCopied notice{pull.object, objects_.self_.address, false};
    spawn(scope_, objects_.tell_owner(pull.owner, std::move(notice)));
  }
  objects_.wake(pull.object);
  return ok();
}

Async<Result<std::optional<ObjectPuller::Part>>> ObjectPuller::part(
    JobId job, ObjectId object, uint64_t offset_bytes, uint64_t length_bytes, Instant deadline,
    std::shared_ptr<Event> cancelled) {
  using namespace boost::asio::experimental::awaitable_operators;
  const auto found = pulls_.find(object);
  if (found == pulls_.end()) co_return std::optional<Part>{};
  const auto pull = found->second;
  if (pull->job != job) co_return error(Code::denied, "the object is another job's");
  while (!pull->outcome) {
    if (const auto building = pull->building) {
      const uint64_t size = building->block.size_bytes;
      if (offset_bytes > size) co_return error(Code::invalid, "a chunk beyond the object's end");
      const uint64_t length = std::min({length_bytes, transfer_chunk_bytes, size - offset_bytes});
      if (building->ledger.has(offset_bytes, length)) {
        const BytesView bytes{building->data + offset_bytes, length};
        std::optional<Part> part{Part{bytes, size, building}};
        co_return part;
      }
    }
    const Instant stalled = environment_.clock.now() + stalled_after;
    const auto raced = co_await (pull->changed.wait() || cancelled->wait() ||
                                 sleep_until(environment_.clock, std::min(stalled, deadline)));
    if (raced.index() == 1) co_return error(Code::cancelled, "the caller gave up");
    if (raced.index() == 2) {
      co_return error(Code::unavailable, fmt::format("object {} does not come to this node, either",
                                                     object.to_string()));
    }
  }
  co_return std::optional<Part>{};
}

Async<Result<ObjectPuller::PeerPointer>> ObjectPuller::peer_of(ProcessAddress address,
                                                               uint32_t lane) {
  const std::pair key{address.process, lane};
  const auto found = peers_.find(key);
  if (found != peers_.end()) {
    if (found->second->is_open()) co_return found->second;
    peers_.erase(found);
  }
  transport::Endpoint endpoint{"", address.host, address.port};
  if (address.node == objects_.options_.node) endpoint = {address.unix_path, "", 0};
  const Instant deadline = environment_.clock.now() + connect_budget;
  auto connection = co_await environment_.network.connect(endpoint, deadline);
  if (!connection) co_return std::move(connection).error();
  const transport::PeerIdentity& identity = (*connection)->peer();
  if (!identity.local && identity.role != transport::Role::node) {
    co_return error(Code::denied, "objects come from nodes only: " + endpoint.to_string());
  }
  auto peer = co_await Peer::start(scope_, environment_, std::move(*connection), service_,
                                   objects_.self_, deadline);
  if (!peer) co_return std::move(peer).error();
  // Those to processes that have ended would stay: they come back under other ids.
  std::erase_if(peers_, [](const auto& entry) { return !entry.second->is_open(); });
  // Of two that connected at once the later stays; the earlier serves the pull that made it.
  peers_[key] = *peer;
  co_return *peer;
}

Result<std::shared_ptr<ObjectPuller::Target>> ObjectPuller::target_of(Caller self) {
  if (const auto found = targets_.find(self.job); found != targets_.end()) return found->second;
  TROUPE_CHECK(objects_.table_.attach(self));
  TROUPE_TRY(auto segment, object_store::ProducerSegment::create(objects_.table_.capacity_bytes()));
  FileDescriptor copy{::fcntl(segment.fd(), F_DUPFD_CLOEXEC, 0)};
  if (!copy.is_open()) return error(Code::exhausted, "no file descriptors left");
  TROUPE_TRY(const auto id, objects_.add_segment(self, std::move(copy)));
  return targets_[self.job] = std::make_shared<Target>(std::move(segment), id);
}

void ObjectPuller::drop_segment(object_store::SegmentId id) {
  std::erase_if(targets_, [&](const auto& entry) { return entry.second->id() == id; });
}

}  // namespace troupe::worker
