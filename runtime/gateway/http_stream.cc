#include "gateway/http_stream.h"

#include <fmt/format.h>
#include <openssl/ssl.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "base/log.h"

namespace troupe::gateway {
namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr auto token = asio::as_tuple(asio::use_awaitable);

std::string address_of(const tcp::socket& socket) {
  error_code failed;
  const auto remote = socket.remote_endpoint(failed);
  return failed ? "unknown" : remote.address().to_string();
}

class PlainStream final : public HttpStream {
 public:
  explicit PlainStream(tcp::socket socket)
      : socket_(std::move(socket)), remote_(address_of(socket_)) {}

  Async<bool> handshake() override { co_return true; }
  Async<size_t> read_some(std::span<char> out) override {
    auto buffer = asio::buffer(out.data(), out.size());
    const auto [failed, count] = co_await socket_.async_read_some(buffer, token);
    co_return failed ? 0 : count;
  }
  Async<bool> write(std::string_view bytes) override {
    // Mostly the kernel has room: one call, no trip through the loop.
    error_code failed;
    socket_.non_blocking(true, failed);
    const size_t sent = socket_.write_some(asio::buffer(bytes.data(), bytes.size()), failed);
    if (failed && failed != asio::error::would_block) co_return false;
    if (sent == bytes.size()) co_return true;
    auto rest = asio::buffer(bytes.data() + sent, bytes.size() - sent);
    const auto [broken, count] = co_await asio::async_write(socket_, rest, token);
    co_return !broken;
  }
  void shutdown_send() override {
    error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
  }
  void close() override {
    error_code ignored;
    socket_.close(ignored);
  }
  const std::string& remote() const override { return remote_; }

 private:
  tcp::socket socket_;
  std::string remote_;
};

class TlsStream final : public HttpStream {
 public:
  TlsStream(tcp::socket socket, ssl_ctx_st* shared)
      : remote_(address_of(socket)),
        context_(borrow(shared)),
        stream_(std::move(socket), context_) {}

  Async<bool> handshake() override {
    const auto [failed] = co_await stream_.async_handshake(asio::ssl::stream_base::server, token);
    co_return !failed;
  }
  Async<size_t> read_some(std::span<char> out) override {
    auto buffer = asio::buffer(out.data(), out.size());
    const auto [failed, count] = co_await stream_.async_read_some(buffer, token);
    co_return failed ? 0 : count;
  }
  Async<bool> write(std::string_view bytes) override {
    auto buffer = asio::buffer(bytes.data(), bytes.size());
    const auto [failed, count] = co_await asio::async_write(stream_, buffer, token);
    co_return !failed;
  }
  void shutdown_send() override {
    // close_notify, if the kernel has room for it; answers carry their length anyway.
    SSL_shutdown(stream_.native_handle());
    error_code ignored;
    stream_.lowest_layer().shutdown(tcp::socket::shutdown_send, ignored);
  }
  void close() override {
    error_code ignored;
    stream_.lowest_layer().close(ignored);
  }
  const std::string& remote() const override { return remote_; }

 private:
  static asio::ssl::context borrow(ssl_ctx_st* shared) {
    SSL_CTX_up_ref(shared);
    return asio::ssl::context{shared};
  }
  std::string remote_;
  asio::ssl::context context_;
  asio::ssl::stream<tcp::socket> stream_;
};

class Listener final : public HttpListener {
 public:
  Listener(asio::io_context& loop, std::shared_ptr<ssl_ctx_st> tls)
      : acceptor_(loop), pause_(loop), tls_(std::move(tls)) {}

  Status open(const tcp::endpoint& endpoint) {
    error_code failed;
    acceptor_.open(endpoint.protocol(), failed);
    if (!failed) acceptor_.set_option(tcp::acceptor::reuse_address(true), failed);
    if (!failed) acceptor_.bind(endpoint, failed);
    if (!failed) acceptor_.listen(asio::socket_base::max_listen_connections, failed);
    if (!failed) return ok();
    const Code code = failed == asio::error::address_in_use ? Code::conflict : Code::denied;
    return error(code, fmt::format("listen on {}:{}: {}", endpoint.address().to_string(),
                                   endpoint.port(), failed.message()));
  }

  Async<std::unique_ptr<HttpStream>> accept() override {
    for (;;) {
      auto [failed, socket] = co_await acceptor_.async_accept(token);
      if (!acceptor_.is_open() || failed == asio::error::operation_aborted) co_return nullptr;
      if (failed) {  // Out of descriptors, or a client that left: go on, but do not spin.
        log::warning("accept_failed", {{"why", failed.message()}});
        pause_.expires_after(std::chrono::milliseconds(50));
        (void)co_await pause_.async_wait(token);
        continue;
      }
      error_code ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      if (tls_) co_return std::make_unique<TlsStream>(std::move(socket), tls_.get());
      co_return std::make_unique<PlainStream>(std::move(socket));
    }
  }
  uint16_t port() const override {
    error_code failed;
    const auto local = acceptor_.local_endpoint(failed);
    return failed ? uint16_t{0} : local.port();
  }
  void close() override {
    error_code ignored;
    acceptor_.close(ignored);
  }

 private:
  tcp::acceptor acceptor_;
  asio::steady_timer pause_;
  std::shared_ptr<ssl_ctx_st> tls_;
};

Result<asio::ip::address> parse_address(const std::string& text) {
  error_code failed;
  const auto address = asio::ip::make_address(text, failed);
  if (failed) return error(Code::invalid, fmt::format("'{}' is no numeric IP address", text));
  return address;
}

}  // namespace

Result<bool> is_loopback(const std::string& text) {
  TROUPE_TRY(const auto address, parse_address(text));
  return address.is_loopback();
}

Result<std::unique_ptr<HttpListener>> HttpListener::listen(asio::io_context& loop,
                                                           const std::string& address,
                                                           uint16_t port,
                                                           std::shared_ptr<ssl_ctx_st> tls) {
  TROUPE_TRY(const auto parsed, parse_address(address));
  auto listener = std::make_unique<Listener>(loop, std::move(tls));
  TROUPE_CHECK(listener->open({parsed, port}));
  return std::unique_ptr<HttpListener>{std::move(listener)};
}

}  // namespace troupe::gateway
