#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstring>

#include "transport/byte_stream.h"
#include "transport/descriptor_passing.h"

namespace troupe::transport {
namespace asio = boost::asio;

namespace {

Error socket_error(const char* doing, int number) {
  return error(Code::unavailable, std::string(doing) + ": " + std::strerror(number));
}

class UnixStream final : public ByteStream {
 public:
  explicit UnixStream(asio::local::stream_protocol::socket socket) : socket_(std::move(socket)) {
    socket_.non_blocking(true);
  }

  Async<Result<size_t>> read_some(std::span<uint8_t> out,
                                  std::vector<FileDescriptor>& descriptors) override {
    for (;;) {
      if (!socket_.is_open()) co_return error(Code::unavailable, "closed by this side");
      const ssize_t count = receive_with_descriptors(socket_.native_handle(), out, descriptors);
      if (count == 0) co_return error(Code::unavailable, "the peer closed the connection");
      if (count > 0) co_return static_cast<size_t>(count);
      if (errno == EINTR) continue;
      if (errno != EAGAIN) co_return socket_error("recvmsg", errno);
      auto token = asio::as_tuple(asio::use_awaitable);
      const auto [failed] = co_await socket_.async_wait(asio::socket_base::wait_read, token);
      if (failed) co_return error(Code::unavailable, failed.message());
    }
  }

  Async<Status> write(std::span<const uint8_t> bytes,
                      std::span<const FileDescriptor> descriptors) override {
    if (descriptors.size() > passed_descriptors_max) {
      co_return error(Code::invalid, "too many descriptors in one message");
    }
    while (!bytes.empty()) {
      if (!socket_.is_open()) co_return error(Code::unavailable, "closed by this side");
      const ssize_t count = send_with_descriptors(socket_.native_handle(), bytes, descriptors);
      if (count >= 0) {
        bytes = bytes.subspan(static_cast<size_t>(count));
        descriptors = {};
        continue;
      }
      if (errno == EINTR) continue;
      if (errno != EAGAIN) co_return socket_error("sendmsg", errno);
      auto token = asio::as_tuple(asio::use_awaitable);
      const auto [failed] = co_await socket_.async_wait(asio::socket_base::wait_write, token);
      if (failed) co_return error(Code::unavailable, failed.message());
    }
    co_return ok();
  }

  void end_writing() override {
    boost::system::error_code ignored;
    socket_.shutdown(asio::socket_base::shutdown_send, ignored);
  }
  void close() override {
    boost::system::error_code ignored;
    socket_.shutdown(asio::socket_base::shutdown_both, ignored);
    socket_.close(ignored);
  }

 private:
  asio::local::stream_protocol::socket socket_;
};

}  // namespace

std::unique_ptr<ByteStream> make_unix_stream(asio::local::stream_protocol::socket socket) {
  return std::make_unique<UnixStream>(std::move(socket));
}

Result<PeerIdentity> unix_peer(asio::local::stream_protocol::socket& socket) {
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (::getsockopt(socket.native_handle(), SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return socket_error("read the peer's credentials", errno);
  }
  if (credentials.uid != ::geteuid() && credentials.uid != 0) {
    return error(Code::denied, "user " + std::to_string(credentials.uid) +
                                   " does not own this cluster (user " +
                                   std::to_string(::geteuid()) + " does)");
  }
  PeerIdentity identity;
  identity.role = Role::client;
  identity.name = "uid:" + std::to_string(credentials.uid);
  identity.pid = static_cast<uint32_t>(credentials.pid);
  identity.local = true;
  return identity;
}

}  // namespace troupe::transport
