#include "etcd/etcd_http.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/ssl.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

namespace troupe::etcd {
namespace asio = boost::asio;
namespace http = boost::beast::http;
namespace json = boost::json;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

constexpr size_t answer_bytes_max = 1 << 20;
constexpr uint32_t header_bytes_max = 16 << 10;
constexpr size_t idle_max = 4;                              // Connections, of each member.
constexpr std::string_view http_protocol = "\x08http/1.1";  // As ALPN has it.
constexpr auto token = asio::as_tuple(asio::use_awaitable);

struct Answer {
  unsigned status = 0;
  std::string body;
};

// A resolver cannot be stopped, so what it needs outlives the one who asked.
struct Resolution {
  explicit Resolution(const Executor& loop) : resolver(loop), done(loop) {}
  tcp::resolver resolver;
  Event done;
  error_code failed;
  tcp::resolver::results_type found;
};

Async<Result<std::vector<tcp::endpoint>>> resolve(Executor loop, transport::Endpoint endpoint) {
  std::string host = endpoint.host;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  std::vector<tcp::endpoint> addresses;
  error_code is_name;
  const auto address = asio::ip::make_address(host, is_name);
  if (!is_name) {
    addresses.emplace_back(address, endpoint.port);
    co_return addresses;
  }
  auto resolution = std::make_shared<Resolution>(loop);
  resolution->resolver.async_resolve(host, std::to_string(endpoint.port),
                                     [resolution](error_code failed, auto found) {
                                       resolution->failed = failed;
                                       resolution->found = std::move(found);
                                       resolution->done.set();
                                     });
  co_await resolution->done.wait();
  if (resolution->failed) {
    co_return error(Code::unavailable,
                    fmt::format("look up {}: {}", host, resolution->failed.message()));
  }
  for (const auto& entry : resolution->found) addresses.push_back(entry.endpoint());
  co_return addresses;
}

asio::ssl::context borrow(ssl_ctx_st* shared) {
  SSL_CTX_up_ref(shared);
  return asio::ssl::context{shared};
}

bool is_tls(const error_code& failed) {
  return failed.category() == asio::error::get_ssl_category();
}

Error exchange_error(const error_code& failed) {
  if (failed == http::error::body_limit) {
    return error(Code::unavailable,
                 fmt::format("its answer is over {} bytes, so it is no etcd's: look what listens "
                             "there",
                             answer_bytes_max));
  }
  // In TLS 1.3 a client hears of a refusal only when it reads.
  if (is_tls(failed)) {
    return error(Code::denied,
                 fmt::format("it refuses this process's certificate, which must be of the "
                             "authority that it was given: {}",
                             failed.message()));
  }
  if (failed == http::error::end_of_stream || failed == http::error::partial_message ||
      failed == asio::ssl::error::stream_truncated || failed == asio::error::eof) {
    return error(Code::unavailable, "it closed the connection before it had answered");
  }
  if (failed.category() == make_error_code(http::error::bad_version).category()) {
    return error(Code::unavailable, fmt::format("its answer is not HTTP ({}): look what listens "
                                                "there",
                                                failed.message()));
  }
  return error(Code::unavailable, failed.message());
}

// As numbered by gRPC.
Code code_of(int64_t grpc) {
  switch (grpc) {
    case 5:
      return Code::not_found;
    case 7:
    case 16:
      return Code::denied;
    case 8:
      return Code::exhausted;
    case 3:
    case 9:
    case 11:
    case 12:
      return Code::invalid;
    default:
      return Code::unavailable;
  }
}

int64_t number_in(const json::object& object, std::string_view name) {
  const json::value* found = object.if_contains(name);
  return found != nullptr && found->is_int64() ? found->get_int64() : 0;
}

std::string_view text_in(const json::object& object, std::string_view name) {
  const json::value* found = object.if_contains(name);
  if (found == nullptr || !found->is_string()) return {};
  return {found->get_string().data(), found->get_string().size()};
}

// A stream of answers nests what a plain answer has at its top.
Error error_in(const Answer& answer, const json::object& object) {
  const json::value* nested = object.if_contains("error");
  const bool streamed = nested != nullptr && nested->is_object();
  const json::object& said = streamed ? nested->get_object() : object;
  const Code code = code_of(number_in(said, streamed ? "grpc_code" : "code"));
  std::string why = fmt::format("HTTP {}: {}", answer.status, text_in(said, "message"));
  if (code == Code::exhausted) {
    why += "; if its space is used up, compact it, then lift the alarm (etcdctl alarm disarm)";
  }
  return error(code, std::move(why));
}

Result<json::object> read_answer(const Answer& answer) {
  error_code failed;
  json::value value = json::parse(answer.body, failed);
  if (failed || !value.is_object()) {
    return error(Code::unavailable,
                 fmt::format("HTTP {}, and its answer is no JSON object ({}): look what listens "
                             "there",
                             answer.status, failed ? failed.message() : "another value"));
  }
  json::object& object = value.get_object();
  if (answer.status != 200 || object.contains("error")) return error_in(answer, object);
  return std::move(object);
}

// Whether another member may say something else.
bool is_members_own(Code code) {
  return code == Code::unavailable || code == Code::deadline_exceeded || code == Code::denied;
}

}  // namespace

class EtcdHttp::Connection {
 public:
  Connection(const Executor& loop, ssl_ctx_st* shared)
      : context_(borrow(shared)), stream_(loop, context_) {
    ::SSL_set_alpn_protos(stream_.native_handle(),
                          reinterpret_cast<const unsigned char*>(http_protocol.data()),
                          static_cast<unsigned>(http_protocol.size()));
  }

