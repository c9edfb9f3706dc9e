#include "client/driver_logs.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>

#include "base/log.h"
#include "security/audit.h"

namespace troupe::client {

using protocol::JobLogs;
using transport::CallContext;

// Writes to standard error. Thread-safe; whole lines stay whole.
struct DriverLogs::Printer {
  std::mutex mutex;
  std::atomic<bool> gives_up = false;

  void print(const std::vector<std::string>& lines) {
    const std::lock_guard lock{mutex};
    std::string text;
    for (const std::string& line : lines) {
      // A pipe takes so much without blocking once it says that it can be written to.
      constexpr size_t write_bytes_max = 4096;
      if (text.size() + line.size() >= write_bytes_max) write(std::exchange(text, {}));
      text += line;
      text += '\n';
    }
    write(text);
  }

 private:
  void write(std::string_view text) const {
    constexpr int look_ms = 100;
    while (!text.empty()) {
      pollfd wanted{STDERR_FILENO, POLLOUT, 0};
      while (::poll(&wanted, 1, look_ms) <= 0) {
        if (gives_up) return;
      }
      // Nobody reads it any more: a write would end the program.
      if ((wanted.revents & (POLLERR | POLLNVAL)) != 0) return;
      const ssize_t count =
          ::write(STDERR_FILENO, text.data(), std::min<size_t>(text.size(), 4096));
      if (count < 0 && errno != EINTR && errno != EAGAIN) return;  // It was closed.
      if (count > 0) text.remove_prefix(static_cast<size_t>(count));
    }
  }
};

DriverLogs::DriverLogs(Client& client, Options options)
    : client_(client), options_(std::move(options)), printer_(std::make_shared<Printer>()) {
  client.router().on(protocol::Method::job_logs, *this, &DriverLogs::take);
}

DriverLogs::~DriverLogs() = default;

Async<Result<protocol::Empty>> DriverLogs::take(JobLogs batch, CallContext context) {
  const auto& identity = context.peer->identity();
  const bool of_node = identity.local || identity.role == transport::Role::node;
  if (!of_node || batch.job != client_.job()) {
    security::Audit{}.refuse(security::audit_name(identity), "send lines of processes",
                             "not a node's, or of another job");
    co_return error(Code::denied, "lines come from the nodes of the job alone");
  }
  if (options_.sink) {
    auto call = [sink = options_.sink, lines = std::move(batch)] {
      sink(lines);
      return true;
    };
    co_await transport::run_blocking(client_.environment(), std::move(call));
    co_return protocol::Empty{};
  }
  auto lines = lines_of(batch);
  show_repeats_later();
  co_await print(std::move(lines));
  co_return protocol::Empty{};
}

std::vector<std::string> DriverLogs::lines_of(const JobLogs& batch) {
  std::vector<std::string> out;
  const Instant now = client_.environment().clock.now();
  for (const protocol::ProcessLines& item : batch.items) {
    const std::string prefix = fmt::format("({} pid={}, {})", item.name, item.pid, batch.node_name);
    if (item.lost > 0) {
      out.push_back(
          fmt::format("{} [{} lines were left out: they came faster than they were read; "
                      "'troupe logs' has all]",
                      prefix, item.lost));
    }
    for (const std::string& line : item.lines) {
      if (options_.shows_repeats) {
        out.push_back(fmt::format("{} {}", prefix, line));
        continue;
      }
      for (std::string& shown : repeats_.take(now, item.process, prefix, line)) {
        out.push_back(std::move(shown));
      }
    }
  }
  return out;
}

void DriverLogs::show_repeats_later() {
  if (waits_ || !repeats_.next()) return;
  waits_ = true;
  spawn(client_.scope(), show_repeats());
}

Async<void> DriverLogs::show_repeats() {
  while (const auto next = repeats_.next()) {
    co_await sleep_until(client_.environment().clock, *next);
    auto lines = repeats_.due(client_.environment().clock.now());
    co_await print(std::move(lines));
  }
  waits_ = false;
}

Async<void> DriverLogs::print(std::vector<std::string> lines) {
  if (lines.empty()) co_return;
  auto write = [printer = printer_, lines = std::move(lines)] {
    printer->print(lines);
    return true;
  };
  co_await transport::run_blocking(client_.environment(), std::move(write));
}

Async<void> DriverLogs::stop(Duration budget) {
  protocol::JobLogs request;
  request.job = client_.job();
  auto told = co_await client_.ask_head<protocol::Empty>(protocol::Method::job_logs,
                                                         std::move(request), budget);
  if (!told) log::debug("logs_not_flushed", {{"why", told.error()}});
  printer_->gives_up = true;  // Whoever does not read by now holds nobody up.
  auto lines = repeats_.finish();
  co_await print(std::move(lines));
}

}  // namespace troupe::client
