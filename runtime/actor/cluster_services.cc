#include "actor/cluster_services.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/post.hpp>
#include <cstring>

#include "base/log.h"
#include "client/object_directory.h"

namespace troupe::actor {

using client::Client;
using transport::CallContext;
using transport::Message;
using transport::Method;

namespace {

constexpr size_t in_flight_bytes_max = 8u << 20;  // Of one channel.

// A chunk on the wire: the length of the header, the header (a CollectiveChunk without data), the
// bytes.
Bytes pack(const protocol::CollectiveChunk& header, BytesView bytes) {
  const Bytes head = protocol::encode(header);
  const uint32_t head_bytes = static_cast<uint32_t>(head.size());
  Bytes body(sizeof head_bytes + head.size() + bytes.size());
  std::memcpy(body.data(), &head_bytes, sizeof head_bytes);
  std::memcpy(body.data() + sizeof head_bytes, head.data(), head.size());
  if (!bytes.empty()) {
    std::memcpy(body.data() + sizeof head_bytes + head.size(), bytes.data(), bytes.size());
  }
  return body;
}

struct Unpacked {
  protocol::CollectiveChunk header;
  size_t offset = 0;  // Of the bytes.
};

Result<Unpacked> unpack(BytesView body) {
  uint32_t head_bytes = 0;
  if (body.size() < sizeof head_bytes) return error(Code::invalid, "a collective chunk is cut off");
  std::memcpy(&head_bytes, body.data(), sizeof head_bytes);
  if (head_bytes > body.size() - sizeof head_bytes) {
    return error(Code::invalid, "a collective chunk is cut off");
  }
  Unpacked out;
  TROUPE_TRY(out.header, protocol::decode<protocol::CollectiveChunk>(
                             body.subspan(sizeof head_bytes, head_bytes)));
  out.offset = sizeof head_bytes + head_bytes;
  return out;
}

// The tag that only says that a member has joined.
constexpr uint64_t join_tag = ~uint64_t{0};

// What the actor thread waits for. However its coroutine ends, also refused by a scope that stops,
// the thread gets an answer.
template <class T>
struct Answer {
  std::promise<Result<T>> promise;
  bool given = false;

  void give(Result<T> outcome) {
    given = true;
    promise.set_value(std::move(outcome));
  }
  ~Answer() {
    if (!given) promise.set_value(error(Code::cancelled, "the process stops"));
  }
};

template <class T>
Async<void> deliver(std::shared_ptr<Answer<T>> answer, std::shared_ptr<Event> stop,
                    Async<Result<T>> operation) {
  using namespace boost::asio::experimental::awaitable_operators;
  auto raced = co_await (std::move(operation) || stop->wait());
  if (raced.index() == 0) {
    answer->give(std::get<0>(std::move(raced)));
  } else {
    answer->give(error(Code::cancelled, "the actor was asked to stop"));
  }
}

// Runs what `make` returns on the loop and blocks the actor thread for it.
template <class T, class Make>
Result<T> block_on(Client& client, std::stop_token stop, Make make) {
  auto answer = std::make_shared<Answer<T>>();
  auto future = answer->promise.get_future();
  const Executor loop = client.environment().loop;
  auto stopped = std::make_shared<Event>(loop);
  boost::asio::post(loop, [&client, answer = std::move(answer), stopped, &make]() mutable {
    spawn(client.scope(), deliver<T>(std::move(answer), stopped, make()));
  });
  const std::stop_callback on_stop{
      stop, [&loop, stopped] { boost::asio::post(loop, [stopped] { stopped->set(); }); }};
  return future.get();
}

// --- A member's way to the others.

// Shared by the actor thread, which sends and receives, and the loop.
struct ChannelState {
  explicit ChannelState(Client& c) : client(c) {}

  Client& client;
  GroupSpec spec;
  std::shared_ptr<Groups::Place> place;
  std::vector<std::shared_ptr<transport::Peer>> peers;  // By rank; null for this one.

  std::mutex mutex;
  std::condition_variable_any changed;
  size_t in_flight_bytes = 0;
  std::optional<Error> failed;

  void fail(const Error& why) {
    {
      const std::lock_guard lock{mutex};
      if (!failed) failed = why;
    }
    changed.notify_all();
    place->inbox.fail(why);
  }
};

Async<void> send_chunk(std::shared_ptr<ChannelState> state, uint32_t rank, Bytes body,
                       Duration budget) {
  const size_t size = body.size();
  Message message{std::move(body), {}};
  auto taken = co_await state->peers[rank]->call(Method::collective, std::move(message), budget);
  if (!taken) {
    const Code code = taken.error().code();
    const bool gone = code == Code::outcome_unknown || code == Code::unavailable;
    state->fail(error(
        gone ? Code::unavailable : code,
        fmt::format("rank {} of group {}: {}", rank, state->spec.name, taken.error().message())));
  }
  {
    const std::lock_guard lock{state->mutex};
    state->in_flight_bytes -= size;
  }
  state->changed.notify_all();
}

// A member that dies while this one only waits for it must be noticed too.
Async<void> watch_member(std::shared_ptr<ChannelState> state, uint32_t rank) {
  using namespace boost::asio::experimental::awaitable_operators;
  const auto peer = state->peers[rank];
  auto& left = state->place->room;  // Set once this process has left the group.
  while (peer->is_open() && !left.is_set()) co_await (peer->closed().wait() || left.wait());
  if (left.is_set()) co_return;
  state->fail(
      error(Code::unavailable, fmt::format("rank {} of group {} is gone", rank, state->spec.name)));
}

class ClusterChannel final : public Channel {
 public:
  ClusterChannel(std::shared_ptr<ChannelState> state, Groups& groups, std::stop_token stop)
      : state_(std::move(state)), groups_(groups), stop_(std::move(stop)) {
    begin_operation();
  }
  ~ClusterChannel() override {
    Groups* groups = &groups_;
    boost::asio::post(state_->client.environment().loop,
                      [groups, state = state_] { groups->close(state->spec.name, state->place); });
  }

