#include "transport/peer.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"

namespace troupe::transport {

using protocol::FrameHeader;
using protocol::FrameKind;

namespace {

// Of protocol::Hello::features: calls beside the frames, see call_channel.h.
constexpr uint64_t takes_calls = 1;
constexpr uint32_t stream_window = 256;  // Items that a receiver takes before it grants more.

Frame make_frame(FrameKind kind, uint64_t call, Method method, Message message) {
  Frame frame;
  frame.header.kind = kind;
  frame.header.call = call;
  frame.header.method = method;
  frame.body = std::move(message.body);
  frame.descriptors = std::move(message.descriptors);
  frame.bulk = std::move(message.bulk);
  return frame;
}

uint64_t to_us(Duration budget) {
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(budget).count();
  return static_cast<uint64_t>(std::max<int64_t>(us, 1));
}

}  // namespace

struct OutgoingCall::Pending {
  explicit Pending(const Executor& executor) : done(executor) {}
  std::optional<Result<Message>> outcome;
  Landing landing;
  Event done;
  TimerClock::TimerId timer = 0;
};

OutgoingCall::OutgoingCall(std::shared_ptr<Peer> peer, uint64_t id, Method method, Duration budget)
    : peer_(std::move(peer)),
      id_(id),
      method_(method),
      budget_(budget),
      pending_(std::make_unique<Pending>(peer_->environment_.loop)) {
  TimerClock& clock = peer_->environment_.clock;
  pending_->timer =
      clock.call_at(clock.now() + budget, [pending = pending_.get()] { pending->done.set(); });
  peer_->pending_.emplace(id, pending_.get());
}

OutgoingCall::OutgoingCall(OutgoingCall&&) noexcept = default;

OutgoingCall::~OutgoingCall() {
  if (!pending_) return;
  peer_->environment_.clock.cancel(pending_->timer);
  cancel(0);
}

void OutgoingCall::cancel(uint8_t how) {
  if (peer_->pending_.erase(id_) > 0 && peer_->is_open()) {
    peer_->send_control(FrameKind::cancel, id_, how);
  }
}

Async<std::optional<Result<Message>>> OutgoingCall::reply_unless(Event& given_up) {
  std::optional<Result<Message>> outcome;
  const bool replied = co_await wait_either(pending_->done, given_up);
  if (replied) outcome.emplace(co_await reply());
  co_return outcome;
}

Async<Result<Message>> OutgoingCall::reply() {
  co_await pending_->done.wait();
  if (pending_->outcome) co_return std::move(*pending_->outcome);
  co_return error(Code::deadline_exceeded,
                  fmt::format("{} to {} got no answer within {} ms", method_name(method_),
                              peer_->remote_.kind, budget_ / std::chrono::milliseconds(1)));
}

void OutgoingCall::land(Landing landing) {
  pending_->landing = std::move(landing);
}

Peer::Peer(Scope& scope, Environment environment, std::unique_ptr<Connection> connection,
           Service& service)
    : scope_(scope),
      environment_(environment),
      connection_(std::move(connection)),
      service_(service),
      closed_(environment.loop) {
  // The connection is a member, so it asks no more once the peer is gone.
  connection_->land_bulk([this](const FrameHeader& header) { return landing_of(header); });
}

Peer::~Peer() = default;

Async<Result<std::shared_ptr<Peer>>> Peer::start(Scope& scope, Environment environment,
                                                 std::unique_ptr<Connection> connection,
                                                 Service& service, protocol::Hello self,
                                                 Instant deadline) {
  std::shared_ptr<Peer> peer{new Peer(scope, environment, std::move(connection), service)};
  if (peer->connection_->channel()) self.features |= takes_calls;
  Message greeting{protocol::encode(self), {}};
  TROUPE_CO_CHECK(peer->connection_->send(
      make_frame(FrameKind::request, 0, Method::hello, std::move(greeting))));
  auto first = co_await with_deadline(environment.clock, deadline, peer->connection_->receive());
  if (!first) co_return std::move(first).error().context("greet the peer");
  if (first->header.kind == FrameKind::reply && first->header.error.code != 0) {
    co_return protocol::from_info(first->header.error);
  }
  if (first->header.method != Method::hello) {
    co_return error(Code::invalid, "the peer did not begin with a hello");
  }
  auto hello = protocol::decode<protocol::Hello>(first->body);
  if (!hello) co_return std::move(hello).error();
  peer->remote_ = std::move(*hello);
  Status accepted = ok();
  if (peer->remote_.protocol_version != protocol::version) {
    accepted = error(Code::conflict,
                     fmt::format("the peer speaks protocol {}, this build speaks {}: upgrade the "
                                 "older side",
                                 peer->remote_.protocol_version, protocol::version));
  } else {
    accepted = service.accept_peer(peer->remote_, peer->identity());
  }
  if (!accepted) {
    peer->send_reply(0, accepted.error());
    peer->connection_->close();
    co_return std::move(accepted).error();
  }
  if ((peer->remote_.features & takes_calls) != 0 && peer->connection_->channel()) {
    TROUPE_CO_CHECK(peer->connection_->accept_calls(peer->remote_.address.process));
    peer->takes_calls_ = true;
  }
  spawn(scope, serve(peer));
  co_return peer;
}

Async<void> Peer::refuse(Environment environment, std::unique_ptr<Connection> connection, Error why,
                         Instant deadline) {
  // Its hello first: what a closed socket has not read may cost the other side the answer.
  auto hello = co_await with_deadline(environment.clock, deadline, connection->receive());
  Frame refusal = make_frame(FrameKind::reply, 0, Method::unknown, {});
  refusal.header.error = protocol::to_info(why);
  if (hello && connection->send(std::move(refusal))) connection->close();
}

void Peer::close() {
  connection_->close();
}

Async<void> Peer::serve(std::shared_ptr<Peer> self) {
  struct AtEnd {
    Peer& peer;
    ~AtEnd() { peer.shut_down(peer.closing_reason_); }
  } at_end{*self};
  for (;;) {
    auto frame = co_await self->connection_->receive();
    if (!frame) {
      self->closing_reason_ = std::move(frame).error();
      co_return;
    }
    self->dispatch(std::move(*frame));
  }
}

// Who holds something for a connection's other end lets go of it when that closes.
void Peer::drop_held(uint32_t held) {
  if (held != 0 && is_open()) service_.item_dropped(*this, held);
}

void Peer::shut_down(const Error& why) {
  if (closed_.is_set()) return;
  closed_.set();
  connection_->close();
  for (auto& [id, pending] : pending_) {
    pending->outcome =
        error(Code::outcome_unknown, fmt::format("the connection to {} closed before the reply: {}",
                                                 remote_.kind, why.message()));
    pending->done.set();
  }
  pending_.clear();
  for (auto& [id, stream] : incoming_) {
    stream->end_ = error(Code::unavailable, fmt::format("the connection to {} closed: {}",
                                                        remote_.kind, why.message()));
    stream->changed_.pulse();
  }
  incoming_.clear();
  for (auto& [id, cancelled] : serving_) cancelled->set();
  for (auto& [id, stream] : outgoing_) {
    stream->cancelled_ = true;
    stream->changed_.pulse();
  }
  service_.peer_closed(*this);
}

Async<Result<Message>> Peer::call(Method method, Message request, Duration budget) {
  using namespace boost::asio::experimental::awaitable_operators;
  const auto self = shared_from_this();
  if (!connection_->is_writable()) {
    const Instant began = environment_.clock.now();
    const auto raced =
        co_await (connection_->writable() || sleep_until(environment_.clock, began + budget));
    if (raced.index() == 1) {
      co_return error(Code::deadline_exceeded,
                      fmt::format("{} does not read: {} was not sent within {} ms", remote_.kind,
                                  method_name(method), budget / std::chrono::milliseconds(1)));
    }
    budget -= environment_.clock.now() - began;
  }
  auto sent = begin_call(method, std::move(request), budget);
  if (!sent) co_return std::move(sent).error();
  co_return co_await sent->reply();
}

Result<OutgoingCall> Peer::begin_call(Method method, Message request, Duration budget) {
  if (!is_open()) {
    return error(Code::unavailable, fmt::format("the connection to {} is closed", remote_.kind));
  }
  const uint64_t id = next_call_++;
  Frame frame = make_frame(FrameKind::request, id, method, std::move(request));
  frame.header.budget_us = to_us(budget);
  TROUPE_CHECK(connection_->send(std::move(frame)));
  return OutgoingCall{shared_from_this(), id, method, budget};
}

Result<std::shared_ptr<IncomingStream>> Peer::open_stream(Method method, Message request,
                                                          Duration budget, uint32_t unread_max) {
  if (!is_open()) {
    return error(Code::unavailable, fmt::format("the connection to {} is closed", remote_.kind));
  }
  const uint64_t id = next_call_++;
  Frame frame = make_frame(FrameKind::stream_request, id, method, std::move(request));
  const uint32_t window = unread_max == 0 ? stream_window : std::min(unread_max, stream_window);
  frame.header.credit = window;
  if (budget > Duration::zero()) frame.header.budget_us = to_us(budget);
  TROUPE_CHECK(connection_->send(std::move(frame)));
  std::shared_ptr<IncomingStream> stream{
      new IncomingStream(shared_from_this(), id, window, environment_.loop)};
  incoming_.emplace(id, stream.get());
  if (budget > Duration::zero()) {
    stream->timer_ =
        environment_.clock.call_at(environment_.clock.now() + budget, [raw = stream.get(), method] {
          raw->end_ = error(Code::deadline_exceeded,
                            fmt::format("{} did not end in time", method_name(method)));
          raw->peer_->send_control(FrameKind::cancel, raw->call_, 0);
          raw->peer_->incoming_.erase(raw->call_);
          raw->changed_.pulse();
        });
  }
  return stream;
}

Landing Peer::landing_of(const FrameHeader& header) {
  const auto found = pending_.find(header.call);
  if (header.kind != FrameKind::reply || found == pending_.end()) return {};
  return std::exchange(found->second->landing, {});
}

void Peer::dispatch(Frame frame) {
  const FrameHeader& header = frame.header;
  const uint64_t id = header.call;
  switch (header.kind) {
    case FrameKind::request: {
      Message request{std::move(frame.body), std::move(frame.descriptors), std::move(frame.bulk)};
      spawn(scope_, answer(shared_from_this(), header, std::move(request), context_of(header)));
      return;
    }
    case FrameKind::stream_request: {
      Message request{std::move(frame.body), std::move(frame.descriptors)};
      spawn(scope_,
            answer_stream(shared_from_this(), header, std::move(request), context_of(header)));
      return;
    }
    case FrameKind::reply: {
      if (const auto found = pending_.find(id); found != pending_.end()) {
        OutgoingCall::Pending* pending = found->second;
        pending_.erase(found);
        if (header.error.code != 0) {
          pending->outcome = protocol::from_info(header.error);
        } else {
          pending->outcome =
              Message{std::move(frame.body), std::move(frame.descriptors), std::move(frame.bulk)};
        }
        pending->done.set();
      } else if (const auto stream = incoming_.find(id); stream != incoming_.end()) {
        stream->second->end_ =
            header.error.code != 0 ? Status{protocol::from_info(header.error)} : ok();
        stream->second->changed_.pulse();
        incoming_.erase(stream);
      }
      return;  // A reply to nobody came too late: its caller was told already.
    }
    case FrameKind::item: {
      if (const auto stream = incoming_.find(id); stream != incoming_.end()) {
        stream->second->items_.push_back({std::move(frame.body), header.credit});
        stream->second->changed_.pulse();
      } else {
        drop_held(header.credit);
      }
      return;
    }
    case FrameKind::credit: {
      if (const auto stream = outgoing_.find(id); stream != outgoing_.end()) {
        const uint32_t more = std::min(header.credit, stream_window);
        stream->second->credit_ += more;
        if (stream->second->on_credit_) stream->second->on_credit_(more);
        stream->second->changed_.pulse();
      }
      return;
    }
    case FrameKind::cancel: {
      if (const auto found = serving_.find(id); found != serving_.end()) {
        found->second->how = static_cast<uint8_t>(header.credit);
        found->second->set();
      }
      if (const auto stream = outgoing_.find(id); stream != outgoing_.end()) {
        stream->second->cancelled_ = true;
        stream->second->changed_.pulse();
      }
      return;
    }
    case FrameKind::unknown:
      break;
  }
  log::debug("frame_ignored", {{"kind", static_cast<uint32_t>(header.kind)}});
}

CallContext Peer::context_of(const FrameHeader& header) {
  CallContext context;
  const Duration budget = std::chrono::microseconds(
      std::min<uint64_t>(header.budget_us, 1'000'000ull * 3600 * 24 * 365));
  context.deadline = budget > Duration::zero() ? environment_.clock.now() + budget : Instant::max();
  context.peer = shared_from_this();
  context.cancelled = std::make_shared<CancelEvent>(environment_.loop);
  context.trace = header.trace;
  serving_[header.call] = context.cancelled;
  return context;
}

Async<void> Peer::answer(std::shared_ptr<Peer> self, FrameHeader header, Message request,
                         CallContext context) {
  struct Guard {
    Peer& peer;
    uint64_t call;
    ~Guard() { peer.serving_.erase(call); }
  } guard{*self, header.call};
  auto outcome =
      co_await self->service_.handle(header.method, std::move(request), std::move(context));
  if (self->is_open()) self->send_reply(header.call, std::move(outcome));
}

Async<void> Peer::answer_stream(std::shared_ptr<Peer> self, FrameHeader header, Message request,
                                CallContext context) {
  OutgoingStream out{*self, header.call, self->environment_.loop};
  out.credit_ = std::min(header.credit, stream_window);
  out.cancelled_ = context.cancelled->is_set();
  self->outgoing_[header.call] = &out;
  struct Guard {
    Peer& peer;
    uint64_t call;
    ~Guard() {
      peer.serving_.erase(call);
      peer.outgoing_.erase(call);
    }
  } guard{*self, header.call};
  auto outcome = co_await self->service_.handle_stream(header.method, std::move(request),
                                                       std::move(context), out);
  if (!self->is_open()) co_return;
  if (outcome) {
    self->send_reply(header.call, Message{});
  } else {
    self->send_reply(header.call, std::move(outcome).error());
  }
}

void Peer::send_reply(uint64_t call, Result<Message> outcome) {
  Message message;
  if (outcome) message = std::move(*outcome);
  Frame frame = make_frame(FrameKind::reply, call, Method::unknown, std::move(message));
  if (!outcome) frame.header.error = protocol::to_info(outcome.error());
  const auto sent = connection_->send(std::move(frame));
  if (!sent && sent.error().code() == Code::invalid) {
    // Too large for a frame: the caller must hear of it rather than wait for its deadline.
    Frame refusal = make_frame(FrameKind::reply, call, Method::unknown, {});
    refusal.header.error = protocol::to_info(sent.error());
    (void)connection_->send(std::move(refusal));
  }
}

void Peer::send_control(FrameKind kind, uint64_t call, uint32_t credit) {
  Frame frame = make_frame(kind, call, Method::unknown, {});
  frame.header.credit = credit;
  (void)connection_->send(std::move(frame));  // On a closed connection there is nobody to tell.
}

OutgoingStream::OutgoingStream(Peer& peer, uint64_t call, Executor executor)
    : peer_(peer), call_(call), changed_(std::move(executor)) {}

Async<Status> OutgoingStream::send(Bytes item, uint32_t held) {
  while (credit_ == 0 && !cancelled_) co_await changed_.wait();
  if (!peer_.is_open()) co_return error(Code::unavailable, "the stream's receiver is gone");
  if (cancelled_) co_return error(Code::cancelled, "the stream's receiver gave up");
  --credit_;
  if (!peer_.connection_->is_writable()) co_await peer_.connection_->writable();
  Message message{std::move(item), {}};
  Frame frame = make_frame(FrameKind::item, call_, Method::unknown, std::move(message));
  frame.header.credit = held;
  co_return peer_.connection_->send(std::move(frame));
}

IncomingStream::IncomingStream(std::shared_ptr<Peer> peer, uint64_t call, uint32_t window,
                               Executor executor)
    : peer_(std::move(peer)), call_(call), window_(window), changed_(std::move(executor)) {}

IncomingStream::~IncomingStream() {
  if (timer_ != 0) peer_->environment_.clock.cancel(timer_);
  if (peer_->incoming_.erase(call_) > 0 && peer_->is_open()) {
    peer_->send_control(FrameKind::cancel, call_, 0);
  }
  for (const StreamItem& item : items_) peer_->drop_held(item.held);
}

const protocol::Hello& IncomingStream::sender() const {
  return peer_->remote();
}

Async<Status> IncomingStream::ended() {
  while (!end_) co_await changed_.wait();
  co_return *end_;
}

void IncomingStream::cancel(uint8_t how) {
  if (!end_ && peer_->is_open()) peer_->send_control(FrameKind::cancel, call_, how);
}

std::optional<StreamItem> IncomingStream::take() {
  if (items_.empty()) return std::nullopt;
  std::optional<StreamItem> item{std::move(items_.front())};
  items_.pop_front();
  if (++consumed_ >= std::max(window_ / 2, 1u) && !end_) {
    peer_->send_control(FrameKind::credit, call_, std::exchange(consumed_, 0));
  }
  return item;
}

Async<Result<std::optional<Bytes>>> IncomingStream::next() {
  while (items_.empty() && !end_) co_await changed_.wait();
  if (auto item = take()) {
    peer_->drop_held(item->held);
    co_return std::optional<Bytes>{std::move(item->bytes)};
  }
  if (!*end_) co_return end_->error();
  co_return std::optional<Bytes>{};
}

Async<Result<std::optional<StreamItem>>> IncomingStream::next_item() {
  while (items_.empty() && !end_) co_await changed_.wait();
  if (auto item = take()) co_return item;
  if (!*end_) co_return end_->error();
  co_return std::optional<StreamItem>{};
}

}  // namespace troupe::transport
