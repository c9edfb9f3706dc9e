#include "worker/logs.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <cerrno>
#include <cstring>

namespace troupe::worker {
namespace {

constexpr size_t chunk_bytes = 64 << 10;
constexpr Duration poll_period = std::chrono::milliseconds(100);
constexpr size_t ended_logs_max = 4096;

Result<Bytes> read_at(int fd, uint64_t offset) {
  Bytes data(chunk_bytes);
  const ssize_t count = ::pread(fd, data.data(), data.size(), static_cast<off_t>(offset));
  if (count < 0) return error(Code::internal, fmt::format("read log: {}", std::strerror(errno)));
  data.resize(static_cast<size_t>(count));
  return data;
}

}  // namespace

std::string read_log_tail(const std::string& path, size_t bytes_max) {
  FileDescriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  struct stat status {};
  if (!file.is_open() || ::fstat(file.get(), &status) != 0) return {};
  const auto size = static_cast<size_t>(status.st_size);
  const size_t begin = size > bytes_max ? size - bytes_max : 0;
  std::string tail(size - begin, '\0');
  const ssize_t count = ::pread(file.get(), tail.data(), tail.size(), static_cast<off_t>(begin));
  tail.resize(count > 0 ? static_cast<size_t>(count) : 0);
  if (begin > 0) {
    if (const size_t line = tail.find('\n'); line != tail.npos) tail.erase(0, line + 1);
  }
  while (!tail.empty() && tail.back() == '\n') tail.pop_back();
  return tail;
}

Logs::Logs(transport::Environment environment, Scope& scope, const WorkerOptions& options,
           LogForwarder& forwarder)
    : environment_(environment), scope_(scope), options_(options), forwarder_(forwarder) {}

void Logs::process_started(const HostedProcess::Pointer& process, ActorId actor, std::string name,
                           const std::optional<protocol::ProcessAddress>& driver) {
  entries_[process->id()] = {process->log_path(), actor, true};
  if (!actor.is_nil()) newest_[actor] = process->id();
  if (!driver) return;
  forwarder_.process_started(
      {process->id(), actor, process->job(), [process] { return process->pid(); }, std::move(name),
       process->log_path()},
      *driver);
}

void Logs::process_ended(ProcessId process) {
  const auto found = entries_.find(process);
  if (found == entries_.end()) return;
  found->second.running = false;
  forwarder_.process_ended(process);
  spawn(scope_, note_ended(process));
}

Async<void> Logs::note_ended(ProcessId process) {
  auto measure = [path = entries_.at(process).path]() -> uint64_t {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 ? static_cast<uint64_t>(status.st_size) : 0;
  };
  const uint64_t bytes = co_await run_blocking(environment_, std::move(measure));
  entries_.at(process).bytes = bytes;
  ended_bytes_ += bytes;
  ended_.push_back(process);
  while (ended_.size() > ended_logs_max || (ended_.size() > options_.ended_logs_kept &&
                                            ended_bytes_ > options_.ended_logs_bytes_max)) {
    forget_oldest();
  }
}

void Logs::forget_oldest() {
  const auto oldest = entries_.find(ended_.front());
  ended_.pop_front();
  std::erase_if(newest_, [&](const auto& entry) { return entry.second == oldest->first; });
  ended_bytes_ -= oldest->second.bytes;
  boost::asio::post(environment_.blocking,
                    [path = std::move(oldest->second.path)] { ::unlink(path.c_str()); });
  entries_.erase(oldest);
}

Result<ProcessId> Logs::resolve(const protocol::ReadLog& request) const {
  if (!request.process.is_nil()) {
    if (entries_.contains(request.process)) return request.process;
    return error(Code::not_found, fmt::format("no log of process {} on node {}",
                                              request.process.to_string(), options_.name));
  }
  const auto found = newest_.find(request.actor);
  if (found != newest_.end()) return found->second;
  return error(Code::not_found, fmt::format("no log of actor {} on node {}",
                                            request.actor.to_string(), options_.name));
}

bool Logs::is_running(ProcessId process) const {
  const auto found = entries_.find(process);
  return found != entries_.end() && found->second.running;
}

Async<Status> Logs::read(transport::Message message, transport::CallContext call,
                         transport::OutgoingStream& out) {
  TROUPE_CO_TRY(const auto request, protocol::decode<protocol::ReadLog>(message.body));
  TROUPE_CO_TRY(const ProcessId process, resolve(request));
  const std::string path = entries_.at(process).path;
  auto open = [path] { return FileDescriptor{::open(path.c_str(), O_RDONLY | O_CLOEXEC)}; };
  const FileDescriptor file = co_await run_blocking(environment_, std::move(open));
  if (!file.is_open()) co_return error(Code::not_found, "the log was removed: " + path);
  uint64_t offset = request.offset_bytes;
  for (;;) {
    const bool last = !request.follow || !is_running(process);  // Before reading: none is missed.
    auto read = [fd = file.get(), offset] { return read_at(fd, offset); };
    TROUPE_CO_TRY(auto data, co_await run_blocking(environment_, std::move(read)));
    if (!data.empty()) {
      protocol::LogChunk chunk;
      chunk.offset_bytes = offset;
      chunk.data = std::move(data);
      offset += chunk.data.size();
      Bytes item = protocol::encode(chunk);
      TROUPE_CO_CHECK(co_await out.send(std::move(item)));
      continue;
    }
    if (last) co_return ok();
    const Instant again = environment_.clock.now() + poll_period;
    if (co_await wait_until(environment_.clock, again, *call.cancelled)) {
      co_return error(Code::cancelled, "the reader gave up");
    }
  }
}

}  // namespace troupe::worker