  void begin_operation() override { deadline_ = now() + state_->spec.timeout; }

  Status send(uint32_t rank, uint64_t tag, BytesView bytes) override {
    protocol::CollectiveChunk header;
    header.group = state_->spec.name;
    header.generation = state_->spec.generation;
    header.sequence = tag;
    header.rank = state_->spec.rank;
    Bytes body = pack(header, bytes);
    TROUPE_CHECK(wait_until([&] { return state_->in_flight_bytes < in_flight_bytes_max; }));
    {
      const std::lock_guard lock{state_->mutex};
      state_->in_flight_bytes += body.size();
    }
    boost::asio::post(state_->client.environment().loop,
                      [state = state_, rank, body = std::move(body), budget = left()]() mutable {
                        spawn(state->client.scope(),
                              send_chunk(state, rank, std::move(body), budget));
                      });
    return ok();
  }

  Result<ReceivedChunk> receive(uint32_t rank, uint64_t tag) override {
    return state_->place->inbox.take(rank, tag, left(), stop_);
  }

  Status flush() override {
    return wait_until([&] { return state_->in_flight_bytes == 0; });
  }

 private:
  Instant now() const { return state_->client.environment().clock.now(); }
  Duration left() const {
    return std::max<Duration>(deadline_ - now(), std::chrono::milliseconds(1));
  }

  template <class Condition>
  Status wait_until(Condition condition) {
    std::unique_lock lock{state_->mutex};
    const bool held = state_->changed.wait_for(lock, stop_, left(),
                                               [&] { return state_->failed || condition(); });
    if (state_->failed) return *state_->failed;
    if (stop_.stop_requested()) return error(Code::cancelled, "the actor was asked to stop");
    if (!held) {
      return error(Code::deadline_exceeded,
                   fmt::format("group {} did not get on in time", state_->spec.name));
    }
    return ok();
  }

