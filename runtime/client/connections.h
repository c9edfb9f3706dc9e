// The connections of a process: one a peer process, made on demand or accepted.
#pragma once

#include <map>
#include <memory>

#include "client/client.h"

namespace troupe::client {

class Connections final : public transport::Service {
 public:
  Connections(transport::Environment environment, Scope& scope, transport::Router& router);

  // Who this process says it is in each hello.
  void set_self(protocol::Hello self) { self_ = std::move(self); }
  // Listens; the endpoints' final form (ports) is written into the hello's address.
  Status listen(const std::string& unix_path, const std::string& host);
  Async<void> stop();

  // The worker's connection: the one given, or one made to `endpoint`.
  Async<Status> join_worker(std::unique_ptr<transport::Connection> inherited, Endpoint endpoint,
                            Instant deadline);
  const std::shared_ptr<Peer>& worker() const { return worker_; }
  // Tells the worker of this process's doorbell, if the environment has rings.
  Async<Status> attach_rings(Instant deadline);
  // Of which one leads: the others refuse. All but actors watch it, if there are several.
  void set_heads(std::vector<Endpoint> heads);
  bool has_several_heads() const { return heads_.size() > 1; }
  // That head did not answer in time: if there are others, one of them may lead.
  void distrust(Peer& head);

  Async<Result<std::shared_ptr<Peer>>> head(Instant deadline);
  Async<Result<std::shared_ptr<Peer>>> peer_of(protocol::ProcessAddress address, Instant deadline);
  const protocol::ProcessAddress& address() const { return self_.address; }
  // False of a process that on_closed was called with.
  bool is_connected(ProcessId process) const { return open_.contains(process); }

  // transport::Service
  Async<Result<transport::Message>> handle(Method method, transport::Message request,
                                           transport::CallContext context) override;
  Async<Status> handle_stream(Method method, transport::Message request,
                              transport::CallContext context,
                              transport::OutgoingStream& out) override;
  void item_dropped(Peer& peer, uint32_t held) override;
  void peer_closed(Peer& peer) override;
  Status accept_peer(const protocol::Hello& hello,
                     const transport::PeerIdentity& identity) override;
  // Called with what nobody here will read, see transport::Service.
  void on_item_dropped(std::function<void(const Peer&, uint32_t)> hook) {
    on_item_dropped_ = std::move(hook);
  }
  // Called with each process whose last connection closed.
  void on_closed(std::function<void(const protocol::Hello&)> hook) { on_closed_ = std::move(hook); }

 private:
  // A connection that several callers may be waiting for.
  struct Dial {
    explicit Dial(const Executor& executor) : done(executor) {}
    std::shared_ptr<Peer> peer;
    Error failure;
    Event done;
  };
  Async<void> accept_all(transport::Listener& listener);
  Async<void> greet(std::unique_ptr<transport::Connection> connection);
  Async<Result<std::shared_ptr<Peer>>> dial(Endpoint endpoint, Instant deadline);
  // By a dial, or by waiting for one that goes on. The nil process is a head.
  Async<Result<std::shared_ptr<Peer>>> reach(protocol::ProcessAddress address, Instant deadline);
  // Through a ring that the worker makes.
  Async<Result<std::shared_ptr<Peer>>> dial_ring(ProcessId process, Instant deadline);
  Async<Result<transport::Message>> accept_ring(transport::Message message,
                                                transport::CallContext context);
  Result<std::unique_ptr<transport::Connection>> open_ring(protocol::RingOffer offer,
                                                           transport::Message message);
  void head_dialled(const Result<std::shared_ptr<Peer>>& peer);
  Async<void> return_to_head();
  Async<void> watch_head();
  Async<void> dial_for(std::shared_ptr<Dial> dial, Endpoint endpoint, ProcessId process,
                       Instant deadline);

  transport::Environment environment_;
  Scope& scope_;
  transport::Router& router_;
  protocol::Hello self_;
  std::vector<std::unique_ptr<transport::Listener>> listeners_;
  std::shared_ptr<Peer> worker_;
  std::vector<Endpoint> heads_;
  size_t next_head_ = 0;     // The one that led, as far as is known; the one that is dialled.
  size_t silent_heads_ = 0;  // Dials in a row that nobody answered.
  Duration head_patience_;   // With one of several that says nothing.
  std::map<ProcessId, std::shared_ptr<Peer>> peers_;
  std::map<ProcessId, int> open_;  // Connections; two that dial each other at once have two.
  std::map<ProcessId, std::shared_ptr<Dial>> dials_;  // The nil id is the head.
  std::shared_ptr<Peer> head_;
  std::function<void(const Peer&, uint32_t)> on_item_dropped_;
  std::function<void(const protocol::Hello&)> on_closed_;
  bool has_rings_ = false;
  bool stopped_ = false;
};

}  // namespace troupe::client
