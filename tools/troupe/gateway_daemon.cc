#include "troupe/gateway_daemon.h"

#include "gateway/cluster_backend.h"
#include "gateway/gateway.h"

namespace troupe::tools {

struct GatewayDaemon::Impl {
  Impl(transport::RealEnvironment& real, client::Client& client, gateway::GatewayOptions options)
      : backend(client), front(real.environment(), real.io(), backend, std::move(options)) {}

  gateway::ClusterBackend backend;
  gateway::Gateway front;
};

GatewayDaemon::GatewayDaemon(transport::RealEnvironment& real, client::Client& client,
                             std::filesystem::path api_keys, std::string host, uint16_t port,
                             transport::Endpoint https, security::CredentialsPem pem) {
  gateway::GatewayOptions options;
  options.http_address = std::move(host);
  options.http_port = port;
  options.https_address = std::move(https.host);
  options.https_port = https.port;
  options.certificate_chain_pem = std::move(pem.certificate_pem);
  options.key_pem = std::move(pem.key_pem);
  options.api_keys = std::move(api_keys);
  impl_ = std::make_unique<Impl>(real, client, std::move(options));
}

GatewayDaemon::~GatewayDaemon() = default;

Async<Status> GatewayDaemon::start() {
  TROUPE_CO_CHECK(co_await impl_->front.start());
  impl_->backend.start();
  co_return ok();
}

Async<void> GatewayDaemon::stop() {
  co_await impl_->front.stop();
  co_await impl_->backend.stop();
}

uint16_t GatewayDaemon::port() const {
  return impl_->front.port();
}

uint16_t GatewayDaemon::https_port() const {
  return impl_->front.https_port();
}

}  // namespace troupe::tools
