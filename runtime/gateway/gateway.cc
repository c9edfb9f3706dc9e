#include "gateway/gateway.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/json.hpp>

#include "base/log.h"
#include "gateway/openai_answer.h"
#include "security/credentials.h"

namespace troupe::gateway {
namespace json = boost::json;
using boost::asio::experimental::awaitable_operators::operator||;
using boost::asio::experimental::awaitable_operators::operator&&;

namespace {

constexpr Duration keys_period = std::chrono::seconds(2);
constexpr size_t request_id_bytes_max = 128;
constexpr std::string_view models_prefix = "/v1/models/";
constexpr int client_gone = 499;  // For the metrics only: no answer was sent.

ApiError refusal(int status, std::string message, std::string type, std::string code) {
  ApiError failure;
  failure.status = status;
  failure.message = std::move(message);
  failure.type = std::move(type);
  failure.code = std::move(code);
  return failure;
}

ApiError unknown_model(const std::string& model) {
  auto failure = refusal(404, fmt::format("the model '{}' does not exist", model),
                         "invalid_request_error", "model_not_found");
  failure.param = "model";
  return failure;
}

bool valid_request_id(const std::string& id) {
  return !id.empty() && id.size() <= request_id_bytes_max &&
         std::all_of(id.begin(), id.end(), [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
         });
}

std::string lower(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

bool is_local_host(const std::string& text, uint16_t port) {
  const std::string host = lower(text);
  for (const char* name : {"localhost", "127.0.0.1", "[::1]"}) {
    if (host == fmt::format("{}:{}", name, port)) return true;
    if (port == 80 && host == name) return true;
  }
  return false;
}

// The label of a path: one of a bounded set.
std::string route_label(const std::string& path) {
  for (const char* known : {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health",
                            "/ready", "/metrics", "/v1/troupe/stats"}) {
    if (path == known) return path;
  }
  return path.starts_with(models_prefix) ? "/v1/models/{id}" : "unknown";
}

json::object model_json(const ModelInfo& info) {
  return {{"id", info.name},
          {"object", "model"},
          {"created", 0},
          {"owned_by", "troupe"},
          {"state", info.state},
          {"reason", info.reason},
          {"replicas", info.replicas_wanted},
          {"replicas_alive", info.replicas_alive}};
}

}  // namespace

struct Gateway::Exchange {
  HttpRequest request;
  std::string request_id;
  std::string route;
  std::string remote;
  Door door = Door::plain;
  Instant arrived;
  int status = client_gone;
  bool keep_alive = true;
  std::string* admitted_key = nullptr;  // The connection's: one audit line a key and connection.
};

struct Gateway::Admission {
  Admission(Gateway& owner, std::string name, size_t count)
      : gateway(owner), model(std::move(name)), choices(count) {
    size_t& running = gateway.in_flight_[model];
    running += choices;
    gateway.metrics_.in_flight(model, running);
  }
  ~Admission() {
    const auto found = gateway.in_flight_.find(model);
    found->second -= choices;
    gateway.metrics_.in_flight(model, found->second);
    if (found->second == 0) gateway.in_flight_.erase(found);
  }
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  Gateway& gateway;
  std::string model;
  size_t choices;
};

struct Gateway::Completion {
  Completion(Gateway& owner, HttpConnection& client, Exchange& of, const ApiRequest& asked)
      : gateway(owner),
        connection(client),
        exchange(of),
        request(asked),
        writer(asked, of.request_id,
               std::chrono::duration_cast<std::chrono::seconds>(
                   owner.environment_.clock.wall_now().time_since_epoch())
                   .count()),
        choices(asked.choices()),
        started(asked.choices(), false),
        completion_tokens(asked.choices(), 0),
        prompt_tokens(asked.prompts.size(), 0),
        turn(owner.environment_.loop) {}
  // Also when the client went away and this is unwound.
  ~Completion() {
    Statistics::Request done;
    done.ended = gateway.environment_.clock.now();
    done.took = done.ended - exchange.arrived;
    done.first_token = first_token;
    done.tokens = usage().completion_tokens;
    done.retries = retries;
    done.succeeded = succeeded;
    gateway.metrics_.tokens(request.model, usage().prompt_tokens, done.tokens);
    if (retries > 0) gateway.metrics_.retried(request.model, retries);
    gateway.statistics_.add(request.model, done);
  }
  Completion(const Completion&) = delete;
  Completion& operator=(const Completion&) = delete;

