#include "scheduler/replay/replay.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <queue>
#include <utility>

namespace troupe::scheduler {
namespace {

double in_seconds(Duration duration) {
  return std::chrono::duration<double>(duration).count();
}

class Replay {
 public:
  Replay(const std::vector<TraceJob>& trace, ReplayOptions options)
      : trace_(trace),
        options_(std::move(options)),
        scheduler_({.policy = std::move(options_.policy), .patience = options_.patience}),
        states_(trace.size()) {}

  ReplayResult run() {
    for (uint32_t node = 0; node < options_.nodes; ++node) {
      NodeAdded added;
      added.node.low = node + 1;
      added.total = {.cpu_milli = options_.cpus_per_node * 1000,
                     .memory_mib = options_.memory_mib_per_node,
                     .gpu_milli = options_.gpus_per_node * whole_gpu_milli};
      apply(added);
    }
    size_t next = 0;
    for (;;) {
      forget_stale_ends();
      Instant due = Instant::max();
      if (next < trace_.size()) due = std::min(due, start_ + trace_[next].submitted);
      if (!ends_.empty()) due = std::min(due, ends_.top().at);
      if (due == Instant::max()) break;  // Only what can never run is left.
      if (const auto deadline = scheduler_.next_deadline()) due = std::min(due, *deadline);
      now_ = std::max(now_, due);
      // Ends first, so that who comes at the same time finds their room.
      if (!ends_.empty() && ends_.top().at <= now_) {
        end(ends_.top().job);
      } else if (next < trace_.size() && start_ + trace_[next].submitted <= now_) {
        submit(next++);
      } else {
        apply(TimePassed{});
      }
    }
    return summary();
  }

 private:
  struct State {
    Instant placed_at;
    Instant ends_at = Instant::max();
    Duration done{};      // Of its run time, before this stint.
    Duration overhead{};  // Of this stint.
    Duration first_wait{};
    Duration completion{};
    uint32_t stints = 0;
    bool has_ended = false;
    bool is_infeasible = false;
  };
  struct End {
    Instant at;
    size_t job;
    // The earliest on top.
    bool operator<(const End& other) const {
      return std::tie(other.at, other.job) < std::tie(at, job);
    }
  };

  static GangId id_of(size_t job) {
    GangId id;
    id.low = job + 1;
    return id;
  }
  static size_t job_of(const GangId& id) { return id.low - 1; }

  void apply(const Event& event) {
    pending_.push_back(event);
    while (!pending_.empty()) {
      const Event next = std::move(pending_.front());
      pending_.pop_front();
      for (const Decision& decision : scheduler_.apply(next, now_)) {
        ++result_.decisions;
        if (options_.on_decision) options_.on_decision(decision, now_);
        std::visit([this](const auto& typed) { heed(typed); }, decision);
      }
    }
  }

  void submit(size_t job) {
    const TraceJob& wanted = trace_[job];
    GangRequested request;
    request.gang = id_of(job);
    request.job.low = job + 1;
    request.priority = wanted.priority;
    request.can_pause = true;
    if (options_.tells_run_times) request.run_time = wanted.run_time;
    const int64_t node_milli = options_.gpus_per_node * whole_gpu_milli;
    int64_t left = wanted.gpu_milli;
    const int64_t parts =
        node_milli == 0 ? 1 : std::max<int64_t>(1, (left + node_milli - 1) / node_milli);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t gpu_milli = part + 1 < parts ? node_milli : left;
      request.bundles.push_back({.cpu_milli = wanted.cpu_milli / parts,
                                 .memory_mib = wanted.memory_mib / parts,
                                 .gpu_milli = gpu_milli});
      left -= gpu_milli;
    }
    apply(request);
  }

