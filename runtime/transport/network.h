// Connections that carry frames. AsioNetwork is the real one; tests/sim has one in memory.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/file_descriptor.h"
#include "base/ids.h"
#include "protocol/frame.h"
#include "transport/async.h"
#include "transport/credentials.h"

namespace troupe::transport {

// "unix:/path" or "host:port" (always TLS).
struct Endpoint {
  std::string unix_path;
  std::string host;
  uint16_t port = 0;

  bool is_unix() const { return !unix_path.empty(); }
  std::string to_string() const;
  // Errors: invalid.
  static Result<Endpoint> parse(std::string_view text);
};

class CallChannel;

// Bytes beside a message that travel uncopied, up to protocol::bulk_bytes_max. `keep` holds what
// they lie in and is let go on the loop.
struct Bulk {
  BytesView bytes = {};
  std::shared_ptr<const void> keep = {};
};

// Where bulk that comes is put. `keep` holds the memory for as long as it may be written.
struct Landing {
  std::span<uint8_t> bytes = {};
  std::shared_ptr<const void> keep = {};
};

struct Frame {
  protocol::FrameHeader header;
  Bytes body;
  std::vector<FileDescriptor> descriptors;  // Only on Unix sockets.
  Bulk bulk = {};                           // Not through rings.
};

// One ordered, authenticated, message-oriented connection. Belongs to its loop.
class Connection {
 public:
  virtual ~Connection() = default;
  virtual const PeerIdentity& peer() const = 0;
  // The next frame. Errors: unavailable (closed), invalid (the peer broke the protocol).
  // One receive at a time.
  virtual Async<Result<Frame>> receive() = 0;
  // Asked when a frame with bulk arrives, before its bulk is read: if the answer has room for it,
  // the bulk lies there when receive() returns; else in memory of its own.
  virtual void land_bulk(std::function<Landing(const protocol::FrameHeader&)> landing_of) {
    (void)landing_of;
  }
  // Queues a frame. Errors: unavailable (closed), invalid (over a size limit).
  virtual Status send(Frame frame) = 0;
  // Returns once little is queued (or the connection is closed): senders of bulk wait here.
  virtual Async<void> writable() = 0;
  virtual bool is_writable() const = 0;
  // Sends what is queued, then closes; receive() fails from then on. Idempotent.
  virtual void close() = 0;
  // Beside the frames, calls that are made and answered on any thread; null where there are none.
  virtual std::shared_ptr<CallChannel> channel() const { return nullptr; }
  // Where there is a channel: the peer, a process of this id, may call from now on. Errors:
  // cancelled (this process stops).
  virtual Status accept_calls(ProcessId peer) {
    (void)peer;
    return ok();
  }
};

class Listener {
 public:
  virtual ~Listener() = default;
  // The next connection whose peer is authenticated. Errors: unavailable (closed).
  virtual Async<Result<std::unique_ptr<Connection>>> accept() = 0;
  // With the port that the system chose.
  virtual const Endpoint& endpoint() const = 0;
  // Stops accepting and joins what it started.
  virtual Async<void> stop() = 0;
};

// answers: whoever listens there is authenticated. refused: the machine says that nobody listens.
enum class Reach : uint8_t { answers, refused, silent };

class Network {
 public:
  virtual ~Network() = default;
  // Whether somebody listens there, by a connection of its own, which is closed at once.
  virtual Async<Reach> probe(Endpoint endpoint, Instant deadline) {
    auto connection = co_await connect(std::move(endpoint), deadline);
    co_return connection ? Reach::answers : Reach::silent;
  }
  // Errors: unavailable (nobody listens), denied (authentication failed), deadline_exceeded.
  virtual Async<Result<std::unique_ptr<Connection>>> connect(Endpoint endpoint,
                                                             Instant deadline) = 0;
  // Errors: conflict (in use), denied, invalid (path too long).
  virtual Result<std::unique_ptr<Listener>> listen(const Endpoint& endpoint) = 0;
};

}  // namespace troupe::transport
