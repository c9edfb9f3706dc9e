#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <optional>
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

// Bulk is encrypted and decrypted on a thread of its own; messages by the loop or by whoever sends
// them or waits for them. An SSL belongs to one thread at a time, a record long.
//
// The loop waits for the socket through an epoll of its own, whose readiness it watches: so what
// arrives need not wake it while a thread reads, for a reactor takes no such wish.
class TlsByteStream final : public ByteStream {
 public:
  TlsByteStream(tcp::socket socket, SSL_CTX* context, std::shared_ptr<BulkThreads> threads)
      : ssl_(SSL_new(context)), threads_(std::move(threads)) {
    boost::system::error_code failed;
    set_options(socket);
    socket.native_non_blocking(true, failed);
    const auto executor = socket.get_executor();
    socket_ = FileDescriptor{socket.release(failed)};
    open_interest(executor);
    BIO* bio = BIO_new(socket_bio());
    BIO_set_data(bio, reinterpret_cast<void*>(static_cast<intptr_t>(socket_.get())));
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
      // Who waits to write on the loop is not to be woken by what the other thread reads.
      set_wakes_on_data(false);
      const Step step = co_await on_bulk_thread(turn);
      set_wakes_on_data(true);
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

  // Without a close_notify: frames carry their length, so a truncation cannot pass for an end. The
  // descriptor lives as long as the stream, for other threads may be using it.
  void close() override {
    shut_down();
    std::optional<asio::posix::stream_descriptor> gone;
    const std::lock_guard lock{mutex_};
    gone.swap(interest_);
  }
  void shut_down() override {
    const std::lock_guard lock{mutex_};
    closed_ = true;
    ::shutdown(socket_.get(), SHUT_RDWR);
  }

  void end_writing() override { ::shutdown(socket_.get(), SHUT_WR); }

  bool is_direct() const override { return true; }
  Result<size_t> try_read(std::span<uint8_t> out) override {
    const Step step = read_step(out);
    if (step.waits_for == SSL_ERROR_WANT_WRITE) {
      const std::lock_guard lock{mutex_};
      reader_wants_to_write_ = true;  // Before it can read on.
      show_interest();
    }
    return count_of(step);
  }
  Result<size_t> try_write(std::span<const uint8_t> bytes) override {
    return count_of(write_step(bytes));
  }
  int descriptor() const override { return socket_.get(); }
  void wake_loop_on_data(bool wakes) override {
    const std::lock_guard lock{mutex_};
    wakes_on_data_ = wakes;
    show_interest();
    // What the SSL has read ahead does not make the socket readable.
    if (wakes && SSL_has_pending(ssl_.get()) == 1) wake();
  }
  void wake_loop() override {
    const std::lock_guard lock{mutex_};
    wake();
  }
  Async<void> readable() override { return wait_for_interest(); }

  Async<Status> handshake(int (*advance)(SSL*)) {
    if (!failure_.empty()) co_return error(Code::exhausted, failure_);
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
    if (identity && identity->role == Role::etcd) {
      return error(Code::denied, "an etcd's certificate is good for etcd alone");
    }
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

  static void set_options(tcp::socket& socket) {
    boost::system::error_code ignored;
    socket.set_option(tcp::no_delay(true), ignored);
    // A machine that went without a word is noticed, with data on the way or without, after a dozen
    // attempts at least: where each fifth packet is lost each way, three in a row fail every
    // minute.
    socket.set_option(asio::socket_base::keep_alive(true), ignored);
    socket.set_option(TcpOption<TCP_KEEPIDLE>(3), ignored);
    socket.set_option(TcpOption<TCP_KEEPINTVL>(1), ignored);
    socket.set_option(TcpOption<TCP_KEEPCNT>(12), ignored);
    socket.set_option(TcpOption<TCP_USER_TIMEOUT>(15'000), ignored);
    constexpr int rto_max_ms = 44;  // TCP_RTO_MAX_MS, since Linux 6.15: else ever fewer attempts.
    socket.set_option(TcpOption<rto_max_ms>(1000), ignored);
  }

  static Status status_of(const Step& step) {
    if (step.failure.empty()) return ok();
    return error(step.foreign ? Code::denied : Code::unavailable, step.failure);
  }
  static Result<size_t> count_of(const Step& step) {
    if (step.count == 0) TROUPE_CHECK(status_of(step));
    return step.count;
  }

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
      pollfd socket{socket_.get(), static_cast<short>(reads ? POLLIN : POLLOUT), 0};
      if (::poll(&socket, 1, bulk_poll_ms) == 0) break;
    }
    step.count = done;
    return step;
  }
  template <class Turn>
  Async<Step> on_bulk_thread(Turn turn) {
    auto body = [](Turn moved) -> Async<Step> { co_return moved(); };
    const asio::cancellation_slot none;  // As run_blocking.
    auto token = asio::bind_cancellation_slot(none, asio::use_awaitable);
    co_return co_await asio::co_spawn(threads_->executor(), body(std::move(turn)), token);
  }

  void open_interest(const tcp::socket::executor_type& executor) {
    FileDescriptor interest{::epoll_create1(EPOLL_CLOEXEC)};
    alarm_ = FileDescriptor{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    epoll_event none{};
    epoll_event readable{};
    readable.events = EPOLLIN;
    const bool made = interest.is_open() && alarm_.is_open() &&
                      ::epoll_ctl(interest.get(), EPOLL_CTL_ADD, socket_.get(), &none) == 0 &&
                      ::epoll_ctl(interest.get(), EPOLL_CTL_ADD, alarm_.get(), &readable) == 0;
    if (!made) {
      failure_ = std::string("epoll: ") + std::strerror(errno);
      return;
    }
    interest_.emplace(executor);
    boost::system::error_code failed;
    interest_->assign(interest.get(), failed);
    if (failed) {
      failure_ = "epoll: " + failed.message();
      interest_.reset();
      return;
    }
    (void)interest.release();
    show_interest();
  }
  // With the mutex held: what the loop is to be woken by.
  void show_interest() {
    if (!interest_) return;
    epoll_event event{};
    const bool writes = wants_to_write_ || reader_wants_to_write_;
    event.events = (wakes_on_data_ ? EPOLLIN : 0u) | (writes ? EPOLLOUT : 0u);
    ::epoll_ctl(interest_->native_handle(), EPOLL_CTL_MOD, socket_.get(), &event);
  }
  // With the mutex held.
  void wake() {
    if (std::exchange(woken_, true)) return;
    const uint64_t one = 1;
    (void)!::write(alarm_.get(), &one, sizeof one);
  }
  // On the loop. Wakes early, too; all who wait are woken at once, so any may quiet the alarm.
  Async<void> wait_for_interest() {
    if (!interest_) co_return;
    auto token = asio::as_tuple(asio::use_awaitable);
    co_await interest_->async_wait(asio::posix::descriptor_base::wait_read, token);
    const std::lock_guard lock{mutex_};
    if (std::exchange(woken_, false)) {
      uint64_t count = 0;
      (void)!::read(alarm_.get(), &count, sizeof count);
    }
    if (std::exchange(reader_wants_to_write_, false)) show_interest();
  }
  void set_wakes_on_data(bool wakes) {
    const std::lock_guard lock{mutex_};
    wakes_on_data_ = wakes;
    show_interest();
  }
  void want_to_write(bool wants) {
    const std::lock_guard lock{mutex_};
    wants_to_write_ = wants;
    show_interest();
  }
  // On the loop.
  Async<Status> wait_for(Step step) {
    TROUPE_CO_CHECK(status_of(step));
    if (step.waits_for == SSL_ERROR_NONE) co_return ok();
    if (!interest_) co_return error(Code::unavailable, "closed by this side");
    if (step.waits_for == SSL_ERROR_WANT_READ) {
      co_await wait_for_interest();
    } else {
      want_to_write(true);
      co_await wait_for_interest();
      want_to_write(false);
    }
    co_return ok();
  }

  FileDescriptor socket_;
  FileDescriptor alarm_;  // Wakes the loop though the socket has nothing for it.
  std::string failure_;   // Why it cannot be used.
  // The loop's; an epoll with the socket and the alarm in it. Reset under the mutex.
  std::optional<asio::posix::stream_descriptor> interest_;
  std::mutex mutex_;  // Guards ssl_ and what follows.
  bool wakes_on_data_ = true;
  bool wants_to_write_ = false;
  bool reader_wants_to_write_ = false;
  bool woken_ = false;
  bool closed_ = false;
  std::unique_ptr<SSL, FreeSsl> ssl_;
  std::shared_ptr<BulkThreads> threads_;
};

Async<Result<TlsStream>> secure(tcp::socket socket, Credentials& credentials, SSL_CTX* context,
                                std::shared_ptr<BulkThreads> threads, int (*advance)(SSL*)) {
  if (context == nullptr) {
    co_return error(Code::denied, "this process's certificate cannot be used: see its log");
  }
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
