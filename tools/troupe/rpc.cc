#include "troupe/rpc.h"

#include <fmt/format.h>
#include <unistd.h>

#include "troupe/daemon_process.h"

namespace troupe::tools {

using transport::Method;
using transport::Peer;

namespace {

constexpr Duration connect_budget = std::chrono::seconds(5);

Async<void> connect_into(Scope& scope, transport::Environment environment, std::string path,
                         transport::Router& router,
                         std::optional<Result<std::shared_ptr<Peer>>>& out) {
  const Instant deadline = environment.clock.now() + connect_budget;
  transport::Endpoint endpoint;
  endpoint.unix_path = std::move(path);
  auto connection = co_await environment.network.connect(endpoint, deadline);
  if (!connection) {
    out.emplace(std::move(connection).error());
    co_return;
  }
  protocol::Hello self;
  self.kind = "cli";
  self.address.process = ProcessId::random(environment.random);
  self.pid = static_cast<uint32_t>(::getpid());
  out.emplace(
      co_await Peer::start(scope, environment, std::move(*connection), router, self, deadline));
}

Async<void> stop(Scope& scope, std::shared_ptr<Peer> peer, bool& done) {
  if (peer) peer->close();
  co_await scope.stop();
  done = true;
}

Async<void> read_stream(std::shared_ptr<Peer> peer, Method method, Bytes request,
                        std::function<bool(BytesView)> item, std::optional<Status>& out) {
  transport::Message message{std::move(request), {}};
  auto stream = peer->open_stream(method, std::move(message), {});
  if (!stream) {
    out.emplace(std::move(stream).error());
    co_return;
  }
  for (;;) {
    auto next = co_await (*stream)->next();
    if (!next) {
      out.emplace(std::move(next).error());
      co_return;
    }
    if (!*next || !item(**next)) break;
  }
  out.emplace();
}

}  // namespace

Rpc::Rpc() = default;

Rpc::~Rpc() {
  Scope last{real_.io().get_executor()};
  bool done = false;
  spawn(last, stop(scope_, std::move(peer_), done));
  real_.io().restart();
  while (!done || last.size() > 0) real_.io().run_one();
}

Async<void> Rpc::mark(Async<void> work, bool& done) {
  co_await std::move(work);
  done = true;
}

void Rpc::run(Async<void> work) {
  bool done = false;
  Scope scope{real_.io().get_executor()};
  spawn(scope, mark(std::move(work), done));
  real_.io().restart();
  while (!done && !was_interrupted()) real_.io().run_one_for(std::chrono::milliseconds(100));
  scope.cancel();
  while (scope.size() > 0) real_.io().run_one();
}

Result<std::unique_ptr<Rpc>> Rpc::connect(const std::string& unix_path) {
  std::unique_ptr<Rpc> rpc{new Rpc};
  std::optional<Result<std::shared_ptr<Peer>>> outcome;
  rpc->run(connect_into(rpc->scope_, rpc->real_.environment(), unix_path, rpc->router_, outcome));
  if (!outcome) return error(Code::cancelled, "interrupted");
  if (!*outcome) return std::move(*outcome).error();
  rpc->peer_ = std::move(**outcome);
  return rpc;
}

Status Rpc::stream(Method method, Bytes request, std::function<bool(BytesView)> item) {
  std::optional<Status> outcome;
  run(read_stream(peer_, method, std::move(request), std::move(item), outcome));
  if (!outcome) return ok();  // Ctrl-C ends a stream in good order.
  return std::move(*outcome);
}

Result<std::unique_ptr<Rpc>> connect_head(const StateFolder& folder) {
  TROUPE_TRY(const auto record, folder.read_record());
  auto head = Rpc::connect(folder.head_socket());
  if (!head && head.error().code() == Code::unavailable) {
    return error(
        Code::unavailable,
        fmt::format("the head of the cluster in {} does not answer ({}): see {}/head.log, and "
                    "'troupe down' ends what is left",
                    folder.path().string(), head.error().message(), folder.logs().string()));
  }
  return head;
}

}  // namespace troupe::tools
