#include "client/store_client.h"

#include <fcntl.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cstring>

#include "base/log.h"
#include "client/connections.h"

namespace troupe::client {

using transport::Message;
using transport::Method;

namespace {

// Address space, not memory: pages cost only once they are written.
constexpr uint64_t segment_bytes = uint64_t{64} << 30;
constexpr Duration release_budget = std::chrono::seconds(30);
// How long room that holds nothing is kept for what comes next, at least.
constexpr Duration sweep_period = std::chrono::seconds(1);
// Copying more would hold up the loop.
constexpr uint64_t copied_on_loop_max = 1 << 20;

Duration left(const Clock& clock, Instant deadline) {
  return std::max<Duration>(deadline - clock.now(), std::chrono::milliseconds(1));
}

// One handle for a pin and the mapping that it keeps valid.
template <class Segment>
std::shared_ptr<const void> keep_both(std::shared_ptr<void> pin, std::shared_ptr<Segment> segment) {
  struct Both {
    std::shared_ptr<Segment> segment;
    std::shared_ptr<void> pin;
  };
  return std::make_shared<Both>(Both{std::move(segment), std::move(pin)});
}

}  // namespace

StoreClient::StoreClient(transport::Environment environment, Scope& scope, Connections& connections)
    : environment_(environment),
      scope_(scope),
      connections_(connections),
      attached_(environment.loop),
      exposed_(environment.loop),
      pins_(std::make_shared<PinReturns>(environment.loop, [this](std::vector<ObjectId> objects) {
        protocol::ReleaseBlocks request{std::move(objects), {}};
        spawn(scope_, release(std::move(request), *node_));
      })) {}

StoreClient::~StoreClient() {
  drop_own();
  pins_->close();
}

void StoreClient::set_node(protocol::ProcessAddress worker) {
  node_ = std::make_shared<const protocol::ProcessAddress>(std::move(worker));
}

std::shared_ptr<LocalSegment> StoreClient::own() const {
  const std::lock_guard lock{mutex_};
  return own_;
}

void StoreClient::drop_own() {
  std::shared_ptr<LocalSegment> dropped;
  {
    const std::lock_guard lock{mutex_};
    dropped = std::move(own_);
    own_ = nullptr;
  }
  if (dropped) dropped->close();
}

// --- Room

Result<std::shared_ptr<LocalBlock>> StoreClient::allocate(uint64_t size_bytes) {
  const auto segment = own();
  if (!segment) return std::shared_ptr<LocalBlock>{};
  return segment->allocate(size_bytes);
}

Async<Status> StoreClient::ensure_segment(Instant deadline) {
  while (attaching_) {
    const bool woken = co_await wait_until(environment_.clock, deadline, attached_);
    if (!woken)
      co_return error(Code::deadline_exceeded, "not attached to the object store in time");
  }
  if (own_) co_return ok();
  auto made = object_store::ProducerSegment::create(segment_bytes);
  if (!made) co_return std::move(made).error();
  FileDescriptor copy{::fcntl(made->fd(), F_DUPFD_CLOEXEC, 0)};
  if (!copy.is_open()) co_return error(Code::exhausted, "no file descriptors left");
  Message message;
  message.descriptors.push_back(std::move(copy));
  attaching_ = true;
  auto answer = co_await connections_.worker()->call(Method::attach_segment, std::move(message),
                                                     left(environment_.clock, deadline));
  attaching_ = false;
  Result<protocol::SegmentAttached> attached = error(Code::internal, "no answer");
  if (answer) {
    attached = protocol::decode<protocol::SegmentAttached>(answer->body);
  } else {
    attached = std::move(answer).error();
  }
  if (attached) {
    auto segment =
        std::make_shared<LocalSegment>(std::move(*made), attached->segment, pins_, [this] {
          boost::asio::post(environment_.loop, [this, alive = std::weak_ptr{alive_}] {
            if (alive.lock()) spawn(scope_, sweep());
          });
        });
    const std::lock_guard lock{mutex_};
    own_ = std::move(segment);
  }
  attached_.pulse();
  if (!attached) co_return std::move(attached).error().context("attach to the object store");
  co_return ok();
}

Async<Status> StoreClient::reserve(uint64_t size_bytes, Instant deadline) {
  for (;;) {
    TROUPE_CO_CHECK(co_await ensure_segment(deadline));
    const auto segment = own_;
    protocol::ReserveExtent request{size_bytes};
    auto extent = co_await transport::call<protocol::Block>(
        connections_.worker(), Method::reserve_extent, request, left(environment_.clock, deadline));
    if (extent) {
      segment->add_extent(extent->offset_bytes, extent->size_bytes);
      co_return ok();
    }
    if (extent.error().code() != Code::not_found) co_return std::move(extent).error();
    // The worker drops empty segments when memory is short, and its word of it may still be on its
    // way: a new one is made.
    if (own_ == segment) drop_own();
  }
}

Async<Result<std::shared_ptr<LocalBlock>>> StoreClient::room_for(uint64_t size_bytes,
                                                                 Instant deadline) {
  for (;;) {
    Result<std::shared_ptr<LocalBlock>> block = std::shared_ptr<LocalBlock>{};
    if (size_bytes > copied_on_loop_max) {
      auto take = [this, size_bytes] { return allocate(size_bytes); };
      block = co_await transport::run_blocking(environment_, std::move(take));
    } else {
      block = allocate(size_bytes);
    }
    if (!block || *block) co_return block;
    TROUPE_CO_CHECK(co_await reserve(size_bytes, deadline));
  }
}

// Room that nothing was placed in for a while goes back.
Async<void> StoreClient::sweep() {
  for (;;) {
    co_await sleep_for(environment_.clock, sweep_period);
    const auto segment = own_;
    if (!segment) co_return;
    auto idle = segment->take_empty(LocalSegment::Which::idle);
    if (!idle.empty()) co_await return_extents(segment, std::move(idle));
    if (!segment->has_empty()) co_return;
  }
}

Async<void> StoreClient::return_extents(std::shared_ptr<LocalSegment> segment,
                                        std::vector<protocol::Extent> extents) {
  protocol::ReturnExtents request{segment->number(), std::move(extents)};
  auto returned = co_await transport::call<protocol::Empty>(
      connections_.worker(), Method::return_extents, std::move(request), release_budget);
  if (!returned) log::debug("extents_not_returned", {{"why", returned.error().message()}});
}

Async<Result<protocol::Empty>> StoreClient::drop_segments(protocol::DropSegments request,
                                                          transport::CallContext context) {
  if (context.peer != connections_.worker()) {
    co_return error(Code::denied, "only the node's worker may ask this");
  }
  // What nobody views goes: its pin at once, and what is private becomes the worker's to move.
  std::vector<View> dropped;
  std::vector<ObjectId> unviewed;
  {
    const std::lock_guard lock{mutex_};
    for (auto it = views_.begin(); it != views_.end();) {
      const View& view = it->second;
      if (view.block && view.block->is_private()) {
        // One in the table, one in its view.
        if (view.block.use_count() == 2) unviewed.push_back(it->first);
        ++it;
      } else if (view.block ? view.block.use_count() == 2
                            : view.bytes.keep_alive.use_count() == 1) {
        dropped.push_back(std::move(it->second));
        it = views_.erase(it);
      } else {
        ++it;
      }
    }
  }
  dropped.clear();
  if (!unviewed.empty()) {
    auto exposed = co_await expose(unviewed);
    if (exposed) {
      for (const ObjectId object : unviewed) forget(object);
    }
  }
  for (const uint64_t number : request.segments) {
    if (own_ && own_->number() == number) drop_own();
    segments_.erase(number);
  }
  if (const auto segment = own_) {
    auto empty = segment->take_empty(LocalSegment::Which::all);
    if (!empty.empty()) co_await return_extents(segment, std::move(empty));
  }
  co_return protocol::Empty{};
}

// --- What this process built

void StoreClient::keep_private(ObjectId object, std::shared_ptr<LocalBlock> block) {
  View view{{BytesView{block->bytes()}, block}, block};
  const std::lock_guard lock{mutex_};
  views_.insert_or_assign(object, std::move(view));
}

bool StoreClient::drop_private(ObjectId object) {
  View dropped;  // Goes after the lock.
  const std::lock_guard lock{mutex_};
  const auto found = views_.find(object);
  if (found == views_.end() || !found->second.block || !found->second.block->is_private()) {
    return false;
  }
  dropped = std::move(found->second);
  views_.erase(found);
  return true;
}

std::vector<std::pair<ObjectId, uint64_t>> StoreClient::list_private() const {
  std::vector<std::pair<ObjectId, uint64_t>> list;
  const std::lock_guard lock{mutex_};
  for (const auto& [object, view] : views_) {
    if (view.block && view.block->is_private()) list.emplace_back(object, view.bytes.bytes.size());
  }
  return list;
}

Async<Status> StoreClient::seal(uint64_t segment, std::vector<protocol::SealedBlock> items) {
  protocol::SealBlocks request{segment, std::move(items)};
  auto sealed = co_await transport::call<protocol::Empty>(
      connections_.worker(), Method::seal_blocks, std::move(request), release_budget);
  if (!sealed) co_return std::move(sealed).error().context("seal objects");
  co_return ok();
}

Async<Status> StoreClient::expose(std::vector<ObjectId> objects) {
  // A process has one segment but for the moment after one was dropped.
  std::map<uint64_t, std::vector<protocol::SealedBlock>> by_segment;
  std::vector<ObjectId> others;  // On their way already: the worker must know of them, too.
  struct Exposing {
    StoreClient& store;
    std::vector<ObjectId> objects;
    ~Exposing() {
      for (const ObjectId object : objects) store.exposing_.erase(object);
      store.exposed_.pulse();
    }
  };
  std::optional<Exposing> mine{std::in_place, *this};
  {
    const std::lock_guard lock{mutex_};
    for (const ObjectId object : objects) {
      if (exposing_.contains(object)) others.push_back(object);
      const auto found = views_.find(object);
      if (found == views_.end() || !found->second.block) continue;
      LocalBlock& block = *found->second.block;
      if (!block.is_private()) continue;
      block.give_away(object, true);
      exposing_.insert(object);
      mine->objects.push_back(object);
      by_segment[block.home()->number()].push_back(
          {object, {}, block.offset_bytes(), block.bytes().size(), true});
    }
  }
  for (auto& [segment, items] : by_segment)
    TROUPE_CO_CHECK(co_await seal(segment, std::move(items)));
  mine.reset();
  for (const ObjectId object : others) {
    while (exposing_.contains(object)) co_await exposed_.wait();
  }
  co_return ok();
}

Async<Status> StoreClient::put(ObjectId object, ProcessId owner, std::shared_ptr<const Bytes> value,
                               Instant deadline) {
  TROUPE_CO_TRY(auto block, co_await room_for(value->size(), deadline));
  auto fill = [block, value] {
    if (!value->empty()) std::memcpy(block->bytes().data(), value->data(), value->size());
    return true;
  };
  if (value->size() > copied_on_loop_max) {
    (void)co_await transport::run_blocking(environment_, fill);
  } else {
    fill();
  }
  if (owner == connections_.address().process) {
    keep_private(object, std::move(block));
    co_return ok();
  }
  block->give_away(object, false);
  std::vector<protocol::SealedBlock> items{
      {object, owner, block->offset_bytes(), value->size(), false}};
  co_return co_await seal(block->home()->number(), std::move(items));
}

// --- Reading

std::optional<ObjectBytes> StoreClient::find(ObjectId object) const {
  const std::lock_guard lock{mutex_};
  const auto found = views_.find(object);
  if (found == views_.end()) return std::nullopt;
  return found->second.bytes;
}

void StoreClient::keep(ObjectId object, const ObjectBytes& view) {
  View kept{view, nullptr};
  const std::lock_guard lock{mutex_};
  views_.try_emplace(object, std::move(kept));
}

void StoreClient::forget(ObjectId object) {
  View dropped;  // Goes after the lock.
  const std::lock_guard lock{mutex_};
  const auto found = views_.find(object);
  if (found == views_.end()) return;
  dropped = std::move(found->second);
  views_.erase(found);
}

Async<Result<ObjectBytes>> StoreClient::get(ObjectName name, protocol::ObjectValue place,
                                            Instant deadline) {
  const ObjectId object = name.id;
  protocol::GetBlock request;
  request.object = object;
  const auto worker = connections_.worker();
  if (place.node.process != worker->remote().address.process) {
    request.source = std::move(place.node);
    request.copies = std::move(place.copies);
    request.owner = std::move(name.owner);
  }
  for (const auto& [number, segment] : segments_) request.segments_held.push_back(number);
  if (own_) request.segments_held.push_back(own_->number());
  Message message{protocol::encode(request), {}};
  auto answer = co_await worker->call(Method::get_block, std::move(message),
                                      left(environment_.clock, deadline));
  if (!answer) co_return std::move(answer).error();
  TROUPE_CO_TRY(const auto block, protocol::decode<protocol::Block>(answer->body));
  // From here on this process has a pin; the last copy of `pin` gives it back.
  std::shared_ptr<void> pin{static_cast<void*>(this),
                            [pins = pins_, object](void*) { pins->add(object); }};
  if (own_ && block.segment == own_->number()) {
    TROUPE_CO_TRY(const auto bytes, own_->view(block.offset_bytes, block.size_bytes));
    ObjectBytes view{bytes, keep_both(pin, own_)};
    co_return view;
  }
  auto found = segments_.find(block.segment);
  if (found == segments_.end()) {
    if (answer->descriptors.empty()) {
      co_return error(Code::internal, "the worker sent no descriptor of the object's segment");
    }
    auto opened = object_store::ReaderSegment::open(std::move(answer->descriptors[0]));
    if (!opened) co_return std::move(opened).error();
    auto segment = std::make_shared<object_store::ReaderSegment>(std::move(*opened));
    found = segments_.emplace(block.segment, std::move(segment)).first;
  }
  TROUPE_CO_TRY(const auto bytes, found->second->view(block.offset_bytes, block.size_bytes));
  ObjectBytes view{bytes, keep_both(pin, found->second)};
  co_return view;
}

// --- Letting go

void StoreClient::release_owned(ObjectId object, const protocol::ProcessAddress& node) {
  if (drop_private(object)) return;
  forget(object);
  Release& release = releases_[node.process];
  if (release.objects.empty()) release.node = node;
  release.objects.push_back(object);
  if (release.objects.size() == 1) {
    boost::asio::post(environment_.loop, [this, alive = std::weak_ptr{alive_}] {
      if (alive.lock()) flush_releases();
    });
  }
}

void StoreClient::flush_releases() {
  for (auto& [process, release_to] : std::exchange(releases_, {})) {
    protocol::ReleaseBlocks request{std::move(release_to.objects), connections_.address().process};
    spawn(scope_, release(std::move(request), std::move(release_to.node)));
  }
}

Async<void> StoreClient::release(protocol::ReleaseBlocks request, protocol::ProcessAddress node) {
  auto peer =
      co_await connections_.peer_of(std::move(node), environment_.clock.now() + release_budget);
  if (!peer) co_return;  // A worker that is gone took the objects along.
  auto released = co_await transport::call<protocol::Empty>(*peer, Method::release_blocks,
                                                            std::move(request), release_budget);
  if (!released) log::debug("release_failed", {{"why", released.error().message()}});
}

}  // namespace troupe::client