  Usage usage() const {
    Usage sum;
    for (const uint64_t count : prompt_tokens) sum.prompt_tokens += count;
    for (const uint64_t count : completion_tokens) sum.completion_tokens += count;
    return sum;
  }

  Gateway& gateway;
  HttpConnection& connection;
  Exchange& exchange;
  const ApiRequest& request;
  AnswerWriter writer;
  std::vector<ChoiceText> choices;
  std::vector<bool> started;  // Something of the choice was sent.
  std::vector<uint64_t> completion_tokens;
  std::vector<uint64_t> prompt_tokens;  // A prompt, whatever n is.
  bool events_begun = false;
  bool client_lost = false;
  bool succeeded = false;
  bool writing = false;  // One choice writes at a time.
  Event turn;
  std::optional<Error> failure;
  std::optional<Duration> first_token;
  uint32_t retries = 0;
};

Gateway::Gateway(transport::Environment environment, boost::asio::io_context& loop,
                 Backend& backend, GatewayOptions options, security::Audit audit)
    : environment_(environment),
      loop_(loop),
      backend_(backend),
      options_(std::move(options)),
      audit_(std::move(audit)),
      idle_(environment.loop),
      scope_(environment.loop) {}

Gateway::~Gateway() = default;

Status Gateway::check_options() const {
  TROUPE_TRY(const bool plain_is_local, is_loopback(options_.http_address));
  if (!plain_is_local) {
    return error(Code::denied,
                 fmt::format("plain HTTP is not offered on {}: keys and texts would cross the "
                             "network readable. Use HTTPS there (an https address with a "
                             "certificate), and plain HTTP on 127.0.0.1",
                             options_.http_address));
  }
  if (options_.https_address.empty()) return ok();
  TROUPE_TRY(const bool tls_is_local, is_loopback(options_.https_address));
  if (!tls_is_local && options_.api_keys.empty()) {
    return error(
        Code::denied,
        fmt::format("{} is not offered without authentication: anyone who reaches it could "
                    "use the models. Name a file of API keys, or listen on 127.0.0.1",
                    options_.https_address));
  }
  return ok();
}

Async<Status> Gateway::start() {
  TROUPE_CO_CHECK(check_options());
  TROUPE_CO_CHECK(co_await load_keys());
  TROUPE_CO_TRY(plain_, HttpListener::listen(loop_, options_.http_address, options_.http_port, {}));
  if (!options_.https_address.empty()) {
    TROUPE_CO_TRY(auto context,
                  security::make_https_context(options_.certificate_chain_pem, options_.key_pem));
    TROUPE_CO_TRY(tls_, HttpListener::listen(loop_, options_.https_address, options_.https_port,
                                             std::move(context)));
    spawn(scope_, accept_all(Door::tls, *tls_));
  }
  spawn(scope_, accept_all(Door::plain, *plain_));
  if (!options_.api_keys.empty()) spawn(scope_, reload_keys());
  log::info("gateway_listening", {{"http", port()}, {"https", https_port()}});
  co_return ok();
}

Async<void> Gateway::stop() {
  stopping_ = true;
  if (plain_) plain_->close();
  if (tls_) tls_->close();
  const Instant deadline = environment_.clock.now() + options_.drain;
  while (exchanges_ > 0) {
    const bool woken = co_await wait_until(environment_.clock, deadline, idle_);
    if (!woken) break;
  }
  co_await scope_.stop();
}

uint16_t Gateway::port() const {
  return plain_ ? plain_->port() : uint16_t{0};
}

uint16_t Gateway::https_port() const {
  return tls_ ? tls_->port() : uint16_t{0};
}

Async<Status> Gateway::load_keys() {
  if (options_.api_keys.empty()) co_return ok();
  // Asio wants what a coroutine gives to have a default.
  auto read = [path = options_.api_keys] {
    return std::optional<Result<security::ApiKeys>>{security::ApiKeys::load(path)};
  };
  auto loaded = co_await transport::run_blocking(environment_, std::move(read));
  if (!*loaded) co_return std::move(*loaded).error();
  keys_ = std::move(**loaded);
  co_return ok();
}

Async<void> Gateway::reload_keys() {
  for (;;) {
    co_await sleep_for(environment_.clock, keys_period);
    const auto loaded = co_await load_keys();
    // The keys known so far stay good: a half-written file locks nobody out.
    if (!loaded) log::error("api_keys_unreadable", {{"why", loaded.error()}});
  }
}

Async<void> Gateway::accept_all(Door door, HttpListener& listener) {
  for (;;) {
    auto stream = co_await listener.accept();
    if (!stream) co_return;
    if (connections_ >= options_.connections_max) {
      metrics_.refused("connections");
      stream->close();
      continue;
    }
    spawn(scope_, session(std::move(stream), door));
  }
}

Async<void> Gateway::session(std::unique_ptr<HttpStream> stream, Door door) {
  struct Counted {
    explicit Counted(Gateway& of) : gateway(of) {
      gateway.metrics_.connections(++gateway.connections_);
    }
    ~Counted() { gateway.metrics_.connections(--gateway.connections_); }
    Gateway& gateway;
  } counted{*this};
  HttpConnection connection{std::move(stream), environment_.clock, options_.limits};
  if (!co_await connection.handshake()) co_return;
  std::string admitted_key;
  for (;;) {
    auto request = co_await connection.read_request();
    if (!request) {
      if (co_await refuse_unreadable(connection, request.error())) {
        co_await connection.linger_and_close();
      }
      co_return;
    }
    Exchange exchange;
    exchange.arrived = environment_.clock.now();
    exchange.remote = connection.remote();
    exchange.door = door;
    exchange.keep_alive = request->keep_alive && !stopping_;
    exchange.request_id = valid_request_id(request->request_id) ? request->request_id : made_id();
    exchange.route = route_label(request->path);
    exchange.admitted_key = &admitted_key;
    exchange.request = std::move(*request);
    if (!co_await answer(connection, exchange) || !exchange.keep_alive || stopping_) break;
  }
  co_await connection.linger_and_close();
}

// Whether there is an answer that the client should get to read.
Async<bool> Gateway::refuse_unreadable(HttpConnection& connection, Error why) {
  if (why.code() == Code::unavailable) co_return false;
  const int status = why.code() == Code::exhausted ? 413 : why.code() == Code::denied ? 431 : 400;
  metrics_.refused("unreadable");
  metrics_.request_ended("unknown", status, {});
  HttpResponse response;
  response.status = status;
  response.headers.emplace_back("x-request-id", made_id());
  response.body = to_json(refusal(status, why.message(), "invalid_request_error",
                                  status == 400 ? "malformed_request" : "request_too_large"));
  co_return co_await connection.send(response, false);
}

Async<bool> Gateway::answer(HttpConnection& connection, Exchange& exchange) {
  struct Counted {
    Counted(Gateway& of, Exchange& what) : gateway(of), exchange(what) { ++gateway.exchanges_; }
    ~Counted() {
      if (--gateway.exchanges_ == 0) gateway.idle_.pulse();
      gateway.metrics_.request_ended(exchange.route, exchange.status,
                                     gateway.environment_.clock.now() - exchange.arrived);
    }
    Gateway& gateway;
    Exchange& exchange;
  } counted{*this, exchange};
  co_return co_await route(connection, exchange);
}

Async<bool> Gateway::respond(HttpConnection& connection, Exchange& exchange,
                             HttpResponse response) {
  exchange.status = response.status;
  response.headers.emplace_back("x-request-id", exchange.request_id);
  if (exchange.request.method == "HEAD") {  // Its answers have no body: end the framing with it.
    response.body.clear();
    exchange.keep_alive = false;
  }
  co_return co_await connection.send(response, exchange.keep_alive);
}

Async<bool> Gateway::fail(HttpConnection& connection, Exchange& exchange, ApiError failure) {
  HttpResponse response;
  response.status = failure.status;
  response.body = to_json(failure);
  if (failure.status == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
  if (failure.retry_after_seconds) {
    response.headers.emplace_back("Retry-After", std::to_string(*failure.retry_after_seconds));
  }
  co_return co_await respond(connection, exchange, std::move(response));
}

std::optional<ApiError> Gateway::check_origin(const Exchange& exchange) const {
  if (exchange.door != Door::plain) return std::nullopt;
  const HttpRequest& request = exchange.request;
  const std::string what = request.method + " " + exchange.route;
  if (!is_local_host(request.host, port())) {
    audit_.refuse("unknown " + exchange.remote, what, "foreign Host");
    return refusal(403, "the Host header must name this server: localhost, 127.0.0.1 or [::1]",
                   "permission_error", "host_not_allowed");
  }
  constexpr std::string_view scheme = "http://";
  const bool own = request.origin.starts_with(scheme) &&
                   is_local_host(request.origin.substr(scheme.size()), port());
  if (request.has_origin && !own) {
    audit_.refuse("unknown " + exchange.remote, what, "foreign Origin");
    return refusal(403, "requests from other sites' pages are not answered", "permission_error",
                   "origin_not_allowed");
  }
  return std::nullopt;
}

std::optional<ApiError> Gateway::check_key(Exchange& exchange) {
  if (!keys_) return std::nullopt;
  // These tell of everybody's requests, of all models.
  const bool for_admins = exchange.route == "/metrics" || exchange.route == "/v1/troupe/stats";
  const std::string& header = exchange.request.authorization;
  constexpr std::string_view scheme = "bearer ";
  const bool bearer = lower(header.substr(0, scheme.size())) == scheme;
  const std::string what = exchange.request.method + " " + exchange.route;
  const auto key = keys_->verify(bearer ? std::string_view(header).substr(scheme.size()) : "",
                                 security::Scope::inference);
  if (key && for_admins && key->scope != security::Scope::admin) {
    metrics_.refused("api_key");
    audit_.refuse("api_key " + key->name, what, "not an admin's key");
    return refusal(403, "this needs an admin's key: see 'troupe key create NAME --admin'",
                   "permission_error", "admin_key_required");
  }
  if (key) {
    if (*exchange.admitted_key != key->name) {
      *exchange.admitted_key = key->name;
      audit_.admit("api_key " + key->name, what, "api key");
    }
    return std::nullopt;
  }
  metrics_.refused("api_key");
  audit_.refuse("unknown " + exchange.remote, what, bearer ? "wrong api key" : "no api key");
  return refusal(401,
                 bearer ? "the API key is not valid"
                        : "an API key is required: send 'Authorization: Bearer <key>'",
                 "invalid_request_error", "invalid_api_key");
}

Async<bool> Gateway::route(HttpConnection& connection, Exchange& exchange) {
  const HttpRequest& request = exchange.request;
  if (auto failure = check_origin(exchange)) {
    exchange.keep_alive = false;
    co_return co_await fail(connection, exchange, std::move(*failure));
  }
  const bool open = request.path == "/health" || request.path == "/ready";
  if (!open) {
    if (auto failure = check_key(exchange)) {
      co_return co_await fail(connection, exchange, std::move(*failure));
    }
  }
  if (exchange.route == "unknown") {
    co_return co_await fail(
        connection, exchange,
        refusal(404, "there is nothing at this path", "invalid_request_error", "unknown_url"));
  }
  const bool chat = request.path == "/v1/chat/completions";
  const bool generates = chat || request.path == "/v1/completions";
  const char* allowed = generates ? "POST" : "GET";
  HttpResponse response;
  if (request.method != allowed) {
    response.status = 405;
    response.headers.emplace_back("Allow", allowed);
    response.body = to_json(refusal(405, fmt::format("this path answers {} only", allowed),
                                    "invalid_request_error", "method_not_allowed"));
    co_return co_await respond(connection, exchange, std::move(response));
  }
  if (generates) {
    if (!request.content_type.empty() &&
        !lower(request.content_type).starts_with("application/json")) {
      co_return co_await fail(connection, exchange,
                              refusal(415, "the Content-Type must be application/json",
                                      "invalid_request_error", "unsupported_media_type"));
    }
    auto parsed = chat ? parse_chat(request.body) : parse_completion(request.body);
    if (auto* failure = std::get_if<ApiError>(&parsed)) {
      co_return co_await fail(connection, exchange, std::move(*failure));
    }
    co_return co_await generate(connection, exchange, std::get<ApiRequest>(std::move(parsed)));
  }
  const auto models = backend_.models();
  if (request.path == "/metrics") {
    response.content_type = "text/plain; version=0.0.4";
    response.body = metrics_.text();
  } else if (request.path == "/v1/troupe/stats") {
    statistics_.keep_only(models);
    response.body = statistics_.to_json(models, environment_.clock.now());
  } else if (request.path == "/v1/models") {
    response.body = models_json();
  } else if (request.path == "/health") {
    response.body = R"({"status":"ok"})";
  } else if (request.path == "/ready") {
    const bool ready = !stopping_ && std::any_of(models.begin(), models.end(), [](auto& model) {
      return model.replicas_alive > 0;
    });
    response.status = ready ? 200 : 503;
    response.body = ready ? R"({"status":"ready"})" : R"({"status":"no model is ready"})";
  } else {
    const std::string name = request.path.substr(models_prefix.size());
    const auto found = std::find_if(models.begin(), models.end(),
                                    [&](const ModelInfo& info) { return info.name == name; });
    if (found == models.end()) {
      co_return co_await fail(connection, exchange, unknown_model(name));
    }
    response.body = json::serialize(model_json(*found));
  }
  co_return co_await respond(connection, exchange, std::move(response));
}

std::string Gateway::models_json() const {
  json::array rows;
  for (const ModelInfo& info : backend_.models()) rows.push_back(model_json(info));
  return json::serialize(json::object{{"object", "list"}, {"data", std::move(rows)}});
}

std::string Gateway::made_id() const {
  return RawId::random(environment_.random).to_string();
}

Async<bool> Gateway::generate(HttpConnection& connection, Exchange& exchange, ApiRequest request) {
  const auto models = backend_.models();
  const bool known = std::any_of(models.begin(), models.end(),
                                 [&](const ModelInfo& info) { return info.name == request.model; });
  if (!known) co_return co_await fail(connection, exchange, unknown_model(request.model));
  const auto running = in_flight_.find(request.model);
  const size_t now = running == in_flight_.end() ? 0 : running->second;
  if (now > 0 && now + request.choices() > options_.in_flight_max) {
    metrics_.refused("overload");
    auto failure = refusal(
        429,
        fmt::format("the model '{}' is busy with {} requests; try again soon", request.model, now),
        "rate_limit_error", "overloaded");
    failure.retry_after_seconds = 1;
    co_return co_await fail(connection, exchange, std::move(failure));
  }
  const Admission admission{*this, request.model, request.choices()};
  // A client that goes away takes its generations along.
  const auto raced = co_await (complete(connection, exchange, request) || connection.wait_closed());
  if (raced.index() == 0) co_return std::get<0>(raced);
  connection.close();
  co_return false;
}

Async<bool> Gateway::complete(HttpConnection& connection, Exchange& exchange,
                              const ApiRequest& request) {
  Completion completion{*this, connection, exchange, request};
  co_await run_choices(completion, 0);
  if (completion.client_lost) co_return false;
  if (completion.failure) {
    ApiError failure = to_api_error(*completion.failure);
    failure.message += fmt::format(" (request {})", exchange.request_id);
    log::warning(
        "request_failed",
        {{"request", exchange.request_id}, {"model", request.model}, {"why", *completion.failure}});
    if (!completion.events_begun) co_return co_await fail(connection, exchange, std::move(failure));
    // The status was sent long ago: the stream itself has to say it, and ends without [DONE].
    exchange.status = failure.status;
    exchange.keep_alive = false;
    const bool sent = co_await connection.send_event(to_json(failure));
    if (!sent) co_return false;
    co_return co_await connection.end_events();
  }
  completion.succeeded = true;
  if (!request.stream) {
    HttpResponse response;
    response.body = completion.writer.whole(completion.choices, completion.usage());
    co_return co_await respond(connection, exchange, std::move(response));
  }
  exchange.status = 200;
  if (request.include_usage) {
    auto usage = completion.writer.usage(completion.usage());
    if (!co_await connection.send_event(std::move(usage))) co_return false;
  }
  std::string done = "[DONE]";
  if (!co_await connection.send_event(std::move(done))) co_return false;
  co_return co_await connection.end_events();
}

// All from `first` on, at the same time.
Async<void> Gateway::run_choices(Completion& completion, size_t first) {
  if (first + 1 == completion.choices.size()) {
    co_await run_choice(completion, first);
  } else {
    co_await (run_choice(completion, first) && run_choices(completion, first + 1));
  }
}

Async<void> Gateway::run_choice(Completion& completion, size_t index) {
  const ApiRequest& request = completion.request;
  GenerateRequest asked;
  asked.model = request.model;
  asked.arguments = engine_arguments(request, index, completion.exchange.request_id);
  asked.budget = options_.request_budget;
  RetryingGeneration generation{backend_, environment_.clock, options_.retry, std::move(asked)};
  ChoiceText& choice = completion.choices[index];
  Instant previous = completion.exchange.arrived;
  for (;;) {
    const uint32_t retries_before = generation.retries();
    auto chunk = co_await generation.next();
    completion.retries += generation.retries() - retries_before;
    if (completion.failure || completion.client_lost) co_return;  // Another choice ended it all.
    if (chunk && !chunk->has_value()) {
      chunk = error(Code::internal, "the engine ended without a reason");
    }
    if (!chunk) {
      completion.failure = std::move(chunk).error();
      co_return;
    }
    if (generation.restarted()) {
      choice = {};
      completion.completion_tokens[index] = 0;
    }
    const Chunk& got = **chunk;
    if (got.prompt_tokens) completion.prompt_tokens[index / request.n] = *got.prompt_tokens;
    uint64_t& tokens = completion.completion_tokens[index];
    tokens = got.completion_tokens > 0 ? got.completion_tokens : tokens + got.tokens.size();
    const Instant now = environment_.clock.now();
    if (!got.text.empty() || !got.tokens.empty()) {
      if (!completion.first_token) completion.first_token = now - completion.exchange.arrived;
      if (choice.text.empty()) {
        metrics_.first_token(request.model, now - previous);
      } else {
        metrics_.next_token(request.model, now - previous);
      }
      previous = now;
    }
    if (request.stream) {
      // Text that waits for the rest of a character is no piece yet, and may still be made anew.
      if (!got.text.empty() || !got.finish_reason.empty() || !got.logprobs.empty()) {
        generation.commit();
        if (!co_await pass_on(completion, index, got)) co_return;
      }
    } else if (!got.logprobs.empty()) {
      choice.logprobs.push_back(got.logprobs);
    }
    choice.text += got.text;
    choice.finish_reason = got.finish_reason;
    if (!choice.finish_reason.empty()) co_return;
  }
}

Async<bool> Gateway::pass_on(Completion& completion, size_t index, const Chunk& chunk) {
  while (completion.writing) co_await completion.turn.wait();
  if (completion.client_lost || completion.failure) co_return false;
  completion.writing = true;
  HttpConnection& connection = completion.connection;
  bool sent = true;
  if (!std::exchange(completion.events_begun, true)) {
    std::vector<std::pair<std::string, std::string>> headers{
        {"x-request-id", completion.exchange.request_id}};
    sent = co_await connection.begin_events(completion.exchange.request, std::move(headers));
    if (!completion.exchange.request.http_1_1) completion.exchange.keep_alive = false;
  }
  if (sent && !completion.started[index]) {
    completion.started[index] = true;
    auto first = completion.writer.first(index);
    if (!first.empty()) sent = co_await connection.send_event(std::move(first));
  }
  if (sent) {
    const size_t offset = completion.choices[index].text.size();
    auto piece = completion.writer.piece(index, chunk, offset);
    sent = co_await connection.send_event(std::move(piece));
  }
  completion.writing = false;
  completion.client_lost = completion.client_lost || !sent;
  completion.turn.pulse();
  co_return sent;
}

}  // namespace troupe::gateway
