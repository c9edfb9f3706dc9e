// The gateway and its view of the cluster, as one component of the daemon.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "client/client.h"
#include "security/credentials.h"
#include "transport/network.h"
#include "transport/real_environment.h"

namespace troupe::tools {

class GatewayDaemon {
 public:
  // HTTPS too, if `https` names a host, with the certificate and key of `pem`.
  GatewayDaemon(transport::RealEnvironment& real, client::Client& client,
                std::filesystem::path api_keys, std::string host, uint16_t port,
                transport::Endpoint https, security::CredentialsPem pem);
  ~GatewayDaemon();

  // Errors: conflict (the port is taken), denied (plain HTTP off loopback), data_loss (the key
  // file).
  Async<Status> start();
  Async<void> stop();
  uint16_t port() const;
  uint16_t https_port() const;  // 0 without HTTPS.

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace troupe::tools
