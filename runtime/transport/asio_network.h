// The real network: Unix sockets with peer credentials within a node, TLS 1.3 between nodes.
#pragma once

#include <boost/asio/io_context.hpp>

#include "transport/network.h"

namespace troupe::transport {

class AsioNetwork final : public Network {
 public:
  // All outlive the network and its connections; `scope` is stopped before the loop ends.
  AsioNetwork(boost::asio::io_context& loop, TimerClock& clock, Scope& scope);

  // Null: TLS is refused.
  void set_credentials(Credentials* credentials) { credentials_ = credentials; }
  // Threads that wait in it read from TLS connections, too. Outlives their last use.
  void set_rings(class RingPort* rings) { *rings_ = rings; }

  Async<Result<std::unique_ptr<Connection>>> connect(Endpoint endpoint, Instant deadline) override;
  Result<std::unique_ptr<Listener>> listen(const Endpoint& endpoint) override;
  Async<Reach> probe(Endpoint endpoint, Instant deadline) override;

 private:
  Async<Result<Reach>> knock(Endpoint endpoint);
  Async<Result<std::unique_ptr<Connection>>> connect_unbounded(Endpoint endpoint);

  boost::asio::io_context& loop_;
  TimerClock& clock_;
  Scope& scope_;
  Credentials* credentials_ = nullptr;
  std::shared_ptr<RingPort*> rings_;            // Shared with the listeners.
  std::shared_ptr<class BulkThreads> threads_;  // Shared with the connections.
};

// A connection over one end of a socket pair whose other end a process of this user has inherited,
// so the peer is local and its pid is not known. The writer lives in `scope`.
std::unique_ptr<Connection> adopt_unix_socket(Scope& scope, boost::asio::io_context& loop,
                                              FileDescriptor socket);

}  // namespace troupe::transport