  void heed(const GangPlaced& placed) {
    const size_t job = job_of(placed.gang);
    State& state = states_[job];
    if (state.stints++ == 0) {
      state.first_wait = now_ - (start_ + trace_[job].submitted);
    } else {
      state.overhead = options_.restart_cost;
    }
    state.placed_at = now_;
    state.ends_at = now_ + state.overhead + (trace_[job].run_time - state.done);
    ends_.push({state.ends_at, job});
  }
  void heed(const Revoked& revoked) {
    if (revoked.reason != RevokeReason::preempted) return;
    const GangId gang = std::get<GangId>(revoked.id);
    const size_t job = job_of(gang);
    State& state = states_[job];
    const Duration stint = now_ - state.placed_at;
    const Duration overhead = std::min(stint, state.overhead);
    state.done += stint - overhead;
    state.ends_at = Instant::max();
    ++result_.preemptions;
    lost(job, overhead);
    pending_.emplace_back(GangYielded{gang, stint - overhead});
  }
  void heed(const Infeasible& infeasible) {
    states_[job_of(std::get<GangId>(infeasible.id))].is_infeasible = true;
  }
  template <class Other>
  void heed(const Other&) {}

  void end(size_t job) {
    ends_.pop();
    State& state = states_[job];
    state.has_ended = true;
    state.ends_at = Instant::max();
    state.completion = now_ - (start_ + trace_[job].submitted);
    lost(job, state.overhead);
    last_end_ = now_;
    apply(GangReleased{id_of(job)});
  }
  void lost(size_t job, Duration overhead) {
    result_.lost_gpu_s +=
        in_seconds(overhead) * static_cast<double>(trace_[job].gpu_milli) / whole_gpu_milli;
  }
  void forget_stale_ends() {
    while (!ends_.empty() && states_[ends_.top().job].ends_at != ends_.top().at) ends_.pop();
  }

  ReplayResult summary() {
    std::vector<double> completions;
    double sum = 0;
    double waits = 0;
    double gpu_s = 0;
    double share_sum = 0;
    double share_squares = 0;
    for (size_t job = 0; job < trace_.size(); ++job) {
      const State& state = states_[job];
      if (!state.has_ended) {
        if (state.is_infeasible) ++result_.infeasible;
        continue;
      }
      const double completion = in_seconds(state.completion);
      const double run_time = in_seconds(trace_[job].run_time);
      completions.push_back(completion);
      sum += completion;
      waits += in_seconds(state.first_wait);
      gpu_s += run_time * static_cast<double>(trace_[job].gpu_milli) / whole_gpu_milli;
      const double share = completion > 0 ? run_time / completion : 1;
      share_sum += share;
      share_squares += share * share;
      result_.slowdown_worst =
          std::max(result_.slowdown_worst, completion / std::max(run_time, 1.0));
    }
    result_.jobs = completions.size();
    if (completions.empty()) return result_;
    std::ranges::sort(completions);
    const auto count = static_cast<double>(completions.size());
    const auto quantile = [&](double q) {
      const auto rank = static_cast<size_t>(std::ceil(q * count));
      return completions[std::clamp<size_t>(rank, 1, completions.size()) - 1];
    };
    result_.jct_avg_s = sum / count;
    result_.jct_p50_s = quantile(0.5);
    result_.jct_p90_s = quantile(0.9);
    result_.jct_p99_s = quantile(0.99);
    result_.jct_max_s = completions.back();
    result_.first_wait_avg_s = waits / count;
    result_.makespan_s = in_seconds(last_end_ - start_);
    const double capacity = result_.makespan_s * static_cast<double>(options_.gpus_per_node) *
                            static_cast<double>(options_.nodes);
    result_.utilisation = capacity > 0 ? gpu_s / capacity : 0;
    result_.jain = share_squares > 0 ? share_sum * share_sum / (count * share_squares) : 0;
    return result_;
  }

  const std::vector<TraceJob>& trace_;
  ReplayOptions options_;
  Scheduler scheduler_;
  const Instant start_{std::chrono::seconds(1)};
  Instant now_ = start_;
  Instant last_end_ = start_;
  std::vector<State> states_;
  std::priority_queue<End> ends_;
  std::deque<Event> pending_;
  ReplayResult result_;
};

}  // namespace

ReplayResult replay(const std::vector<TraceJob>& trace, ReplayOptions options) {
  return Replay{trace, std::move(options)}.run();
}

}  // namespace troupe::scheduler
