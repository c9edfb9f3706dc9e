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

  Async<Result<std::unique_ptr<Connection>>> connect(Endpoint endpoint, Instant deadline) override;
  Result<std::unique_ptr<Listener>> listen(const Endpoint& endpoint) override;

 private:
  boost::asio::io_context& loop_;
  TimerClock& clock_;
  Scope& scope_;
  Credentials* credentials_ = nullptr;
};

}  // namespace troupe::transport
