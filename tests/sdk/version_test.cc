// A program that meets a worker of another version of the protocol.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <troupe/troupe.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/file_descriptor.h"
#include "protocol/codec.h"
#include "protocol/frame.h"

namespace troupe {
namespace {

namespace fs = std::filesystem;

// What a worker of that version says first. On the wire a frame is the sizes of its header and its
// body, and these.
Bytes greeting(uint32_t version) {
  protocol::Hello hello;
  hello.kind = "worker";
  hello.protocol_version = version;
  const Bytes body = protocol::encode(hello);
  const Bytes header = protocol::encode_header(
      {.kind = protocol::FrameKind::request, .method = protocol::Method::hello});
  Bytes frame(8);
  const auto sizes = {static_cast<uint32_t>(header.size()), static_cast<uint32_t>(body.size())};
  std::memcpy(frame.data(), sizes.begin(), frame.size());
  frame.insert(frame.end(), header.begin(), header.end());
  frame.insert(frame.end(), body.begin(), body.end());
  return frame;
}

// Greets whoever connects, and keeps the connection until the other side closes it.
class OtherWorker {
 public:
  OtherWorker(const fs::path& socket, uint32_t version) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, socket.c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_.get(), 8), 0);
    thread_ = std::thread([this, version] { serve(version); });
  }
  ~OtherWorker() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  void wait_for_the_end_of(int connections) const {
    for (int i = 0; i < 2000 && ended_ < connections; ++i) ::poll(nullptr, 0, 5);
    EXPECT_EQ(ended_, connections);
  }
  OtherWorker(const OtherWorker&) = delete;
  OtherWorker& operator=(const OtherWorker&) = delete;

 private:
  void serve(uint32_t version) {
    for (;; ++ended_) {
      const FileDescriptor peer{::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)};
      if (!peer.is_open()) return;
      const Bytes hello = greeting(version);
      EXPECT_EQ(::send(peer.get(), hello.data(), hello.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(hello.size()));
      char said[4096];
      while (::recv(peer.get(), said, sizeof said, 0) > 0) {
      }
    }
  }

  std::atomic<int> ended_ = 0;  // Connections, whose descriptors are closed.
  const FileDescriptor listener_{::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  std::thread thread_;
};

ptrdiff_t entries(const char* folder) {
  return std::distance(fs::directory_iterator(folder), {});
}

TEST(SdkVersion, AWorkerOfAnotherVersionIsAnErrorThatNamesBoth) {
  std::string state = "/tmp/troupe-version-XXXXXX";
  ASSERT_NE(::mkdtemp(state.data()), nullptr);
  fs::create_directory(fs::path(state) / "sockets");
  {
    const uint32_t theirs = protocol::version + 1;
    const OtherWorker worker{fs::path(state) / "sockets/worker-0.sock", theirs};
    const auto refused = [&] {
      ConnectOptions options;
      options.state_folder = state;
      const auto began = std::chrono::steady_clock::now();
      const auto session = connect(options);
      ASSERT_FALSE(session);
      EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(20));
      EXPECT_EQ(session.error().code(), Code::conflict);
      const std::string text = "the peer speaks protocol " + std::to_string(theirs) +
                               ", this build speaks " + std::to_string(protocol::version);
      EXPECT_NE(session.error().message().find(text), std::string::npos)
          << session.error().to_string();
    };
    refused();  // What a program opens once.
    worker.wait_for_the_end_of(1);
    const auto files = entries("/proc/self/fd");
    const auto threads = entries("/proc/self/task");
    for (int i = 0; i < 5; ++i) refused();
    worker.wait_for_the_end_of(6);
    // A thread that has been joined is in the list for a moment.
    for (int i = 0; i < 1000 && entries("/proc/self/task") > threads; ++i) ::poll(nullptr, 0, 5);
    EXPECT_EQ(entries("/proc/self/task"), threads);
    EXPECT_EQ(entries("/proc/self/fd"), files);
  }
  fs::remove_all(state);
}

}  // namespace
}  // namespace troupe
