#include "client/store_client.h"

#include <fcntl.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cstring>
#include <mutex>

#include "base/log.h"
#include "client/connections.h"

namespace troupe::client {

using transport::Message;

namespace {

// Address space, not memory: pages cost only once they are written.
constexpr uint64_t segment_bytes = uint64_t{64} << 30;
constexpr Duration release_budget = std::chrono::seconds(30);

Duration left(const Clock& clock, Instant deadline) {
  return std::max<Duration>(deadline - clock.now(), std::chrono::milliseconds(1));
}

// One handle for a pin and the mapping that it keeps valid.
template <class Segment>
std::shared_ptr<const void> keep(std::shared_ptr<void> pin, std::shared_ptr<Segment> segment) {
  struct Both {
    std::shared_ptr<Segment> segment;
    std::shared_ptr<void> pin;
  };
  return std::make_shared<Both>(Both{std::move(segment), std::move(pin)});
}

}  // namespace

// Shared with every view. `client` is null once the client is gone.
struct StoreClient::Returns {
  std::mutex mutex;
  StoreClient* client = nullptr;
  Executor loop;
  std::vector<ObjectId> pins;
};

StoreClient::StoreClient(transport::Environment environment, Scope& scope, Connections& connections)
    : environment_(environment),
      scope_(scope),
      connections_(connections),
      attached_(environment.loop),
      returns_(std::make_shared<Returns>()) {
  returns_->client = this;
  returns_->loop = environment.loop;
}

StoreClient::~StoreClient() {
  const std::lock_guard lock{returns_->mutex};
  returns_->client = nullptr;
}

void StoreClient::return_pins() {
  std::vector<ObjectId> pins;
  {
    const std::lock_guard lock{returns_->mutex};
    pins.swap(returns_->pins);
  }
  for (const ObjectId object : pins) {
    protocol::ReleaseBlock request;
    request.object = object;
    spawn(scope_, release(request, connections_.worker()->remote().address));
  }
}

Async<void> StoreClient::release(protocol::ReleaseBlock request, protocol::ProcessAddress node) {
  auto peer =
      co_await connections_.peer_of(std::move(node), environment_.clock.now() + release_budget);
  if (!peer) co_return;  // A worker that is gone took the object along.
  auto released = co_await transport::call<protocol::Empty>(*peer, Method::release_block, request,
                                                            release_budget);
  if (!released) {
    log::debug("release_failed", {{"object", request.object}, {"why", released.error().message()}});
  }
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
  auto segment = std::make_shared<object_store::ProducerSegment>(std::move(*made));
  FileDescriptor copy{::fcntl(segment->fd(), F_DUPFD_CLOEXEC, 0)};
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
    own_ = std::move(segment);
    own_number_ = attached->segment;
  }
  attached_.pulse();
  if (!attached) co_return std::move(attached).error().context("attach to the object store");
  co_return ok();
}

Async<Result<protocol::Empty>> StoreClient::drop_segments(protocol::DropSegments request,
                                                          transport::CallContext context) {
  if (context.peer != connections_.worker()) {
    co_return error(Code::denied, "only the node's worker may ask this");
  }
  for (const uint64_t number : request.segments) {
    if (number == own_number_) own_.reset();
    segments_.erase(number);
  }
  co_return protocol::Empty{};
}

Async<Status> StoreClient::put(ObjectId object, ProcessId owner, std::shared_ptr<const Bytes> value,
                               Instant deadline) {
  const auto worker = connections_.worker();
  protocol::CreateBlock create{object, value->size(), owner};
  Result<protocol::Block> block = error(Code::internal, "no block");
  std::shared_ptr<object_store::ProducerSegment> segment;
  while (!block) {
    TROUPE_CO_CHECK(co_await ensure_segment(deadline));
    segment = own_;
    const uint64_t number = own_number_;
    block = co_await transport::call<protocol::Block>(worker, Method::create_block, create,
                                                      left(environment_.clock, deadline));
    if (block) break;
    if (block.error().code() != Code::not_found) co_return std::move(block).error();
    // The worker drops empty segments when memory is short, and its word of it may still be on its
    // way: a new one is made.
    if (own_number_ == number) own_.reset();
  }
  const uint64_t offset = block->offset_bytes;
  auto fill = [segment, value, offset]() -> Status {
    TROUPE_TRY(auto room, segment->prepare(offset, value->size()));
    std::memcpy(room.data(), value->data(), value->size());
    return ok();
  };
  Status filled = ok();
  if (value->size() > (1 << 20)) {
    filled = co_await transport::run_blocking(environment_, fill);
  } else {
    filled = fill();
  }
  protocol::SealBlock seal{object};
  if (!filled) {
    auto aborted = co_await transport::call<protocol::Empty>(worker, Method::abort_block, seal,
                                                             release_budget);
    if (!aborted) log::warning("abort_failed", {{"object", object}});
    co_return filled;
  }
  auto sealed = co_await transport::call<protocol::Empty>(worker, Method::seal_block, seal,
                                                          left(environment_.clock, deadline));
  if (!sealed) co_return std::move(sealed).error();
  co_return ok();
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
  if (own_) request.segments_held.push_back(own_number_);
  Message message{protocol::encode(request), {}};
  auto answer = co_await worker->call(Method::get_block, std::move(message),
                                      left(environment_.clock, deadline));
  if (!answer) co_return std::move(answer).error();
  TROUPE_CO_TRY(const auto block, protocol::decode<protocol::Block>(answer->body));
  // From here on this process has a pin; the last copy of `pin` gives it back.
  auto give_back = [returns = returns_, object](void*) {
    const std::lock_guard lock{returns->mutex};
    if (returns->client == nullptr) return;
    returns->pins.push_back(object);
    if (returns->pins.size() > 1) return;  // The loop knows already.
    boost::asio::post(returns->loop, [returns] {
      // The client is destroyed on the loop's thread, so it cannot go between here and the call.
      StoreClient* client = nullptr;
      {
        const std::lock_guard inner{returns->mutex};
        client = returns->client;
      }
      if (client != nullptr) client->return_pins();
    });
  };
  std::shared_ptr<void> pin{static_cast<void*>(this), give_back};
  if (own_ && block.segment == own_number_) {
    TROUPE_CO_TRY(const auto bytes, own_->prepare(block.offset_bytes, block.size_bytes));
    ObjectBytes view{bytes, keep(pin, own_)};
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
  ObjectBytes view{bytes, keep(pin, found->second)};
  co_return view;
}

void StoreClient::release_owned(ObjectId object, protocol::ProcessAddress node) {
  protocol::ReleaseBlock request;
  request.object = object;
  request.owner = connections_.address().process;
  spawn(scope_, release(request, std::move(node)));
}

}  // namespace troupe::client
