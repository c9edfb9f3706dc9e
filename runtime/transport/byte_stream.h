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
  // Ends pending reads and writes. Idempotent.
  virtual void close() = 0;
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

// Frames over a byte stream. The writer coroutine lives in `scope`.
std::unique_ptr<Connection> make_connection(Scope& scope, std::unique_ptr<ByteStream> stream,
                                            PeerIdentity peer);

}  // namespace troupe::transport
