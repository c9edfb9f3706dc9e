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

Result<std::string> http_get(const std::string& host, uint16_t port, const std::string& target,
                             const std::string& api_key) {
  boost::asio::io_context loop;
  tcp::socket socket{loop};
  boost::system::error_code failed;
  socket.connect({boost::asio::ip::make_address(host), port}, failed);
  if (failed) {
    return error(Code::unavailable, fmt::format("the gateway on {}:{} does not answer: {}", host,
                                                port, failed.message()));
  }
  http::request<http::empty_body> request{http::verb::get, target, 11};
  request.set(http::field::host, fmt::format("{}:{}", host, port));
  request.set(http::field::authorization, "Bearer " + api_key);
  http::write(socket, request, failed);
  beast::flat_buffer buffer;
  http::response<http::string_body> response;
  if (!failed) http::read(socket, buffer, response, failed);
  if (failed) return error(Code::unavailable, "the gateway closed: " + failed.message());
  if (response.result() != http::status::ok) {
    const Code code =
        response.result() == http::status::unauthorized ? Code::denied : Code::internal;
    return error(
        code, fmt::format("the gateway answered {}: {}", response.result_int(), response.body()));
  }
  return response.body();
}

}  // namespace troupe::tools
