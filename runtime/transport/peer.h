// Calls and server streams over a connection, in both directions.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "protocol/codec.h"
#include "protocol/messages.h"
#include "transport/environment.h"

namespace troupe::transport {

using protocol::Method;

// Opaque bytes, and what travels beside them: file descriptors (within a node only), or bulk
// (through sockets only).
struct Message {
  Bytes body;
  std::vector<FileDescriptor> descriptors;
  Bulk bulk = {};
};

class Peer;

class CancelEvent : public Event {
 public:
  using Event::Event;
  uint8_t how = 0;  // protocol::CancelBits, once it is set.
};

struct CallContext {
  Instant deadline;
  std::shared_ptr<Peer> peer;              // Who calls.
  std::shared_ptr<CancelEvent> cancelled;  // Set when the caller gave up or its connection closed.
  RawId trace;
};

// `held`: the number under which its sender holds something for whoever reads it, until the reader
// lets go of that; 0: nothing.
struct StreamItem {
  Bytes bytes;
  uint32_t held = 0;
};

// Where a stream's handler puts its items. Waits while the receiver has no room.
class OutgoingStream {
 public:
  OutgoingStream(Peer& peer, uint64_t call, Executor executor);
  // Errors: cancelled (the receiver gave up), unavailable (its connection closed).
  Async<Status> send(Bytes item, uint32_t held = 0);
  // Called on the loop when the receiver takes so many items more: it has read that many.
  void on_credit(std::function<void(uint32_t)> hook) { on_credit_ = std::move(hook); }

 private:
  friend class Peer;
  Peer& peer_;
  uint64_t call_;
  uint32_t credit_ = 0;
  bool cancelled_ = false;
  std::function<void(uint32_t)> on_credit_;
  Event changed_;
};

// What a process answers. Handlers run on the peer's loop and are not unwound when their caller
// goes: a handler that should stop early watches context.cancelled.
class Service {
 public:
  virtual ~Service() = default;
  virtual Async<Result<Message>> handle(Method method, Message request, CallContext context) = 0;
  virtual Async<Status> handle_stream(Method method, Message request, CallContext context,
                                      OutgoingStream& out) = 0;
  // Nobody will read an item for which the peer holds something under this number.
  virtual void item_dropped(Peer& peer, uint32_t held) { (void)peer, (void)held; }
  // Once, when a connection whose hello was accepted has closed.
  virtual void peer_closed(Peer& peer) { (void)peer; }
  // Whether to speak with this peer at all. Errors: denied, conflict.
  virtual Status accept_peer(const protocol::Hello& hello, const PeerIdentity& identity) {
    (void)hello, (void)identity;
    return ok();
  }
};

// The receiving end of a stream. Dropping it cancels the stream.
class IncomingStream {
 public:
  ~IncomingStream();
  // The next item; nullopt at the orderly end. Errors: what the handler returned, unavailable,
  // deadline_exceeded. What is held for it counts as dropped.
  Async<Result<std::optional<Bytes>>> next();
  // The same, and the reader lets go of what is held for it.
  Async<Result<std::optional<StreamItem>>> next_item();
  const protocol::Hello& sender() const;
  // Waits until the handler has ended it, or the connection closed; items may still be unread.
  Async<Status> ended();
  // Tells the handler to stop; what it answers still ends the stream. `how`: protocol::CancelBits.
  void cancel(uint8_t how);

 private:
  friend class Peer;
  IncomingStream(std::shared_ptr<Peer> peer, uint64_t call, uint32_t window, Executor executor);
  std::optional<StreamItem> take();
  std::shared_ptr<Peer> peer_;
  uint64_t call_;
  const uint32_t window_;  // Items that it takes before it grants more.
  std::deque<StreamItem> items_;
  uint32_t consumed_ = 0;  // Since the last credit was granted.
  std::optional<Status> end_;
  Event changed_;
  TimerClock::TimerId timer_ = 0;
};

// A request that was sent. Dropping it tells the callee that nobody waits any more.
class OutgoingCall {
 public:
  OutgoingCall(OutgoingCall&&) noexcept;
  OutgoingCall& operator=(OutgoingCall&&) = delete;
  ~OutgoingCall();
  // Waits for the reply, once. Errors: deadline_exceeded, outcome_unknown (the connection closed),
  // and whatever the handler returned.
  Async<Result<Message>> reply();
  // The same, or nothing once the event is set.
  Async<std::optional<Result<Message>>> reply_unless(Event& given_up);
  // The same now, and how (protocol::CancelBits). No reply comes any more.
  void cancel(uint8_t how);
  // Where the reply's bulk is wanted, if it fits. The reply's bulk.bytes says where it lies.
  void land(Landing landing);

