#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <chrono>
#include <mutex>
#include <thread>

#include "transport/byte_stream.h"

namespace troupe::transport {
namespace asio = boost::asio;
using asio::ip::tcp;

namespace {

// One system call brings many records.
constexpr size_t read_ahead_bytes = 96 << 10;
constexpr unsigned bulk_threads_max = 4;
// A bulk thread waits so long for the socket before the loop does; and works so long at a time, for
// only between two turns can it be told to stop.
constexpr int bulk_poll_ms = 1;
constexpr auto bulk_turn = std::chrono::milliseconds(10);

template <int Name>
using TcpOption = asio::detail::socket_option::integer<IPPROTO_TCP, Name>;

// As OpenSSL's own BIO of a socket, which would raise SIGPIPE.
int bio_write(BIO* bio, const char* data, int size) {
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio)));
  const ssize_t sent = ::send(fd, data, static_cast<size_t>(size), MSG_NOSIGNAL);
  BIO_clear_retry_flags(bio);
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_write(bio);
  return static_cast<int>(sent);
}

int bio_read(BIO* bio, char* out, int size) {
  const int fd = static_cast<int>(reinterpret_cast<intptr_t>(BIO_get_data(bio)));
  const ssize_t got = ::recv(fd, out, static_cast<size_t>(size), 0);
  BIO_clear_retry_flags(bio);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) BIO_set_retry_read(bio);
  return static_cast<int>(got);
}

long bio_control(BIO*, int command, long, void*) {
  return command == BIO_CTRL_FLUSH ? 1 : 0;
}

BIO_METHOD* socket_bio() {
  static BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "troupe socket");
    BIO_meth_set_write(made, bio_write);
    BIO_meth_set_read(made, bio_read);
    BIO_meth_set_ctrl(made, bio_control);
    return made;
  }();
  return method;
}

