// Bytes to and from an HTTP client: plain TCP on loopback, TLS elsewhere.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "transport/async.h"

struct ssl_ctx_st;

namespace troupe::gateway {

// One read and one write may wait at a time. Belongs to its loop.
class HttpStream {
 public:
  virtual ~HttpStream() = default;
  // Must succeed before anything else. False: not a client that can be spoken with.
  virtual Async<bool> handshake() = 0;
  // 0: the other side closed, or close() was called.
  virtual Async<size_t> read_some(std::span<char> out) = 0;
  virtual Async<bool> write(std::string_view bytes) = 0;
  // The other side sees the end of what was sent.
  virtual void shutdown_send() = 0;
  // Ends waiting reads and writes. Idempotent.
  virtual void close() = 0;
  virtual const std::string& remote() const = 0;  // The address, without the port.
};

class HttpListener {
 public:
  virtual ~HttpListener() = default;
  // `tls` null: plain HTTP. Errors: conflict (in use), denied, invalid (no numeric address).
  static Result<std::unique_ptr<HttpListener>> listen(boost::asio::io_context& loop,
                                                      const std::string& address, uint16_t port,
                                                      std::shared_ptr<ssl_ctx_st> tls);
  // Null after close().
  virtual Async<std::unique_ptr<HttpStream>> accept() = 0;
  virtual uint16_t port() const = 0;
  virtual void close() = 0;
};

// Whether it is 127.0.0.0/8 or ::1. Errors: invalid (no numeric address).
Result<bool> is_loopback(const std::string& address);

}  // namespace troupe::gateway
