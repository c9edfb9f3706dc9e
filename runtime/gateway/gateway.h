// The cluster's front door: the OpenAI-compatible HTTP API over a Backend.
#pragma once

#include <boost/asio/io_context.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "gateway/backend.h"
#include "gateway/generation.h"
#include "gateway/http_connection.h"
#include "gateway/metrics.h"
#include "gateway/openai_request.h"
#include "gateway/statistics.h"
#include "security/api_keys.h"
#include "security/audit.h"
#include "transport/environment.h"

namespace troupe::gateway {

struct GatewayOptions {
  // Plain HTTP, loopback only. Port 0: the system chooses.
  std::string http_address = "127.0.0.1";
  uint16_t http_port = 0;
  // HTTPS, when an address is given; any address, with the certificate chain (leaf first).
  std::string https_address;
  uint16_t https_port = 0;
  std::string certificate_chain_pem;
  std::string key_pem;
  // Read again every few seconds. Empty: no authentication, which loopback alone may have.
  std::filesystem::path api_keys;

  HttpLimits limits;
  size_t connections_max = 1024;
  size_t in_flight_max = 256;  // Generations of one model; more are told to come back (429).
  Duration request_budget = std::chrono::minutes(10);
  RetryOptions retry;
  Duration drain = std::chrono::seconds(5);  // For requests in flight when it stops.
};

// Belongs to the environment's loop, which `loop` runs. Must be stopped before it is destroyed.
class Gateway {
 public:
  Gateway(transport::Environment environment, boost::asio::io_context& loop, Backend& backend,
          GatewayOptions options, security::Audit audit = security::Audit{});
  ~Gateway();

  // Errors: denied (plain HTTP or no authentication off loopback), conflict (a port is taken),
  // data_loss (the key file or certificate is damaged), invalid (no numeric address).
  Async<Status> start();
  // Takes no more connections, lets what runs end within options.drain, and closes.
  Async<void> stop();
  uint16_t port() const;        // Of plain HTTP.
  uint16_t https_port() const;  // 0 without HTTPS.

 private:
  struct Exchange;    // One request being answered.
  struct Admission;   // Its place among the generations in flight.
  struct Completion;  // Its choices as they come.
  enum class Door { plain, tls };

  Status check_options() const;
  Async<Status> load_keys();
  Async<void> reload_keys();
  Async<void> accept_all(Door door, HttpListener& listener);
  Async<void> session(std::unique_ptr<HttpStream> stream, Door door);
  Async<bool> refuse_unreadable(HttpConnection& connection, Error why);
  // False: the connection is to be closed.
  Async<bool> answer(HttpConnection& connection, Exchange& exchange);
  Async<bool> route(HttpConnection& connection, Exchange& exchange);
  Async<bool> respond(HttpConnection& connection, Exchange& exchange, HttpResponse response);
  Async<bool> fail(HttpConnection& connection, Exchange& exchange, ApiError failure);
  std::optional<ApiError> check_origin(const Exchange& exchange) const;
  std::optional<ApiError> check_key(Exchange& exchange);
  Async<bool> generate(HttpConnection& connection, Exchange& exchange, ApiRequest request);
  Async<bool> complete(HttpConnection& connection, Exchange& exchange, const ApiRequest& request);
  Async<void> run_choices(Completion& completion, size_t first);
  Async<void> run_choice(Completion& completion, size_t index);
  Async<bool> pass_on(Completion& completion, size_t index, const Chunk& chunk);
  std::string models_json() const;
  std::string made_id() const;

  transport::Environment environment_;
  boost::asio::io_context& loop_;
  Backend& backend_;
  GatewayOptions options_;
  security::Audit audit_;
  std::optional<security::ApiKeys> keys_;
  std::unique_ptr<HttpListener> plain_;
  std::unique_ptr<HttpListener> tls_;
  Metrics metrics_;
  Statistics statistics_;
  std::map<std::string, size_t> in_flight_;
  size_t exchanges_ = 0;
  size_t connections_ = 0;
  bool stopping_ = false;
  Event idle_;
  Scope scope_;
};

}  // namespace troupe::gateway