 private:
  friend class Peer;
  struct Pending;
  OutgoingCall(std::shared_ptr<Peer> peer, uint64_t id, Method method, Duration budget);
  std::shared_ptr<Peer> peer_;
  uint64_t id_;
  Method method_;
  Duration budget_;
  std::unique_ptr<Pending> pending_;
};

// One end of a connection. Made by start(), which exchanges hellos and begins to serve.
class Peer : public std::enable_shared_from_this<Peer> {
 public:
  // `service` and `environment` outlive the scope. Errors: denied, conflict (protocol version),
  // unavailable, deadline_exceeded.
  static Async<Result<std::shared_ptr<Peer>>> start(Scope& scope, Environment environment,
                                                    std::unique_ptr<Connection> connection,
                                                    Service& service, protocol::Hello self,
                                                    Instant deadline);
  // Tells whoever dialled why it is not spoken with, as its start()'s error, and closes.
  static Async<void> refuse(Environment environment, std::unique_ptr<Connection> connection,
                            Error why, Instant deadline);
  ~Peer();

  const protocol::Hello& remote() const { return remote_; }
  const PeerIdentity& identity() const { return connection_->peer(); }
  bool is_open() const { return !closed_.is_set(); }
  // As Connection::channel; null also if the peer does not take such calls.
  std::shared_ptr<CallChannel> channel() const {
    return takes_calls_ ? connection_->channel() : nullptr;
  }
  Event& closed() { return closed_; }
  // Sends what is queued, then closes; pending calls fail with outcome_unknown.
  void close();

  // Sends a request and waits for its reply. Errors: deadline_exceeded (the callee is told),
  // unavailable (not sent), outcome_unknown (the connection closed after it was sent), and whatever
  // the handler returned.
  Async<Result<Message>> call(Method method, Message request, Duration budget);
  // The first half of call(): the request is queued when this returns, so calls keep their order.
  // Errors: unavailable (closed), invalid (over a size limit), exhausted (the peer does not read).
  Result<OutgoingCall> begin_call(Method method, Message request, Duration budget);
  // Whether more can be sent without piling up; call() and streams wait for it by themselves.
  bool is_writable() const { return connection_->is_writable(); }
  Async<void> writable() { return connection_->writable(); }
  // Opens a server stream; `budget` bounds the whole of it (zero: no bound), `unread_max` the items
  // that were sent and not read (0: the default).
  Result<std::shared_ptr<IncomingStream>> open_stream(Method method, Message request,
                                                      Duration budget, uint32_t unread_max = 0);

 private:
  friend class OutgoingStream;
  friend class IncomingStream;
  friend class OutgoingCall;

  Peer(Scope& scope, Environment environment, std::unique_ptr<Connection> connection,
       Service& service);
  static Async<void> serve(std::shared_ptr<Peer> self);
  static Async<void> answer(std::shared_ptr<Peer> self, protocol::FrameHeader header,
                            Message request, CallContext context);
  static Async<void> answer_stream(std::shared_ptr<Peer> self, protocol::FrameHeader header,
                                   Message request, CallContext context);
  void drop_held(uint32_t held);
  Landing landing_of(const protocol::FrameHeader& header);
  void dispatch(Frame frame);
  void send_reply(uint64_t call, Result<Message> outcome);
  void send_control(protocol::FrameKind kind, uint64_t call, uint32_t credit);
  // Of a request that came; from now on the caller can cancel it.
  CallContext context_of(const protocol::FrameHeader& header);
  void shut_down(const Error& why);

  Scope& scope_;
  Environment environment_;
  std::unique_ptr<Connection> connection_;
  Service& service_;
  protocol::Hello remote_;
  bool takes_calls_ = false;
  Event closed_;
  Error closing_reason_{Code::cancelled, "this process stops"};
  uint64_t next_call_ = 1;
  std::unordered_map<uint64_t, OutgoingCall::Pending*> pending_;  // Each lives in its OutgoingCall.
  std::unordered_map<uint64_t, IncomingStream*> incoming_;
  std::unordered_map<uint64_t, std::shared_ptr<CancelEvent>>
      serving_;  // Cancel events by remote call.
  std::unordered_map<uint64_t, OutgoingStream*> outgoing_;
};

// A typed call. Reply and Request are structs of protocol/messages.h.
template <class Reply, class Request>
Async<Result<Reply>> call(std::shared_ptr<Peer> peer, Method method, Request request,
                          Duration budget) {
  Message message{protocol::encode(request), {}};
  auto outcome = co_await peer->call(method, std::move(message), budget);
  if (!outcome) co_return std::move(outcome).error();
  co_return protocol::decode<Reply>(outcome->body);
}

}  // namespace troupe::transport
