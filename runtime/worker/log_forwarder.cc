#include "worker/log_forwarder.h"

#include <algorithm>
#include <filesystem>

#include "base/log.h"

namespace troupe::worker {

using protocol::JobLogs;
using transport::Method;
using transport::Peer;

namespace {

constexpr Duration period = std::chrono::milliseconds(100);  // Between two passes.
constexpr Duration look_period = std::chrono::seconds(1);    // At a file that cannot be watched.
constexpr Duration connect_budget = std::chrono::seconds(5);
constexpr Duration send_budget = std::chrono::seconds(30);
constexpr Duration away_pause = std::chrono::seconds(1);  // After a driver was not found.
constexpr uint64_t batch_bytes_max = 4 << 20;

}  // namespace

std::string program_of(const std::string& module) {
  std::string name = std::filesystem::path(module).filename();
  const auto cut = [&name](std::string_view prefix, std::string_view suffix) {
    if (name.starts_with(prefix)) name.erase(0, prefix.size());
    if (name.ends_with(suffix)) name.resize(name.size() - suffix.size());
  };
  cut("lib", ".so");
  cut("", "_module");
  return name;
}

LogForwarder::LogForwarder(transport::Environment environment, Scope& scope,
                           const WorkerOptions& options, ProcessLauncher& launcher,
                           transport::Service& service, JobEnvironments& environments)
    : environment_(environment),
      scope_(scope),
      options_(options),
      launcher_(launcher),
      service_(service),
      environments_(environments) {}

void LogForwarder::process_started(LoggedProcess process, protocol::ProcessAddress driver) {
  StreamPointer& stream = streams_[process.job];
  if (!stream) {
    stream = std::make_shared<Stream>(environment_.loop);
    stream->job = process.job;
    stream->driver = std::move(driver);
  }
  const auto source = std::make_shared<Source>(std::move(process));
  stream->sources[source->process.process] = source;
  stream_of_[source->process.process] = stream;
  source->watch = launcher_.watch_log(
      source->process.path, [this, weak = std::weak_ptr(source), of = std::weak_ptr(stream)] {
        const auto written = weak.lock();
        const auto into = of.lock();
        if (!written || !into) return;
        written->grew = true;
        send_soon(into);
      });
  if (!source->watch || !source->watch->arm()) {
    spawn(scope_, look_from_time_to_time(stream, source));
  }
  send_soon(stream);
}

Async<void> LogForwarder::look_from_time_to_time(StreamPointer stream, SourcePointer source) {
  while (stream->sources.contains(source->process.process)) {
    co_await sleep_for(environment_.clock, look_period);
    source->grew = true;
    send_soon(stream);
  }
}

void LogForwarder::process_ended(ProcessId process) {
  const auto found = stream_of_.find(process);
  if (found == stream_of_.end()) return;
  const StreamPointer stream = found->second;
  stream_of_.erase(found);
  const auto source = stream->sources.find(process);
  if (source == stream->sources.end()) return;
  source->second->ended = source->second->grew = true;
  send_soon(stream);
}

void LogForwarder::job_ended(JobId job) {
  const auto found = streams_.find(job);
  if (found == streams_.end()) return;
  const StreamPointer stream = found->second;
  streams_.erase(found);
  for (const auto& [process, source] : stream->sources) stream_of_.erase(process);
  stream->sources.clear();
  if (stream->peer) stream->peer->close();
  stream->progress.set();
}

Async<void> LogForwarder::flush(JobId job, Instant deadline) {
  const auto found = streams_.find(job);
  if (found == streams_.end()) co_return;
  const StreamPointer stream = found->second;
  for (const auto& [process, source] : stream->sources) source->grew = true;
  const uint64_t wanted = stream->pass + 1;  // The first that begins after this.
  ++stream->flushes;
  if (!stream->sources.empty()) send_soon(stream);
  stream->hurry.pulse();
  stream->not_before = {};
  bool in_time = true;
  // Of processes that have all ended the last lines may be on their way.
  const auto is_told = [&] {
    return stream->sources.empty() ? !stream->sends : stream->pass_told >= wanted;
  };
  while (in_time && !is_told() && streams_.contains(job)) {
    in_time = co_await wait_until(environment_.clock, deadline, stream->progress);
  }
  --stream->flushes;
}

void LogForwarder::send_soon(const StreamPointer& stream) {
  if (!std::exchange(stream->sends, true)) spawn(scope_, send(stream));
}

Async<void> LogForwarder::send(StreamPointer stream) {
  const auto grew = [&] {
    return std::ranges::any_of(stream->sources, [](const auto& one) { return one.second->grew; });
  };
  while (grew()) {
    if (stream->not_before > environment_.clock.now()) {
      (void)co_await wait_until(environment_.clock, stream->not_before, stream->hurry);
    }
    const uint64_t pass = ++stream->pass;
    bool complete = true;
    JobLogs batch = co_await gather(stream, complete);
    if (!batch.items.empty()) {
      stream->not_before = environment_.clock.now() + period;
      const Status sent = co_await deliver(stream, batch);
      if (!sent) {
        log::debug("logs_not_sent", {{"job", stream->job}, {"why", sent.error()}});
        for (const auto& item : batch.items) {
          const auto source = stream->sources.find(item.process);
          if (source != stream->sources.end()) {
            source->second->lost += item.lost + item.lines.size();
          }
        }
        stream->not_before = environment_.clock.now() + away_pause;
      }
    }
    if (complete) stream->pass_told = pass;
    stream->progress.pulse();
  }
  stream->sends = false;
  stream->progress.pulse();
}

Async<JobLogs> LogForwarder::gather(StreamPointer stream, bool& complete) {
  JobLogs batch;
  batch.job = stream->job;
  batch.node = options_.node;
  batch.node_name = options_.name;
  std::vector<SourcePointer> sources;
  for (const auto& [process, source] : stream->sources) {
    if (source->grew) sources.push_back(source);
  }
  uint64_t bytes = 0;
  for (const SourcePointer& source : sources) {
    if (bytes >= batch_bytes_max) {
      complete = false;  // They keep for the next pass.
      break;
    }
    const bool ended = source->ended;
    source->grew = false;
    // Before it is read: what is written from here on calls again.
    if (source->watch && !ended) (void)source->watch->arm();
    // A driver that goes may know of a process's death before the worker does.
    const bool whole = ended || stream->flushes > 0;
    auto read = [source, whole] { return source->reader.read(LogReader::unread_bytes_max, whole); };
    auto found = co_await transport::run_blocking(environment_, read);
    if (found.more) {
      source->grew = true;
      complete = false;
    }
    if (ended && !found.more) stream->sources.erase(source->process.process);
    for (const std::string& line : found.lines) bytes += line.size();
    found.lost += std::exchange(source->lost, 0);
    if (found.lines.empty() && found.lost == 0) continue;
    const LoggedProcess& who = source->process;
    batch.items.push_back(
        {who.process, who.actor, who.pid(), who.name, std::move(found.lines), found.lost});
  }
  co_return batch;
}

Async<Status> LogForwarder::deliver(StreamPointer stream, const JobLogs& batch) {
  if (!stream->peer || !stream->peer->is_open()) TROUPE_CO_CHECK(co_await find_driver(stream));
  auto peer = stream->peer;
  auto taken =
      co_await transport::call<protocol::Empty>(peer, Method::job_logs, batch, send_budget);
  if (taken) co_return ok();
  if (taken.error().code() == Code::deadline_exceeded) co_return ok();  // It has them, and prints.
  co_return std::move(taken).error();
}

Async<Status> LogForwarder::find_driver(StreamPointer stream) {
  auto peer = co_await connect(stream->driver);
  if (!peer) {
    // A job that was submitted may have another program by now.
    auto info = co_await environments_.ask(stream->job);
    if (!info || info->driver.process == stream->driver.process) co_return std::move(peer).error();
    stream->driver = info->driver;
    peer = co_await connect(stream->driver);
    if (!peer) co_return std::move(peer).error();
  }
  stream->peer = std::move(*peer);
  co_return ok();
}

Async<Result<std::shared_ptr<Peer>>> LogForwarder::connect(protocol::ProcessAddress driver) {
  transport::Endpoint endpoint;
  if (driver.node == options_.node && !driver.unix_path.empty()) {
    endpoint.unix_path = driver.unix_path;
  } else {
    endpoint.host = driver.host;
    endpoint.port = driver.port;
  }
  const Instant deadline = environment_.clock.now() + connect_budget;
  auto connection = co_await environment_.network.connect(std::move(endpoint), deadline);
  if (!connection) co_return std::move(connection).error();
  auto peer =
      co_await Peer::start(scope_, environment_, std::move(*connection), service_, hello, deadline);
  if (peer && (*peer)->remote().address.process != driver.process) {
    (*peer)->close();
    co_return error(Code::unavailable, "another process listens where the driver was");
  }
  co_return peer;
}

}  // namespace troupe::worker