  Async<Status> open(tcp::endpoint address) {
    auto& socket = stream_.next_layer();
    error_code failed;
    socket.open(address.protocol(), failed);
    if (failed) co_return error(Code::unavailable, "open a socket: " + failed.message());
    // Asio opens sockets without it: what user code starts would keep our connections open.
    ::fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
    socket.set_option(tcp::no_delay(true), failed);
    const auto [refused] = co_await socket.async_connect(address, token);
    if (refused) co_return error(Code::unavailable, "connect: " + refused.message());
    const auto [broken] = co_await stream_.async_handshake(asio::ssl::stream_base::client, token);
    if (!broken) co_return ok();
    const Code code = is_tls(broken) ? Code::denied : Code::unavailable;
    co_return error(code, "TLS handshake: " + broken.message());
  }

  Status check_role(const security::Credentials& credentials) {
    X509* leaf = ::SSL_get1_peer_certificate(stream_.native_handle());
    const auto peer = credentials.identify(leaf);
    ::X509_free(leaf);
    if (!peer) return peer.error();
    if (peer->role == security::Role::etcd) return ok();
    return error(Code::denied, fmt::format("its certificate is of {} {}, not of an etcd",
                                           security::role_name(peer->role), peer->name));
  }

  Async<Result<Answer>> exchange(std::string host, std::string path, std::string body) {
    http::request<http::string_body> request{http::verb::post, path, 11};
    request.set(http::field::host, host);
    request.set(http::field::content_type, "application/json");
    request.body() = std::move(body);
    request.prepare_payload();
    const auto [unsent, written] = co_await http::async_write(stream_, request, token);
    http::response_parser<http::string_body> parser;
    parser.body_limit(answer_bytes_max);
    parser.header_limit(header_bytes_max);
    // Also after a failed write: why the other side closed is there to be read.
    const auto [failed, got] = co_await http::async_read(stream_, buffer_, parser, token);
    if (failed) co_return exchange_error(unsent && !is_tls(failed) ? unsent : failed);
    reusable_ = !unsent && parser.keep_alive();
    Answer answer;
    answer.status = parser.get().result_int();
    answer.body = std::move(parser.get().body());
    co_return answer;
  }

  bool is_reusable() const { return reusable_; }

 private:
  asio::ssl::context context_;
  asio::ssl::stream<tcp::socket> stream_;
  boost::beast::flat_buffer buffer_;
  bool reusable_ = false;
};

EtcdHttp::EtcdHttp(Executor loop, TimerClock& clock, security::Credentials& credentials,
                   std::vector<transport::Endpoint> members, Duration attempt_budget)
    : loop_(std::move(loop)),
      clock_(clock),
      credentials_(credentials),
      attempt_budget_(attempt_budget) {
  for (auto& endpoint : members) members_.push_back({std::move(endpoint), {}});
}
EtcdHttp::~EtcdHttp() = default;

Async<Result<json::object>> EtcdHttp::post(std::string path, json::object request,
                                           Instant deadline) {
  const std::string body = json::serialize(request);
  const size_t first = preferred_;
  Code code = Code::denied;
  std::string reasons;
  for (size_t i = 0; i < members_.size(); ++i) {
    const Instant now = clock_.now();
    if (now >= deadline) {
      code = Code::deadline_exceeded;
      break;
    }
    const size_t member = (first + i) % members_.size();
    const Instant attempt_end = std::min(deadline, now + attempt_budget_);
    auto answer = co_await with_deadline(clock_, attempt_end, ask(member, path, body));
    if (answer) {
      preferred_ = member;
      co_return answer;
    }
    Error failed = std::move(answer).error().context(
        fmt::format("etcd at {}", members_[member].endpoint.to_string()));
    if (!is_members_own(failed.code())) co_return failed;
    members_[member].idle.clear();
    if (preferred_ == member) preferred_ = (member + 1) % members_.size();
    // Who refused us did not do it; who was silent may have.
    if (failed.code() != Code::denied && code != Code::deadline_exceeded) code = failed.code();
    reasons += (reasons.empty() ? "" : "; ") + failed.message();
  }
  co_return error(code, reasons.empty() ? "no time was left to ask etcd" : std::move(reasons));
}

Async<Result<json::object>> EtcdHttp::ask(size_t member, std::string path, std::string body) {
  const transport::Endpoint endpoint = members_[member].endpoint;
  if (!members_[member].idle.empty()) {
    auto kept = std::move(members_[member].idle.back());
    members_[member].idle.pop_back();
    auto answer = co_await kept->exchange(endpoint.to_string(), path, body);
    if (answer) {
      keep(member, std::move(kept));
      co_return read_answer(*answer);
    }
    // The member was started anew, most likely: then the others are as dead.
    members_[member].idle.clear();
  }
  TROUPE_CO_TRY(const auto addresses, co_await resolve(loop_, endpoint));
  Status opened = error(Code::unavailable, "its name has no address");
  std::unique_ptr<Connection> connection;
  for (const auto& address : addresses) {
    connection = std::make_unique<Connection>(loop_, credentials_.client_context());
    opened = co_await connection->open(address);
    if (opened) break;
  }
  TROUPE_CO_CHECK(std::move(opened));
  TROUPE_CO_CHECK(connection->check_role(credentials_));
  TROUPE_CO_TRY(const auto answer, co_await connection->exchange(endpoint.to_string(), path, body));
  keep(member, std::move(connection));
  co_return read_answer(answer);
}

void EtcdHttp::keep(size_t member, std::unique_ptr<Connection> connection) {
  auto& idle = members_[member].idle;
  if (connection->is_reusable() && idle.size() < idle_max) idle.push_back(std::move(connection));
}

}  // namespace troupe::etcd
