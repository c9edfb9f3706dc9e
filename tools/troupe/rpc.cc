#include "troupe/rpc.h"

#include <fmt/format.h>
#include <unistd.h>

#include <thread>

#include "troupe/daemon_process.h"

namespace troupe::tools {

using transport::Method;
using transport::Peer;

namespace {

constexpr Duration connect_budget_of_many = std::chrono::seconds(1);
constexpr Duration takeover_budget = std::chrono::seconds(10);

Async<void> connect_into(Scope& scope, transport::Environment environment, std::string path,
                         Duration budget, transport::Router& router,
                         std::optional<Result<std::shared_ptr<Peer>>>& out) {
  const Instant deadline = environment.clock.now() + budget;
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

Result<std::unique_ptr<Rpc>> Rpc::connect(const std::string& unix_path, Duration budget) {
  std::unique_ptr<Rpc> rpc{new Rpc};
  std::optional<Result<std::shared_ptr<Peer>>> outcome;
  rpc->run(connect_into(rpc->scope_, rpc->real_.environment(), unix_path, budget, rpc->router_,
                        outcome));
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
  std::vector<std::string> heads;
  for (const DaemonRecord& daemon : record.daemons) {
    if (daemon.kind == "head") heads.push_back(daemon.name);
  }
  // With one head gone, another one leads soon.
  const auto end = std::chrono::steady_clock::now() + takeover_budget;
  for (;;) {
    Error failure = error(Code::unavailable, "none was started");
    for (const std::string& name : heads) {
      auto head = heads.size() > 1 ? Rpc::connect(folder.head_socket(name), connect_budget_of_many)
                                   : Rpc::connect(folder.head_socket(name));
      const Code code = head ? Code::ok : head.error().code();
      const bool is_away =
          code == Code::unavailable || (heads.size() > 1 && code == Code::deadline_exceeded);
      if (!is_away) return head;
      failure = std::move(head).error();
    }
    if (heads.size() > 1 && !was_interrupted() && std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      continue;
    }
    return error(
        Code::unavailable,
        fmt::format("the head of the cluster in {} does not answer ({}): see {}/head.log, and "
                    "'troupe down' ends what is left",
                    folder.path().string(), failure.message(), folder.logs().string()));
  }
}

}  // namespace troupe::tools
