#include "drill/proxy.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

namespace troupe::drill {

namespace {

constexpr size_t buffer_bytes = 64 << 10;

sockaddr_in loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

Error socket_error(const char* doing) {
  return error(Code::unavailable, fmt::format("{}: {}", doing, std::strerror(errno)));
}

Result<std::pair<FileDescriptor, uint16_t>> bind_any() {
  FileDescriptor socket{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  if (!socket.is_open()) return socket_error("socket");
  sockaddr_in address = loopback(0);
  socklen_t size = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(socket.get(), generic, size) != 0) return socket_error("bind");
  if (::getsockname(socket.get(), generic, &size) != 0) return socket_error("getsockname");
  return std::pair{std::move(socket), ntohs(address.sin_port)};
}

}  // namespace

// Both directions of one connection.
class Proxy::Pipe {
 public:
  Pipe(FileDescriptor from, FileDescriptor to) {
    ends_[0] = std::move(from);
    ends_[1] = std::move(to);
    for (const FileDescriptor& end : ends_) {
      const int on = 1;
      ::setsockopt(end.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
  }
  pollfd interest(size_t end) const {
    short events = 0;
    if (waiting_[1 - end].empty()) events |= POLLIN;
    if (!waiting_[end].empty()) events |= POLLOUT;
    return {ends_[end].get(), events, 0};
  }
  // False once it has ended.
  bool pass(size_t end, short events) {
    if ((events & (POLLIN | POLLHUP | POLLERR)) != 0 && waiting_[1 - end].empty()) {
      std::array<char, buffer_bytes> buffer;
      const ssize_t got = ::recv(ends_[end].get(), buffer.data(), buffer.size(), 0);
      if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return false;
      if (got > 0) waiting_[1 - end].assign(buffer.data(), static_cast<size_t>(got));
    }
    return flush(0) && flush(1);
  }

 private:
  // What waits for this end.
  bool flush(size_t end) {
    std::string& waiting = waiting_[end];
    if (waiting.empty()) return true;
    const ssize_t sent = ::send(ends_[end].get(), waiting.data(), waiting.size(), MSG_NOSIGNAL);
    if (sent < 0) return errno == EAGAIN || errno == EINTR || errno == ENOTCONN;
    waiting.erase(0, static_cast<size_t>(sent));
    return true;
  }

  std::array<FileDescriptor, 2> ends_;
  std::array<std::string, 2> waiting_;
};

Result<std::unique_ptr<Proxy>> Proxy::start() {
  std::unique_ptr<Proxy> proxy{new Proxy};
  TROUPE_TRY(auto bound, bind_any());
  proxy->listener_ = std::move(bound.first);
  proxy->port_ = bound.second;
  if (::listen(proxy->listener_.get(), 64) != 0) return socket_error("listen");
  proxy->wake_ = FileDescriptor{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  if (!proxy->wake_.is_open()) return socket_error("eventfd");
  proxy->thread_ = std::thread{[raw = proxy.get()] { raw->run(); }};
  return proxy;
}

Proxy::~Proxy() {
  over_ = true;
  wake();
  if (thread_.joinable()) thread_.join();
}

void Proxy::cut() {
  is_cut_ = true;
  wake();
}

void Proxy::mend() {
  is_cut_ = false;
  wake();
}

void Proxy::wake() {
  const uint64_t one = 1;
  // Full means that it is about to wake up anyway.
  if (::write(wake_.get(), &one, sizeof one) < 0) return;
}

void Proxy::accept_one() {
  FileDescriptor from{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)};
  if (!from.is_open()) return;
  FileDescriptor to{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)};
  const sockaddr_in address = loopback(target_);
  const int failed =
      ::connect(to.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  if (failed != 0 && errno != EINPROGRESS) return;
  pipes_.push_back(std::make_unique<Pipe>(std::move(from), std::move(to)));
}

void Proxy::run() {
  while (!over_) {
    std::vector<pollfd> all{{wake_.get(), POLLIN, 0}};
    const bool is_cut = is_cut_;
    if (!is_cut) {
      all.push_back({listener_.get(), POLLIN, 0});
      for (const auto& pipe : pipes_) {
        all.push_back(pipe->interest(0));
        all.push_back(pipe->interest(1));
      }
    }
    if (::poll(all.data(), all.size(), -1) < 0 && errno != EINTR) return;
    uint64_t woken = 0;
    if (::read(wake_.get(), &woken, sizeof woken) > 0 || is_cut) continue;
    for (size_t i = 0, at = 2; at + 1 < all.size(); ++i, at += 2) {
      bool lives = true;
      for (size_t end = 0; end < 2 && lives; ++end) {
        if (all[at + end].revents != 0) lives = pipes_[i]->pass(end, all[at + end].revents);
      }
      if (!lives) pipes_[i].reset();
    }
    std::erase(pipes_, nullptr);
    if ((all[1].revents & POLLIN) != 0) accept_one();
  }
}

Result<uint16_t> free_port() {
  TROUPE_TRY(const auto bound, bind_any());
  return bound.second;
}

}  // namespace troupe::drill
