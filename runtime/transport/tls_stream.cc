#include <netinet/tcp.h>
#include <openssl/ssl.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "transport/byte_stream.h"

namespace troupe::transport {
namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

// ssl::stream wants a context of its own type; it shares the Credentials' SSL_CTX.
asio::ssl::context borrow(ssl_ctx_st* shared) {
  SSL_CTX_up_ref(shared);
  return asio::ssl::context{shared};
}

template <int Name>
using TcpOption = asio::detail::socket_option::integer<IPPROTO_TCP, Name>;

class TlsByteStream final : public ByteStream {
 public:
  TlsByteStream(tcp::socket socket, ssl_ctx_st* context)
      : context_(borrow(context)), stream_(std::move(socket), context_) {}

  Async<Result<size_t>> read_some(std::span<uint8_t> out, std::vector<FileDescriptor>&) override {
    auto token = asio::as_tuple(asio::use_awaitable);
    auto buffer = asio::buffer(out.data(), out.size());
    const auto [failed, count] = co_await stream_.async_read_some(buffer, token);
    if (failed) co_return error(Code::unavailable, failed.message());
    co_return count;
  }

  Async<Status> write(std::span<const uint8_t> bytes,
                      std::span<const FileDescriptor> descriptors) override {
    if (!descriptors.empty()) {
      co_return error(Code::invalid, "descriptors cannot leave their machine");
    }
    auto token = asio::as_tuple(asio::use_awaitable);
    auto buffer = asio::buffer(bytes.data(), bytes.size());
    const auto [failed, count] = co_await asio::async_write(stream_, buffer, token);
    if (failed) co_return error(Code::unavailable, failed.message());
    co_return ok();
  }

  // Without a close_notify: frames carry their length, so a truncation cannot pass for an end.
  void close() override {
    boost::system::error_code ignored;
    stream_.lowest_layer().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.lowest_layer().close(ignored);
  }

  Async<Status> handshake(asio::ssl::stream_base::handshake_type type) {
    boost::system::error_code ignored;
    auto& socket = stream_.lowest_layer();
    socket.set_option(tcp::no_delay(true), ignored);
    // A machine that went without a word is noticed, with data on the way or without.
    socket.set_option(asio::socket_base::keep_alive(true), ignored);
    socket.set_option(TcpOption<TCP_KEEPIDLE>(5), ignored);
    socket.set_option(TcpOption<TCP_KEEPINTVL>(2), ignored);
    socket.set_option(TcpOption<TCP_KEEPCNT>(3), ignored);
    socket.set_option(TcpOption<TCP_USER_TIMEOUT>(10'000), ignored);
    auto token = asio::as_tuple(asio::use_awaitable);
    const auto [failed] = co_await stream_.async_handshake(type, token);
    if (!failed) co_return ok();
    const bool foreign = failed.category() == asio::error::get_ssl_category();
    co_return error(foreign ? Code::denied : Code::unavailable,
                    "TLS handshake: " + failed.message());
  }

  Result<PeerIdentity> identify(const Credentials& credentials) {
    X509* leaf = SSL_get1_peer_certificate(stream_.native_handle());
    if (leaf == nullptr) return error(Code::denied, "the peer showed no certificate");
    auto identity = credentials.identify(leaf);
    X509_free(leaf);
    return identity;
  }

 private:
  asio::ssl::context context_;
  asio::ssl::stream<tcp::socket> stream_;
};

Async<Result<TlsStream>> secure(tcp::socket socket, Credentials& credentials, ssl_ctx_st* context,
                                asio::ssl::stream_base::handshake_type type) {
  auto stream = std::make_unique<TlsByteStream>(std::move(socket), context);
  TROUPE_CO_CHECK(co_await stream->handshake(type));
  TROUPE_CO_TRY(auto peer, stream->identify(credentials));
  TlsStream secured{std::move(stream), std::move(peer)};
  co_return secured;
}

}  // namespace

Async<Result<TlsStream>> tls_connect(tcp::socket socket, Credentials& credentials) {
  return secure(std::move(socket), credentials, credentials.client_context(),
                asio::ssl::stream_base::client);
}

Async<Result<TlsStream>> tls_accept(tcp::socket socket, Credentials& credentials) {
  return secure(std::move(socket), credentials, credentials.server_context(),
                asio::ssl::stream_base::server);
}

}  // namespace troupe::transport