// Bulk is encrypted and decrypted on a thread of its own, everything else on the loop; an SSL
// belongs to one thread at a time, a record long.
class TlsByteStream final : public ByteStream {
 public:
  TlsByteStream(tcp::socket socket, SSL_CTX* context, std::shared_ptr<BulkThreads> threads)
      : socket_(std::move(socket)), ssl_(SSL_new(context)), threads_(std::move(threads)) {
    boost::system::error_code ignored;
    socket_.native_non_blocking(true, ignored);
    BIO* bio = BIO_new(socket_bio());
    BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(socket_.native_handle())));
    BIO_set_init(bio, 1);
    SSL_set_bio(ssl_.get(), bio, bio);
    SSL_set_mode(ssl_.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_set_read_ahead(ssl_.get(), 1);
    SSL_set_default_read_buffer_len(ssl_.get(), read_ahead_bytes);
  }

  Async<Result<size_t>> read_some(std::span<uint8_t> out, std::vector<FileDescriptor>&) override {
    for (;;) {
      const Step step = read_step(out);
      if (step.count > 0) co_return step.count;
      TROUPE_CO_CHECK(co_await wait_for(step));
    }
  }

  Async<Status> write(std::span<const uint8_t> bytes,
                      std::span<const FileDescriptor> descriptors) override {
    if (!descriptors.empty()) {
      co_return error(Code::invalid, "descriptors cannot leave their machine");
    }
    while (!bytes.empty()) {
      const Step step = write_step(bytes);
      bytes = bytes.subspan(step.count);
      if (step.count == 0) TROUPE_CO_CHECK(co_await wait_for(step));
    }
    co_return ok();
  }

  Async<Status> read_bulk(std::span<uint8_t> out) override {
    while (!out.empty()) {
      auto turn = [this, out] {
        return take_turn([&](size_t from) { return read_step(out.subspan(from)); }, out.size());
      };
      const Step step = co_await on_bulk_thread(turn);
      out = out.subspan(step.count);
      if (!out.empty()) TROUPE_CO_CHECK(co_await wait_for(step));
    }
    co_return ok();
  }

  Async<Status> write_bulk(std::span<const uint8_t> bytes) override {
    while (!bytes.empty()) {
      auto turn = [this, bytes] {
        return take_turn([&](size_t from) { return write_step(bytes.subspan(from)); },
                         bytes.size());
      };
      const Step step = co_await on_bulk_thread(turn);
      bytes = bytes.subspan(step.count);
      if (!bytes.empty()) TROUPE_CO_CHECK(co_await wait_for(step));
    }
    co_return ok();
  }

  // Without a close_notify: frames carry their length, so a truncation cannot pass for an end.
  void close() override {
    const std::lock_guard lock{mutex_};  // A bulk thread must not use a descriptor's next life.
    closed_ = true;
    boost::system::error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_both, ignored);
    socket_.close(ignored);
  }

  Async<Status> handshake(int (*advance)(SSL*)) {
    boost::system::error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    // A machine that went without a word is noticed, with data on the way or without.
    socket_.set_option(asio::socket_base::keep_alive(true), ignored);
    socket_.set_option(TcpOption<TCP_KEEPIDLE>(5), ignored);
    socket_.set_option(TcpOption<TCP_KEEPINTVL>(2), ignored);
    socket_.set_option(TcpOption<TCP_KEEPCNT>(3), ignored);
    socket_.set_option(TcpOption<TCP_USER_TIMEOUT>(10'000), ignored);
    for (;;) {
      const Step step = take_step([&](size_t& count) {
        const int outcome = advance(ssl_.get());
        count = outcome == 1 ? 1 : 0;
        return outcome;
      });
      if (step.count > 0) co_return ok();
      TROUPE_CO_CHECK(co_await wait_for(step));
    }
  }

  Result<PeerIdentity> identify(const Credentials& credentials) {
    X509* leaf = SSL_get1_peer_certificate(ssl_.get());
    if (leaf == nullptr) return error(Code::denied, "the peer showed no certificate");
    auto identity = credentials.identify(leaf);
    X509_free(leaf);
    return identity;
  }

 private:
  // What one look at the SSL gave: bytes, or what it waits for.
  struct Step {
    size_t count = 0;
    int waits_for = SSL_ERROR_NONE;
    std::string failure;
    bool foreign = false;  // The peer broke TLS, or is not whom we take.
  };
  struct FreeSsl {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };

  template <class Operation>
  Step take_step(Operation operation) {
    Step step;
    const std::lock_guard lock{mutex_};
    if (closed_) {
      step.waits_for = SSL_ERROR_SYSCALL;
      step.failure = "closed by this side";
      return step;
    }
    ERR_clear_error();
    errno = 0;
    const int outcome = operation(step.count);
    if (step.count > 0) return step;
    step.waits_for = SSL_get_error(ssl_.get(), outcome);
    if (step.waits_for == SSL_ERROR_WANT_READ || step.waits_for == SSL_ERROR_WANT_WRITE) {
      return step;
    }
    step.foreign = step.waits_for == SSL_ERROR_SSL;
    if (step.foreign) {
      std::array<char, 256> text{};
      ERR_error_string_n(ERR_get_error(), text.data(), text.size());
      step.failure = text.data();
    } else {
      step.failure = errno != 0 ? std::generic_category().message(errno) : "End of file";
    }
    return step;
  }
  Step read_step(std::span<uint8_t> out) {
    return take_step(
        [&](size_t& count) { return SSL_read_ex(ssl_.get(), out.data(), out.size(), &count); });
  }
  Step write_step(std::span<const uint8_t> bytes) {
    return take_step([&](size_t& count) {
      return SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &count);
    });
  }

  // On a bulk thread: steps until all is done, the socket has nothing for a while, or time is up.
  template <class Take>
  Step take_turn(Take take, size_t size) {
    const auto end = std::chrono::steady_clock::now() + bulk_turn;
    size_t done = 0;
    Step step;
    while (done < size) {
      step = take(done);
      done += step.count;
      if (step.count > 0) {
        if (std::chrono::steady_clock::now() > end) break;
        continue;
      }
      if (!step.failure.empty()) break;
      const bool reads = step.waits_for == SSL_ERROR_WANT_READ;
      pollfd socket{descriptor_, static_cast<short>(reads ? POLLIN : POLLOUT), 0};
      if (::poll(&socket, 1, bulk_poll_ms) == 0) break;
    }
    step.count = done;
    return step;
  }
  template <class Turn>
  Async<Step> on_bulk_thread(Turn turn) {
    auto body = [](Turn moved) -> Async<Step> { co_return moved(); };
    auto token = asio::use_awaitable;
    co_return co_await asio::co_spawn(threads_->executor(), body(std::move(turn)), token);
  }

  // On the loop.
  Async<Status> wait_for(Step step) {
    if (!step.failure.empty()) {
      co_return error(step.foreign ? Code::denied : Code::unavailable, step.failure);
    }
    if (step.waits_for == SSL_ERROR_NONE) co_return ok();
    const auto what =
        step.waits_for == SSL_ERROR_WANT_READ ? tcp::socket::wait_read : tcp::socket::wait_write;
    auto token = asio::as_tuple(asio::use_awaitable);
    const auto [failed] = co_await socket_.async_wait(what, token);
    if (failed) co_return error(Code::unavailable, failed.message());
    co_return ok();
  }

  tcp::socket socket_;
  const int descriptor_ = socket_.native_handle();
  std::mutex mutex_;  // Guards ssl_ and closed_.
  std::unique_ptr<SSL, FreeSsl> ssl_;
  bool closed_ = false;
  std::shared_ptr<BulkThreads> threads_;
};

Async<Result<TlsStream>> secure(tcp::socket socket, Credentials& credentials, SSL_CTX* context,
                                std::shared_ptr<BulkThreads> threads, int (*advance)(SSL*)) {
  auto stream = std::make_unique<TlsByteStream>(std::move(socket), context, std::move(threads));
  auto shaken = co_await stream->handshake(advance);
  if (!shaken) co_return std::move(shaken).error().context("TLS handshake");
  TROUPE_CO_TRY(auto peer, stream->identify(credentials));
  TlsStream secured{std::move(stream), std::move(peer)};
  co_return secured;
}

}  // namespace

Executor BulkThreads::executor() {
  if (!pool_) {
    const unsigned count = std::clamp(std::thread::hardware_concurrency(), 1u, bulk_threads_max);
    pool_ = std::make_unique<asio::thread_pool>(count);
  }
  return pool_->get_executor();
}

Async<Result<TlsStream>> tls_connect(tcp::socket socket, Credentials& credentials,
                                     std::shared_ptr<BulkThreads> threads) {
  return secure(std::move(socket), credentials, credentials.client_context(), std::move(threads),
                SSL_connect);
}

Async<Result<TlsStream>> tls_accept(tcp::socket socket, Credentials& credentials,
                                    std::shared_ptr<BulkThreads> threads) {
  return secure(std::move(socket), credentials, credentials.server_context(), std::move(threads),
                SSL_accept);
}

}  // namespace troupe::transport
