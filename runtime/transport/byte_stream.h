// Bytes over a Unix socket or TLS, below framing. Internal to transport.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/thread_pool.hpp>
#include <memory>
#include <span>
#include <vector>

#include "transport/async.h"
#include "transport/network.h"

namespace troupe::transport {

class RingPort;

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // At least one byte; the descriptors that came along are appended.
  virtual Async<Result<size_t>> read_some(std::span<uint8_t> out,
                                          std::vector<FileDescriptor>& descriptors) = 0;
  // All of `bytes`; `descriptors` travel with the first.
  virtual Async<Status> write(std::span<const uint8_t> bytes,
                              std::span<const FileDescriptor> descriptors) = 0;
  // All of `out` and all of `bytes`, off the loop where that costs processor time. The memory stays
  // in use until these return, whatever cancels them.
  virtual Async<Status> read_bulk(std::span<uint8_t> out);
  virtual Async<Status> write_bulk(std::span<const uint8_t> bytes) { return write(bytes, {}); }
  // Ends pending reads and writes. Idempotent. On the loop.
  virtual void close() = 0;

  // --- What other threads than the loop's may do, where is_direct(). One thread reads at a time,
  // and one writes.
  virtual bool is_direct() const { return false; }
  // What can be had without waiting: 0 if nothing. Errors: unavailable, denied.
  virtual Result<size_t> try_read(std::span<uint8_t> out);
  virtual Result<size_t> try_write(std::span<const uint8_t> bytes);
  // Readable when try_read may have something.
  virtual int descriptor() const { return -1; }
  // Whether the loop is to be woken by what arrives, as it is at first.
  virtual void wake_loop_on_data(bool wakes) { (void)wakes; }
  // Wakes the loop from readable().
  virtual void wake_loop() {}
  // As close(), but the loop only hears of it.
  virtual void shut_down() {}
  // The peer reads what was written, and then the end. Reading goes on.
  virtual void end_writing() = 0;
  // On the loop: returns when there may be something to read.
  virtual Async<void> readable();
};

std::unique_ptr<ByteStream> make_unix_stream(boost::asio::local::stream_protocol::socket socket);

// Who is at the other end of a Unix socket. Errors: denied (another user).
Result<PeerIdentity> unix_peer(boost::asio::local::stream_protocol::socket& socket);

// The threads that encrypt and decrypt bulk; started by the first that comes. Belongs to the loop.
class BulkThreads {
 public:
  Executor executor();

 private:
  std::unique_ptr<boost::asio::thread_pool> pool_;
};

struct TlsStream {
  std::unique_ptr<ByteStream> stream;
  PeerIdentity peer;
};
// The handshake. Errors: denied (no or foreign certificate), unavailable.
Async<Result<TlsStream>> tls_connect(boost::asio::ip::tcp::socket socket, Credentials& credentials,
                                     std::shared_ptr<BulkThreads> threads);
Async<Result<TlsStream>> tls_accept(boost::asio::ip::tcp::socket socket, Credentials& credentials,
                                    std::shared_ptr<BulkThreads> threads);

// Frames over a byte stream. The writer coroutine lives in `scope`. With a port, calls can be made
// beside them if the stream is direct; the port outlives their last.
std::unique_ptr<Connection> make_connection(Scope& scope, std::unique_ptr<ByteStream> stream,
                                            PeerIdentity peer, RingPort* port = nullptr);

}  // namespace troupe::transport
