#include "worker/memory_monitor.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "worker/machine.h"

namespace troupe::worker {

namespace {

constexpr Duration calm_period = std::chrono::seconds(1);
constexpr Duration tense_period = std::chrono::milliseconds(100);
// A process that was killed gives its memory back while it ends.
constexpr Duration time_to_end = std::chrono::seconds(2);
constexpr double tense_part = 0.85;
// Where the memory is to be afterwards, below where something is done: else the next page is the
// next alarm.
constexpr double relief_part = 0.05;
constexpr size_t told_max = 8;

double gib(uint64_t bytes) {
  return static_cast<double>(bytes) / (uint64_t{1} << 30);
}

}  // namespace

std::vector<ProcessId> choose_victims(std::vector<Candidate> candidates, uint64_t excess_bytes) {
  std::ranges::sort(candidates, [](const Candidate& a, const Candidate& b) {
    if (a.is_replaceable != b.is_replaceable) return a.is_replaceable;
    return a.bytes != b.bytes ? a.bytes > b.bytes : a.process < b.process;
  });
  std::vector<ProcessId> victims;
  uint64_t freed = 0;
  for (const Candidate& candidate : candidates) {
    if (freed >= excess_bytes || candidate.bytes == 0) break;
    victims.push_back(candidate.process);
    freed += candidate.bytes;
    if (!candidate.is_replaceable) break;
  }
  // The last may make up for smaller ones before it.
  for (size_t i = 0; i + 1 < victims.size();) {
    const auto found = std::ranges::find(candidates, victims[i], &Candidate::process);
    if (freed - found->bytes >= excess_bytes && found->is_replaceable) {
      freed -= found->bytes;
      victims.erase(victims.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
  return victims;
}

MemoryMonitor::MemoryMonitor(transport::Environment environment, Scope& scope,
                             const WorkerOptions& options, ProcessTable& processes)
    : environment_(environment), scope_(scope), options_(options), processes_(processes) {}

void MemoryMonitor::start() {
  if (options_.usage == nullptr || options_.memory_high <= 0) return;
  spawn(scope_, watch());
}

Async<void> MemoryMonitor::watch() {
  for (;;) {
    const uint64_t used = options_.usage->memory_used_bytes();
    const auto limit = static_cast<double>(options_.usage->memory_bytes());
    const double part = static_cast<double>(used) / std::max(limit, 1.0);
    Duration pause = part > tense_part * options_.memory_high ? tense_period : calm_period;
    if (part > options_.memory_high) {
      act(used);
      pause = time_to_end;
    }
    co_await sleep_for(environment_.clock, pause);
  }
}

void MemoryMonitor::act(uint64_t used) {
  const uint64_t limit = options_.usage->memory_bytes();
  const auto wanted =
      static_cast<uint64_t>(static_cast<double>(limit) * (options_.memory_high - relief_part));
  std::vector<Candidate> candidates;
  for (const HostedProcess::Pointer& process : processes_.all()) {
    if (process->pid() == 0 || process->is_ending()) continue;
    candidates.push_back({process->id(), options_.usage->process_bytes(process->pid()),
                          process->work.is_replaceable});
  }
  std::ranges::sort(candidates, std::ranges::greater{}, &Candidate::bytes);
  std::string users;
  for (const Candidate& candidate :
       std::span{candidates}.first(std::min(told_max, candidates.size()))) {
    users += fmt::format("{}{} {:.2f} GiB", users.empty() ? "" : ", ",
                         candidate.process.short_string(), gib(candidate.bytes));
  }
  const std::string state =
      fmt::format("{:.2f} of {:.2f} GiB of memory are in use", gib(used), gib(limit));
  const auto victims = choose_victims(candidates, used > wanted ? used - wanted : 0);
  if (victims.empty()) {
    log::warning("memory_short",
                 {{"state", state}, {"processes", users}, {"ended", "none is ours"}});
    return;
  }
  for (const ProcessId id : victims) {
    const auto process = processes_.find(id);
    const auto of = std::ranges::find(candidates, id, &Candidate::process);
    const std::string reason = fmt::format(
        "was ended, for {}, of which it had {:.2f} GiB (largest: {}): give it less to do at "
        "once, or demand memory for it so that fewer run beside it",
        state, gib(of->bytes), users);
    log::error("memory_short", {{"process", id}, {"pid", process->pid()}, {"why", reason}});
    process->end_for(reason);
    spawn(scope_, HostedProcess::end(process, Duration::zero()));
  }
}

}  // namespace troupe::worker
