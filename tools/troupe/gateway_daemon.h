// The gateway and its view of the cluster, as one component of the daemon.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "client/client.h"
#include "transport/real_environment.h"

namespace troupe::tools {

class GatewayDaemon {
 public:
  GatewayDaemon(transport::RealEnvironment& real, client::Client& client,
                std::filesystem::path api_keys, std::string host, uint16_t port);
  ~GatewayDaemon();

  // Errors: conflict (the port is taken), denied (plain HTTP off loopback), data_loss (the key
  // file).
  Async<Status> start();
  Async<void> stop();
  uint16_t port() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::tools
