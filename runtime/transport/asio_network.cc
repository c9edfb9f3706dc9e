#include "transport/asio_network.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/un.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <charconv>
#include <deque>

#include "base/log.h"
#include "transport/byte_stream.h"

namespace troupe::transport {
namespace asio = boost::asio;
using asio::ip::tcp;
using local = asio::local::stream_protocol;

namespace {

constexpr size_t unix_path_bytes_max = sizeof(sockaddr_un::sun_path) - 1;
constexpr size_t ready_max = 256;
constexpr Duration handshake_budget = std::chrono::seconds(10);

Error connect_error(const Endpoint& endpoint, const boost::system::error_code& failed) {
  return error(Code::unavailable,
               fmt::format("connect to {}: {}", endpoint.to_string(), failed.message()));
}

// Asio opens sockets without it: what user code starts would keep our connections open.
template <class Socket>
void close_on_exec(Socket& socket) {
  ::fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
}

// Accepts and authenticates in the background, so that a slow handshake holds up nobody.
template <class Protocol>
class AsioListener final : public Listener {
 public:
  AsioListener(typename Protocol::acceptor acceptor, Endpoint endpoint, TimerClock& clock,
               Scope& connections, Credentials* credentials, std::shared_ptr<BulkThreads> threads,
               std::shared_ptr<RingPort*> rings)
      : acceptor_(std::move(acceptor)),
        endpoint_(std::move(endpoint)),
        clock_(clock),
        connections_(connections),
        credentials_(credentials),
        threads_(std::move(threads)),
        rings_(std::move(rings)),
        scope_(connections.executor()),
        changed_(connections.executor()) {
    spawn(scope_, accept_all());
  }
  ~AsioListener() override { remove_socket_file(); }

  const Endpoint& endpoint() const override { return endpoint_; }

  Async<Result<std::unique_ptr<Connection>>> accept() override {
    while (ready_.empty() && !stopped_) co_await changed_.wait();
    if (ready_.empty()) co_return error(Code::unavailable, "the listener is closed");
    auto connection = std::move(ready_.front());
    ready_.pop_front();
    changed_.pulse();
    co_return connection;
  }

  Async<void> stop() override {
    stopped_ = true;
    boost::system::error_code ignored;
    acceptor_.close(ignored);
    remove_socket_file();
    changed_.pulse();
    co_await scope_.stop();
    ready_.clear();
  }

 private:
  void remove_socket_file() {
    if (endpoint_.is_unix() && !std::exchange(removed_, true)) {
      ::unlink(endpoint_.unix_path.c_str());
    }
  }

  Async<void> accept_all() {
    while (!stopped_) {
      if (ready_.size() + scope_.size() > ready_max) {
        co_await changed_.wait();
        continue;
      }
      auto token = asio::as_tuple(asio::use_awaitable);
      auto [failed, socket] = co_await acceptor_.async_accept(token);
      if (stopped_) co_return;
      if (failed) {
        // Out of descriptors, most likely: wait rather than spin.
        log::warning("accept_failed",
                     {{"endpoint", endpoint_.to_string()}, {"why", failed.message()}});
        co_await sleep_for(clock_, std::chrono::milliseconds(50));
        continue;
      }
      close_on_exec(socket);
      spawn(scope_, authenticate(std::move(socket)));
    }
  }

  Async<void> authenticate(typename Protocol::socket socket) {
    auto made = co_await secure(std::move(socket));
    if (made) {
      ready_.push_back(std::move(*made));
    } else {
      log::warning("audit", {{"who", "unknown"},
                             {"what", "connect to " + endpoint_.to_string()},
                             {"decision", "refused"},
                             {"reason", made.error().message()}});
    }
    changed_.pulse();
  }

  Async<Result<std::unique_ptr<Connection>>> secure(local::socket socket) {
    auto peer = unix_peer(socket);
    if (!peer) co_return std::move(peer).error();
    co_return make_connection(connections_, make_unix_stream(std::move(socket)), std::move(*peer));
  }

  Async<Result<std::unique_ptr<Connection>>> secure(tcp::socket socket) {
    const Instant deadline = clock_.now() + handshake_budget;
    auto secured = co_await with_deadline(clock_, deadline,
                                          tls_accept(std::move(socket), *credentials_, threads_));
    if (!secured) co_return std::move(secured).error();
    co_return make_connection(connections_, std::move(secured->stream), std::move(secured->peer),
                              *rings_);
  }

