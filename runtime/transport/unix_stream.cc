#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstring>

#include "transport/byte_stream.h"

namespace troupe::transport {
namespace asio = boost::asio;

namespace {

constexpr size_t descriptors_max = 16;  // A message; more are refused by the sender.

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
      const ssize_t count = receive_some(out, descriptors);
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
    if (descriptors.size() > descriptors_max) {
      co_return error(Code::invalid, "too many descriptors in one message");
    }
    while (!bytes.empty()) {
      if (!socket_.is_open()) co_return error(Code::unavailable, "closed by this side");
      const ssize_t count = send_some(bytes, descriptors);
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

  void close() override {
    boost::system::error_code ignored;
    socket_.shutdown(asio::socket_base::shutdown_both, ignored);
    socket_.close(ignored);
  }

 private:
  // Not part of the coroutine: GCC 12 ignores alignas in coroutine frames.
  ssize_t receive_some(std::span<uint8_t> out, std::vector<FileDescriptor>& descriptors) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * descriptors_max)];
    iovec part{out.data(), out.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    const ssize_t count = ::recvmsg(socket_.native_handle(), &message, MSG_CMSG_CLOEXEC);
    if (count >= 0) take_descriptors(message, descriptors);
    return count;
  }

  ssize_t send_some(std::span<const uint8_t> bytes, std::span<const FileDescriptor> descriptors) {
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * descriptors_max)] = {};
    iovec part{const_cast<uint8_t*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!descriptors.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(sizeof(int) * descriptors.size());
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int) * descriptors.size());
      for (size_t i = 0; i < descriptors.size(); ++i) {
        const int fd = descriptors[i].get();
        std::memcpy(CMSG_DATA(header) + i * sizeof fd, &fd, sizeof fd);
      }
    }
    return ::sendmsg(socket_.native_handle(), &message, MSG_NOSIGNAL);
  }

  static void take_descriptors(msghdr& message, std::vector<FileDescriptor>& out) {
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
        out.emplace_back(fd);
      }
    }
  }

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
