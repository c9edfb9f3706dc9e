#include "worker/hosted_process.h"

#include <fmt/format.h>

#include "base/log.h"
#include "worker/logs.h"

namespace troupe::worker {

using transport::Message;
using transport::Method;
using transport::Peer;

namespace {

constexpr Duration terminate_grace = std::chrono::seconds(2);
// How long a process whose connection closed may take to exit, before it is helped.
constexpr Duration exit_grace = std::chrono::seconds(1);
constexpr size_t log_tail_bytes = 2048;

uint64_t in_us(Duration duration) {
  return static_cast<uint64_t>(duration / std::chrono::microseconds(1));
}

}  // namespace

HostedProcess::HostedProcess(transport::Environment environment, Scope& scope, ProcessId id,
                             JobId job, std::string log_path,
                             std::unique_ptr<LaunchedProcess> launched)
    : environment_(environment),
      scope_(scope),
      id_(id),
      job_(job),
      log_path_(std::move(log_path)),
      launched_(std::move(launched)) {}

Async<Status> HostedProcess::greet(Pointer self, transport::Service& service,
                                   protocol::Hello worker, Instant deadline) {
  const bool started =
      co_await wait_until(self->environment_.clock, deadline, self->launched_->started());
  if (!started) co_return error(Code::deadline_exceeded, "start a process: it was not in time");
  if (self->exited().is_set()) co_return co_await explain(self, error(Code::unavailable, ""));
  auto peer =
      co_await Peer::start(self->scope_, self->environment_, self->launched_->take_connection(),
                           service, std::move(worker), deadline);
  if (!peer) co_return co_await explain(self, std::move(peer).error());
  if ((*peer)->remote().address.process != self->id_) {
    (*peer)->close();
    co_return error(Code::invalid, "the started process says that it is another one");
  }
  self->peer_ = *peer;
  spawn(self->scope_, end_when_disconnected(self));
  co_return ok();
}

Async<Result<protocol::ProcessStarted>> HostedProcess::greet_and_assign(
    Pointer self, transport::Service& service, protocol::Hello worker, Method method,
    Bytes assignment, Instant deadline) {
  TROUPE_CO_CHECK(co_await greet(self, service, std::move(worker), deadline));
  co_return co_await assign(self, method, std::move(assignment), deadline);
}

Async<Result<protocol::ProcessStarted>> HostedProcess::assign(Pointer self, Method method,
                                                              Bytes assignment, Instant deadline) {
  Message request{std::move(assignment), {}};
  const Duration budget = deadline - self->environment_.clock.now();
  auto peer = self->peer_;
  auto reply = co_await peer->call(method, std::move(request), budget);
  if (!reply) {
    if (peer->is_open()) co_return std::move(reply).error();
    co_return co_await explain(self, std::move(reply).error());
  }
  TROUPE_CO_TRY(auto started, protocol::decode<protocol::ProcessStarted>(reply->body));
  started.pid = self->pid();
  self->started_ = started;
  co_return started;
}

Async<void> HostedProcess::end_when_disconnected(Pointer self) {
  auto peer = self->peer_;
  co_await peer->closed().wait();
  // A process without its worker is of no use, and its objects wait for its end.
  const Instant patience = self->environment_.clock.now() + exit_grace;
  if (!co_await wait_until(self->environment_.clock, patience, self->exited())) {
    if (!self->ending_) co_await end(self, terminate_grace);
  }
}

Async<Error> HostedProcess::explain(Pointer self, Error failed) {
  const Instant patience = self->environment_.clock.now() + exit_grace;
  bool exited = false;
  if (failed.code() != Code::deadline_exceeded) {
    exited = co_await wait_until(self->environment_.clock, patience, self->exited());
  }
  if (!exited) {
    co_return std::move(failed).context("start a process");
  }
  std::string message =
      fmt::format("process {} {} before it was ready", self->id_.to_string(), self->exit_reason());
  auto read = [path = self->log_path_] { return read_log_tail(path, log_tail_bytes); };
  const std::string tail = co_await run_blocking(self->environment_, std::move(read));
  if (!tail.empty()) message += "; its log ends: " + tail;
  co_return error(Code::unavailable, std::move(message));
}

Async<void> HostedProcess::end(Pointer self, Duration grace, bool save) {
  if (self->exited().is_set()) co_return;
  if (grace <= Duration::zero()) self->launched_->kill();
  if (!std::exchange(self->ending_, true)) spawn(self->scope_, escalate(self, grace, save));
  co_await self->exited().wait();
}

Async<bool> HostedProcess::end_if_unneeded(Pointer self, Duration grace) {
  if (self->is_usable()) {
    const protocol::StopProcess stop{in_us(grace), true, false};
    Message request{protocol::encode(stop), {}};
    auto peer = self->peer_;
    auto told = co_await peer->call(Method::stop_process, std::move(request), grace);
    if (!told && told.error().code() == Code::conflict) co_return false;
  }
  co_await end(self, grace);
  co_return true;
}

Async<void> HostedProcess::escalate(Pointer self, Duration grace, bool save) {
  TimerClock& clock = self->environment_.clock;
  if (grace > Duration::zero() && self->peer_ && self->peer_->is_open()) {
    const Instant patience = clock.now() + grace;
    const protocol::StopProcess stop{in_us(grace), false, save};
    Message request{protocol::encode(stop), {}};
    auto peer = self->peer_;
    auto told = co_await peer->call(Method::stop_process, std::move(request), grace);
    // An unwilling process gets no grace; a silent or obedient one gets all of it.
    if (told || told.error().code() != Code::unimplemented) {
      (void)co_await wait_until(clock, patience, self->exited());
    }
  }
  if (self->exited().is_set()) co_return;
  self->launched_->terminate();
  const Instant patience = clock.now() + terminate_grace;
  if (co_await wait_until(clock, patience, self->exited())) co_return;
  log::warning("process_killed", {{"process", self->id_}, {"why", "it ignored SIGTERM"}});
  self->launched_->kill();
}

}  // namespace troupe::worker
