// A short-lived connection of the CLI to the head (or a worker) of this machine.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "base/log.h"
#include "transport/peer.h"
#include "transport/real_environment.h"
#include "transport/router.h"
#include "troupe/state_folder.h"

namespace troupe::tools {

// Blocks its thread for each answer.
class Rpc {
 public:
  // Errors: unavailable (nobody listens there).
  static Result<std::unique_ptr<Rpc>> connect(const std::string& unix_path,
                                              Duration budget = std::chrono::seconds(5));
  ~Rpc();

  template <class Reply, class Request>
  Result<Reply> ask(transport::Method method, Request request,
                    Duration budget = std::chrono::seconds(30)) {
    std::optional<Result<Reply>> outcome;
    run(call_into<Reply, Request>(peer_, method, std::move(request), budget, outcome));
    if (!outcome) return error(Code::cancelled, "interrupted");
    return std::move(*outcome);
  }
  // What the other end may ask meanwhile. Answered while this waits for an answer.
  transport::Router& router() { return router_; }
  transport::Environment environment() { return real_.environment(); }
  // Calls back with each item until it returns false or the stream ends.
  Status stream(transport::Method method, Bytes request, std::function<bool(BytesView)> item);

 private:
  Rpc();
  // Runs the loop until `work` has ended, or Ctrl-C.
  void run(Async<void> work);
  template <class Reply, class Request>
  static Async<void> call_into(std::shared_ptr<transport::Peer> peer, transport::Method method,
                               Request request, Duration budget,
                               std::optional<Result<Reply>>& outcome) {
    outcome = co_await transport::call<Reply>(peer, method, std::move(request), budget);
  }
  static Async<void> mark(Async<void> work, bool& done);

  transport::RealEnvironment real_;
  Scope scope_{real_.io().get_executor()};
  transport::Router router_;
  std::shared_ptr<transport::Peer> peer_;
};

// The head of the cluster in `folder`. Errors: unavailable (none runs there, or its head is dead;
// says what to do).
Result<std::unique_ptr<Rpc>> connect_head(const StateFolder& folder);

}  // namespace troupe::tools
