#include "troupe/http_get.h"

#include <fmt/format.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>

namespace troupe::tools {
namespace beast = boost::beast;
namespace http = beast::http;
using boost::asio::ip::tcp;
using boost::system::error_code;

Result<std::string> http_get(const HttpGet& get) {
  boost::asio::io_context loop;
  beast::tcp_stream stream{loop};
  error_code failed;
  // The stream's deadline covers asynchronous calls alone.
  const auto wait = [&loop] {
    loop.restart();
    loop.run();
  };
  const auto note = [&failed](error_code code, auto&&...) { failed = code; };
  const auto why = [&](const std::string& what) {
    if (failed == beast::error::timeout) {
      return error(Code::deadline_exceeded,
                   fmt::format("the gateway on {}:{} does not answer within {} s: see gateway.log "
                               "('troupe logs gateway')",
                               get.host, get.port, get.budget / std::chrono::seconds(1)));
    }
    return error(Code::unavailable, fmt::format("the gateway on {}:{} {}: {}", get.host, get.port,
                                                what, failed.message()));
  };
  const auto address = boost::asio::ip::make_address(get.host, failed);
  if (failed) return why("has no IP address");
  stream.expires_after(get.budget);
  stream.async_connect(tcp::endpoint{address, get.port}, note);
  wait();
  if (failed) return why("does not answer");
  http::request<http::empty_body> request{http::verb::get, get.target, 11};
  request.set(http::field::host, fmt::format("{}:{}", get.host, get.port));
  request.set(http::field::authorization, "Bearer " + get.api_key);
  http::async_write(stream, request, note);
  wait();
  if (failed) return why("closed");
  beast::flat_buffer buffer;
  http::response<http::string_body> response;
  http::async_read(stream, buffer, response, note);
  wait();
  if (failed) return why("closed");
  if (response.result() != http::status::ok) {
    const bool refused = response.result() == http::status::unauthorized ||
                         response.result() == http::status::forbidden;
    return error(
        refused ? Code::denied : Code::internal,
        fmt::format("the gateway answered {}: {}", response.result_int(), response.body()));
  }
  return response.body();
}

}  // namespace troupe::tools