  typename Protocol::acceptor acceptor_;
  Endpoint endpoint_;
  TimerClock& clock_;
  Scope& connections_;
  Credentials* credentials_;
  std::shared_ptr<BulkThreads> threads_;
  std::shared_ptr<RingPort*> rings_;
  Scope scope_;
  std::deque<std::unique_ptr<Connection>> ready_;
  Event changed_;
  bool stopped_ = false;
  bool removed_ = false;  // The path may be another listener's by now.
};

// A socket file that nobody listens on is left over from a killed process.
bool remove_stale_socket(asio::io_context& loop, const std::string& path) {
  local::socket probe{loop};
  boost::system::error_code failed;
  probe.connect(local::endpoint{path}, failed);
  if (failed != asio::error::connection_refused) return false;
  return ::unlink(path.c_str()) == 0;
}

}  // namespace

std::string Endpoint::to_string() const {
  if (is_unix()) return "unix:" + unix_path;
  return fmt::format("{}:{}", host, port);
}

Result<Endpoint> Endpoint::parse(std::string_view text) {
  Endpoint endpoint;
  if (text.starts_with("unix:")) {
    endpoint.unix_path = text.substr(5);
    if (!endpoint.unix_path.empty()) return endpoint;
  } else if (const auto colon = text.rfind(':'); colon != text.npos && colon > 0) {
    endpoint.host = text.substr(0, colon);
    const auto digits = text.substr(colon + 1);
    const auto [end, failed] =
        std::from_chars(digits.data(), digits.data() + digits.size(), endpoint.port);
    if (failed == std::errc{} && end == digits.data() + digits.size()) return endpoint;
  }
  return error(Code::invalid,
               fmt::format("'{}' is no address: unix:PATH or HOST:PORT expected", text));
}

AsioNetwork::AsioNetwork(asio::io_context& loop, TimerClock& clock, Scope& scope)
    : loop_(loop),
      clock_(clock),
      scope_(scope),
      rings_(std::make_shared<RingPort*>(nullptr)),
      threads_(std::make_shared<BulkThreads>()) {}

Async<Result<std::unique_ptr<Connection>>> AsioNetwork::connect(Endpoint endpoint,
                                                                Instant deadline) {
  return with_deadline(clock_, deadline, connect_unbounded(std::move(endpoint)));
}

Async<Result<std::unique_ptr<Connection>>> AsioNetwork::connect_unbounded(Endpoint endpoint) {
  auto token = asio::as_tuple(asio::use_awaitable);
  if (endpoint.is_unix()) {
    if (endpoint.unix_path.size() > unix_path_bytes_max) {
      co_return error(Code::invalid, "socket path too long: " + endpoint.unix_path);
    }
    local::socket socket{loop_, local()};
    close_on_exec(socket);
    const auto [failed] = co_await socket.async_connect(local::endpoint{endpoint.unix_path}, token);
    if (failed) co_return connect_error(endpoint, failed);
    auto peer = unix_peer(socket);
    if (!peer) co_return std::move(peer).error();
    co_return make_connection(scope_, make_unix_stream(std::move(socket)), std::move(*peer));
  }
  if (credentials_ == nullptr) {
    co_return error(Code::denied,
                    "this process has no certificate, so it cannot reach " + endpoint.to_string());
  }
  boost::system::error_code bad_address;
  const auto address = asio::ip::make_address(endpoint.host, bad_address);
  std::vector<tcp::endpoint> targets;
  if (!bad_address) {
    targets.emplace_back(address, endpoint.port);
  } else {
    tcp::resolver resolver{loop_};
    const auto port = std::to_string(endpoint.port);
    const auto [failed, found] = co_await resolver.async_resolve(endpoint.host, port, token);
    if (failed) co_return connect_error(endpoint, failed);
    for (const auto& entry : found) targets.push_back(entry.endpoint());
  }
  Error last = error(Code::unavailable, "no address for " + endpoint.host);
  for (const auto& target : targets) {
    tcp::socket socket{loop_, target.protocol()};
    close_on_exec(socket);
    const auto [failed] = co_await socket.async_connect(target, token);
    if (failed) {
      last = connect_error(endpoint, failed);
      continue;
    }
    auto secured = co_await tls_connect(std::move(socket), *credentials_, threads_);
    if (!secured)
      co_return std::move(secured).error().context("connect to " + endpoint.to_string());
    co_return make_connection(scope_, std::move(secured->stream), std::move(secured->peer),
                              *rings_);
  }
  co_return last;
}

// Before any TLS: the kernel answers for a port that nobody listens on, and for one whose process
// is stopped.
Async<Result<Reach>> AsioNetwork::knock(Endpoint endpoint) {
  boost::system::error_code bad_address;
  const auto address = asio::ip::make_address(endpoint.host, bad_address);
  if (bad_address)
    co_return Reach::silent;  // A name: it may have several, and one that refuses proves nothing.
  const tcp::endpoint target{address, endpoint.port};
  tcp::socket socket{loop_, target.protocol()};
  close_on_exec(socket);
  const auto [failed] = co_await socket.async_connect(target, asio::as_tuple(asio::use_awaitable));
  co_return failed == asio::error::connection_refused ? Reach::refused : Reach::silent;
}

Async<Reach> AsioNetwork::probe(Endpoint endpoint, Instant deadline) {
  if (!endpoint.is_unix()) {
    const auto knocked = co_await with_deadline(clock_, deadline, knock(endpoint));
    if (knocked && *knocked == Reach::refused) co_return Reach::refused;
  }
  auto connection = co_await connect(std::move(endpoint), deadline);
  co_return connection ? Reach::answers : Reach::silent;
}

Result<std::unique_ptr<Listener>> AsioNetwork::listen(const Endpoint& endpoint) {
  boost::system::error_code failed;
  if (endpoint.is_unix()) {
    if (endpoint.unix_path.size() > unix_path_bytes_max) {
      return error(Code::invalid,
                   fmt::format("socket path of {} bytes is over the limit of {}: choose a shorter "
                               "state directory: {}",
                               endpoint.unix_path.size(), unix_path_bytes_max, endpoint.unix_path));
    }
    local::acceptor acceptor{loop_, local()};
    close_on_exec(acceptor);
    acceptor.bind(local::endpoint{endpoint.unix_path}, failed);
    if (failed == asio::error::address_in_use && remove_stale_socket(loop_, endpoint.unix_path)) {
      acceptor.bind(local::endpoint{endpoint.unix_path}, failed);
    }
    if (!failed) acceptor.listen(asio::socket_base::max_listen_connections, failed);
    if (failed) {
      const Code code = failed == asio::error::address_in_use ? Code::conflict : Code::unavailable;
      return error(code, fmt::format("listen on {}: {}", endpoint.to_string(), failed.message()));
    }
    return std::make_unique<AsioListener<local>>(std::move(acceptor), endpoint, clock_, scope_,
                                                 nullptr, threads_, rings_);
  }
  if (credentials_ == nullptr) {
    return error(Code::denied, "without a certificate no port is opened: " + endpoint.to_string());
  }
  const auto address = asio::ip::make_address(endpoint.host, failed);
  if (failed) return error(Code::invalid, "not an IP address to listen on: " + endpoint.host);
  tcp::acceptor acceptor{loop_};
  acceptor.open(address.is_v6() ? tcp::v6() : tcp::v4(), failed);
  if (!failed) close_on_exec(acceptor);
  if (!failed) acceptor.set_option(tcp::acceptor::reuse_address(true), failed);
  if (!failed) acceptor.bind({address, endpoint.port}, failed);
  if (!failed) acceptor.listen(asio::socket_base::max_listen_connections, failed);
  if (failed) {
    const Code code = failed == asio::error::address_in_use ? Code::conflict : Code::unavailable;
    return error(code,
                 fmt::format("listen on {}: {}{}", endpoint.to_string(), failed.message(),
                             code == Code::conflict ? " (another program has this port)" : ""));
  }
  Endpoint bound = endpoint;
  bound.port = acceptor.local_endpoint().port();
  return std::make_unique<AsioListener<tcp>>(std::move(acceptor), bound, clock_, scope_,
                                             credentials_, threads_, rings_);
}

std::unique_ptr<Connection> adopt_unix_socket(Scope& scope, asio::io_context& loop,
                                              FileDescriptor socket) {
  local::socket adopted{loop, local(), socket.release()};
  close_on_exec(adopted);
  PeerIdentity identity;
  identity.role = Role::client;
  identity.name = fmt::format("uid:{}", ::geteuid());
  identity.local = true;
  return make_connection(scope, make_unix_stream(std::move(adopted)), std::move(identity));
}

}  // namespace troupe::transport
