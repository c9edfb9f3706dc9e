#include "client/connections.h"

#include <fmt/format.h>

#include "base/log.h"
#include "security/audit.h"
#include "transport/ring_connection.h"
#include "transport/ring_port.h"

namespace troupe::client {

using transport::CallContext;
using transport::Connection;
using transport::Listener;
using transport::Message;
using transport::OutgoingStream;
using transport::PeerIdentity;

namespace {
constexpr Duration greet_budget = std::chrono::seconds(10);
// One of several heads may be gone without a word, while another one leads; or all are slow.
constexpr Duration head_patience_first = std::chrono::milliseconds(300);
constexpr Duration ping_period = std::chrono::milliseconds(500);
constexpr Duration ping_budget = std::chrono::seconds(1);
constexpr Duration flush_time = std::chrono::milliseconds(200);
constexpr Duration flush_time_most = std::chrono::seconds(1);  // While there is more to send.
constexpr Duration return_first = std::chrono::milliseconds(20);
constexpr Duration return_most = std::chrono::seconds(1);

bool speaks_as_head(const PeerIdentity& identity) {
  return identity.local || identity.role == transport::Role::head;
}
}  // namespace

Connections::Connections(transport::Environment environment, Scope& scope,
                         transport::Router& router)
    : environment_(environment),
      scope_(scope),
      router_(router),
      head_patience_(head_patience_first) {}

Status Connections::listen(const std::string& unix_path, const std::string& host) {
  Endpoint local;
  local.unix_path = unix_path;
  TROUPE_TRY(auto unix_listener, environment_.network.listen(local));
  listeners_.push_back(std::move(unix_listener));
  self_.address.unix_path = unix_path;
  Endpoint remote;
  remote.host = host;
  TROUPE_TRY(auto tls_listener, environment_.network.listen(remote));
  self_.address.host = host;
  self_.address.port = tls_listener->endpoint().port;
  listeners_.push_back(std::move(tls_listener));
  for (auto& listener : listeners_) spawn(scope_, accept_all(*listener));
  return ok();
}

Async<void> Connections::stop() {
  stopped_ = true;
  for (const auto& listener : listeners_) co_await listener->stop();
  std::vector<std::shared_ptr<Peer>> open;
  if (worker_) open.push_back(worker_);
  if (head_) open.push_back(head_);
  for (const auto& [id, peer] : peers_) open.push_back(peer);
  for (const auto& peer : open) peer->close();
  // Each sends first what was answered; one that does not read must not keep this process.
  const Instant began = environment_.clock.now();
  for (const auto& peer : open) {
    bool is_closed = co_await wait_until(environment_.clock, began + flush_time, peer->closed());
    const auto channel = peer->channel();
    if (!is_closed && channel && channel->queued_bytes() > 0) {
      is_closed = co_await wait_until(environment_.clock, began + flush_time_most, peer->closed());
    }
    if (!is_closed) log::debug("left_unsent", {{"to", peer->remote().kind}});
  }
}

Async<void> Connections::accept_all(Listener& listener) {
  for (;;) {
    auto connection = co_await listener.accept();
    if (!connection) co_return;
    spawn(scope_, greet(std::move(*connection)));
  }
}

Async<void> Connections::greet(std::unique_ptr<Connection> connection) {
  const Instant deadline = environment_.clock.now() + greet_budget;
  auto peer =
      co_await Peer::start(scope_, environment_, std::move(connection), *this, self_, deadline);
  if (!peer) {
    log::warning("peer_refused", {{"why", peer.error().message()}});
    co_return;
  }
  const ProcessId process = (*peer)->remote().address.process;
  // Two processes that dial each other at once have two connections: each uses its first.
  if (!process.is_nil() && !peers_.contains(process)) peers_[process] = *peer;
}

Async<Status> Connections::join_worker(std::unique_ptr<Connection> inherited, Endpoint endpoint,
                                       Instant deadline) {
  if (inherited) {
    auto peer =
        co_await Peer::start(scope_, environment_, std::move(inherited), *this, self_, deadline);
    if (!peer) co_return std::move(peer).error();
    worker_ = std::move(*peer);
    co_return ok();
  }
  auto peer = co_await dial(std::move(endpoint), deadline);
  if (!peer) co_return std::move(peer).error();
  worker_ = std::move(*peer);
  co_return ok();
}

Async<Result<std::shared_ptr<Peer>>> Connections::dial(Endpoint endpoint, Instant deadline) {
  auto connection = co_await environment_.network.connect(std::move(endpoint), deadline);
  if (!connection) co_return std::move(connection).error();
  co_return co_await Peer::start(scope_, environment_, std::move(*connection), *this, self_,
                                 deadline);
}

Async<Status> Connections::attach_rings(Instant deadline) {
  if (environment_.rings == nullptr) co_return ok();
  router_.on_message(Method::accept_ring, [this](Message message, CallContext context) {
    return accept_ring(std::move(message), std::move(context));
  });
  TROUPE_CO_TRY(auto doorbell, environment_.rings->share_doorbell());
  Message request;
  request.descriptors.push_back(std::move(doorbell));
  auto answer = co_await worker_->call(Method::attach_rings, std::move(request),
                                       deadline - environment_.clock.now());
  if (!answer) co_return std::move(answer).error().context("attach to the node's rings");
  if (answer->descriptors.size() != 1) {
    co_return error(Code::internal, "the worker sent no page of the node");
  }
  TROUPE_CO_CHECK(environment_.rings->join_node(std::move(answer->descriptors[0])));
  has_rings_ = true;
  co_return ok();
}

Result<std::unique_ptr<Connection>> Connections::open_ring(protocol::RingOffer offer,
                                                           Message message) {
  if (message.descriptors.size() != 2) {
    return error(Code::internal, "a ring came without its memory and its doorbell");
  }
  transport::RingPort::Offer ring;
  ring.memory = std::move(message.descriptors[0]);
  ring.peer_doorbell = std::move(message.descriptors[1]);
  ring.side = offer.side == 0 ? 0 : 1;
  ring.index = offer.index;
  ring.peer_index = offer.peer_index;
  ring.process = offer.process;
  TROUPE_TRY(auto channel, environment_.rings->open(std::move(ring)));
  PeerIdentity identity;
  identity.role = transport::Role::client;
  identity.name = offer.name;
  identity.pid = offer.pid;
  identity.local = true;
  return std::unique_ptr<Connection>{std::make_unique<transport::RingConnection>(
      environment_.loop, std::move(channel), std::move(identity))};
}

Async<Result<std::shared_ptr<Peer>>> Connections::dial_ring(ProcessId process, Instant deadline) {
  protocol::OpenRing request{process};
  Message message{protocol::encode(request), {}};
  const Duration budget = deadline - environment_.clock.now();
  auto answer = co_await worker_->call(Method::open_ring, std::move(message), budget);
  if (!answer) co_return std::move(answer).error();
  TROUPE_CO_TRY(auto offer, protocol::decode<protocol::RingOffer>(answer->body));
  TROUPE_CO_TRY(auto connection, open_ring(std::move(offer), std::move(*answer)));
  co_return co_await Peer::start(scope_, environment_, std::move(connection), *this, self_,
                                 deadline);
}

Async<Result<Message>> Connections::accept_ring(Message message, CallContext context) {
  if (context.peer != worker_ || !has_rings_) {
    co_return error(Code::denied, "only the node's worker opens rings");
  }
  TROUPE_CO_TRY(auto offer, protocol::decode<protocol::RingOffer>(message.body));
  TROUPE_CO_TRY(auto connection, open_ring(std::move(offer), std::move(message)));
  spawn(scope_, greet(std::move(connection)));
  co_return Message{};
}

Async<void> Connections::dial_for(std::shared_ptr<Dial> dialled, Endpoint endpoint,
                                  ProcessId process, Instant deadline) {
  Result<std::shared_ptr<Peer>> peer = error(Code::exhausted, "no ring");
  const bool is_self = process == self_.address.process;  // It has no ring to itself.
  if (endpoint.is_unix() && has_rings_ && !process.is_nil() && !is_self) {
    auto ring = co_await dial_ring(process, deadline);
    peer = std::move(ring);
  }
  // Through a socket only if there can be no more rings: one whose process is gone may still
  // listen, and what is sent there is lost.
  if (!peer && peer.error().code() == Code::exhausted) {
    auto dialled_peer = co_await dial(endpoint, deadline);
    peer = std::move(dialled_peer);
  }
  const bool is_head = process.is_nil();
  if (peer && is_head && !speaks_as_head((*peer)->identity())) {
    (*peer)->close();
    security::Audit{}.refuse(security::audit_name((*peer)->identity()), "be the head", "its role");
    peer = error(Code::denied, fmt::format("{} on {} is not the cluster's head",
                                           (*peer)->identity().name, endpoint.to_string()));
  } else if (peer && !is_head && (*peer)->remote().address.process != process) {
    (*peer)->close();
    peer = error(Code::unavailable,
                 fmt::format("another process listens on {}", endpoint.to_string()));
  }
  dials_.erase(process);
  if (is_head) head_dialled(peer);
  if (!peer) {
    dialled->failure = std::move(peer).error();
  } else {
    dialled->peer = *peer;
    if (is_head) {
      head_ = *peer;
    } else if (!peers_.contains(process)) {
      peers_[process] = *peer;
    }
  }
  dialled->done.set();
}

void Connections::set_heads(std::vector<Endpoint> heads) {
  heads_ = std::move(heads);
  if (has_several_heads() && self_.kind != "actor") spawn(scope_, watch_head());
}

void Connections::distrust(Peer& head) {
  // Once for all who waited, and never while the next one is dialled already.
  if (!has_several_heads() || head_.get() != &head || !head.is_open()) return;
  next_head_ = (next_head_ + 1) % heads_.size();
  const auto left = std::exchange(head_, nullptr);
  left->close();
  if (self_.kind == "driver" && !stopped_) spawn(scope_, return_to_head());
}

// Its machine may be gone without a word, and another head end the job of a driver that it does not
// hear of.
Async<void> Connections::watch_head() {
  while (!stopped_) {
    co_await sleep_for(environment_.clock, ping_period);
    const auto peer = head_;
    if (!peer || !peer->is_open()) continue;
    const protocol::Empty nothing;
    auto answer =
        co_await transport::call<protocol::Empty>(peer, Method::ping, nothing, ping_budget);
    if (!answer && answer.error().code() == Code::deadline_exceeded) distrust(*peer);
  }
}

Async<Result<std::shared_ptr<Peer>>> Connections::head(Instant deadline) {
  Error failure = error(Code::unavailable, "no head is known");
  for (size_t tries = 0; tries < heads_.size(); ++tries) {
    if (head_ && head_->is_open()) co_return head_;
    protocol::ProcessAddress address;
    address.unix_path = heads_[next_head_].unix_path;
    address.node = self_.address.node;
    address.host = heads_[next_head_].host;
    address.port = heads_[next_head_].port;
    auto peer = co_await reach(std::move(address), deadline);
    if (peer) co_return peer;
    failure = std::move(peer).error();
  }
  co_return failure;
}

// Of the one that was dialled, whoever waited for it: a caller whose time is up before says nothing
// of it.
void Connections::head_dialled(const Result<std::shared_ptr<Peer>>& peer) {
  if (peer) {
    head_patience_ = head_patience_first;
    silent_heads_ = 0;
    return;
  }
  next_head_ = (next_head_ + 1) % heads_.size();
  silent_heads_ = peer.error().code() == Code::deadline_exceeded ? silent_heads_ + 1 : 0;
  if (silent_heads_ < heads_.size()) return;
  silent_heads_ = 0;
  head_patience_ = std::min(head_patience_ * 2, greet_budget);
}

Async<Result<std::shared_ptr<Peer>>> Connections::peer_of(protocol::ProcessAddress address,
                                                          Instant deadline) {
  const ProcessId process = address.process;
  if (process.is_nil()) co_return error(Code::invalid, "a process's address has no process id");
  if (worker_ && worker_->is_open() && worker_->remote().address.process == process) {
    co_return worker_;
  }
  if (const auto found = peers_.find(process); found != peers_.end() && found->second->is_open()) {
    co_return found->second;
  }
  co_return co_await reach(std::move(address), deadline);
}

Async<Result<std::shared_ptr<Peer>>> Connections::reach(protocol::ProcessAddress address,
                                                        Instant deadline) {
  if (stopped_) co_return error(Code::cancelled, "this process is leaving the cluster");
  const ProcessId process = address.process;
  std::shared_ptr<Dial> dialled;
  if (const auto found = dials_.find(process); found != dials_.end()) {
    dialled = found->second;
  } else {
    Endpoint endpoint;
    if (address.node == self_.address.node && !address.unix_path.empty()) {
      endpoint.unix_path = address.unix_path;
    } else {
      endpoint.host = address.host;
      endpoint.port = address.port;
    }
    dialled = std::make_shared<Dial>(environment_.loop);
    dials_[process] = dialled;
    // Others may wait for the same connection, so it has a budget of its own.
    const bool others_may_lead = process.is_nil() && has_several_heads();
    const Duration budget = others_may_lead ? head_patience_ : greet_budget;
    spawn(scope_,
          dial_for(dialled, std::move(endpoint), process, environment_.clock.now() + budget));
  }
  const bool done = co_await wait_until(environment_.clock, deadline, dialled->done);
  if (!done) co_return error(Code::deadline_exceeded, "no connection in time");
  if (!dialled->peer) co_return dialled->failure;
  co_return dialled->peer;
}

Async<Result<Message>> Connections::handle(Method method, Message request, CallContext context) {
  return router_.handle(method, std::move(request), std::move(context));
}

Async<Status> Connections::handle_stream(Method method, Message request, CallContext context,
                                         OutgoingStream& out) {
  return router_.handle_stream(method, std::move(request), std::move(context), out);
}

void Connections::item_dropped(Peer& peer, uint32_t held) {
  if (on_item_dropped_ && !stopped_) on_item_dropped_(peer, held);
}

void Connections::peer_closed(Peer& peer) {
  const ProcessId process = peer.remote().address.process;
  if (const auto found = peers_.find(process);
      found != peers_.end() && found->second.get() == &peer) {
    peers_.erase(found);
  }
  if (head_.get() == &peer) {
    head_.reset();
    if (self_.kind == "driver" && !stopped_) spawn(scope_, return_to_head());
  }
  const auto open = open_.find(process);
  if (open == open_.end() || --open->second > 0) return;
  open_.erase(open);
  if (on_closed_ && !stopped_) on_closed_(peer.remote());
}

// A driver that a head does not hear of for a while is taken for gone, and its job ends.
Async<void> Connections::return_to_head() {
  Duration pause = return_first;
  while (!stopped_) {
    auto peer = co_await head(environment_.clock.now() + greet_budget);
    if (peer) co_return;
    co_await sleep_for(environment_.clock, pause);
    pause = std::min(pause * 2, return_most);
  }
}

Status Connections::accept_peer(const protocol::Hello& hello, const PeerIdentity& identity) {
  const security::Audit audit;
  const std::string who = security::audit_name(identity);
  if (!hello.cluster.is_nil() && !self_.cluster.is_nil() && hello.cluster != self_.cluster) {
    audit.refuse(who, "connect as " + hello.kind, "of another cluster");
    return error(Code::denied, "the peer belongs to cluster " + hello.cluster.to_string());
  }
  audit.admit(who, "connect as " + hello.kind, "of this cluster");
  ++open_[hello.address.process];
  return ok();
}

}  // namespace troupe::client
