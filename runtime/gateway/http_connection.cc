#include "gateway/http_connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <boost/asio/this_coro.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

namespace troupe::gateway {
namespace http = boost::beast::http;

namespace {

constexpr size_t read_bytes = 16 << 10;
constexpr size_t linger_bytes_max = 16 << 20;
constexpr Duration linger_time = std::chrono::seconds(2);

// Closes the stream at the deadline, which ends what waits on it.
class DeadlineGuard {
 public:
  DeadlineGuard(TimerClock& clock, Instant when, HttpStream& stream)
      : clock_(clock), timer_(clock.call_at(when, [&stream] { stream.close(); })) {}
  ~DeadlineGuard() { clock_.cancel(timer_); }
  DeadlineGuard(const DeadlineGuard&) = delete;
  DeadlineGuard& operator=(const DeadlineGuard&) = delete;

 private:
  TimerClock& clock_;
  TimerClock::TimerId timer_;
};

using Parser = http::request_parser<http::string_body>;

std::string field(const http::request<http::string_body>& message, http::field name) {
  return std::string{message[name]};
}

HttpRequest take(http::request<http::string_body> message) {
  HttpRequest request;
  request.method = std::string{message.method_string()};
  const auto target = message.target();
  request.path = std::string{target.substr(0, target.find('?'))};
  request.host = field(message, http::field::host);
  request.has_origin = message.find(http::field::origin) != message.end();
  request.origin = field(message, http::field::origin);
  request.authorization = field(message, http::field::authorization);
  request.content_type = field(message, http::field::content_type);
  request.request_id = std::string{message["x-request-id"]};
  request.http_1_1 = message.version() >= 11;
  request.keep_alive = message.keep_alive();
  request.body = std::move(message.body());
  return request;
}

Error refusal(const boost::system::error_code& failed, const HttpLimits& limits) {
  if (failed == http::error::body_limit) {
    return error(Code::exhausted,
                 fmt::format("the body is over the limit of {} bytes", limits.body_bytes_max));
  }
  if (failed == http::error::header_limit || failed == http::error::buffer_overflow) {
    return error(Code::denied,
                 fmt::format("the header is over the limit of {} bytes", limits.header_bytes_max));
  }
  return error(Code::invalid, "no valid HTTP request: " + failed.message());
}

}  // namespace

std::string_view reason_phrase(int status) {
  const auto text = http::obsolete_reason(http::int_to_status(static_cast<unsigned>(status)));
  return {text.data(), text.size()};
}

HttpConnection::HttpConnection(std::unique_ptr<HttpStream> stream, TimerClock& clock,
                               HttpLimits limits)
    : stream_(std::move(stream)), clock_(clock), limits_(limits) {}

Async<bool> HttpConnection::handshake() {
  const DeadlineGuard guard{clock_, clock_.now() + limits_.request, *stream_};
  co_return co_await stream_->handshake();
}

Async<bool> HttpConnection::fill(Instant deadline) {
  const DeadlineGuard guard{clock_, deadline, *stream_};
  co_return co_await fill();
}

Async<bool> HttpConnection::fill() {
  if (client_closed_) co_return false;
  std::array<char, read_bytes> piece;
  const size_t count = co_await stream_->read_some(piece);
  const auto state = co_await boost::asio::this_coro::cancellation_state;
  // A read that was called off says nothing about the client.
  if (count == 0 && state.cancelled() != boost::asio::cancellation_type::none) co_return false;
  if (used_ > 0) buffer_.erase(0, std::exchange(used_, 0));
  buffer_.append(piece.data(), count);
  client_closed_ = count == 0;
  co_return count != 0;
}

Async<Result<HttpRequest>> HttpConnection::read_request() {
  const auto closed = [] { return error(Code::unavailable, "the client closed or was too slow"); };
  if (buffered() == 0) {
    const bool filled = co_await fill(clock_.now() + limits_.idle);
    if (!filled) co_return closed();
  }
  const Instant deadline = clock_.now() + limits_.request;
  Parser parser;
  parser.header_limit(static_cast<uint32_t>(limits_.header_bytes_max));
  parser.body_limit(limits_.body_bytes_max);
  bool continued = false;
  for (;;) {
    boost::system::error_code failed;
    if (buffered() > 0) {
      used_ += parser.put(boost::asio::buffer(buffer_.data() + used_, buffered()), failed);
    }
    if (failed && failed != http::error::need_more) co_return refusal(failed, limits_);
    if (parser.is_done()) co_return take(parser.release());
    // Without eager parsing a header ends its put(); what follows it may be here already.
    if (!failed && buffered() > 0) continue;
    if (parser.is_header_done() && !std::exchange(continued, true)) {
      const auto expect = parser.get()[http::field::expect];
      if (boost::beast::iequals(expect, "100-continue")) {
        const bool written = co_await write("HTTP/1.1 100 Continue\r\n\r\n");
        if (!written) co_return closed();
      }
    }
    if (!co_await fill(deadline)) co_return closed();
  }
}

Async<void> HttpConnection::wait_closed() {
  // Pipelined requests are read up to one header's worth; beyond that the client has to wait.
  while (!client_closed_ && buffered() < limits_.header_bytes_max) {
    if (!co_await fill()) break;
  }
  if (client_closed_) co_return;
  Event never{co_await boost::asio::this_coro::executor};
  co_await never.wait();
}

Async<bool> HttpConnection::write(std::string bytes) {
  const DeadlineGuard guard{clock_, clock_.now() + limits_.write, *stream_};
  const bool sent = co_await stream_->write(bytes);
  if (!sent) stream_->close();
  co_return sent;
}

Async<bool> HttpConnection::send(const HttpResponse& response, bool keep_alive) {
  std::string out;
  out.reserve(256 + response.body.size());
  fmt::format_to(std::back_inserter(out),
                 "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n",
                 response.status, reason_phrase(response.status), response.content_type,
                 response.body.size(), keep_alive ? "keep-alive" : "close");
  for (const auto& [name, value] : response.headers) {
    fmt::format_to(std::back_inserter(out), "{}: {}\r\n", name, value);
  }
  out += "\r\n";
  out += response.body;
  co_return co_await write(std::move(out));
}

Async<bool> HttpConnection::begin_events(const HttpRequest& request,
                                         std::vector<std::pair<std::string, std::string>> headers) {
  chunked_ = request.http_1_1;  // An older client reads until the connection closes.
  std::string out = fmt::format(
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
      "Connection: {}\r\n{}",
      request.keep_alive && chunked_ ? "keep-alive" : "close",
      chunked_ ? "Transfer-Encoding: chunked\r\n" : "");
  for (const auto& [name, value] : headers) {
    fmt::format_to(std::back_inserter(out), "{}: {}\r\n", name, value);
  }
  out += "\r\n";
  co_return co_await write(std::move(out));
}

Async<bool> HttpConnection::send_event(std::string data) {
  constexpr size_t frame_bytes = 8;  // "data: " and the empty line.
  std::string out;
  out.reserve(data.size() + 32);
  if (chunked_) fmt::format_to(std::back_inserter(out), "{:x}\r\n", data.size() + frame_bytes);
  out += "data: ";
  out += data;
  out += "\n\n";
  if (chunked_) out += "\r\n";
  co_return co_await write(std::move(out));
}

Async<bool> HttpConnection::end_events() {
  if (!chunked_) co_return true;
  co_return co_await write("0\r\n\r\n");
}

Async<void> HttpConnection::linger_and_close() {
  stream_->shutdown_send();
  const DeadlineGuard guard{clock_, clock_.now() + linger_time, *stream_};
  std::array<char, read_bytes> piece;
  for (size_t dropped = 0; !client_closed_ && dropped < linger_bytes_max;) {
    const size_t count = co_await stream_->read_some(piece);
    if (count == 0) break;
    dropped += count;
  }
  stream_->close();
}

}  // namespace troupe::gateway
