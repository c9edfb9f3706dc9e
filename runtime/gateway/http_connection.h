// HTTP/1.1 over one HttpStream: one request at a time, answers in their order.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gateway/http_stream.h"

namespace troupe::gateway {

struct HttpLimits {
  size_t header_bytes_max = 64 << 10;
  size_t body_bytes_max = 4 << 20;
  Duration idle = std::chrono::seconds(75);     // Between requests of a connection.
  Duration request = std::chrono::seconds(30);  // From a request's first byte to its last.
  Duration write = std::chrono::seconds(30);    // For a client to take one piece of an answer.
};

struct HttpRequest {
  std::string method;
  std::string path;  // Without the query.
  std::string host;
  std::string origin;
  std::string authorization;
  std::string content_type;
  std::string request_id;
  std::string body;
  bool has_origin = false;
  bool http_1_1 = true;
  bool keep_alive = true;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
};

// Belongs to its loop; `clock` outlives it.
class HttpConnection {
 public:
  HttpConnection(std::unique_ptr<HttpStream> stream, TimerClock& clock, HttpLimits limits);

  Async<bool> handshake();
  // The next request. Errors: unavailable (closed, too slow), exhausted (body over its limit: 413),
  // denied (header over its limit: 431), invalid (malformed: 400). After an error no more requests
  // can be read.
  Async<Result<HttpRequest>> read_request();
  // Returns when the client has closed. Reads on meanwhile, into a bounded buffer, so that
  // pipelined requests are kept. Ends with its caller's cancellation.
  Async<void> wait_closed();

  // False: the client is gone or too slow, and the connection closed.
  Async<bool> send(const HttpResponse& response, bool keep_alive);
  // An event stream: begin, events, end.
  Async<bool> begin_events(const HttpRequest& request,
                           std::vector<std::pair<std::string, std::string>> headers);
  Async<bool> send_event(std::string data);
  Async<bool> end_events();

  // Lets the client read the last answer although it may still be sending, then closes.
  Async<void> linger_and_close();
  void close() { stream_->close(); }
  const std::string& remote() const { return stream_->remote(); }

 private:
  Async<bool> fill(Instant deadline);
  Async<bool> fill();
  Async<bool> write(std::string bytes);
  size_t buffered() const { return buffer_.size() - used_; }

  std::unique_ptr<HttpStream> stream_;
  TimerClock& clock_;
  HttpLimits limits_;
  std::string buffer_;  // Bytes read; those before used_ are done with.
  size_t used_ = 0;
  bool chunked_ = false;
  bool client_closed_ = false;
};

std::string_view reason_phrase(int status);

}  // namespace troupe::gateway