  std::shared_ptr<ChannelState> state_;
  Groups& groups_;
  std::stop_token stop_;
  Instant deadline_;
};

// Connects to every member and waits until each has joined.
Async<Result<std::shared_ptr<ChannelState>>> join(Client& client, Groups& groups,
                                                  std::shared_ptr<ChannelState> state) {
  const auto& environment = client.environment();
  const Instant deadline = environment.clock.now() + state->spec.timeout;
  state->place = std::make_shared<Groups::Place>(environment.loop);
  state->place->generation = state->spec.generation;
  state->place->world = state->spec.world();
  Groups::Place* place = state->place.get();
  const Executor loop = environment.loop;
  // Called on the taker's thread, which holds the channel and so the place.
  place->inbox.on_room([loop, weak = std::weak_ptr<Groups::Place>(state->place)] {
    boost::asio::post(loop, [weak] {
      if (const auto kept = weak.lock()) kept->room.pulse();
    });
  });
  TROUPE_CO_CHECK(groups.open(state->spec.name, state->spec.generation, state->place));
  struct Guard {
    Groups& groups;
    ChannelState& state;
    bool joined = false;
    ~Guard() {
      if (!joined) groups.close(state.spec.name, state.place);
    }
  } guard{groups, *state};
  state->peers.resize(state->spec.world());
  for (uint32_t rank = 0; rank < state->spec.world(); ++rank) {
    if (rank == state->spec.rank) continue;
    const ActorId member = state->spec.members[rank];
    auto info = co_await client.locate_actor(member, 0, deadline - environment.clock.now());
    if (!info) co_return std::move(info).error().context(fmt::format("find rank {}", rank));
    auto peer = co_await client.peer_of(info->address, deadline);
    if (!peer) co_return std::move(peer).error().context(fmt::format("reach rank {}", rank));
    state->peers[rank] = std::move(*peer);
    const auto [known, is_new] = state->place->members.try_emplace(rank, info->address.process);
    if (!is_new && known->second != info->address.process) {
      co_return error(Code::conflict, fmt::format("another process spoke for rank {}", rank));
    }
    protocol::CollectiveChunk header;
    header.group = state->spec.name;
    header.generation = state->spec.generation;
    header.sequence = join_tag;
    header.rank = state->spec.rank;
    Message message{pack(header, {}), {}};
    const Duration budget =
        std::max<Duration>(deadline - environment.clock.now(), std::chrono::milliseconds(1));
    auto joined = co_await state->peers[rank]->call(Method::collective, std::move(message), budget);
    if (!joined) co_return std::move(joined).error().context(fmt::format("join rank {}", rank));
  }
  for (uint32_t rank = 0; rank < state->spec.world(); ++rank) {
    if (state->peers[rank]) spawn(client.scope(), watch_member(state, rank));
  }
  guard.joined = true;
  co_return state;
}

Async<Result<client::ObjectBytes>> call_and_keep(Client& client, client::ActorCallSpec spec) {
  return client.call_actor(std::move(spec));
}

Async<Result<ObjectId>> put_object(Client& client, std::shared_ptr<const Bytes> value) {
  std::vector<client::ObjectName> held;
  auto object = co_await client.put(std::move(value), std::move(held));
  if (!object) co_return std::move(object).error();
  co_return client.objects().publish(*object).id;
}

}  // namespace

Groups::Groups(Client& client) : client_(client), changed_(client.environment().loop) {}

Status Groups::open(const std::string& name, uint64_t generation, std::shared_ptr<Place> place) {
  auto& present = places_[name];
  if (present && present->generation >= generation) {
    return error(Code::conflict, fmt::format("group {} was formed as generation {}, {} is past",
                                             name, present->generation, generation));
  }
  if (present) {
    present->inbox.fail(error(Code::conflict, fmt::format("group {} was formed anew", name)));
  }
  present = std::move(place);
  changed_.pulse();
  return ok();
}

void Groups::close(const std::string& name, const std::shared_ptr<Place>& place) {
  const auto found = places_.find(name);
  if (found == places_.end() || found->second != place) return;
  places_.erase(found);
  place->room.set();
}

Async<Result<Message>> Groups::receive(Message message, CallContext context) {
  TROUPE_CO_TRY(const auto chunk, unpack(message.body));
  const std::string name = chunk.header.group;
  const uint64_t generation = chunk.header.generation;
  const uint32_t rank = chunk.header.rank;
  const uint64_t tag = chunk.header.sequence;
  auto& clock = client_.environment().clock;
  ReceivedChunk received{std::move(message.body), chunk.offset};
  const protocol::Hello& sender = context.peer->remote();
  if (sender.job != client_.job()) {
    co_return error(Code::denied, "a collective belongs to one job");
  }
  for (;;) {
    const auto found = places_.find(name);
    const bool here = found != places_.end() && found->second->generation == generation;
    if (found != places_.end() && found->second->generation > generation) {
      co_return error(Code::conflict, fmt::format("group {} was formed anew", name));
    }
    if (here) {
      const auto place = found->second;
      const bool exists = rank < place->world;
      if (!exists || place->members.try_emplace(rank, sender.address.process).first->second !=
                         sender.address.process) {
        co_return error(Code::denied,
                        fmt::format("rank {} of group {} is not this process", rank, name));
      }
      if (tag == join_tag) co_return Message{};
      const auto outcome = place->inbox.offer(rank, tag, received);
      if (outcome != Inbox::Outcome::full) co_return Message{};
      const bool room = co_await wait_until(clock, context.deadline, place->room);
      if (!room) co_return error(Code::deadline_exceeded, "the member does not read");
      if (place->room.is_set()) co_return error(Code::unavailable, "the member left the group");
      continue;
    }
    // Not joined yet: wait for it, as long as the sender does.
    const bool changed = co_await wait_until(clock, context.deadline, changed_);
    if (!changed) {
      co_return error(Code::deadline_exceeded,
                      fmt::format("the member did not join group {} in time", name));
    }
  }
}

Result<ObjectId> ClusterServices::put(BytesView value, std::stop_token stop) {
  auto bytes = std::make_shared<const Bytes>(value.begin(), value.end());
  return block_on<ObjectId>(client_, std::move(stop), [&] { return put_object(client_, bytes); });
}

Result<client::ObjectBytes> ClusterServices::get(ObjectId object, std::stop_token stop) {
  client::ObjectName name{object, client_.address()};
  return block_on<client::ObjectBytes>(client_, std::move(stop), [&] {
    return client_.get(std::move(name), std::chrono::hours(24));
  });
}

Result<client::ObjectBytes> ClusterServices::call_actor(client::ActorCallSpec spec,
                                                        std::stop_token stop) {
  return block_on<client::ObjectBytes>(client_, std::move(stop),
                                       [&] { return call_and_keep(client_, std::move(spec)); });
}

Result<std::unique_ptr<Channel>> ClusterServices::open_channel(GroupSpec spec,
                                                               std::stop_token stop) {
  auto state = std::make_shared<ChannelState>(client_);
  state->spec = std::move(spec);
  TROUPE_TRY(auto joined, block_on<std::shared_ptr<ChannelState>>(
                              client_, stop, [&] { return join(client_, groups_, state); }));
  return std::make_unique<ClusterChannel>(std::move(joined), groups_, std::move(stop));
}

}  // namespace troupe::actor
